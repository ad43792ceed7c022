"""The compiled engine: what the conformance suite, which it passes with all engines, does not ask."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

import bpaccel as bp
from bpaccel import solvers, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows
from bpaccel.engines import Batches, choice, memory
from bpaccel.engines.choice import choose
from bpaccel.engines.numba import BLOCK_ROWS, Numba

NUMPY = backend_of_name("numpy")


def made(n, *, threads=1, sizes=(3, 4, 1), activations=("sigmoid", "sigmoid"), dtype="float32", **kwargs):
    case = testing.Case(sizes, activations, "squared_error", dtype, n=n, **kwargs)
    weights, X, y, w = case.arrays()
    rows = Rows(X, y, w, backend=NUMPY, dtype=dtype)
    return Numba(case.objective(reduction="mean"), rows, threads), weights


def _printed(code, *paths, **environment):
    """What Python code prints in a process of its own."""
    paths = [os.path.dirname(os.path.dirname(bp.__file__)), *paths]
    command = [sys.executable, "-W", "error:::bpaccel", "-c", code, *paths]
    environment = {**os.environ, **environment}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return run.stdout.strip()


def bytes_of(arrays):
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def trained(engine, weights, k=3, solver=None, batches=None):
    solver = solver or solvers.get("adam")
    batches = batches or Batches(None, [0] * k, [engine.rows.n] * k)
    weights, state, totals = engine.run(weights, solver, solver.start(weights), batches, [0.1] * k, 0)
    return bytes_of([*weights, *state[0], totals])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mini_batches_have_the_same_bits_for_any_threads_chunks_and_cuts(dtype):
    n = 20 * BLOCK_ROWS + 77
    order = np.random.default_rng(0).permutation(n)
    batches = Batches(order, [0, 9000, 5], [12_345, n, 6])
    engine, weights = made(n, dtype=dtype, weighted=True, bias=True)
    want = trained(engine, weights, batches=batches)
    for threads in (2, 3, 8):
        assert (
            trained(made(n, threads=threads, dtype=dtype, weighted=True, bias=True)[0], weights, batches=batches)
            == want
        )
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, n=n, weighted=True, bias=True)
    chunked = testing.ChunkedRows(*case.arrays()[1:], backend=NUMPY, dtype=dtype)
    assert trained(Numba(engine.objective, chunked, 2), weights, batches=batches) == want


def test_many_blocks_are_added_in_order_when_there_is_not_room_for_all(monkeypatch):
    engine, weights = made(40 * BLOCK_ROWS + 3, threads=2)
    want = trained(engine, weights)
    monkeypatch.setattr("bpaccel.engines.numba.SLOTS_BYTES", 1)
    assert trained(engine, weights) == want


@pytest.mark.parametrize("layout", ["reversed", "broadcast", "unaligned", "byteswapped", "read-only"])
def test_rows_are_read_as_they_lie_and_never_written_to(layout):
    X = np.random.default_rng(0).standard_normal((2500, 3)).astype(np.float32)
    if layout == "reversed":
        X = X[::-1, ::-1]
    elif layout == "broadcast":
        X = np.broadcast_to(X[:1], (2500, 3))
    elif layout == "unaligned":
        memory = np.zeros(X.nbytes + 1, np.uint8)
        memory[1:] = X.view(np.uint8).ravel()
        X = memory[1:].view(np.float32).reshape(2500, 3)
    elif layout == "byteswapped":
        X = X.astype(">f4")
    X = X.view()
    X.flags.writeable = False
    engine, weights = made(2500)
    y = np.zeros((2500, 1), np.float32)
    before = X.tobytes()
    sums = engine.block(weights, X, y, None)
    again = engine.block(weights, np.ascontiguousarray(X, np.float32), y, None)
    assert bytes_of([*sums.updates, sums.totals]) == bytes_of([*again.updates, again.totals])
    assert X.tobytes() == before


def test_a_row_that_is_nan_is_seen_and_rows_that_fill_a_block_are_not():
    for n in (5, 40):
        engine, weights = made(n)
        X, y, _ = engine.rows.arrays
        assert np.isfinite(engine.block(weights, X, y, None).totals).all()
        X = X.copy()
        X[n - 1] = np.nan
        assert np.isnan(engine.block(weights, X, y, None).totals[1])
        # The memory of that call may serve the next: nothing of it is left.
        assert np.isfinite(engine.block(weights, engine.rows.arrays[0], y, None).totals).all()


def test_subnormal_numbers_are_nothing_in_the_pass_and_all_there_after_it():
    """Where outputs are all but sure, deltas are as small, and made the steps ten times as long."""
    small, smaller = np.float32(1e-30), np.float32(1e-10)
    net = bp.Network([1, 1], activation="identity", init=[np.zeros((1, 1), np.float32)])
    net.train(np.full((4, 1), small), np.full(4, smaller), steps=1, reduction="sum", engine="numba")
    assert (net.weights[0] == 0) == memory.X86
    assert small * smaller > 0


def test_infinite_weights_saturate_as_in_the_core():
    X, y = np.ones((5, 3), np.float32), np.ones((5, 1), np.float32)
    rows = Rows(X, y, backend=NUMPY, dtype="float32")
    objective = testing.Case((3, 1), ("sigmoid",), "squared_error", "float32", n=5).objective()
    weights = [np.array([[np.inf], [1.0], [1.0]], np.float32)]
    for engine in ("array", "numba"):
        runner = choice.find(engine)(objective, rows)
        np.testing.assert_array_equal(runner.sums(weights, None, 0, 5).totals, [5, 0, 0])


def test_a_user_s_solver_is_called_step_by_step_and_subclasses_are_a_user_s():
    class Halved(solvers.GradientDescent):
        def step(self, weights, updates, state, rate, t):
            return super().step(weights, updates, state, rate / 2, t)

    engine, weights = made(100, dtype="float64")
    batches = Batches(None, [0], [100])
    halved, _, _ = engine.run(weights, Halved(), (), batches, [0.2], 0)
    plain, _, _ = engine.run(weights, solvers.GradientDescent(), (), batches, [0.1], 0)
    np.testing.assert_allclose(halved[0], plain[0], rtol=1e-14)


def test_the_number_of_a_loss_is_exact():
    number = 0.123456789012345
    net = bp.Network([3, 1], activation="identity", loss=f"huber:{number}", seed=1)
    X, y = np.random.default_rng(0).random((50, 3)), np.random.default_rng(1).random(50)
    results = []
    for engine in ("array", "numba"):
        copy = bp.Network([3, 1], activation="identity", loss=f"huber:{number}", seed=1)
        copy.train(X, y, steps=3, engine=engine)
        results.append(copy.weights[0])
    np.testing.assert_allclose(*results, rtol=1e-13)
    assert net.loss_function.name == f"huber:{number}"


def test_it_refuses_what_it_cannot_compile():
    own = bp.Network([3, 1], loss=(lambda y, l: (y - l) ** 2, lambda y, l: 2 * (l - y)))
    with pytest.raises(ValueError, match="engine 'numba' cannot do this: it cannot compile.*engine='blocked'"):
        own.train([[0, 0, 1]], [1], steps=1, engine="numba")
    if bp.backends()["array_api_strict"] == "usable":
        net = bp.Network([3, 1], backend="array_api_strict")
        with pytest.raises(ValueError, match="computes on NumPy arrays.*engine='blocked'"):
            net.train([[0, 0, 1]], [1], steps=1, engine="numba")


def test_auto_compiles_where_there_is_work_enough_and_no_layer_is_wide():
    solver = solvers.get("gradient_descent")

    def chosen(sizes, n, steps):
        case = testing.Case(sizes, ("sigmoid",) * (len(sizes) - 1), "squared_error", "float32", n=n)
        _, X, y, _ = case.arrays()
        rows = Rows(X, y, backend=NUMPY, dtype="float32")
        return choose("auto", case.objective(), rows, solver, batch_rows=n, steps=steps)[0].name

    assert chosen((3, 4, 1), 4, 1000) == "array"
    assert chosen((3, 4, 1), 4, 1_000_000) == "numba"
    assert chosen((3, 4, 1), 100_000, 10) == "blocked"
    assert chosen((3, 4, 1), 100_000, 1000) == "numba"
    assert chosen((784, 128, 10), 200, 1_000_000) == "numba"
    assert chosen((1024, 1024, 10), 200, 1_000_000) != "numba"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_the_same():
    """In a process of its own: JAX, which other tests import, warns of any fork."""
    code = """
import os, sys
sys.path[:0] = sys.argv[1:]
from test_engines_numba import BLOCK_ROWS, made, trained
engine, weights = made(50 * BLOCK_ROWS, threads=2)
want = trained(engine, weights)
child = os.fork()
if child == 0:
    os._exit(trained(engine, weights) != want)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert _printed(code, os.path.dirname(__file__)) == "0"


@pytest.mark.parametrize("prefer", ["threads", "processes"])
def test_joblibs_workers_compute_the_same(prefer):
    """In a process of its own: its workers outlive the test."""
    pytest.importorskip("joblib")
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import joblib, numpy as np, bpaccel as bp
def fitted(seed):
    X = np.random.default_rng(seed).random((60_000, 3))
    net = bp.Network([3, 4, 1], seed=1)
    net.train(X, X[:, :1], steps=20, engine="numba")
    return b"".join(W.tobytes() for W in net.weights)
here = [fitted(seed) for seed in range(4)]
print(joblib.Parallel(n_jobs=2, prefer=sys.argv[-1])(joblib.delayed(fitted)(seed) for seed in range(4)) == here)
"""
    assert _printed(code, prefer) == "True"


def test_no_helpers_give_the_same(monkeypatch):
    """The pool may be busy or gone: the caller's thread then does all blocks."""
    engine, weights = made(50 * BLOCK_ROWS, threads=3)
    want = trained(engine, weights)

    class Gone:
        def submit(self, *_):
            pass

    monkeypatch.setattr(engine, "_helpers", Gone)
    assert trained(engine, weights) == want


def test_compiled_code_is_found_on_the_disk_by_a_second_process(tmp_path):
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np, bpaccel as bp
from bpaccel.engines import lanes
make, kernels = lanes.kernel, []
def kept(*arguments):
    kernels.append(make(*arguments))
    return kernels[-1]
lanes.kernel = kept
net = bp.Network([3, 2], activation="identity", seed=1)
net.train(np.ones((4, 3)), np.ones((4, 2)), steps=2, engine="numba")
print(sum(kernel.cache_hits for kernel in kernels), len(kernels))
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [list(map(int, _printed(code, **environment).split())) for _ in range(2)]
    (none, kernels), (all_of_them, _) = hits
    assert (none, all_of_them) == (0, kernels)
    assert kernels > 3
    # A list that two kinds of a kernel share may give one of them the other's code, if two processes write to it.
    assert len(list(tmp_path.rglob("*.nbi"))) == kernels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_number_of_columns_are_read_right_in_any_order(dtype):
    random = np.random.default_rng(0)
    for columns in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 28):
        case = testing.Case((columns, 4, 5), ("tanh", "sigmoid"), "squared_error", dtype, n=37, weighted=True)
        testing.check_case(Numba, case)
        weights, X, y, w = case.arrays()
        order = random.permutation(37)
        rows = [
            Rows(X, y, w, backend=NUMPY, dtype=dtype),
            Rows(X[order], y[order], w[order], backend=NUMPY, dtype=dtype),
        ]
        here, gathered = (Numba(case.objective(), r, 1) for r in rows)
        want = gathered.sums(weights, None, 3, 36)
        assert bytes_of(here.sums(weights, order, 3, 36).updates) == bytes_of(want.updates)
