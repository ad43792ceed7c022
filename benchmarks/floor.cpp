// The work whose rates benchmarks/floor.py measures. It is compiled with the headers of the kernels.
#include "lanes.hpp"
#include "rows.hpp"

#ifdef _WIN32
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

using namespace bp;

// Logistics of n numbers in place, some times; n is a multiple of 32, as many rows as the pass forward takes at once.
template <class T> static void logistic(T* x, i64 n, i64 passes) {
    typedef Vector<T, 128 / sizeof(T)> V;
    for (i64 pass = 0; pass < passes; pass++)
        for (i64 k = 0; k < n; k += 128 / sizeof(T)) store(x + k, activation::sigmoid::value(load<V>(x + k)));
}
PUBLIC void logistic_float32(float* x, i64 n, i64 passes) { logistic(x, n, passes); }
PUBLIC void logistic_float64(double* x, i64 n, i64 passes) { logistic(x, n, passes); }

// The sum of n numbers, which makes sure that they are read; n is a multiple of 64.
PUBLIC double sum(const double* x, i64 n) {
    constexpr i64 LANES = wide<double>, SUMS = 64 / LANES;  // several sums, so that none waits for the one before it
    Wide<double> sums[SUMS] = {};
    for (i64 k = 0; k < n; k += 64)
        UNROLL for (int s = 0; s < SUMS; s++) sums[s] += load<Wide<double>>(x + k + s * LANES);
    double total = 0;
    for (int s = 0; s < SUMS; s++) total += reduce_add<double, LANES>(sums[s]);
    return total;
}
