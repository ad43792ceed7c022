"""The compiled engine for NumPy arrays: one fused pass over the rows, many steps in one call, on all cores.

The kernels are in `bpaccel.engines.fused` and `bpaccel.engines.steps`. They are compiled when first needed, and kept on
disk by Numba: a later process loads them.
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

import numba
import numpy as np

from bpaccel.engines import Engine, Sums, fused, lanes, memory, products, steps, unrolled, vmath
from bpaccel.engines import plan as words
from bpaccel.engines.layout import layout
from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop

# Rows of a block: the unit of the order of sums, and what threads share. Few enough that 10,000 rows occupy
# two threads evenly, enough that a block takes some microseconds.
BLOCK_ROWS = 1024
# Sums of blocks that are kept until they are added up; but those of four blocks a thread in any case.
SLOTS_BYTES = 2**20
# Rows read from files and other arrays at once.
READ_BLOCKS = 64
# The most weights of a network whose lesson is written out for its shape: what the registers can hold. Each shape,
# activation and loss is then compiled for itself, so only the tutorial's kind is: one activation, squared_error. On 4
# rows that is 1.5 times as fast, on many 1.1 times.
UNROLLED_WEIGHTS = 32
# Bytes that lanes fill, where a pass over the rows is a straight line of instructions, and where it is a loop over
# units: two registers then, of which several sums are kept at once (see `products.TILE`). So few rows in all take few
# lanes.
LESSON_BYTES = 128
LOOP_BYTES = 2 * lanes.REGISTER_BYTES
FEW_ROWS = 8
# Below this many multiplications a step, rows times weights, another thread gains little: two were 1.2 times as fast as
# one at half of it, 1.6 times at it, 1.7 times at twice.
THREADED_WORK = 2**16

# From so many rows of a step on, it pays to put weights together in tiles.
PACKED_ROWS = 256

# By exact type: a subclass may do something else, and is called step by step.
SOLVERS = {
    GradientDescent: (words.GRADIENT_DESCENT, ()),
    Momentum: (words.MOMENTUM, ("momentum",)),
    Nesterov: (words.NESTEROV, ("momentum",)),
    Adam: (words.ADAM, ("beta_1", "beta_2", "epsilon")),
    AdamW: (words.ADAMW, ("beta_1", "beta_2", "epsilon", "weight_decay")),
    RMSprop: (words.RMSPROP, ("alpha", "momentum", "epsilon")),
}

log = logging.getLogger("bpaccel")


# Numba's cache looks at the date of one file only, and knows nothing of what that file calls: so the sources, and the
# version that compiles them, are part of the type of each kernel's first argument. So is the processor, on which the
# size of lanes and tiles depends.
def _fingerprint():
    modules = lanes, memory, vmath, unrolled, words, products, fused, steps
    text = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(text + f"{numba.__version__} {lanes.PROCESSOR}".encode()).hexdigest()[:16]


SOURCE = _fingerprint()


@functools.cache
def kernel(function, *kind):
    """A compiled kernel: it must be kept as long as its address is used."""
    return lanes.kernel(function, dataclasses.replace(lanes.Kind(*kind), source=SOURCE))


@functools.cache
def _drive():
    compiled = kernel(steps.drive, "float64", 1)
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
        self._owner, self._spare = None, {}
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
        w, u = self._flat(weights), np.zeros(self._count + words.TOTALS)
        for piece in pieces:
            job = _Job(self, w, piece, order, [start or 0], [len(piece[0]) if stop is None else stop])
            job.u = u
            job.run(None, (), np.zeros(1), 0, np.empty((1, 4)))
        return Sums(self._matrices(u[: self._count]), u[self._count :])

    def _flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        parts = [np.asarray(W, self._dtype).ravel() for W in matrices]
        # Kernels may read lanes that begin with the last number, but use none of what follows it.
        flat = np.zeros(self._count + LOOP_BYTES // self._dtype.itemsize, self._dtype)
        return np.concatenate(parts, out=flat[: self._count])

    def _matrices(self, flat):
        return [part.reshape(shape) for part, shape in zip(np.split(flat, self._ends[:-1]), self._shapes)]

    def _planned(self):
        """What all runs' plans have in common, and what must be kept for it. Compiles what is missing."""
        began = time.perf_counter()
        o, dtype, width = self.objective, self._dtype.name, self._dtype.itemsize
        sizes, names, loss = o.layer_sizes, [f.name for f in o.activations], o.loss.name.partition(":")[0]
        unrolled = self._count <= UNROLLED_WEIGHTS and len(set(names)) == 1 and loss == "squared_error"
        count = 8 if self.rows.n <= FEW_ROWS else (LESSON_BYTES if unrolled else LOOP_BYTES) // width
        at = self._layout = layout(sizes, o.bias, width, count, unrolled)
        plan, kept = np.zeros(words.PLAN_WORDS, np.int64), []

        def compiled(function, *kind):
            kept.append(kernel(function, *kind))
            return kept[-1].address

        def tabled(numbers):
            kept.append(np.array(numbers, np.int64))
            return address(kept[-1])

        lanes_kind = dtype, count
        plan[words.READ] = compiled(fused.read, *lanes_kind)
        plan[words.SETTLE] = compiled(steps.settle, dtype, 1)
        if unrolled:
            plan[words.LEARN] = compiled(
                fused.learn_unrolled, *lanes_kind, names[-1], loss, tuple(names), sizes, o.bias
            )
        else:
            plan[words.LEARN] = compiled(fused.learn, *lanes_kind)
            plan[words.PRODUCTS] = compiled(products.products, *lanes_kind)
            plan[words.OUTPUT] = compiled(fused.output, *lanes_kind, names[-1], loss)
            functions = [
                compiled(fused.softmax if name == "softmax" else fused.activations, *lanes_kind, name)
                if name != "identity" else 0 for name in names
            ]  # fmt: skip
            slopes = [compiled(fused.slopes, *lanes_kind, name) if name != "identity" else 0 for name in names[:-1]]
            plan[[words.ACTIVATE, words.SLOPES]] = tabled(functions), tabled(slopes)
        if any(at.packed):
            plan[words.PACK] = compiled(fused.pack, *lanes_kind)
        if any(at.parts):
            plan[words.UPDATE_UNITS] = compiled(fused.update_units, *lanes_kind)
            plan[words.FOLD] = compiled(steps.fold_parts, *lanes_kind)
        else:
            plan[words.FOLD] = compiled(steps.fold, "float64", 1)
        _drive()
        plan[[words.SIZES, words.PARTS, words.PACKED]] = tabled(sizes), tabled(at.parts), tabled([0] * len(names))
        plan[[words.DEPTH, words.BIAS, words.COUNT]] = len(names), o.bias, self._count
        plan[[words.STRETCH, words.APART, words.BLOCK]] = at.stretch, at.apart, self.block_rows
        plan[[words.TURNED, words.SLOT_BYTES]] = at.turned, at.slot_bytes
        plan[[words.OTHERS, words.MEAN]] = _others(), o.reduction == "mean"
        for field, columns, place in (
            (words.INPUTS, sizes[0], 0),
            (words.TARGETS, sizes[-1], at.targets),
            (words.ROW_WEIGHTS, 1, at.row_weights),
        ):
            plan[field + 3 : field + 5] = columns, place
        self.compile_seconds = time.perf_counter() - began
        if self.compile_seconds > 1.0:
            log.info("engine numba: compiled in %.1f s", self.compile_seconds)
        return plan, kept

    def _lend(self, size):
        """Memory of an earlier run, or new: the system takes a millisecond to give out some megabytes."""
        size = 1 << (size - 1).bit_length()  # so that there are few sizes
        try:
            return self._spare[size].pop()
        except (KeyError, IndexError):
            return aligned(size)

    def _take_back(self, memory):
        if memory is not None:
            self._spare.setdefault(len(memory), []).append(memory)

    def _helpers(self):
        """The pool of threads of this process: a forked child has none of its parent's."""
        if self._owner != os.getpid() or self._pool is None:
            self._pool, self._owner = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="bpaccel"), os.getpid()
        return self._pool


class _Job:
    """One call of the compiled loop: its rows, and memory that no other call uses."""

    def __init__(self, engine, w, arrays, order, starts, stops):
        self.engine, self.w = engine, w
        self.plan = engine._plan.copy()
        self.arrays = () if arrays is None else [x if x is None or _readable(x) else _copied(x) for x in arrays]
        for field, x in zip((words.INPUTS, words.TARGETS, words.ROW_WEIGHTS), self.arrays):
            if x is not None:
                strides = [stride // x.itemsize for stride in x.strides]
                self.plan[field : field + 3] = address(x), strides[0], strides[-1]
        self.order = None if order is None else np.ascontiguousarray(order, np.int64)
        self.rows = len(self.arrays[0]) if order is None and self.arrays else (0 if order is None else len(order))
        self.starts, self.stops = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(stops, np.int64)
        length = engine._count + words.TOTALS
        rows = int((self.stops - self.starts).max())
        blocks = -(-rows // engine.block_rows)
        self.threads = min(engine.threads, max(blocks, 1)) if rows * engine._count >= THREADED_WORK else 1
        self.slots = max(1, min(blocks, max(SLOTS_BYTES // engine._layout.slot_bytes, 4 * self.threads)))
        self.u = np.zeros(length)
        self.packed = sum(engine._layout.packed) if rows >= PACKED_ROWS else 0

    def run(self, solver, state, rates, step, totals):
        e, o, plan = self.engine, self.engine.objective, self.plan
        shared = aligned(8 * steps.SHARED_WORDS)
        shared[:] = 0
        solver_code, names = SOLVERS.get(type(solver), (words.NOTHING, ()))
        rules = np.zeros(words.RULE_NUMBERS)
        rules[: words.FIRST] = float(o.loss.name.partition(":")[2] or 0.0), o.l1, o.l2, o.clip or 0.0
        rules[words.FIRST : words.FIRST + len(names)] = [getattr(solver, name) for name in names]
        sums, tiles, table = e._lend(self.slots * e._layout.slot_bytes), None, None
        if self.packed:
            tiles = e._lend(self.packed * e._dtype.itemsize)
            firsts = np.cumsum([0, *e._layout.packed[:-1]]) * e._dtype.itemsize + address(tiles)
            table = np.where(np.array(e._layout.packed) > 0, firsts, 0)
            plan[words.PACKED] = address(table)
        else:
            plan[words.PACK] = 0
        arrays = (
            (words.ORDER, self.order), (words.WEIGHTS, self.w), (words.BLOCK_SUMS, sums), (words.STARTS, self.starts),
            (words.STOPS, self.stops), (words.RATES, rates), (words.SUMS, self.u), (words.OUT, totals),
            (words.SHARED, shared), (words.RULES, rules), *zip((words.STATE, words.SECOND_STATE), state),
        )  # fmt: skip
        for place, array in arrays:
            plan[place] = address(array)
        plan[[words.STEPS, words.STEP, words.SLOTS]] = len(rates), step, self.slots
        if self.slots == 1 and len(rates) > 1 and not any(e._layout.parts):  # the only block's sums are those of a step
            plan[[words.BLOCK_SUMS, words.FOLD]] = address(self.u), 0
        plan[words.ROWS] = self.rows
        plan[[words.SOLVER, words.THREADS, words.ONWARD]] = solver_code, self.threads, len(rates) == 1

        # A helper may come when the run is over, and still looks at the control block: its arguments hold the memory.
        def drive(helper, kept):
            scratch = e._lend(e._layout.numbers * e._dtype.itemsize)
            _drive()(None, address(plan), helper, address(scratch))
            e._take_back(scratch)

        try:
            for _ in range(self.threads - 1):
                e._helpers().submit(drive, 1, (self, arrays, tiles, table))
            drive(0, arrays)
            e._take_back(sums)  # all blocks are done: nobody writes to it any more
            e._take_back(tiles)
        finally:  # also when Ctrl-C came just before: helpers then find nothing more to do
            shared.view(np.int64)[steps.END] = 1


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
