"""Engines: the conformance suite on every backend, and what the shared base class promises."""

import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import engines, solvers, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows
from bpaccel.engines import ENGINES, choose, thread_count


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"jit"}))
def test_every_engine_passes_the_conformance_suite_on_numpy(engine):
    testing.check_engine(engine)


@pytest.mark.parametrize("engine", ["array", "blocked"])
def test_the_plain_engines_are_right_on_every_backend(engine, place):
    where = backend_of_name(place)
    for dtype in where.floats:
        # A part of the suite: all of it on every backend would take minutes, most on JAX, which compiles each shape.
        for case in list(testing.cases(dtypes=(dtype,), block_rows=2**10))[:: 97 if place == "jax" else 23]:
            testing.check_case(engine, case, place)
        testing.check_run(engine, solvers.get("adam"), dtype, place)


def test_jit_is_right_and_runs_many_steps_in_one_call():
    """Its sums are `array`'s own, checked above; its runs must be its steps, whatever the batches."""
    if bp.backends()["jax"] != "usable":
        pytest.skip(f"jax: {bp.backends()['jax']}")
    for case in list(testing.cases(dtypes=("float64",)))[::67]:
        testing.check_case("jit", case, "jax")
    for solver, dtype in (("gradient_descent", "float32"), ("nesterov", "float64"), ("adam", "float64")):
        testing.check_run("jit", solvers.get(solver), dtype, "jax")


def test_jit_refuses_what_is_not_jax():
    net = bp.Network([3, 4, 1], seed=1)
    with pytest.raises(ValueError, match="engine 'jit' cannot do this: it compiles JAX arrays.*engine='auto'"):
        net.train([[0, 0, 1]], [1], steps=1, engine="jit")


def test_auto_compiles_many_steps_on_jax_but_no_functions_of_ones_own():
    if bp.backends()["jax"] != "usable":
        pytest.skip(f"jax: {bp.backends()['jax']}")
    net = bp.Network([3, 4, 1], seed=1, backend="jax")
    history = net.train([[0, 0, 1], [0, 1, 1]], [0, 1], steps=5)
    assert history.engine == "jit"
    assert "5 steps into one loop" in history.reason
    own = bp.Network([3, 1], activation="identity", seed=1, backend="jax", loss=(lambda y, l: (y - l) ** 2,
                     lambda y, l: 2 * (l - y)))  # fmt: skip
    assert own.train([[0, 0, 1], [0, 1, 1]], [0, 1], steps=5).engine == "array"


def _rows(n, backend="numpy"):
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32", n=n)
    return case.objective(), testing._rows(case, backend_of_name(backend))[1]


def test_auto_looks_at_the_rows_and_says_why():
    solver = solvers.get("gradient_descent")
    for n, name in ((4, "array"), (100_000, "blocked")):
        engine, reason = choose("auto", *_rows(n), solver, batch_rows=n, steps=10)
        assert engine.name == name
        assert f"{n:,} rows" in reason


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="`engine` must be auto, one of array, blocked.*; got 'fast'"):
        choose("fast", *_rows(4), None, batch_rows=4, steps=1)


def test_blocks_are_fixed_by_objective_and_dtype_alone():
    objective, few = _rows(4)
    _, many = _rows(70_000)
    blocked = engines.find("blocked")
    assert blocked.rows_of_a_block(objective, few) == blocked.rows_of_a_block(objective, many)


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert thread_count() == 1
    assert thread_count(5) == 5
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="`threads` must be a whole number"):
            thread_count(bad)


def test_an_error_in_a_thread_reaches_the_caller():
    class Fails(engines.find("blocked")):
        def block(self, weights, X, y, w):
            raise RuntimeError("a block failed")

    rng = np.random.default_rng(0)
    net = bp.Network([3, 4, 1], seed=1)
    with pytest.raises(RuntimeError, match="a block failed"):
        net.train(rng.random((100_000, 3)), rng.random(100_000), steps=1, engine=Fails, threads=2)


def test_memory_is_bounded_by_the_block():
    """A step over rows of 64 MB takes less than a tenth of that beside them."""
    import tracemalloc

    X, y = np.ones((4_000_000, 3), np.float32), np.ones((4_000_000, 1), np.float32)
    net = bp.Network([3, 4, 1], seed=1)
    tracemalloc.start()
    net.train(X, y, steps=1, engine="blocked")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.1 * (X.nbytes + y.nbytes)


def test_mini_batches_of_rows_that_count_nothing_change_nothing():
    rng = np.random.default_rng(0)
    X, y, w = rng.random((8, 3)), rng.random(8), np.array([1.0] * 4 + [0.0] * 4)
    net = bp.Network([3, 4, 1], seed=1)
    history = net.train(X, y, sample_weight=w, epochs=1, batch_size=4, shuffle=False, record_every=1)
    alone = bp.Network([3, 4, 1], seed=1)
    alone.train(X[:4], y[:4], steps=1)
    assert all(np.array_equal(a, b) for a, b in zip(net.weights, alone.weights))
    assert len(history) == 2


def test_rows_on_disk_are_converted_block_by_block(tmp_path):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.int16, shape=(50_000, 3))
    X[:] = np.random.default_rng(0).integers(0, 9, X.shape)
    y = np.random.default_rng(1).random((50_000, 1))
    rows = Rows(X, y, backend=backend_of_name("numpy"), dtype="float64")
    assert rows.arrays is None
    nets = [bp.Network([3, 4, 1], seed=1, dtype="float64") for _ in range(2)]
    history = nets[0].train(X, y, steps=3)
    nets[1].train(np.array(X), y, steps=3)
    assert history.engine == "blocked"
    assert "not all in memory" in history.reason
    assert all(np.array_equal(a, b) for a, b in zip(nets[0].weights, nets[1].weights))


def test_trainings_at_once_leave_blas_as_it_was():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before, random = blas(), np.random.default_rng(0)
    table, target = random.random((60_000, 3)), random.random(60_000)

    def train():
        bp.Network([3, 4, 1], seed=1).train(table, target, steps=5, engine="blocked", threads=1)

    callers = [threading.Thread(target=train) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert blas() == before


def test_a_memory_map_goes_with_targets_of_another_library(tmp_path, backend):
    where = backend_of_name(backend)
    table = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype="float64", shape=(40, 3))
    table[:] = np.random.default_rng(0).random((40, 3))
    y = where.asarray(np.arange(40) % 2, "float64")
    net = bp.Network([3, 1], backend=backend, dtype="float32", seed=1)
    assert net.train(table, y, steps=3, batch_size=10).stopped == "steps"


def test_a_penalty_does_not_count_where_no_row_does():
    W = bp.Network([3, 1], seed=1).weights[0]
    net = bp.Network([3, 1], seed=1)
    X, y, w = np.eye(3)[[0, 1, 2, 0]], np.ones(4), [0, 0, 1, 1]
    net.train(X, y, sample_weight=w, steps=1, batch_size=2, shuffle=False, l2=0.5)
    np.testing.assert_array_equal(net.weights[0], W)


def test_an_engine_whose_library_is_missing_says_what_to_install(tmp_path):
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError('No module named numba', name='numba')\n")
    code = "import bpaccel as bp; bp.Network([1, 1]).train([[1]], [1], steps=1, engine='numba')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.stderr.strip().endswith("ImportError: engine 'numba' needs numba: pip install 'bpaccel[numba]'.")


def test_auto_without_numba_takes_blocks(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose("auto", *_rows(100_000), solvers.get("adam"), batch_rows=100_000, steps=10**6)[0].name == "blocked"
