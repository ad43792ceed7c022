"""MLPClassifier and MLPRegressor: scikit-learn's own numbers, its rules, and what is ours beside them."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network as theirs
from scipy import sparse

import bpaccel as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((90, 5))
WEIGHT = np.random.RandomState(1).uniform(0.2, 3.0, 90)
_CLASSES = np.array(["a", "b", "c"], object)
_SUM = X @ np.arange(1.0, 6.0) / 5 + np.sin(X[:, 0]) + np.random.RandomState(2).standard_normal(90)
TARGETS = {
    "binary": ("MLPClassifier", np.where(_SUM > 0, "yes", "no"), {}),
    "multiclass": ("MLPClassifier", _CLASSES[np.digitize(_SUM, [-0.5, 0.5])], {}),
    "multilabel": ("MLPClassifier", (X[:, :3] + _SUM[:, None] > 0).astype(int), {}),
    "regression": ("MLPRegressor", _SUM, {}),
    "multioutput": ("MLPRegressor", np.stack([_SUM, X[:, 1] ** 2], axis=1), {}),
    "poisson": (
        "MLPRegressor",
        np.floor(np.exp(np.clip(_SUM, -3, 2))),
        {"loss": "poisson", "learning_rate_init": 0.003},
    ),
}
SOLVERS = {
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.02},
    "momentum": {"solver": "sgd", "learning_rate_init": 0.02, "nesterovs_momentum": False, "shuffle": False},
    "plain": {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0, "learning_rate": "invscaling"},
    "adaptive": {"solver": "sgd", "learning_rate_init": 0.02, "learning_rate": "adaptive", "n_iter_no_change": 1,
                 "tol": 0.05},
    "adam": {"solver": "adam", "learning_rate_init": 0.01, "alpha": 0.1},
    "adam, full batch": {"solver": "adam", "learning_rate_init": 0.01, "batch_size": 90},
    "stopped": {"solver": "adam", "learning_rate_init": 0.01, "early_stopping": True, "n_iter_no_change": 3},
    "stopped, in order": {"solver": "sgd", "learning_rate_init": 0.02, "early_stopping": True, "shuffle": False,
                          "validation_fraction": 0.3},
    "lbfgs": {"solver": "lbfgs", "max_iter": 30},
}  # fmt: skip


def _both(name, **options):
    return getattr(ours, name)(**options), getattr(theirs, name)(**options)


def _assert_same(a, b, rtol=1e-6):
    """Everything that is fitted, and what is predicted."""
    for name in ("coefs_", "intercepts_"):
        for p, q in zip(getattr(a, name), getattr(b, name), strict=True):
            np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol)
    for name, value in vars(b).items():
        if name.endswith("_") and not name.startswith("_") and name not in ("coefs_", "intercepts_"):
            got = getattr(a, name)
            if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
                np.testing.assert_array_equal(got, value)
            elif isinstance(value, str) or value is None:
                assert got == value, name
            else:
                np.testing.assert_allclose(got, value, rtol=rtol, atol=rtol, err_msg=name)
    if hasattr(b, "_optimizer"):
        np.testing.assert_allclose(a._optimizer.learning_rate, b._optimizer.learning_rate, rtol=1e-12)
        assert a._no_improvement_count == b._no_improvement_count
    for method in ("predict", "predict_proba"):
        if hasattr(b, method):
            got, wanted = getattr(a, method)(X), getattr(b, method)(X)
            assert got.dtype == wanted.dtype
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol)
            else:
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_numbers(target, solver, activation):
    _fit_and_compare(target, solver, activation, X, None)


ROWS = {"dense": X, "csr": sparse.csr_array(X), "csc": sparse.csc_matrix(X)}


@pytest.mark.parametrize(("rows", "weight"), [("dense", WEIGHT), ("csr", None), ("csr", WEIGHT), ("csc", WEIGHT)],
                         ids=["weights", "csr", "csr, weights", "csc, weights"])  # fmt: skip
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", ["nesterov", "stopped", "lbfgs"])
def test_the_same_numbers_of_sparse_rows_and_with_weights(target, solver, activation, rows, weight):
    _fit_and_compare(target, solver, activation, ROWS[rows], weight)


def _fit_and_compare(target, solver, activation, rows, weight):
    name, y, options = TARGETS[target]
    options = {"hidden_layer_sizes": (6, 4), "max_iter": 12, "batch_size": 16, "random_state": 3,
               "activation": activation, **SOLVERS[solver], **options}  # fmt: skip
    a, b = _both(name, **options)
    if (solver, activation) == ("lbfgs", "relu"):
        # Where its line search is at a kink, differences of losses are rounding: `array` rounds as scikit-learn does.
        a.set_params(engine="array")
    a, b = (model.fit(rows, y, sample_weight=weight) for model in (a, b))
    _assert_same(a, b)
    assert a.score(rows, y, sample_weight=weight) == pytest.approx(b.score(rows, y, sample_weight=weight), abs=1e-6)


def test_importing_us_does_not_import_scikit_learn():
    code = "import sys, bpaccel; assert 'MLPClassifier' in dir(bpaccel); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bpaccel.estimators")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(ours, "estimators", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'bpaccel\[sklearn\]'"):
        _ = ours.MLPClassifier
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = ours.nothing_of_that_name


@pytest.mark.parametrize("target", ["binary", "multiclass", "multilabel", "multioutput"])
@pytest.mark.parametrize("solver", ["plain", "nesterov", "adam"])
def test_the_same_numbers_of_partial_fit(target, solver):
    """In pieces of different sizes, and then a warm fit."""
    name, y, _ = TARGETS[target]
    models = _both(name, hidden_layer_sizes=(6,), random_state=1, max_iter=4, batch_size=16, **SOLVERS[solver])
    for model in models:
        for piece in (slice(0, 40), slice(40, 57), slice(57, 90)):
            classes = {"classes": np.unique(y) if y.ndim == 1 else np.arange(3)} if name == "MLPClassifier" else {}
            model.partial_fit(X[piece], y[piece], **classes)
        model.partial_fit(X, y, sample_weight=WEIGHT)
    _assert_same(*models)
    for model in models:
        model.set_params(warm_start=True).fit(X, y)
        model.fit(X, y)
    _assert_same(*models)


def test_the_same_numbers_when_early_stopping_is_warm():
    models = _both("MLPRegressor", hidden_layer_sizes=6, random_state=1, max_iter=5, early_stopping=True,
                   warm_start=True, learning_rate_init=0.01)  # fmt: skip
    for model in models:
        for _ in range(3):
            model.fit(X, _SUM)
    _assert_same(*models)


def test_the_same_numbers_of_a_generator_that_others_use_too():
    """A full batch needs no order of its rows, but draws it, as scikit-learn does, where the caller can see that."""
    states = np.random.RandomState(7), np.random.RandomState(7)
    for state, kind in zip(states, (ours, theirs)):
        kind.MLPRegressor(random_state=state, max_iter=3, hidden_layer_sizes=4).fit(X, _SUM)
    assert states[0].randint(2**31) == states[1].randint(2**31)


@pytest.mark.parametrize("engine", ["array", "blocked", "fused"])
@pytest.mark.parametrize("solver", ["nesterov", "stopped", "lbfgs"])
def test_the_same_numbers_of_every_engine(engine, solver, request):
    if engine == "fused":
        request.getfixturevalue("fused")
    options = {**SOLVERS[solver], "hidden_layer_sizes": (6,), "random_state": 1, "max_iter": 10}
    a, b = _both("MLPClassifier", **options)
    y = TARGETS["multiclass"][1]
    _assert_same(a.set_params(engine=engine).fit(X, y), b.fit(X, y))
    assert a.history_.engine == engine


def test_float32_stays_and_is_near():
    a, b = _both("MLPClassifier", hidden_layer_sizes=(6,), random_state=1, max_iter=10)
    y = TARGETS["multiclass"][1]
    a.fit(X.astype(np.float32), y)
    b.fit(X.astype(np.float32), y)
    assert a.coefs_[0].dtype == a.intercepts_[1].dtype == a.predict_proba(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-4)


@pytest.mark.parametrize("options", [
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.3, "n_iter_no_change": 1, "learning_rate_init": 1e-5},
    {"solver": "sgd", "tol": 0.3, "n_iter_no_change": 2},
    {"solver": "adam", "early_stopping": True, "n_iter_no_change": 2, "max_iter": 6},
])  # fmt: skip
def test_the_same_is_printed(capsys, options):
    printed = []
    for model in _both("MLPClassifier", hidden_layer_sizes=4, random_state=1, verbose=True, **options):
        model.fit(X, TARGETS["binary"][1])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [
    {"max_iter": 2}, {"batch_size": 1000, "max_iter": 2}, {"solver": "lbfgs", "max_iter": 3},
    {"solver": "lbfgs", "max_fun": 3}, {"solver": "sgd", "max_iter": 2, "early_stopping": True},
])  # fmt: skip
def test_the_same_warnings(options):
    seen = []
    for model in _both("MLPClassifier", hidden_layer_sizes=4, random_state=1, **options):
        with pytest.warns() as caught:
            model.fit(X, TARGETS["binary"][1])
        seen.append([(w.category, str(w.message)) for w in caught])
        if isinstance(model, ours.MLPClassifier):
            assert {w.filename for w in caught if "lbfgs" not in str(w.message)} <= {__file__}
    assert seen[0] == seen[1] != []


BAD = {
    "nan": ({}, np.where(X > 2, np.nan, X), TARGETS["binary"][1]),
    "text": ({}, X.astype(str).astype(object) + "a", TARGETS["binary"][1]),
    "complex": ({}, X + 1j, TARGETS["binary"][1]),
    "one dimension": ({}, X[:, 0], TARGETS["binary"][1]),
    "no rows": ({}, X[:0], TARGETS["binary"][1][:0]),
    "no columns": ({}, X[:, :0], TARGETS["binary"][1]),
    "lengths": ({}, X[:50], TARGETS["binary"][1]),
    "numbers as classes": ({}, X, _SUM),
    "no target": ({}, X, None),
    "hidden": ({"hidden_layer_sizes": (3, 0)}, X, TARGETS["binary"][1]),
    "too few to validate": ({"early_stopping": True, "validation_fraction": 0.01}, X, TARGETS["binary"][1]),
    "class too rare": ({"early_stopping": True}, X, np.eye(90, dtype=int)[0]),
    "bad option": ({"learning_rate_init": -1}, X, TARGETS["binary"][1]),
}


@pytest.mark.parametrize("what", BAD)
def test_the_same_is_refused_in_the_same_words(what):
    options, rows, y = BAD[what]
    said = []
    for model in _both("MLPClassifier", **options):
        with pytest.raises((ValueError, TypeError)) as error:
            model.fit(rows, y)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_partial_fit_is_refused_as_there():
    y = TARGETS["binary"][1]
    for model in _both("MLPClassifier"):
        with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
            model.partial_fit(X, y)
        model.partial_fit(X, y, classes=["no", "yes"])
        with pytest.raises(ValueError, match=r"`classes=\['no', 'maybe'\]` is not the same .* was: array"):
            model.partial_fit(X, y, classes=["no", "maybe"])
        with pytest.raises(ValueError, match="`y` has classes not in `self.classes_`"):
            model.partial_fit(X, np.full(90, "maybe"))
        with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
            model.set_params(early_stopping=True).partial_fit(X, y)
    for model in (*_both("MLPClassifier", solver="lbfgs"), ours.MLPRegressor(solver="lbfgs")):
        with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as error:
            _ = model.partial_fit
        assert "partial_fit is only available for stochastic" in str(error.value.__cause__)
