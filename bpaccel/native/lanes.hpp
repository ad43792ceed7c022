// Vectors: one number for each of several neighbouring rows (or units of a layer), in the machine's vector registers.
#pragma once
#include "formulas.hpp"

namespace bp {

typedef long long i64;

#if defined(__AVX512F__)
constexpr int REGISTER = 64, REGISTERS = 32;  // bytes of a vector register, and how many there are
#elif defined(__AVX__)
constexpr int REGISTER = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int REGISTER = 16, REGISTERS = 32;
#else
constexpr int REGISTER = 16, REGISTERS = 16;
#endif
constexpr int LINE = 64;  // bytes of a line of the cache

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

// N numbers; the loose type may begin at any number.
template <class T, int N> struct VectorOf {
    typedef T Type __attribute__((vector_size(N * sizeof(T))));
    typedef T Loose __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int N> using Vector = typename VectorOf<T, N>::Type;

template <class A> struct Plain { typedef A Type; };
template <class A> struct Plain<A&> { typedef A Type; };
template <class T> struct UnsignedOf { typedef unsigned Type; };
template <> struct UnsignedOf<double> { typedef unsigned long long Type; };
// Of a vector: its element, and whole numbers of the same width and shape.
template <class V> struct Number {
    typedef typename Plain<decltype((*(V*)nullptr)[0])>::Type T;
    typedef typename UnsignedOf<T>::Type B;
    typedef Vector<B, sizeof(V) / sizeof(T)> Bits;
};

// Memory moves by whole vectors. Rows and layers take two registers at once, so that several sums are kept beside each
// other. Where lanes are added up, there are as many of them on every processor (64 bytes): then the bits are the same.
template <class T> constexpr i64 wide = 2 * REGISTER / sizeof(T);
template <class T> using Wide = Vector<T, wide<T>>;
template <class T> constexpr i64 lanes = 64 / sizeof(T);
template <class T> using Lanes = Vector<T, lanes<T>>;
template <class T> constexpr i64 line = LINE / sizeof(T);  // numbers that share a line of the cache

FORMULA i64 up(i64 number, i64 multiple) { return (number + multiple - 1) / multiple * multiple; }
FORMULA i64 lesser(i64 a, i64 b) { return a < b ? a : b; }
FORMULA i64 greater(i64 a, i64 b) { return a > b ? a : b; }

template <class V, class T> FORMULA V load(const T* at) {
    return *(const typename VectorOf<T, sizeof(V) / sizeof(T)>::Loose*)at;
}
template <class V, class T> FORMULA void store(T* at, V value) {
    *(typename VectorOf<T, sizeof(V) / sizeof(T)>::Loose*)at = value;
}
FORMULA void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

// body(r, V()) for all rows r, a vector V at a time: wide ones first. `end` is a multiple of `lanes`.
template <class T, class Body> FORMULA void over_rows(i64 end, Body body) {
    i64 r = 0;
    for (; r + wide<T> <= end; r += wide<T>) body(r, Wide<T>());
    if constexpr (wide<T> > lanes<T>)
        if (r < end) body(r, Lanes<T>());
}
#define INLINED __attribute__((always_inline))

template <int... I> struct Places {};
template <int N, int... I> struct Counted : Counted<N - 1, N - 1, I...> {};
template <int... I> struct Counted<0, I...> { typedef Places<I...> Type; };
template <int N> using Count = typename Counted<N>::Type;  // Places<0, 1, ... N - 1>

// The sum of all lanes, in pairs: those of the lower half with those of the upper half. Lanes of 0 change no bit of it.
template <class V> struct Halves { V low, high; };
template <class T, int N> FORMULA T reduce_add(Vector<T, N> value) {
    if constexpr (N == 2) return value[0] + value[1];
    else {
        auto halves = __builtin_bit_cast(Halves<Vector<T, N / 2>>, value);
        return reduce_add<T, N / 2>(halves.low + halves.high);
    }
}

// Every STEP-th number of a vector, from FIRST on.
template <int STEP, int FIRST, class W, int... I> FORMULA auto deinterleave(W wide, Places<I...>) {
    return __builtin_shufflevector(wide, wide, (STEP * I + FIRST)...);
}

// Transpose C vectors of C numbers: rows and columns change places, one bit of their numbers at a time.
template <int C, int SIZE, bool LOW, class V, int... I> FORMULA V exchanged(V a, V b, Places<I...>) {
    if constexpr (LOW) return __builtin_shufflevector(a, b, (I & SIZE ? C + I - SIZE : I)...);
    else return __builtin_shufflevector(a, b, (I & SIZE ? C + I : I + SIZE)...);
}
template <int C, int SIZE = 1, class V> FORMULA void transpose(V (&tile)[C]) {
    if constexpr (SIZE < C) {
        UNROLL for (int i = 0; i < C; i++)
            if (!(i & SIZE)) {
                V a = tile[i], b = tile[i + SIZE];
                tile[i] = exchanged<C, SIZE, true>(a, b, Count<C>());
                tile[i + SIZE] = exchanged<C, SIZE, false>(a, b, Count<C>());
            }
        transpose<C, 2 * SIZE>(tile);
    }
}
// Rows of C neighbouring numbers, as many rows as four-byte numbers fill a register: column c goes to out + c * apart.
constexpr int TILE_ROWS = REGISTER / 4;
template <int C, class T> FORMULA void transpose_rows(const T* const (&rows)[TILE_ROWS], T* out, i64 apart) {
    typedef Vector<T, C> V;
    UNROLL for (int first = 0; first < TILE_ROWS; first += C) {
        V tile[C];
        UNROLL for (int i = 0; i < C; i++) tile[i] = load<V>(rows[first + i]);
        transpose<C>(tile);
        UNROLL for (int i = 0; i < C; i++) store(out + i * apart + first, tile[i]);
    }
}
}  // namespace bp
