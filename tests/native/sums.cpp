// A probe: four vectors of N numbers added up together, and one by one.
#include "sums.hpp"

using namespace bp;

template <class T, int N> static void add(const T* x, T* out) {
    typedef Vector<T, N> V;
    V a = load<V>(x), b = load<V>(x + N), c = load<V>(x + 2 * N), d = load<V>(x + 3 * N);
    store(out, reduce_add_four<T, N>(a, b, c, d));
    out[4] = reduce_add<T, N>(a), out[5] = reduce_add<T, N>(b), out[6] = reduce_add<T, N>(c), out[7] = reduce_add<T, N>(d);
}
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC void float32_16(const float* x, float* out) { add<float, 16>(x, out); }
PUBLIC void float32_8(const float* x, float* out) { add<float, 8>(x, out); }
PUBLIC void float64_8(const double* x, double* out) { add<double, 8>(x, out); }
