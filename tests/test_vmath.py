"""Mathematics on lanes: against NumPy's extended precision, over the whole range and near 0."""

import ctypes

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from bpaccel.engines import lanes, vmath  # noqa: E402
from bpaccel.engines.memory import add_totals, load, set_real, store  # noqa: E402

COUNT = 16
EXTENDED = np.finfo(np.longdouble).nmant >= 63


def applied(function, x):
    """A function over lanes, of every number of an array."""
    typed = lanes.lane_function(lambda spec, value: function(value))

    def run(k, a, n):
        for r in range(0, n, 16):
            store(k, a, r, typed(k, load(k, a, r)))

    signature = numba.types.void(lanes.KindType(lanes.Kind(x.dtype.name, COUNT)), numba.int64, numba.int64)
    compiled = numba.cfunc(signature, error_model="numpy")(run)
    y = np.zeros(-(-x.size // COUNT) * COUNT, x.dtype)
    y[: x.size] = x
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(compiled.address)
    call(None, y.ctypes.data, y.size)
    return y[: x.size]


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def sigmoid(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# Function, the exact one, the ends of the range in float32 and float64, worst units in the last place allowed, and
# what comes of nan, infinity, -infinity and 0.
CASES = {
    "sigmoid": (vmath.sigmoid, sigmoid, (-110, 110), (-750, 750), 4.0, (np.nan, 1, 0, 0.5)),
    "tanh": (vmath.tanh, np.tanh, (-20, 20), (-25, 25), 3.2, (np.nan, 1, -1, 0)),
    "softplus": (vmath.softplus, softplus, (-110, 110), (-750, 750), 3.6, (np.nan, np.inf, 0, np.log(2))),
    "exp": (vmath.exp, np.exp, (-110, 88.7), (-750, 709.7), 2.0, (np.nan, np.inf, 0, 1)),
    "expm1_down": (vmath.expm1_down, np.expm1, (-110, 0), (-750, 0), 2.0, (np.nan, None, -1, 0)),
    "log": (vmath.log, np.log, (1e-45, 3e38), (5e-324, 1.7e308), 2.3, (np.nan, np.inf, None, -np.inf)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_functions_are_right_to_a_few_units_in_the_last_place(name, dtype):
    if not EXTENDED:
        pytest.skip("numpy.longdouble is no wider than float64 here")
    function, exact, *ranges, allowed, ends = CASES[name]
    low, high = ranges[dtype == "float64"]
    random = np.random.default_rng(0)
    if low > 0:
        x = np.concatenate([np.exp(random.uniform(np.log(low), np.log(high), 50_000)), random.uniform(0.5, 2, 50_000)])
    else:
        tiny = 10.0 ** random.uniform(-37, 0, 20_000)
        x = np.concatenate([random.uniform(low, high, 50_000), random.uniform(-3, min(high, 3), 50_000), tiny, -tiny])
        x = x[(x >= low) & (x <= high)]
    x = x.astype(dtype)
    with np.errstate(under="ignore", over="ignore"):
        want = exact(x.astype(np.longdouble))
        spacing = np.spacing(abs(want).astype(dtype))  # that of subnormal numbers included
    off = np.max(abs(applied(function, x).astype(np.longdouble) - want) / spacing)
    assert off <= allowed

    got = applied(function, np.array([np.nan, np.inf, -np.inf, 0.0], dtype))
    for is_, should in zip(got, ends, strict=True):
        if should is not None:
            np.testing.assert_array_max_ulp(is_, np.array(should, dtype), 1) if np.isfinite(should) else (
                np.testing.assert_equal(is_, np.array(should, dtype))
            )


def test_exp_overflows_to_infinity_and_sigmoid_never_does():
    big = np.array([89.0, 710.0, 1e30, -1e30], np.float64)
    np.testing.assert_array_equal(applied(vmath.exp, big)[1:], [np.inf, np.inf, 0.0])
    np.testing.assert_array_equal(applied(vmath.sigmoid, big), [1.0, 1.0, 1.0, 0.0])


def test_sums_of_lanes_are_pairwise_and_folding_four_at_once_gives_their_sums():
    kind = lanes.Kind("float32", COUNT)

    def run(k, a, g):
        add_totals(k, g, 0, 1, load(k, a, 0), load(k, a, 16), load(k, a, 32), load(k, a, 48))
        set_real(g, 4, lanes.total(k, load(k, a, 0)))

    signature = numba.types.void(lanes.KindType(kind), numba.int64, numba.int64)
    compiled = numba.cfunc(signature)(run)
    a = np.random.default_rng(0).random(64).astype(np.float32)
    g = np.array([0.0, 1.0, 2.0, 3.0, 0.0])
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(compiled.address)(
        None, a.ctypes.data, g.ctypes.data
    )
    parts = a.reshape(4, 16)
    while parts.shape[1] > 1:
        half = parts.shape[1] // 2
        parts = parts[:, :half] + parts[:, half:]
    np.testing.assert_array_equal(g, [*(parts[:, 0].astype(float) + np.arange(4)), parts[0, 0]])
