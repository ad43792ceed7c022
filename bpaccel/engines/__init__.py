"""Engines: how the updates of a batch are computed.

An engine computes exactly what `bpaccel.core` says, its own way: all rows at once, block by block, compiled. It gets
an `Objective` (what to compute) and `Rows` (of what), and must only write `Engine.block`. Adding an engine is one
file and one row of `bpaccel.engines.choice.ENGINES`.
"""

import contextlib
import contextvars
import operator
import os
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import namespace
from bpaccel.checks import whole

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
    """A copy of sums in float64, where the device has it: float32 would lose small blocks beside large sums."""
    wide = getattr(backend.xp, backend.widest)
    return Sums([backend.xp.astype(u, wide) for u in sums.updates], backend.xp.astype(sums.totals, wide))


def fold(sums, more):
    """Two sums added, in the dtype of the first."""
    xp = namespace(sums.totals)
    updates = [a + xp.astype(b, a.dtype) for a, b in zip(sums.updates, more.updates)]
    return Sums(updates, sums.totals + xp.astype(more.totals, sums.totals.dtype))


def tree(parts, backend):
    """The sum of the blocks of a step: one binary tree over block numbers.

    A node of the tree is the blocks ``i * 2**k`` to ``(i + 1) * 2**k``. Its sum is that of its left half plus that of
    its right half, in float64 where the device has it; a half that holds no block counts for nothing. The sum of a node
    therefore depends on the blocks of the node alone, and whoever holds these blocks can add them.

    Parameters
    ----------
    parts : iterable of Sums
        Those of the blocks, at least one, in the order of the blocks. At most ``log2(N) + 1`` sums wait at a time.
    backend : Backend

    Returns
    -------
    Sums
    """
    nodes: list = []  # the largest whole nodes from the left: as many as the number of blocks so far has bits set
    for number, part in enumerate(parts):
        node, right = part if number & 1 else widened(part, backend), number
        while right & 1:  # it is a right half, and its left half waits
            node, right = _added(nodes.pop(), node), right >> 1
        nodes.append(node)
    node = nodes.pop()
    while nodes:
        node = _added(nodes.pop(), node)
    return node


def _added(left, right):
    """Two halves of a node, the left one in float64: in its memory where a library can write there, for new memory for
    each sum of a wide network would cost as much as the additions."""
    updates = [operator.iadd(a, b) for a, b in zip(left.updates, right.updates)]
    return Sums(updates, operator.iadd(left.totals, right.totals))


class Engine(ABC):
    """The contract of all engines: of one objective, some rows and a number of threads.

    A new engine must only write `block`; `sums` and `run` may be overridden by engines that do more at once.

    Attributes
    ----------
    name : str
    same_bits : bool
        Whether the same bytes come out for any threads, chunks and partitions of the rows. The sums of several blocks
        are then those of `tree`: ``sums(w, order, a, a + 2 * m)`` are ``sums(w, order, a, a + m)`` plus ``sums(w,
        order, a + m, a + 2 * m)`` in float64, for ``m = block_rows * 2**k``, and also where the rows end before.
    threaded : bool
        Whether `block` may be called from several Python threads at once, and gains by it.
    dropped_block : callable or None
        ``(weights, X, y, w, step, first) -> Sums``: `block` with dropout, for engines that know it; ``first`` is the
        place of the block's first row in the order of the rows. See `Dropout.activations`.
    joins_epochs : bool
        Whether `run` gains by steps of several epochs in one call, with their orders one after the other. An engine
        that compiles for the length of an order loses by it.
    block_rows : int
        The rows of a block, fixed by objective and dtype alone; all rows where an engine knows no blocks.
    note : str
        What the reason for the engine must add: that it computes otherwise than its name says, and why.
    """

    name = ""
    note = ""
    same_bits = False
    threaded = False
    joins_epochs = False
    dropped_block: Any = None

    def __init__(self, objective, rows, threads=None):
        self.objective, self.rows = objective, rows
        count = thread_count(threads)
        self.threads = count if self.threaded else 1
        self.block_rows = self.rows_of_a_block(objective, rows)
        self._pool = None

    @classmethod
    def refuses(cls, objective, rows, solver):
        """Why this engine cannot do it, with the remedy; None if it can. Of dropout, see `choice.refusal`."""
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
        """The `Sums` of rows ``order[start:stop]``: those of its blocks, added as `tree` says.

        Blocks start at multiples of `block_rows` from ``start``, and are numbered from there. One block alone keeps the
        dtype of the rows.
        """
        return self._folded(lambda first, *rows: self.block(weights, *rows), order, start, stop)

    def dropped_sums(self, weights, order, start, stop, step):
        """The same, of the units that dropout leaves in a step."""
        return self._folded(lambda first, *rows: self.dropped_block(weights, *rows, step, first), order, start, stop)

    def _folded(self, block, order, start, stop):
        def one(first):
            return block(first, *self.rows.read(first, min(first + self.block_rows, stop), order))

        if stop - start <= self.block_rows:
            return one(start)
        firsts = range(start, stop, self.block_rows)
        return tree(map(one, firsts) if self.threads == 1 else self._in_order(one, firsts), self.rows.backend)

    def _in_order(self, function, items):
        """Results in the order of the items, from all threads, with few of them waiting in memory."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # four milliseconds, which one thread need not wait for

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


def processors():
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads=None):
    """How many threads to use: the argument, else the processors this process may run on, or fewer if
    ``OMP_NUM_THREADS`` says so (joblib sets it)."""
    if threads is not None:
        return whole("threads", threads)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), max(1, int(asked))) if asked.isdigit() else processors()
