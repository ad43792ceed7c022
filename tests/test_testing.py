"""The tests of the tests: engines that are wrong on purpose must fail the conformance suite."""

import numpy as np
import pytest

from bpaccel import Network, testing
from bpaccel.engines import Sums
from bpaccel.engines.blocked import Array, Blocked


class DropsABlock(Blocked):
    """Forgets the last of several blocks."""

    def sums(self, weights, order, start, stop):
        return super().sums(weights, order, start, max(self.block_rows, stop - self.block_rows))


class SkipsTheTail(Blocked):
    """Takes whole groups of four rows only, as a vector loop without its remainder would."""

    def block(self, weights, X, y, w):
        n = max(1, len(X) // 4 * 4)
        return super().block(weights, X[:n], y[:n], None if w is None else w[:n])


class NoBias(Array):
    def block(self, weights, X, y, w):
        sums = super().block(weights, X, y, w)
        if self.objective.bias:
            for u in sums.updates:
                u[-1] = 0
        return sums


class NoWeights(Array):
    def block(self, weights, X, y, w):
        return super().block(weights, X, y, None)


class Rounded(Array):
    """Right to three digits only, as half precision would be."""

    def block(self, weights, X, y, w):
        sums = super().block(weights, X, y, w)
        return Sums([u * (1 + 1e-3) for u in sums.updates], sums.totals)


class KeepsFloat32(Blocked):
    """Adds its blocks in float32."""

    def sums(self, weights, order, start, stop):
        total = None
        for first in range(start, stop, self.block_rows):
            part = self.block(weights, *self.rows.read(first, min(first + self.block_rows, stop), order))
            if total is None:
                total = part
            else:
                updates = [a + b for a, b in zip(total.updates, part.updates)]
                total = Sums(updates, total.totals + part.totals)
        return total


class Races(Blocked):
    """Adds blocks in whatever order the threads finish.

    Seen in float64 only: a few float32 sums added in float64 are exact, in any order.
    """

    def _in_order(self, function, items):
        results = list(super()._in_order(function, items))
        np.random.shuffle(results)  # unseeded on purpose: this is what a race does
        return iter(results)


class SplitsByThreads(Blocked):
    """Cuts blocks by the number of threads."""

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self.block_rows = max(1, self.block_rows // self.threads)


class ForgetsTheRate(Array):
    def run(self, weights, solver, state, batches, rates, step):
        return super().run(weights, solver, state, batches, [rates[0]] * len(rates), step)


WRONG = [DropsABlock, SkipsTheTail, NoBias, NoWeights, Rounded, KeepsFloat32, Races, SplitsByThreads, ForgetsTheRate]


@pytest.mark.parametrize("engine", WRONG, ids=lambda e: e.__name__)
def test_a_wrong_engine_fails_the_conformance_suite(engine):
    if engine in (KeepsFloat32, Races, SplitsByThreads):
        pytest.importorskip("threadpoolctl")
    with pytest.raises(AssertionError, match="engine '(array|blocked)'"):
        testing.check_engine(engine, dtypes=["float64" if engine is Races else "float32"])


def test_a_wrong_gradient_fails_the_gradient_check():
    class Wrong(Network):
        def gradients(self, *args, **kwargs):
            return [1.001 * g for g in super().gradients(*args, **kwargs)]

    X, y = np.random.default_rng(0).random((5, 3)), np.random.default_rng(1).random(5)
    with pytest.raises(AssertionError, match="the gradient says"):
        testing.check_gradients(Wrong([3, 4, 1], seed=1), X, y)


def test_the_bound_is_not_blind():
    """An error of 30 times the analysed rounding in one number of one layer is seen in every case."""

    class Off(Array):
        def block(self, weights, X, y, w):
            sums = super().block(weights, X, y, w)
            bounds = testing.expected(self.case)[2]
            sums.updates[0][0, 0] += 30 * bounds[0][0, 0] * np.finfo(X.dtype).eps
            return sums

    for case in testing.cases(dtypes=("float32",)):
        Off.case = case
        if case.n < 100:
            with pytest.raises(AssertionError):
                testing.check_case(Off, case)
