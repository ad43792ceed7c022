"""Very wide networks on NumPy: BLAS for the matrix products, one compiled pass for each thing between them.

Where a layer has millions of weights, its products are nearly all of the work, and BLAS takes more care than
`bpaccel.engines.products` of what no cache holds. What is left to win is what lies between: the core passes over a
layer some ten times, this engine once on the way forward and once on the way back, with kernels of
`bpaccel.engines.fused`. A block's layers lie unit by unit, as those want them, so that the products are those of the
core, transposed: ``l.T = f(W.T @ l_prev.T)``.
"""

import ctypes
import threading

import numpy as np

from bpaccel.engines import Sums, fused, plan
from bpaccel.engines.blocked import Blocked
from bpaccel.engines.numba import LESSON_BYTES, Numba, address, aligned, kernel

# Rows of a block: enough for BLAS to be at its best, few enough to stay in the caches. 784-128-10, 60,000 rows of
# float32, two threads, 0.5 MiB of second cache a core: 256 took 379 ms a step, 512 301, 1024 232, 2048 205.
BLOCK_ROWS = 2048


class Blas(Blocked):
    """BLAS in blocks of rows, one thread of it for each of ours, and compiled passes between its products."""

    name = "blas"

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        dtype, names = np.dtype(rows.dtype), [f.name for f in objective.activations]
        family, _, number = objective.loss.name.partition(":")
        self._dtype, self._lanes = dtype, LESSON_BYTES // dtype.itemsize
        kind = dtype.name, self._lanes
        self._forward = [_pass(fused.softmax if f == "softmax" else fused.activations, 5, *kind, f) for f in names]
        self._back = [_pass(fused.through_slopes, 6, *kind, f) for f in names[:-1]]
        self._output = _pass(fused.output, 5, *kind, names[-1], family)
        sizes, rules = np.array(objective.layer_sizes, np.int64), np.zeros(plan.RULE_NUMBERS)
        rules[plan.LOSS] = float(number or 0.0)
        # Units apart by (a multiple of) 4096 bytes would fall on the same lines of the cache, and wait for each other.
        self._apart = self.block_rows + 64 // dtype.itemsize
        self._plan = np.zeros(plan.PLAN_WORDS, np.int64)
        self._plan[[plan.SIZES, plan.RULES]] = address(sizes), address(rules)
        self._plan[[plan.APART, plan.DEPTH]] = self._apart, len(names)
        self._keep = sizes, rules
        self._own = threading.local()

    @classmethod
    def refuses(cls, objective, rows, solver):
        return Numba.refuses(objective, rows, solver)

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return BLOCK_ROWS

    def block(self, weights, X, y, w):
        n, sizes, bias = len(X), self.objective.layer_sizes, self.objective.bias
        end = -(-n // self._lanes) * self._lanes
        a, errors = self._memory()
        a[:, n:end] = errors[:, n:end] = 0.0  # rows that fill lanes: they count nothing, and may not be nan
        layers, at = [X.T], 0  # at: the unit that a layer begins with
        for W, size, activate in zip(weights, sizes[1:], self._forward):
            below, l = layers[-1], a[at : at + size, :n]
            np.matmul(W[: len(below)].T, below, out=l)  # (O, I) @ (I, n) -> (O, n)
            if bias:
                l += W[-1][:, None]
            activate(None, address(self._plan), address(a), at * self._apart, size, end)
            layers.append(l)
            at += size

        outputs, totals = sizes[-1], np.zeros(3)
        a[at : at + outputs, :n] = y.T
        a[at + outputs, :n] = 1.0 if w is None else w
        at -= outputs
        self._output(None, address(self._plan), address(a), at * self._apart, end, address(totals))
        updates = []
        for k in reversed(range(len(weights))):
            W, below, delta = weights[k], layers[k], layers[k + 1]
            update = np.empty(W.shape, self._dtype)
            np.matmul(below, delta.T, out=update[: len(below)])  # (I, n) @ (n, O) -> (I, O)
            if bias:
                np.sum(delta, axis=1, out=update[-1])
            updates.append(update)
            if k > 0:  # the delta below takes the place of its layer, which is needed no more
                at -= len(below)
                np.matmul(W[: len(below)], delta, out=errors[: len(below), :n])  # (I, O) @ (O, n) -> (I, n)
                self._back[k - 1](
                    None, address(self._plan), address(a), at * self._apart, address(errors), len(below), end
                )
        return Sums(updates[::-1], totals.astype(self._dtype, copy=False))  # in float64, all that follows would be too

    def _memory(self):
        """This thread's: layers, targets and weights of rows, unit by unit; and the errors of a layer."""
        if not hasattr(self._own, "memory"):
            _, *hidden, outputs = self.objective.layer_sizes
            shapes = [(count, self._apart) for count in (sum(hidden) + 2 * outputs + 1, max(hidden, default=1))]
            bytes_of = self._apart * self._dtype.itemsize
            self._own.memory = [aligned(s[0] * bytes_of).view(self._dtype).reshape(s) for s in shapes]
        return self._own.memory


def _pass(function, numbers, *kind):
    """A kernel of `fused` as a C function; other threads run while it does."""
    compiled = kernel(function, *kind)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * numbers)(compiled.address)
