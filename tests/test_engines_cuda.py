"""The fused CUDA engine, with its own kernel and its own launch code, on the CPU: see tests/cuda.

Only rows are cut smaller than on a GPU, so that few of them fill many blocks; one test takes the real sizes.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import solvers, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows
from bpaccel.engines import Batches, buffers, cuda
from bpaccel.engines.choice import choose
from bpaccel.engines.cuda import Cuda

NUMPY = backend_of_name("numpy")
TUTORIAL = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32")

TUTORIAL_5000 = replace(TUTORIAL, n=5000)


class OnHost(Cuda):
    """The engine on the CPU: a share is 256 rows, a group 1024."""

    threads_of_a_block, sweeps, shares = 64, 1, 4
    blocks_at_once = (1,)  # on each of the `processors` that a test gives it

    @classmethod
    def library(cls):
        import host_cuda

        return host_cuda

    @classmethod
    def trouble(cls):
        return None

    @classmethod
    def reaches(cls, backend):
        return True


@pytest.fixture(autouse=True)
def _host(host_cuda, monkeypatch):
    monkeypatch.setattr(host_cuda.RawModule, "seed", 0)


def bytes_of(arrays):
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def trained(case, *, kind=OnHost, rows=None, batches=None, solver="adam", steps=3, way=None):
    """The bytes of weights, state and totals after some steps; ``way`` sets what the GPU can do."""
    weights, *arrays = case.arrays()
    rows = rows or Rows(*arrays, backend=NUMPY, dtype=case.dtype)
    engine = kind(case.objective(reduction="mean", l2=0.01), rows)
    for name, value in (way or {}).items():
        setattr(engine, name, value)
    solver = solvers.get(solver)
    batches = batches or Batches(None, [0] * steps, [rows.n] * steps)
    rates = [0.5 / (j + 1) for j in range(len(batches.starts))]
    weights, state, totals = engine.run(weights, solver, solver.start(weights), batches, rates, 4)
    engine.close()
    return bytes_of([*weights, *(W for group in state for W in group), totals])


# --- right ---


@pytest.mark.parametrize("number", range(22))
def test_it_passes_the_conformance_suite(number):
    """A part of it, of all activations and losses: each case is compiled for itself."""
    fits = [case for case in testing.cases(block_rows=1024) if not testing._refused(OnHost, case, NUMPY)]
    testing.check_case(OnHost, fits[37 * number % len(fits)])


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_rows_in_any_layout_is_right(dtype, layout):
    for n in (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 1023, 1024, 1025, 1281, 5000, 9300):
        testing.check_case(OnHost, replace(TUTORIAL, n=n, layout=layout, dtype=dtype, weighted=True, bias=True))


@pytest.mark.parametrize("solver", sorted(solvers.SOLVERS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_is_its_steps_one_by_one(solver, dtype):
    testing.check_run(OnHost, solvers.get(solver), dtype)


def test_the_real_sizes_are_right_and_give_the_same_bits():
    case = replace(TUTORIAL, n=Cuda.group_rows() + Cuda.share_rows() + 77)

    class Real(OnHost):
        threads_of_a_block, sweeps, shares = Cuda.threads_of_a_block, Cuda.sweeps, Cuda.shares

    testing.check_case(Real, case)
    ways = ({"cooperative": False}, {"processors": 5})
    assert len({trained(case, kind=Real, steps=2, way=way) for way in ways}) == 1


def test_the_tutorial_is_learnt_in_one_launch():
    X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float64)
    y = np.array([0.0, 1, 1, 0])
    nets = [bp.Network([3, 4, 1], seed=1) for _ in range(2)]
    for net, engine in zip(nets, ("array", OnHost)):
        net.train(X, y, steps=2000, learning_rate=4.0, engine=engine)
    np.testing.assert_allclose(nets[1].predict(X), nets[0].predict(X), rtol=1e-9)


def test_a_row_that_is_nan_is_seen():
    for n in (5, 300, 1100):
        for activation in ("sigmoid", "tanh", "relu", "softplus"):
            case = replace(TUTORIAL, n=n, activations=(activation, activation))
            weights, X, y, _ = case.arrays()
            X[n - 1, 0] = np.nan
            rows = Rows(X, y, backend=NUMPY, dtype="float32")
            sums = OnHost(case.objective(), rows).sums(weights, None, 0, n)
            assert np.isnan(sums.totals[1:]).all()


def test_infinite_weights_saturate_as_in_the_core():
    X, y = np.ones((5, 3), np.float32), np.ones((5, 1), np.float32)
    objective = replace(TUTORIAL, layer_sizes=(3, 1), activations=("sigmoid",)).objective()
    engine = OnHost(objective, Rows(X, y, backend=NUMPY, dtype="float32"))
    weights = [np.array([[np.inf], [1.0], [1.0]], np.float32)]
    np.testing.assert_array_equal(engine.sums(weights, None, 0, 5).totals, [5, 0, 0])


# --- the same bits ---

WAYS = [
    {"processors": 1},  # all steps in one CUDA block
    {"processors": 2},  # cooperative, with shares left over for some
    {"processors": 64},  # and with CUDA blocks left over
    {"cooperative": False},  # a launch a step
    {"cooperative": False, "processors": 3},
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_in_chunks_cuts_and_several_callers(dtype, monkeypatch):
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)  # a group at a time
    testing.check_same_bits(OnHost, dtype, repeats=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_are_one_tree_over_shares(dtype, monkeypatch):
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    testing.check_tree(OnHost, dtype)


@pytest.mark.parametrize("count", [2, 7, 8, 9, 63, 64, 65, 72, 129, 513, 700])
@pytest.mark.parametrize("shares", [1, 2, 64])
def test_the_tree_of_many_shares_is_climbed_in_eights(monkeypatch, shares, count):
    """Of shares and of groups, in all ways. Shares count very differently, so that each order has its own bytes."""

    class Small(OnHost):
        threads_of_a_block, sweeps = 32, 1

    monkeypatch.setattr(Small, "shares", shares)
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    rows = Small.share_rows()
    case = replace(TUTORIAL, layer_sizes=(1, 1), activations=("sigmoid",), n=(count - 1) * rows + 5, weighted=True)
    weights, X, y, w = case.arrays()
    w *= np.repeat(np.exp2(np.random.default_rng(count).integers(-30, 31, count)), rows)[: case.n].astype("float32")
    held, chunked = (kind(X, y, w, backend=NUMPY, dtype="float32") for kind in (Rows, testing.ChunkedRows))

    def numbers(engine, start, stop):
        sums = engine.sums(weights, None, start, stop)
        return np.concatenate([*(u.ravel() for u in sums.updates), sums.totals])

    engine = Small(case.objective(), held)
    want = testing._node([numbers(engine, first, min(first + rows, case.n)) for first in range(0, case.n, rows)])
    for way in WAYS:
        for name, value in way.items():
            setattr(engine, name, value)
        assert numbers(engine, 0, case.n).tobytes() == want.tobytes()
    assert numbers(Small(case.objective(), chunked), 0, case.n).tobytes() == want.tobytes()


def test_the_number_of_shares_in_a_group_changes_no_bit():
    class One(OnHost):
        shares = 1

    class Many(OnHost):
        shares = 64

    case = replace(TUTORIAL, n=5000, weighted=True)
    assert len({trained(case, kind=kind, way=way) for kind in (OnHost, One, Many) for way in WAYS}) == 1


def test_a_group_must_be_a_node_of_the_tree():
    class Three(OnHost):
        shares = 3

    with pytest.raises(RuntimeError, match="a group of shares must be a node of the tree"):
        trained(TUTORIAL_5000, kind=Three)


@pytest.mark.parametrize("n", [200, 257, 1024, 2500])
def test_all_ways_and_orders_of_threads_give_the_same_bits(host_cuda, n):
    case, found = replace(TUTORIAL, n=n, weighted=True), set()
    for way in WAYS:
        for seed in range(3):
            host_cuda.RawModule.seed = seed
            found.add(trained(case, way=way))
    assert len(found) == 1


def test_mini_batches_of_any_order_give_the_same_bits_in_all_ways():
    case = replace(TUTORIAL, n=3000, weighted=True)
    order = np.random.default_rng(0).permutation(3000)
    for batches in (
        Batches(order, [0, 7, 2000], [1300, 1200, 3000]),
        Batches(None, [0, 8, 2000], [1300, 1200, 3000]),
        Batches(None, [0, 7, 2001], [1300, 12, 3000]),
    ):
        assert len({trained(case, batches=batches, way=way) for way in WAYS}) == 1


def test_blocks_that_have_no_share_of_the_last_steps_end_all_the_same():
    """They may not have looked yet when the last step is announced, which must not hide that theirs was."""
    case, batches = replace(TUTORIAL, n=1300, weighted=True), Batches(None, [0, 0, 0], [1300, 1300, 12])
    for _ in range(5):  # how late they look is the machine's choice
        assert len({trained(case, batches=batches, way=way) for way in WAYS}) == 1


def test_subnormal_float32_are_0_as_on_a_gpu():
    """CuPy compiles all kernels so: means of squares that are smaller than any normal number are 0."""
    case = replace(TUTORIAL, n=300)
    weights, X, y, _ = case.arrays()
    rows = Rows(1e-20 * X, y, backend=NUMPY, dtype="float32")
    solver = solvers.get("adam")
    _, (means, squares), _ = OnHost(case.objective(), rows).run(
        weights, solver, solver.start(weights), Batches(None, [0], [300]), [0.5], 0
    )
    assert (means[0] != 0).any()
    assert (squares[0] == 0).all()


def test_rows_at_odd_addresses_give_the_same_bits_as_packed_ones():
    case = replace(TUTORIAL, n=1500)
    _, X, y, _ = case.arrays()
    memory = np.zeros(X.size + 1, np.float32)
    memory[1:] = X.ravel()
    shifted = memory[1:].reshape(X.shape)
    spread = np.repeat(y, 2, axis=0)[::2]
    kept = {trained(case, rows=Rows(x, targets, backend=NUMPY, dtype="float32")) for targets in (y, spread)
            for x in (X, shifted, np.asfortranarray(X), X[::-1][::-1], np.repeat(X, 2, axis=1)[:, ::2])}  # fmt: skip
    assert len(kept) == 1


# --- rows on the host ---


def streamed(case, **kwargs):
    rows = testing.ChunkedRows(*case.arrays()[1:], backend=NUMPY, dtype=case.dtype)
    return trained(case, rows=rows, **kwargs)


@pytest.mark.parametrize("n", [5, 1024, 5000])
def test_rows_from_the_host_give_the_same_bits_however_late_streams_work(host_cuda, monkeypatch, n):
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    case = replace(TUTORIAL, n=n, weighted=True)
    order = np.random.default_rng(0).permutation(n)

    class Late(OnHost):
        """Whose kernels, too, run as late as they may: at the end of the run."""

        def run(self, *args):
            with host_cuda.cuda.Stream(non_blocking=True) as stream:
                result = super().run(*args)
                assert np.isnan(result[2][-1]).all()
                stream.synchronize()
            return result

    # The last: a run may begin on a short batch.
    for batches in (None, Batches(order, [0, n // 3], [n, n]), Batches(None, [n - n // 5, 0], [n, n - n // 5])):
        want = trained(case, batches=batches)
        assert streamed(case, batches=batches) == want
        assert streamed(case, batches=batches, kind=Late) == want


def test_a_first_copy_waits_for_the_memory_that_it_is_given(host_cuda, monkeypatch):
    """A pool hands memory out in the order of the kernels' stream, where the one who had it before may be pending."""
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    before, seen, empty = host_cuda.empty((1024, 3), np.float32), [], host_cuda.empty
    before[...] = 7.0
    monkeypatch.setattr(host_cuda, "empty", lambda shape, dtype: before if shape == (1024, 3) else empty(shape, dtype))
    with host_cuda.cuda.Stream(non_blocking=True) as stream:
        stream.submit(lambda: seen.append(before.copy()))
        rows = testing.ChunkedRows(*TUTORIAL_5000.arrays()[1:], backend=NUMPY, dtype="float32")
        OnHost(TUTORIAL.objective(), rows).sums(TUTORIAL_5000.arrays()[0], None, 0, 5000)
        stream.synchronize()
    assert (seen[0] == 7.0).all()


def test_an_engine_that_is_closed_leaves_no_copy_on_its_way(host_cuda, monkeypatch):
    """Whose memory goes back to its pools: also after Ctrl-C."""
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    rows = testing.ChunkedRows(*TUTORIAL_5000.arrays()[1:], backend=NUMPY, dtype="float32")
    engine = OnHost(TUTORIAL.objective(), rows)
    read = rows.on_host

    def on_host(start, stop, order=None):
        if start >= 2048:
            raise KeyboardInterrupt
        return read(start, stop, order)

    monkeypatch.setattr(rows, "on_host", on_host)
    with host_cuda.cuda.Stream(non_blocking=True), pytest.raises(KeyboardInterrupt):
        engine.sums(TUTORIAL_5000.arrays()[0], None, 0, 5000)
    copies = engine.buffers._stream
    assert copies._work
    engine.close()
    assert not copies._work


def test_a_memory_map_of_another_dtype_is_converted_on_its_way(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.int16, shape=(3000, 3))
    X[:] = np.random.default_rng(0).integers(-2, 3, X.shape)
    y = np.random.default_rng(1).random((3000, 1))
    rows = [Rows(x, y, backend=NUMPY, dtype="float32") for x in (X, np.array(X))]
    assert rows[0].arrays is None
    assert len({trained(replace(TUTORIAL, n=3000), rows=r) for r in rows}) == 1


# --- the contract ---


@pytest.mark.parametrize("backend", ["torch", "jax"], indirect=True)
def test_arrays_of_other_libraries_enter_without_a_copy_and_results_go_back(backend):
    place = backend_of_name(f"{backend}:cpu")
    case = replace(TUTORIAL, n=700, weighted=True)
    weights, *arrays = case.arrays()
    rows = Rows(*arrays, backend=place, dtype="float32")
    engine = OnHost(case.objective(), rows)
    pointers = [np.from_dlpack(x).ctypes.data for x in rows.arrays]
    assert [x.data.ptr for x in engine._arrays] == pointers
    weights = [place.asarray(W, "float32") for W in weights]
    solver = solvers.get("momentum")
    batches = Batches(None, [0] * 2, [700] * 2)
    got = engine.run(weights, solver, solver.start(weights), batches, [0.5] * 2, 0)
    assert all(place.library.owns(x) for x in [*got[0], *got[1][0], got[2], *engine.sums(weights, None, 0, 700)[0]])
    plain = OnHost(case.objective(), Rows(*arrays, backend=NUMPY, dtype="float32"))
    weights = case.arrays()[0]
    want = plain.run(weights, solver, solver.start(weights), batches, [0.5] * 2, 0)
    assert bytes_of(map(place.to_numpy, [*got[0], got[2]])) == bytes_of([*want[0], want[2]])


NUMBERS = [("cupy", "id"), ("torch", "index"), ("jax", "local_hardware_id")]


@pytest.mark.parametrize(("library", "number"), NUMBERS)
def test_it_works_on_the_device_of_the_rows(host_cuda, monkeypatch, library, number):
    """Where the current device is another; and JAX is given no address that XLA could not read."""
    left, devices = [], set()
    rows = testing.ChunkedRows(*TUTORIAL_5000.arrays()[1:], backend=NUMPY, dtype="float32")
    rows.backend = SimpleNamespace(
        library=SimpleNamespace(name=library), device=SimpleNamespace(**{number: 1}), floats=("float32", "float64"),
        xp=SimpleNamespace(from_dlpack=lambda x: left.append(x.ctypes.data) or np.asarray(x)),
    )  # fmt: skip
    empty = host_cuda.empty
    call = host_cuda._Function.__call__

    def here(function):
        def noted(*args):
            devices.add(host_cuda.cuda.Device().id)
            return function(*args)

        return noted

    monkeypatch.setattr(host_cuda, "empty", here(empty))
    monkeypatch.setattr(host_cuda._Function, "__call__", here(call))
    engine = OnHost(replace(TUTORIAL, layer_sizes=(3, 3, 1)).objective(), rows)
    weights, solver = replace(TUTORIAL, layer_sizes=(3, 3, 1)).arrays()[0], solvers.get("adam")
    engine.run(weights, solver, solver.start(weights), Batches(None, [0], [5000]), [0.5], 0)
    engine.sums(weights, None, 0, 5000)
    engine.block(weights, *rows.on_host(0, 9))
    assert devices == {1}
    assert len(left) == (0 if library == "cupy" else 2 + 4 + 1 + 3 + 3)
    assert library != "jax" or not any(address % 16 for address in left)


def test_nothing_is_changed_in_place():
    weights, X, y, w = replace(TUTORIAL, n=300, weighted=True).arrays()
    solver = solvers.get("adam")
    state = solver.start(weights)
    before = bytes_of([*weights, X, y, w, *state[0], *state[1]])
    engine = OnHost(TUTORIAL.objective(), Rows(X, y, w, backend=NUMPY, dtype="float32"))
    engine.run(weights, solver, state, Batches(None, [0], [300]), [0.5], 0)
    assert bytes_of([*weights, X, y, w, *state[0], *state[1]]) == before


def test_a_solver_of_ones_own_is_called_step_by_step():
    class Halved(solvers.GradientDescent):
        def step(self, weights, updates, state, rate, t):
            return super().step(weights, updates, state, rate / 2, t)

    weights, X, y, _ = replace(TUTORIAL, n=50).arrays()
    engine = OnHost(TUTORIAL.objective(), Rows(X, y, backend=NUMPY, dtype="float32"))
    batches = Batches(None, [0], [50])
    halved, plain = (engine.run(weights, solver, (), batches, [rate], 0)[0]
                     for solver, rate in ((Halved(), 0.2), (solvers.GradientDescent(), 0.1)))  # fmt: skip
    np.testing.assert_allclose(halved[0], plain[0], rtol=1e-6)


def test_a_step_of_no_rows_is_refused_in_words():
    """No CUDA block would end it, and a grid would wait for ever."""
    engine = OnHost(TUTORIAL.objective(), Rows(*TUTORIAL_5000.arrays()[1:], backend=NUMPY, dtype="float32"))
    weights, solver = TUTORIAL.arrays()[0], solvers.get("gradient_descent")
    with pytest.raises(ValueError, match="`stops` must be greater than `starts`.*; got 7 after 7, of step 1"):
        engine.run(weights, solver, (), Batches(None, [0, 7], [5000, 7]), [0.5, 0.5], 0)


def test_all_steps_are_one_launch_where_the_rows_stay_in_the_cache(host_cuda, monkeypatch):
    grids, call = [], host_cuda._Function.__call__
    monkeypatch.setattr(
        host_cuda._Function, "__call__", lambda f, grid, *args: grids.append(grid) or call(f, grid, *args)
    )
    for cache, launches in ((5000 * 4 * 4, 1), (5000 * 4 * 4 - 1, 3)):
        grids.clear()
        trained(TUTORIAL_5000, way={"cache_bytes": cache})
        assert len(grids) == launches


def test_a_kernel_that_spills_is_compiled_for_fewer_blocks(host_cuda, monkeypatch):
    tried = []

    class Spills(host_cuda.RawModule):
        def __init__(self, code, *, options, **more):
            super().__init__(code, options=options, **more)
            tried.append(int(options[-1].removeprefix("-DMIN_BLOCKS=")))

        def get_function(self, name):
            function = super().get_function(name)
            function.local_size_bytes = 8 * (tried[-1] > 2)
            return function

    monkeypatch.setattr(host_cuda, "RawModule", Spills)
    for choices, blocks in (((5, 3, 2, 1), 2), ((7, 5), 5)):
        _, found = cuda._kernel(host_cuda, OnHost.options(TUTORIAL.objective(), "float32", weighted=False, vector=True),
                                choices, False, 0)  # fmt: skip
        assert found == blocks
    assert tried == [5, 3, 2, 7, 5]


def test_it_refuses_in_words_what_it_cannot_do():
    net = bp.Network([3, 4, 1], seed=1)
    with pytest.raises(ValueError, match="engine 'cuda' cannot do this: it computes on a CUDA device, and the rows are "
                                         "on numpy. Use backend='cupy'"):  # fmt: skip
        net.train([[0, 0, 1]], [1], steps=1, engine="cuda")
    own = bp.Network([3, 1], loss=(lambda y, l: (y - l) ** 2, lambda y, l: 2 * (l - y)))
    with pytest.raises(ValueError, match="activations or losses of your own. Use engine='blocked'"):
        own.train([[0, 0, 1]], [1], steps=1, engine=OnHost)
    with pytest.raises(
        ValueError, match="keep 786 registers' worth .* in float32, and can keep 180. Use engine='auto'"
    ):
        bp.Network([10, 30], dtype="float32").train(np.ones((4, 10)), np.ones((4, 30)), steps=1, engine=OnHost)


def test_auto_takes_it_where_it_can_work(host_cuda, monkeypatch):
    on_cupy = SimpleNamespace(
        name="cupy", library=SimpleNamespace(name="cupy"), device=SimpleNamespace(id=0), floats=NUMPY.floats
    )

    def chosen(sizes, backend=on_cupy):
        case = replace(TUTORIAL, layer_sizes=sizes, n=5)
        rows = Rows(*case.arrays()[1:], backend=NUMPY, dtype="float32")
        rows.backend = backend
        return choose("auto", case.objective(), rows, None, batch_rows=5, steps=1)

    for name in ("library", "trouble", "reaches"):
        monkeypatch.setattr(Cuda, name, getattr(OnHost, name))
    engine, reason = chosen((3, 4, 1))
    assert engine.name == "cuda"
    assert "each row is read once" in reason
    assert chosen((30, 40, 1))[0].name != "cuda"
    assert chosen((3, 4, 1), NUMPY)[0].name != "cuda"


def test_the_kernel_is_part_of_the_package(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    import zipfile

    root = Path(bp.__file__).parents[1]
    (wheel,) = builder.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    assert "bpaccel/engines/mlp.cu" in zipfile.ZipFile(wheel).namelist()
