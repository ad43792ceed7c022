// CUDA C++ on the CPU, for tests: g++ -include cuda_host.hpp -x c++ kernel.cu
//
// A CUDA thread is a fiber (ucontext). Blocks run one after another, or, in a cooperative launch, each in an OS thread
// of its own, so that barriers of the whole grid work. A barrier or an exchange within a warp suspends the fiber until
// its peers arrive. What the hardware leaves undefined (a lane missing from a mask, threads of a block stuck at
// different barriers) is an error here. The seed picks the order in which threads and blocks run: a right kernel gives
// the same bits for every seed. Shared memory begins as 0xff bytes (nan). Under -fsanitize=thread a race between CUDA
// threads is reported even though they share one OS thread. There is no atomicAdd of floats: its order is not fixed, so
// a kernel that uses one does not compile. To a kernel with a parameter of float32, subnormal numbers are 0, as CuPy has
// all kernels compiled (-ftz=true). A processor differs from a GPU in that float64 then has none either, and where only
// rounding makes a number normal.
#pragma once
#include <link.h>
#include <setjmp.h>
#include <ucontext.h>
#include <math.h>  // with C++'s overloads of fma, fabs and sqrt, as CUDA has them
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>
#if __SSE__
#include <xmmintrin.h>
#endif
#if __SANITIZE_THREAD__
extern "C" { void* __tsan_create_fiber(unsigned); void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber(); void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*); void __tsan_release(void*); }
#define NO_TSAN __attribute__((no_sanitize("thread"), noinline))
#else
#define NO_TSAN
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

struct uint3 { unsigned x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };

namespace cuda_host {
struct Context {                      // _setjmp and _longjmp make no system call, but
    ucontext_t start;                 // the sanitizers follow swapcontext only
    jmp_buf here;
    bool started;
};
NO_TSAN inline void switch_to(Context& from, Context& to) {
#if __SANITIZE_THREAD__ || __SANITIZE_ADDRESS__
    swapcontext(&from.start, &to.start);
#else
    if (_setjmp(from.here)) return;
    from.started = true;
    if (to.started) _longjmp(to.here, 1);
    to.started = true;
    setcontext(&to.start);
#endif
}
enum State { READY, AT_BLOCK, AT_WARP, YIELDED, DONE };
struct Block;
struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    void* tsan;
    State state;
    uint3 thread;
    unsigned lane, mask, source;      // of the pending warp exchange
    int operation;
    uint64_t value;
    Block* block;
    bool fenced;                      // since the last barrier; for atomic_edge
    void* observed;
};
struct Block {
    uint3 index, dim, grid;
    std::vector<Fiber> fibers;
    Context scheduler;
    void* tsan;
    std::mt19937_64 random;
    const std::string* kernel;
    void (*call)(void**);
    void** args;
    const std::atomic<bool>* failed;  // another block of the launch
    std::atomic<size_t>* idle;        // blocks of the launch that have ended, or only wait for others
    std::string error;
};
inline thread_local Fiber* fiber;

NO_TSAN inline void suspend(State s) {
    Fiber* f = fiber;
    f->state = s;
    void* sync = s == AT_WARP ? (void*)(f - f->lane) : (void*)f->block;
    if (s != YIELDED) __tsan_release(sync), f->fenced = false, f->observed = nullptr;
    __tsan_switch_to_fiber(f->block->tsan, 1);
    switch_to(f->context, f->block->scheduler);
    if (s == AT_BLOCK || s == AT_WARP) __tsan_acquire(sync);
}
NO_TSAN inline void enter() {
    __tsan_acquire(fiber->block);
    try { fiber->block->call(fiber->block->args); }
    catch (const std::exception& e) { fiber->block->error = e.what(); }
    suspend(DONE);
}
// one warp: true when some lanes' exchange could be completed
NO_TSAN inline bool release_warp(Block& b, size_t first) {
    const size_t n = std::min<size_t>(32, b.fibers.size() - first);
    Fiber* f = &b.fibers[first];
    for (size_t i = 0; i < n; ++i) {
        if (f[i].state != AT_WARP) continue;
        bool complete = true;
        for (size_t k = 0; k < 32; ++k)
            if (f[i].mask >> k & 1) {
                if (k >= n || f[k].state == DONE)
                    throw std::runtime_error("warp mask names a lane that has exited");
                complete &= f[k].state == AT_WARP;
            }
        if (!complete) continue;
        uint64_t result[32];
        for (size_t k = 0; k < n; ++k) {
            if (!(f[i].mask >> k & 1)) continue;
            if (f[k].mask != f[i].mask || f[k].operation != f[i].operation)
                throw std::runtime_error("lanes of a warp disagree on mask or operation");
            if (!(f[i].mask >> f[k].source & 1))
                throw std::runtime_error("warp exchange reads a lane outside its mask");
            result[k] = f[f[k].source].value;
        }
        const unsigned mask = f[i].mask;
        for (size_t k = 0; k < n; ++k)
            if (mask >> k & 1) f[k].value = result[k], f[k].state = READY;
        return true;
    }
    return false;
}
NO_TSAN inline void poison_shared() {   // this library's thread-locals, our own excepted
    Fiber* keep = fiber;
    dl_iterate_phdr([](dl_phdr_info* i, size_t, void*) {
        for (int k = 0; k < i->dlpi_phnum; ++k) {
            const auto& p = i->dlpi_phdr[k];
            char* tls = (char*)i->dlpi_tls_data;
            if (p.p_type == PT_TLS && tls && (char*)&fiber >= tls
                && (char*)&fiber < tls + p.p_memsz)
                for (size_t j = 0; j < p.p_memsz; ++j) ((volatile char*)tls)[j] = (char)0xff;
        }
        return 0;
    }, nullptr);
    fiber = keep;
}
// The processor's own switch for subnormal numbers, for as long as a block runs; a fiber begins with what is set then.
class Flush {
#if __SSE__
    static unsigned get() { return _mm_getcsr(); }
    static void set(unsigned word) { _mm_setcsr(word); }
    static constexpr unsigned ZEROS = 0x8040;  // for results, and for what is read
#elif __aarch64__
    static unsigned long get() { unsigned long word; asm volatile("mrs %0, fpcr" : "=r"(word)); return word; }
    static void set(unsigned long word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
    static constexpr unsigned long ZEROS = 1ul << 24;
#else
    static unsigned get() { return 0; }
    static void set(unsigned) {}
    static constexpr unsigned ZEROS = 0;
#endif
    const decltype(ZEROS) before = get();
public:
    explicit Flush(bool wanted) { if (wanted) set(before | ZEROS); }
    ~Flush() { set(before); }
};
// A block that only waits (__nanosleep) while all others wait or have ended waits for ever. Told by the clock: a thread
// that the machine does not run may be about to see what it waits for.
struct Patience {
    Block& block;
    bool waits = false;
    std::chrono::steady_clock::time_point since;
    explicit Patience(Block& b) : block(b) {}
    ~Patience() { if (!waits) ++*block.idle; }
    void after(bool moved) {
        const size_t blocks = size_t(block.grid.x) * block.grid.y * block.grid.z;
        if (moved == waits) waits = !moved, *block.idle += waits ? 1 : -1;
        const auto now = std::chrono::steady_clock::now();
        if (!waits || *block.idle < blocks) since = now;
        else if (now - since > std::chrono::seconds(10))
            throw std::runtime_error("deadlock: it waits for a block that never comes");
    }
};
NO_TSAN inline void run_block(Block& b) {
    const size_t n = b.fibers.size();
    b.tsan = __tsan_get_current_fiber();
    poison_shared();
    for (size_t i = 0; i < n; ++i) {
        Fiber& f = b.fibers[i];
        if (!f.stack) f.stack.reset(new char[1 << 17]);
        getcontext(&f.context.start);
        f.context.start.uc_stack.ss_sp = f.stack.get();
        f.context.start.uc_stack.ss_size = 1 << 17;
        f.context.start.uc_link = nullptr;
        f.context.started = false;
        makecontext(&f.context.start, enter, 0);
        f.tsan = __tsan_create_fiber(0);
        f.state = READY, f.block = &b, f.lane = i % 32, f.fenced = false, f.observed = nullptr;
        f.thread = {unsigned(i % b.dim.x), unsigned(i / b.dim.x % b.dim.y),
                    unsigned(i / b.dim.x / b.dim.y)};
    }
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; ++i) order[i] = i;
    __tsan_release(&b);
    Patience patience(b);
    for (;;) {
        std::shuffle(order.begin(), order.end(), b.random);
        bool ran = false, yielded = false, moved = false;
        for (size_t i : order) {
            Fiber& f = b.fibers[i];
            const bool waits = f.state == YIELDED;
            yielded |= waits;
            if ((f.state != READY && !waits) || (b.random() & 3) == 0) continue;   // some lag behind
            ran = true;
            fiber = &f;
            __tsan_switch_to_fiber(f.tsan, 1);
            switch_to(b.scheduler, f.context);
            if (!b.error.empty()) throw std::runtime_error(b.error);
            moved |= !waits || f.state != YIELDED;
        }
        for (size_t w = 0; w < n; w += 32) ran |= release_warp(b, w);
        patience.after(moved);
        if (yielded && *b.failed) throw std::runtime_error("it waits for a block that failed");
        if (yielded) std::this_thread::yield();
        if (ran || yielded) continue;
        size_t count[5] = {};
        for (Fiber& f : b.fibers) ++count[f.state];
        if (count[DONE] == n) break;
        if (count[READY]) continue;
        if (count[AT_WARP])
            throw std::runtime_error("deadlock: " + std::to_string(count[AT_WARP])
                + " threads wait in their warp, " + std::to_string(count[AT_BLOCK])
                + " at __syncthreads");
        for (Fiber& f : b.fibers) if (f.state == AT_BLOCK) f.state = READY;
    }
    __tsan_acquire(&b);
    for (Fiber& f : b.fibers) __tsan_destroy_fiber(f.tsan);
}
inline void launch(const unsigned* g, const unsigned* d, void (*call)(void**), bool flush, void** args,
                   uint64_t seed, bool concurrent) {
#if __SANITIZE_THREAD__
    concurrent = true;   // its own thread-locals a block: no false races on __shared__
#endif
    const size_t blocks = size_t(g[0]) * g[1] * g[2], threads = size_t(d[0]) * d[1] * d[2];
    if (!blocks || !threads || threads > 1024) throw std::runtime_error("bad launch size");
    std::vector<size_t> order(blocks);
    for (size_t i = 0; i < blocks; ++i) order[i] = i;
    std::mt19937_64 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    std::string error;
    std::atomic<bool> failed{false};
    std::atomic<size_t> idle{0};
    std::mutex guard;
    auto run = [&](Block& b, size_t i) {
        b.index = {unsigned(i % g[0]), unsigned(i / g[0] % g[1]), unsigned(i / g[0] / g[1])};
        b.dim = {d[0], d[1], d[2]}, b.grid = {g[0], g[1], g[2]};
        b.random.seed(seed * 1000003 + i), b.call = call, b.args = args, b.failed = &failed, b.idle = &idle;
        if (b.fibers.size() != threads) b.fibers = std::vector<Fiber>(threads);
        const Flush subnormals(flush);
        try { run_block(b); } catch (const std::exception& e) {
            std::lock_guard<std::mutex> lock(guard);
            if (!failed) error = "block " + std::to_string(i) + ": " + e.what();
            failed = true;
        }
    };
    if (concurrent) {
        std::vector<std::thread> pool;
        for (size_t i : order) pool.emplace_back([&, i] { Block b; run(b, i); });
        for (auto& t : pool) t.join();
    } else {
        Block b;
        for (size_t i : order) if (error.empty()) idle = blocks - 1, run(b, i);   // the others are not there
    }
    if (!error.empty()) throw std::runtime_error(error);
}
template <class T> NO_TSAN T exchange(unsigned mask, T v, unsigned source, int operation) {
    static_assert(sizeof(T) <= 8, "");
    Fiber* f = fiber;
    if (!(mask >> f->lane & 1)) throw std::runtime_error("a lane is not in its own mask");
    f->mask = mask, f->source = source, f->operation = operation, f->value = 0;
    memcpy(&f->value, &v, sizeof v);
    suspend(AT_WARP);
    memcpy(&v, &f->value, sizeof v);
    return v;
}
// what cuLaunchKernel takes on faith, as text: "P" const pointer, "p" pointer, "s" scalar
template <class T> std::string tag() {
    using U = std::remove_cv_t<std::remove_pointer_t<T>>;
    std::string s = !std::is_pointer_v<T> ? "s"
                    : std::is_const_v<std::remove_pointer_t<T>> ? "P" : "p";
    s += std::is_floating_point_v<U> ? 'f' : std::is_same_v<U, bool> ? 'b'
         : std::is_unsigned_v<U> ? 'u' : 'i';
    return s + std::to_string(sizeof(U)) + " ";
}
template <class... A> std::string signature(void (*)(A...)) { return (tag<A>() + ... + ""); }
template <auto F> struct Caller;
template <class... A, void (*F)(A...)> struct Caller<F> {
    template <size_t... I> static void go(void** a, std::index_sequence<I...>) {
        F(*(std::remove_cv_t<A>*)a[I]...);
    }
    static void call(void** a) { go(a, std::index_sequence_for<A...>{}); }
    static constexpr bool flush = (std::is_same_v<std::remove_cv_t<std::remove_pointer_t<A>>, float> || ...);
};
}  // namespace cuda_host

#define EXPORT extern "C" __attribute__((visibility("default")))
#define HOST_KERNEL(name)                                                             \
    EXPORT const char* name##_signature() {                                           \
        static const std::string s = cuda_host::signature(name); return s.c_str(); }  \
    EXPORT int name##_launch(const unsigned* g, const unsigned* b, void** args,   \
                                 uint64_t seed, int concurrent, char* why, size_t n) { \
        using kernel = cuda_host::Caller<name>;                                       \
        try { cuda_host::launch(g, b, kernel::call, kernel::flush, args, seed,        \
                                concurrent); return 0; }                              \
        catch (const std::exception& e) { snprintf(why, n, "%s", e.what()); return 1; } }

#define __global__
#define __device__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (cuda_host::fiber->thread)
#define blockIdx (cuda_host::fiber->block->index)
#define blockDim (cuda_host::fiber->block->dim)
#define gridDim (cuda_host::fiber->block->grid)
#define __syncthreads() cuda_host::suspend(cuda_host::AT_BLOCK)
#define __nanosleep(ns) cuda_host::suspend(cuda_host::YIELDED)
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_host::exchange(mask, 0, cuda_host::fiber->lane, 1);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, unsigned d) {
    return cuda_host::exchange(m, v, (cuda_host::fiber->lane ^ d) % 32, 3);
}
// An atomic orders other memory only between fences, as in the PTX memory model:
// write; barrier; fence; atomic  -->  atomic; fence; barrier; read
NO_TSAN inline void __threadfence() {
    cuda_host::Fiber* f = cuda_host::fiber;
    f->fenced = true;
    if (f->observed) __tsan_acquire(f->observed);
#if !__SANITIZE_THREAD__
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
NO_TSAN inline void atomic_edge(void* p) {
    if (cuda_host::fiber->fenced) __tsan_release(p);
    cuda_host::fiber->observed = p;
}
template <class T> std::enable_if_t<std::is_integral_v<T>, T> atomicAdd(T* p, T v) {
    atomic_edge(p);
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned atomicInc(unsigned* p, unsigned top) {
    atomic_edge(p);
    unsigned v = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &v, v >= top ? 0 : v + 1, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return v;
}
template <class T> T __ldcg(const T* p) { return *p; }
inline unsigned __float_as_uint(float v) { unsigned i; memcpy(&i, &v, 4); return i; }
inline float __uint_as_float(unsigned i) { float v; memcpy(&v, &i, 4); return v; }
inline long long __double_as_longlong(double v) { long long i; memcpy(&i, &v, 8); return i; }
inline double __longlong_as_double(long long i) { double v; memcpy(&v, &i, 8); return v; }
