// What differs between machines: a processor's vectors by Clang or GCC, WebAssembly, and a GPU's threads by NVRTC.
//
// Numbers are of a type V: float, double, or a vector of them (lanes.hpp). One text is right for all, since operators
// and comparisons of vectors work lane by lane. Compile with -std=c++17 -ffp-contract=off (NVRTC: -fmad=false): then a
// product is fused with a sum where `fma` says so and nowhere else, and all machines with that instruction give the
// same bits.
#pragma once

// Each function is inlined, so that vectors stay in registers: no calling convention hands over ones of 128 bytes.
#if defined(__CUDACC__)
#define FORMULA static __device__ __forceinline__
#else
#define FORMULA static inline __attribute__((always_inline))
#endif

namespace bp {

// Of numbers V: T is the type of one, B is an integer type of its width, Bits has V's shape with elements of type B.
template <class V> struct Number;
template <> struct Number<float> { using T = float; using B = unsigned; using Bits = B; };
template <> struct Number<double> { using T = double; using B = unsigned long long; using Bits = B; };

template <class V> using Real = typename Number<V>::T;
template <class V> using Bits = typename Number<V>::Bits;

template <class Condition, class V> FORMULA V select(Condition condition, V a, V b) { return condition ? a : b; }

// --- a * b + c rounded once, and the square root ---

#if defined(__CUDACC__)
FORMULA float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FORMULA double fma(double a, double b, double c) { return ::fma(a, b, c); }
FORMULA float square_root(float x) { return ::sqrtf(x); }
FORMULA double square_root(double x) { return ::sqrt(x); }
#elif defined(__clang__)
#if defined(__FMA__) || defined(__aarch64__)
template <class V> FORMULA V fma(V a, V b, V c) { return __builtin_elementwise_fma(a, b, c); }
#else  // a machine without the instruction rounds twice, and has bits of its own
template <class V> FORMULA V fma(V a, V b, V c) { return a * b + c; }
#endif
template <class V> FORMULA V square_root(V x) { return __builtin_elementwise_sqrt(x); }
#else  // GCC has no such functions of vectors: number by number, the same bits
FORMULA float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FORMULA double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
FORMULA float square_root(float x) { return __builtin_sqrtf(x); }
FORMULA double square_root(double x) { return __builtin_sqrt(x); }
template <class V> FORMULA V fma(V a, V b, V c) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(Real<V>); i++) a[i] = fma(a[i], b[i], c[i]);
    return a;
}
template <class V> FORMULA V square_root(V x) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(Real<V>); i++) x[i] = square_root(x[i]);
    return x;
}
#endif

// --- bounds: nan stays nan, since a training that went astray must show it ---

template <class V> FORMULA V at_least(V x, Real<V> low) { return x < low ? low - V{} : x; }
template <class V> FORMULA V at_most(V x, Real<V> high) { return x > high ? high - V{} : x; }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
FORMULA float at_least(float x, float low) {
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(low));
    return x;
}
FORMULA float at_most(float x, float high) {
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(high));
    return x;
}
#endif

// --- division, correctly rounded, where dividend, divisor and result are normal numbers or 0 ---

#if defined(__CUDA_ARCH__)
FORMULA float reciprocal(float b) {  // the estimate is at most a unit in the last place off: one Newton step ends it
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
    return fma(fma(-b, r, 1.f), r, r);
}
FORMULA float quotient(float a, float b) {
    const float r = reciprocal(b), q = a * r;
    return fma(fma(-b, q, a), r, q);
}
FORMULA double reciprocal(double b) { return 1. / b; }
FORMULA double quotient(double a, double b) { return a / b; }
#else
template <class V> FORMULA V reciprocal(V b) { return Real<V>(1) / b; }
template <class V> FORMULA V quotient(V a, V b) { return a / b; }
#endif

}  // namespace bp
