"""What the estimators keep: across a second fit, a refused one, Ctrl-C, another library, and under whose names."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network as theirs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import bpaccel as ours
from bpaccel import MLPClassifier, MLPRegressor
from bpaccel.activations import ACTIVATIONS
from bpaccel.backends import backend as backend_of_name
from bpaccel.estimators import door

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((60, 4))
SUM = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(60)
LABELS = np.where(SUM > 1, "high", "low")
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 6, "random_state": 0}


def _same_weights(a, b, rtol=0.0):
    for p, q in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol)


class Named(MLPRegressor):
    """A subclass that fixes what it does not name."""

    def __init__(self, extra=1, alpha=0.1):
        super().__init__(alpha=alpha, hidden_layer_sizes=(5,), max_iter=6, random_state=0)
        self.extra = extra


def test_a_subclass_may_have_parameters_of_its_own():
    model = Named(extra=2)
    assert model.get_params() == {"extra": 2, "alpha": 0.1}
    plain = MLPRegressor(alpha=0.1, **SMALL).fit(X, SUM)
    _same_weights(clone(model).fit(X, SUM), plain)
    other = model.fit(X, SUM).to_sklearn()
    assert (other.alpha, other.random_state, other.max_iter) == (0.1, 0, 6)
    _same_weights(
        Named.from_sklearn(other.set_params(tol=0.0, alpha=0.2)).fit(X, SUM),
        plain.set_params(alpha=0.2, tol=0).fit(X, SUM),
    )


@pytest.mark.parametrize("rows", [60, 41])
def test_the_global_generator_is_used_as_there(rows):
    """Also by full batches, in which nobody sees the order of the rows: the next model draws from it."""
    weights = []
    for kind in (ours, theirs):
        np.random.seed(0)
        models = [kind.MLPRegressor(hidden_layer_sizes=4, max_iter=3).fit(X[:rows], SUM[:rows]) for _ in range(2)]
        weights.append(models[1].coefs_[0])
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-9)


@pytest.mark.parametrize("activation", ["logistic", "tanh"])
def test_no_hidden_layer(activation):
    options = {"hidden_layer_sizes": (), "activation": activation, "random_state": 0, "max_iter": 5}
    a, b = (kind.MLPClassifier(**options).fit(X, LABELS) for kind in (ours, theirs))
    _same_weights(a, b, 1e-9)


def test_the_same_activation_draws_the_same_weights_however_it_is_named():
    forms = ["logistic", "sigmoid", ["sigmoid"], ACTIVATIONS["sigmoid"], [ACTIVATIONS["sigmoid"]]]
    models = [MLPRegressor(activation=form, **SMALL).initialize(X, SUM) for form in forms]
    for model in models[1:]:
        _same_weights(models[0], model)


def test_a_warm_fit_on_another_library_brings_everything_there(backend):
    where, y = backend_of_name(backend), (SUM > 1).astype(int)
    options = {**SMALL, "early_stopping": True, "warm_start": True, "validation_fraction": 0.5, "batch_size": 10}
    model = MLPClassifier(**options, learning_rate_init=0.05).fit(where.asarray(X, where.widest), y)
    best = [where.to_numpy(W) for W in model._best_weights]
    model.set_params(learning_rate_init=1e-12, max_iter=2).fit(X, y)  # no better score can come
    for array in [*model.coefs_, *model._best_weights, *model._optimizer.state[0], model.classes_]:
        assert isinstance(array, np.ndarray)
    for got, wanted in zip(model._best_weights, best, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert isinstance(model.predict(X), np.ndarray)


@pytest.mark.parametrize("second", ["fit", "partial_fit"])
def test_the_dtype_is_that_of_the_first_fit(second):
    model = MLPRegressor(**SMALL, warm_start=True)
    model.fit(X, SUM)
    getattr(model, second)(X.astype(np.float32), SUM)
    assert {a.dtype.name for a in model.coefs_ + model.intercepts_} == {"float64"}
    model = MLPRegressor(**SMALL, warm_start=True).fit(X.astype(np.float32), SUM)
    getattr(model, second)(X, SUM)
    assert {a.dtype.name for a in model.coefs_ + model.intercepts_} == {"float32"}


def test_ctrl_c_ends_lbfgs_as_there():
    """scikit-learn lets it through; what was found by then is kept."""

    def interrupt(progress):
        if len(progress.history) == 3:
            raise KeyboardInterrupt

    model = MLPRegressor(solver="lbfgs", callbacks=[interrupt], **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, SUM)
    _same_weights(model, MLPRegressor(solver="lbfgs", **SMALL | {"max_iter": 2}).fit(X, SUM))


def test_ctrl_c_in_the_first_look_of_lbfgs():
    def interrupted(y, output):
        raise KeyboardInterrupt

    model = MLPRegressor(loss=(interrupted, lambda y, l: l - y), solver="lbfgs", engine="array", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, SUM)
    assert not hasattr(model, "coefs_")  # no step was taken
    fitted = MLPRegressor(**SMALL).fit(X, SUM)
    before = fitted.predict(X)
    fitted.set_params(loss=(interrupted, lambda y, l: l - y), solver="lbfgs", engine="array")
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, SUM)
    np.testing.assert_array_equal(fitted.predict(X), before)


POISSON = {"loss": "poisson", **SMALL}


@pytest.mark.parametrize(("options", "y", "weight", "method"), [
    (POISSON, -np.abs(SUM), None, "fit"),
    (SMALL, SUM, -np.ones(60), "fit"),
    ({**SMALL, "early_stopping": True, "validation_fraction": 0.01}, SUM, None, "fit"),
    ({**SMALL, "clip": 1.0, "solver": "lbfgs"}, SUM, None, "fit"),
    ({**SMALL, "engine": "nothing"}, SUM, None, "fit"),
    ({**SMALL, "early_stopping": True}, SUM, None, "partial_fit"),
], ids=["targets", "weights", "split", "solver", "engine", "partial_fit"])  # fmt: skip
def test_a_fit_that_is_refused_leaves_nothing(options, y, weight, method):
    model = MLPRegressor(**options)
    before = set(vars(model))
    with pytest.raises(ValueError):
        getattr(model, method)(X, y, sample_weight=weight)
    assert set(vars(model)) == before
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_a_second_fit_that_is_refused_leaves_the_first():
    model = MLPRegressor(**POISSON).fit(X, np.abs(SUM))
    before = {name: value for name, value in vars(model).items() if name.endswith("_")}
    with pytest.raises(ValueError, match="at least 0"):
        model.fit(X[:, :3], np.stack([SUM, SUM], axis=1))
    assert model.n_outputs_ == 1
    assert {name: value for name, value in vars(model).items() if name.endswith("_")} == before
    model.predict(X)
    classifier = MLPClassifier(**SMALL)
    with pytest.raises(ValueError, match="has classes not in"):
        classifier.partial_fit(X, LABELS, classes=["high"])
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        classifier.partial_fit(X, LABELS)


def test_what_is_refused_on_another_library_leaves_nothing(backend):
    where = backend_of_name(backend)
    bad = X.copy()
    bad[3, 1] = np.nan
    model = MLPRegressor(**SMALL)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(where.asarray(bad, where.widest), SUM)
    assert not hasattr(model, "n_features_in_")


def test_classes_that_a_library_has_no_dtype_for_stay_on_the_host(place):
    where = backend_of_name(place)
    here = where.asarray(X, where.widest)
    for classes in ([2**40, 2**40 + 1, 2**40 + 2], [2.0**24, 2.0**24 + 1, 2.0**24 + 2], [2**63, 2**63 + 1]):
        labels = np.array(classes)[np.digitize(SUM, [0, 1][: len(classes) - 1])]
        model = MLPClassifier(**SMALL, engine="array").fit(here, labels)
        np.testing.assert_array_equal(door.on_host(model.classes_), classes)
        if place != "array_api_strict:no_x64" or len(classes) == 2:
            assert set(door.on_host(model.predict(here)).tolist()) <= set(classes)
            assert 0 < model.score(here, labels) <= 1


def test_the_hidden_layers_of_a_warm_fit_are_those_of_the_first():
    models = [kind.MLPRegressor(**SMALL, warm_start=True).fit(X, SUM) for kind in (ours, theirs)]
    for model in models:
        model.set_params(hidden_layer_sizes=(7,)).fit(X, SUM)
        model.partial_fit(X, SUM)
    _same_weights(*models, 1e-9)
    with pytest.raises(ValueError, match=r"`y` must have 1 column\(s\), as the `y` that was fitted; got 2"):
        models[0].fit(X, np.stack([SUM, SUM], axis=1))


def test_weights_of_wrong_shapes_are_named():
    model = MLPRegressor(**SMALL).fit(X, SUM)
    model.intercepts_ = model.intercepts_[:1]
    with pytest.raises(ValueError, match=r"`coefs_` must be .* from 4 features to 1 output.*got shapes"):
        model.predict(X)
    model.initialize(X, SUM).coefs_[0] = np.ones((5, 5))
    with pytest.raises(ValueError, match=r"Set both lists, or call fit or initialize again"):
        model.partial_fit(X, SUM)


def test_weights_of_other_shapes_may_be_set():
    model = MLPRegressor(**SMALL).fit(X, SUM)
    model.coefs_, model.intercepts_ = [np.ones((4, 7)), np.ones((7, 1))], [np.ones(7), np.ones(1)]
    assert model.predict(X).shape == (60,)
    with pytest.raises(ValueError, match=r"`coefs_` were set to other shapes.*\(5, 5\).*\(5, 7\).*warm_start=True"):
        model.partial_fit(X, SUM)
    assert model.set_params(warm_start=True).fit(X, SUM).partial_fit(X, SUM).coefs_[0].shape == (4, 7)


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}])
def test_a_warm_fit_after_lbfgs(options):
    model = MLPRegressor(solver="lbfgs", warm_start=True, **SMALL).fit(X, SUM)
    model.set_params(solver="adam", **options).fit(X, SUM)
    assert len(model.loss_curve_) == model.n_iter_ == 6


@pytest.mark.parametrize("options", [{"solver": "sgd"}, {"solver": "adam"}, {"solver": "sgd", "momentum": 0.0}])
def test_the_optimizer_has_scikit_learns_names(options):
    models = [kind.MLPRegressor(**SMALL, **options).fit(X, SUM) for kind in (ours, theirs)]
    mine, others = (model._optimizer for model in models)
    for name in set(vars(others)) - {"velocities", "ms", "vs"}:
        assert getattr(mine, name) == pytest.approx(getattr(others, name)), name
    for name in {"velocities", "ms", "vs"} & set(vars(others)):
        if options.get("momentum") != 0.0:  # then there are none to be kept
            for got, wanted in zip(getattr(mine, name), getattr(others, name), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12)
    for name in ("velocities", "ms", "beta_1"):
        assert hasattr(mine, name) == (hasattr(others, name) and options.get("momentum") != 0.0)
    for rate in (0.2, 0.05):
        for model in models:
            model._optimizer.learning_rate = rate  # of adam, which makes its own, it has no effect
            model.partial_fit(X, SUM)
        _same_weights(*models, 1e-9)
    for model in models:
        model._optimizer.learning_rate_init = 0.1
        model.partial_fit(X, SUM)
    _same_weights(*models, 1e-9)


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}])
def test_the_inner_names_are_scikit_learns(options):
    mine, others = (kind.MLPRegressor(**SMALL, **options).fit(X, SUM) for kind in (ours, theirs))
    missing = [name for name in vars(others) if not hasattr(mine, name)]
    assert missing == []
    for name in ("_best_coefs", "_best_intercepts"):
        for got, wanted in zip(getattr(mine, name), getattr(others, name), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-9)
    for name in ("_coef_indptr", "_intercept_indptr"):
        assert getattr(mine, name, None) == getattr(others, name, None)


def test_validation_rows_that_come_later_or_go():
    """The curves have an entry for each epoch: nan where there were no rows to validate on."""
    model = MLPRegressor(**SMALL, warm_start=True).fit(X, SUM)
    model.fit(X, SUM, X_val=X, y_val=SUM)
    model.fit(X, SUM)
    for curve in (model.validation_scores_, model.validation_loss_curve_):
        assert len(curve) == len(model.loss_curve_) == 18
        np.testing.assert_array_equal(np.isnan(curve), [True] * 6 + [False] * 6 + [True] * 6)
    stopped = MLPRegressor(**SMALL, early_stopping=True).fit(X, SUM)
    stopped.set_params(early_stopping=False, warm_start=True).fit(X, SUM)
    assert len(stopped.validation_scores_) == 12
    assert np.isfinite(stopped.best_loss_)
