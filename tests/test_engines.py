"""Engines: the conformance suite on every backend, and what the shared base class promises."""

import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import solvers, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows
from bpaccel.dropout import Dropout
from bpaccel.engines import Sums, choice, thread_count, tree
from bpaccel.engines.choice import ENGINES, choose

NUMPY = backend_of_name("numpy")


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"jit", "cuda", "wide"}))
def test_every_engine_passes_the_conformance_suite_on_numpy(engine):
    testing.check_engine(engine)


@pytest.mark.parametrize("engine", ["array", "blocked"])
def test_the_plain_engines_are_right_on_every_backend(engine, place):
    where = backend_of_name(place)
    for dtype in where.floats:
        # A part of the suite: all of it on every backend would take minutes, most on JAX, which compiles each shape.
        for case in list(testing.cases(dtypes=(dtype,), block_rows=2**10))[:: 97 if place == "jax" else 23]:
            testing.check_case(engine, case, place)
        for solver in ("adam", "adamw", "rmsprop"):
            testing.check_run(engine, solvers.get(solver), dtype, place)


def test_jit_is_right_and_runs_many_steps_in_one_call_on_jax():
    """Its sums are `array`'s own, checked above; its runs must be its steps, whatever the batches."""
    if bp.available_backends()["jax"] != "usable":
        pytest.skip(f"jax: {bp.available_backends()['jax']}")
    for case in list(testing.cases(dtypes=("float64",)))[::67]:
        testing.check_case("jit", case, "jax")
    runs = {"gradient_descent": "float32", "nesterov": "float64", "adam": "float64", "adamw": "float64",
            "rmsprop": "float32"}  # fmt: skip
    for solver, dtype in runs.items():
        testing.check_run("jit", solvers.get(solver), dtype, "jax")


@pytest.fixture
def torch():
    if bp.available_backends()["torch"] != "usable":
        pytest.skip(f"torch: {bp.available_backends()['torch']}")
    return pytest.importorskip("torch")


def _taught(engine, **options):
    """A network on torch after a few steps, and its history."""
    rng = np.random.default_rng(0)
    X, y = rng.random((50, 3)), rng.random(50)
    net = bp.Network([3, 4, 1], seed=1, backend="torch", activation=options.pop("activation", "sigmoid"))
    return net, net.train(X, y, steps=5, l2=0.1, engine=engine, **options)


def _alike(one, other):
    return all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(one.weights, other.weights, strict=True))


def test_jit_is_right_on_torch(torch, caplog):
    """Each shape takes seconds to compile: one of each kind, and every part compiled, or there would be a warning."""
    rows = testing.block_rows_of("jit", "float32", backend_of_name("torch"))
    testing.check_case("jit", testing.Case((3, 4, 2), ("relu", "softmax"), "log_loss", "float64", True, True), "torch")
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32", n=2 * rows)
    testing.check_case("jit", case, "torch")
    for solver in ("gradient_descent", "adam"):
        (compiled, history), (plain, _) = (
            _taught(engine, solver=solver, batch_size=16, shuffle=False) for engine in ("jit", "array")
        )
        assert history.engine == "jit"
        assert history.reason == "asked for"
        assert _alike(compiled, plain)
    assert not [record for record in caplog.records if record.name == "bpaccel"]


def test_jit_computes_eagerly_what_torch_cannot_compile(torch, caplog):
    def stepped(z, xp):
        return z if float(z[0, 0]) > 1e9 else 0.5 * z  # asks for a value, which the compiler does not know

    own = bp.activations.Activation("halved", stepped, lambda a, xp: 0.5 * xp.ones_like(a))
    (compiled, _), (plain, _) = (_taught(engine, activation=own) for engine in ("jit", "array"))
    assert _alike(compiled, plain)
    assert "computed eagerly, for torch.compile failed" in caplog.text


def test_jit_without_a_compiler_says_so_and_is_right(torch, tmp_path):
    code = """
import numpy as np, bpaccel as bp
X, y = np.eye(3), [0, 1, 1]
nets = [bp.Network([3, 4, 1], seed=1, backend="torch") for _ in range(2)]
history = nets[0].train(X, y, steps=3, engine="jit")
nets[1].train(X, y, steps=3, engine="array")
print(history.engine, history.reason)
print(all(np.array_equal(a, b) for a, b in zip(nets[0].weights, nets[1].weights)))
"""
    nothing = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **nothing})  # fmt: skip
    reason, alike = done.stdout.splitlines()
    assert reason.startswith("jit asked for; torch.compile does not work here (")
    assert reason.endswith("so it computes eagerly")
    assert "compiler" in reason.partition("(")[2]
    assert alike == "True"


def test_auto_compiles_on_torch_what_takes_minutes(torch):
    solver = solvers.get("gradient_descent")
    for steps, name in ((100, "array"), (200_000, "jit")):
        engine, reason = choose("auto", *_rows(4, "torch"), solver, batch_rows=4, steps=steps)
        assert engine.name == name
        assert ("worth compiling" in reason) == (name == "jit")


def test_jit_refuses_what_it_cannot_compile():
    net = bp.Network([3, 4, 1], seed=1)
    with pytest.raises(ValueError, match="engine 'jit' cannot do this: it compiles arrays of jax and torch.*'auto'"):
        net.train([[0, 0, 1]], [1], steps=1, engine="jit")


def test_auto_compiles_many_steps_on_jax_but_no_functions_of_ones_own():
    if bp.available_backends()["jax"] != "usable":
        pytest.skip(f"jax: {bp.available_backends()['jax']}")
    net = bp.Network([3, 4, 1], seed=1, backend="jax:cpu")  # on a GPU, other engines are taken
    history = net.train([[0, 0, 1], [0, 1, 1]], [0, 1], steps=5)
    assert history.engine == "jit"
    assert "5 steps into one loop" in history.reason
    own = bp.Network([3, 1], activation="identity", seed=1, backend="jax:cpu", loss=(lambda y, l: (y - l) ** 2,
                     lambda y, l: 2 * (l - y)))  # fmt: skip
    assert own.train([[0, 0, 1], [0, 1, 1]], [0, 1], steps=5).engine == "array"


def _rows(n, backend="numpy"):
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32", n=n)
    return case.objective(), testing._rows(case, backend_of_name(backend))[1]


def test_auto_without_kernels_looks_at_the_rows_and_says_why(monkeypatch):
    monkeypatch.setenv("BPACCEL_LEVEL", "none")
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
    blocked = choice.find("blocked")
    assert blocked.rows_of_a_block(objective, few) == blocked.rows_of_a_block(objective, many)


def _parts(count, dtype="float32"):
    """Sums of blocks that count very differently, so that another order of additions gives other bytes."""
    rng = np.random.default_rng(count)
    for scale in np.exp2(rng.integers(-30, 31, count)):
        yield Sums([(scale * rng.standard_normal((3, 2))).astype(dtype)], (scale * rng.random(3)).astype(dtype))


def _numbers(sums):
    return np.concatenate([a.ravel().astype(np.float64) for a in [*sums.updates, sums.totals]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_are_added_as_one_binary_tree(dtype):
    """A step's sum is that of its halves, and these of theirs: the left one holds a power of two of blocks."""

    def node(blocks):
        if len(blocks) == 1:
            return blocks[0]
        half = 1 << (len(blocks) - 1).bit_length() - 1
        return node(blocks[:half]) + node(blocks[half:])

    left_to_right = 0
    for count in range(1, 70):
        sums = tree(_parts(count, dtype), NUMPY)
        blocks = [_numbers(part) for part in _parts(count, dtype)]
        assert _numbers(sums).tobytes() == node(blocks).tobytes()
        assert {a.dtype.name for a in [*sums.updates, sums.totals]} == {"float64"}
        left_to_right += _numbers(sums).tobytes() == sum(blocks[1:], blocks[0]).tobytes()
    assert left_to_right < 10  # of 69: with 1 to 3 blocks there is no difference


def test_a_tree_is_the_same_on_every_backend_and_leaves_its_blocks_as_they_are(place):
    where = backend_of_name(place)
    blocks = [_numbers(part).astype(where.widest) for part in _parts(7)]
    want = ((blocks[0] + blocks[1]) + (blocks[2] + blocks[3])) + ((blocks[4] + blocks[5]) + blocks[6])
    with where.active():
        parts = [Sums([where.asarray(u, "float32") for u in part.updates], where.asarray(part.totals, "float32"))
                 for part in _parts(7)]  # fmt: skip
        sums = tree(iter(parts), where)
        assert all(where.library.owns(x) for x in [*sums.updates, sums.totals])
    hosted = [Sums([where.to_numpy(u) for u in s.updates], where.to_numpy(s.totals)) for s in (sums, *parts)]
    assert _numbers(hosted[0]).tobytes() == want.astype("float64").tobytes()
    assert all(_numbers(is_).tobytes() == _numbers(was).tobytes() for is_, was in zip(hosted[1:], _parts(7)))


def test_a_half_without_blocks_leaves_a_sum_as_it_is():
    """Also the sign of a zero."""
    parts = [Sums([np.full((1, 1), -0.0, np.float32)], np.full(3, -0.0, np.float32)) for _ in range(5)]
    assert np.signbit(_numbers(tree(parts, NUMPY))).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_few_sums_are_in_memory_at_once(threads):
    pytest.importorskip("threadpoolctl")
    blocks, alive, most = 200, weakref.WeakSet(), []

    class Counted(np.ndarray):
        """An array that knows when another is made of it: of blocks, and of their sums."""

        __hash__ = object.__hash__

        def __array_finalize__(self, other):
            alive.add(self)

    class Counts(choice.find("blocked")):
        def block(self, weights, X, y, w):
            updates, totals = super().block(weights, X, y, w)
            sums = Sums([u.astype(np.float64).view(Counted) for u in updates], totals)
            most.append(len(alive))
            return sums

        @classmethod
        def rows_of_a_block(cls, objective, rows):
            return 16

    case = testing.Case((3, 1), ("sigmoid",), "squared_error", "float32", n=16 * blocks)
    weights, rows = testing._rows(case, NUMPY)
    engine = Counts(case.objective(), rows, threads)
    engine.sums(weights, None, 0, rows.n)
    engine.close()
    assert len(most) == blocks
    # A node a level, and two halves as they are added; of threads two blocks each, and one that is asked for.
    assert 6 <= max(most) <= blocks.bit_length() + 2 + (threads > 1) * (2 * threads + 1)


def test_one_block_keeps_the_dtype_of_the_rows_and_several_are_float64(monkeypatch):
    blocked = choice.find("blocked")
    monkeypatch.setattr(blocked, "rows_of_a_block", classmethod(lambda *_: 16))
    weights = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32").arrays()[0]
    engine = blocked(*_rows(40))
    for stop, dtype in ((1, "float32"), (16, "float32"), (17, "float64"), (40, "float64")):
        sums = engine.sums(weights, None, 0, stop)
        assert {a.dtype.name for a in [*sums.updates, sums.totals]} == {dtype}


def test_sums_with_dropout_are_a_tree_too(monkeypatch):
    blocked = choice.find("blocked")
    monkeypatch.setattr(blocked, "rows_of_a_block", classmethod(lambda *_: 16))
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float64", n=100)
    weights, rows = testing._rows(case, NUMPY)
    engine = blocked(case.objective(dropout=Dropout(0.5, 1)), rows)
    for half, stop in ((16, 20), (16, 32), (32, 40), (32, 64), (64, 100)):
        pieces = ((0, stop), (0, half), (half, stop))
        whole, left, right = (_numbers(engine.dropped_sums(weights, None, *piece, 3)) for piece in pieces)
        assert whole.tobytes() == (left + right).tobytes()


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1
    assert thread_count(5) == 5
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="`threads` must be a whole number"):
            thread_count(bad)


def test_an_error_in_a_thread_reaches_the_caller():
    class Fails(choice.find("blocked")):
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


@pytest.mark.parametrize("engine", ["fused", "blocked"])
def test_rows_on_disk_are_converted_block_by_block(tmp_path, engine, request, monkeypatch):
    if engine == "fused":
        request.getfixturevalue("fused")
    else:
        monkeypatch.setenv("BPACCEL_LEVEL", "none")
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.int16, shape=(50_000, 3))
    X[:] = np.random.default_rng(0).integers(0, 9, X.shape)
    y = np.random.default_rng(1).random((50_000, 1))
    rows = Rows(X, y, backend=backend_of_name("numpy"), dtype="float64")
    assert rows.arrays is None
    nets = [bp.Network([3, 4, 1], seed=1, dtype="float64") for _ in range(2)]
    history = nets[0].train(X, y, steps=3)
    nets[1].train(np.array(X), y, steps=3)
    assert history.engine == engine
    assert engine == "fused" or "not all in memory" in history.reason
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


def test_auto_reads_a_file_with_the_fused_engine(tmp_path, fused):
    np.save(tmp_path / "X.npy", np.zeros((1000, 3)))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    rows = Rows(X, np.zeros((1000, 1)), None, backend=NUMPY, dtype="float32")
    assert rows.arrays is None  # it would have to be converted, and so is read piece by piece
    objective, _ = _rows(4)
    assert choose("auto", objective, rows, solvers.get("adam"), batch_rows=1000, steps=10**5)[0].name == "fused"


def test_auto_without_kernels_takes_blocks(monkeypatch):
    monkeypatch.setenv("BPACCEL_LEVEL", "none")
    assert choose("auto", *_rows(100_000), solvers.get("adam"), batch_rows=100_000, steps=10**6)[0].name == "blocked"
