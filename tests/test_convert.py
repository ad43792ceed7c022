"""To scikit-learn's estimators and back: nothing is lost, and both go on to the same numbers."""

import copy

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network as theirs
from sklearn.base import clone

import bpaccel as ours
from bpaccel.solvers import Adam, GradientDescent, Momentum, Nesterov, RMSprop

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((90, 5))
SUM = X @ np.arange(1.0, 6.0) / 5 + np.sin(X[:, 0])
TARGETS = {
    "MLPClassifier": np.array(["a", "b", "c"])[np.digitize(SUM, [-0.5, 0.5])],
    "MLPRegressor": np.stack([SUM, X[:, 1] ** 2], axis=1),
}
TRAININGS = {
    "adam": {},
    "adam, a generator": {"random_state": np.random.RandomState(5)},
    "plain": {"solver": "sgd", "momentum": 0.0, "learning_rate": "invscaling", "learning_rate_init": 0.05},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.02},
    "nesterov": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.02},
}


NUMBERS = ("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_", "n_iter_", "t_",
           "n_features_in_", "n_layers_", "n_outputs_")  # fmt: skip


def _options(training):
    return {"random_state": 3, "hidden_layer_sizes": (7, 4), "activation": "tanh", "max_iter": 6, "batch_size": 20,
            **copy.deepcopy(TRAININGS[training])}  # fmt: skip


def _assert_same(a, b, rtol=1e-9):
    weights = [*zip(a.coefs_, b.coefs_, strict=True), *zip(a.intercepts_, b.intercepts_, strict=True)]
    for p, q in weights:
        np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol)
    assert np.array_equal(getattr(a, "classes_", None), getattr(b, "classes_", None))
    for name in NUMBERS:
        if getattr(b, name, None) is None:
            assert getattr(a, name, None) is None
        else:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=rtol)
    assert a._optimizer.learning_rate == pytest.approx(b._optimizer.learning_rate, rel=1e-12)
    assert a._no_improvement_count == b._no_improvement_count


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("kind", TARGETS)
def test_what_either_has_learned_the_other_goes_on_with(kind, training):
    y, options = TARGETS[kind], _options(training)
    one, other = getattr(ours, kind)(**copy.deepcopy(options)).fit(X, y), getattr(theirs, kind)(**options).fit(X, y)
    for source in (one, other):
        as_ours = type(one).from_sklearn(source) if source is other else type(one).from_sklearn(source.to_sklearn())
        as_theirs = copy.deepcopy(source) if source is other else source.to_sklearn()
        assert type(as_theirs) is type(other)
        _assert_same(as_ours, as_theirs, 0.0)
        np.testing.assert_allclose(as_ours.predict(X) if kind == "MLPRegressor" else as_ours.predict_proba(X),
                                   as_theirs.predict(X) if kind == "MLPRegressor" else as_theirs.predict_proba(X),
                                   rtol=1e-12)  # fmt: skip
        before = [C.copy() for C in source.coefs_]
        for _ in range(3):
            as_ours.partial_fit(X, y)
            as_theirs.partial_fit(X, y)
        _assert_same(as_ours, as_theirs)
        # A copy: what was converted stays as it was.
        assert all(np.array_equal(a, b) for a, b in zip(before, source.coefs_))
        assert not np.array_equal(before[0], as_ours.coefs_[0])
        unbroken = copy.deepcopy(source)
        for _ in range(3):
            unbroken.partial_fit(X, y)
        np.testing.assert_allclose(unbroken.coefs_[0], as_ours.coefs_[0], rtol=1e-9, atol=1e-9)


def test_a_warm_start_with_early_stopping_goes_on():
    options = _options("adam") | {"warm_start": True, "early_stopping": True, "learning_rate_init": 0.01}
    other = theirs.MLPClassifier(**options).fit(X, TARGETS["MLPClassifier"])
    as_ours = ours.MLPClassifier.from_sklearn(other)
    as_ours.fit(X, TARGETS["MLPClassifier"])
    other.fit(X, TARGETS["MLPClassifier"])
    _assert_same(as_ours, other)
    assert len(as_ours.validation_loss_curve_) == len(as_ours.validation_scores_)


def test_parameters_alone_are_converted_too():
    one = ours.MLPClassifier(hidden_layer_sizes=(3,), alpha=0.5, activation=["sigmoid"], engine="blocked")
    other = one.to_sklearn()
    assert (other.hidden_layer_sizes, other.alpha, other.activation) == ((3,), 0.5, "logistic")
    back = ours.MLPClassifier.from_sklearn(other)
    assert back.get_params() == clone(one).set_params(activation="logistic", engine="auto").get_params()
    assert not hasattr(back, "coefs_")


@pytest.mark.parametrize("options", [
    {"activation": "softplus"}, {"activation": ["relu", "tanh"], "hidden_layer_sizes": (3, 3)}, {"solver": "adamw"},
    {"solver": RMSprop()}, {"clip": 1.0}, {"l1": 0.1}, {"dropout": 0.5}, {"class_weight": "balanced"},
    {"callbacks": [print]},
], ids=str)  # fmt: skip
def test_what_scikit_learn_cannot_say_is_named(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"scikit-learn's MLPClassifier has no word for {name}=.*Use set_params"):
        ours.MLPClassifier(**options).to_sklearn()
    with pytest.raises(ValueError, match="has no word for loss='huber:0.5'"):
        ours.MLPRegressor(loss="huber:0.5").to_sklearn()


@pytest.mark.parametrize(("solver", "words"), [
    (Adam(beta_1=0.5, epsilon=1e-6), {"solver": "adam", "beta_1": 0.5, "epsilon": 1e-6}),
    (GradientDescent(), {"solver": "sgd", "momentum": 0.0}),
    (Momentum(0.7), {"solver": "sgd", "momentum": 0.7, "nesterovs_momentum": False}),
    (Nesterov(0.7), {"solver": "sgd", "momentum": 0.7, "nesterovs_momentum": True}),
])  # fmt: skip
def test_a_solver_that_scikit_learn_has_is_put_in_its_words(solver, words):
    y = TARGETS["MLPRegressor"]
    options = {"random_state": 3, "hidden_layer_sizes": (7,), "max_iter": 4, "learning_rate_init": 0.02}
    one = ours.MLPRegressor(solver=solver, learning_rate="adaptive", callbacks=[], **options).fit(X, y)
    other = one.to_sklearn()
    assert {name: getattr(other, name) for name in words} == words
    _assert_same(ours.MLPRegressor.from_sklearn(other.fit(X, y)), one)  # no solver of one's own has a schedule


@pytest.mark.parametrize("training", TRAININGS)
def test_the_optimizer_is_converted_as_it_is_and_not_as_the_parameters_are_now(training):
    """Those may have been set since; `partial_fit` goes on with the optimizer, in both libraries."""
    y, options = TARGETS["MLPRegressor"], _options(training)
    later = {"solver": "sgd" if training.startswith("adam") else "adam", "beta_1": 0.3, "beta_2": 0.9, "momentum": 0.2,
             "learning_rate_init": 0.7, "power_t": 0.1, "learning_rate": "constant", "epsilon": 0.1}  # fmt: skip
    one = ours.MLPRegressor(**copy.deepcopy(options)).fit(X, y).set_params(**later)
    other = theirs.MLPRegressor(**copy.deepcopy(options)).fit(X, y).set_params(**later)
    models = [one, other, one.to_sklearn(), ours.MLPRegressor.from_sklearn(other)]
    for model in models:
        for _ in range(2):
            model.partial_fit(X, y)
    for model in models[1:]:
        _assert_same(one, model)


def test_the_rate_that_a_callback_has_set_is_converted():
    def slower(progress):
        progress.rate = 1e-4

    y = TARGETS["MLPRegressor"]
    one = ours.MLPRegressor(**_options("adam"), callbacks=[slower]).fit(X, y)
    _assert_same(one.set_params(callbacks=()).partial_fit(X, y), one.to_sklearn())
    _assert_same(one.partial_fit(X, y), ours.MLPRegressor.from_sklearn(one.to_sklearn()))


def test_a_solver_of_an_earlier_training_that_scikit_learn_does_not_have_is_named():
    model = ours.MLPRegressor(solver="adamw", max_iter=2).fit(X, SUM).set_params(solver="adam")
    with pytest.raises(ValueError, match=r"no word for the solver of the last training, adamw\("):
        model.to_sklearn()


def test_another_class_is_refused():
    with pytest.raises(ValueError, match="`model` must be scikit-learn's MLPClassifier; got MLPRegressor"):
        ours.MLPClassifier.from_sklearn(theirs.MLPRegressor())


def test_a_model_of_another_library_becomes_numpys(backend):
    where = ours.backend(backend)
    model = ours.MLPRegressor(random_state=1, max_iter=3).fit(where.asarray(X, where.widest), X[:, 0])
    other = model.to_sklearn()
    want = where.to_numpy(model.predict(where.asarray(X, where.widest)))
    np.testing.assert_allclose(other.predict(X), want, rtol=1e-9)
    assert all(type(a) is np.ndarray for a in [*other.coefs_, *other._optimizer.ms])


def test_dropout_of_an_estimator():
    y = TARGETS["MLPClassifier"]
    options = {"random_state": 3, "max_iter": 5, "dropout": 0.4}
    a, b = (ours.MLPClassifier(**options).fit(X, y) for _ in range(2))
    plain = ours.MLPClassifier(**options | {"dropout": 0.0}).fit(X, y)
    np.testing.assert_array_equal(a.coefs_[0], b.coefs_[0])
    assert not np.allclose(a.coefs_[0], plain.coefs_[0])
    np.testing.assert_array_equal(a.predict_proba(X), a.predict_proba(X))
    with pytest.raises(ValueError, match="`dropout` does not go with solver='lbfgs'"):
        ours.MLPClassifier(solver="lbfgs", dropout=0.4).fit(X, y)
