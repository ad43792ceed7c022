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
    reason = why_not(library)
    if reason is not None:
        required = os.environ.get("BPACCEL_REQUIRE", "").split(",")
        if library in required:
            pytest.fail(f"{library} is required by BPACCEL_REQUIRE, but {reason}", pytrace=False)
        pytest.skip(f"{library}: {reason}")
    return name


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
