// The pass for a network of few weights: the lesson written out for the shape it has. Loops over units are unrolled, so a
// pass over the rows is a straight line: what lies between a layer's inputs and its outputs stays in registers, and so do
// the sums. Its bytes are those of the pass in `fused.hpp`.
//
// The ways forward and back wait for different things. An activation is a long chain of operations, so the way forward
// takes many rows at a time (FORWARD); the way back needs its registers for sums (BACK rows at a time: `lanes`, or fewer
// if no more rows are there, which changes no bit).
#pragma once
#include "plan.hpp"
#include "sums.hpp"

namespace bp {

// F, G: activations of hidden layers and of the output.
template <class F_, class G_, class Loss_, bool BIAS, int... SIZES> struct Network {
    typedef F_ F;
    typedef G_ G;
    typedef Loss_ Loss;
    static constexpr int bias = BIAS, depth = sizeof...(SIZES) - 1;
    static constexpr i64 sizes[] = {SIZES...};
    static constexpr int unit(int layer) { int u = 0; for (int k = 0; k < layer; k++) u += sizes[k]; return u; }
    static constexpr int first(int layer) {
        int p = 0;
        for (int k = 0; k < layer; k++) p += (sizes[k] + BIAS) * sizes[k + 1];
        return p;
    }
};

template <class T, int FORWARD, int BACK, class Net> struct Written {
    static constexpr int last = Net::depth - 1, count = Net::first(Net::depth), targets = Net::unit(Net::depth + 1);
    static constexpr i64 R = apart<T>;
    typedef Vector<T, FORWARD> Many;
    typedef Vector<T, BACK> Few;

    // Bring what lies where these rows would, if those of the stretch began at an address.
    template <int COLUMNS> FORMULA void fetch(const char* ahead, i64 r) {
        UNROLL for (int at = 0; at < FORWARD * COLUMNS * (int)sizeof(T); at += LINE)
            prefetch(ahead + r * COLUMNS * sizeof(T) + at);
    }

    template <int LAYER> FORMULA void forward(const T* w, T* a, const Stretch& s) {
        constexpr int I = Net::sizes[LAYER], O = Net::sizes[LAYER + 1], p = Net::first(LAYER);
        T *in = a + Net::unit(LAYER) * R, *out = in + I * R;
        for (i64 r = 0; r < s.end; r += FORWARD) {
            if (LAYER == 0) fetch<I>(s.inputs_ahead, r);
            if (LAYER == last) fetch<O>(s.targets_ahead, r);
            Many l[I];
            UNROLL for (int i = 0; i < I; i++) l[i] = load<Many>(in + i * R + r);
            UNROLL for (int o = 0; o < O; o++) {
                Many z = l[0] * w[p + o];
                UNROLL for (int i = 1; i < I; i++) z = fma(l[i], all<Many>(w[p + i * O + o]), z);
                if (Net::bias) z = z + w[p + I * O + o];
                if constexpr (LAYER == last) store(out + o * R + r, Net::G::value(z));
                else store(out + o * R + r, Net::F::value(z));
            }
        }
        if constexpr (LAYER < last) forward<LAYER + 1>(w, a, s);
    }

    template <int LAYER> FORMULA void backward(const T* w, T* a, const Stretch& s, double* g, T number) {
        constexpr int I = Net::sizes[LAYER], O = Net::sizes[LAYER + 1], p = Net::first(LAYER), S = (I + Net::bias) * O;
        T *in = a + Net::unit(LAYER) * R, *out = in + I * R, *target = a + targets * R, *weight = target + O * R;
        Few sums[S] = {}, totals[TOTALS] = {};
        for (i64 r = 0; r < s.end; r += BACK) {
            Few delta[O];
            if constexpr (LAYER == last) {
                Few c = load<Few>(weight + r);
                totals[0] += c;
                UNROLL for (int o = 0; o < O; o++) {
                    Few l = load<Few>(out + o * R + r), y = load<Few>(target + o * R + r);
                    totals[1] = fma(Net::Loss::value(y, l, number), c, totals[1]);
                    totals[2] = fma(magnitude(y - l), c, totals[2]);
                    delta[o] = output_delta<typename Net::G, typename Net::Loss>(y, l, number) * c;
                }
            } else {
                UNROLL for (int o = 0; o < O; o++) delta[o] = load<Few>(out + o * R + r);
            }
            UNROLL for (int i = 0; i < I; i++) {
                Few l = load<Few>(in + i * R + r);
                UNROLL for (int o = 0; o < O; o++) sums[i * O + o] = fma(l, delta[o], sums[i * O + o]);
                if constexpr (LAYER > 0) {
                    Few error = delta[0] * w[p + i * O];
                    UNROLL for (int o = 1; o < O; o++) error = fma(delta[o], all<Few>(w[p + i * O + o]), error);
                    store(in + i * R + r, error * Net::F::slope(l));
                }
            }
            UNROLL for (int o = 0; o < (Net::bias ? O : 0); o++) sums[I * O + o] += delta[o];
        }
        add_sums<T, BACK>(g + p, sums);
        if constexpr (LAYER == last) {
            g[count] += reduce_add<T, BACK>(totals[0]);
            g[count + 1] += reduce_add<T, BACK>(totals[1]);
            g[count + 2] += (double)reduce_add<T, BACK>(totals[2]) / O;
        }
        if constexpr (LAYER > 0) backward<LAYER - 1>(w, a, s, g, number);
    }

    static void learn(const Plan<T>& plan, const Stretch& s, T* a, double* g) {
        T w[count];
        UNROLL for (int k = 0; k < count; k++) w[k] = plan.weights[k];
        if (!s.onto) for (int k = 0; k < count + TOTALS; k++) g[k] = 0;
        forward<0>(w, a, s);
        backward<last>(w, a, s, g, T(plan.loss_number));
    }
};
}  // namespace bp
