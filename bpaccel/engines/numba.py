"""The compiled engine for NumPy arrays: one fused pass over the rows, many steps in one call, on all cores.

The kernels are in `bpaccel.engines.fused`. They are compiled when first needed, and kept on disk by Numba: a later
process loads them.
"""

import ctypes
import dataclasses
import functools
import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np

from bpaccel.engines import Engine, Sums, fused, lanes, unrolled, vmath
from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop

# Rows of a block: the unit of the order of sums, and what a thread takes at once. Few enough that 10,000 rows occupy
# two threads evenly, enough that a block takes some microseconds.
BLOCK_ROWS = 1024
# What a thread's stretch of rows may fill: two thirds of the usual first cache, but no fewer than 256 rows.
STRETCH_BYTES = 32 * 2**10
# Sums of blocks kept until they are added up: numbers of float64.
SLOT_NUMBERS = 2**17
# Rows read from files and other arrays at once.
READ_BLOCKS = 64
# The most weights of a network whose lesson is written out for its shape: what the registers can hold. Each shape,
# activation and loss is then compiled for itself, so only the tutorial's kind is: one activation, squared_error. On 4
# rows that is 1.5 times as fast, on many 1.1 times.
UNROLLED_WEIGHTS = 32
# Bytes that lanes fill, where a pass over the rows is a straight line of instructions, and where it is a loop over
# units, four at a time: two registers then, for eight sums are what the sixteen of AVX2 can hold beside what they are
# made of (28-32-1 in float32 took 1.6 times as long with four registers). So few rows in all take few lanes.
LESSON_BYTES = 128
LOOP_BYTES = 128 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 64
FEW_ROWS = 8
# Below this many multiplications a step, rows times weights, another thread gains little: two were 1.2 times as fast as
# one at half of it, 1.6 times at it, 1.7 times at twice.
THREADED_WORK = 2**16

# By exact type: a subclass may do something else, and is called step by step.
SOLVERS = {
    GradientDescent: (fused.GRADIENT_DESCENT, ()),
    Momentum: (fused.MOMENTUM, ("momentum",)),
    Nesterov: (fused.NESTEROV, ("momentum",)),
    Adam: (fused.ADAM, ("beta_1", "beta_2", "epsilon")),
    AdamW: (fused.ADAMW, ("beta_1", "beta_2", "epsilon", "weight_decay")),
    RMSprop: (fused.RMSPROP, ("alpha", "momentum", "epsilon")),
}

log = logging.getLogger("bpaccel")


# Numba's cache looks at the date of one file only, and knows nothing of what that file calls: so the sources, and the
# version that compiles them, are part of the type of each kernel's first argument.
def _fingerprint():
    text = b"".join(Path(str(module.__file__)).read_bytes() for module in (lanes, vmath, unrolled, fused))
    return hashlib.sha256(text + numba.__version__.encode()).hexdigest()[:16]


SOURCE = _fingerprint()


@functools.cache
def kernel(function, numbers, *kind):
    """A compiled kernel: it must be kept as long as its address is used."""
    return fused.kernel(function, dataclasses.replace(lanes.Kind(*kind), source=SOURCE), numbers)


@functools.cache
def _drive():
    compiled = kernel(fused.drive, 3, "float64", 1)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3)(compiled.address)


@functools.cache
def _others():
    """The address of a C function that lets other threads run, or 0."""
    try:
        if os.name == "nt":  # noqa: SIM108
            function = ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined]
        else:
            function = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value


class Numba(Engine):
    """One fused pass over the rows, compiled; the solvers of `SOLVERS` take their steps inside.

    Attributes
    ----------
    compile_seconds : float
        What compiling, or loading compiled code from the disk, took this engine.
    """

    name = "numba"
    same_bits = True
    threaded = True

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        sizes, bias = objective.layer_sizes, objective.bias
        self._dtype = np.dtype(rows.dtype)
        self._shapes = [(i + bias, o) for i, o in pairwise(sizes)]
        self._ends = np.cumsum([i * o for i, o in self._shapes])
        self._count = int(self._ends[-1])
        self._units = sum(sizes) + sizes[-1] + 1  # with the targets and the rows' weights
        self._stretch = _stretch(self._units, self._dtype.itemsize)
        # Units apart by (a multiple of) 4096 bytes would fall on the same lines of the cache, and wait for each other.
        self._apart = self._stretch + 512 // self._dtype.itemsize
        self._owner = None
        self._plan, self._keep = self._planned()

    @classmethod
    def refuses(cls, objective, rows, solver):
        if rows.backend.library.name != "numpy":
            return f"it computes on NumPy arrays, and these are {rows.backend.library.name}'s. Use engine='blocked'."
        if not objective.known:
            return "it cannot compile activations or losses of your own. Use engine='blocked'."
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
        rates = np.ascontiguousarray(rates, np.float64)
        if self.rows.arrays is not None:
            job = _Job(self, w, self.rows.arrays, batches.order, batches.starts, batches.stops)
            job.run(solver, state, rates, step, totals)
        else:  # the sums of what is read, then the step, by the same code
            for j in range(len(rates)):
                sums = self.sums(self._matrices(w), batches.order, batches.starts[j], batches.stops[j])
                job = _Job(self, w, None, None, [0], [0])
                job.u[:] = np.concatenate([*(u.ravel() for u in sums.updates), sums.totals])
                job.run(solver, state, rates[j : j + 1], step + j, totals[j : j + 1])
        return self._matrices(w), tuple(self._matrices(group) for group in state), totals

    def _sums(self, weights, pieces, order, start, stop):
        """The sums of pieces of rows that begin at multiples of `block_rows`."""
        w, u = self._flat(weights), np.zeros(self._count + fused.TOTALS)
        for piece in pieces:
            job = _Job(self, w, piece, order, [start or 0], [len(piece[0]) if stop is None else stop])
            job.u = u
            job.run(None, (), np.zeros(1), 0, np.empty((1, 4)))
        return Sums(self._matrices(u[: self._count]), u[self._count :])

    def _flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        return np.concatenate([np.asarray(W, self._dtype).ravel() for W in matrices])

    def _matrices(self, flat):
        return [part.reshape(shape) for part, shape in zip(np.split(flat, self._ends[:-1]), self._shapes)]

    def _planned(self):
        """What all runs' plans have in common, and what must be kept for it. Compiles what is missing."""
        began = time.perf_counter()
        o, dtype, width = self.objective, self._dtype.name, self._dtype.itemsize
        sizes, names, loss = o.layer_sizes, [f.name for f in o.activations], o.loss.name.partition(":")[0]
        known = self._count <= UNROLLED_WEIGHTS and len(set(names)) == 1 and loss == "squared_error"
        count = 8 if self.rows.n <= FEW_ROWS else (LESSON_BYTES if known else LOOP_BYTES) // width
        tables = np.array(sizes, np.int64), np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        _, functions, slopes = tables
        plan = np.zeros(fused.PLAN_WORDS, np.int64)
        kept = [kernel(fused.read, 6, dtype, count), kernel(fused.settle, 2, dtype, 1)]
        plan[[fused.READ, fused.SETTLE]] = [k.address for k in kept]
        if known:
            kept.append(kernel(fused.learn_unrolled, 4, dtype, count, names[-1], loss, tuple(names), sizes, o.bias))
            plan[fused.LEARN] = kept[-1].address
        else:
            for layer, name in enumerate(names):
                if name != "identity":
                    function = fused.softmax if name == "softmax" else fused.activations
                    kept.append(kernel(function, 5, dtype, count, name))
                    functions[layer] = kept[-1].address
                    if layer < len(names) - 1:
                        kept.append(kernel(fused.slopes, 5, dtype, count, name))
                        slopes[layer] = kept[-1].address
            kept += kernel(fused.output, 5, dtype, count, names[-1], loss), kernel(fused.learn, 4, dtype, count)
            plan[[fused.OUTPUT, fused.LEARN]] = [k.address for k in kept[-2:]]
        _drive()
        plan[[fused.SIZES, fused.ACTIVATE, fused.SLOPES]] = [table.ctypes.data for table in tables]
        plan[[fused.DEPTH, fused.BIAS, fused.COUNT]] = len(names), o.bias, self._count
        plan[[fused.STRETCH, fused.APART, fused.BLOCK]] = self._stretch, self._apart, self.block_rows
        plan[[fused.OTHERS, fused.MEAN]] = _others(), o.reduction == "mean"
        target = self._units - 1 - sizes[-1]
        for field, (columns, unit) in zip(
            (fused.INPUTS, fused.TARGETS, fused.ROW_WEIGHTS), ((sizes[0], 0), (sizes[-1], target), (1, self._units - 1))
        ):
            plan[field + 3 : field + 5] = columns, unit
        self.compile_seconds = time.perf_counter() - began
        if self.compile_seconds > 1.0:
            log.info("engine numba: compiled in %.1f s", self.compile_seconds)
        return plan, (kept, tables)

    def _helpers(self):
        """The pool of threads of this process: a forked child has none of its parent's."""
        if self._owner != os.getpid():
            self._pool, self._owner = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="bpaccel"), os.getpid()
        return self._pool


class _Job:
    """One call of the compiled loop: its rows, and memory that no other call uses."""

    def __init__(self, engine, w, arrays, order, starts, stops):
        self.engine, self.w = engine, w
        self.plan = engine._plan.copy()
        self.arrays = () if arrays is None else [x if x is None or _readable(x) else _copied(x) for x in arrays]
        for field, x in zip((fused.INPUTS, fused.TARGETS, fused.ROW_WEIGHTS), self.arrays):
            if x is not None:
                steps = [step // x.itemsize for step in x.strides]
                self.plan[field : field + 3] = address(x), steps[0], steps[-1]
        self.order = None if order is None else np.ascontiguousarray(order, np.int64)
        self.starts, self.stops = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(stops, np.int64)
        length = engine._count + fused.TOTALS
        rows = int((self.stops - self.starts).max())
        blocks = -(-rows // engine.block_rows)
        self.threads = min(engine.threads, max(blocks, 1)) if rows * engine._count >= THREADED_WORK else 1
        self.slots = max(1, min(blocks, max(SLOT_NUMBERS // length, 4 * self.threads)))
        self.u = np.zeros(length)

    def run(self, solver, state, rates, step, totals):
        e, o, plan = self.engine, self.engine.objective, self.plan
        shared = aligned(8 * fused.SHARED_WORDS)
        shared[:] = 0
        solver_code, names = SOLVERS.get(type(solver), (fused.NOTHING, ()))
        rules = np.zeros(fused.RULE_NUMBERS)
        rules[: fused.FIRST] = float(o.loss.name.partition(":")[2] or 0.0), o.l1, o.l2, o.clip or 0.0
        rules[fused.FIRST : fused.FIRST + len(names)] = [getattr(solver, name) for name in names]
        sums = np.empty(self.slots * len(self.u))
        arrays = (
            (fused.ORDER, self.order), (fused.WEIGHTS, self.w), (fused.BLOCK_SUMS, sums), (fused.STARTS, self.starts),
            (fused.STOPS, self.stops), (fused.RATES, rates), (fused.SUMS, self.u), (fused.OUT, totals),
            (fused.SHARED, shared), (fused.RULES, rules), *zip((fused.STATE, fused.SECOND_STATE), state),
        )  # fmt: skip
        for place, array in arrays:
            plan[place] = address(array)
        plan[[fused.STEPS, fused.STEP, fused.SLOTS]] = len(rates), step, self.slots
        plan[fused.ORDERED] = 0 if self.order is None else len(self.order)
        plan[[fused.SOLVER, fused.ALONE, fused.ONWARD]] = solver_code, self.threads == 1, len(rates) == 1

        # A helper may come when the run is over, and still looks at the control block: its arguments hold the memory.
        def drive(helper, memory):
            scratch = aligned(e._units * e._apart * e._dtype.itemsize)
            _drive()(None, address(plan), helper, address(scratch))

        try:
            for _ in range(self.threads - 1):
                e._helpers().submit(drive, 1, (self, arrays))
            drive(0, arrays)
        finally:  # also when Ctrl-C came just before: helpers then find nothing more to do
            shared.view(np.int64)[fused.END] = 1


def _readable(x):
    """Whether the kernels can read an array where it is; one with numbers at odd places is copied."""
    return x.flags.aligned and x.dtype.isnative and all(step % x.itemsize == 0 for step in x.strides)


def _copied(x):
    return np.array(x, x.dtype.newbyteorder("="), order="C")


def address(array):
    return 0 if array is None else array.__array_interface__["data"][0]


def aligned(size, line=64):
    """Memory that begins on a cache line: lanes that straddle two take longer."""
    memory = np.empty(size + line, np.uint8)
    skip = -address(memory) % line
    return memory[skip : skip + size]


def _stretch(units, width):
    rows = BLOCK_ROWS
    while rows > 256 and rows * units * width > STRETCH_BYTES:
        rows //= 2
    return rows
