"""Engines: how the updates of a batch are computed.

An engine computes exactly what `bpaccel.core` says, its own way: all rows at once, block by block, compiled. It gets
an `Objective` (what to compute) and `Rows` (of what), and must only write `Engine.block`. Adding an engine is one
file and one row of `ENGINES`.
"""

import contextlib
import contextvars
import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import namespace
from bpaccel.checks import whole
from bpaccel.solvers import Solver

Array = Any


class Sums(NamedTuple):
    """Sums over some rows.

    Attributes
    ----------
    updates : list of arrays
        One of each weight matrix's shape: minus the gradient of the loss.
    totals : array of shape (3,)
        Weight of the rows, their loss, and their ``|y - output|`` (the mean over outputs): each weighted.
    """

    updates: list
    totals: Array


class Batches(NamedTuple):
    """The rows of some steps: step ``j`` takes rows ``order[starts[j]:stops[j]]``, or just ``starts[j]:stops[j]``.

    Attributes
    ----------
    order : numpy.ndarray of int64, shape (N,), or None
    starts, stops : sequence of int, or an array of them
    """

    order: Any
    starts: Any
    stops: Any


def widened(sums, backend):
    """The same sums in float64, where the device has it: float32 would lose small blocks beside large sums."""
    wide = getattr(backend.xp, backend.widest)
    return Sums([backend.xp.astype(u, wide) for u in sums.updates], backend.xp.astype(sums.totals, wide))


def fold(sums, more):
    """Two sums added, in the dtype of the first."""
    xp = namespace(sums.totals)
    updates = [a + xp.astype(b, a.dtype) for a, b in zip(sums.updates, more.updates)]
    return Sums(updates, sums.totals + xp.astype(more.totals, sums.totals.dtype))


class Engine(ABC):
    """The contract of all engines: of one objective, some rows and a number of threads.

    A new engine must only write `block`; `sums` and `run` may be overridden by engines that do more at once.

    Attributes
    ----------
    name : str
    same_bits : bool
        Whether the same bytes come out for any threads, chunks and partitions of the rows.
    threaded : bool
        Whether `block` may be called from several Python threads at once, and gains by it.
    dropped_block : callable or None
        ``(weights, X, y, w, step, first) -> Sums``: `block` with dropout, for engines that know it; ``first`` is the
        place of the block's first row in the order of the rows. See `Dropout.activations`.
    block_rows : int
        The rows of a block, fixed by objective and dtype alone; all rows where an engine knows no blocks.
    note : str
        What the reason for the engine must add: that it computes otherwise than its name says, and why.
    """

    name = ""
    note = ""
    same_bits = False
    threaded = False
    dropped_block: Any = None

    def __init__(self, objective, rows, threads=None):
        self.objective, self.rows = objective, rows
        count = thread_count(threads)
        self.threads = count if self.threaded else 1
        self.block_rows = self.rows_of_a_block(objective, rows)
        self._pool = None

    @classmethod
    def refuses(cls, objective, rows, solver):
        """Why this engine cannot do it, with the remedy; None if it can. Of dropout, see `refusal`."""
        return

    @classmethod
    @abstractmethod
    def rows_of_a_block(cls, objective, rows):
        """The rows of a block."""

    @abstractmethod
    def block(self, weights, X, y, w):
        """The `Sums` of one block.

        Parameters
        ----------
        weights : list of arrays of shape (I, O) or (I + 1, O)
        X : array of shape (n, I)
        y : array of shape (n, O)
        w : array of shape (n,) or None
        """

    def sums(self, weights, order, start, stop):
        """The `Sums` of rows ``order[start:stop]``: those of its blocks, added in their order.

        Blocks start at multiples of `block_rows` from ``start``. One block alone keeps the dtype of the rows.
        """
        return self._folded(lambda first, *rows: self.block(weights, *rows), order, start, stop)

    def dropped_sums(self, weights, order, start, stop, step):
        """The same, of the units that dropout leaves in a step."""
        return self._folded(lambda first, *rows: self.dropped_block(weights, *rows, step, first), order, start, stop)

    def _folded(self, block, order, start, stop):
        def one(first):
            return block(first, *self.rows.read(first, min(first + self.block_rows, stop), order))

        firsts = range(start, stop, self.block_rows)
        parts = map(one, firsts) if self.threads == 1 or len(firsts) == 1 else self._in_order(one, firsts)
        total = next(parts)
        if len(firsts) > 1:
            total = widened(total, self.rows.backend)
        for part in parts:
            total = fold(total, part)
        return total

    def _in_order(self, function, items):
        """Results in the order of the items, from all threads, with few of them waiting in memory."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="bpaccel")
        waiting: deque = deque()
        for item in items:
            # In the caller's context, which holds np.errstate and what else must be the same in all threads.
            waiting.append(self._pool.submit(contextvars.copy_context().run, function, item))
            if len(waiting) > 2 * self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def run(self, weights, solver, state, batches, rates, step):
        """Take a step for each of ``rates``, the first of them numbered ``step``.

        Parameters
        ----------
        weights : list of arrays
        solver : Solver
        state : tuple of lists of arrays
        batches : Batches
        rates : sequence of float, or an array of them
        step : int

        Returns
        -------
        weights, state
            After the last step.
        totals : array of shape (k, 4)
            Of each step *before* its update: weight, loss, |error| and penalty. On the device, not waited for.
        """
        rows = []
        with self.held():
            for j, rate in enumerate(np.asarray(rates).tolist()):
                batch = batches.order, batches.starts[j], batches.stops[j]
                if self.objective.dropout is None:
                    sums = self.sums(weights, *batch)
                else:
                    sums = self.dropped_sums(weights, *batch, step + j)
                updates, penalty = self.objective.finish(weights, sums)
                weights, state = solver.step(weights, updates, state, rate, step + j)
                rows.append((sums.totals, penalty))
        xp = namespace(rows[0][0])
        totals = xp.stack([totals for totals, _ in rows])
        penalties = xp.stack([penalty for _, penalty in rows])
        return weights, state, xp.concat([totals, penalties[:, None]], axis=1)

    def held(self):
        """A context for the time of a run: what must hold while steps are taken."""
        return contextlib.nullcontext()

    def close(self):
        """Give the threads back."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


# Each row is where an engine lives: a module is imported when its engine is asked for.
ENGINES = {
    "array": "bpaccel.engines.blocked:Array",
    "blocked": "bpaccel.engines.blocked:Blocked",
    "jit": "bpaccel.engines.jit:Jit",
    "numba": "bpaccel.engines.numba:Numba",
    "blas": "bpaccel.engines.blas:Blas",
    "cuda": "bpaccel.engines.cuda:Cuda",
    "wide": "bpaccel.engines.wide:Wide",
}


def find(name):
    """The engine class of a name; a class of your own is returned as it is."""
    if isinstance(name, type) and issubclass(name, Engine):
        return name
    if not isinstance(name, str) or name not in ENGINES:
        raise ValueError(f"`engine` must be auto, one of {', '.join(ENGINES)}, or a subclass of Engine; got {name!r}.")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(f"engine {name!r} needs {error.name}: pip install 'bpaccel[{error.name}]'.") from error


def refusal(kind, objective, rows, solver):
    """Why an engine class cannot do the work, with the remedy; None if it can."""
    if objective.dropout is not None and kind.dropped_block is None:
        return "it knows no dropout. Use engine='blocked'."
    return kind.refuses(objective, rows, solver)


def choose(name, objective, rows, solver, *, batch_rows, steps, threads=None):
    """An engine for the work, and why this one.

    Parameters
    ----------
    name : str or type
        ``"auto"``, a name of `ENGINES`, or a subclass of `Engine`.
    objective : Objective
    rows : Rows
    solver : Solver
    batch_rows : int
        Rows of a step.
    steps : int
        How many steps are to be taken.
    threads : int, optional

    Returns
    -------
    engine : Engine
    reason : str

    Raises
    ------
    ValueError
        If the engine does not exist, or refuses the work.
    """
    if name == "auto":
        name, reason = _automatic(objective, rows, solver, batch_rows, steps)
    else:
        reason = "asked for"
    kind = find(name)
    if reason_not := refusal(kind, objective, rows, solver):
        raise ValueError(f"engine {kind.name!r} cannot do this: {reason_not}")
    engine = kind(objective, rows, threads)
    return engine, f"{reason}; {engine.note}" if engine.note else reason


# What the calls of a step of NumPy's cost (37 us, 3-4-1), as multiplications of rows by weights that take as long (0.6
# ns, 64-32-10 with batches of 200); and the work, in the same unit, that NumPy needs 0.3 to 0.6 seconds for, and the
# compiled engine as long in a fresh process that finds its kernels on the disk. Below it, auto does not compile: that
# takes two to four seconds, once a machine.
STEP_COST = 2**15
COMPILED_WORK = 2**29
# torch.compile takes three to five seconds for each size of a batch, in a fresh process with nothing kept on the disk
# up to twenty, and then saves 0.2 ms a step and 5 to 9 ns for each unit of each row (3-4-1, 64-32-10, 28-300-1 and
# 784-128-10 on two cores). In units and rows, with what a step costs as so many more: the work that is brought from a
# minute to half of one.
TORCH_STEP_COST = 2**15
TORCH_WORK = 2**32
# From this many bytes of weights between two layers on, `blas` is as fast as `numba` or faster. It took 1.4 times as
# long for 784-128-10 in float32, 1.2 times for 784-512-10, 1.0 for 1024-1024-10 and 0.86 for 1500-1500-10; in float64
# 1.04 and 0.91 for 784-512-10 and 1024-1024-10 (two cores, AVX-512, 4,000 to 60,000 rows; with AVX2 alone 1.15, 1.04,
# 0.97, 0.82, 0.98 and 0.92).
BLAS_BYTES = 2**22


# Looks at the work alone, never at clocks or caches: the second run of a script gives the bits of the first.
def _automatic(objective, rows, solver, batch_rows, steps):
    library = rows.backend.library.name
    compilable = objective.known and objective.dropout is None
    block = find("blocked").rows_of_a_block(objective, rows)
    if compilable and find("cuda").refuses(objective, rows, solver) is None:
        return "cuda", f"the network fits in the registers of {rows.backend.name}, and each row is read once"
    if compilable and find("wide").refuses(objective, rows, solver) is None:
        return "wide", "cuBLAS and fused kernels pass over each layer once where the core makes a dozen arrays"
    if library == "numpy" and compilable and importlib.util.find_spec("numba"):
        sizes = [i * o for i, o in pairwise(objective.layer_sizes)]
        work = steps * (batch_rows * sum(sizes) + STEP_COST)
        if work >= COMPILED_WORK:
            worth = f"{steps:,} steps of {batch_rows:,} rows are worth compiling"
            if max(sizes) * (4 if rows.dtype == "float32" else 8) < BLAS_BYTES:
                return "numba", f"{worth}, and no layer is wide enough for BLAS"
            return "blas", f"{worth}, and a layer of {max(sizes):,} weights is wide enough for BLAS"
    if rows.arrays is None:
        return "blocked", "the rows are not all in memory on this backend, and are read block by block"
    if library == "jax" and steps > 1 and compilable and isinstance(solver, Solver):
        return "jit", f"JAX compiles the {steps:,} steps into one loop"
    if rows.backend.name == "torch" and compilable and isinstance(solver, Solver):  # on its CPU
        work = steps * (batch_rows * sum(objective.layer_sizes[1:]) + TORCH_STEP_COST)
        if work >= TORCH_WORK:
            return "jit", f"{steps:,} steps of {batch_rows:,} rows are worth compiling with torch.compile"
    if batch_rows <= block:
        return "array", f"a step's {batch_rows:,} rows fit one block of {block:,}"
    if rows.backend.name in ("numpy", "torch", "jax"):  # on their CPU
        return "blocked", f"a step's {batch_rows:,} rows are more than one block of {block:,}, which stays in the cache"
    return "array", f"{rows.backend.name} computes {batch_rows:,} rows best in whole passes"


def processors():
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads=None):
    """How many threads to use: the argument, else the processors this process may run on, or fewer if
    ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS`` says so (joblib sets them)."""
    if threads is not None:
        return whole("threads", threads)
    count = processors()
    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdigit():
            count = min(count, max(1, int(os.environ[variable])))
    return count
