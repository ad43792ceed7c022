"""Fixtures that all tests share: the backends, as parameters with plain ids.

A library that is missing is a visible skip with its reason; named in `BPACCEL_REQUIRE`, it is a failure.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")  # float64 on JAX, for tests against NumPy's
os.environ.pop("BPACCEL_BACKEND", None)
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest

from bpaccel.backends import why_not

hypothesis.settings.register_profile("bpaccel", deadline=None, derandomize=True)
hypothesis.settings.load_profile("bpaccel")

LIBRARIES = ["numpy", "array_api_strict", "jax", "torch", "cupy"]
PLACES = [
    *(f"array_api_strict:{device}" for device in ("device1", "device2", "no_float64", "no_x64")),
    *LIBRARIES,
]


def _usable(name):
    library = name.partition(":")[0]
    skip_or_fail(library, why_not(library))
    return name


def skip_or_fail(name, reason):
    """Skip for a reason why ``name`` is not usable, or fail where it must be; nothing where there is no reason."""
    if reason is not None:
        if name in os.environ.get("BPACCEL_REQUIRE", "").split(","):
            pytest.fail(f"{name} is required by BPACCEL_REQUIRE, but {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")


@pytest.fixture
def usable():
    """Skips, or fails, where a library is not usable: ``usable(name)``."""
    return _usable


def _parameters(names):
    return [pytest.param(name, id=name, marks=pytest.mark.gpu if name == "cupy" else ()) for name in names]


@pytest.fixture(params=_parameters(LIBRARIES))
def backend(request):
    """The name of each library's default backend."""
    return _usable(request.param)


@pytest.fixture(params=_parameters(PLACES))
def place(request):
    """The same, with all five devices that array-api-strict simulates."""
    return _usable(request.param)


@pytest.fixture(scope="session")
def host_cuda():
    """The stand-in for CuPy that runs CUDA kernels on the CPU; it needs g++."""
    import host_cuda

    skip_or_fail("g++", host_cuda.missing())
    return host_cuda


@pytest.fixture(scope="session")
def nvrtc():
    """NVIDIA's compiler and its report; it needs CuPy and NVRTC, not a GPU."""
    import compiled

    skip_or_fail("nvrtc", compiled.missing())
    return compiled


@pytest.fixture(scope="session")
def nvdisasm(nvrtc):
    """The same, where machine code can be read too."""
    skip_or_fail("nvdisasm", nvrtc.no_disassembler())
    return nvrtc
