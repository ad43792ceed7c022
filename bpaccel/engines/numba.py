"""The compiled engine for NumPy arrays: one fused pass over the rows, many steps in one call, on all cores.

The kernels are in `bpaccel.engines.fused`. They are compiled when first needed, for a dtype, the activations and the
loss, and kept on disk by Numba: a later process loads them.
"""

import ctypes
import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import numba
from bpaccel.activations import ACTIVATIONS
from bpaccel.engines import Engine, Sums, fused, lanes, vmath
from bpaccel.losses import LOSSES, _made, get
from bpaccel.solvers import Adam, GradientDescent, Momentum, Nesterov

# Rows of a block: the unit of the order of sums, and what a thread takes at once. Few enough that 10,000 rows occupy
# two threads evenly, enough that a block takes some microseconds.
BLOCK_ROWS = 1024
# What a thread's stretch of rows may fill: two thirds of the usual first cache, but no fewer than 256 rows.
STRETCH_BYTES = 32 * 2**10
# Sums of blocks kept until they are added up: numbers of float64.
SLOT_NUMBERS = 2**17
# Rows read from files and other arrays at once.
READ_BLOCKS = 64

# By exact type: a subclass may do something else, and is called step by step.
SOLVERS = {
    GradientDescent: (fused.GRADIENT_DESCENT, ()),
    Momentum: (fused.MOMENTUM, ("momentum",)),
    Nesterov: (fused.NESTEROV, ("momentum",)),
    Adam: (fused.ADAM, ("beta_1", "beta_2", "epsilon")),
}

log = logging.getLogger("bpaccel")


# Numba's cache looks at the date of one file only, and knows nothing of what that file calls: so the sources, and the
# version that compiles them, are part of the type of each kernel's first argument.
def _fingerprint():
    text = b"".join(Path(module.__file__).read_bytes() for module in (lanes, vmath, fused))
    return hashlib.sha256(text + numba.__version__.encode()).hexdigest()[:16]


SOURCE = _fingerprint()


def _processor_for_others():
    """The address of a C function that lets other threads run, or 0."""
    try:
        function = ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value


OTHERS = _processor_for_others()


class Numba(Engine):
    """One fused pass over the rows, compiled; gradient descent, momentum, Nesterov and Adam take their steps inside.

    Attributes
    ----------
    compile_seconds : float
        What compiling, or loading the compiled code from the disk, took this engine.
    """

    name = "numba"
    same_bits = True
    threaded = True

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        o, sizes = objective, objective.layer_sizes
        names = [f.name for f in o.activations]
        loss, _, number = o.loss.name.partition(":")
        dtype = np.dtype(rows.dtype)
        self._dtype = dtype
        self._kind = lanes.Kind(
            dtype.name, _lane_count(rows.n, dtype.itemsize), tuple(sorted(set(names))), names[-1], loss, source=SOURCE
        )
        self._loss_number = _number_of(o.loss) if number else 0.0
        self._sizes = np.array(sizes, np.int64)
        self._codes = np.array([vmath.CODES[name] for name in names], np.int64)
        self._shapes = [(i + o.bias, out) for i, out in zip(sizes, sizes[1:])]
        self._ends = np.cumsum([i * out for i, out in self._shapes])
        self._count = int(self._ends[-1])
        self._units = sum(sizes) + sizes[-1] + 1
        self._stretch = _stretch(self._units, dtype.itemsize)
        # Units a power of two apart would all fall on the same lines of the cache.
        self._apart = self._stretch + 64 // dtype.itemsize
        self._owner = None
        self.compile_seconds = self._compile()

    @classmethod
    def refuses(cls, objective, rows, solver):
        if rows.backend.library.name != "numpy":
            return f"it computes on NumPy arrays, and these are {rows.backend.library.name}'s. Use engine='blocked'."
        for f in objective.activations:
            if ACTIVATIONS.get(f.name) is not f:
                return f"it cannot compile the activation {f.name!r}, which is your own. Use engine='blocked'."
        if not _known(objective.loss, objective.activations[-1].name):
            return f"it cannot compile the loss {objective.loss.name!r}, which is your own. Use engine='blocked'."
        return None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return BLOCK_ROWS

    def block(self, weights, X, y, w):
        return self._sums(weights, [(X, y, w)], None, 0, len(X))

    def sums(self, weights, order, start, stop):
        if self.rows.arrays is not None:
            return self._sums(weights, [self.rows.arrays], order, start, stop)
        piece = READ_BLOCKS * self.block_rows
        pieces = (self.rows.read(at, min(at + piece, stop), order) for at in range(start, stop, piece))
        return self._sums(weights, pieces, None, None, None)

    def run(self, weights, solver, state, batches, rates, step):
        if type(solver) not in SOLVERS:
            return super().run(weights, solver, state, batches, rates, step)
        w, state = self._flat(weights), [self._flat(group) for group in state]
        totals = np.empty((len(rates), 4))
        rules, rates = self._rules(solver), np.array(rates, np.float64)
        if self.rows.arrays is not None:
            job = _Job(self, w, self.rows.arrays, batches.order, batches.starts, batches.stops)
            job.run(rules, state, rates, step, totals)
        else:  # the sums of what is read, then the step, by the same code
            for j in range(len(rates)):
                sums = self.sums(self._matrices(w), batches.order, batches.starts[j], batches.stops[j])
                job = _Job(self, w, None, None, [0], [0])
                job.u[:] = np.concatenate([*(u.ravel() for u in sums.updates), sums.totals])
                job.run(rules, state, rates[j : j + 1], step + j, totals[j : j + 1], onward=True)
        return self._matrices(w), tuple(self._matrices(group) for group in state), totals

    def _sums(self, weights, pieces, order, start, stop):
        """The sums of pieces of rows that begin at multiples of `block_rows`."""
        w, u = self._flat(weights), np.zeros(self._count + fused.TOTALS)
        for piece in pieces:
            first, last = (0, len(piece[0])) if start is None else (start, stop)
            job = _Job(self, w, piece, order, [first], [last])
            job.u = u
            job.run(self._rules(None), (), np.zeros(1), 0, np.empty((1, 4)), onward=True)
        return Sums(self._matrices(u[: self._count]), u[self._count :])

    def _rules(self, solver):
        o = self.objective
        code, names = SOLVERS.get(type(solver), (fused.NOTHING, ()))
        numbers = [float(getattr(solver, name)) for name in names] + [0.0] * (3 - len(names))
        return fused.Rules(self._loss_number, int(o.reduction == "mean"), o.l1, o.l2, float(o.clip or 0.0), code, *numbers)

    def _flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        return np.concatenate([np.asarray(W, self._dtype).ravel() for W in matrices])

    def _matrices(self, flat):
        return [part.reshape(shape) for part, shape in zip(np.split(flat, self._ends[:-1]), self._shapes)]

    def _compile(self):
        began = time.perf_counter()
        known = len(fused.drive.signatures)
        _Job(self, np.zeros(self._count, self._dtype), None, None, [], []).run(self._rules(None), (), np.zeros(0), 0, np.empty((0, 4)))
        if len(fused.drive.signatures) == known:
            return 0.0
        seconds = time.perf_counter() - began
        log.info("engine numba: compiled, or loaded from the disk, in %.1f s", seconds)
        return seconds

    def _helpers(self):
        """The pool of threads of this process: a forked child has none of its parent's."""
        if self._owner != os.getpid():
            self._pool, self._owner = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="bpaccel"), os.getpid()
        return self._pool


class _Job:
    """One call of the compiled loop: its rows, and memory that no other call uses."""

    def __init__(self, engine, w, arrays, order, starts, stops):
        self.engine, self.w = engine, w
        self.table, self.kept = _table(arrays)
        self.order = np.empty(0, np.int64) if order is None else np.ascontiguousarray(order, np.int64)
        self.starts, self.stops = np.array(starts, np.int64), np.array(stops, np.int64)
        length = engine._count + fused.TOTALS
        rows = int((self.stops - self.starts).max()) if len(self.starts) else 0
        blocks = -(-rows // engine.block_rows)
        self.threads = min(engine.threads, max(blocks, 1))
        if rows * engine._count < THREADED_WORK:
            self.threads = 1
        self.slots = max(1, min(blocks, max(SLOT_NUMBERS // length, 4 * self.threads)))
        self.g = np.empty(self.slots * length)
        self.u = np.zeros(length)

    def run(self, rules, state, rates, step, totals, onward=False):
        shared = _aligned(8 * fused.WORDS)
        shared[:] = 0
        word = shared.view(np.int64)
        addresses = [group.ctypes.data for group in state] + [0] * (2 - len(state))

        def drive(helper):
            e = self.engine
            scratch = _aligned(e._units * e._apart * e._dtype.itemsize)
            fused.drive(
                e._kind, shared.ctypes.data, helper, int(self.threads == 1), self.table, self.order, self.starts,
                self.stops, e._sizes, e._codes, int(e.objective.bias), e._units, self.w.ctypes.data, e._count,
                e.block_rows, scratch.ctypes.data, e._stretch, e._apart, self.g, self.slots, self.u, int(onward),
                rules, *addresses, rates, step, totals, OTHERS,
            )  # fmt: skip

        try:
            for _ in range(self.threads - 1):
                self.engine._helpers().submit(drive, 1)
            drive(0)
        finally:  # also when Ctrl-C came just before: helpers then find nothing more to do
            word[fused.END] = 1


def _table(arrays):
    """Where the rows lie, and what must be kept meanwhile."""
    if arrays is None:
        return fused.Table(*[0] * 8), ()
    X, y, w = (x if x is None or _readable(x) else np.array(x, x.dtype.newbyteorder("=")) for x in arrays)
    size = X.itemsize
    steps = [x.strides[axis] // size for x in (X, y) for axis in (0, 1)]
    weight = (0, 0) if w is None else (w.ctypes.data, w.strides[0] // size)
    return fused.Table(X.ctypes.data, *steps[:2], y.ctypes.data, *steps[2:], *weight), (X, y, w)


def _readable(x):
    """Whether the kernels can read an array where it is; one with numbers at odd places is copied."""
    return x.flags.aligned and x.dtype.isnative and all(step % x.itemsize == 0 for step in x.strides)


def _aligned(size, line=64):
    """Memory that begins on a cache line: lanes that straddle two take longer."""
    memory = np.empty(size + line, np.uint8)
    skip = -memory.ctypes.data % line
    return memory[skip : skip + size]


def _lane_count(rows, width):
    """Few rows in all are computed with few lanes; else four of the usual registers hold the lanes."""
    if rows <= 4:
        return 4
    return 64 // width if rows <= 16 else 128 // width


def _stretch(units, width):
    rows = BLOCK_ROWS
    while rows > 256 and rows * units * width > STRETCH_BYTES:
        rows //= 2
    return rows


def _known(loss, output):
    """Whether a loss is a row of the tables, on this output activation."""
    if loss in _made.values():
        return True
    return loss.name in LOSSES and get(loss.name, output) is loss


def _number_of(loss):
    """The number of huber:d or quantile:q, which its name may show rounded."""
    return next(number for (_, number), row in _made.items() if row is loss or row == loss)


# Below this many multiplications a step, rows times weights, a second thread gains less than it costs.
THREADED_WORK = 2**17
