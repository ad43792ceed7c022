"""The two plain engines: the core in one pass over all rows, and the same pass block by block.

`Array` defines what every engine must compute. `Blocked` computes it in bounded memory, faster where the rows are
many, because a block's layers and deltas stay in the processor's cache; and more accurately, because blocks are added
in float64.
"""

import contextlib
import contextvars
import math
import threading
from dataclasses import replace
from typing import Any

from bpaccel import core
from bpaccel.backends import namespace
from bpaccel.data import dense
from bpaccel.engines import Engine, Sums, thread_count

# Bytes that a block's layers, deltas and temporaries may fill. NumPy, 3-4-1, a million rows, two threads, 2 MiB of
# second cache a core: 4 MiB took 29 ns a row, 8 took 31, 2 took 37, 1 took 51, for less pays for Python.
BLOCK_BYTES = 4 * 2**20
# What is fed forward at once elsewhere than in NumPy: this many rows, or numbers in the widest layer.
FED_ROWS, FED_NUMBERS = 2**16, 2**24
# From so many numbers in all layers on, NumPy feeds them forward in threads: some ten milliseconds of work, of which to
# ask for the threads and to hold BLAS to one takes three where many libraries are loaded.
THREADED_NUMBERS = 2**23


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
        return cached_rows(objective.layer_sizes, rows.dtype)

    def held(self):
        return contextlib.nullcontext() if self._blas is None else _one_blas_thread(self._blas)


def cached_rows(layer_sizes, dtype):
    """How many rows of a network stay in the cache: a power of two."""
    itemsize = 4 if dtype == "float32" else 8
    values = 3 * sum(layer_sizes)  # layer, delta and a temporary of each unit
    return 2 ** max(8, min(16, int(math.log2(BLOCK_BYTES / (values * itemsize)))))


def feed(weights, X, activations, backend, dtype):
    """The last layer for each row of X, dense or sparse and of any library, block by block; threads on NumPy.

    Returns
    -------
    array of shape (N, O)
        On ``backend``, in ``dtype`` (a name).
    """
    host = backend.library.name == "numpy"
    if host:
        from bpaccel.engines.cpu import forward  # on other libraries, nothing of it is needed

        if forward.usable(activations):
            return forward.outputs(weights, X, activations, dtype)
    widths = [X.shape[1], *(W.shape[1] for W in weights)]
    count = cached_rows(widths, dtype) if host else min(FED_ROWS, max(1, FED_NUMBERS // max(widths)))
    starts = range(0, X.shape[0], count)

    def some(at):
        rows = dense(X[at : min(at + count, X.shape[0]), ...])
        return core.forward(weights, backend.asarray(rows, dtype), activations)[-1]

    threads = min(thread_count(), len(starts)) if host and X.shape[0] * sum(widths) >= THREADED_NUMBERS else 1
    blas = _blas_controller() if threads > 1 else None
    if blas is None:
        with backend.active():
            parts = [some(at) for at in starts]
    else:
        from concurrent.futures import ThreadPoolExecutor

        with _one_blas_thread(blas), ThreadPoolExecutor(threads, thread_name_prefix="bpaccel") as pool:
            # In the caller's context, which holds np.errstate.
            waiting = [pool.submit(contextvars.copy_context().run, some, at) for at in starts]
            parts = [part.result() for part in waiting]
    return parts[0] if len(parts) == 1 else backend.xp.concat(parts, axis=0)


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
