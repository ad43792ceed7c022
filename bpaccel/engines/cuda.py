"""The fused engine for GPUs: one pass over the rows, whole steps on the device, for networks that fit in registers.

The kernel is `mlp.cu`: the lesson for one row, in CUDA C++, compiled for a network by CuPy when it is first needed.
Arrays of torch and JAX on a CUDA device enter and leave by DLPack, without a copy. Rows in host memory, also memory
maps larger than the GPU's memory, pass through two buffers while the kernel works on the one before.
"""

import functools
import importlib
from itertools import pairwise
from pathlib import Path

import numpy as np

from bpaccel.engines import Engine, Sums
from bpaccel.libraries import why_not
from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop

SOURCE = Path(__file__).with_name("mlp.cu")
# How many CUDA blocks of 256 threads a multiprocessor may hold at once, by what a thread keeps in 32-bit registers (see
# `Cuda.registers`), set by the compiler's reports: so none of the networks that were compiled moves a number to memory.
MIN_BLOCKS = ((60, 3), (74, 2), (195, 1))
# From compute capability 10.0 on, the compiler keeps some more registers where it may keep few: 3-4-1 in 80 of them
# spilled 8 to 24 bytes a thread there, and nothing on older chips.
NEWER_CHIP, NEWER_REGISTERS = 100, 6
# Their formulas keep more numbers at once than those of the others.
LONG_FORMULAS = {"softplus", "elu", "exp", "softmax", "log_loss", "poisson"}
# From so many rows a step on, a step takes longer than launching the next.
COOPERATIVE_ROWS = 2**21
# Rows from host memory are moved in buffers of at least so many bytes: enough for the bus to run at full speed.
BUFFER_BYTES = 64 * 2**20

# By exact type: a subclass may do something else, and is called step by step. The places in the kernel's enum.
SOLVERS = {
    GradientDescent: (1, ()),
    Momentum: (2, ("momentum",)),
    Nesterov: (3, ("momentum",)),
    Adam: (4, ("beta_1", "beta_2", "epsilon")),
    AdamW: (4, ("beta_1", "beta_2", "epsilon")),
    RMSprop: (5, ("alpha", "epsilon", "momentum")),
}
NOTHING = 0  # no solver: the sums are wanted


class Cuda(Engine):
    """One fused pass over the rows on a GPU; and the steps of all our solvers.

    Three ways lead to the same bits: all steps in one CUDA block, for few rows; all steps in one launch whose CUDA
    blocks wait for each other between them; and a launch a step, for many rows.

    Attributes
    ----------
    threads_of_a_block, sweeps, shares : int
        How rows are cut: a share is what a CUDA block sums at once, four neighbouring rows a thread, ``sweeps`` times;
        a block is that many shares. They fix every bit of the result.
    """

    name = "cuda"
    same_bits = True
    threads_of_a_block, sweeps, shares = 256, 4, 64

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self.cupy = self.library()
        self._shapes = [(i + objective.bias, o) for i, o in pairwise(objective.layer_sizes)]
        self._ends = np.cumsum([i * o for i, o in self._shapes])
        self._order = None, None
        self._arrays = None if rows.arrays is None else self._entered(rows.arrays)
        device = self.cupy.cuda.Device()
        properties, self.chip = device.attributes, int(device.compute_capability)
        self.cooperative = bool(properties["CooperativeLaunch"])
        self.processors = properties["MultiProcessorCount"]

    @functools.cached_property
    def buffers(self):
        """Where rows from the host pass through."""
        return _Buffers(self)

    def close(self):
        super().close()
        self.__dict__.pop("buffers", None)

    @classmethod
    def library(cls):
        """The module that launches kernels: CuPy."""
        return importlib.import_module("cupy")

    @classmethod
    def reaches(cls, backend):
        """Whether arrays of a backend are in a CUDA device's memory."""
        place = str(backend.device).lower()  # "cuda:0" on torch and JAX
        return backend.library.name == "cupy" or (backend.library.name in ("torch", "jax") and place.startswith("cuda"))

    @classmethod
    def refuses(cls, objective, rows, solver):
        if not cls.reaches(rows.backend):
            return (f"it computes on a CUDA device, and the rows are on {rows.backend.name}. "
                    "Use backend='cupy', or give CuPy arrays.")  # fmt: skip
        if trouble := cls.trouble():
            return f"it needs CuPy, which is {trouble}."
        if not objective.known:
            return "it cannot compile activations or losses of your own. Use engine='blocked'."
        need, most = cls.registers(objective, rows.dtype, weighted=True, vector=False), MIN_BLOCKS[-1][0]
        if need > most:
            what = f"a thread would keep {need} registers' worth of weights, their sums and a row in {rows.dtype}"
            return f"{what}, and can keep {most}. Use engine='auto'."
        return None

    @classmethod
    def trouble(cls):
        """Why kernels cannot be launched here, in words; None where they can."""
        return why_not("cupy")

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return cls.shares * cls.share_rows()

    @classmethod
    def share_rows(cls):
        """The rows that a CUDA block sums at once."""
        return 4 * cls.threads_of_a_block * cls.sweeps

    @classmethod
    def registers(cls, objective, dtype, *, weighted, vector):
        """The 32-bit registers that a thread keeps busy: weights, their sums, the rows being read, and formulas."""
        names = {objective.loss.name, *(f.name for f in objective.activations)}
        numbers = 2 * _count(objective) + 2 + weighted + (16 if names & LONG_FORMULAS else 10)
        row = objective.layer_sizes[0] + objective.layer_sizes[-1] + weighted
        words = 1 if dtype == "float32" else 2
        return words * (numbers + 4 * row) if vector else words * (numbers + row) + 16  # 16: of strides and addresses

    @classmethod
    def min_blocks(cls, objective, dtype, *, weighted, vector, chip):
        """CUDA blocks that a multiprocessor of a chip (90: compute capability 9.0) holds at once; None if a thread's
        registers are not enough."""
        need = cls.registers(objective, dtype, weighted=weighted, vector=vector)
        more = NEWER_REGISTERS if chip >= NEWER_CHIP else 0
        return next((blocks for most, blocks in MIN_BLOCKS if need + more * (blocks > 1) <= most), None)

    @classmethod
    def macros(cls, objective, dtype, *, weighted, vector, chip):
        """The compiler's options for a network: everything that `mlp.cu` wants to know."""
        names, loss = [f.name for f in objective.activations], objective.loss
        name, _, number = loss.name.partition(":")
        macros = {
            "SIZES": ",".join(map(str, objective.layer_sizes)),
            "BIAS": int(objective.bias),
            "ACTIVATIONS": ",".join(f"activation::{f}" for f in names),
            "LOSS": f"loss::{'categorical' if loss.outputs == ('softmax',) else name}",
            "LOSS_NUMBER": float(number or 0.0),
            "CANCELS": int(names[-1] in loss.cancels),
            "FLOAT64": int(dtype == "float64"),
            "WEIGHTED": int(weighted),
            "VECTOR": int(vector),
            "THREADS": cls.threads_of_a_block,
            "SWEEPS": cls.sweeps,
            "SHARES": cls.shares,
            "MIN_BLOCKS": cls.min_blocks(objective, dtype, weighted=weighted, vector=vector, chip=chip),
        }
        # No multiplication and addition are fused but those that the source names: the same bits everywhere.
        return ("-std=c++17", "-fmad=false", *(f"-D{name}={value}" for name, value in macros.items()))

    def block(self, weights, X, y, w):
        return self._sums(weights, self._entered((X, y, w)), None, 0, X.shape[0])

    def sums(self, weights, order, start, stop):
        return self._sums(weights, self._arrays, order, start, stop)

    def run(self, weights, solver, state, batches, rates, step):
        if type(solver) not in SOLVERS:
            return super().run(weights, solver, state, batches, rates, step)
        job = _Job(self, weights, state, batches.starts, batches.stops)
        job.settle_by(solver, rates, step)
        job.take(self._arrays, batches.order)
        return self._matrices(job.weights), tuple(map(self._matrices, job.state)), self._left(job.totals)

    def _sums(self, weights, arrays, order, start, stop):
        job = _Job(self, weights, (), [start], [stop])
        job.take(arrays, order)
        return Sums(self._matrices(job.sums), self._left(job.totals[0, :3]))

    def on_device(self, order):
        """An epoch's order, moved there once."""
        if self._order[0] is not order:
            self._order = order, self.cupy.asarray(np.asarray(order, np.int64))
        return self._order[1]

    # DLPack also makes CuPy's stream wait for what torch and JAX have still to compute, and theirs for ours.
    def _entered(self, arrays):
        """Arrays of the backend as CuPy's, in the same memory."""
        own = self.cupy.ndarray
        return [x if x is None or isinstance(x, own) else self.cupy.from_dlpack(x) for x in arrays]

    def _left(self, x):
        """An array of CuPy's as the backend's: in the same memory, unless the backend lacks its dtype."""
        backend = self.rows.backend
        if x.dtype.name not in backend.floats:
            x = x.astype(backend.widest)
        return x if backend.library.name == "cupy" else backend.xp.from_dlpack(x)

    def flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        return self.cupy.concatenate([W.ravel() for W in self._entered(matrices)]).astype(self.rows.dtype, copy=False)

    def _matrices(self, flat):
        begins = [0, *self._ends[:-1]]
        return [self._left(flat[a:b].reshape(shape)) for a, b, shape in zip(begins, self._ends, self._shapes)]


@functools.cache
def _kernel(cupy, options, cooperative):
    """The compiled kernel: CuPy keeps it on the disk, too."""
    module = cupy.RawModule(code=SOURCE.read_text(), options=options, enable_cooperative_groups=cooperative)
    return module.get_function("train")


class _Job:
    """The steps of one call, and what the kernel reads and writes beside the rows."""

    def __init__(self, engine, weights, state, starts, stops):
        cp = self.cp = engine.cupy
        self.engine = engine
        self.starts, self.stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        self.rows = int((self.stops - self.starts).max())
        self.steps = len(self.starts)
        self.on_device = cp.asarray(self.starts), cp.asarray(self.stops)
        self.weights, self.state = engine.flat(weights), tuple(map(engine.flat, state))
        self.totals = cp.empty((self.steps, 4), np.float64)
        self.sums = cp.empty(self.weights.shape, np.float64)
        self.solver, self.rules, self.rates = NOTHING, cp.zeros(7), cp.zeros((self.steps, 3), engine.rows.dtype)
        self.work = None

    def settle_by(self, solver, rates, step):
        """The solver whose steps are taken, the first of them numbered ``step``."""
        o = self.engine.objective
        self.solver, names = SOLVERS[type(solver)]
        rules = [o.reduction == "mean", o.l1, o.l2, o.clip or 0.0, *(getattr(solver, name) for name in names)]
        self.rules = self.cp.asarray(np.array([*rules, *[0.0] * (7 - len(rules))], np.float64))
        # The rate; what remains of the weights; and by what the root of the mean squares is divided.
        steps = np.array([(rate, 1.0, 1.0) for rate in rates])
        if isinstance(solver, Adam):  # whose means began at 0
            powers = np.arange(step + 1, step + 1 + len(rates))
            root = (1.0 - solver.beta_2**powers) ** 0.5
            steps[:, 0] /= 1.0 - solver.beta_1**powers
            if isinstance(solver, AdamW):
                steps[:, 1] -= np.multiply(rates, solver.weight_decay)
                steps[:, 2] = root
            else:
                steps[:, 0] *= root
        self.rates = self.cp.asarray(steps.astype(self.engine.rows.dtype))

    def take(self, arrays, order):
        """Take all steps, over arrays on the device, or over what `Rows` reads on the host."""
        e = self.engine
        if arrays is None:
            for j in range(self.steps):
                self._stream(order, j)
        elif self.rows <= e.share_rows():
            self._launch(arrays, order, blocks=1, steps=self.steps)
        elif self.steps > 1 and e.cooperative and self.rows <= COOPERATIVE_ROWS:
            self._launch(arrays, order, steps=self.steps, cooperative=True)
        else:
            for j in range(self.steps):
                self._launch(arrays, order, step=j)

    def _launch(self, arrays, order, *, blocks=None, step=0, steps=1, first=0, rows=None, origin=0, cooperative=False):
        """Launch the kernel for some steps, of each for ``rows`` rows from its ``first`` on."""
        e, cp = self.engine, self.cp
        X, y, w = arrays
        form = {"weighted": w is not None, "vector": True, "chip": e.chip}
        packed = order is None and not (self.starts % 4).any() and all(map(_packed, arrays))
        form["vector"] = packed and e.min_blocks(e.objective, e.rows.dtype, **form) is not None
        options = e.macros(e.objective, e.rows.dtype, **form)
        resident = e.processors * e.min_blocks(e.objective, e.rows.dtype, **form)
        rows = self.rows if rows is None else rows
        shares = -(-rows // e.share_rows())
        threads = e.threads_of_a_block if shares > 1 else min(e.threads_of_a_block, -(-rows // 32) * 32)
        if self.work is None:  # the first launch of a job is its largest
            numbers = self.weights.size + 2 + (w is not None)
            sets = -(-self.rows // e.block_rows)
            self.work = (cp.empty(shares * numbers, np.float64), cp.empty(sets * numbers, np.float64),
                         cp.zeros(2 + -(-shares // e.shares), np.uint32))  # fmt: skip
        arguments = (
            *(X, y, X if w is None else w),
            *(np.int64(step) for step in (*_steps(X), *_steps(y), *(_steps(w) if w is not None else (0,)))),
            self.on_device[0] if order is None else e.on_device(order), np.int32(order is not None), np.int64(origin),
            *self.on_device, self.rates, np.int64(step), np.int64(steps),
            *(np.int64(share) for share in (first // e.share_rows(), first // e.share_rows() + shares)),
            *(self.weights, *self.state, self.weights, self.weights)[:3],
            self.rules, np.int32(self.solver), self.totals, self.sums, *self.work,
        )  # fmt: skip
        _kernel(cp, options, cooperative)((blocks or min(shares, resident),), (threads,), arguments)

    def _stream(self, order, step):
        """One step over rows on the host: one of two buffers is filled while the kernel reads the other."""
        e, cp = self.engine, self.cp
        start, stop = int(self.starts[step]), int(self.stops[step])
        kernels = cp.cuda.get_current_stream()
        for k, at in enumerate(range(start, stop, e.buffers.rows)):
            buffer, end = e.buffers[k % 2], min(at + e.buffers.rows, stop)
            buffer.copied.synchronize()  # before what it copies from changes
            host = e.rows.on_host(at, end, order)
            for x, pinned in zip(host, buffer.pinned):
                if x is not None:
                    pinned[: end - at] = x
            e.buffers.stream.wait_event(buffer.used)  # before what the kernel reads changes
            arrays = [None if x is None else device[: end - at] for x, device in zip(host, buffer.device)]
            for device, pinned in zip(arrays, buffer.pinned):
                if device is not None:
                    device.set(pinned[: end - at], stream=e.buffers.stream)
            buffer.copied.record(e.buffers.stream)
            kernels.wait_event(buffer.copied)
            self._launch(arrays, None, step=step, first=at - start, rows=end - at, origin=at)
            buffer.used.record(kernels)


class _Buffers:
    """Two buffers for rows from the host: pinned memory, memory on the device, and events that say who has done."""

    def __init__(self, engine):
        cp, (inputs, *_, outputs), dtype = engine.cupy, engine.objective.layer_sizes, np.dtype(engine.rows.dtype)
        row_bytes = (inputs + outputs + 1) * dtype.itemsize
        blocks = max(1, BUFFER_BYTES // (row_bytes * engine.block_rows))
        self.rows = blocks * engine.block_rows
        rows = min(self.rows, engine.rows.n)
        self.stream = cp.cuda.Stream(non_blocking=True)
        self._pair = [_Buffer(cp, [(rows, inputs), (rows, outputs), (rows,)], dtype) for _ in range(2)]

    def __getitem__(self, k):
        return self._pair[k]


class _Buffer:
    def __init__(self, cp, shapes, dtype):
        self.pinned = [_pinned(cp, shape, dtype) for shape in shapes]
        self.device = [cp.empty(shape, dtype) for shape in shapes]
        self.copied, self.used = cp.cuda.Event(disable_timing=True), cp.cuda.Event(disable_timing=True)


def _pinned(cp, shape, dtype):
    """An array in memory that the device can read by itself, while the processor does something else."""
    size = int(np.prod(shape))
    return np.frombuffer(cp.cuda.alloc_pinned_memory(size * dtype.itemsize), dtype, size).reshape(shape)


def _count(objective):
    """The weights of a network."""
    return sum((i + objective.bias) * o for i, o in pairwise(objective.layer_sizes))


def _steps(x):
    """Elements from one to the next, along each axis."""
    return [step // x.itemsize for step in x.strides]


def _packed(x):
    """Whether the kernel can read an array, if there is one, 16 bytes at a time."""
    return x is None or (x.flags.c_contiguous and x.data.ptr % 16 == 0)
