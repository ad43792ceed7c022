// Sums of lanes, four at a time, added to sums of float64: the end of a stretch, in `fused.hpp` and `written.hpp`.
#pragma once
#include "lanes.hpp"

namespace bp {

// Of two vectors, or of one twice, that hold runs of RUN lanes: in each run, the lower half plus the upper half.
template <int RUN, class V, int... I> FORMULA auto half_runs(V a, V b, Places<I...>) {
    constexpr int H = RUN / 2;
    return __builtin_shufflevector(a, b, (I / H * RUN + I % H)...) + __builtin_shufflevector(a, b, (I / H * RUN + I % H + H)...);
}
template <int RUN, class T, int N> FORMULA Vector<T, 4> within_runs(Vector<T, N> x) {
    if constexpr (RUN == 1) return x;
    else return within_runs<RUN / 2, T, N / 2>(half_runs<RUN>(x, x, Count<N / 2>()));
}
// `reduce_add` of four vectors, bit for bit, in a third of the instructions.
template <class T, int N> FORMULA Vector<T, 4> reduce_add_four(Vector<T, N> a, Vector<T, N> b, Vector<T, N> c, Vector<T, N> d) {
    auto ab = half_runs<N>(a, b, Count<N>()), cd = half_runs<N>(c, d, Count<N>());
    return within_runs<N / 4, T, N>(half_runs<N / 2>(ab, cd, Count<N>()));
}

// Add the sums of K vectors to K neighbouring numbers.
template <class T, int N, int K> FORMULA void add_sums(double* g, const Vector<T, N> (&sums)[K]) {
    UNROLL for (int k = 0; k < K / 4 * 4; k += 4) {
        auto four = reduce_add_four<T, N>(sums[k], sums[k + 1], sums[k + 2], sums[k + 3]);
        store(g + k, load<Vector<double, 4>>(g + k) + __builtin_convertvector(four, Vector<double, 4>));
    }
    UNROLL for (int k = K / 4 * 4; k < K; k++) g[k] += reduce_add<T, N>(sums[k]);
}
}  // namespace bp
