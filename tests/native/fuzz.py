"""A fuzz of the fused engine: random networks, rows, strides, orders, batches, solvers and threads.

    python tests/native/fuzz.py [--cases N] [--seconds S] [--seed K] [--shared]

Sums and outputs are held to NumPy's in float64, within the bound of `bpaccel.testing`; steps to the text of the
solvers; and all ways to the same numbers to the same bytes. Rows, and the memory of kernels, end where nobody may read
or write (`memory.py`). A case is a function of its seed. The last line that was printed names the case that failed, or
that ended the process. The digest in the last line is that of all results: it is the same for every level of the
library.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import itertools
import sys
import threading
import time
from dataclasses import dataclass, replace
from unittest import mock

import memory
import numpy as np

from bpaccel import solvers
from bpaccel.activations import ACTIVATIONS
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.dropout import Dropout
from bpaccel.engines import Batches
from bpaccel.engines.cpu import forward, fused, launch
from bpaccel.engines.cpu.library import library
from bpaccel.engines.cpu.plan import BLOCK_ROWS
from bpaccel.testing import C, Case, ChunkedRows, expected

HIDDEN = [name for name, f in ACTIVATIONS.items() if f.slope is not None]
OUTPUTS = [
    *itertools.product(HIDDEN, ("squared_error", "absolute_error", "huber:0.3", "quantile:0.9")),
    *itertools.product(("exp", "softplus", "sigmoid"), ("poisson",)),
    *itertools.product(("sigmoid", "softmax"), ("log_loss",)),
]
# What has a kink, where a rounded number may fall on either side; and what takes its place where a number comes near.
SMOOTH = {"relu": "elu", "leaky_relu": "softplus", "absolute_error": "squared_error", "quantile:0.9": "huber:0.3"}
# Around the ends of vectors, of stretches, of blocks and of nodes.
ROWS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 255, 256, 257, 300, 511, 513, 1000, 1023, 1024,
        1025, 1279, 2047, 2049, 3100, 4097, 5000)  # fmt: skip
LAYOUTS = ("C", "F", "rows apart", "columns apart", "rows reversed", "columns reversed", "one row", "windows",
           "odd addresses", "other byte order")  # fmt: skip
ORDERS = ("none", "none", "permutation", "some twice", "int32", "apart")
SOLVERS = (
    solvers.GradientDescent(), solvers.Momentum(0.8), solvers.Nesterov(0.7), solvers.Adam(epsilon=0.01),
    solvers.AdamW(epsilon=0.01, weight_decay=0.1), solvers.RMSprop(epsilon=0.01), solvers.RMSprop(0.9, 0.1, 0.5),
)  # fmt: skip
ASTRAY = 100.0  # larger weights are those of a training of which nothing can be told but its bytes


class Wrong(AssertionError):
    """The engine is wrong in a case."""


@dataclass(frozen=True)
class Trial:
    """A case, where its rows lie in memory, and what is asked of the engine."""

    seed: int
    case: Case
    X_layout: str
    y_layout: str
    w_layout: str
    at_end: bool  # the rows' memory has nothing readable behind it; else, before it
    strict: bool  # and so has that of the kernels
    order: str
    start: int
    stop: int
    dropout: Dropout | None
    # The run.
    solver: solvers.Solver
    steps: int
    first_step: int
    reduction: str
    l1: float
    l2: float
    clip: float | None
    # The other way to the same bytes.
    threads: int
    slots: bool
    packed: bool
    chunked: bool
    general: bool

    def __str__(self):
        fields = [f.name for f in dataclasses.fields(self)][2:]
        return f"seed {self.seed}: {self.case}; " + ", ".join(f"{name}={getattr(self, name)}" for name in fields)

    @property
    def shared(self):
        """Whether threads share the rows."""
        return self.stop - self.start > BLOCK_ROWS and self.threads > 1


def draw(seed):
    """The `Trial` of a seed."""
    random = np.random.default_rng(seed)

    def one(*values):
        return values[random.integers(len(values))]

    def happens(share):
        return bool(random.random() < share)

    case = _network(random, one, happens)
    sizes = case.layer_sizes
    count = sum((i + case.bias) * o for i, o in itertools.pairwise(sizes))
    n = min(one(*ROWS), int(10 ** random.uniform(4, 6.5)) // count + 1)
    case = replace(case, n=n, weighted=happens(0.5), seed=seed)
    start, stop = sorted(map(int, random.integers(0, n + 1, 2)))
    if stop == start or happens(0.6):
        start, stop = 0, n
    return Trial(
        seed, case, X_layout=one("C", *LAYOUTS), y_layout=one("C", *LAYOUTS),
        w_layout=one("C", "rows apart", "rows reversed", "one row"), at_end=happens(0.5), strict=happens(0.8),
        order=one(*ORDERS), start=start, stop=stop,
        dropout=Dropout(float(random.uniform(0, 0.8)), int(random.integers(2**32))) if happens(0.25) else None,
        solver=one(*SOLVERS), steps=one(1, 2, 4), first_step=one(0, 1, 7), reduction=one("mean", "sum"),
        l1=one(0.0, 0.0, 0.01), l2=one(0.0, 0.0, 0.1), clip=one(None, None, 0.5),
        threads=one(1, 2, 3, 8), slots=happens(0.5), packed=happens(0.5), chunked=happens(0.3), general=happens(0.5),
    )  # fmt: skip


def _network(random, one, happens):
    dtype, bias = one("float32", "float64"), happens(0.5)
    kind = random.choice(["written out", "small", "middle", "wide"], p=[0.2, 0.3, 0.35, 0.15])
    depth = one(1, 2, 2, 3, 3, 4) if kind == "small" else one(1, 2, 2, 3)
    most = {"small": 9, "middle": 40, "wide": 140}.get(kind, 1)
    sizes = tuple(int(random.integers(max(1, most // 3 if happens(0.7) else 1), most + 1)) for _ in range(depth + 1))
    if kind == "wide" and happens(0.5):  # more than is summed over at once, forward and back
        sizes = tuple(int(random.integers(250, 400)) if happens(0.5) else size // 4 + 1 for size in sizes)
    output, loss = one(*OUTPUTS)
    # One of exponentials of exponentials is infinite.
    hidden = [one(*HIDDEN) if k == 0 else one(*(f for f in HIDDEN if f != "exp")) for k in range(depth - 1)]
    which = int(random.integers(10**6))
    if kind == "written out":
        found = library()
        table = found.tables[dtype]
        network = table.written[which % table.networks]
        sizes, bias = tuple(network.sizes[: network.depth + 1]), bool(network.bias)
        hidden, output = [found.activations[network.hidden]] * (network.depth - 1), found.activations[network.output]
        loss = found.losses[network.loss]
    return Case(sizes, (*hidden, output), loss, dtype, bias)


# --- rows in memory ---


def laid_out(x, layout, at_end):
    """An array of x's shape, in memory of just the bytes that the layout needs.

    Where rows share memory, the last of x's numbers stay there.
    """
    rows, columns = (*x.shape, 1)[:2]
    steps = {
        "F": (1, rows), "rows apart": (2 * columns + (x.ndim - 1), 1), "columns apart": (2 * columns, 2),
        "one row": (0, 1), "windows": (1, 1), "rows reversed": (-columns, 1), "columns reversed": (columns, -1),
    }.get(layout, (columns, 1))[: x.ndim]  # fmt: skip
    spans = [(count - 1) * step for count, step in zip(x.shape, steps)]
    first = -sum(span for span in spans if span < 0)
    odd = layout == "odd addresses"
    dtype = x.dtype.newbyteorder() if layout == "other byte order" else x.dtype
    numbers = memory.exact((sum(map(abs, spans)) + 1) * x.itemsize + odd, at_end)[odd:].view(dtype)
    numbers[:] = 0
    laid = np.lib.stride_tricks.as_strided(numbers[first:], x.shape, [step * x.itemsize for step in steps])
    laid[...] = x
    return laid


def _order(trial, random):
    n = trial.case.n
    if trial.order == "none":
        return None
    order = random.permutation(n) if trial.order == "permutation" else random.integers(0, n, n + random.integers(9))
    order = order.astype(np.int32 if trial.order == "int32" else np.int64)
    return laid_out(order, "rows apart" if trial.order == "apart" else "C", trial.at_end)


def rows_of(trial):
    """What a trial is of, without what may fall on either side of a kink.

    Returns
    -------
    trial : Trial
    weights : list of arrays
    arrays : list
        X, y and w, laid out.
    order : numpy.ndarray of shape (M,), or None
    """
    names = tuple(SMOOTH.get(f, f) for f in trial.case.activations)
    smooth = replace(trial.case, activations=names, loss=SMOOTH.get(trial.case.loss, trial.case.loss))
    for case in (trial.case, smooth):
        random = np.random.default_rng([trial.seed, 1])
        weights, *arrays = case.arrays()
        if case.loss in ("log_loss", "poisson"):  # logarithms of surer outputs are cut, as the dtype says
            weights = [W / 4 for W in weights]
        layouts = trial.X_layout, trial.y_layout, trial.w_layout
        arrays = [None if x is None else laid_out(x, lay, trial.at_end) for x, lay in zip(arrays, layouts)]
        if case.weighted and random.random() < 0.5:  # rows that count nothing
            arrays[2][:: 1 + case.n // 3] = 0.0
            arrays[2][-1] = 0.75
        order = _order(trial, random)
        if not near_a_kink(case, weights, *arrays[:2]):
            break
    return replace(trial, case=case), weights, arrays, order


# --- what should come out ---


@dataclass(frozen=True)
class Left(Case):
    """A case with the activations that dropout leaves."""

    left: tuple = ()

    def objective(self, **changes):
        return replace(super().objective(**changes), activations=self.left)


def limit(dtype, added=24):
    """How many times the analysed rounding a sum may be off, times eps, if ``added`` numbers are added one by one.

    The analysis leaves out what adding rounds. Where all rows are the same, all sums are rounded to the same side.
    """
    return np.finfo(dtype).eps * (C + added / 2)


def passed_forward(case, weights, X):
    """The last layer in float64, how far rounding may carry it, in eps, and whether a sum is as near as that to a kink:
    by the analysis of `expected`."""
    l, e, near = X.astype(np.float64), np.zeros(X.shape), False
    for W, f in zip(weights, case.objective().activations):
        W, I = W.astype(np.float64), l.shape[1]
        bias = W[I] if case.bias else 0.0
        z = l @ W[:I] + bias
        e_z = (np.abs(l) + e) @ np.abs(W[:I]) + np.abs(bias)
        near |= f.name in SMOOTH and bool((np.abs(z) <= limit(case.dtype) * e_z).any())
        l = f.function(z, np)
        if f.slope is None:
            e = l * (1.0 + e_z + np.max(e_z, axis=1, keepdims=True))
        else:
            e = np.abs(f.slope(l, np)) * e_z + np.abs(l)
    return l, e, near


def near_a_kink(case, weights, X, y):
    l, e, near = passed_forward(case, weights, X)
    error = np.abs(y - l) <= limit(case.dtype) * (np.abs(y) + np.abs(l) + e)
    return near or (case.loss in SMOOTH and bool(error.any()))


def compare(what, found, should, bound, dtype, added=24):
    """Raise Wrong unless a sum is what it should be, as far as the bound of its rounding allows: see `limit`."""
    found = np.asarray(found, np.float64)
    if found.shape != should.shape:
        raise Wrong(f"{what}: shape {found.shape} for {should.shape}")
    share = np.abs(found - should) / np.maximum(bound * limit(dtype, added), np.finfo(dtype).tiny)
    if not (share <= 1).all():
        at = np.unravel_index(np.argmax(np.where(np.isnan(share), np.inf, share)), share.shape)
        place = tuple(map(int, at))
        raise Wrong(f"{what}: at {place} {found[at]:.9g} for {should[at]:.9g}, {share[at]:.3g} times the bound")


def same(what, found, should):
    """Raise Wrong unless two arrays have the same bytes."""
    if found.tobytes() != should.tobytes():
        at = np.flatnonzero(found != should)[:3]
        raise Wrong(f"{what}: other bytes at {at.tolist()} of {len(found)}: {found[at]} for {should[at]}")


def flat(sums):
    return np.concatenate([*(u.ravel() for u in sums.updates), sums.totals])


def joined(matrices):
    return np.concatenate([W.ravel() for W in matrices])


def parts(weights, state, totals):
    """What a run returned, by name."""
    groups = {f"state {k}": joined(group) for k, group in enumerate(state)}
    return {"weights": joined(weights), **groups, "totals": totals.ravel()}


# --- checks ---


@contextlib.contextmanager
def another_way(trial):
    """Threads for little work, few slots, other tiles and small pieces: these change no bit."""
    packed_rows = 1 if trial.packed else sys.maxsize
    with (
        mock.patch.object(launch, "THREADED_WORK", 0),
        mock.patch.object(launch, "SLOTS_BYTES", 1 if trial.slots else launch.SLOTS_BYTES),
        mock.patch.object(launch, "PACKED_ROWS", packed_rows),
        mock.patch.object(forward, "PACKED_ROWS", packed_rows),
        mock.patch.object(forward, "THREADED_WORK", 0),
        mock.patch.object(forward, "CONVERTED_BYTES", 1),
        mock.patch.object(forward, "thread_count", return_value=trial.threads),
        mock.patch.object(fused, "READ_BLOCKS", 2),
    ):
        yield


class Check:
    """A trial at work: `sums`, `run` and `outputs` return all that came out, or raise Wrong."""

    def __init__(self, trial):
        self.trial, self.weights, self.arrays, self.order = rows_of(trial)
        trial = self.trial
        self.case, self.dtype, self.numpy = trial.case, trial.case.dtype, backend("numpy")
        self.objective = self.case.objective(
            reduction=trial.reduction, l1=trial.l1, l2=trial.l2, clip=trial.clip, dropout=trial.dropout
        )
        self.rows = Rows(*self.arrays, backend=self.numpy, dtype=self.dtype)
        self.places = np.arange(self.case.n) if self.order is None else np.asarray(self.order)
        self.random = np.random.default_rng([trial.seed, 2])

    def engine(self, rows=None, threads=1):
        return fused.Fused(self.objective, rows or self.rows, threads)

    def another_engine(self):
        """With threads; of rows in chunks, perhaps; and a network that is written out goes the way of all others."""
        kind, objective = ChunkedRows if self.trial.chunked else Rows, self.objective
        if objective.dropout is None and self.trial.general:
            objective = replace(objective, dropout=Dropout(0.0, 0))
        return fused.Fused(objective, kind(*self.arrays, backend=self.numpy, dtype=self.dtype), self.trial.threads)

    def sums(self):
        trial, case, step = self.trial, self.case, self.trial.first_step
        at = self.places[trial.start : trial.stop]
        gathered = [None if x is None else x[at].astype(self.dtype) for x in self.arrays]
        if trial.dropout is not None:
            left = trial.dropout.activations(
                self.objective.activations, case.layer_sizes, self.numpy, "float64", step, trial.start, len(at)
            )
            case = Left(**vars(case), left=left)
        updates, totals, bounds, totals_bound = expected(case, (self.weights, *gathered))

        def asked(engine, start, stop):
            return engine.dropped_sums(self.weights, self.order, start, stop, step)

        found = asked(self.engine(), trial.start, trial.stop)
        for k, each in enumerate(zip(found.updates, updates, bounds)):
            compare(f"the sums of matrix {k}", *each, self.dtype, self._added(len(at), k))
        compare("the totals", found.totals, totals, totals_bound, self.dtype, self._added(len(at)))
        found = flat(found)
        with another_way(trial):
            engine = self.another_engine()
            same("the sums in another way", flat(asked(engine, trial.start, trial.stop)), found)
            if len(at) > BLOCK_ROWS:
                blocks = -(-len(at) // BLOCK_ROWS)
                half = trial.start + (BLOCK_ROWS << (blocks - 1).bit_length() - 1)
                halves = [flat(asked(engine, trial.start, half)), flat(asked(engine, half, trial.stop))]
                same("the sum of the halves of a node", halves[0] + halves[1], found)
            if trial.dropout is None and (gathered[2] is None or gathered[2].any()):
                engine = self.engine(Rows(*gathered, backend=self.numpy, dtype=self.dtype), trial.threads)
                same("the sums of rows that were gathered", flat(engine.sums(self.weights, None, 0, len(at))), found)
        self._callers(asked, found)
        return found

    def _added(self, n, matrix=None):
        """How many numbers are added one by one in sums over n rows. In float64 NumPy so adds all. In float32 a lane
        adds up to 24, and all rows of a block where a layer's sums are kept by units."""
        if self.dtype == "float64":
            return 24 + n
        table = library().tables[self.dtype]
        parts = launch.layout(self.case.layer_sizes, self.case.bias, 4, table, written=False).parts
        return min(n, BLOCK_ROWS) if matrix is not None and parts[matrix] else 24

    def _callers(self, asked, should):
        """Several Python threads with one engine."""
        if self.trial.seed % 8 == 0:
            engine, results = self.another_engine(), []
            where = self.trial.start, self.trial.stop
            callers = [threading.Thread(target=lambda: results.append(flat(asked(engine, *where)))) for _ in range(3)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            if len(results) != len(callers):
                raise Wrong("a caller in another Python thread raised an error")
            for result in results:
                same("the sums for several Python threads at once", result, should)

    def _batches(self):
        """Steps of any rows, of none too; of the same ones again and again; or of few."""
        starts, stops = np.sort(self.random.integers(0, len(self.places) + 1, (2, self.trial.steps)), axis=0)
        kind = self.random.random()
        if kind < 0.5:
            starts[:], stops[:] = self.trial.start, self.trial.stop
        elif kind < 0.75:
            stops = np.minimum(stops, starts + 40)
        return Batches(self.order, starts, stops)

    def run(self):
        trial, solver, first = self.trial, self.trial.solver, self.trial.first_step
        batches, rates = self._batches(), self.random.uniform(0.01, 0.3, trial.steps)
        if trial.reduction == "sum" and trial.clip is None:
            rates /= len(self.places)
        state = solver.start(self.weights)
        if self.random.random() < 0.5:
            state = tuple([self.random.random(W.shape).astype(self.dtype) / 4 for W in group] for group in state)
        whole = parts(*self.engine().run(self.weights, solver, state, batches, rates, first))
        with another_way(trial):
            other = parts(*self.another_engine().run(self.weights, solver, state, batches, rates, first))
        for name, numbers in whole.items():
            same(f"{name} of a run in another way", other[name], numbers)
        engine, now, totals = self.engine(), (self.weights, state), []
        for j in range(trial.steps):
            batch = Batches(self.order, batches.starts[j : j + 1], batches.stops[j : j + 1])
            *then, total = engine.run(now[0], solver, now[1], batch, rates[j : j + 1], first + j)
            self._step(engine, now, then, batch, rates[j], first + j, total[0])
            now = then
            totals.append(total)
        for name, numbers in parts(*now, np.concatenate(totals)).items():
            same(f"{name} of a run step by step", numbers, whole[name])
        return np.concatenate([numbers.astype(np.float64) for numbers in whole.values()])

    def _step(self, engine, before, after, batch, rate, t, total):
        """A step against the text of the solver, in float64, from the engine's own sums."""
        sums = engine.dropped_sums(before[0], self.order, int(batch.starts[0]), int(batch.stops[0]), t)
        same("the totals of a step", total[:3], np.asarray(sums.totals, np.float64))
        solver = self.trial.solver
        weights, *state = ([W.astype(np.float64) for W in group] for group in (before[0], *before[1]))
        updates, penalty = self.objective.finish(weights, sums)
        largest = np.max([1.0, *(np.abs(u).max() for u in updates)])  # nan, where one is
        if not (largest < ASTRAY**3 and all(np.abs(W).max() < ASTRAY for W in weights)):
            return
        compare("the penalty", total[3:], np.array([penalty]), np.array([100.0 * abs(penalty)]), "float64")
        should = solver.step(weights, updates, tuple(state), rate, t)
        # Each number is off by some roundings of what it is made of.
        scaled = largest / getattr(solver, "epsilon", 1.0)
        made_of = [1.0 + rate * scaled, *([largest, scaled] if len(state) == 1 else [largest**2, largest**2 + scaled])]
        names = ["weights", *(f"state {k}" for k in range(len(state)))]
        for name, size, *groups in zip(
            names, made_of, (after[0], *after[1]), (should[0], *should[1]), (weights, *state)
        ):
            for found, right, old in zip(*groups):
                bound = 4 * (np.abs(right) + np.abs(old) + size)
                compare(f"{name} after step {t}", found, right, bound, self.dtype)

    def outputs(self):
        trial, X, names = self.trial, self.arrays[0], self.case.activations
        found = forward.outputs(self.weights, X, names, self.dtype)
        compare("the outputs", found, *passed_forward(self.case, self.weights, X)[:2], self.dtype)
        with another_way(trial):
            at = self.random.permutation(self.case.n)[: 1 + self.case.n // 2]
            some = forward.outputs(self.weights, np.ascontiguousarray(X[at]), names, self.dtype)
            same("the outputs of some rows", some.ravel(), found[at].ravel())
            other = forward.outputs(self.weights, X, names, self.dtype)
            same("the outputs in another way", other.ravel(), found.ravel())
        return found.ravel()


def check(trial):
    """The bytes of all results of a trial.

    Raises
    ------
    Wrong
    """
    with (
        np.errstate(all="ignore"),
        memory.strict(trial.at_end) if trial.strict else contextlib.nullcontext(),
    ):
        it = Check(trial)
        return b"".join(part().tobytes() for part in (it.sums, it.run, it.outputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, metavar="N")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="end after so many")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="K", help="of the first case; each next has the next one"
    )
    parser.add_argument("--shared", action="store_true", help="only cases in which threads share the rows")
    chosen = parser.parse_args()
    faulthandler.enable()
    began, digest, seed, done = time.monotonic(), hashlib.sha256(), chosen.seed, 0
    while done < chosen.cases and time.monotonic() - began < chosen.seconds:
        trial = draw(seed)
        seed += 1
        if chosen.shared and not trial.shared:
            continue
        print(trial, flush=True)
        try:
            digest.update(check(trial))
        except Wrong as error:
            print(f"{error}\nAgain: python tests/native/fuzz.py --cases 1 --seed {trial.seed}")
            return 1
        done += 1
    print(f"{done} cases of level {library().level}: {digest.hexdigest()[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
