"""The fused engine for GPUs: one pass over the rows, whole steps on the device, for networks that fit in registers.

The kernel is `mlp.cu`: the lesson for one row, in CUDA C++, compiled for a network by CuPy when it is first needed.
Rows in host memory, also memory maps larger than the GPU's memory, pass through two buffers while the kernel works on
the one before.
"""

import functools
from itertools import pairwise
from pathlib import Path

import numpy as np

from bpaccel.engines import Sums
from bpaccel.engines.buffers import Buffers
from bpaccel.engines.kernels import Kernels
from bpaccel.losses import kernel_name
from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop

SOURCE = Path(__file__).with_name("mlp.cu")
# What a thread may keep in 32-bit registers (see `Cuda.registers`), of the 255 that it has. Of 160 networks between 160
# and 180, drawn at random and compiled for five kinds of chips (NVRTC 13.5, one CUDA block on a multiprocessor), two
# moved 16 bytes to memory, and the others nothing.
MOST_REGISTERS = 180
# Their formulas keep more numbers at once than those of the others.
LONG_FORMULAS = {"softplus", "elu", "exp", "softmax", "log_loss", "poisson"}

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


class Cuda(Kernels):
    """One fused pass over the rows on a GPU; and the steps of all our solvers.

    Three ways lead to the same bits: all steps in one CUDA block, for few rows; all steps in one launch whose CUDA
    blocks wait for each other between them, for rows that stay in the cache; and a launch a step, for many.

    Attributes
    ----------
    threads_of_a_block, sweeps : int
        How rows are cut: a share, which is this engine's block, is what a CUDA block sums at once, four neighbouring
        rows a thread, ``sweeps`` times. They fix every bit of the result.
    shares : int
        How many shares are a group, whose sums meet first: a power of two. It changes no bit.
    blocks_at_once : tuple of int
        How many CUDA blocks a multiprocessor is to hold at once: the first with which the compiler moves no number
        from registers to memory. It changes no bit.
    """

    name = "cuda"
    same_bits = True
    threads_of_a_block, sweeps, shares = 256, 4, 64
    blocks_at_once = (3, 2, 1)

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self._shapes = [(i + objective.bias, o) for i, o in pairwise(objective.layer_sizes)]
        self._ends = np.cumsum([i * o for i, o in self._shapes])
        self._order = None, None
        with self.device:
            self._arrays = None if rows.arrays is None else self.entered(rows.arrays)
        properties = self.device.attributes
        self.cooperative = bool(properties["CooperativeLaunch"])
        self.processors, self.cache_bytes = properties["MultiProcessorCount"], properties["L2CacheSize"]

    @functools.cached_property
    def buffers(self):
        """Where rows from the host pass through."""
        return Buffers(self.cupy, self.rows, self.objective.layer_sizes, self.group_rows())

    def close(self):
        super().close()
        if buffers := self.__dict__.pop("buffers", None):
            buffers.close()

    @classmethod
    def refuses(cls, objective, rows, solver):
        if trouble := cls.out_of_reach(rows.backend):
            return trouble
        if not objective.shipped:
            return "it cannot compile activations or losses of your own. Use engine='blocked'."
        need = cls.registers(objective, rows.dtype, weighted=True, vector=False)
        if need > MOST_REGISTERS:
            what = f"a thread would keep {need} registers' worth of weights, their sums and a row in {rows.dtype}"
            return f"{what}, and can keep {MOST_REGISTERS}. Use engine='auto'."
        return None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return cls.share_rows()

    @classmethod
    def share_rows(cls):
        """The rows that a CUDA block sums at once."""
        return 4 * cls.threads_of_a_block * cls.sweeps

    @classmethod
    def group_rows(cls):
        """The rows of a group of shares. A launch that takes a part of a step begins with a group."""
        return cls.shares * cls.share_rows()

    @classmethod
    def registers(cls, objective, dtype, *, weighted, vector):
        """The 32-bit registers that a thread keeps busy: weights, their sums, the rows being read, and formulas."""
        names, outputs = {objective.loss.name, *(f.name for f in objective.activations)}, objective.layer_sizes[-1]
        # Of an output its sum, the answer, the error and the delta; and what the formulas hold.
        numbers = 2 * _count(objective) + 2 + weighted + 4 * outputs + (12 if names & LONG_FORMULAS else 6)
        row = objective.layer_sizes[0] + outputs + weighted
        words = 1 if dtype == "float32" else 2
        return words * (numbers + 4 * row) if vector else words * (numbers + row) + 16  # 16: of strides and addresses

    @classmethod
    def options(cls, objective, dtype, *, weighted, vector):
        """The compiler's options for a network: everything that `mlp.cu` wants to know but MIN_BLOCKS."""
        names, loss = [f.name for f in objective.activations], objective.loss
        number = loss.name.partition(":")[2]
        macros = {
            "SIZES": ",".join(map(str, objective.layer_sizes)),
            "BIAS": int(objective.bias),
            "ACTIVATIONS": ",".join(f"activation::{f}" for f in names),
            "LOSS": f"loss::{kernel_name(loss)}",
            "LOSS_NUMBER": float(number or 0.0),
            "CANCELS": int(objective.activations[-1] in loss.cancels),
            "FLOAT64": int(dtype == "float64"),
            "WEIGHTED": int(weighted),
            "VECTOR": int(vector),
            "THREADS": cls.threads_of_a_block,
            "SWEEPS": cls.sweeps,
            "SHARES": cls.shares,
        }
        # No multiplication and addition are fused but those that the source names: the same bits everywhere.
        return ("-std=c++17", "-fmad=false", *(f"-D{name}={value}" for name, value in macros.items()))

    def kernel(self, arrays, *, aligned, cooperative):
        """The compiled kernel for arrays, and how many CUDA blocks of it a multiprocessor holds at once.

        ``aligned`` says whether steps begin where rows can be read 16 bytes at a time.
        """
        network, weighted = (self.objective, self.rows.dtype), arrays[2] is not None
        fits = self.registers(*network, weighted=weighted, vector=True) <= MOST_REGISTERS
        vector = fits and aligned and all(map(_packed, arrays))
        options = self.options(*network, weighted=weighted, vector=vector)
        return _kernel(self.cupy, options, self.blocks_at_once, cooperative, self.device.id)

    def block(self, weights, X, y, w):
        with self.device:
            return self._sums(weights, self.entered((X, y, w)), None, 0, X.shape[0])

    def sums(self, weights, order, start, stop):
        with self.device:
            return self._sums(weights, self._arrays, order, start, stop)

    def run(self, weights, solver, state, batches, rates, step):
        if type(solver) not in SOLVERS:
            return super().run(weights, solver, state, batches, rates, step)
        with self.device:
            job = _Job(self, weights, state, batches.starts, batches.stops)
            job.settle_by(solver, rates, step)
            job.take(self._arrays, batches.order)
            return self._matrices(job.weights), tuple(map(self._matrices, job.state)), self.left(job.totals)

    def _sums(self, weights, arrays, order, start, stop):
        job = _Job(self, weights, (), [start], [stop])
        job.take(arrays, order)
        return Sums(self._matrices(job.sums), self.left(job.totals[0, :3]))

    def on_device(self, order):
        """An epoch's order, moved there once."""
        if self._order[0] is not order:
            self._order = order, self.cupy.asarray(np.asarray(order, np.int64))
        return self._order[1]

    def flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        return self.cupy.concatenate([W.ravel() for W in self.entered(matrices)]).astype(self.rows.dtype, copy=False)

    def _matrices(self, flat):
        begins = [0, *self._ends[:-1]]
        return [self.left(flat[a:b].reshape(shape)) for a, b, shape in zip(begins, self._ends, self._shapes)]


@functools.cache
def _kernel(cupy, options, choices, cooperative, device):
    """The compiled kernel for a device, and the first of the choices of MIN_BLOCKS with which it spills nothing.

    CuPy keeps it on the disk, too.
    """
    source, kernel, blocks = SOURCE.read_text(), None, 0
    for blocks in choices:
        chosen = (*options, f"-DMIN_BLOCKS={blocks}")
        module = cupy.RawModule(code=source, options=chosen, enable_cooperative_groups=cooperative)
        kernel = module.get_function("train")
        if not kernel.local_size_bytes:
            break
    return kernel, blocks


class _Job:
    """The steps of one call, and what the kernel reads and writes beside the rows."""

    def __init__(self, engine, weights, state, starts, stops):
        cp = self.cp = engine.cupy
        self.engine = engine
        self.starts, self.stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        if (self.stops <= self.starts).any():  # no CUDA block would end such a step, and a grid would wait for ever
            j = int((self.stops <= self.starts).argmax())
            raise ValueError(f"`stops` must be greater than `starts`, for a step takes at least one row; got "
                             f"{self.stops[j]} after {self.starts[j]}, of step {j}. Leave that step out.")  # fmt: skip
        self.rows = int((self.stops - self.starts).max())
        self.steps = len(self.starts)
        self.bounds = cp.asarray(self.starts), cp.asarray(self.stops)
        self.weights, self.state = engine.flat(weights), tuple(map(engine.flat, state))
        self.totals = cp.empty((self.steps, 4), np.float64)
        self.sums = cp.empty(self.weights.shape, np.float64)
        self.solver, self.rules, self.rates = NOTHING, cp.zeros(7), cp.zeros((self.steps, 3), engine.rows.dtype)

    def settle_by(self, solver, rates, step):
        """The solver whose steps are taken, the first of them numbered ``step``."""
        o = self.engine.objective
        self.solver, names = SOLVERS[type(solver)]
        rules = [o.reduction == "mean", o.l1, o.l2, o.clip or 0.0, *(getattr(solver, name) for name in names)]
        self.rules = self.cp.asarray(np.array([*rules, *[0.0] * (7 - len(rules))], np.float64))
        # The rate; what remains of the weights; and by what the root of the mean squares is divided.
        steps = np.ones((len(rates), 3))
        steps[:, 0] = rates
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
        if arrays is None:
            self._stream(order)
            return
        e = self.engine
        alone = self.rows <= e.share_rows()
        stay = self.rows * _row_bytes(arrays) <= e.cache_bytes
        together = not alone and self.steps > 1 and e.cooperative and stay
        work = self._work(self.rows, weighted=arrays[2] is not None)
        aligned = order is None and not (self.starts % 4).any()
        launch = _Launch(self, arrays, order, work, aligned=aligned, cooperative=together)
        if alone or together:
            launch(0, self.rows, steps=self.steps, blocks=1 if alone else None)
        else:
            for j in range(self.steps):
                launch(j, self.rows)

    def _stream(self, order):
        """Take all steps over rows on the host, a buffer at a time."""
        buffers = self.engine.buffers
        work = self._work(min(self.rows, buffers.rows), weighted=buffers.pair[0].arrays[2] is not None)
        launches = [_Launch(self, buffer.arrays, None, work, aligned=True) for buffer in buffers.pair]
        for j, (start, stop) in enumerate(zip(self.starts.tolist(), self.stops.tolist())):
            for number, first, end in buffers.filled(start, stop, order):
                launches[number](j, end - first, first=first - start, origin=first)

    def _work(self, launched, *, weighted):
        """Where sums of shares and groups wait, and the counters, for launches of at most so many rows."""
        e, cp = self.engine, self.cp
        numbers = self.weights.size + 2 + weighted
        shares, groups = -(-launched // e.share_rows()), -(-self.rows // e.group_rows())
        return (cp.empty(shares * numbers, np.float64), cp.empty(groups * numbers, np.float64),
                cp.zeros(2 + -(-shares // e.shares), np.uint32))  # fmt: skip


class _Launch:
    """Launches of a job's kernel over the same arrays: what they have in common is put together once."""

    def __init__(self, job, arrays, order, work, *, aligned, cooperative=False):
        e = job.engine
        X, y, w = arrays
        self._kernel, blocks = e.kernel(arrays, aligned=aligned, cooperative=cooperative)
        self._resident = e.processors * blocks
        self._share_rows, self._threads = e.share_rows(), e.threads_of_a_block
        self._before = (
            *(X, y, X if w is None else w),
            *(np.int64(step) for step in (*_steps(X), *_steps(y), *(_steps(w) if w is not None else (0,)))),
            job.bounds[0] if order is None else e.on_device(order), np.int32(order is not None),
        )  # fmt: skip
        self._between = *job.bounds, job.rates
        self._after = (*(job.weights, *job.state, job.weights, job.weights)[:3],
                       job.rules, np.int32(job.solver), job.totals, job.sums, *work)  # fmt: skip

    def __call__(self, step, rows, *, steps=1, blocks=None, first=0, origin=0):
        """Take some steps from ``step`` on, of each ``rows`` rows from its ``first`` on, the arrays' first row being
        numbered ``origin``."""
        shares = -(-rows // self._share_rows)
        threads = self._threads if shares > 1 else min(self._threads, -(-rows // 32) * 32)
        begin = first // self._share_rows
        places = np.array([origin, step, steps, begin, begin + shares])  # of int64
        arguments = (*self._before, places[0], *self._between, *places[1:], *self._after)
        self._kernel((blocks or min(shares, self._resident),), (threads,), arguments)


def _count(objective):
    """The weights of a network."""
    return sum((i + objective.bias) * o for i, o in pairwise(objective.layer_sizes))


def _row_bytes(arrays):
    """What the kernel reads for a row."""
    return sum(x.itemsize * x.size // len(x) for x in arrays if x is not None)


def _steps(x):
    """Elements from one to the next, along each axis."""
    return [step // x.itemsize for step in x.strides]


def _packed(x):
    """Whether the kernel can read an array, if there is one, 16 bytes at a time."""
    return x is None or (x.flags.c_contiguous and x.data.ptr % 16 == 0)
