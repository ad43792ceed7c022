// The fused pass: forward, error, backward and the sums of the updates in one go, over a stretch of rows that stays in
// the caches. In a thread's memory each unit owns `apart` numbers, one a row: inputs first, then each layer, the targets
// and the weights of the rows. A unit that is always 1 follows the inputs and each hidden layer of a network with a bias.
// A layer's values are replaced by its slopes and then by its deltas when these are known.
#pragma once
#include "dropout.hpp"
#include "products.hpp"
#include "reading.hpp"
#include "sums.hpp"

namespace bp {
namespace activation { struct softmax; }

// --- activations, in place: of `units` from x on ---

template <class T, class F> static void activate(T* x, i64 units, i64 end) {
    if constexpr (same<F, activation::softmax>) {  // couples the units of a row
        over_rows<T>(end, [&](i64 r, auto vector) INLINED {
            typedef decltype(vector) V;
            V top = load<V>(x + r), sum = {};
            for (i64 o = 1; o < units; o++) {
                V z = load<V>(x + o * apart<T> + r);
                top = select(top > z, top, z);
            }
            for (i64 o = 0; o < units; o++) {
                V e = exp_down(load<V>(x + o * apart<T> + r) - top);
                store(x + o * apart<T> + r, e);
                sum += e;
            }
            for (i64 o = 0; o < units; o++) store(x + o * apart<T> + r, load<V>(x + o * apart<T> + r) / sum);
        });
    } else
        each<T>(x, units, end, [](auto z) INLINED { return F::value(z); });
}
template <class T, class F> static void slopes(T* x, i64 units, i64 end) {
    each<T>(x, units, end, [](auto a) INLINED { return F::slope(a); });
}

// Deltas in place of the outputs, behind which targets and weights of rows lie; totals are added to.
template <class T, class F, class Loss> static void output(T* x, i64 units, i64 end, double number, double* totals) {
    typedef Lanes<T> V;
    V weight = {}, loss = {}, error = {};
    for (i64 r = 0; r < end; r += lanes<T>) {
        V c = load<V>(x + 2 * units * apart<T> + r);
        weight += c;
        for (i64 o = 0; o < units; o++) {
            V l = load<V>(x + o * apart<T> + r), y = load<V>(x + (units + o) * apart<T> + r);
            loss = fma(Loss::value(y, l, T(number)), c, loss);
            error = fma(magnitude(y - l), c, error);
            store(x + o * apart<T> + r, output_delta<F, Loss>(y, l, T(number)) * c);
        }
    }
    totals[0] += reduce_add<T, lanes<T>>(weight);
    totals[1] += reduce_add<T, lanes<T>>(loss);
    totals[2] += (double)reduce_add<T, lanes<T>>(error) / units;
}

// --- sums of a layer's updates ---

// Of IS inputs and OS outputs, lanes being rows.
template <class T, int IS, int OS> FORMULA void update_tile(const T* x, const T* delta, i64 end, double* g, i64 O) {
    typedef Lanes<T> V;
    V sums[IS][OS] = {};
    for (i64 r = 0; r < end; r += lanes<T>) {
        V d[OS];
        UNROLL for (int o = 0; o < OS; o++) d[o] = load<V>(delta + o * apart<T> + r);
        UNROLL for (int i = 0; i < IS; i++) {
            V l = load<V>(x + i * apart<T> + r);
            UNROLL for (int o = 0; o < OS; o++) sums[i][o] = fma(l, d[o], sums[i][o]);
        }
    }
    if constexpr (OS == 1 && IS == 4) {  // four sums that lie a row of weights apart
        auto four = reduce_add_four<T, lanes<T>>(sums[0][0], sums[1][0], sums[2][0], sums[3][0]);
        UNROLL for (int i = 0; i < 4; i++) g[i * O] += four[i];
    } else
        UNROLL for (int i = 0; i < IS; i++) add_sums<T, lanes<T>>(g + i * O, sums[i]);
}
template <class T> static void update(i64 I, i64 O, const T* x, const T* delta, i64 end, double* g, bool onto) {
    constexpr int ONCE = 64 / REGISTER == 1 ? 4 : 2;  // inputs at once: as many as registers hold sums of
    if (!onto) for (i64 q = 0; q < I * O; q++) g[q] = 0;
    for (i64 o = 0; o < O;) {
        bool four = O - o >= 4;
        const T* d = delta + o * apart<T>;
        for (i64 i = 0; i < I;) {
            const T* l = x + i * apart<T>;
            double* to = g + i * O + o;
            if (four && I - i >= ONCE) { update_tile<T, ONCE, 4>(l, d, end, to, O); i += ONCE; }
            else if (four) { update_tile<T, 1, 4>(l, d, end, to, O); i++; }
            else if (I - i >= 4) { update_tile<T, 4, 1>(l, d, end, to, O); i += 4; }
            else { update_tile<T, 1, 1>(l, d, end, to, O); i++; }
        }
        o += four ? 4 : 1;
    }
}
// The same, lanes being units of the delta, so that a sum is over in one number: the deltas are transposed for it.
template <class T>
static void update_units(const Plan<T>& plan, i64 I, i64 O, T* a, const T* x, const T* delta, i64 end, T* g, bool onto) {
    constexpr int C = REGISTER / sizeof(T);
    i64 W = up(O, wide<T>), D = W + line<T>;
    T* transposed = a + plan.transposed * apart<T>;
    for (i64 o = 0; o < O; o += TILE_ROWS) {
        i64 c = lesser(o, O - TILE_ROWS);  // the last units may be transposed again
        const T* units[TILE_ROWS];
        for (i64 r = 0; r < end; r += C) {
            UNROLL for (int i = 0; i < TILE_ROWS; i++) units[i] = delta + (c + i) * apart<T> + r;
            transpose_rows<C>(units, transposed + r * D + c, D);
        }
    }
    for (i64 o = 0; o < W; o += wide<T>)
        products<T>({g + o, W}, I, {transposed + o, D}, wide<T>, {x, 1, apart<T>, 0}, end, onto ? ADD : SET);
}

// --- the pass ---

// The way forward: layers in a thread's memory. Returns where the outputs lie.
template <class T> static T* forward_layers(const Plan<T>& plan, const Stretch& s, T* a) {
    T *x = a, *masks = a + plan.masks * apart<T>;
    const T* w = plan.weights;
    if (plan.share != 1) draw_masks(plan, s, a);
    for (i64 layer = 0; layer < plan.depth; layer++) {
        i64 I = plan.sizes[layer] + plan.bias, O = plan.sizes[layer + 1];
        T* out = x + I * apart<T>;
        if (plan.bias)
            for (i64 r = 0; r < s.end; r++) out[r - apart<T>] = 1;
        bool tiles = plan.tiles && plan.tiles[layer];
        products<T>({out, apart<T>}, O, {x, apart<T>}, s.end, tiles ? packed<T>(plan.tiles[layer], I) : Factors<T>{w, O, 1, 0}, I, SET);
        if (plan.activate[layer]) plan.activate[layer](out, O, s.end);
        if (plan.share != 1 && layer < plan.depth - 1) {
            drop(out, masks, O, s.end, T(plan.share));
            masks += O * apart<T>;
        }
        x = out;
        w += I * O;
    }
    return x;
}

// Set g to what a stretch of rows asks of the weights, or add that if `onto`; and so the totals behind it.
template <class T> static void learn(const Plan<T>& plan, const Stretch& s, T* a, double* g) {
    T* x = forward_layers(plan, s, a);
    if (!s.onto) for (i64 q = plan.count; q < plan.count + TOTALS; q++) g[q] = 0;
    plan.output(x, plan.sizes[plan.depth], s.end, plan.loss_number, g + plan.count);

    i64 p = plan.count, silent = plan.masks;
    for (i64 layer = 1; layer < plan.depth; layer++) silent += plan.sizes[layer];
    for (i64 layer = plan.depth - 1; layer >= 0; layer--) {
        i64 inputs = plan.sizes[layer], I = inputs + plan.bias, O = plan.sizes[layer + 1];
        T* delta = x;
        x -= I * apart<T>;
        p -= I * O;
        if (plan.parts[layer]) update_units(plan, I, O, a, x, delta, s.end, (T*)((char*)g + plan.parts[layer]), s.onto);
        else update(I, O, x, delta, s.end, g + p, s.onto);
        if (layer == 0) break;
        auto slope = plan.slopes[layer - 1];
        if (plan.share != 1) {
            silent -= inputs;
            if (slope) {
                quieten(x, inputs, s.end, T(plan.share));
                slope(x, inputs, s.end);
            } else
                each<T>(x, inputs, s.end, [](auto a) INLINED { return all<decltype(a)>(1); });
            drop(x, a + silent * apart<T>, inputs, s.end, T(plan.share));
        } else if (slope)
            slope(x, inputs, s.end);
        How how = slope || plan.share != 1 ? MULTIPLY : SET;
        products<T>({x, apart<T>}, inputs, {delta, apart<T>}, s.end, {plan.weights + p, 1, O, 0}, O, how);
    }
}

// The sums of rows first ... stop, to g. With `stay`, the rows are those of the call before, and lie there still.
template <class T> static void learn_block(const Plan<T>& plan, i64 first, i64 stop, i64 step, T* a, bool stay, double* g) {
    for (i64 start = first; start < stop; start += stretch_rows<T>) {
        i64 rows = lesser(stretch_rows<T>, stop - start), end = up(rows, plan.filling), next = start + rows;
        if (!stay) {
            read_field(plan, plan.inputs, start, rows, end, a);
            read_field(plan, plan.targets, start, rows, end, a);
            read_weights(plan, start, rows, end, a);
        }
        if (plan.order && !stay) {
            i64 then = lesser(next + rows, plan.rows);
            fetch_rows(plan, plan.inputs, next, then);
            fetch_rows(plan, plan.targets, next, then);
            fetch_rows(plan, plan.row_weights, next, then);
        }
        Stretch s = {plan.first_place + start, rows, end, step, start > first,
                     rows_ahead(plan, plan.inputs, next, rows, a), rows_ahead(plan, plan.targets, next, rows, a)};
        plan.learn(plan, s, a, g);
    }
}

// The outputs of rows first ... stop: the network's answers. Each row's bytes are the same whatever stands beside it.
template <class T> static void forward(const Plan<T>& plan, i64 first, i64 stop, T* a) {
    i64 O = plan.sizes[plan.depth];
    for (i64 start = first; start < stop; start += stretch_rows<T>) {
        i64 rows = lesser(stretch_rows<T>, stop - start), end = up(rows, lanes<T>);
        read_field(plan, plan.inputs, start, rows, end, a);
        Stretch s = {start, rows, end, 0, false, nullptr, nullptr};
        const T* x = forward_layers(plan, s, a);
        T* to = plan.outputs + start * O;
        for (i64 r = 0; r < rows; r++)
            for (i64 o = 0; o < O; o++) to[r * O + o] = x[o * apart<T> + r];
    }
}
}  // namespace bp
