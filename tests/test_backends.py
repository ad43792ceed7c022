"""The switch: names, devices, what follows what, and clear sentences where a backend is not to be had."""

import os
import subprocess
import sys

import numpy as np
import pytest

import bpaccel as bp
from bpaccel.backends import LIBRARIES, BackendError, backend_of, dtype_name, library_of, namespace, resolve

X = [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
Y = [0, 1, 1, 0]


def test_a_backend_brings_arrays_there_and_back(place):
    where = bp.backend(place)
    for dtype in where.floats:
        x = where.asarray([[1, 2], [3, 4]], dtype)
        assert dtype_name(x) == dtype
        assert backend_of(x).name == where.name
        where.synchronize(x)
        np.testing.assert_array_equal(where.to_numpy(x), [[1.0, 2.0], [3.0, 4.0]])
        assert namespace(x) is where.xp or namespace(x).__name__ == where.xp.__name__


@pytest.mark.parametrize("make", [
    lambda x: x[::-1], lambda x: x[:, ::2], np.asfortranarray, lambda x: np.broadcast_to(x[:1], x.shape),
], ids=["negative strides", "strided", "Fortran", "read-only"])  # fmt: skip
def test_any_host_layout_comes_in(make, place):
    x = make(np.arange(12.0).reshape(3, 4))
    where = bp.backend(place)
    np.testing.assert_array_equal(where.to_numpy(where.asarray(x, where.widest)), x)


def test_results_come_back_where_the_callers_rows_live(place):
    where = bp.backend(place)
    x = where.asarray(X, where.widest)
    net = bp.Network([3, 4, 1], seed=1)
    net.train(x, where.asarray(Y, where.widest), steps=2)
    assert {backend_of(W).name for W in net.weights} == {where.name}
    assert backend_of(net.predict(x)).name == where.name
    assert isinstance(net.predict(X), np.ndarray)
    for a in [*net.layers(x), *net.errors(x, where.asarray(Y, where.widest)), *net.gradients(x, Y)]:
        assert backend_of(a).name == where.name


def test_a_named_backend_computes_and_the_result_comes_home(place):
    net = bp.Network([3, 4, 1], seed=1, backend=place)
    net.train(X, Y, steps=2)
    assert {backend_of(W).name for W in net.weights} == {bp.backend(place).name}
    assert isinstance(net.predict(np.array(X, float)), np.ndarray)


def test_to_moves_the_weights_and_names_the_backend(backend):
    net = bp.Network([3, 4, 1], seed=1)
    assert net.to(backend) is net
    assert net.backend == bp.backend(backend).name
    assert {backend_of(W).name for W in net.weights} == {net.backend}
    net.to("numpy")
    assert all(isinstance(W, np.ndarray) for W in net.weights)
    assert net.to(None).backend is None


def test_two_libraries_and_no_name_is_an_error_with_the_remedy(backend):
    if backend == "numpy":
        pytest.skip("needs a second library beside NumPy")
    where = bp.backend(backend)
    net = bp.Network([3, 4, 1], seed=1)
    with pytest.raises(BackendError, match=r"`X` on .* and `y` on .*backend='numpy'"):
        net.train(where.asarray(X, where.widest), np.array(Y), steps=1)
    net.train(where.asarray(X, where.widest), Y, steps=1)  # a list lives nowhere
    net.to(backend).train(where.asarray(X, where.widest), np.array(Y), steps=1)


def test_two_devices_and_no_name_is_an_error():
    strict = pytest.importorskip("array_api_strict")
    x, y = strict.asarray(X, dtype=strict.float64), bp.backend("array_api_strict:device1").asarray(Y, "float64")
    with pytest.raises(BackendError, match="array_api_strict:device1"):
        bp.Network([3, 4, 1]).train(x, y, steps=1)


def test_the_environment_names_a_backend_for_host_data_only(monkeypatch, backend):
    monkeypatch.setenv("BPACCEL_BACKEND", backend)
    where = bp.backend(backend)
    assert resolve(None, X=backend_of(np.ones(3))).name == where.name
    assert resolve(None, X=None).name == where.name
    assert resolve("numpy", X=None).name == "numpy"
    strict = pytest.importorskip("array_api_strict")
    assert resolve(None, X=backend_of(strict.ones(3))).name == "array_api_strict"
    monkeypatch.setenv("BPACCEL_BACKEND", "")
    assert resolve(None, X=None).name == "numpy"


def test_auto_is_cupy_if_usable_else_numpy():
    assert bp.backend("auto").name.partition(":")[0] == (
        "cupy" if bp.available_backends()["cupy"] == "usable" else "numpy"
    )


def test_backends_says_why_not():
    states = bp.available_backends()
    assert list(states) == list(LIBRARIES)
    assert states["numpy"] == "usable"


def test_cupy_without_a_gpu_is_one_clear_sentence(monkeypatch):
    if bp.available_backends()["cupy"] == "usable":
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"^backend 'cupy' is not usable: (installed, but no usable|not installed)"):
        bp.Network([3, 1], backend="cupy")


def test_an_installed_library_that_cannot_be_used_is_not_usable(monkeypatch, tmp_path):
    """Installed is not usable: a CuPy that imports and finds no device, as on a machine without a driver."""
    (tmp_path / "cupy.py").write_text("class ndarray: pass\ndef is_available():\n    return False\n")
    code = "import bpaccel as bp; print(bp.available_backends()['cupy']); "
    code += "bp.Network([1, 1]).predict([[1]]); bp.backend('cupy')"
    done = _python(code, PYTHONPATH=str(tmp_path))
    assert done.stdout.strip() == "installed, but no usable CUDA device was found"
    assert done.stderr.strip().endswith("backend 'cupy' is not usable: installed, but no usable CUDA device was found.")


def test_a_broken_install_is_a_reason_not_a_crash(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')\n")
    done = _python("import bpaccel as bp; print(bp.available_backends()['torch'])", PYTHONPATH=str(tmp_path))
    assert "does not import: OSError: libcudart.so" in done.stdout


def test_jax_without_x64_has_no_float64_and_says_so():
    if bp.available_backends()["jax"] != "usable":
        pytest.skip(f"jax: {bp.available_backends()['jax']}")
    code = """
import numpy as np, bpaccel as bp
net = bp.Network([3, 4, 1], seed=1, backend="jax")
net.train([[0, 0, 1], [1, 1, 1]], [0, 1], steps=2)
print(net.dtype)
try:
    bp.Network([3, 4, 1], backend="jax").train(np.ones((2, 3)), [0, 1], steps=2)
except bp.BackendError as error:
    print(error)
"""
    out = _python(code, JAX_ENABLE_X64="0").stdout
    assert out.startswith("float32\n")
    assert "`dtype` 'float64' is not to be had on backend 'jax'" in out
    assert "JAX_ENABLE_X64=1" in out


@pytest.mark.parametrize(("name", "sentence"), [
    ("tensorflow", "`backend` 'tensorflow' is not known; it must be library"),
    ("numpy:1", "NumPy has no device '1'"),
    (3, "`backend` must be a name such as 'numpy'"),
    ("array_api_strict:device9", "array_api_strict has no device 'device9' here"),
    ("jax:tpu", "jax has no device 'tpu' here"),
    ("torch:cuda:99", "torch has no device 'cuda:99' here"),
])  # fmt: skip
def test_a_wrong_name_is_one_sentence(name, sentence):
    library = str(name).partition(":")[0]
    if library in LIBRARIES and bp.available_backends()[library] != "usable":
        pytest.skip(f"{library}: {bp.available_backends()[library]}")
    with pytest.raises(BackendError, match=sentence):
        bp.backend(name)


def test_arrays_of_no_library_of_ours_are_refused_in_words():
    Array = type("Array", (), {"__module__": "dask.array.core"})
    with pytest.raises(BackendError, match=r"dask.array.core.Array are not supported.*numpy\.asarray first"):
        library_of(Array())


def test_torch_tensors_that_require_grad_come_in_detached():
    torch = pytest.importorskip("torch")
    x = torch.ones((2, 3), requires_grad=True)
    net = bp.Network([3, 4, 1], seed=1)
    net.train(x, torch.ones(2), steps=1)
    assert not net.predict(x).requires_grad


def _python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
