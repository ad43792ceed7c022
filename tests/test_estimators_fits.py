"""Whole fits, until they stop by themselves, against scikit-learn's own: for each task, activation and solver."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network as theirs

import bpaccel as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 40
X = np.random.RandomState(0).standard_normal((N, 4))
_SUM = X @ np.arange(1.0, 5.0) / 4 + np.sin(X[:, 0]) + np.random.RandomState(2).standard_normal(N)
WEIGHT = np.random.RandomState(1).uniform(0.2, 3.0, N)
TARGETS = {
    "binary": ("MLPClassifier", np.where(_SUM > 0, "yes", "no"), {}),
    "multiclass": ("MLPClassifier", np.digitize(_SUM, [-0.5, 0.5]), {}),
    "multilabel": ("MLPClassifier", (X[:, :3] + _SUM[:, None] > 0).astype(int), {}),
    "regression": ("MLPRegressor", _SUM, {}),
    "multioutput": ("MLPRegressor", np.stack([_SUM, X[:, 1] ** 2], axis=1), {}),
    "poisson": ("MLPRegressor", np.floor(np.exp(np.clip(_SUM, -3, 2))), {"loss": "poisson"}),
}
SOLVERS = {
    "sgd": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.02, "tol": 1e-3},
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
    "adam, stopped": {"solver": "adam", "learning_rate_init": 0.01, "early_stopping": True, "tol": 1e-3},
}  # fmt: skip
SMALL = {"hidden_layer_sizes": (4,), "batch_size": 20, "random_state": 3, "n_iter_no_change": 3}


def _weights(model):
    return np.concatenate([np.ravel(a) for a in model.coefs_ + model.intercepts_])


def _both(target, **options):
    name, y, more = TARGETS[target]
    return [getattr(kind, name)(**SMALL | options | more) for kind in (ours, theirs)], y


@pytest.mark.parametrize(("activation", "weight"), [
    ("identity", None), ("logistic", None), ("tanh", None), ("relu", None), ("tanh", WEIGHT),
], ids=["identity", "logistic", "tanh", "relu", "tanh, weights"])  # fmt: skip
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_whole_fit_gives_the_same_numbers(target, solver, activation, weight):
    models, y = _both(target, activation=activation, **SOLVERS[solver])
    a, b = (model.fit(X, y, sample_weight=weight) for model in models)
    assert a.n_iter_ == b.n_iter_
    np.testing.assert_allclose(_weights(a), _weights(b), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(a.loss_curve_, b.loss_curve_, rtol=1e-6, atol=1e-6)
    predict = "predict_proba" if hasattr(b, "predict_proba") else "predict"
    np.testing.assert_allclose(getattr(a, predict)(X), getattr(b, predict)(X), rtol=1e-6, atol=1e-6)
    assert np.array_equal(a.predict(X), b.predict(X)) or predict == "predict"


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_fit_of_lbfgs_is_as_near_as_rounding_lets_scikit_learn_be_to_itself(target, activation):
    """L-BFGS amplifies rounding: one ulp on X moves scikit-learn's own weights, and ours may be off ten times that."""
    models, y = _both(target, activation=activation, solver="lbfgs", max_iter=500, alpha=1.0)
    a, b = (model.fit(X, y) for model in models)
    moved = [
        np.abs(_weights(type(b)(**b.get_params()).fit(np.nextafter(X, side), y)) - _weights(b)).max()
        for side in (-np.inf, np.inf)
    ]
    assert np.abs(_weights(a) - _weights(b)).max() <= max(10 * max(moved), 1e-6)
    assert a.loss_ == pytest.approx(b.loss_, rel=1e-3)
