"""The tests of the tests: engines that are wrong on purpose must fail the conformance suite."""

import functools
import itertools

import numpy as np
import pytest

from bpaccel import Network, testing
from bpaccel.engines import Sums, blocked, fold, widened
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


class AddsInAnotherOrder(Blocked):
    """Adds its blocks in float64, in the order that `added` says: right, and of the same bytes in every way."""

    def sums(self, weights, order, start, stop):
        firsts = range(start, stop, self.block_rows)
        parts = [self.block(weights, *self.rows.read(k, min(k + self.block_rows, stop), order)) for k in firsts]
        return self.added([widened(part, self.rows.backend) for part in parts], start)


class AddsLeftToRight(AddsInAnotherOrder):
    def added(self, parts, start):
        return functools.reduce(fold, parts)


class AddsRightToLeft(AddsInAnotherOrder):
    def added(self, parts, start):
        return functools.reduce(lambda right, left: fold(left, right), parts[::-1])


class CarriesOnce(AddsInAnotherOrder):
    """Adds pairs, and then the pairs from left to right, as one who forgets that a carry may carry on."""

    def added(self, parts, start):
        pairs = [functools.reduce(fold, parts[k : k + 2]) for k in range(0, len(parts), 2)]
        return functools.reduce(fold, pairs)


class EndsFromTheLeft(AddsInAnotherOrder):
    """Adds the nodes that a ragged end leaves from the left: 4 + 2 blocks, and then the last."""

    def added(self, parts, start):
        nodes = []
        while parts:
            whole = 1 << len(parts).bit_length() - 1
            nodes.append(self.node(parts[:whole]))
            parts = parts[whole:]
        return functools.reduce(fold, nodes)

    def node(self, parts):
        half = len(parts) // 2
        return parts[0] if half == 0 else fold(self.node(parts[:half]), self.node(parts[half:]))


class SplitsInTheMiddle(AddsInAnotherOrder):
    """Halves its blocks whatever their number: 6 of them are 3 and 3."""

    def added(self, parts, start):
        half = len(parts) // 2
        return parts[0] if half == 0 else fold(self.added(parts[:half], start), self.added(parts[half:], start))


class CountsFromTheFirstRow(AddsInAnotherOrder):
    """Numbers blocks from the first of all rows on, and not from the first of the step."""

    def added(self, parts, start):
        nodes = list(enumerate(parts, start // self.block_rows))
        while len(nodes) > 1:
            above = []
            for _, halves in itertools.groupby(nodes, lambda node: node[0] // 2):
                halves = list(halves)
                above.append((halves[0][0] // 2, functools.reduce(fold, [sums for _, sums in halves])))
            nodes = above
        return nodes[0][1]


class RunsLeftToRight(Blocked):
    """Adds its sums as a tree where they are asked for, and otherwise in a run."""

    def run(self, *args):
        return AddsLeftToRight(self.objective, self.rows, self.threads).run(*args)


class ForgetsTheRate(Array):
    def run(self, weights, solver, state, batches, rates, step):
        return super().run(weights, solver, state, batches, [rates[0]] * len(rates), step)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 rows, so that few rows are many of them."""
    pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(blocked, "BLOCK_BYTES", 1)


WRONG = [DropsABlock, SkipsTheTail, NoBias, NoWeights, Rounded, KeepsFloat32, Races, SplitsByThreads, ForgetsTheRate]


@pytest.mark.parametrize("engine", WRONG, ids=lambda e: e.__name__)
def test_a_wrong_engine_fails_the_conformance_suite(engine):
    if engine in (KeepsFloat32, Races, SplitsByThreads):
        pytest.importorskip("threadpoolctl")
    with pytest.raises(AssertionError, match="engine '(array|blocked)'"):
        testing.check_engine(engine, dtypes=["float64" if engine is Races else "float32"])


NO_TREE = [
    AddsLeftToRight, AddsRightToLeft, CarriesOnce, EndsFromTheLeft, SplitsInTheMiddle, CountsFromTheFirstRow,
    RunsLeftToRight, SplitsByThreads,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", NO_TREE, ids=lambda e: e.__name__)
def test_sums_that_are_no_binary_tree_are_seen(engine, dtype, small_blocks):
    with pytest.raises(AssertionError, match="engine 'blocked': the sum of .* is not that of the binary tree"):
        testing.check_tree(engine, dtype)


def test_the_conformance_suite_asks_for_the_tree(small_blocks):
    """Sums from left to right are right, and have the same bytes in every way: nothing else sees them."""
    testing.check_same_bits(AddsLeftToRight, "float32")
    with pytest.raises(AssertionError, match="is not that of the binary tree"):
        testing.check_engine(AddsLeftToRight, dtypes=["float32"])


def test_the_tree_is_asked_of_engines_alone_that_promise_the_same_bytes(small_blocks, monkeypatch):
    monkeypatch.setattr(blocked, "_blas_controller", lambda: None)
    testing.check_tree(AddsLeftToRight)


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
