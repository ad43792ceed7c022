"""Losses: values against scikit-learn's and against plain formulas, errors against differences."""

import numpy as np
import pytest

from bpaccel import losses

ALL = [*losses.LOSSES, "huber", "huber:0.3", "quantile", "quantile:0.9"]


def _pair(name, n=50, seed=0):
    random = np.random.default_rng(seed)
    if name == "log_loss":
        return random.integers(0, 2, (n, 2)).astype(float), random.uniform(0.02, 0.98, (n, 2))
    if name == "poisson":
        return random.poisson(1.0, (n, 2)).astype(float), random.uniform(0.1, 4, (n, 2))
    return random.standard_normal((n, 2)), random.standard_normal((n, 2))


@pytest.mark.parametrize("name", ALL)
def test_the_error_is_minus_the_derivative(name):
    loss = losses.get(name, "sigmoid" if name == "log_loss" else "exp" if name == "poisson" else "identity")
    y, l = _pair(name)
    h = 1e-6
    measured = -(loss.value(y, l + h, np) - loss.value(y, l - h, np)) / (2 * h)
    np.testing.assert_allclose(loss.error(y, l, np), measured, rtol=2e-7, atol=2e-8)


def test_the_categorical_error_is_minus_the_derivative():
    loss = losses.get("log_loss", "softmax")
    y, l = np.eye(3)[[0, 2, 1]], np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    h = 1e-6
    measured = -(loss.value(y, l + h, np) - loss.value(y, l - h, np)) / (2 * h)
    np.testing.assert_allclose(loss.error(y, l, np), measured, rtol=1e-8, atol=1e-12)


def test_values_are_the_known_formulas():
    y, l = _pair("huber")
    e = np.abs(y - l)
    value = {
        name: losses.get(name).value(y, l, np)
        for name in ("squared_error", "absolute_error", "huber:0.3", "quantile:0.9")
    }
    np.testing.assert_allclose(value["squared_error"], e * e / 2)
    np.testing.assert_allclose(value["absolute_error"], e)
    np.testing.assert_allclose(value["huber:0.3"], np.where(e <= 0.3, e * e / 2, 0.3 * e - 0.045))
    np.testing.assert_allclose(value["quantile:0.9"], np.where(y > l, 0.9 * e, 0.1 * e))


def test_values_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    y, l = _pair("log_loss")
    ours = losses.get("log_loss", "sigmoid").value(y[:, 0], l[:, 0], np).mean()
    assert ours == pytest.approx(metrics.log_loss(y[:, 0], l[:, 0]), rel=1e-12)
    p = l / l.sum(axis=1, keepdims=True)
    one_hot = np.eye(2)[y[:, 0].astype(int)]
    ours = losses.get("log_loss", "softmax").value(one_hot, p, np).sum(axis=1).mean()
    assert ours == pytest.approx(metrics.log_loss(y[:, 0], p), rel=1e-12)
    y, l = _pair("poisson")
    ours = losses.get("poisson", "exp").value(y, l, np).mean()
    assert 2 * ours == pytest.approx(metrics.mean_poisson_deviance(y.ravel(), l.ravel()), rel=1e-12)
    y, l = _pair("quantile")
    ours = losses.get("quantile:0.9").value(y, l, np).mean()
    assert ours == pytest.approx(metrics.mean_pinball_loss(y, l, alpha=0.9), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sure_and_wrong_answer_costs_a_finite_loss(dtype):
    y, l = np.array([[0.0, 1.0]], dtype), np.array([[1.0, 0.0]], dtype)
    for output in ("sigmoid", "softmax"):
        value = losses.get("log_loss", output).value(y, l, np)
        assert np.all(np.isfinite(value))
        assert value.max() == pytest.approx(-np.log(np.finfo(dtype).eps), rel=1e-6)
    value = losses.get("poisson", "exp").value(y, np.zeros_like(l), np)
    assert np.all(np.isfinite(value))


def test_a_row_is_one_object_so_that_equal_losses_are_equal():
    assert losses.get("quantile:0.9") is losses.get("quantile:0.90")
    assert losses.get("huber") is losses.get("huber:1")


def test_a_pair_of_functions_is_a_loss():
    loss = losses.get((lambda y, l: (y - l) ** 4, lambda y, l: -4 * (y - l) ** 3))
    y, l = _pair("own")
    np.testing.assert_allclose(loss.error(y, l, np), 4 * (y - l) ** 3)


@pytest.mark.parametrize(("loss", "output", "sentence"), [
    ("hinge", "identity", "`loss` must be one of squared_error"),
    ("quantile:1.5", "identity", "needs a number between 0 and 1; got '1.5'"),
    ("huber:x", "identity", "needs a number between 0 and inf; got 'x'"),
    ("log_loss", "identity", "needs an output activation of sigmoid or softmax; got 'identity'"),
    ("poisson", "relu", "needs an output activation of exp or softplus or sigmoid; got 'relu'"),
    ("squared_error", "softmax", "softmax has no slope, and goes with a loss that cancels it only"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_in_words(loss, output, sentence):
    with pytest.raises(ValueError, match=sentence):
        losses.get(loss, output)
