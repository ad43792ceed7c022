"""Workloads: what the benchmarks train, and who trains it.

A case is one network trained on N rows for 100 steps, by one engine on one backend. The rows are a small table laid
end to end, so that training follows the same path, to the same error, at every N: speed that learns nothing, or
something else, is seen.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from bpaccel import activations, core, losses, solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.engines import Batches
from bpaccel.engines.choice import choose
from bpaccel.objective import Objective

STEPS = 100  # of a training


class WrongResult(ValueError):
    """An engine's sums are not those of the core, so that it is not timed."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is learned: a table whose copies are the rows, and how a network learns it.

    Attributes
    ----------
    layer_sizes : tuple of int
    X : numpy.ndarray of float64, shape (T, I)
        The table, T rows. Its numbers are the same in float32.
    y : numpy.ndarray of float64, shape (T, O)
    init : str
    rate : float
        The learning rate, of ``reduction="mean"``.
    """

    layer_sizes: tuple
    X: Any
    y: Any
    init: str
    rate: float

    @property
    def activations(self):
        return ("sigmoid",) * (len(self.layer_sizes) - 1)

    @property
    def objective(self):
        rows = tuple(map(activations.get, self.activations))
        return Objective(self.layer_sizes, rows, losses.get("squared_error", rows[-1]))

    def weights(self, dtype="float64"):
        """The weights before the first step: NumPy arrays, one of shape (I, O) for each pair of layers."""
        return [W.astype(dtype) for W in core.init_weights(self.layer_sizes, self.init, seed=1)]

    def copies(self, n):
        """How many tables n rows are."""
        copies, rest = divmod(n, len(self.X))
        if rest or n < 1:
            raise ValueError(
                f"`rows` must be a multiple of the {len(self.X)} rows of the table that is learned; got {n:,}."
            )
        return copies

    def rows(self, n, dtype):
        """X (n, I) and y (n, O), NumPy arrays: the table's rows, over and over."""
        return tuple(np.tile(part.astype(dtype), (self.copies(n), 1)) for part in (self.X, self.y))

    def error(self, weights):
        """The mean ``|y - output|`` that weights reach, a float: over the table, and so over all of its copies."""
        weights = [W.astype(np.float64) for W in weights]
        return float(np.mean(np.abs(self.y - core.forward(weights, self.X, self.activations)[-1])))

    @cached_property
    def expected(self):
        """The error before training and after it: that of the core in NumPy float64 on the table alone."""
        return self.error(self.weights()), self.error(self.after(STEPS))

    def after(self, steps):
        """The weights after some steps of the core in NumPy float64, on the table alone."""
        weights = self.weights()
        for _ in range(steps):
            layers = core.forward(weights, self.X, self.activations)
            updates = core.batch_updates(layers, core.backward(weights, layers, self.y, self.activations))
            weights = core.apply_updates(weights, updates, self.rate / len(self.X))
        return weights

    def __str__(self):
        table = "XOR" if self.layer_sizes == (3, 4, 1) else f"a table of {len(self.X)} rows"
        net = "-".join(map(str, self.layer_sizes))
        return f"{table} tiled to N rows, net {net} sigmoid, {STEPS} steps at rate {self.rate:g}"


@cache
def workload(layer_sizes):
    """The `Workload` of a network.

    3-4-1 learns the tutorial's XOR. Other networks learn 64 rows of inputs -1 and 1 drawn by ``RandomState(1)``, with
    y = 1 where a drawn linear score is positive. The rate falls with the widest hidden layer, because the slope of
    the loss grows with it: that learns at every width that was tried, up to 784-128-10 and 128-128-128-10.
    """
    if layer_sizes == (3, 4, 1):
        X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=np.float64)
        return Workload(layer_sizes, X, np.array([[0.0], [1.0], [1.0], [0.0]]), "uniform", 16.0)
    random = np.random.RandomState(1)
    X = random.choice([-1.0, 1.0], (64, layer_sizes[0]))
    y = (X @ random.standard_normal((layer_sizes[0], layer_sizes[-1])) > 0).astype(np.float64)
    return Workload(layer_sizes, X, y, "he", 64 / max([4, *layer_sizes[1:-1]]))


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes
    ----------
    backend : str
    engine : str or type
        "auto", a name of `bpaccel.engines.choice.ENGINES`, or a subclass of Engine.
    dtype : {"float32", "float64"}
    rows : int
        A multiple of the table's rows.
    layer_sizes : tuple of int
    threads : int, optional
    """

    backend: str
    engine: Any
    dtype: str
    rows: int
    layer_sizes: tuple = (3, 4, 1)
    threads: int | None = None

    @property
    def engine_name(self):
        return self.engine if isinstance(self.engine, str) else self.engine.name

    def __str__(self):
        return f"{self.backend} {self.engine_name} {self.dtype} {self.rows:,} rows"


class Ours:
    """The 100 steps of a case, taken by its engine in runs of any length.

    ``host`` are the rows X (N, I) and y (N, O), where they are there already; else they are made of the table.

    Attributes
    ----------
    engine : Engine
    reason : str
        Why this engine.
    host : tuple of numpy.ndarray
        X (N, I) and y (N, O), from which the rows on the backend were made.
    reached : list of arrays or None
        The weights after the 100th step.
    """

    def __init__(self, case, host=None):
        self.case, self.work = case, workload(case.layer_sizes)
        self.backend = backend(case.backend)
        self.backend.check_dtype(case.dtype)
        self.host = self.work.rows(case.rows, case.dtype) if host is None else host
        self.solver, self.reached = solvers.get("gradient_descent"), None
        with self.backend.active():
            self.rows = Rows(*self.host, backend=self.backend, dtype=case.dtype)
            self.engine, self.reason = choose(
                case.engine, self.work.objective, self.rows, self.solver,
                batch_rows=case.rows, steps=STEPS, threads=case.threads,
            )  # fmt: skip
            self._first = [self.backend.asarray(W, case.dtype) for W in self.work.weights()]
        self.restart()

    def restart(self):
        """Back to the weights before the first step."""
        self.step, self.weights, self.state = 0, self._first, self.solver.start(self._first)

    def advance(self, steps):
        """Take some steps."""
        batches = Batches(None, [0] * steps, [self.rows.n] * steps)
        self.weights, self.state, self.totals = self.engine.run(
            self.weights, self.solver, self.state, batches, [self.work.rate] * steps, self.step
        )
        self.step += steps
        if self.step == STEPS:
            self.reached = self.weights

    def wait(self):
        """Until the device has done it."""
        self.backend.synchronize(*self.weights, self.totals)

    def sums(self):
        """The `Sums` of all rows at the weights before the first step."""
        with self.engine.held():
            return self.engine.sums(self._first, None, 0, self.rows.n)

    def check(self):
        """Raise `WrongResult` unless the engine's sums are those of the core in NumPy float64.

        The core's are taken from the table, times its copies. `bpaccel.testing` says how far rounding may carry each
        number; beyond that, a library that adds n rows one after the other is off by about the square root of n. A
        block that is left out is seen in the weight of the rows, which is exact.
        """
        work, copies = self.work, self.work.copies(self.rows.n)
        alike = testing.Case(work.layer_sizes, work.activations, "squared_error", self.case.dtype, n=len(work.X))
        arrays = (work.weights(self.case.dtype), work.X, work.y, None)
        updates, totals, *bounds = testing.expected(alike, arrays)
        sums = self.sums()
        walk = 2.0 * math.sqrt(min(self.rows.n, self.engine.block_rows))
        allowed = (testing.C + walk) * np.finfo(self.case.dtype).eps * copies
        names = [*(f"updates[{k}]" for k in range(len(updates))), "totals"]
        for name, is_, should, bound in zip(
            names, [*sums.updates, sums.totals], [*updates, totals], [*bounds[0], bounds[1]]
        ):
            is_, should, bound = self.backend.to_numpy(is_), should * copies, bound * allowed
            if name == "totals":
                bound[0] = 0.0
            if is_.shape != should.shape or not np.all(np.abs(is_ - should) <= bound):
                off = float(np.max(np.abs(is_ - should))) if is_.shape == should.shape else math.nan
                raise WrongResult(f"wrong, so not timed: {name} of engine {self.engine.name!r} must be those of "
                                  f"the core, at most {np.max(bound):.3g} off; got {off:.3g}.")  # fmt: skip

    def close(self):
        """Give the engine's threads back."""
        self.engine.close()


class Tutorial:
    """The tutorial's three-layer network as it prints it, in plain NumPy; the rate, over N, makes its sums a mean."""

    def __init__(self, work, X, y):
        self.work, self.X, self.y = work, X, y
        self.restart()

    def restart(self):
        self.step, self.weights = 0, self.work.weights(self.X.dtype)

    def advance(self, steps):
        def nonlin(x, deriv=False):
            if deriv:
                return x * (1 - x)
            return 1 / (1 + np.exp(-x))

        X, y, rate = self.X, self.y, self.work.rate / len(self.X)
        syn0, syn1 = self.weights
        for _ in range(steps):
            l0 = X
            l1 = nonlin(np.dot(l0, syn0))
            l2 = nonlin(np.dot(l1, syn1))
            l2_error = y - l2
            l2_delta = l2_error * nonlin(l2, deriv=True)
            l1_error = l2_delta.dot(syn1.T)
            l1_delta = l1_error * nonlin(l1, deriv=True)
            syn1 += rate * l1.T.dot(l2_delta)
            syn0 += rate * l0.T.dot(l1_delta)
        self.step += steps

    def wait(self):
        pass
