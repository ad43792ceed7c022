// A probe: `products`, with numbers that lie in rows, in columns or in tiles.
#include "products.hpp"

#define PUBLIC extern "C" __attribute__((visibility("default")))
using namespace bp;

template <class T>
static void compute(T* out, i64 apart, i64 units, const T* in, i64 in_apart, i64 length, const T* w, i64 way, i64 count, i64 how, T* tiles) {
    if (way == 2) pack(w, count, units, tiles);
    Factors<T> factors = way == 0 ? Factors<T>{w, units, 1, 0} : way == 1 ? Factors<T>{w, 1, count, 0} : packed<T>(tiles, count);
    products<T>({out, apart}, units, {in, in_apart}, length, factors, count, How(how));
}
PUBLIC void products_float32(float* out, i64 apart, i64 units, const float* in, i64 in_apart, i64 length, const float* w, i64 way, i64 count, i64 how, float* tiles) {
    compute(out, apart, units, in, in_apart, length, w, way, count, how, tiles);
}
PUBLIC void products_float64(double* out, i64 apart, i64 units, const double* in, i64 in_apart, i64 length, const double* w, i64 way, i64 count, i64 how, double* tiles) {
    compute(out, apart, units, in, in_apart, length, w, way, count, how, tiles);
}
PUBLIC i64 tile() { return TILE; }
PUBLIC i64 near_() { return NEAR; }
PUBLIC i64 lanes_of(i64 width) { return width == 4 ? lanes<float> : lanes<double>; }
