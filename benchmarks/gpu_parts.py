"""What a visit to a GPU consists of, part by part: `benchmarks/gpu.py` runs each in a process of its own.

    python benchmarks/gpu_parts.py PART [ARGUMENT ...] [--results FILE]

A part appends a line of JSON to FILE for each thing that it found out, at once: what is cut short keeps what it had.
In a rehearsal (BPACCEL_REHEARSAL=1), on a machine without a GPU, our kernels run on the CPU (compiled by g++, see
tests/cuda), all else on its library's CPU, and sizes are tiny: it shows that all of it works, and gives no times.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bpaccel import solvers, testing
from bpaccel.backends import backend, why_not
from bpaccel.bench import machine
from bpaccel.bench.workloads import Ours, workload
from bpaccel.data import Rows
from bpaccel.engines import Batches, buffers
from bpaccel.engines.choice import find

sys.path.append(str(Path(__file__).parents[1] / "tests" / "cuda"))

CHECK_STEPS = 10  # after so many steps, a provider must have reached what the core reaches
SAME_ERROR = 1e-5  # within this, of mean |error|: every provider computes in float32
SAMPLE_SECONDS = 0.02  # a sample takes at least so long, so that neither clock nor synchronisation counts
CASE_SECONDS = 1.0  # of samples, where a step is quick
SAMPLES = 7  # at least
MOST_STEPS = 2**16  # of a sample
NARROW = (3, 4, 1)
ROWS = tuple(2**k for k in (24, 26, 28, 2, 20, 22, 16, 12))  # 4 to 268 million: first what matters most
WIDE = {(32, 16, 1): 2**20, (64, 32, 10): 2**20, (28, 300, 1): 2**18, (784, 128, 10): 2**16}


# --- who computes ----------------------------------------------------------------------------------------------------


def stand_in(engine):
    """An engine of CUDA kernels that launches them on the CPU, on NumPy arrays."""
    import host_cuda

    if reason := host_cuda.missing():
        raise RuntimeError(reason)

    class OnHost(engine):
        @classmethod
        def library(cls):
            return host_cuda

        @classmethod
        def reaches(cls, backend):
            return True

        @classmethod
        def trouble(cls):
            return None

    return OnHost


class Engines(Ours):
    """An engine of ours; its rows are made where it computes."""

    def __init__(self, work, rows, kind, place, dtype="float32", solver="gradient_descent"):
        self.work, self.backend, self.solver, self.reached = work, backend(place), solvers.get(solver), None
        self.dtype = dtype
        xp = self.backend.xp
        with self.backend.active():
            table = [self.backend.asarray(part, dtype) for part in (work.X, work.y)]
            X, y = (xp.tile(part, (work.copies(rows), 1)) for part in table)
            self.rows = Rows(X, y, backend=self.backend, dtype=dtype)
            if refusal := kind.refuses(work.objective, self.rows, self.solver):
                raise ValueError(refusal)
            self.engine = kind(work.objective, self.rows)
            self._first = [self.backend.asarray(W, dtype) for W in work.weights()]
        self.restart()

    def advance(self, steps):
        batches = Batches(None, np.zeros(steps, np.int64), np.full(steps, self.rows.n))
        rates = [self.work.rate] * steps
        with self.engine.held():
            self.weights, self.state, self.totals = self.engine.run(
                self.weights, self.solver, self.state, batches, rates, self.step
            )
        self.step += steps

    def clock(self):
        return _cupy_clock() if self.backend.library.name == "cupy" else None

    def hosted(self):
        """The weights, as NumPy arrays."""
        return [self.backend.to_numpy(W) for W in self.weights]


class Formulas:
    """The tutorial's formulas as a user would write them for a library; subclasses say in which."""

    def __init__(self, work, rows, rehearsal):
        self.work, self.rate = work, work.rate / rows
        self.X, self.y = (self.array(part, (work.copies(rows), 1)) for part in (work.X, work.y))
        self._first = [self.array(W, (1, 1)) for W in work.weights("float32")]
        self.restart()

    def restart(self):
        self.weights = list(self._first)

    def advance(self, steps):
        for _ in range(steps):
            self.weights = self.step(self.weights, self.X, self.y, self.rate)

    def clock(self):
        return None

    def wait(self):
        pass

    def close(self):
        pass

    def hosted(self):
        return [np.asarray(W) for W in self.weights]


def out_delta(y, l):
    """What the output layer sends back."""
    return (y - l) * l * (1 - l)


def hidden_delta(error, l):
    """What a hidden layer sends back."""
    return error * l * (1 - l)


def formulas(sigmoid, out_delta=out_delta, hidden_delta=hidden_delta):
    """A step of any depth, from the three element-wise passes."""

    def step(weights, X, y, rate):
        layers = [X]
        for W in weights:
            layers.append(sigmoid(layers[-1] @ W))
        delta = out_delta(y, layers[-1])
        updated = []
        for k in range(len(weights) - 1, -1, -1):
            updated.append(weights[k] + rate * (layers[k].T @ delta))
            if k:
                delta = hidden_delta(delta @ weights[k].T, layers[k])
        return updated[::-1]

    return step


class CuPyFuse(Formulas):
    """CuPy: cuBLAS, and `cupy.fuse` for the element-wise passes."""

    def __init__(self, work, rows, rehearsal):
        import cupy

        self.xp = np if rehearsal else cupy
        fuse = (lambda f: f) if rehearsal else cupy.fuse()  # a fused function needs a device
        exp = self.xp.exp
        self.step = formulas(fuse(lambda z: 1 / (1 + exp(-z))), fuse(out_delta), fuse(hidden_delta))
        super().__init__(work, rows, rehearsal)

    def array(self, x, copies):
        return self.xp.tile(self.xp.asarray(x, dtype=np.float32), copies)

    def wait(self):
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()

    def clock(self):
        return None if self.xp is np else _cupy_clock()

    def hosted(self):
        return [W if self.xp is np else W.get() for W in self.weights]


class Torch(Formulas):
    """PyTorch as it is called, operation by operation."""

    compiled = False

    def __init__(self, work, rows, rehearsal):
        import torch

        self.torch, self.place = torch, "cpu" if rehearsal else "cuda"
        if not rehearsal and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no usable CUDA device")
        self.step = formulas(torch.sigmoid)
        if self.compiled:
            torch.compiler.reset()  # or it would compile for any number of rows from the second one on
            self.step = torch.compile(self.step)
        super().__init__(work, rows, rehearsal)

    def array(self, x, copies):
        return self.torch.tile(self.torch.asarray(x, dtype=self.torch.float32, device=self.place), copies)

    def advance(self, steps):
        with self.torch.no_grad():
            super().advance(steps)

    def wait(self):
        if self.place == "cuda":
            self.torch.cuda.synchronize()

    def clock(self):
        if self.place == "cpu":
            return None
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        return begin.record, end.record, lambda: 1e-3 * begin.elapsed_time(end)

    def hosted(self):
        return [W.cpu().numpy() for W in self.weights]


class TorchCompile(Torch):
    """PyTorch, a step compiled by torch.compile."""

    compiled = True


class JaxJit(Formulas):
    """JAX, a step compiled by jax.jit, and called from Python."""

    def __init__(self, work, rows, rehearsal):
        import jax

        self.jax = jax
        if not rehearsal and jax.devices()[0].platform != "gpu":
            raise RuntimeError("JAX finds no usable GPU")
        self._plain = formulas(jax.nn.sigmoid)
        self.step = jax.jit(self._plain)
        super().__init__(work, rows, rehearsal)

    def array(self, x, copies):
        return self.jax.numpy.tile(self.jax.numpy.asarray(x, dtype="float32"), copies)

    def wait(self):
        self.jax.block_until_ready(self.weights)


class JaxLoop(JaxJit):
    """JAX, all steps of a call in one compiled `fori_loop`."""

    def __init__(self, work, rows, rehearsal):
        super().__init__(work, rows, rehearsal)
        loop = self.jax.lax.fori_loop
        self._loop = self.jax.jit(
            lambda weights, X, y, rate, steps: loop(0, steps, lambda _, w: self._plain(w, X, y, rate), weights)
        )

    def advance(self, steps):
        self.weights = self._loop(self.weights, self.X, self.y, self.rate, steps)


def _kernels(name, rehearsal):
    """An engine of ours; in a rehearsal one with kernels has them launched on the CPU."""
    kind = find(name)
    return stand_in(kind) if rehearsal and hasattr(kind, "reaches") else kind


def _ours(name, cache_bytes=None, sweeps=None):
    """An engine of ours. Of the fused one, ``cache_bytes`` forces the way: rows of so many bytes are done in one launch
    for all steps; and ``sweeps`` is how long a share is, which fixes the bits of a release."""

    def make(work, rows, rehearsal):
        kind = _kernels(name, rehearsal)
        if sweeps is not None:
            kind = type("Swept", (kind,), {"sweeps": sweeps})
        if cache_bytes is not None and rows <= kind.share_rows():
            raise ValueError("one CUDA block does so few rows, whatever is asked for")
        training = Engines(work, rows, kind, "numpy" if rehearsal else "cupy")
        if cache_bytes is not None:
            training.engine.cache_bytes = cache_bytes
        return training

    return make


PROVIDERS = {
    "bpaccel cuda": _ours("cuda"),
    "bpaccel cuda (one grid)": _ours("cuda", 2**62),
    "bpaccel cuda (launches)": _ours("cuda", 0),
    "bpaccel cuda (sweeps=1)": _ours("cuda", sweeps=1),
    "bpaccel cuda (sweeps=2)": _ours("cuda", sweeps=2),
    "bpaccel wide": _ours("wide"),
    "bpaccel blocked": _ours("blocked"),
    "bpaccel array": _ours("array"),
    "cupy.fuse": CuPyFuse,
    "torch": Torch,
    "torch.compile": TorchCompile,
    "jax.jit": JaxJit,
    "jax fori_loop": JaxLoop,
}
NEEDS = {"cupy.fuse": "cupy", "torch": "torch", "torch.compile": "torch", "jax.jit": "jax", "jax fori_loop": "jax"}


# --- parts -----------------------------------------------------------------------------------------------------------


def describe(record, rehearsal):
    """The machine, the GPU, and what is installed on it."""
    for name in ("cupy", "torch", "jax"):
        with contextlib.suppress(Exception):
            __import__(name)
    found = machine.describe() | {"tools": {tool: shutil.which(tool) for tool in ("g++", "compute-sanitizer", "ncu")}}
    found["backends"] = {name: why_not(name) or "usable" for name in ("cupy", "torch", "jax")}
    if not rehearsal:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(0)
        found["gpu"] = {
            "name": properties["name"].decode(), "memory": properties["totalGlobalMem"],
            "multiprocessors": properties["multiProcessorCount"], "l2": properties["l2CacheSize"],
            "compute_capability": cupy.cuda.Device(0).compute_capability,
            "driver": cupy.cuda.runtime.driverGetVersion(), "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        }  # fmt: skip
    record(**found)


def bandwidth(record, rehearsal):
    """Bytes a second of a device-to-device copy, read and written: the ceiling of whatever lives from memory."""
    if rehearsal:
        xp, clock = np, lambda: None
    else:
        import cupy as xp

        clock = _cupy_clock
    source = xp.ones(2**16 if rehearsal else 2**28, np.float32)
    target = xp.empty_like(source)
    wait = (lambda: None) if rehearsal else xp.cuda.get_current_stream().synchronize
    times = _samples(lambda: xp.copyto(target, source), wait, clock, 20)
    if rehearsal:
        return
    # By the clock that the engines are timed with, or their shares of it would come out too high.
    seconds = (times["device_seconds"] or times["seconds"])["median"]
    record(bytes=2 * source.nbytes, **times, bytes_a_second=2 * source.nbytes / seconds)


def measure(record, rehearsal, name, seconds="inf"):
    """Time a step of one provider, over rows and over networks, as far as it comes in some seconds; checked first."""
    deadline = time.monotonic() + float(seconds)
    if (library := NEEDS.get(name)) and (reason := why_not(library)) and not (rehearsal and library == "cupy"):
        record(provider=name, refused=reason)
        return
    cases = [(NARROW, n) for n in ROWS] + list(WIDE.items())
    if rehearsal:
        cases = [(NARROW, 4), (NARROW, 20_000), ((28, 300, 1), 128)]
    for sizes, rows in cases:
        row = {"provider": name, "layer_sizes": sizes, "rows": rows, "dtype": "float32", "refused": None}
        try:
            if time.monotonic() > deadline:
                raise RuntimeError("the time was up")
            row |= _measured(PROVIDERS[name], workload(sizes), rows, rehearsal)
        # No memory for it, a driver that says no, a network that an engine refuses: each is a result, the rest goes on.
        except (ValueError, ImportError, MemoryError, RuntimeError) as error:
            row["refused"] = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        record(**row)


def _measured(make, work, rows, rehearsal):
    training = make(work, rows, rehearsal)
    try:
        training.advance(CHECK_STEPS)
        error, expected = work.error(training.hosted()), work.error(work.after(CHECK_STEPS))
        if not abs(error - expected) <= SAME_ERROR:
            raise ValueError(f"wrong, so not timed: mean |error| is {error:.6f} after {CHECK_STEPS} steps, and the "
                             f"core's is {expected:.6f}")  # fmt: skip
        steps = 1
        while True:  # until a sample is long enough for the clock
            training.restart()
            began = time.perf_counter()
            training.advance(steps)
            training.wait()
            seconds = time.perf_counter() - began
            if seconds >= SAMPLE_SECONDS or steps >= (64 if rehearsal else MOST_STEPS):
                break
            steps *= 2 if seconds > SAMPLE_SECONDS / 8 else 8
        found = _samples(lambda: training.advance(steps), training.wait, training.clock, SAMPLES, steps)
    finally:
        training.close()
    if rehearsal:
        return {"error": error}
    step = found["device_seconds"] or found["seconds"]
    inputs, outputs = work.layer_sizes[0], work.layer_sizes[-1]
    products = sum(i * o for i, o in zip(work.layer_sizes, work.layer_sizes[1:]))
    # Forward, updates, and errors sent back to all layers but the first: two operations a weight and row each.
    operations = 2 * rows * (3 * products - inputs * work.layer_sizes[1])
    return found | {
        "error": error, "bytes_a_second": 4 * rows * (inputs + outputs) / step["median"],
        "operations_a_second": operations / step["median"],
    }  # fmt: skip


def _samples(call, wait, clock, least, steps=1):
    """Seconds a step: by the caller's clock, and by the device's events where the library has them."""
    call()
    wait()
    wall: list[float] = []
    device: list[float] = []
    while len(wall) < least or (sum(wall) * steps < CASE_SECONDS and len(wall) < 5 * least):
        events = clock()
        began = time.perf_counter()
        if events:
            events[0]()
        call()
        if events:
            events[1]()
        wait()
        wall.append((time.perf_counter() - began) / steps)
        if events:
            device.append(events[2]() / steps)
    return {"steps_a_sample": steps, "seconds": _summary(wall), "device_seconds": _summary(device) if device else None}


def _summary(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "spread": float((high - low) / middle), "samples": len(values)}


def _cupy_clock():
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    return begin.record, end.record, lambda: 1e-3 * cupy.cuda.get_elapsed_time(begin, end)


RECIPROCAL = """
extern "C" __global__ void all_reciprocals(unsigned int* wrong) {
    const unsigned int first = 0x00800000u, last = 0x7e800000u;  // 2**-126 to 2**126
    unsigned int mine = 0;
    for (unsigned int b = first + blockIdx.x * blockDim.x + threadIdx.x; b <= last; b += gridDim.x * blockDim.x) {
        const float d = __uint_as_float(b);
        mine += reciprocal(d) != __frcp_rn(d);
    }
    if (mine) atomicAdd(wrong, mine);
}
"""


SUBNORMAL = "Adam's means of tiny updates are the same bytes on GPU and CPU"


def reciprocal_options():
    """The compiler's options for `RECIPROCAL` behind the kernel of `NARROW`."""
    from bpaccel.engines.cuda import Cuda

    options = Cuda.options(workload(NARROW).objective, "float32", weighted=False, vector=True)
    return (*options, f"-DMIN_BLOCKS={Cuda.blocks_at_once[0]}")


def proofs(record, rehearsal):
    """What makes the fused kernel's bits the same everywhere, looked at where it counts: on the GPU."""
    from bpaccel.engines import cuda

    kind, place = _kernels("cuda", rehearsal), "numpy" if rehearsal else "cupy"
    work = workload(NARROW)
    if rehearsal:
        record(proof="1 / d of the kernel is IEEE's for every float32 from 2**-126 to 2**126",
               passed=None, why="it is about the GPU's own instruction")  # fmt: skip
    else:
        import cupy

        module = cupy.RawModule(code=cuda.SOURCE.read_text() + RECIPROCAL, options=reciprocal_options())
        wrong = cupy.zeros(1, cupy.uint32)
        module.get_function("all_reciprocals")((4096,), (256,), (wrong,))
        record(proof="1 / d of the kernel is IEEE's for every float32 from 2**-126 to 2**126",
               passed=int(wrong[0]) == 0, wrong=int(wrong[0]))  # fmt: skip

    for dtype in ("float32", "float64"):
        for rows in (4, 1000, 4 * 5000) if rehearsal else (4, 1000, 4 * 5000, 4 * 300_001):
            runs = {_bits(work, rows, kind, place, dtype) for _ in range(2 if rehearsal else 20)}
            where = {"dtype": dtype, "rows": rows}
            record(proof="every run gives the same bytes", passed=len(runs) == 1, **where)
            try:
                host = _bits(work, rows, stand_in(cuda.Cuda), "numpy", dtype)
            except RuntimeError as error:  # no g++
                record(proof="GPU and CPU give the same bytes", passed=None, why=str(error), **where)
            else:
                record(proof="GPU and CPU give the same bytes", passed=runs == {host}, **where)
    tiny = replace(work, X=1e-20 * work.X)  # so that means of squares would be subnormal
    try:
        found = {_bits(tiny, 1000, *at, "float32", "adam") for at in ((kind, place), (stand_in(cuda.Cuda), "numpy"))}
    except RuntimeError as error:
        record(proof=SUBNORMAL, passed=None, why=str(error))
    else:
        record(proof=SUBNORMAL, passed=len(found) == 1)


def _bits(work, rows, kind, place, dtype, solver="gradient_descent"):
    """All bytes that three steps leave: of weights, the solver's state and totals."""
    training = Engines(work, rows, kind, place, dtype, solver)
    training.advance(3)
    state = [x for group in training.state for x in group]
    results = [*training.hosted(), *map(training.backend.to_numpy, [*state, training.totals])]
    training.close()
    return b"".join(x.tobytes() for x in results)


def counters(record, rehearsal):
    """A few steps on many rows, for ncu to count what their launches do."""
    for rows in (2**14,) if rehearsal else (2**20, 2**24, 2**28):
        training = PROVIDERS["bpaccel cuda (launches)"](workload(NARROW), rows, rehearsal)
        training.advance(3)
        training.wait()
        training.close()
        record(rows=rows)


def short(record, rehearsal):
    """A few steps of every kernel on few rows, for compute-sanitizer."""
    if not rehearsal:
        import cupy

        cupy.cuda.set_allocator(None)  # from the driver each time: in a pool, no access is out of bounds
    place = "numpy" if rehearsal else "cupy"
    for name, sizes, rows in (
        ("cuda", (3, 4, 1), 5), ("cuda", (3, 4, 1), 5003), ("cuda", (4, 3, 2), 259),
        ("wide", (3, 4, 1), 5), ("wide", (7, 33, 10), 259),
    ):  # fmt: skip
        hidden, output = ("tanh",) * (len(sizes) - 2), "softmax" if sizes[-1] > 1 else "sigmoid"
        case = testing.Case(sizes, (*hidden, output), "log_loss", "float32", bias=True, weighted=True, n=rows)
        testing.check_case(_kernels(name, rehearsal), case, place)
        record(engine=name, case=str(case), passed=True)
    # Whole steps: in one CUDA block, in a grid whose blocks wait for each other, and in a launch for each.
    for rows, name in ((8, "bpaccel cuda"), (20_000, "bpaccel cuda"), (20_000, "bpaccel cuda (launches)")):
        training = PROVIDERS[name](workload(NARROW), rows, rehearsal)
        training.advance(3)
        training.wait()
        training.close()
        record(engine=name, case=f"3 steps of {rows:,} rows", passed=True)
    # Rows on the host, through buffers of one block, are the same bytes as on the device.
    buffers.BUFFER_BYTES = 1
    kind, case = _kernels("cuda", rehearsal), testing.Case(NARROW, ("sigmoid",) * 2, "squared_error", "float32")
    weights, X, y, _ = replace(case, n=2 * kind.shares * kind.share_rows() + 77).arrays()
    where, found = backend(place), set()
    for form in (Rows, testing.ChunkedRows):
        engine = kind(case.objective(), form(X, y, backend=where, dtype="float32"))
        sums = engine.sums([where.asarray(W, "float32") for W in weights], None, 0, len(X))
        found.add(b"".join(where.to_numpy(x).tobytes() for x in [*sums.updates, sums.totals]))
        engine.close()
    record(engine="cuda", case="rows on the host", passed=len(found) == 1)


# --- as a command ----------------------------------------------------------------------------------------------------

PARTS = {
    "describe": describe,
    "bandwidth": bandwidth,
    "measure": measure,
    "counters": counters,
    "proofs": proofs,
    "short": short,
}


def main(arguments=None):
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--results", default=os.devnull, metavar="FILE")
    options = parser.parse_args(arguments)
    wrong = False
    with open(options.results, "a", buffering=1) as file:

        def record(**row):
            nonlocal wrong
            wrong |= row.get("passed") is False
            print(json.dumps(row, default=float), file=file)

        PARTS[options.part](record, "BPACCEL_REHEARSAL" in os.environ, *options.arguments)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
