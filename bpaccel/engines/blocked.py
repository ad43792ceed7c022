"""The two plain engines: the core in one pass over all rows, and the same pass block by block.

`Array` defines what every engine must compute. `Blocked` computes it in bounded memory, faster where the rows are
many, because a block's layers and deltas stay in the processor's cache; and more accurately, because blocks are added
in float64.
"""

import contextlib
import math
import threading
from dataclasses import replace
from typing import Any

from bpaccel import core
from bpaccel.backends import namespace
from bpaccel.engines import Engine, Sums

# Bytes that a block's layers, deltas and temporaries may fill. NumPy, 3-4-1, a million rows, two threads, 2 MiB of
# second cache a core: 4 MiB took 29 ns a row, 8 took 31, 2 took 37, 1 took 51, for less pays for Python.
BLOCK_BYTES = 4 * 2**20


class Array(Engine):
    """The core in one pass over the rows of a step."""

    name = "array"

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return rows.n

    def block(self, weights, X, y, w):
        return core_sums(self.objective, weights, X, y, w)

    def dropped_block(self, weights, X, y, w, step, first):
        o, rows = self.objective, self.rows
        left = o.dropout.activations(o.activations, o.layer_sizes, rows.backend, rows.dtype, step, first, X.shape[0])
        return core_sums(replace(o, activations=left), weights, X, y, w)


class Blocked(Array):
    """The same, block by block: bounded memory, blocks that stay in the cache, threads on NumPy.

    Threads need threadpoolctl, to hold BLAS to one thread meanwhile: without it they would fight for the cores.
    """

    name = "blocked"
    threaded = True

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self._blas = _blas_controller() if rows.backend.library.name == "numpy" else None
        if self._blas is None:
            self.threads = 1
        # Where BLAS is free to choose its threads, the order of its sums is not ours.
        self.same_bits = self._blas is not None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        itemsize = 4 if rows.dtype == "float32" else 8
        values = 3 * sum(objective.layer_sizes)  # layer, delta and a temporary of each unit
        return 2 ** max(8, min(16, int(math.log2(BLOCK_BYTES / (values * itemsize)))))

    def held(self):
        return contextlib.nullcontext() if self._blas is None else _one_blas_thread(self._blas)


def _blas_controller():
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


_lock = threading.Lock()
_holders = 0
_limit: Any = None


@contextlib.contextmanager
def _one_blas_thread(controller):
    """Hold BLAS to one thread. The limit is the process's: the first of several trainings sets it, the last ends it."""
    global _holders, _limit
    with _lock:
        if _holders == 0:
            _limit = controller.limit(limits=1, user_api="blas")
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _limit.restore_original_limits()


def core_sums(objective, weights, X, y, w):
    """What the core says of some rows: the `Sums` that every engine must compute."""
    layers = core.forward(weights, X, objective.activations)
    deltas = core.backward(weights, layers, y, objective.activations, objective.loss, w)
    updates = core.batch_updates(layers, deltas, objective.bias)
    return Sums(updates, totals(objective.loss, layers[-1], y, w))


def totals(loss, l, y, w):
    """Weight, loss and |y - output| (the mean over outputs) of some rows: an array of shape (3,)."""
    xp = namespace(y)
    value, error = loss.value(y, l, xp), xp.abs(y - l)
    if w is None:
        weight = xp.full_like(y[0, 0], float(y.shape[0]))
    else:
        weight, value, error = xp.sum(w), value * w[:, None], error * w[:, None]
    return xp.stack([weight, xp.sum(value), xp.sum(error) / y.shape[1]])
