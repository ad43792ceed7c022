// The lesson of core.py for one row, and its sums over all rows, in one pass: a row is read once, its layers and deltas
// live in registers, and nothing but sums is written. One kernel, `train`, takes whole steps: the CUDA block that ends
// last adds the sums of all others and moves the weights.
//
// Everything about the network is a macro, so that loops unroll and arrays become registers (see cuda.py):
//   SIZES 3,4,1    BIAS 0    ACTIVATIONS activation::sigmoid,activation::sigmoid    LOSS loss::squared_error
//   LOSS_NUMBER 0.0    CANCELS 0    FLOAT64 0    WEIGHTED 0    VECTOR 1
//   THREADS 256    SWEEPS 4    SHARES 64    MIN_BLOCKS 4
//
// Every bit is fixed by the rows alone, on any GPU and on a CPU (compile with -fmad=false; fused operations are written
// out). Rows are cut into shares of 4 * THREADS * SWEEPS, and a share's rows go to threads by their number. A share is
// what engines/__init__.py calls a block: here that word is taken, for a CUDA block sums a share at once. Sums go from
// threads to warps to shares in a fixed order, and from shares to the total as one binary tree over share numbers; from
// the warps on they are double. The CUDA block that ends the last share of a group of SHARES adds the group, and that
// which ends the last group adds the groups. SHARES is a power of two, for a group to be a node of the tree: it changes
// no bit, nor does the number of CUDA blocks or of launches. Atomics only count and elect.
// Subnormal numbers are 0 in float32: CuPy compiles all kernels with -ftz=true, after whatever options they ask for.

// --- numbers ---------------------------------------------------------------------------------------------------------

#if FLOAT64
typedef double Real;
typedef double2 Pack;  // 16 bytes
typedef unsigned long long Bits;
#define TO_BITS(x) ((Bits)__double_as_longlong(x))
#define FROM_BITS(i) __longlong_as_double((long long)(i))
constexpr int FRACTION = 52;
constexpr Bits ONE = 0x3ff0000000000000u;        // the bits of 1.0
constexpr Bits HALF_ROOT = 0x3fe6a09e667f3bcdu;  // those of sqrt(1/2)
constexpr Real MAGIC = 6755399441055744.;                      // 1.5 * 2**52: t + MAGIC rounds t to a whole number
constexpr Real EPS = 2.220446049250313e-16, TINY = 2.2250738585072014e-308, LARGEST_POWER = 1022.;
constexpr Real SUBNORMAL_SCALE = 18014398509481984., SUBNORMAL_POWER = 54.;
constexpr Real ZERO_BELOW = -747., INFINITE_ABOVE = 711., MINUS_ONE_BELOW = -40.;  // of e**z, and e**z - 1
constexpr Real LOG2_E = 1.4426950408889634, LOG2_E_LOW = 2.0355273740931033e-17;
constexpr Real LN2_HIGH = 0.6931471803691238, LN2_LOW = 1.9082149292705877e-10;
// (2**r - 1) / r for |r| <= 1/2, to 2e-17; (atanh(s) / s - 1) / s**2 in s**2 <= 1/9, to 5e-15: by the Remez algorithm.
#define POWER                                                                                                         \
    0.6931471805599453, 0.24022650695910097, 0.055504108664821236, 0.009618129107607065, 0.001333355814653175,        \
        0.00015403530441481108, 1.5252733701094865e-05, 1.3215442723862869e-06, 1.0178121349967921e-07,               \
        7.072561787246613e-09, 4.445529613532766e-10
#define ATANH                                                                                                         \
    0.33333333333333487, 0.1999999999977672, 0.1428571433896716, 0.11111106232877335, 0.09091132190589482,            \
        0.07686605912441641, 0.06751507509423192, 0.05159467692652024, 0.08439559709915914
#else
typedef float Real;
typedef float4 Pack;
typedef unsigned int Bits;
#define TO_BITS(x) __float_as_uint(x)
#define FROM_BITS(i) __uint_as_float(i)
constexpr int FRACTION = 23;
constexpr Bits ONE = 0x3f800000u, HALF_ROOT = 0x3f3504f3u;
constexpr Real MAGIC = 12582912.f;
constexpr Real EPS = 1.1920928955078125e-07f, TINY = 1.1754943508222875e-38f, LARGEST_POWER = 126.f;
constexpr Real SUBNORMAL_SCALE = 16777216.f, SUBNORMAL_POWER = 24.f;
constexpr Real ZERO_BELOW = -105.f, INFINITE_ABOVE = 90.f, MINUS_ONE_BELOW = -20.f;
constexpr Real LOG2_E = 1.4426950408889634f, LOG2_E_LOW = 1.925963033500247e-08f;
constexpr Real LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
// The same, to 1e-8 and 4e-7 (of which s**2 leaves a ninth).
#define POWER                                                                                                         \
    0.6931471879265417f, 0.24022649795130868f, 0.055503574331057355f, 0.009618237479037273f, 0.0013390735752147334f,  \
        0.00015403516139789617f
#define ATANH 0.33333319971076614f, 0.20003812911391472f, 0.1411752052281992f, 0.13430511695141395f
#endif

#define INLINE __device__ __forceinline__

// fmin and fmax would lose a nan, and with it the news that a row holds one.
INLINE Real at_most(Real x, Real limit) {
#if __CUDA_ARCH__ >= 800 && !FLOAT64
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(limit));
    return x;
#else
    return x > limit ? limit : x;
#endif
}
INLINE Real at_least(Real x, Real limit) {
#if __CUDA_ARCH__ >= 800 && !FLOAT64
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(limit));
    return x;
#else
    return x < limit ? limit : x;
#endif
}

// 1 / d, correctly rounded, for 2**-126 <= d <= 2**126 in float32.
INLINE Real reciprocal(Real d) {
#if defined(__CUDA_ARCH__) && !FLOAT64
    Real q;  // what __frcp_rn does where it need not look for subnormal numbers: an estimate, and a step of Newton's
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(d));
    return fma(fma(-d, q, Real(1)), q, q);
#else
    return Real(1) / d;
#endif
}

template <int N> INLINE Real polynomial(const Real (&c)[N], Real x) {
    Real value = c[N - 1];
#pragma unroll
    for (int k = N - 2; k >= 0; --k) value = fma(value, x, c[k]);
    return value;
}

// 2**n of n + MAGIC, whose low bits are n: they become the exponent.
INLINE Real power_of_two(Real whole) { return FROM_BITS((TO_BITS(whole) << FRACTION) + ONE); }

// 2**r - 1 for |r| <= 1/2.
INLINE Real small_power(Real r) {
    const Real c[] = {POWER};
    return r * polynomial(c, r);
}

// e**z, from 0 to infinity; the power of two is applied in halves, which are normal numbers.
INLINE Real exp_of(Real z) {
    z = at_most(at_least(z, ZERO_BELOW), INFINITE_ABOVE);
    const Real n = fma(z, LOG2_E, MAGIC) - MAGIC;
    const Real r = fma(z, LOG2_E_LOW, fma(z, LOG2_E, -n));
    const Real half = fma(n, Real(0.5), MAGIC), rest = (n - (half - MAGIC)) + MAGIC;
    return (small_power(r) + Real(1)) * power_of_two(half) * power_of_two(rest);
}

// e**z - 1 for z <= 0.
INLINE Real expm1_down(Real z) {
    z = at_least(z, MINUS_ONE_BELOW);
    const Real whole = fma(z, LOG2_E, MAGIC), scale = power_of_two(whole);
    const Real r = fma(z, LOG2_E_LOW, fma(z, LOG2_E, -(whole - MAGIC)));
    return fma(scale, small_power(r), scale - Real(1));
}

// 2 atanh(s) for |s| <= 1/3.
INLINE Real twice_atanh(Real s) {
    const Real c[] = {ATANH};
    return Real(2) * fma(s * s * s, polynomial(c, s * s), s);
}

// log(1 + u) for 0 <= u <= 1.
INLINE Real log1p_unit(Real u) { return twice_atanh(u / (u + Real(2))); }

// log x = k ln 2 + 2 atanh((m - 1) / (m + 1)), where x = 2**k * m and m lies in sqrt(1/2) .. sqrt(2); x > 0 and finite.
INLINE Real log_of(Real x) {
    const bool small = FLOAT64 && x < TINY;  // in float32 there is nothing between 0 and TINY
    const Bits bits = TO_BITS(small ? x * SUBNORMAL_SCALE : x);
    const int k = (int)((bits - HALF_ROOT + ONE) >> FRACTION) - (int)(ONE >> FRACTION);
    const Real m = FROM_BITS(bits - ((Bits)k << FRACTION));
    const Real power = Real(k) - (small ? SUBNORMAL_POWER : Real(0)), f = m - Real(1);
    return fma(power, LN2_HIGH, fma(power, LN2_LOW, twice_atanh(f / (f + Real(2)))));
}

// --- activations: outputs from sums, and slopes from outputs; `of` takes the sum times SCALE -------------------------

namespace activation {
struct sigmoid {
    static constexpr Real SCALE = -LOG2_E;  // 1 / (1 + 2**t)
    static INLINE Real of(Real t) {
        t = at_most(at_least(t, -LARGEST_POWER), LARGEST_POWER);
        const Real whole = t + MAGIC;
        return reciprocal(fma(small_power(t - (whole - MAGIC)) + Real(1), power_of_two(whole), Real(1)));
    }
    static INLINE Real slope(Real a) { return fma(-a, a, a); }
};
struct tanh {
    static constexpr Real SCALE = Real(2) * LOG2_E;  // of 2**-|t| - 1, where nothing is lost to cancellation
    static INLINE Real of(Real t) {
        const Real down = at_least(-fabs(t), -LARGEST_POWER), whole = down + MAGIC, scale = power_of_two(whole);
        const Real e = fma(scale, small_power(down - (whole - MAGIC)), scale - Real(1));
        const Real a = -e * reciprocal(e + Real(2));
        return t < Real(0) ? -a : a;
    }
    static INLINE Real slope(Real a) { return fma(-a, a, Real(1)); }
};
struct relu {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return at_least(z, Real(0)); }
    static INLINE Real slope(Real a) { return a > Real(0) ? Real(1) : Real(0); }
};
struct identity {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return z; }
    static INLINE Real slope(Real) { return Real(1); }
};
struct leaky_relu {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return z > Real(0) ? z : Real(0.01) * z; }
    static INLINE Real slope(Real a) { return a > Real(0) ? Real(1) : Real(0.01); }
};
struct elu {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return z > Real(0) ? z : expm1_down(-fabs(z)); }
    static INLINE Real slope(Real a) { return a > Real(0) ? Real(1) : a + Real(1); }
};
struct softplus {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return at_least(z, Real(0)) + log1p_unit(exp_of(-fabs(z))); }
    static INLINE Real slope(Real a) { return -expm1_down(-a); }
};
struct exp {
    static constexpr Real SCALE = 1;
    static INLINE Real of(Real z) { return exp_of(z); }
    static INLINE Real slope(Real a) { return a; }
};
struct softmax {  // couples the outputs of a row: see `activate`
    static constexpr Real SCALE = 1;
};
}  // namespace activation

template <class F, int O> struct Layer {
    static INLINE void activate(Real* z) {
#pragma unroll
        for (int o = 0; o < O; ++o) z[o] = F::of(z[o]);
    }
};
template <int O> struct Layer<activation::softmax, O> {
    static INLINE void activate(Real* z) {
        Real most = z[0], sum = 0;
#pragma unroll
        for (int o = 1; o < O; ++o) most = at_least(z[o], most);
#pragma unroll
        for (int o = 0; o < O; ++o) sum += z[o] = exp_of(z[o] - most);
#pragma unroll
        for (int o = 0; o < O; ++o) z[o] = z[o] / sum;
    }
};

// --- losses: what an output costs, and minus the derivative of that by the output ------------------------------------

INLINE Real probability(Real l) { return at_most(at_least(l, EPS), Real(1) - EPS); }

namespace loss {
constexpr Real NUMBER = LOSS_NUMBER;  // of huber:d and quantile:q
struct squared_error {
    static INLINE Real value(Real y, Real l) { return Real(0.5) * (y - l) * (y - l); }
    static INLINE Real error(Real y, Real l) { return y - l; }
};
struct log_loss {  // the error of the two log losses stands only where an activation's slope cancels it
    static INLINE Real value(Real y, Real l) {
        const Real p = probability(l);
        return -fma(y, log_of(p), (Real(1) - y) * log_of(Real(1) - p));
    }
};
struct categorical {
    static INLINE Real value(Real y, Real l) { return -y * log_of(probability(l)); }
};
struct absolute_error {
    static INLINE Real value(Real y, Real l) { return fabs(y - l); }
    static INLINE Real error(Real y, Real l) { return y > l ? Real(1) : y < l ? Real(-1) : y - l; }
};
struct huber {
    static INLINE Real value(Real y, Real l) {
        const Real a = fabs(y - l);
        return a > NUMBER ? NUMBER * (a - Real(0.5) * NUMBER) : Real(0.5) * a * a;
    }
    static INLINE Real error(Real y, Real l) { return at_most(at_least(y - l, -NUMBER), NUMBER); }
};
struct quantile {
    static INLINE Real value(Real y, Real l) { return (y > l ? NUMBER : NUMBER - Real(1)) * (y - l); }
    static INLINE Real error(Real y, Real l) { return y > l ? NUMBER : y < l ? NUMBER - Real(1) : Real(0); }
};
struct poisson {
    static INLINE Real value(Real y, Real l) {
        l = at_least(l, TINY);
        return (y > Real(0) ? y * (log_of(y) - log_of(l)) : Real(0)) - y + l;
    }
    static INLINE Real error(Real y, Real l) { return y / at_least(l, TINY) - Real(1); }
};
}  // namespace loss

// --- the network -----------------------------------------------------------------------------------------------------

__device__ constexpr int size(int layer) {
    constexpr int sizes[] = {SIZES};
    return sizes[layer];
}
// Where the weights between two layers begin; the bias is the last row of a matrix.
__device__ constexpr int first_weight(int layer) {
    return layer == 0 ? 0 : first_weight(layer - 1) + (size(layer - 1) + BIAS) * size(layer);
}
template <class... F> struct Depth { static constexpr int value = sizeof...(F); };
constexpr int DEPTH = Depth<ACTIVATIONS>::value;
constexpr int NI = size(0), NO = size(DEPTH), NW = first_weight(DEPTH);
// Sums over rows: the updates of all weights, the loss, |y - output|, and the rows' weight where they have one.
constexpr int LOSS_SUM = NW, ERROR_SUM = NW + 1, WEIGHT_SUM = NW + 2, NS = NW + 2 + WEIGHTED;

template <int L, class F, class... Rest> struct Pick { typedef typename Pick<L - 1, Rest...>::type type; };
template <class F, class... Rest> struct Pick<0, F, Rest...> { typedef F type; };
template <int L> using Activation = typename Pick<L, ACTIVATIONS>::type;

// The error of the output, sent back through its activation.
template <class Loss, class F>
INLINE void answer(const Real* y, const Real* l, Real weight, Real* sums, Real* delta) {
#pragma unroll
    for (int o = 0; o < NO; ++o) {
        const Real value = Loss::value(y[o], l[o]), miss = fabs(y[o] - l[o]);
        if constexpr (CANCELS) delta[o] = y[o] - l[o];
        else delta[o] = Loss::error(y[o], l[o]) * F::slope(l[o]);
        if (WEIGHTED) delta[o] *= weight;
        sums[LOSS_SUM] = WEIGHTED ? fma(weight, value, sums[LOSS_SUM]) : sums[LOSS_SUM] + value;
        sums[ERROR_SUM] = WEIGHTED ? fma(weight, miss, sums[ERROR_SUM]) : sums[ERROR_SUM] + miss;
    }
    if (WEIGHTED) sums[WEIGHT_SUM] += weight;
}

// One row, from layer L up: forward to the answer, and back. `l` is that layer; `error` becomes what each of its units
// contributed to the error above. The updates are added to `sums`. The first matrix comes scaled for its activation.
template <int L> INLINE void learn(const Real* w, const Real* l, const Real* y, Real weight, Real* sums, Real* error) {
    constexpr int I = size(L), O = size(L + 1), W = first_weight(L);
    Real above[O], delta[O];
#pragma unroll
    for (int o = 0; o < O; ++o) {
        Real z = BIAS ? w[W + I * O + o] : l[0] * w[W + o];
#pragma unroll
        for (int i = BIAS ? 0 : 1; i < I; ++i) z = fma(l[i], w[W + i * O + o], z);
        above[o] = L == 0 ? z : z * Activation<L>::SCALE;
    }
    Layer<Activation<L>, O>::activate(above);

    if constexpr (L + 1 == DEPTH) {
        answer<LOSS, Activation<L>>(y, above, weight, sums, delta);
    } else {
        learn<L + 1>(w, above, y, weight, sums, delta);
#pragma unroll
        for (int o = 0; o < O; ++o) delta[o] *= Activation<L>::slope(above[o]);
    }

#pragma unroll
    for (int o = 0; o < O; ++o) {
#pragma unroll
        for (int i = 0; i < I; ++i) sums[W + i * O + o] = fma(l[i], delta[o], sums[W + i * O + o]);
        if (BIAS) sums[W + I * O + o] += delta[o];
    }
    if constexpr (L > 0) {
#pragma unroll
        for (int i = 0; i < I; ++i) {
            error[i] = delta[0] * w[W + i * O];
#pragma unroll
            for (int o = 1; o < O; ++o) error[i] = fma(delta[o], w[W + i * O + o], error[i]);
        }
    }
}

// --- the rows of a share ---------------------------------------------------------------------------------------------

constexpr int SHARE_ROWS = 4 * THREADS * SWEEPS;

struct Rows {
    const Real *x, *y, *weight;
    long long x_row, x_column, y_row, y_column, weight_row;  // elements from one to the next
    const long long* order;                                  // or null
    long long origin;                                        // the number of the row that the pointers point at
};

// Four rows of N numbers, which lie one after the other from a multiple of 16 bytes on.
template <int N> INLINE void load_packed(const Real* from, Real* to) {
    constexpr int WIDTH = 16 / sizeof(Real);
#pragma unroll
    for (int k = 0; k < 4 * N / WIDTH; ++k) {
        const Pack pack = ((const Pack*)from)[k];
        to[WIDTH * k] = pack.x;
        to[WIDTH * k + 1] = pack.y;
#if !FLOAT64
        to[WIDTH * k + 2] = pack.z;
        to[WIDTH * k + 3] = pack.w;
#endif
    }
}

INLINE void learn_row(const Rows& rows, long long r, const Real* w, Real* sums) {
    const long long at = (VECTOR || !rows.order ? r : rows.order[r]) - rows.origin;
    Real x[NI], y[NO];
#pragma unroll
    for (int i = 0; i < NI; ++i) x[i] = VECTOR ? rows.x[at * NI + i] : rows.x[at * rows.x_row + i * rows.x_column];
#pragma unroll
    for (int o = 0; o < NO; ++o) y[o] = VECTOR ? rows.y[at * NO + o] : rows.y[at * rows.y_row + o * rows.y_column];
    const Real weight = !WEIGHTED ? Real(1) : VECTOR ? rows.weight[at] : rows.weight[at * rows.weight_row];
    learn<0>(w, x, y, weight, sums, nullptr);
}

// This thread's rows of a share: four neighbours at a time as long as all threads have four, then one at a time.
INLINE void learn_share(const Rows& rows, long long first, int count, const Real* w, Real* sums) {
    const int sweeps = count / (4 * THREADS);
    for (int sweep = 0; sweep < sweeps; ++sweep) {
        const long long r = first + 4 * (sweep * THREADS + (int)threadIdx.x);
#if VECTOR
        Real x[4 * NI], y[4 * NO], weight[4] = {};
        load_packed<NI>(rows.x + (r - rows.origin) * NI, x);
        load_packed<NO>(rows.y + (r - rows.origin) * NO, y);
        if (WEIGHTED) load_packed<1>(rows.weight + (r - rows.origin), weight);
#pragma unroll
        for (int k = 0; k < 4; ++k) learn<0>(w, x + k * NI, y + k * NO, weight[k], sums, nullptr);
#else
#pragma unroll 1
        for (int k = 0; k < 4; ++k) learn_row(rows, r + k, w, sums);
#endif
    }
    for (int k = 4 * THREADS * sweeps + threadIdx.x; k < count; k += THREADS) learn_row(rows, first + k, w, sums);
}

// --- sums in a fixed order -------------------------------------------------------------------------------------------

#define ALL_LANES 0xffffffffu

// Adds N sums over the lanes of a warp. Lanes D apart share them: one keeps and adds up the first half, the other the
// second. In the end a lane has those of [first, end), a 32nd of them.
template <int N, int D> INLINE void add_lanes(Real* sums, int& first, int& end) {
    constexpr int HALF = (N + 1) / 2;
    const bool second = threadIdx.x & D;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const Real low = sums[i], high = i + HALF < N ? sums[i + HALF] : Real(0);
        sums[i] = (second ? high : low) + __shfl_xor_sync(ALL_LANES, second ? low : high, D);
    }
    if (second) first += HALF;
    else end = end < first + HALF ? end : first + HALF;
    if constexpr (D > 1) add_lanes<HALF, D / 2>(sums, first, end);
}

// The sum of value(0) ... value(count - 1), in a binary tree over their numbers, N of them at most: a right half that
// does not exist counts for nothing. All values are read before the first is added, so that they travel together.
template <int N, class Value> INLINE double add_tree(const Value& value, int count) {
    double node[N];
#pragma unroll
    for (int k = 0; k < N; ++k) node[k] = k < count ? value(k) : 0.;
#pragma unroll
    for (int half = 1; half < N; half *= 2) {
#pragma unroll
        for (int k = 0; k + half < N; k += 2 * half)
            if (k + half < count) node[k] += node[k + half];
    }
    return node[0];
}

// The sums of all threads of a CUDA block, in double. A barrier must come before they are read, and before the next.
INLINE void add_threads(Real* sums, double* to) {
    __shared__ Real warps[THREADS / 32][NS];
    int first = 0, end = NS;
    add_lanes<NS, 16>(sums, first, end);
#pragma unroll
    for (int i = 0; i < (NS + 31) / 32; ++i)
        if (first + i < end) warps[threadIdx.x / 32][first + i] = sums[i];
    __syncthreads();
    for (int i = threadIdx.x; i < NS; i += blockDim.x)
        to[i] = add_tree<THREADS / 32>([=](int k) { return (double)warps[k][i]; }, (int)blockDim.x / 32);
}

// Adds `count` sets of sums that other CUDA blocks left, in a binary tree over their numbers: eight neighbours at a
// time, whose sum takes the place of the first, until one set is left. One thread alone reads eight numbers and writes.
INLINE void add_sets(double* sets, int count, double* to) {
    static_assert((SHARES & (SHARES - 1)) == 0, "a group of shares must be a node of the tree");
    for (int apart = NS;; apart *= 8) {  // from a set that is left to the next
        const int eights = (count + 7) / 8;
        for (int k = threadIdx.x; k < eights * NS; k += blockDim.x) {
            double* first = sets + k / NS * 8 * apart + k % NS;
            const double sum = add_tree<8>([=](int j) { return __ldcg(first + j * apart); }, count - k / NS * 8);
            (eights == 1 ? to + k : first)[0] = sum;
        }
        if (eights == 1) return;
        count = eights;
        __syncthreads();
    }
}

// Whether this CUDA block is the last of `count` to come here; then it sees what all of them wrote. The counter is 0
// again after the last.
INLINE bool last_to_come(unsigned int* counter, unsigned int count) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();  // what this block wrote, before it is counted
        last = atomicInc(counter, count - 1) == count - 1;
        __threadfence();  // all are counted, before it reads what they wrote
    }
    __syncthreads();
    return last;
}

// --- the step --------------------------------------------------------------------------------------------------------

enum { NOTHING, GRADIENT_DESCENT, MOMENTUM, NESTEROV, ADAM, RMSPROP };   // solvers; NOTHING: the sums are wanted
enum { MEAN, L1, L2, CLIP, FIRST, SECOND, THIRD };                       // places of `rules`
enum { RATE, REMAINS, ROOT, RATES };                                     // of a step: see _Job.settle_by in cuda.py
enum { GROUPS_COME, STEPS_TAKEN, SHARES_COME };                          // places of `counters`; the last is many

__device__ inline bool is_bias(int weight) {
    bool found = false;
    for (int l = 0; BIAS && l < DEPTH; ++l)
        found |= weight >= first_weight(l + 1) - size(l + 1) && weight < first_weight(l + 1);
    return found;
}

// Reduces, penalises and clips as `Objective.finish` does, then takes the solver's step: by one CUDA block.
INLINE void settle(double* total, double rows, Real* current, Real* weights, Real* state, Real* second_state,
                   const double* rules, int solver, const Real* rates, double* totals, double* sums) {
    __shared__ double length;
    __syncthreads();
    const double weight = WEIGHTED ? total[NS - 1] : rows;
    if (threadIdx.x == 0) {
        totals[0] = weight;
        totals[1] = total[LOSS_SUM];
        totals[2] = total[ERROR_SUM] / NO;
        totals[3] = 0.;
    }
    if (solver == NOTHING) {
        for (int i = threadIdx.x; i < NW; i += blockDim.x) sums[i] = total[i];
        return;
    }
    // Rows that count nothing ask for nothing, also of the penalty.
    double share = rules[MEAN] == 0. ? 1. : weight > 0. ? 1. / weight : 0.;
    if (rules[L1] != 0. || rules[L2] != 0. || rules[CLIP] != 0.) {
        if (threadIdx.x == 0) {
            double squares = 0., penalty = 0.;
            for (int i = 0; i < NW; ++i) {
                const double W = is_bias(i) ? 0. : (double)current[i];
                total[i] = total[i] - rules[L2] * W - rules[L1] * (W > 0. ? 1. : W < 0. ? -1. : W);
                penalty += rules[L1] * fabs(W) + 0.5 * rules[L2] * W * W;
                squares += (total[i] * share) * (total[i] * share);
            }
            length = sqrt(squares);
            totals[3] = penalty;
        }
        __syncthreads();
        if (rules[CLIP] != 0. && length > rules[CLIP]) share *= rules[CLIP] / length;
    }
    for (int i = threadIdx.x; i < NW; i += blockDim.x) {
        const Real u = (Real)(total[i] * share), rate = rates[RATE], keep = (Real)rules[FIRST];
        Real W = current[i] * rates[REMAINS];
        if (solver == GRADIENT_DESCENT) {
            W = fma(rate, u, W);
        } else if (solver == ADAM) {  // and AdamW
            const Real mean = fma(keep, __ldcg(state + i), (Real)(1. - rules[FIRST]) * u);
            const Real rest = (Real)(1. - rules[SECOND]) * (u * u);
            const Real square = fma((Real)rules[SECOND], __ldcg(second_state + i), rest);
            W = fma(rate, mean / (sqrt(square) / rates[ROOT] + (Real)rules[THIRD]), W);
            state[i] = mean;
            second_state[i] = square;
        } else if (solver == RMSPROP) {
            const Real square = fma(keep, __ldcg(state + i), (Real)(1. - rules[FIRST]) * (u * u));
            const Real scaled = u / (sqrt(square) + (Real)rules[SECOND]);
            const Real velocity = fma((Real)rules[THIRD], __ldcg(second_state + i), scaled);
            W = fma(rate, velocity, W);
            state[i] = square;
            second_state[i] = velocity;
        } else {
            const Real velocity = fma(keep, __ldcg(state + i), rate * u);
            W += solver == NESTEROV ? fma(keep, velocity, rate * u) : velocity;
            state[i] = velocity;
        }
        current[i] = weights[i] = W;
    }
}

// Takes `steps` steps from `step` on, each over rows starts[step]:stops[step] of the order; of each, this launch does
// the shares from `first_share` to `last_share`, and whoever ends the last group of them all ends the step.
//   one CUDA block: all steps, without a word to anybody; for few rows
//   a cooperative launch, all of whose CUDA blocks run at once: they wait for each other between steps
//   any other: one step, or a part of one
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
train(const Real* __restrict__ x, const Real* __restrict__ y, const Real* __restrict__ row_weights, long long x_row,
      long long x_column, long long y_row, long long y_column, long long weight_row, const long long* order,
      int ordered, long long origin, const long long* starts, const long long* stops, const Real* rates,
      long long step, long long steps, long long first_share, long long last_share, Real* weights, Real* state,
      Real* second_state, const double* rules, int solver, double* totals, double* sums, double* share_sums,
      double* group_sums, unsigned int* counters) {
    __shared__ Real current[NW];
    __shared__ double total[NS];
    const Rows rows = {x, y, row_weights, x_row, x_column, y_row, y_column, weight_row, ordered ? order : nullptr,
                       origin};
    for (long long taken = 0; taken < steps; ++taken, ++step) {
        const long long start = starts[step], stop = stops[step];
        const long long shares = (stop - start + SHARE_ROWS - 1) / SHARE_ROWS, groups = (shares + SHARES - 1) / SHARES;
        // Without a share of this step it is not waited for, and would look at weights that are just being moved.
        if (first_share + blockIdx.x >= shares) continue;
        if (taken && gridDim.x > 1) {
            if (threadIdx.x == 0) {
                while (atomicAdd(counters + STEPS_TAKEN, 0u) < (unsigned int)taken) __nanosleep(32);
                __threadfence();  // the step is taken, before its weights are read
            }
            __syncthreads();
        }
        if (taken == 0 || gridDim.x > 1)
            for (int i = threadIdx.x; i < NW; i += blockDim.x) current[i] = __ldcg(weights + i);
        __syncthreads();
        Real w[NW];
#pragma unroll
        for (int i = 0; i < NW; ++i) w[i] = i < first_weight(1) ? current[i] * Activation<0>::SCALE : current[i];

        bool ends = false;  // whether this CUDA block ends the step
        for (long long share = first_share + blockIdx.x; share < shares && share < last_share; share += gridDim.x) {
            const long long first = start + share * SHARE_ROWS, group = share / SHARES, local = share - first_share;
            Real added[NS];
#pragma unroll
            for (int i = 0; i < NS; ++i) added[i] = 0;
            learn_share(rows, first, (int)(stop - first < SHARE_ROWS ? stop - first : SHARE_ROWS), w, added);
            if (shares == 1) {
                add_threads(added, total);
                ends = true;
                continue;
            }
            add_threads(added, share_sums + local * NS);
            const int others = (int)(shares - group * SHARES < SHARES ? shares - group * SHARES : SHARES);
            if (!last_to_come(counters + SHARES_COME + local / SHARES, others)) continue;
            add_sets(share_sums + local / SHARES * SHARES * NS, others, groups == 1 ? total : group_sums + group * NS);
            if (groups > 1) {
                if (!last_to_come(counters + GROUPS_COME, (unsigned int)groups)) continue;
                add_sets(group_sums, (int)groups, total);
            }
            ends = true;
        }
        if (!ends) continue;
        settle(total, (double)(stop - start), current, weights, state, second_state, rules, solver,
               rates + RATES * step, totals + 4 * step, sums);
        if (gridDim.x == 1 || steps == 1) continue;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();  // the new weights, before they are announced
            atomicAdd(counters + STEPS_TAKEN, 1u);
        }
    }
}
