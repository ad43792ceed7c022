// What Python finds in the library: kernels by dtype, by activation and loss, and by network.
#include "rows.hpp"
#include "steps.hpp"
#include "written.hpp"

#ifdef _WIN32
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

// A compiler may call this where memory is set to 0: then the library needs no other.
#if defined(__clang__) && !defined(HOSTED)
extern "C" __attribute__((visibility("hidden"), no_builtin)) void* memset(void* at, int value, decltype(sizeof 0) n) {
    typedef bp::Vector<char, 64> Line;
    char *p = (char*)at, *end = p + n;
    for (; end - p >= 64; p += 64) bp::store(p, Line{} + (char)value);
    for (; p < end; p++) *(volatile char*)p = (char)value;
    return at;
}
#endif

namespace bp {

// --- the passes of activations and losses, in the order of the lists ---

template <class T> using Layer = void (*)(T*, i64, i64);
template <class T> using Output = void (*)(T*, i64, i64, double, double*);

template <class T, class F> constexpr Layer<T> slopes_of() {
    if constexpr (same<F, activation::softmax>) return nullptr;  // couples the units of a row
    else return slopes<T, F>;
}
template <class T, class F, class Loss> constexpr Output<T> output_of() {
    if constexpr (Loss::template goes_with<F>) return output<T, F, Loss>;
    else return nullptr;
}
template <class T, class Fs> struct Layers;
template <class T, class... F> struct Layers<T, List<F...>> {
    static constexpr Layer<T> activate_of[] = {activate<T, F>...}, slopes_of_all[] = {slopes_of<T, F>()...};
};
template <class T, class F, class Ls> struct Outputs;
template <class T, class F, class... Loss> struct Outputs<T, F, List<Loss...>> {
    static constexpr Output<T> of[] = {output_of<T, F, Loss>()...};
};
template <class T, class Fs> struct AllOutputs;
template <class T, class... F> struct AllOutputs<T, List<F...>> {
    static constexpr const Output<T>* of[] = {Outputs<T, F, Losses>::of...};
};

template <class A> constexpr i64 place_of(List<>) { return 0; }
template <class A, class B, class... More> constexpr i64 place_of(List<B, More...>) {
    if constexpr (same<A, B>) return 0;
    else return 1 + place_of<A>(List<More...>());
}

// --- networks that are written out: the tutorial's, and narrow ones that are common ---

typedef activation::sigmoid S;
using Networks = List<
    Network<S, S, loss::squared_error, false, 3, 1>, Network<S, S, loss::squared_error, false, 3, 4, 1>,
    Network<S, S, loss::squared_error, true, 2, 2, 1>, Network<S, S, loss::squared_error, true, 2, 3, 1>,
    Network<S, S, loss::squared_error, true, 2, 4, 1>, Network<S, S, loss::log_loss, true, 2, 4, 1>,
    Network<activation::tanh, S, loss::log_loss, true, 2, 4, 1>,
    Network<activation::tanh, activation::identity, loss::squared_error, true, 1, 8, 1>>;

constexpr int FEW = 8;  // rows that one vector holds: then there is one chain of operations instead of several
template <class T> struct WrittenNetwork {
    i64 depth;
    const i64* sizes;
    i64 bias, hidden, output, loss;  // places in the lists
    void (*many)(const Plan<T>&, const Stretch&, T*, double*);
    void (*few)(const Plan<T>&, const Stretch&, T*, double*);
};
template <class T, class Net> constexpr WrittenNetwork<T> written_network() {
    return {Net::depth, Net::sizes, Net::bias, place_of<typename Net::F>(Activations()),
            place_of<typename Net::G>(Activations()), place_of<typename Net::Loss>(Losses()),
            Written<T, 128 / sizeof(T), lanes<T>, Net>::learn, Written<T, FEW, FEW, Net>::learn};
}
template <class T, class Ns> struct AllWritten;
template <class T, class... Net> struct AllWritten<T, List<Net...>> {
    static constexpr WrittenNetwork<T> of[] = {written_network<T, Net>()...};
};

// What Python finds for a dtype; bpaccel/engines/cpu/plan.py mirrors it.
template <class T> struct Table {
    i64 plan_bytes, register_bytes, tile, wide, lanes, few, apart, losses, networks;
    void (*lead)(const Plan<T>*, T*);
    void (*help)(const Plan<T>*, T*);
    void (*step)(const Plan<T>*, i64);
    void (*pack_weights)(const Plan<T>&);
    void (*predict)(const Plan<T>*, i64, i64, T*);
    void (*learn)(const Plan<T>&, const Stretch&, T*, double*);
    const Layer<T> *activate, *slopes;
    const Output<T>* const* outputs;
    const WrittenNetwork<T>* written;
};
template <class T> static const Table<T> table = {
    sizeof(Plan<T>), REGISTER, TILE, wide<T>, lanes<T>, FEW, apart<T>, Losses::count, Networks::count,
    lead<T>, help<T>, step<T>, pack_weights<T>, predict<T>, learn<T>,
    Layers<T, Activations>::activate_of, Layers<T, Activations>::slopes_of_all, AllOutputs<T, Activations>::of,
    AllWritten<T, Networks>::of};
}  // namespace bp

#ifndef BPACCEL_SOURCES
#define BPACCEL_SOURCES ""
#endif
PUBLIC const char* bp_sources() { return BPACCEL_SOURCES; }  // a fingerprint of what this was made of
PUBLIC const char* bp_activations() { return bp::activation_names; }
PUBLIC const char* bp_losses() { return bp::loss_names; }
PUBLIC const void* bp_table(int wide) {
    return wide ? (const void*)&bp::table<double> : (const void*)&bp::table<float>;
}
