"""Checks for engines, activations and losses: ours, and those of your own.

An engine is right if its sums are those of the core in NumPy float64, within `C` times the rounding that the formulas
themselves suffer in the engine's dtype. That bound follows every product of the two passes with absolute values (a
first-order running error analysis, as in Higham, Accuracy and Stability of Numerical Algorithms, ch. 3); a tolerance
relative to the result would be flaky or blind, because sums cancel.
"""

import copy
import itertools
import threading
from dataclasses import dataclass, replace

import numpy as np

from bpaccel import activations, core, losses, solvers
from bpaccel.backends import backend as _backend_of_name
from bpaccel.data import Rows
from bpaccel.dropout import Dropout
from bpaccel.engines import Batches, Engine
from bpaccel.engines.choice import find
from bpaccel.objective import Objective

# How many times the analysed rounding an engine may be off. Worst seen: 2.3, of blocked in float64.
C = 6.0


@dataclass(frozen=True)
class Case:
    """One network and its rows, in words: what `arrays` draws is a pure function of it."""

    layer_sizes: tuple
    activations: tuple
    loss: str
    dtype: str
    bias: bool = False
    weighted: bool = False
    n: int = 7
    layout: str = "C"
    seed: int = 0

    def __str__(self):
        parts = ["-".join(map(str, self.layer_sizes)), ",".join(self.activations), self.loss, self.dtype, f"n={self.n}"]
        return " ".join([*parts, self.layout, *("bias",) * self.bias, *("weighted",) * self.weighted])

    def objective(self, **changes):
        """The `Objective` of the case; the sum over rows, unless ``changes`` say otherwise."""
        rows = tuple(map(activations.get, self.activations))
        loss = losses.get(self.loss, rows[-1])
        return replace(Objective(self.layer_sizes, rows, loss, self.bias, "sum"), **changes)

    def arrays(self):
        """Weights, X (N, I), y (N, O) and the row weights (N,) or None, as NumPy arrays of the case's dtype."""
        random = np.random.default_rng([self.seed, self.n, *self.layer_sizes])
        inputs, outputs = self.layer_sizes[0], self.layer_sizes[-1]
        X = _laid_out(random.standard_normal((self.n, inputs)).astype(self.dtype), self.layout)
        weights = [
            (random.uniform(-1, 1, (i + self.bias, o)) / np.sqrt(i)).astype(self.dtype)
            for i, o in itertools.pairwise(self.layer_sizes)
        ]
        if self.activations[-1] == "softmax":
            y: np.ndarray = np.eye(outputs)[random.integers(0, outputs, self.n)]
        elif self.loss == "log_loss":
            y = random.integers(0, 2, (self.n, outputs))
        elif self.loss == "poisson":
            y = random.poisson(1.5, (self.n, outputs))
        else:
            y = random.standard_normal((self.n, outputs))
        w = random.uniform(0.1, 2.0, self.n).astype(self.dtype) if self.weighted else None
        return weights, X, _laid_out(y.astype(self.dtype), self.layout), w


def _laid_out(x, layout):
    """The same numbers, as memory may hold them: "C", "F" or "strided" (every other row of a larger array)."""
    if layout == "strided":
        return np.repeat(x, 2, axis=0)[::2]
    return np.asarray(x, order=layout)


def cases(*, dtypes=("float32", "float64"), block_rows=256):
    """All cases that an engine must pass: every activation with every loss, then depths, widths, shapes and layouts.

    ``block_rows`` is the engine's, so that some cases fill blocks, and some leave a ragged tail.
    """
    hidden = [name for name, f in activations.ACTIVATIONS.items() if f.slope is not None]
    outputs = {"log_loss": ("sigmoid", "softmax"), "poisson": ("exp", "softplus")}
    names = [*losses.LOSSES, *losses.FAMILIES, "huber:0.3", "quantile:0.9"]
    for dtype, bias, weighted in itertools.product(dtypes, (False, True), (False, True)):
        common = {"dtype": dtype, "bias": bias, "weighted": weighted}
        for f, loss in itertools.product(hidden, names):
            for output in outputs.get(loss, ("identity", f)):
                yield Case((3, 4, 2), (f, output), loss, n=7, **common)
        for sizes in ((1, 1), (3, 1), (5, 8, 7, 3), (28, 30, 2), (40, 33, 1), (2, 3, 3, 3, 3, 2)):
            for n in (1, 4, 65, block_rows - 1):
                yield Case(sizes, ("tanh",) * (len(sizes) - 2) + ("identity",), "squared_error", n=n, **common)
        if not weighted:  # layers of dozens of inputs and units, which an engine may compute in another way
            yield Case((300, 90, 52, 2), ("tanh", "tanh", "identity"), "squared_error", n=300, **common)
        for n, layout in itertools.product((block_rows, block_rows + 1, 3 * block_rows + 5), ("C", "F", "strided")):
            yield Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", n=n, layout=layout, **common)


def expected(case, arrays=None):
    """What the core says in NumPy float64, and how far rounding may carry each number.

    Returns
    -------
    updates, totals : list of arrays, array of shape (3,)
    updates_bound, totals_bound
        Of the same shapes: the analysed rounding, in units of the dtype's eps.
    """
    objective = case.objective()
    weights, X, y, w = (arrays or case.arrays())[:4]
    weights = [W.astype(np.float64) for W in weights]
    X, y = X.astype(np.float64), y.astype(np.float64)
    w = np.ones(len(X)) if w is None else w.astype(np.float64)

    layers = core.forward(weights, X, objective.activations)
    deltas = core.backward(weights, layers, y, objective.activations, objective.loss, w)
    updates = core.batch_updates(layers, deltas, objective.bias)
    value, l = objective.loss.value(y, layers[-1], np), layers[-1]
    totals = np.array([w.sum(), (value * w[:, None]).sum(), (np.abs(y - l) * w[:, None]).sum() / y.shape[1]])

    # e_x is the rounding of x, in eps.
    e_layers = [np.zeros_like(X)]
    for W, f, l, above in zip(weights, objective.activations, layers, layers[1:]):
        inputs, size = l.shape[1], np.abs(W)
        e_z = (np.abs(l) + e_layers[-1]) @ size[:inputs] + (size[inputs] if objective.bias else 0.0)
        if f.slope is None:
            e_layers.append(above * (1.0 + e_z + np.max(e_z, axis=1, keepdims=True)))
        else:
            e_layers.append(np.abs(f.slope(above, np)) * e_z + np.abs(above))

    e_deltas, l, e_l = [], layers[-1], e_layers[-1]
    f, loss = objective.activations[-1], objective.loss
    if f in loss.cancels:
        e_delta = np.abs(y) + np.abs(l) + e_l
    else:
        error = loss.error(y, l, np)
        e_error = np.abs(y - l) + np.abs(error) + _change(lambda l: loss.error(y, l, np), l) * e_l
        e_delta = _product(error, e_error, f.slope(l, np), _slope_rounding(f, l, e_l))
    e_delta = e_delta * w[:, None]
    e_deltas.append(e_delta)
    hidden = list(zip(weights[1:], layers[1:-1], e_layers[1:-1], objective.activations, deltas[1:]))
    for W, l, e_l, f, delta in reversed(hidden):
        W = W[: l.shape[1]]
        error, e_error = delta @ W.T, (e_delta + np.abs(delta)) @ np.abs(W).T
        e_delta = _product(error, e_error, f.slope(l, np), _slope_rounding(f, l, e_l))
        e_deltas.append(e_delta)
    e_deltas.reverse()

    bounds = []
    for l, e_l, delta, e_delta in zip(layers, e_layers, deltas, e_deltas):
        bound = np.abs(l).T @ (e_delta + np.abs(delta)) + e_l.T @ np.abs(delta)
        if objective.bias:
            bound = np.concatenate([bound, (e_delta + np.abs(delta)).sum(axis=0, keepdims=True)])
        bounds.append(bound)
    l, e_l = layers[-1], e_layers[-1]
    e_value = np.abs(value) + np.abs(y) + np.abs(l) + _change(lambda l: loss.value(y, l, np), l) * e_l
    e_error = np.abs(y) + np.abs(l) + e_l
    sums = [w.sum(), (e_value * w[:, None]).sum(), (e_error * w[:, None]).sum() / y.shape[1]]
    return updates, totals, bounds, np.array(sums)


def _change(function, x, h=1e-6):
    """The absolute derivative, by central differences."""
    return np.abs(function(x + h) - function(x - h)) / (2 * h)


def _slope_rounding(f, l, e_l):
    return np.abs(f.slope(l, np)) + np.abs(l) * (f.slope(l, np) != 0) + _change(lambda l: f.slope(l, np), l) * e_l


def _product(a, e_a, b, e_b):
    return e_a * np.abs(b) + np.abs(a) * e_b + np.abs(a * b)


def worst(engine, case, backend="numpy"):
    """How far an engine is off in a case: the largest error, in units of the analysed rounding.

    Parameters
    ----------
    engine : str or type
    case : Case
    backend : str

    Returns
    -------
    float
        At most `C` for a right engine; infinite where a number is nan, a shape or a dtype is wrong.
    """
    backend = _backend_of_name(backend)
    weights, X, y, w = case.arrays()
    updates, totals, bounds, totals_bound = expected(case, (weights, X, y, w))
    with backend.active():
        rows = Rows(X, y, w, backend=backend, dtype=case.dtype)
        runner = find(engine)(case.objective(), rows)
        try:
            sums = runner.sums([backend.asarray(W, case.dtype) for W in weights], None, 0, rows.n)
        finally:
            runner.close()
    eps = np.finfo(case.dtype).eps
    got = [backend.to_numpy(u) for u in sums.updates] + [backend.to_numpy(sums.totals)]
    off = 0.0
    for is_, should, bound in zip(got, [*updates, totals], [*bounds, totals_bound], strict=True):
        if is_.shape != should.shape or not np.all(np.isfinite(is_)):
            return np.inf
        off = max(off, float(np.max(np.abs(is_ - should) / np.maximum(bound * eps, np.finfo(case.dtype).tiny))))
    return off


def check_case(engine, case, backend="numpy"):
    """Raise AssertionError unless the engine is right in this case."""
    off = worst(engine, case, backend)
    if not off <= C:
        message = (
            f"engine {find(engine).name!r} is off by {off:.3g} times the analysed rounding (at most {C:g}): {case}"
        )
        raise AssertionError(message)


def check_engine(engine, backend="numpy", *, dtypes=None):
    """The conformance suite: every case, runs that equal their single steps, and, where promised, the same bits and
    one tree of sums.

    Parameters
    ----------
    engine : str or type
        A name of `bpaccel.engines.choice.ENGINES`, or a subclass of `Engine`.
    backend : str
        Where to run it.
    dtypes : sequence of str, optional
        By default all that the backend has.

    Raises
    ------
    AssertionError
        At the first case that is wrong; the message names it.
    """
    kind, place = find(engine), _backend_of_name(backend)
    for dtype in dtypes or place.floats:
        block_rows = min(block_rows_of(kind, dtype, place), 2**14)
        for case in cases(dtypes=(dtype,), block_rows=block_rows):
            if not _refused(kind, case, place):
                check_case(kind, case, backend)
        for solver in (*map(solvers.get, solvers.SOLVERS), solvers.RMSprop(momentum=0.5)):
            check_run(kind, solver, dtype, backend)
        if kind.dropped_block is not None:
            check_dropout(kind, dtype, backend)
        check_same_bits(kind, dtype, backend)
        check_tree(kind, dtype, backend)


def block_rows_of(engine, dtype, backend):
    """The rows of a block for the nets of `cases`, 3-4-1."""
    case = Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, n=4)
    return find(engine).rows_of_a_block(case.objective(), _rows(case, backend)[1])


def _rows(case, backend, kind=Rows):
    weights, *arrays = case.arrays()
    rows = kind(*arrays, backend=backend, dtype=case.dtype)
    return [backend.asarray(W, case.dtype) for W in weights], rows


def _refused(kind, case, backend):
    return kind.refuses(case.objective(), _rows(case, backend)[1], solvers.get("gradient_descent")) is not None


class ChunkedRows(Rows):
    """Rows that pretend not to be in memory, so that an engine must read them block by block."""

    def __init__(self, *arrays, **where):
        super().__init__(*arrays, **where)
        self._in_memory, self.arrays = copy.copy(self), None

    def read(self, start, stop, order=None):
        return Rows.read(self._in_memory, start, stop, order)


def _batches(n, size):
    order = np.random.default_rng(5).permutation(n)
    starts = list(range(0, n, size))
    return Batches(order, starts, [min(s + size, n) for s in starts])


def check_run(engine, solver, dtype="float64", backend="numpy"):
    """`run` must be `sums`, `finish` and `step`, once for each rate: full batches, and shuffled mini-batches."""
    kind, place = find(engine), _backend_of_name(backend)
    if hasattr(solver, "epsilon"):
        solver = replace(solver, epsilon=0.1)  # a tiny one makes a sign of each update, and of its rounding
    case = Case((3, 4, 2), ("tanh", "sigmoid"), "squared_error", dtype, bias=True, weighted=True, n=50)
    for reduction, size in itertools.product(("mean", "sum"), (50, 16)):
        objective = case.objective(reduction=reduction, l1=0.01, l2=0.1, clip=0.7)
        with place.active():
            weights, X, y, w = case.arrays()
            w[_batches(50, 16).order[16:32]] = 0.0  # one mini-batch counts nothing
            weights = [place.asarray(W, dtype) for W in weights]
            rows = Rows(X, y, w, backend=place, dtype=dtype)
            if kind.refuses(objective, rows, solver):
                continue
            runner = kind(objective, rows)
            batches = _batches(50, size) if size < 50 else Batches(None, [0] * 4, [50] * 4)
            rates = [0.5, 0.25, 0.1, 0.05]
            try:
                ours = runner.run(weights, solver, solver.start(weights), batches, rates, 3)
                plain = Engine.run(runner, weights, solver, solver.start(weights), batches, rates, 3)
            finally:
                runner.close()
        eps, what = np.finfo(dtype).eps, f"engine {kind.name!r}, {solver}, reduction={reduction}, batches of {size}"
        for is_, should in zip([*ours[0], ours[2]], [*plain[0], plain[2]], strict=True):
            is_, should = place.to_numpy(is_), place.to_numpy(should)
            if not np.allclose(is_, should, rtol=0, atol=200 * eps * max(1.0, np.abs(should).max())):
                message = f"{what}: run is not its steps one by one; off by {np.abs(is_ - should).max():.3g}"
                raise AssertionError(message)


def check_same_bits(engine, dtype="float32", backend="numpy", *, repeats=3):
    """For engines that promise it: the same bytes for any threads, chunks and cuts, alone or in several threads.

    The last case sums many equal blocks, where a sum kept in float32 drifts.
    """
    kind, place = find(engine), _backend_of_name(backend)
    case = Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, weighted=True)
    block = block_rows_of(kind, dtype, place)
    with place.active():
        _, few = _rows(case, place)
        if not kind(case.objective(), few).same_bits:
            return
        for n in (5, block, 3 * block + 5, 8 * block + 1):
            weights, rows = _rows(replace(case, n=n), place)
            _, chunked = _rows(replace(case, n=n), place, ChunkedRows)
            want = _bytes(kind, case, weights, rows, 1, [3])
            for threads in (1, 2, 3, 8):
                for source, cuts in ((rows, [3]), (rows, [1, 2]), (chunked, [3])):
                    for _ in range(repeats if threads > 1 else 1):
                        if _bytes(kind, case, weights, source, threads, cuts) != want:
                            what = "in chunks" if source is chunked else f"in cuts of {cuts} steps"
                            message = f"engine {kind.name!r}: other bits with {threads} threads, {n} rows {what}"
                            raise AssertionError(message)
        _check_callers(kind, case, weights, rows, want)
        _check_drift(kind, case, place, 200)


def _bytes(kind, case, weights, rows, threads, cuts):
    solver, step, out = solvers.get("momentum"), 0, b""
    runner = kind(case.objective(reduction="mean"), rows, threads)
    state = solver.start(weights)
    try:
        for k in cuts:
            batches = Batches(None, [0] * k, [rows.n] * k)
            weights, state, totals = runner.run(weights, solver, state, batches, [0.5] * k, step)
            step += k
            out += rows.backend.to_numpy(totals).tobytes()
    finally:
        runner.close()
    return out + b"".join(rows.backend.to_numpy(W).tobytes() for W in weights)


def _check_callers(kind, case, weights, rows, want):
    """Several Python threads, each with an engine of its own, at once."""
    results = []
    callers = [
        threading.Thread(target=lambda: results.append(_bytes(kind, case, weights, rows, 2, [3]))) for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if results != [want] * 3:
        message = f"engine {kind.name!r}: other bits when several Python threads call at once"
        raise AssertionError(message)


def _check_drift(kind, case, place, count):
    """``count`` equal blocks must sum to ``count`` times one: float32 would round to the same side each time."""
    case = replace(case, n=block_rows_of(kind, case.dtype, place))
    weights, X, y, w = case.arrays()
    weights = [place.asarray(W, case.dtype) for W in weights]
    found = []
    for copies in (1, count):
        arrays = [np.tile(a, (copies, 1)) if a.ndim == 2 else np.tile(a, copies) for a in (X, y, w)]
        rows = Rows(*arrays, backend=place, dtype=case.dtype)
        runner = kind(case.objective(), rows)
        try:
            sums = runner.sums(weights, None, 0, rows.n)
        finally:
            runner.close()
        found.append([place.to_numpy(a).astype(np.float64) for a in [*sums.updates, sums.totals]])
    eps = np.finfo(case.dtype).eps
    for one, many in zip(*found, strict=True):
        off = float(np.max(np.abs(many - count * one) / (count * np.abs(one)))) / eps
        if not off <= (0.01 if case.dtype == "float32" else count):
            message = (
                f"engine {kind.name!r}: the sum of {count} equal blocks of {case.n:,} rows drifts by {off:.3g} eps"
            )
            raise AssertionError(message)


def check_tree(engine, dtype="float32", backend="numpy"):
    """For engines that promise the same bits: the sums of blocks are one binary tree over block numbers.

    The sums of single blocks are added here as `bpaccel.engines.tree` defines it. The sums of many blocks must have the
    same bytes, and so must those of the two halves of a node, added in float64, and the totals of a run. The rows end
    with a block and within one; they begin with the first row and within a block; they are in memory and in chunks, in
    their own order and in another; the threads are 1 to 8. Blocks count differently by many powers of two, so that
    sums added in another order are rounded to other bytes.

    Raises
    ------
    AssertionError
        At the first sums with other bytes; the message names the blocks.
    """
    kind, place = find(engine), _backend_of_name(backend)
    block = block_rows_of(kind, dtype, place)
    late = block + 3
    case = Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, weighted=True, n=16 * block + late)
    weights, X, y, w = case.arrays()
    random = np.random.default_rng(3)
    w *= np.repeat(np.exp2(random.integers(-30, 31, 18)), block)[: case.n].astype(dtype)
    order = random.permutation(case.n)
    back = np.argsort(order)
    plain, shuffled = (X, y, w), (X[back], y[back], w[back])  # the order brings these back
    with place.active():
        weights = [place.asarray(W, dtype) for W in weights]
        for arrays, among, start, counts in (
            (plain, None, 0, (1, 2, 3, 8)),
            (plain, None, late, (1,)),
            (shuffled, order, late, (1,)),
        ):
            rows, chunked = (source(*arrays, backend=place, dtype=dtype) for source in (Rows, ChunkedRows))
            parts: dict = {}
            for source, threads in (*((rows, count) for count in counts), (chunked, 1), (chunked, 3)):
                runner = kind(case.objective(), source, threads)
                try:
                    if not runner.same_bits:
                        return
                    with runner.held():
                        _check_nodes(runner, block, weights, among, start, parts)
                finally:
                    runner.close()


def _check_nodes(engine, block, weights, order, start, parts):
    """The sums of 2 to 16 blocks from row ``start`` on, against those of single blocks, which ``parts`` keeps."""
    rows = engine.rows

    def numbers(*arrays):
        return np.concatenate([rows.backend.to_numpy(a).astype(rows.backend.widest).ravel() for a in arrays])

    def sums(first, end):
        found = engine.sums(weights, order, start + first, start + end)
        return numbers(*found.updates, found.totals)

    def part(first, end):
        if (first, end) not in parts:
            parts[first, end] = sums(first, end)
        return parts[first, end]

    def check(found, want, what):
        if found.tobytes() != want.tobytes():
            how = f"{rows.dtype}, {engine.threads} threads, {'in chunks' if rows.arrays is None else 'in memory'}"
            how += f", from row {start}" + ", in another order" * (order is not None)
            message = f"engine {engine.name!r}: {what} is not that of the binary tree over block numbers ({how})"
            raise AssertionError(message)

    for half in (block, 2 * block, 4 * block, 8 * block):
        for end in (half + half // 2 + 1, 2 * half):
            want = _node([part(at, min(at + block, end)) for at in range(0, end, block)])
            what = f"the sum of {-(-end // block)} blocks, {end:,} rows,"
            check(sums(0, end), want, what)
            check(sums(0, half) + sums(half, end), want, f"{what} by halves")
    batches = Batches(order, [start] * 2, [start + end] * 2)
    totals = engine.run(weights, solvers.get("gradient_descent"), (), batches, [0.5, 0.5], 0)[2]
    check(numbers(totals[0, :3]), want[-3:], f"{what} in a run")


def _node(blocks):
    """The sum of a node by the definition: of its left half, which is whole, plus that of what is left."""
    if len(blocks) == 1:
        return blocks[0]
    half = 1 << (len(blocks) - 1).bit_length() - 1
    return _node(blocks[:half]) + _node(blocks[half:])


def check_gradients(network, X, y, *, sample_weight=None, directions=3, seed=0, tolerance=1e-6):
    """Compare `Network.gradients` with differences of `Network.loss` along random directions, in float64.

    Parameters
    ----------
    network : Network
        Its weights are moved, and put back.
    X, y, sample_weight : arrays
    directions : int
    tolerance : float
        Of the slope along a direction, relative to the length of the gradient.

    Raises
    ------
    AssertionError
        If a slope is off: the message says by how much.
    """
    random = np.random.default_rng(seed)
    kept = network.weights
    gradients = [np.asarray(g, np.float64) for g in network.gradients(X, y, sample_weight=sample_weight)]
    length = np.sqrt(sum((g * g).sum() for g in gradients))
    h = 1e-5
    for _ in range(directions):
        direction = [random.standard_normal(g.shape) for g in gradients]
        slope = sum((g * d).sum() for g, d in zip(gradients, direction))
        at = []
        for step in (h, -h):
            network.weights = [np.asarray(W, np.float64) + step * d for W, d in zip(kept, direction)]
            at.append(network.loss(X, y, sample_weight=sample_weight))
        network.weights = kept
        measured = (at[0] - at[1]) / (2 * h)
        if abs(measured - slope) > tolerance * max(1.0, length):
            message = f"the gradient says {slope:.9g} along a direction, the loss {measured:.9g}: {network!r}"
            raise AssertionError(message)


def check_dropout(engine, dtype="float64", backend="numpy"):
    """Sums with dropout must be the two passes with the silent units' layers and deltas at 0, written out here; in any
    pieces of the rows. For engines that know dropout.

    Raises
    ------
    AssertionError
    """
    kind, place = find(engine), _backend_of_name(backend)
    dropout, step, cut = Dropout(0.4, 11), 5, 20
    case = Case((3, 6, 5, 2), ("sigmoid", "tanh", "identity"), "squared_error", dtype, bias=True, n=50)
    weights, X, y, _ = case.arrays()
    sizes, keep = case.layer_sizes, np.split(dropout.speaking(11, step, 0, case.n), [6], axis=1)
    share = 1.0 - dropout.rate
    layers = [X.astype(np.float64)]
    for W, f, mask in zip(weights, case.objective().activations, [*keep, None]):
        l = f.function(layers[-1] @ W[:-1] + W[-1], np)
        layers.append(l if mask is None else l * mask / share)
    delta, updates = y - layers[-1], list[np.ndarray]()
    for k in (2, 1, 0):
        updates.insert(0, np.vstack([layers[k].T @ delta, delta.sum(axis=0)]))
        if k > 0:
            f, said = case.objective().activations[k - 1], layers[k] * share
            delta = (delta @ weights[k][: sizes[k]].T) * f.slope(said, np) * keep[k - 1] / share
    with place.active():
        here, rows = _rows(case, place)
        runner = kind(case.objective(dropout=dropout), rows)
        try:
            whole = [runner.dropped_sums(here, None, 0, case.n, step)]
            parts = [runner.dropped_sums(here, None, *piece, step) for piece in ((0, cut), (cut, case.n))]
        finally:
            runner.close()
    for sums in (whole, parts):
        for k, should in enumerate(updates):
            off = np.abs(sum(place.to_numpy(s.updates[k]).astype(np.float64) for s in sums) - should).max()
            if not off <= 1000 * np.finfo(dtype).eps * np.abs(should).max():
                message = f"engine {kind.name!r}: dropout in {len(sums)} pieces of the rows is off by {off:.3g}"
                raise AssertionError(message)
