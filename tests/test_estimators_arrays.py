"""The estimators on arrays of every library: everything follows X, with or without scikit-learn's dispatch switch.

These are the demands of scikit-learn's own array-API checks, which leave out JAX, and some more.
"""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone

from bpaccel import MLPClassifier, MLPRegressor
from bpaccel.backends import BackendError, backend_of
from bpaccel.backends import backend as backend_of_name
from bpaccel.estimators import fitted

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((60, 4))
_SUM = X.sum(axis=1)
TARGETS = {
    "binary": (MLPClassifier, (_SUM > 0).astype(int)),
    "multiclass": (MLPClassifier, np.digitize(_SUM, [-1, 1]) + 5),
    "multilabel": (MLPClassifier, (X[:, :2] > 0).astype(int)),
    "one class": (MLPClassifier, np.ones(60, int)),
    "text": (MLPClassifier, np.where(_SUM > 0, "yes", "no")),
    "regression": (MLPRegressor, _SUM),
    "multioutput": (MLPRegressor, np.stack([_SUM, X[:, 0] ** 2], axis=1)),
}
SOLVERS = {
    "adam": {"early_stopping": True, "learning_rate_init": 0.01},
    "sgd": {"solver": "sgd"},
    "lbfgs": {"solver": "lbfgs", "max_iter": 4, "alpha": 10.0},
}


def _made(kind, **options):
    return kind(**{"hidden_layer_sizes": (5,), "max_iter": 8, "batch_size": 16, "random_state": 0, **options})


def _assert_at_home(array, where):
    home = backend_of(array)
    assert (home.library.name, str(home.device)) == (where.library.name, str(where.device))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("target", TARGETS)
def test_everything_follows_x(place, target, solver):
    if place == "array_api_strict:no_x64" and target == "multiclass":
        pytest.skip("array_api_strict's own argmax fails on its device no_x64")
    kind, y = TARGETS[target]
    where = backend_of_name(place)
    here = where.asarray(X, where.widest)
    sample_weight = np.linspace(0.5, 2.0, 60)
    reference = _made(kind, **SOLVERS[solver]).fit(X.astype(where.widest), y, sample_weight)
    model = _made(kind, engine="array", **SOLVERS[solver])  # JAX would compile each of these
    targets = y if y.dtype.kind == "U" else where.asarray(y, where.widest if y.dtype.kind == "f" else "int32")
    model.fit(here, targets, where.asarray(sample_weight, where.widest))
    tolerance = 1e-6 if where.widest == "float64" else 2e-3
    for name in ("coefs_", "intercepts_"):
        for got, wanted in zip(getattr(model, name), getattr(reference, name)):
            _assert_at_home(got, where)
            np.testing.assert_allclose(where.to_numpy(got), wanted, rtol=tolerance, atol=tolerance)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(model, method):
            got, wanted = getattr(model, method)(here), getattr(reference, method)(X.astype(where.widest))
            if target == "text" and method == "predict":
                assert isinstance(got, np.ndarray)
                np.testing.assert_array_equal(got, wanted)
            else:
                _assert_at_home(got, where)
                np.testing.assert_allclose(where.to_numpy(got), wanted, rtol=tolerance, atol=tolerance)
    if kind is MLPClassifier and target != "text":
        _assert_at_home(model.classes_, where)
    score = model.score(here, targets)
    assert isinstance(score, float)
    assert score == pytest.approx(reference.score(X.astype(where.widest), y), abs=tolerance)
    assert model.t_ == reference.t_


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_partial_fit_and_warm_start_go_on_where_x_is(backend, kind):
    where, y = backend_of_name(backend), (_SUM > 0).astype(int)
    here = where.asarray(X, where.widest)
    first = {"classes": where.asarray([0, 1])} if kind is MLPClassifier else {}
    model, reference = _made(kind), _made(kind)
    for options in (first, {}):
        model.partial_fit(here, y, **options)
        reference.partial_fit(X, y, **({"classes": [0, 1]} if options else {}))
    model.set_params(warm_start=True).fit(here, y)
    reference.set_params(warm_start=True).fit(X, y)
    np.testing.assert_allclose(where.to_numpy(model.coefs_[0]), reference.coefs_[0], rtol=1e-6)
    if kind is MLPClassifier:
        with pytest.raises(ValueError, match="is not the same as on last call"):
            model.partial_fit(here, y, classes=[0, 1, 2])


def test_y_and_weights_may_be_of_another_library(backend):
    where, y = backend_of_name(backend), (_SUM > 0).astype(int)
    model = _made(MLPClassifier).fit(X, where.asarray(y), where.asarray(np.ones(60), where.widest))
    assert isinstance(model.predict(X), np.ndarray)
    model = _made(MLPRegressor).fit(where.asarray(X, where.widest), _SUM.tolist(), np.ones(60))
    _assert_at_home(model.predict(where.asarray(X, where.widest)), where)


def test_whole_numbers_become_the_widest_floats(place):
    where = backend_of_name(place)
    model = _made(MLPRegressor).fit(where.asarray(np.arange(120).reshape(60, 2), "int32"), _SUM)
    assert str(model.coefs_[0].dtype).endswith(where.widest)
    assert str(model.predict(where.asarray(np.ones((2, 2)), "int32")).dtype).endswith(where.widest)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "score"])
def test_another_library_than_that_of_fit_is_refused_with_the_remedy(backend, method):
    where = backend_of_name(backend)
    other = "array_api_strict" if backend == "numpy" else "numpy"
    pytest.importorskip(other)
    y = (_SUM > 0).astype(int)
    model = _made(MLPClassifier).fit(where.asarray(X, where.widest), y)
    there = backend_of_name(other).asarray(X)
    arguments = (there, y) if method == "score" else (there,)
    with pytest.raises(ValueError, match=rf"MLPClassifier.{method}\(\) must use the same namespace.*\.to\('{other}'\)"):
        getattr(model, method)(*arguments)
    assert model.to(other) is model
    _assert_at_home(model.predict(there), backend_of_name(other))
    model.partial_fit(there, y)  # and the solver's state came along


def test_bad_input_is_refused_in_words(place):
    where = backend_of_name(place)

    def here(x):
        return where.asarray(x, where.widest)

    model = _made(MLPClassifier)
    y = (_SUM > 0).astype(int)
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(here(bad), y)
    bad[3, 1] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        model.fit(here(bad), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(here(X[:50]), y)
    with pytest.raises(ValueError, match=r"`?X`? must be 2-D|Expected 2D array"):
        model.fit(here(X[:, 0]), y)
    with pytest.raises(ValueError, match="sample_weight.shape"):
        model.fit(here(X), y, here(np.ones(3)))
    with pytest.raises(ValueError, match="not negative"):
        model.fit(here(X), y, here(-np.ones(60)))
    with pytest.raises(ValueError, match="at least one row|minimum of 1 is required"):
        model.fit(here(X[:0]), y[:0])
    model.fit(here(X), y)
    with pytest.raises(ValueError, match="X has 3 features, but MLPClassifier is expecting 4 features"):
        model.predict(here(X[:, :3]))
    with pytest.raises(ValueError, match="y contains NaN|Input y contains NaN"):
        _made(MLPRegressor).fit(here(X), here(bad[:, 0] * np.nan))


def test_a_pickled_model_comes_back_where_it_was(place):
    where = backend_of_name(place)
    here = where.asarray(X, where.widest)
    model = _made(MLPClassifier).fit(here, (_SUM > 0).astype(int))
    text = pickle.dumps(model)
    if where.library.name != "numpy":
        assert where.library.package.encode() not in text.replace(where.name.encode(), b"")
    again = pickle.loads(text)
    _assert_at_home(again.coefs_[0], where)
    np.testing.assert_array_equal(where.to_numpy(again.predict_proba(here)), where.to_numpy(model.predict_proba(here)))
    again.partial_fit(here, (_SUM > 0).astype(int))
    _assert_at_home(model.coefs_[0], where)  # pickling has left the model where it was
    assert not hasattr(clone(model), "coefs_")


def test_a_pickled_model_opens_where_its_library_is_absent(monkeypatch):
    strict = pytest.importorskip("array_api_strict")
    text = pickle.dumps(_made(MLPClassifier).fit(strict.asarray(X), (_SUM > 0).astype(int)))

    def absent(name):
        raise BackendError(f"backend {name!r} is not usable")

    monkeypatch.setattr(fitted, "backend_of_name", absent)
    model = pickle.loads(text)
    assert set(model.predict(X)) <= {0, 1}
    assert isinstance(model.coefs_[0], np.ndarray)
    assert isinstance(model.classes_, np.ndarray)
