"""The wide path: its kernels, compiled for the CPU, and NumPy's products in cuBLAS's place, against the core."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bpaccel import solvers, testing
from bpaccel.backends import backend, why_not
from bpaccel.data import Rows
from bpaccel.engines import Sums, wide
from bpaccel.testing import Case


@pytest.fixture
def engine(host_cuda):
    class OnHost(wide.Wide):
        """The engine as it is, on NumPy arrays; small blocks, so that few rows are several of them."""

        most_blocks = 2  # so that a thread comes by several times

        @classmethod
        def library(cls):
            return host_cuda

        @classmethod
        def trouble(cls):
            return None

        @classmethod
        def reaches(cls, backend):
            return True

        @classmethod
        def rows_of_a_block(cls, objective, rows):
            return 64

    return OnHost


def sums(engine, case, **changes):
    weights, *arrays = case.arrays()
    runner = engine(case.objective(**changes), Rows(*arrays, backend=backend("numpy"), dtype=case.dtype))
    return runner.sums(weights, None, 0, case.n)


def bits(result):
    return b"".join(np.asarray(a).tobytes() for a in [*result.updates, result.totals])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_passes_the_conformance_suite(engine, dtype):
    """All activations, losses, depths, layouts and solvers."""
    testing.check_engine(engine, dtypes=[dtype])


@pytest.mark.parametrize(
    ("sizes", "n"),
    [((28, 300, 1), 130), ((64, 32, 10), 200), ((7, 129, 65, 33), 65), ((5, 1, 1, 1), 3), ((1, 1), 1)],
)
@pytest.mark.parametrize("output", ["identity", "softmax"])
def test_wide_networks(engine, sizes, n, output):
    loss = "log_loss" if output == "softmax" else "squared_error"
    for dtype, bias in itertools.product(("float32", "float64"), (False, True)):
        hidden = ("sigmoid", "tanh", "relu")[: len(sizes) - 2]
        testing.check_case(engine, Case(sizes, (*hidden, output), loss, dtype, bias=bias, weighted=bias, n=n))


def test_a_wide_softmax_is_a_softmax(engine):
    """More classes than a warp has lanes, of sums that overflow exp."""
    case = Case((3, 77), ("softmax",), "log_loss", "float32", bias=True, n=19)
    testing.check_case(engine, case)
    weights, X, y, _ = case.arrays()
    runner = engine(case.objective(), Rows(1e4 * X, y, backend=backend("numpy"), dtype="float32"))
    result = runner.sums(weights, None, 0, case.n)
    assert all(np.isfinite(a).all() for a in [*result.updates, result.totals])


def test_the_order_of_threads_changes_no_bit(engine, host_cuda, monkeypatch):
    case = Case((5, 40, 3), ("tanh", "softmax"), "log_loss", "float32", bias=True, weighted=True, n=100)
    found = set()
    for seed in range(4):
        monkeypatch.setattr(host_cuda.RawModule, "seed", seed)
        found.add(bits(sums(engine, case)))
    assert len(found) == 1


def test_buffers_are_used_again(engine, host_cuda, monkeypatch):
    """A second step takes no memory but that of its sums."""
    case = Case((5, 40, 3), ("tanh", "sigmoid"), "squared_error", "float32", bias=True, n=300)
    weights, *arrays = case.arrays()
    runner = engine(case.objective(), Rows(*arrays, backend=backend("numpy"), dtype="float32"))
    first, taken = runner.sums(weights, None, 0, 300), []
    empty = host_cuda.empty
    monkeypatch.setattr(host_cuda, "empty", lambda shape, dtype: taken.append(np.prod(shape)) or empty(shape, dtype))
    assert bits(runner.sums(weights, None, 0, 300)) == bits(first)
    assert max(taken) == 6 * 40


@pytest.mark.parametrize("place", ["torch", "jax"])
def test_arrays_of_other_libraries_enter_and_results_go_back(engine, place):
    if trouble := why_not(place):
        pytest.skip(f"{place}: {trouble}")
    home = backend(f"{place}:cpu")
    case = Case((5, 40, 3), ("tanh", "softmax"), "log_loss", "float32", bias=True, weighted=True, n=100)
    weights, *arrays = case.arrays()
    runner = engine(case.objective(), Rows(*arrays, backend=home, dtype="float32"))
    found = runner.sums([home.asarray(W, "float32") for W in weights], None, 0, 100)
    assert all(home.library.owns(x) for x in [*found.updates, found.totals])
    hosted = [home.to_numpy(x) for x in found.updates]
    assert bits(Sums(hosted, home.to_numpy(found.totals))) == bits(sums(engine, case))


def test_what_is_not_a_number_is_seen(engine):
    """An output layer of each kind passes nan on: training stops at it instead of learning from it."""
    outputs = {"softmax": "log_loss", "sigmoid": "log_loss", "exp": "poisson", "relu": "huber", "identity": "quantile"}
    for output, loss in outputs.items():
        case = Case((2, 3, 2), ("relu", output), loss, "float32", n=5)
        weights, X, y, _ = case.arrays()
        X[3, 0] = np.nan
        runner = engine(case.objective(), Rows(X, y, backend=backend("numpy"), dtype="float32"))
        assert np.isnan(runner.sums(weights, None, 0, 5).totals[1:]).all(), output


def test_it_refuses_what_it_cannot_do():
    case = Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32")
    rows = Rows(*case.arrays()[1:], backend=backend("numpy"), dtype="float32")
    solver = solvers.get("adam")
    assert "on a CUDA device, and the rows are on numpy. Use" in wide.Wide.refuses(case.objective(), rows, solver)
    own = replace(case.objective().loss, name="mine", value=lambda y, l, xp: y - l)

    class OnNumPy(wide.Wide):
        @classmethod
        def reaches(cls, backend):
            return True

    if trouble := why_not("cupy"):
        assert f"needs CuPy, which is {trouble}" in OnNumPy.refuses(case.objective(), rows, solver)
    OnNumPy.trouble = classmethod(lambda cls: None)
    assert "functions of your own" in OnNumPy.refuses(case.objective(loss=own), rows, solver)
    assert OnNumPy.refuses(case.objective(), rows, solver) is None


def test_a_block_fits_its_memory():
    """From networks as wide as a layer may be to the narrowest, and float64: layers and deltas stay below the bound."""
    for width, dtype in itertools.product((1, 100, 4096), ("float32", "float64")):
        case = Case((width, width, width), ("sigmoid", "sigmoid"), "squared_error", dtype, n=1)
        rows = Rows(*case.arrays()[1:], backend=backend("numpy"), dtype=dtype)
        block = wide.Wide.rows_of_a_block(case.objective(), rows)
        assert block & (block - 1) == 0
        assert block * 4 * width * np.dtype(dtype).itemsize <= wide.BLOCK_BYTES
