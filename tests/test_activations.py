"""Activations: values against exact ones, slopes against differences, and no overflow anywhere."""

import numpy as np
import pytest

from bpaccel import activations
from bpaccel.backends import backend as backend_of_name

mpmath = pytest.importorskip("mpmath")

EXACT = {
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "identity": lambda z: z,
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "exp": mpmath.exp,
}
ELEMENTWISE = list(EXACT)


def test_every_row_is_tested():
    assert {*ELEMENTWISE, "softmax"} == set(activations.ACTIVATIONS)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_values_are_exact_to_a_few_ulp(name, place):
    where = backend_of_name(place)
    for dtype in where.floats:
        edge = 80.0 if dtype == "float32" else 700.0
        z = np.concatenate([np.linspace(-edge, edge, 401), np.geomspace(1e-6, 1, 40), -np.geomspace(1e-6, 1, 40)])
        z = z.astype(dtype)
        got = where.to_numpy(activations.get(name).function(where.asarray(z, dtype), where.xp))
        with mpmath.workdps(60):
            want = np.array([float(EXACT[name](mpmath.mpf(float(v)))) for v in z])
        # 8 ulp: a few of the library's own exp, whose argument is rounded where |z| is large, as on CUDA and XLA.
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps, atol=0)
        assert got.dtype == dtype


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slopes_from_the_output_are_the_derivatives(name):
    f = activations.get(name)
    z = np.array([[-3.0, -1.0, -0.1, 0.1, 1.0, 2.0]])
    h = 1e-6
    measured = (f.function(z + h, np) - f.function(z - h, np)) / (2 * h)
    np.testing.assert_allclose(f.slope(f.function(z, np), np), measured, rtol=1e-8)


@pytest.mark.parametrize("name", sorted(activations.ACTIVATIONS))
def test_no_warning_and_nan_stays_nan(name, place):
    where = backend_of_name(place)
    f = activations.get(name)
    large = 85.0 if name == "exp" else 1e4
    z = where.asarray([[-large, large, 0.0]], "float32")
    a = f.function(z, where.xp)
    assert np.all(np.isfinite(where.to_numpy(a)))
    if f.slope is not None:
        assert np.all(np.isfinite(where.to_numpy(f.slope(a, where.xp))))
    with_nan = f.function(where.asarray([[np.nan, 1.0]], "float32"), where.xp)
    assert np.isnan(where.to_numpy(with_nan)[0, 0])


def test_softmax_rows_sum_to_one_and_do_not_mind_a_shift():
    z = np.random.default_rng(0).standard_normal((5, 4))
    softmax = activations.get("softmax").function
    np.testing.assert_allclose(softmax(z, np).sum(axis=1), 1.0, rtol=1e-15)
    np.testing.assert_allclose(softmax(z + 1000.0, np), softmax(z, np), rtol=1e-11)


def test_the_article_at_three_points():
    """The article's picture: the sigmoid is steepest at 0, flat at 2, less flat at -1."""
    f = activations.get("sigmoid")
    slopes = f.slope(f.function(np.array([2.0, 0.0, -1.0]), np), np)
    np.testing.assert_allclose(slopes, [0.10499359, 0.25, 0.19661193], atol=1e-8)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`activation` must be one of sigmoid, tanh.*got 'swish'"):
        activations.get("swish")
