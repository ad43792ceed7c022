"""The stand-in that runs CUDA kernels on the CPU: right kernels run, and wrong ones are errors, not luck."""

import numpy as np
import pytest

SUM = """
extern "C" __global__ void sum(const float* x, long long n, float* out) {
    __shared__ float parts[32];
    float s = 0.f;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) s += x[i];
    for (int d = 16; d > 0; d /= 2) s += __shfl_xor_sync(0xffffffffu, s, d);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x / 32; ++w) s += parts[w];
        out[blockIdx.x] = s;
    }
}
"""
N = np.int64(1000)


@pytest.fixture(autouse=True)
def _seeds(host_cuda, monkeypatch):
    monkeypatch.setattr(host_cuda.RawModule, "seed", 0)


def run(host_cuda, source, *, threads=64, blocks=1, args=None):
    x = np.arange(N, dtype=np.float32)
    out = host_cuda.empty(blocks, np.float32)
    host_cuda.RawModule(source).get_function("sum")((blocks,), (threads,), args or (x, N, out))
    return out


def test_a_right_kernel_gives_the_same_sum_in_every_order(host_cuda):
    for seed in range(5):
        host_cuda.RawModule.seed = seed
        assert run(host_cuda, SUM, blocks=3).tolist() == [499500.0] * 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("0xffffffffu, s, d", "0x0000ffffu, s, d", "a lane is not in its own mask"),
        ("s += __shfl", "if (threadIdx.x < 48) s += __shfl", "deadlock"),
        ("    __syncthreads();", "    if (threadIdx.x) return;\n    __syncwarp();", "has exited"),
    ],
)
def test_what_the_hardware_leaves_undefined_is_an_error(host_cuda, old, new, why):
    assert old in SUM
    with pytest.raises(RuntimeError, match=why):
        run(host_cuda, SUM.replace(old, new))


def test_shared_memory_and_new_arrays_are_nan(host_cuda):
    assert np.isnan(run(host_cuda, SUM.replace("w = 1;", "w = 2;").replace("parts[w]", "parts[w + 1]"), threads=128))
    assert np.isnan(host_cuda.empty((2, 3), np.float32)).all()


def test_what_a_kernel_writes_behind_an_array_is_an_error(host_cuda):
    with pytest.raises(RuntimeError, match="sum wrote behind an array of 4 bytes"):
        run(host_cuda, SUM.replace("out[blockIdx.x] = s", "out[1] = s"))


def test_a_forgotten_barrier_gives_nan_in_some_order(host_cuda):
    found = set()
    for seed in range(10):
        host_cuda.RawModule.seed = seed
        found.add(float(run(host_cuda, SUM.replace("    __syncthreads();", ""), threads=256)[0]))
    assert any(np.isnan(value) for value in found)


def test_atomics_on_floats_do_not_compile(host_cuda):
    with pytest.raises(RuntimeError, match="no matching function for call to .atomicAdd"):
        run(host_cuda, SUM.replace("out[blockIdx.x] = s", "atomicAdd(out, s)"))


HALF = """
extern "C" __global__ void half(const %s* x, %s* out) { out[threadIdx.x] = x[threadIdx.x] * %s; }
"""


@pytest.mark.parametrize(
    ("dtype", "names", "want"),
    [("float32", ("float", "float", "0.5f"), [0.0, -0.0, 0.0]), ("float64", ("double", "double", "0.5"), None)],
)
def test_subnormal_float32_are_0_as_cupy_compiles_kernels(host_cuda, dtype, names, want):
    """A result, and what is read; of float64 they are numbers, and so are they all in the code around."""
    kind = np.finfo(dtype)
    x = np.array([kind.tiny, -kind.tiny, kind.smallest_subnormal * 4], dtype)
    out = host_cuda.empty(3, dtype)
    host_cuda.RawModule(HALF % names).get_function("half")((1,), (3,), (x, out))
    np.testing.assert_array_equal(out, x * kind.dtype.type(0.5) if want is None else want)
    assert np.signbit(out).tolist() == [False, True, False]
    assert (x * kind.dtype.type(0.5) != 0).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({0: np.ones(3)}, "argument 0 of sum must be an array of float32"),
        ({1: 5}, "argument 1 of sum must be a numpy.int64; got 5"),
        ({2: np.broadcast_to(np.float32(1), 3)}, "argument 2 of sum is written by the kernel, but read-only"),
    ],
)
def test_wrong_arguments_are_refused(host_cuda, change, why):
    args = [np.ones(3, np.float32), np.int64(3), host_cuda.empty(1, np.float32)]
    for place, value in change.items():
        args[place] = value
    with pytest.raises((TypeError, ValueError), match=why):
        run(host_cuda, SUM, args=args)
    with pytest.raises(TypeError, match="takes 3 arguments, not 2"):
        run(host_cuda, SUM, args=args[:2])


def test_a_stream_works_as_late_as_its_events_allow(host_cuda):
    stream, other = host_cuda.cuda.Stream(non_blocking=True), host_cuda.cuda.Stream(non_blocking=True)
    host, device = np.zeros(3), host_cuda.empty(3)
    device.set(host, stream=stream)
    host[:] = 1.0  # too early: the copy has not read it yet
    event = stream.record()
    device.set(np.full(3, 2.0), stream=stream)
    assert np.isnan(device).all()
    other.wait_event(event)
    assert np.isnan(device).all()
    other.synchronize()
    assert device.tolist() == [1.0] * 3
    stream.synchronize()
    assert device.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("file", "bug", "sanitized"),
    [
        ("mlp.cu", "the tail of a share is lost", False),
        ("mlp.cu", "the logistic's slope is a", False),
        ("mlp.cu", "sums are added from left to right", False),
        ("mlp.cu", "no fence before a block is counted", True),
        ("buffers.py", "a copy does not wait for the kernel before", False),
    ],
)
def test_a_bug_in_our_code_is_seen(host_cuda, file, bug, sanitized):
    """Some of many: `tests/cuda/mutants.py` tries all."""
    import mutants

    text = mutants.broken(file, *mutants.MUTANTS[file][bug])
    assert mutants.failure(file, text, host_cuda.CACHE, sanitized=sanitized, limit=300)


def test_our_kernel_as_it_is_passes_under_thread_sanitizer(host_cuda):
    """Some of `make sanitize`, which runs more of it, and AddressSanitizer with UBSan."""
    import mutants

    text = (mutants.ROOT / "bpaccel/engines/mlp.cu").read_text()
    assert mutants.failure("mlp.cu", text, host_cuda.CACHE, sanitized=True, limit=300) is None
