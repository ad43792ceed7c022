"""The engines with CUDA kernels on a GPU: what their tests on the CPU cannot show."""

import numpy as np
import pytest

from bpaccel import solvers, testing
from bpaccel.backends import BackendError, backend
from bpaccel.data import Rows
from bpaccel.engines import Batches, buffers
from bpaccel.engines.choice import find

pytestmark = pytest.mark.gpu
TUTORIAL = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32", n=5000)


@pytest.fixture(autouse=True)
def _gpu(usable):
    usable("cupy")


def on_gpu(name):
    """The backend of a library on the GPU, or a skip."""
    try:
        return backend(name)
    except BackendError as error:  # not installed, or made for the CPU alone
        pytest.skip(str(error))


def trained(engine, place, case=TUTORIAL, form=Rows):
    """The bytes of weights, state and totals after three steps."""
    weights, *arrays = case.arrays()
    runner = find(engine)(case.objective(reduction="mean"), form(*arrays, backend=place, dtype=case.dtype))
    solver = solvers.get("adam")
    weights = [place.asarray(W, case.dtype) for W in weights]
    steps = Batches(None, [0] * 3, [case.n] * 3)
    weights, state, totals = runner.run(weights, solver, solver.start(weights), steps, [0.5, 0.25, 0.1], 0)
    runner.close()
    arrays = [*weights, *(W for group in state for W in group), totals]
    assert all(place.library.owns(x) for x in arrays)
    return [place.to_numpy(x) for x in arrays]


def same_bytes(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_wide_passes_the_conformance_suite():
    testing.check_engine("wide", "cupy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_passes_a_part_of_the_conformance_suite(dtype):
    """Each case is compiled for itself: all of them would take minutes."""
    place = backend("cupy")
    fits = [case for case in testing.cases(dtypes=(dtype,)) if not testing._refused(find("cuda"), case, place)]
    for case in fits[:: -(-len(fits) // 12)]:
        testing.check_case("cuda", case, "cupy")
    for solver in ("nesterov", "adam"):
        testing.check_run("cuda", solvers.get(solver), dtype, "cupy")


@pytest.mark.parametrize("engine", ["cuda", "wide"])
@pytest.mark.parametrize("name", ["torch:cuda", "jax:cuda"])
def test_arrays_of_other_libraries_enter_and_results_go_back(engine, name):
    place = on_gpu(name)
    found, want = trained(engine, place), trained(engine, backend("cupy"))
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert engine == "wide" or same_bytes(found[:-1], want[:-1])  # JAX may have no float64 for the totals


def test_rows_from_the_host_give_the_bytes_of_rows_on_the_device(monkeypatch):
    monkeypatch.setattr(buffers, "BUFFER_BYTES", 1)
    place, kind = backend("cupy"), find("cuda")
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32", weighted=True,
                        n=3 * kind.shares * kind.share_rows() + 77)  # fmt: skip
    assert same_bytes(trained("cuda", place, case), trained("cuda", place, case, testing.ChunkedRows))
