// A probe: the formulas and the printed rows, of many numbers. By Clang in vectors; by another compiler, or with
// -DONE_NUMBER, one number at a time, as a thread of a GPU has it.
#include "rows.hpp"

#ifdef _WIN32
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

#if defined(__clang__) && !defined(ONE_NUMBER)
#include "lanes.hpp"
template <class T> using Each = bp::Vector<T, 64 / sizeof(T)>;
template <class V, class T> static V get(const T* at) { return bp::load<V>(at); }
template <class V, class T> static void put(T* at, V value) { bp::store(at, value); }

template <class T> static T sum(const T* x) {
    constexpr int N = 64 / sizeof(T);
    return bp::reduce_add<T, N>(bp::load<bp::Vector<T, N>>(x));
}
PUBLIC float sum_float32(const float* x) { return sum(x); }
PUBLIC double sum_float64(const double* x) { return sum(x); }
#else
template <class T> using Each = T;
template <class V, class T> static V get(const T* at) { return *at; }
template <class V, class T> static void put(T* at, V value) { *at = value; }
#endif

using namespace bp;

// Of n numbers x, with l and the number d of a family where a function takes them; n is a multiple of 16.
template <class T> using Function = void (*)(const T* x, const T* l, T d, T* out, long long n);

template <class T, class F> static void apply(const T* x, const T* l, T d, T* out, long long n) {
    typedef Each<T> V;
    for (long long k = 0; k < n; k += sizeof(V) / sizeof(T)) put(out + k, F::of(get<V>(x + k), get<V>(l + k), d));
}

#define FUNCTIONS(X)                                                                                                 \
    X(exp) X(exp_down) X(expm1) X(expm1_down) X(log) X(log_nonnegative) X(log1p) X(log1p_unit) X(tanh) X(logistic)   \
    X(logistic_of_powers) X(logistic_slope) X(square_root) X(magnitude) X(sign) X(reciprocal)
#define PAIRS(X) X(quotient) X(copysign) X(larger) X(smaller)

#define ONE(NAME) struct NAME##_ { template <class V> static V of(V x, V, Real<V>) { return bp::NAME(x); } };
#define TWO(NAME) struct NAME##_ { template <class V> static V of(V x, V l, Real<V>) { return bp::NAME(x, l); } };
#define PLACE(NAME) apply<T, NAME##_>,
#define WORD(NAME) #NAME " "
FUNCTIONS(ONE) PAIRS(TWO)

template <class F> struct Value { template <class V> static V of(V x, V, Real<V>) { return F::value(x); } };
template <class F> struct Slope { template <class V> static V of(V x, V, Real<V>) { return F::slope(x); } };
template <class L> struct Cost { template <class V> static V of(V y, V l, Real<V> d) { return L::value(y, l, d); } };
template <class L> struct Error { template <class V> static V of(V y, V l, Real<V> d) { return L::error(y, l, d); } };
typedef activation::sigmoid Tuned;
struct PlainValue { template <class V> static V of(V x, V, Real<V>) { return Tuned::plain_value(x); } };
struct PlainSlope { template <class V> static V of(V x, V, Real<V>) { return Tuned::plain_slope(x); } };

template <class T, class F> constexpr Function<T> value_of() {
    if constexpr (same<F, activation::softmax>) return nullptr;
    else return apply<T, Value<F>>;
}
template <class T, class F> constexpr Function<T> slope_of() {
    if constexpr (same<F, activation::softmax>) return nullptr;
    else return apply<T, Slope<F>>;
}

// In this order: values and slopes of activations, values and errors of losses, the plain sigmoid, functions.
template <class T, class Fs, class Ls> struct Table;
template <class T, class... F, class... L> struct Table<T, List<F...>, List<L...>> {
    static constexpr Function<T> functions[] = {
        value_of<T, F>()..., slope_of<T, F>()..., apply<T, Cost<L>>..., apply<T, Error<L>>...,
        apply<T, PlainValue>, apply<T, PlainSlope>, FUNCTIONS(PLACE) PAIRS(PLACE)};
};

PUBLIC const char* function_names() { return FUNCTIONS(WORD) PAIRS(WORD); }
PUBLIC void values_float32(int which, const float* x, const float* l, float d, float* out, long long n) {
    Table<float, Activations, Losses>::functions[which](x, l, d, out, n);
}
PUBLIC void values_float64(int which, const double* x, const double* l, double d, double* out, long long n) {
    Table<double, Activations, Losses>::functions[which](x, l, d, out, n);
}
