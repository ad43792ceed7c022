// What a wide network needs beside its matrix products: each layer's bias and activation in one pass over the layer,
// each layer's delta in one pass, and at the output the delta and the totals in one pass.
//
// One source for every network. Macros make its kernels: REAL is float or double; SIGMOID, SQUARED_ERROR and so on are
// the numbers by which activations and losses are known here (CATEGORICAL is log_loss over a softmax). Which of them a
// launch means is an argument: all its threads take the same branch, which costs nothing beside the memory.
//
// Matrices are C-contiguous; "values" is how many numbers a matrix of "width" columns has.

// Kernels that live from memory have four blocks or more on a multiprocessor (__launch_bounds__): 64 registers a thread.
#define THREADS 256
#define WARPS (THREADS / 32)
#define FULL 0xffffffffu
#define PACK ((int)(16 / sizeof(REAL)))

// Numbers that are loaded and stored together, 16 bytes: half the instructions, and all of the bandwidth.
struct alignas(16) Pack {
    REAL value[PACK];
};

// Comparisons are written so that a nan stays one: training must see that it went astray.
__device__ __forceinline__ REAL at_least(REAL x, REAL low) { return x < low ? low : x; }
__device__ __forceinline__ REAL at_most(REAL x, REAL high) { return x > high ? high : x; }

// The formulas of bpaccel/activations.py. A softmax has kernels of its own.
__device__ __forceinline__ REAL activation(int f, REAL z) {
    switch (f) {
    case SIGMOID: {
        const REAL e = exp(-fabs(z));
        return (z >= 0 ? (REAL)1 : e) / ((REAL)1 + e);
    }
    case TANH: return tanh(z);
    case RELU: return at_least(z, (REAL)0);
    case LEAKY_RELU: return z > 0 ? z : (REAL)0.01 * z;
    case ELU: return z > 0 ? z : expm1(-fabs(z));
    case SOFTPLUS: return at_least(z, (REAL)0) + log1p(exp(-fabs(z)));
    case EXP: return exp(z);
    default: return z;
    }
}

// da/dz, from the output a.
__device__ __forceinline__ REAL slope(int f, REAL a) {
    switch (f) {
    case SIGMOID: return a * ((REAL)1 - a);
    case TANH: return (REAL)1 - a * a;
    case RELU: return a > 0 ? (REAL)1 : (REAL)0;
    case LEAKY_RELU: return a > 0 ? (REAL)1 : (REAL)0.01;
    case ELU: return a > 0 ? (REAL)1 : a + (REAL)1;
    case SOFTPLUS: return -expm1(-a);
    case EXP: return a;
    default: return (REAL)1;
    }
}

// z, the products of a layer, becomes f(z + bias), where has_bias. The bias is the row of W after its "inputs" rows.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
activate(int f, REAL* __restrict__ z, const REAL* __restrict__ W, long long inputs, int has_bias, long long values,
         int width) {
    const REAL* bias = W + inputs * width;
    const long long first = (long long)blockIdx.x * THREADS + threadIdx.x, stride = (long long)gridDim.x * THREADS;
    const long long packs = values / PACK;
    // The column of a pack's first number moves by the same step each turn: one division in all.
    const int step = (int)(stride * PACK % width);
    int column = (int)(first * PACK % width);
    for (long long k = first; k < packs; k += stride) {
        Pack p = ((const Pack*)z)[k];
        int c = column;
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            p.value[i] = activation(f, has_bias ? p.value[i] + bias[c] : p.value[i]);
            c = c + 1 == width ? 0 : c + 1;
        }
        ((Pack*)z)[k] = p;
        column = column >= width - step ? column - (width - step) : column + step;
    }
    for (long long i = packs * PACK + first; i < values; i += stride)
        z[i] = activation(f, has_bias ? z[i] + bias[i % width] : z[i]);
}

// error, what the layer above sends back, becomes the layer's delta: error * slope(a).
extern "C" __global__ void __launch_bounds__(THREADS, 4)
descend(int f, REAL* __restrict__ error, const REAL* __restrict__ a, long long values) {
    const long long first = (long long)blockIdx.x * THREADS + threadIdx.x, stride = (long long)gridDim.x * THREADS;
    const long long packs = values / PACK;
    for (long long k = first; k < packs; k += stride) {
        const Pack l = ((const Pack*)a)[k];
        Pack e = ((const Pack*)error)[k];
#pragma unroll
        for (int i = 0; i < PACK; ++i) e.value[i] *= slope(f, l.value[i]);
        ((Pack*)error)[k] = e;
    }
    for (long long i = packs * PACK + first; i < values; i += stride) error[i] *= slope(f, a[i]);
}

#define LOWEST ((REAL)(sizeof(REAL) == 4 ? -3.4028234663852886e+38 : -1.7976931348623157e+308))

// z becomes softmax(z + bias), a warp a row: no other activation looks at its neighbours.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
softmax(REAL* __restrict__ z, const REAL* __restrict__ W, long long inputs, int has_bias, long long values, int width) {
    const REAL* bias = W + inputs * width;
    const int lane = threadIdx.x % 32;
    const long long rows = values / width, warps = (long long)gridDim.x * WARPS;
    for (long long row = (long long)blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += warps) {
        REAL* r = z + row * width;
        REAL most = LOWEST, sum = 0;
        for (int c = lane; c < width; c += 32) {
            r[c] = has_bias ? r[c] + bias[c] : r[c];
            most = at_least(most, r[c]);
        }
        for (int d = 16; d > 0; d >>= 1) most = at_least(most, __shfl_xor_sync(FULL, most, d));
        for (int c = lane; c < width; c += 32) sum += r[c] = exp(r[c] - most);
        for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(FULL, sum, d);
        for (int c = lane; c < width; c += 32) r[c] /= sum;
    }
}

#define EPSILON ((REAL)(sizeof(REAL) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16))
#define SMALLEST_NORMAL ((REAL)(sizeof(REAL) == 4 ? 1.1754943508222875e-38 : 2.2250738585072014e-308))

// What a loss looks at: probabilities clipped to [eps, 1 - eps], means of counts that are positive.
__device__ __forceinline__ REAL in_range(int loss, REAL l) {
    switch (loss) {
    case LOG_LOSS:
    case CATEGORICAL: return at_most(at_least(l, EPSILON), (REAL)1 - EPSILON);
    case POISSON: return at_least(l, SMALLEST_NORMAL);
    default: return l;
    }
}

// The formulas of bpaccel/losses.py, for l in range; number is that of a huber or quantile loss.
__device__ __forceinline__ REAL loss_value(int loss, REAL number, REAL y, REAL l) {
    const REAL e = y - l;
    switch (loss) {
    case LOG_LOSS: return -(y * log(l) + ((REAL)1 - y) * log((REAL)1 - l));
    case CATEGORICAL: return -y * log(l);
    case ABSOLUTE_ERROR: return fabs(e);
    case POISSON: return (y > 0 ? y * (log(y) - log(l)) : (REAL)0) - y + l;
    case HUBER: return fabs(e) <= number ? (REAL)0.5 * e * e : number * (fabs(e) - (REAL)0.5 * number);
    case QUANTILE: return e > 0 ? number * e : (number - (REAL)1) * e;
    default: return (REAL)0.5 * e * e;
    }
}

// Minus the derivative of the loss by the output. A log_loss is always cancelled by its activation.
__device__ __forceinline__ REAL loss_error(int loss, REAL number, REAL y, REAL l) {
    const REAL e = y - l;
    switch (loss) {
    case ABSOLUTE_ERROR: return e > 0 ? (REAL)1 : e < 0 ? (REAL)-1 : e;
    case POISSON: return y / l - (REAL)1;
    case HUBER: return at_most(at_least(e, -number), number);
    case QUANTILE: return y > l ? number : y < l ? number - (REAL)1 : (REAL)0;
    default: return e;
    }
}

// Three sums over the threads of a block, in a fixed order: thread 0 returns with them in s.
__device__ __forceinline__ void block_sum(double* s) {
    __shared__ double part[WARPS][3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        for (int d = 16; d > 0; d >>= 1) s[i] += __shfl_xor_sync(FULL, s[i], d);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32][i] = s[i];
    }
    __syncthreads();
    if (threadIdx.x) return;
#pragma unroll
    for (int i = 0; i < 3; ++i)
        for (int k = 1; k < WARPS; ++k) s[i] += part[k][i];
}

// The delta of the output layer, from the targets y and the output l, and each CUDA block's share of the totals: the
// weight of the rows, their loss, and |y - l|, in double. cancels: f's slope cancels against the loss's error.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
output(int f, int loss, REAL number, int cancels, const REAL* __restrict__ y, const REAL* __restrict__ l,
       const REAL* __restrict__ w, REAL* __restrict__ delta, double* __restrict__ part, long long values, int width) {
    const long long first = (long long)blockIdx.x * THREADS + threadIdx.x, stride = (long long)gridDim.x * THREADS;
    long long row = first / width;
    int column = (int)(first % width);
    const long long rows_on = stride / width;
    const int columns_on = (int)(stride % width);
    double s[3] = {0., 0., 0.};
    for (long long i = first; i < values; i += stride) {
        const REAL is = l[i], should = y[i], weight = w[row], in = in_range(loss, is);
        delta[i] = (cancels ? should - is : loss_error(loss, number, should, in) * slope(f, is)) * weight;
        if (column == 0) s[0] += (double)weight;
        s[1] += (double)(loss_value(loss, number, should, in) * weight);
        s[2] += (double)(fabs(should - is) * weight);
        row += rows_on;
        column += columns_on;
        if (column >= width) column -= width, ++row;
    }
    block_sum(s);
    if (threadIdx.x == 0)
        for (int k = 0; k < 3; ++k) part[blockIdx.x * 3 + k] = s[k];
}

// The totals: the blocks' shares added in a fixed order, by one CUDA block.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
add_totals(const double* __restrict__ part, int blocks, int width, double* __restrict__ totals) {
    double s[3] = {0., 0., 0.};
    for (int b = threadIdx.x; b < blocks; b += THREADS)
        for (int k = 0; k < 3; ++k) s[k] += part[b * 3 + k];
    block_sum(s);
    if (threadIdx.x) return;
    totals[0] = s[0];
    totals[1] = s[1];
    totals[2] = s[2] / width;  // of each row, the mean over its outputs
}
