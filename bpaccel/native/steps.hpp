// The run of a plan: steps one after the other, blocks of rows shared by threads, sums added up in the tree.
//
// One thread leads, others help. The leader announces the blocks of a step, some at a time. All threads claim blocks that
// nobody took, several at once while many are left, and put the sums of each where they belong. When all blocks are done,
// the leader adds them to the tree, and takes the solver's step after the last. So no bit depends on the threads; a helper
// that comes late or never leaves the others more to do, and nobody waits but for blocks that a running thread has claimed.
#pragma once
#include "fused.hpp"
#include "solvers.hpp"
#include "tree.hpp"

namespace bp {
constexpr i64 MOST_BLOCKS = 16;  // that a thread claims at once: some thousands of rows, which it reads one after the other
constexpr int PATIENCE = 2000;   // looks at a word before the processor is offered to others

FORMULA i64 acquire(const Word& w) { return __atomic_load_n(&w.value, __ATOMIC_ACQUIRE); }
FORMULA void release(Word& w, i64 value) { __atomic_store_n(&w.value, value, __ATOMIC_RELEASE); }

// While one of these lives, this thread takes subnormal numbers for 0: an operation takes many times as long with them.
struct FlushSubnormals {
#if defined(__x86_64__)
    unsigned before = __builtin_ia32_stmxcsr();
    FlushSubnormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }  // where they are computed, and where they are read
    ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
    u64 before;
    FlushSubnormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | 1ull << 24));
    }
    ~FlushSubnormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

// Claim some blocks and do them. Returns whether there were any.
template <class T> static bool work(const Plan<T>& plan, T* a) {
    Control& control = *plan.control;
    i64 ticket = acquire(control.next), limit = acquire(control.limit);
    if (ticket >= limit) return false;
    i64 some = greater(1, lesser(MOST_BLOCKS, (limit - ticket) / plan.threads));
    if (!__atomic_compare_exchange_n(&control.next.value, &ticket, ticket + some, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return true;  // somebody else was faster
    i64 from = acquire(control.from), begin = acquire(control.begin), stop = acquire(control.stop);
    for (i64 mine = ticket - from; mine < ticket - from + some; mine++) {
        i64 first = begin + mine * BLOCK_ROWS;
        double* sums = (double*)(plan.block_sums + mine * plan.slot_bytes);
        learn_block(plan, first, lesser(first + BLOCK_ROWS, stop), acquire(control.step), a, false, sums);
    }
    __atomic_fetch_add(&control.done.value, some, __ATOMIC_ACQ_REL);
    return true;
}

// Work, or look again, until `over` says so.
template <class T, class Over> static void work_until(const Plan<T>& plan, T* a, Over over) {
    for (int looks = 0; !over();) {
        if (work(plan, a)) looks = 0;
        else if (++looks > PATIENCE) {
            if (plan.yield) plan.yield();
            looks = 0;
        }
    }
}

template <class T> static void help(const Plan<T>* plan, T* a) {
    FlushSubnormals flushed;
    work_until(*plan, a, [&] { return acquire(plan->control->end) != 0; });
}

// The sums of the blocks of rows begin ... stop, each in its slot.
template <class T> static void learn_blocks(const Plan<T>& plan, i64 begin, i64 stop, i64 blocks, i64 step, T* a) {
    if (plan.threads == 1 || blocks == 1) {
        for (i64 k = 0; k < blocks; k++) {
            i64 first = begin + k * BLOCK_ROWS;
            double* sums = (double*)(plan.block_sums + k * plan.slot_bytes);
            learn_block(plan, first, lesser(first + BLOCK_ROWS, stop), step, a, false, sums);
        }
        return;
    }
    Control& control = *plan.control;
    i64 from = acquire(control.limit);
    release(control.from, from);
    release(control.begin, begin);
    release(control.stop, stop);
    release(control.step, step);
    release(control.limit, from + blocks);
    work_until(plan, a, [&] { return acquire(control.done) == from + blocks; });
}

// The sums of one step, to plan.sums.
template <class T> static void sum_rows(const Plan<T>& plan, i64 start, i64 stop, i64 step, T* a, bool stay, bool parts) {
    if (stop - start <= BLOCK_ROWS && !parts) {  // the sums of the only block are those of the step
        if (start < stop) learn_block(plan, start, stop, step, a, stay, plan.sums);
        else for (i64 q = 0; q < plan.count + TOTALS; q++) plan.sums[q] = 0;
        return;
    }
    if (stop - start <= BLOCK_ROWS && start < stop) {
        learn_block(plan, start, stop, step, a, stay, (double*)plan.block_sums);
        fold(plan, plan.sums, 0, 1);
        return;
    }
    i64 seen = 0;
    for (i64 begin = start; begin < stop; begin += plan.slots * BLOCK_ROWS) {
        i64 then = lesser(begin + plan.slots * BLOCK_ROWS, stop), blocks = (then - begin + BLOCK_ROWS - 1) / BLOCK_ROWS;
        learn_blocks(plan, begin, then, blocks, step, a);
        fold(plan, plan.tree, seen, blocks);
        seen += blocks;
    }
    if (seen) collapse(plan, seen);
    else for (i64 q = 0; q < plan.count + TOTALS; q++) plan.sums[q] = 0;
}

template <class T> static void pack_weights(const Plan<T>& plan) {
    const T* w = plan.weights;
    for (i64 layer = 0; plan.tiles && layer < plan.depth; layer++) {
        i64 I = plan.sizes[layer] + plan.bias, O = plan.sizes[layer + 1];
        if (plan.tiles[layer]) pack(w, I, O, plan.tiles[layer]);
        w += I * O;
    }
}

// Take the steps of a plan; `a` is memory of this thread alone.
template <class T> static void lead(const Plan<T>* at, T* a) {
    const Plan<T>& plan = *at;
    FlushSubnormals flushed;
    bool parts = false;
    for (i64 layer = 0; layer < plan.depth; layer++) parts |= plan.parts[layer] != 0;
    for (i64 now = 0; now < plan.steps; now++) {
        i64 start = plan.starts[now], stop = plan.stops[now];
        // The same rows again, if one stretch holds them, lie in this thread's memory still.
        bool stay = now && start == plan.starts[now - 1] && stop == plan.stops[now - 1] && stop - start <= stretch_rows<T>;
        pack_weights(plan);
        sum_rows(plan, start, stop, plan.step + now, a, stay, parts);
        if (plan.solver != NO_SOLVER) apply_step(plan, now);
    }
    release(plan.control->end, 1);
}

// One step of the solver by sums that are there already, for rows that are not all in memory.
template <class T> static void step(const Plan<T>* plan, i64 now) {
    FlushSubnormals flushed;
    apply_step(*plan, now);
}

// The outputs of rows first ... stop.
template <class T> static void predict(const Plan<T>* plan, i64 first, i64 stop, T* a) {
    FlushSubnormals flushed;
    forward(*plan, first, stop, a);
}
}  // namespace bp
