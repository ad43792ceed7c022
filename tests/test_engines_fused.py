"""The fused engine: what the conformance suite, which it passes with all engines, does not ask."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import activations, losses, native, solvers, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows
from bpaccel.engines import Batches, choice
from bpaccel.engines.cpu import launch, library, plan, threads
from bpaccel.engines.cpu.fused import Fused
from bpaccel.engines.cpu.plan import BLOCK_ROWS
from bpaccel.native import build

pytestmark = pytest.mark.usefixtures("fused")
NUMPY = backend_of_name("numpy")


def made(n, *, threads=1, sizes=(3, 4, 1), activations=("sigmoid", "sigmoid"), dtype="float32", **kwargs):
    case = testing.Case(sizes, activations, "squared_error", dtype, n=n, **kwargs)
    weights, X, y, w = case.arrays()
    rows = Rows(X, y, w, backend=NUMPY, dtype=dtype)
    return Fused(case.objective(reduction="mean"), rows, threads), weights


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
    return bytes_of([*weights, *(a for group in state for a in group), totals])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mini_batches_have_the_same_bits_for_any_threads_chunks_and_cuts(dtype):
    n = 20 * BLOCK_ROWS + 77
    order = np.random.default_rng(0).permutation(n)
    batches = Batches(order, [0, 9000, 5], [12_345, n, 6])
    engine, weights = made(n, dtype=dtype, weighted=True, bias=True)
    want = trained(engine, weights, batches=batches)
    for count in (2, 3, 8):
        assert (
            trained(made(n, threads=count, dtype=dtype, weighted=True, bias=True)[0], weights, batches=batches) == want
        )
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, n=n, weighted=True, bias=True)
    chunked = testing.ChunkedRows(*case.arrays()[1:], backend=NUMPY, dtype=dtype)
    assert trained(Fused(engine.objective, chunked, 2), weights, batches=batches) == want


def test_many_blocks_are_added_in_order_when_there_is_not_room_for_all(monkeypatch):
    engine, weights = made(40 * BLOCK_ROWS + 3, threads=2)
    want = trained(engine, weights)
    monkeypatch.setattr("bpaccel.engines.cpu.launch.SLOTS_BYTES", 1)
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
    net.train(np.full((4, 1), small), np.full(4, smaller), steps=1, reduction="sum", engine="fused")
    assert net.weights[0] == 0
    assert small * smaller > 0


@pytest.mark.parametrize("solver", ["adam", "rmsprop"])
def test_subnormal_states_are_nothing_however_the_rows_are_read(solver):
    case = testing.Case((3, 2), ("identity",), "squared_error", "float32", n=20)
    _, X, _, _ = case.arrays()
    weights, y = [np.zeros((3, 2), np.float32)], np.full((20, 2), 3e-20, np.float32)
    want = None
    for kind in (Rows, testing.ChunkedRows):
        engine = Fused(case.objective(reduction="mean"), kind(X, y, None, backend=NUMPY, dtype="float32"), 1)
        got = trained(engine, weights, k=1, solver=solvers.get(solver))
        want = want or got
        assert got == want


def test_infinite_weights_saturate_as_in_the_core():
    X, y = np.ones((5, 3), np.float32), np.ones((5, 1), np.float32)
    rows = Rows(X, y, backend=NUMPY, dtype="float32")
    objective = testing.Case((3, 1), ("sigmoid",), "squared_error", "float32", n=5).objective()
    weights = [np.array([[np.inf], [1.0], [1.0]], np.float32)]
    for engine in ("array", "fused"):
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
    for engine in ("array", "fused"):
        copy = bp.Network([3, 1], activation="identity", loss=f"huber:{number}", seed=1)
        copy.train(X, y, steps=3, engine=engine)
        results.append(copy.weights[0])
    np.testing.assert_allclose(*results, rtol=1e-13)
    assert net.loss_function.name == f"huber:{number}"


def test_it_refuses_what_it_was_not_built_with():
    own = bp.Network([3, 1], loss=(lambda y, l: (y - l) ** 2, lambda y, l: 2 * (l - y)))
    with pytest.raises(ValueError, match="engine 'fused' cannot do this: it was not built with.*engine='blocked'"):
        own.train([[0, 0, 1]], [1], steps=1, engine="fused")
    if bp.available_backends()["array_api_strict"] == "usable":
        net = bp.Network([3, 1], backend="array_api_strict")
        with pytest.raises(ValueError, match="computes on NumPy arrays.*engine='blocked'"):
            net.train([[0, 0, 1]], [1], steps=1, engine="fused")


X, Y = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1.0]]), np.array([[0], [1], [1], [0.0]])


@pytest.mark.parametrize("rows", ["array", "float32", "integers", "sparse", "memory map", "one row", "Fortran"])
def test_auto_takes_it_for_all_rows_of_numpys_from_one_step_on(rows, tmp_path):
    x, y = X, Y
    if rows == "float32":
        x, y = X.astype("float32"), Y.astype("float32")
    elif rows == "integers":
        x, y = X.astype(int), Y.astype(int)
    elif rows == "sparse":
        x = pytest.importorskip("scipy.sparse").csr_array(X)
    elif rows == "memory map":
        np.save(tmp_path / "x.npy", X.astype("float32"))
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif rows == "one row":
        x, y = X[:1], Y[:1]
    elif rows == "Fortran":
        x = np.asfortranarray(X)
    history = bp.Network([3, 4, 1], seed=1).train(x, y, steps=1)
    assert history.engine == "fused"
    assert history.reason.startswith("the rows are NumPy's")
    assert "level" in history.reason


@pytest.mark.parametrize("loss", ["squared_error", "huber", "huber:0.3", "quantile:0.9", "absolute_error", "poisson"])
def test_auto_takes_it_for_every_loss_and_dropout(loss):
    output = "exp" if loss == "poisson" else "identity"
    net = bp.Network([3, 4, 1], activation=["tanh", output], loss=loss, seed=1)
    assert net.train(X, Y, steps=2, dropout=0.3, learning_rate=0.1).engine == "fused"


def test_rows_are_known_by_what_they_are_and_not_by_their_names(monkeypatch):
    tanh = activations.ACTIVATIONS["tanh"]
    other = activations.Activation("sigmoid", tanh.function, tanh.slope)
    squares = losses.LOSSES["squared_error"]
    half = losses.Loss("squared_error", lambda y, l, xp: 0.25 * (y - l) ** 2, lambda y, l, xp: 0.5 * (y - l))
    added = activations.Activation("added", tanh.function, tanh.slope)
    made = (lambda d: losses._huber(d), 1.0, 0.0, np.inf)
    for table, name, row, words in (
        (activations.ACTIVATIONS, "sigmoid", other, {}),
        (activations.ACTIVATIONS, "added", added, {"activation": "added"}),
        (losses.LOSSES, "squared_error", half, {"activation": "tanh"}),
        (losses.FAMILIES, "huber", made, {"activation": "tanh", "loss": "huber:0.5"}),
    ):
        with monkeypatch.context() as patched:
            patched.setitem(table, name, row)
            history = bp.Network([3, 4, 1], seed=1, **words).train(X, Y, steps=1)
            assert history.engine != "fused", name
            assert "it was not built with" in history.reason
    assert losses.LOSSES["squared_error"] is squares
    assert bp.Network([3, 4, 1], activation="tanh", seed=1).train(X, Y, steps=1).engine == "fused"


def test_the_bits_do_not_depend_on_how_many_steps_were_asked_for():
    nets = [bp.Network([3, 4, 1], seed=1) for _ in range(2)]
    nets[0].train(X, Y, steps=7)
    history = nets[1].train(X, Y, steps=1)
    for _ in range(6):
        history = nets[1].train(X, Y, steps=1, resume=history)
    assert bytes_of(nets[0].weights) == bytes_of(nets[1].weights)


def test_the_former_engines_are_named_in_the_error_and_their_histories_go_on(tmp_path):
    for former in ("numba", "blas"):
        with pytest.raises(ValueError, match=f"engine '{former}' is gone: use engine='fused'"):
            bp.Network([3, 1]).train(X, Y, steps=1, engine=former)
    net, history = bp.Network([3, 4, 1], seed=1), None
    history = net.train(X, Y, steps=3)
    history.engine, history.reason = "numba", "asked for"
    assert net.train(X, Y, steps=3, resume=history).engine == "fused"


# --- the library ---


@pytest.fixture
def asked(monkeypatch, caplog):
    """A function that sets BPACCEL_LEVEL, and gives a history's engine and reason."""

    def ask(level):
        monkeypatch.setenv("BPACCEL_LEVEL", level)
        history = bp.Network([3, 4, 1], seed=1).train(X, Y, steps=2)
        return history.engine, history.reason

    return ask


def test_the_level_is_asked_for_and_shown(asked):
    for level in library.processor_levels():
        engine, reason = asked(level)
        assert engine == "fused"
        assert f"level {level} ({library.LEVELS[level]})" in reason


def test_without_a_library_the_plain_engines_say_why(asked):
    engine, reason = asked("none")
    assert engine == "array"
    assert "engine 'fused' cannot do this: the environment variable BPACCEL_LEVEL is none. Unset it" in reason
    with pytest.raises(ValueError, match="engine 'fused' cannot do this: the environment variable BPACCEL_LEVEL"):
        bp.Network([3, 1]).train(X, Y, steps=1, engine="fused")


def test_a_level_that_is_none_or_not_this_processor_s_is_refused(asked):
    with pytest.raises(ValueError, match="BPACCEL_LEVEL must be one of v4, v3, arm64 or none; got 'v9'"):
        asked("v9")
    other = "arm64" if "arm64" not in library.processor_levels() else "v3"
    engine, reason = asked(other)
    assert engine == "array"
    assert f"BPACCEL_LEVEL asks for {other}, and this processor runs" in reason


@pytest.mark.parametrize("fault", ["cut", "empty", "text", "of other sources", "missing"])
def test_a_damaged_or_foreign_library_is_not_used_and_said_once(fault, tmp_path, monkeypatch, caplog):
    level = library.processor_levels()[0]
    real = native.library
    path = tmp_path / os.path.basename(real(level))
    text = Path(real(level)).read_bytes()
    if fault == "of other sources":
        text = text.replace(native.fingerprint().encode(), b"0123456789abcdef")
    damaged = {"cut": text[:4096], "empty": b"", "text": b"no library"}.get(fault, text)
    if fault != "missing":
        path.write_bytes(damaged)
    monkeypatch.setattr(native, "library", lambda name: str(path) if name == level else real(name))
    if fault == "of other sources":  # as a build that was interrupted by an edit leaves it
        monkeypatch.setattr(native, "is_whole", lambda path: True)
    library.forget()
    try:
        histories = [bp.Network([3, 4, 1], seed=1).train(X, Y, steps=2) for _ in range(2)]
    finally:
        library.forget()
    assert {h.engine for h in histories} == {"array"}
    assert "make native" in histories[0].reason
    said = [record.getMessage() for record in caplog.records if record.name == "bpaccel"]
    assert len(said) == 1
    assert "the fused engine is not usable" in said[0]


def test_the_plan_is_that_of_the_compiler(probe):
    """Offsets and sizes of all members, and of the tables, asserted by the compiler that built the kernels."""
    structs = {"Field": plan.Field, "Plan<float>": plan.Plan, "Plan<double>": plan.Plan}
    lines = ['#include "plan.hpp"', "using namespace bp;"]
    for name, mirror in structs.items():
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(mirror)});")
        for member, _ in mirror._fields_:
            at = getattr(mirror, member)
            lines.append(f"static_assert(__builtin_offsetof({name}, {member}) == {at.offset});")
            lines.append(f"static_assert(sizeof((({name}*)0)->{member}) == {at.size});")
    lines += [f"static_assert(sizeof(Word) == {plan.WORD_BYTES} && BLOCK_ROWS == {plan.BLOCK_ROWS});",
              f"static_assert(TOTALS == {plan.TOTALS} && stretch_rows<float> == {plan.STRETCH_BYTES // 4});",
              f"static_assert(sizeof(Rate) == {8 * plan.RATES});"]  # fmt: skip
    lines += [f"static_assert(__builtin_offsetof(Control, {word}) == {k * plan.WORD_BYTES});"
              for k, word in enumerate(plan.CONTROL)]  # fmt: skip
    probe("\n".join(lines))
    with pytest.raises(build.BuildError, match="static"):
        probe("\n".join([*lines, "static_assert(sizeof(Field) == 1);"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_the_same():
    """In a process of its own: JAX, which other tests import, warns of any fork."""
    code = """
import os, sys
sys.path[:0] = sys.argv[1:]
from test_engines_fused import BLOCK_ROWS, made, trained
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
    net.train(X, X[:, :1], steps=20, engine="fused")
    return b"".join(W.tobytes() for W in net.weights)
here = [fitted(seed) for seed in range(4)]
print(joblib.Parallel(n_jobs=2, prefer=sys.argv[-1])(joblib.delayed(fitted)(seed) for seed in range(4)) == here)
"""
    assert _printed(code, prefer) == "True"


def test_no_helpers_give_the_same(monkeypatch):
    """The pool may be busy or gone: the caller's thread then does all blocks."""
    engine, weights = made(50 * BLOCK_ROWS, threads=3)
    want = trained(engine, weights)
    assert launch.THREADED_WORK < 50 * BLOCK_ROWS * 16

    class Gone:
        def submit(self, *_):
            pass

    monkeypatch.setattr(threads, "helpers", Gone)
    assert trained(engine, weights) == want


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_number_of_columns_are_read_right_in_any_order(dtype):
    random = np.random.default_rng(0)
    for columns in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 28):
        case = testing.Case((columns, 4, 5), ("tanh", "sigmoid"), "squared_error", dtype, n=37, weighted=True)
        testing.check_case(Fused, case)
        weights, X, y, w = case.arrays()
        order = random.permutation(37)
        rows = [
            Rows(X, y, w, backend=NUMPY, dtype=dtype),
            Rows(X[order], y[order], w[order], backend=NUMPY, dtype=dtype),
        ]
        here, gathered = (Fused(case.objective(), r, 1) for r in rows)
        want = gathered.sums(weights, None, 3, 36)
        assert bytes_of(here.sums(weights, order, 3, 36).updates) == bytes_of(want.updates)
