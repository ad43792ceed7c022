// The plan of a run: what Python tells the kernels. bpaccel/engines/cpu/plan.py mirrors these structs, member by member,
// and a test compares their offsets and sizes.
//
//   N rows, I inputs and O outputs of a layer; a unit is an input of the network, or a neuron
//   a block    1,024 rows: what threads share, and the leaves of the tree of sums
//   a stretch  1,024 bytes of rows of one unit: what a pass keeps in the caches
#pragma once
#include "lanes.hpp"

namespace bp {
constexpr int TOTALS = 3;  // after the sums of the updates: weight, loss and |error| of the rows
constexpr i64 BLOCK_ROWS = 1024;
template <class T> constexpr i64 stretch_rows = 1024 / sizeof(T);
// From one unit to the next in a thread's memory: a line more than a stretch, or units would share lines of the cache.
template <class T> constexpr i64 apart = stretch_rows<T> + line<T>;

// Each number of `units` from x on replaced by function(number).
template <class T, class Function> FORMULA void each(T* x, i64 units, i64 end, Function function) {
    for (i64 u = 0; u < units; u++)
        over_rows<T>(end, [&](i64 r, auto vector) INLINED {
            T* at = x + u * apart<T> + r;
            store(at, function(load<decltype(vector)>(at)));
        });
}

// An array of the caller's: strides in numbers. `unit` is where its columns go in a thread's memory, in units.
struct Field { const void* at; i64 row, column, columns, unit; };

// What threads share, each word on lines of its own. Blocks are numbered through the whole run: those below `limit` may
// be worked on, `next` is the first that nobody took, `done` counts those that are done. The blocks from ... limit are
// those of rows begin ... stop, in step `step`. Helpers leave when `end` is set.
struct alignas(128) Word { i64 value; };
struct Control { Word limit, next, done, end, from, begin, stop, step; };

// Of a step: what the solver multiplies its change by, what remains of the weights, and what keeps it from dividing by 0.
struct Rate { double rate, remains, epsilon; };
enum Solver : i64 { NO_SOLVER, GRADIENT_DESCENT, MOMENTUM, NESTEROV, ADAM, RMSPROP };

// Rows that a pass works on. `place` is that of the first in the order of the rows, which dropout asks for; `end` is
// `rows`, filled up. What lies at the two addresses will be read next, and is fetched meanwhile.
struct Stretch { i64 place, rows, end, step; bool onto; const char *inputs_ahead, *targets_ahead; };

template <class T> struct Plan {
    // The rows, in an order or as they lie (null); how many there are; what a place is counted from.
    Field inputs, targets, row_weights;
    const i64* order;
    i64 rows, first_place;
    // The network: matrices one after the other, (I, O) or (I + 1, O) with a bias, `count` numbers in all.
    i64 depth;
    const i64* sizes;
    i64 bias;
    T* weights;
    i64 count;
    // A thread's memory, in units: where deltas lie row by row, and where dropout's masks lie.
    i64 transposed, masks;
    // The sums of blocks: how many blocks are kept, where, and the bytes of one. By layer, where in a block's sums those
    // begin that are kept by units (a byte offset, or 0); and where the weights lie in tiles (or null).
    i64 slots;
    char* block_sums;
    i64 slot_bytes;
    const i64* parts;
    T* const* tiles;
    double* tree;  // sums of nodes, by level
    // Kernels of this network; null for an activation that is the identity. `learn` takes rows filled up to a multiple.
    i64 filling;
    void (*learn)(const Plan&, const Stretch&, T*, double*);
    void (*const* activate)(T*, i64, i64);
    void (*const* slopes)(T*, i64, i64);
    void (*output)(T*, i64, i64, double, double*);
    void (*yield)();  // offers the processor to other threads, or null
    // The run: rows starts[k] ... stops[k] in step `step` + k.
    i64 steps, step;
    const i64 *starts, *stops;
    const Rate* rates;
    double* sums;    // of a step, (count + TOTALS)
    double* totals;  // of all steps before their updates, (steps, 4): weight, loss, |error|, penalty
    Control* control;
    i64 threads;
    // What becomes of the sums: the loss's own number, the penalty, the greatest length, the solver and its state.
    double loss_number, l1, l2, clip;
    i64 mean, solver;
    double first, second;  // shares that the solver's state keeps of itself
    T *state, *second_state;
    // Dropout: the key of its numbers, the draw below which a unit is silent, and the share of the others (1: no dropout).
    unsigned long long seed, silent_below;
    double share;
    T* outputs;  // of `forward`, (N, O)
};
}  // namespace bp
