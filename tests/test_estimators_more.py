"""What the estimators have beyond scikit-learn's, and how they fit into its pipelines, searches and threads."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bpaccel import MLPClassifier, MLPRegressor, Network, one_hot
from bpaccel.backends import backend as backend_of_name
from bpaccel.solvers import Adam, GradientDescent

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((80, 4))
NOISE = np.random.RandomState(1).standard_normal(80)
SUM = X.sum(axis=1) + 0.5 * NOISE
LABELS = np.where(SUM > 1, "high", "low")
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 8, "random_state": 0}


def _same_weights(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True))


def test_class_weights_are_sample_weights():
    weight = {"high": 3.0, "low": 0.5}
    given = MLPClassifier(**SMALL).fit(X, LABELS, [weight[label] for label in LABELS])
    assert _same_weights(MLPClassifier(**SMALL, class_weight=weight).fit(X, LABELS), given)
    assert not _same_weights(MLPClassifier(**SMALL).fit(X, LABELS), given)
    balanced = MLPClassifier(**SMALL, class_weight="balanced").fit(X, LABELS)
    share = {label: 80 / (2 * np.sum(label == LABELS)) for label in weight}
    assert _same_weights(balanced, MLPClassifier(**SMALL, class_weight=share).fit(X, LABELS))
    twice = MLPClassifier(**SMALL, class_weight=weight).fit(X, LABELS, np.arange(80.0))
    both = [weight[label] * k for k, label in enumerate(LABELS)]
    assert _same_weights(twice, MLPClassifier(**SMALL).fit(X, LABELS, both))
    with pytest.raises(ValueError, match="'balanced' does not go with partial_fit"):
        balanced.partial_fit(X, LABELS)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_validation_data_of_ones_own(kind):
    y = LABELS if kind is MLPClassifier else SUM
    plain = kind(**SMALL).fit(X[:60], y[:60])
    watched = kind(**SMALL).fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert _same_weights(plain, watched)  # they are looked at, nothing else
    assert len(watched.validation_scores_) == len(watched.validation_loss_curve_) == 8
    assert watched.validation_scores_[-1] == pytest.approx(watched.score(X[60:], y[60:]))
    assert watched.best_validation_score_ == max(watched.validation_scores_)
    if kind is MLPRegressor:
        loss = np.mean(0.5 * (watched.predict(X[60:]) - SUM[60:]) ** 2)
        assert watched.validation_loss_curve_[-1] == pytest.approx(loss)
    assert plain.validation_scores_ is None
    options = {**SMALL, "max_iter": 200, "early_stopping": True, "n_iter_no_change": 4, "learning_rate_init": 0.05}
    stopped = kind(**options).fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert stopped.n_iter_ < 200
    assert stopped.t_ == 60 * stopped.n_iter_  # all rows are trained on
    assert stopped.score(X[60:], y[60:]) == pytest.approx(stopped.best_validation_score_)


def test_validation_data_that_cannot_be_used():
    model = MLPClassifier(**SMALL)
    with pytest.raises(ValueError, match="`X_val` and `y_val` go together"):
        model.fit(X, LABELS, X_val=X)
    with pytest.raises(ValueError, match="`sample_weight_val` goes with"):
        model.fit(X, LABELS, sample_weight_val=np.ones(80))
    with pytest.raises(ValueError, match="has classes not in"):
        model.fit(X, LABELS, X_val=X, y_val=np.full(80, "medium"))
    with pytest.raises(ValueError, match="3 features"):
        model.fit(X, LABELS, X_val=X[:, :3], y_val=LABELS)
    with pytest.raises(ValueError, match=r"`y_val` must be of the kind of the `y` that was fitted, binary; got multil"):
        model.fit(X, LABELS, X_val=X, y_val=np.ones((80, 2), int))
    with pytest.raises(ValueError, match=r"`y_val` must be of the kind of the `y` that was fitted, binary; got contin"):
        model.fit(X, LABELS, X_val=X, y_val=SUM)
    several = (X[:, :2] > 0).astype(int)
    with pytest.raises(ValueError, match=r"fitted, multilabel-indicator; got binary"):
        model.fit(X, several, X_val=X, y_val=several[:, 0])
    with pytest.raises(ValueError, match=r"`y_val` must have 2 column\(s\).*got 3"):
        model.fit(X, several, X_val=X, y_val=(X[:, :3] > 0).astype(int))
    with pytest.raises(ValueError, match=r"`y_val` must have 1 column\(s\).*got 2"):
        MLPRegressor(**SMALL).fit(X, SUM, X_val=X, y_val=X[:, :2])
    with pytest.raises(ValueError, match="`y_val` must be at least 0 for loss='poisson'"):
        MLPRegressor("poisson", **SMALL).fit(X, np.abs(SUM), X_val=X, y_val=SUM)
    with pytest.raises(ValueError, match="`X_val` must have at least 2 rows for early_stopping=True"):
        MLPRegressor(**SMALL, early_stopping=True).fit(X, SUM, X_val=X[:1], y_val=SUM[:1])
    with pytest.raises(ValueError, match="knows no epochs"):
        model.set_params(solver="lbfgs").fit(X, LABELS, X_val=X, y_val=LABELS)


def test_losses():
    options = {**SMALL, "max_iter": 400, "learning_rate_init": 0.02, "tol": 0, "batch_size": 80}
    high, low = (MLPRegressor(f"quantile:{q}", **options).fit(X, SUM) for q in (0.9, 0.1))
    assert np.mean(high.predict(X) > SUM) > 0.75
    assert np.mean(low.predict(X) > SUM) < 0.25
    spoilt = np.where(np.arange(80) % 10 == 0, 100.0, SUM)
    good = np.arange(80) % 10 != 0
    for loss in ("absolute_error", "huber:0.5"):
        robust = MLPRegressor(loss, **options).fit(X, spoilt)
        square = MLPRegressor(**options).fit(X, spoilt)
        assert np.mean(np.abs(robust.predict(X) - SUM)[good]) < np.mean(np.abs(square.predict(X) - SUM)[good]) / 2
    own = (lambda y, l: 0.5 * (l - y) ** 2, lambda y, l: l - y)
    plain = MLPRegressor(engine="array", **SMALL)  # as a loss of one's own is computed
    assert _same_weights(MLPRegressor(own, **SMALL).fit(X, SUM), plain.fit(X, SUM))
    with pytest.raises(ValueError, match="`loss` must be one of"):
        MLPRegressor("cubic").fit(X, SUM)
    with pytest.raises(ValueError, match="`y` must be at least 0 for loss='poisson'"):
        MLPRegressor("poisson").fit(X, SUM)


def test_an_activation_for_each_layer():
    options = {**SMALL, "hidden_layer_sizes": (5, 4)}
    model = MLPRegressor(activation=["elu", "softplus"], **options).fit(X, SUM)
    weights = [np.vstack(pair) for pair in zip(model.coefs_, model.intercepts_)]
    network = Network([4, 5, 4, 1], activation=["elu", "softplus", "identity"], bias=True, init=weights)
    np.testing.assert_array_equal(model.predict(X), network.predict(X)[:, 0])
    same = [MLPRegressor(activation=f, **options).fit(X, SUM) for f in ("logistic", "sigmoid", ["sigmoid", "logistic"])]
    assert _same_weights(same[0], same[1])
    assert _same_weights(same[0], same[2])
    with pytest.raises(ValueError, match="one for each of the 2 hidden layers"):
        MLPRegressor(activation=["relu"], **options).fit(X, SUM)


def test_weights_without_fit():
    model = MLPClassifier(**SMALL).initialize(X, LABELS)
    assert model.n_iter_ == model.t_ == 0
    drawn = [C.copy() for C in model.coefs_]
    assert model.predict_proba(X).shape == (80, 2)
    model.coefs_ = [np.zeros_like(C) for C in model.coefs_]
    model.intercepts_ = [np.zeros_like(b) for b in model.intercepts_]
    np.testing.assert_array_equal(model.predict_proba(X), np.full((80, 2), 0.5))
    model.partial_fit(X, LABELS)
    assert model.n_iter_ == 1
    # From the drawn weights, a warm fit is a fit: both take the same numbers of the generator but those of the draw.
    generator = np.random.RandomState(0)
    warm = MLPClassifier(**SMALL | {"warm_start": True, "random_state": generator}).initialize(X, LABELS)
    assert all(map(np.array_equal, warm.coefs_, drawn))
    assert _same_weights(warm.fit(X, LABELS), MLPClassifier(**SMALL).fit(X, LABELS))
    again = model.initialize(X, LABELS)
    assert again.n_iter_ == 0
    assert all(map(np.array_equal, again.coefs_, drawn))


def test_penalty_and_clip():
    small = {**SMALL, "max_iter": 100, "learning_rate_init": 0.01}
    sizes = [sum(np.abs(C).sum() for C in MLPRegressor(l1=l1, **small).fit(X, SUM).coefs_) for l1 in (0.0, 5.0)]
    assert sizes[1] < 0.7 * sizes[0]
    options = {**SMALL, "solver": "sgd", "momentum": 0.0, "batch_size": 80, "learning_rate_init": 0.5, "clip": 0.01}
    before = MLPRegressor(**options).initialize(X, 100 * SUM)
    after = MLPRegressor(**options | {"max_iter": 1}).fit(X, 100 * SUM)
    pairs = zip(before.coefs_ + before.intercepts_, after.coefs_ + after.intercepts_)
    assert np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) == pytest.approx(0.5 * 0.01)
    with pytest.raises(ValueError, match="`clip` does not go with solver='lbfgs'"):
        MLPRegressor(solver="lbfgs", clip=1.0).fit(X, SUM)


def test_solvers_of_ones_own():
    named = MLPRegressor(beta_1=0.5, **SMALL).fit(X, SUM)
    assert _same_weights(MLPRegressor(solver=Adam(beta_1=0.5), **SMALL).fit(X, SUM), named)
    plain = MLPRegressor(solver="sgd", momentum=0.0, **SMALL).fit(X, SUM)
    assert _same_weights(MLPRegressor(solver=GradientDescent(), **SMALL).fit(X, SUM), plain)
    for solver in ("adamw", "rmsprop"):
        model = MLPRegressor(solver=solver, **SMALL | {"max_iter": 300, "learning_rate_init": 0.01}).fit(X, SUM)
        assert model.score(X, SUM) > 0.6


def test_callbacks_see_each_epoch_and_may_stop_and_set_the_rate():
    steps = []

    def third(progress):
        steps.append(progress.step)
        progress.rate = 0.125
        return len(progress.history) == 3

    model = MLPRegressor(callbacks=[third], batch_size=20, solver="sgd", **SMALL).fit(X, SUM)
    assert steps == [3, 7, 11]
    assert model.n_iter_ == 3
    assert model.history_.stopped == "callback"
    assert model.history_.rate == [0.001, 0.125, 0.125]
    assert model.history_.loss == pytest.approx(model.loss_curve_)
    assert model._optimizer.learning_rate == 0.125


def test_training_that_diverges():
    options = {**SMALL, "solver": "sgd", "learning_rate_init": 50.0, "max_iter": 20, "activation": "identity"}
    model = MLPRegressor(**options)
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights.*smaller learning_rate"):
        model.fit(X, SUM)
    assert all(np.all(np.isfinite(C)) for C in model.coefs_)
    stopped = MLPRegressor(**options | {"early_stopping": True}).fit(X, SUM)
    assert np.isnan(stopped.validation_scores_[-1])
    assert np.isfinite(stopped.score(X, SUM))


def test_ctrl_c_keeps_the_weights():
    def interrupt(progress):
        if len(progress.history) == 2:
            raise KeyboardInterrupt

    model = MLPRegressor(callbacks=[interrupt], **SMALL)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, SUM)
    assert _same_weights(model, MLPRegressor(**SMALL | {"max_iter": 2}).fit(X, SUM))


def test_the_training_data_stay_as_they_are():
    rows, y, weight = X.copy(), SUM.copy(), np.ones(80)
    for array in (rows, y, weight):
        array.flags.writeable = False
    MLPRegressor(early_stopping=True, **SMALL).fit(rows, y, weight)
    np.testing.assert_array_equal(rows, X)


def _fitted(model):
    return model.fit(X, LABELS).coefs_[0]


def test_pipelines_searches_and_joblib():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**SMALL)).set_output(transform="pandas")
    assert pipeline.fit(X, LABELS).score(X, LABELS) >= 0
    assert list(pipeline[-1].feature_names_in_) == ["x0", "x1", "x2", "x3"]
    search = GridSearchCV(MLPClassifier(**SMALL), {"alpha": [0.1, 1.0], "activation": ["relu", "elu"]}, cv=2)
    assert search.fit(X, LABELS).best_params_.keys() == {"alpha", "activation"}
    assert len(cross_val_score(MLPRegressor(**SMALL), X, SUM, cv=3)) == 3
    model = MLPClassifier(**SMALL, activation=["relu"], callbacks=[], clip=2.0)
    assert clone(model).get_params() == model.get_params()
    alone = _fitted(clone(model))
    for backend in ("threading", "loky"):
        for got in Parallel(n_jobs=2, backend=backend)(delayed(_fitted)(clone(model)) for _ in range(3)):
            np.testing.assert_array_equal(got, alone)


def test_metadata_routing():
    with sklearn.config_context(enable_metadata_routing=True):
        model = MLPClassifier(**SMALL).set_fit_request(sample_weight=True, X_val=True, y_val=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model, transform_input=["X_val"])
        pipeline.fit(X[:60], LABELS[:60], sample_weight=np.arange(1.0, 61.0), X_val=X[60:], y_val=LABELS[60:])
        inner = pipeline[-1]
        score = inner.score(pipeline[0].transform(X[60:]), LABELS[60:])
        assert inner.validation_scores_[-1] == pytest.approx(score)  # X_val went through the scaler too


def test_a_network_trained_the_same_way_is_the_same():
    """Network's own door, on one-hot targets and in order: the estimator adds nothing to the numbers."""
    _, Y = one_hot(np.digitize(SUM, [-1, 1]))
    model = MLPClassifier(**SMALL, solver="sgd", momentum=0.0, learning_rate_init=0.1, shuffle=False, batch_size=20)
    model.fit(X, np.digitize(SUM, [-1, 1]))
    network = Network([4, 5, 3], activation=["relu", "softmax"], loss="log_loss", bias=True, init="glorot", seed=0)
    network.train(X, Y, epochs=8, learning_rate=0.1, batch_size=20, shuffle=False, l2=1e-4)
    np.testing.assert_allclose(model.predict_proba(X), network.predict(X), rtol=1e-12)


def test_the_order_of_rows_is_read_back_for_a_replay():
    from bpaccel.estimators.epochs import Epochs

    plan = Epochs(10, 3, True, 0, np.random.RandomState(0))
    orders = [plan.order(epoch) for epoch in range(5)]
    for epoch in (3, 4):
        np.testing.assert_array_equal(plan.order(epoch), orders[epoch])
    epoch, order = plan.last()
    np.testing.assert_array_equal(order, orders[epoch])
    further = Epochs(10, 3, True, 0, np.random.RandomState(1))
    further.go_on(epoch, order)
    np.testing.assert_array_equal(further.order(4), orders[4])


# --- subclasses, and targets that are text ---


class LogRegressor(MLPRegressor):
    """Learns the logarithm of its target."""

    def fit(self, X, y):
        return super().fit(X, np.log(y))

    def predict(self, X):
        return np.exp(super().predict(X))


class CautiousClassifier(MLPClassifier):
    """Says "high" only where it is sure."""

    def __init__(self, threshold=0.9, hidden_layer_sizes=(5,), max_iter=8, random_state=0):
        super().__init__(hidden_layer_sizes, max_iter=max_iter, random_state=random_state)
        self.threshold = threshold

    def predict(self, X):
        return np.where(self.predict_proba(X)[:, 0] > self.threshold, *self.classes_)


class EvenClassifier(MLPClassifier):
    """Knows nothing."""

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


def test_the_score_is_that_of_an_overridden_predict():
    """Directly, in cross-validation and in searches, as with scikit-learn's own classes."""
    y = np.exp(SUM)
    model = LogRegressor(**SMALL | {"max_iter": 100, "learning_rate_init": 0.01}).fit(X, y)
    assert model.score(X, y) == r2_score(y, model.predict(X)) > 0.5
    weight = np.arange(80.0)
    assert model.score(X, y, weight) == r2_score(y, model.predict(X), sample_weight=weight)
    parts = cross_validate(model, X, y, cv=3, return_estimator=True, return_indices=True)
    for score, fitted, rows in zip(parts["test_score"], parts["estimator"], parts["indices"]["test"]):
        assert score == r2_score(y[rows], fitted.predict(X[rows]))
    np.testing.assert_array_equal(cross_val_score(model, X, y, cv=3), parts["test_score"])

    cautious = CautiousClassifier(0.0).fit(X, LABELS)
    assert set(cautious.predict(X)) == {"high"}
    assert cautious.score(X, LABELS) == np.mean(LABELS == "high")
    search = GridSearchCV(CautiousClassifier(), {"threshold": [0.0, 0.5, 1.0]}, cv=3).fit(X, LABELS)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] == pytest.approx(np.mean(LABELS == "high"), abs=0.02)  # each third has its share of them
    assert scores[2] == pytest.approx(np.mean(LABELS == "low"), abs=0.02)
    assert search.best_params_["threshold"] != 0.0


def test_log_probabilities_are_those_of_an_overridden_predict_proba():
    model = EvenClassifier(**SMALL).fit(X, LABELS)
    np.testing.assert_array_equal(model.predict_log_proba(X), np.full((80, 2), np.log(0.5)))
    plain = MLPClassifier(**SMALL).fit(X, LABELS)
    np.testing.assert_array_equal(plain.predict_log_proba(X), np.log(plain.predict_proba(X)))


def test_the_score_of_an_overridden_predict_on_arrays_of_any_library(backend):
    """What the overridden method returns may live where X does, or on the host."""
    where = backend_of_name(backend)
    rows = where.asarray(X, where.widest)

    class Shifted(MLPRegressor):
        def predict(self, X):
            return super().predict(X) + 1.0

    class OnHost(MLPRegressor):
        def predict(self, X):
            return where.to_numpy(super().predict(X)) + 1.0

    wanted = r2_score(SUM, where.to_numpy(MLPRegressor(**SMALL).fit(rows, SUM).predict(rows)) + 1.0)
    for kind in (Shifted, OnHost):
        assert kind(**SMALL).fit(rows, SUM).score(rows, SUM) == pytest.approx(wanted)


TEXT = {
    "numpy's text": np.array([str(v) for v in SUM]),
    "bytes": np.array([str(v) for v in SUM]).astype("S"),
    "objects": np.array([str(v) for v in SUM], object),
    "some objects": np.array([*SUM[:-1], "1.5"], object),
    "a list": [str(v) for v in SUM],
    "a column": np.array([str(v) for v in SUM], object)[:, None],
}


@pytest.mark.parametrize("y", TEXT.values(), ids=list(TEXT))
def test_targets_that_are_text_do_not_train_a_regressor(y):
    """Not even text of numbers, which NumPy turns into numbers where it is asked for floats."""
    for train in (MLPRegressor.fit, MLPRegressor.partial_fit, MLPRegressor.initialize):
        model = MLPRegressor(**SMALL)
        with pytest.raises(ValueError, match=r"`y` must be numbers; got text \(dtype .*\.astype\(float\)"):
            train(model, X, y)
        assert not hasattr(model, "coefs_")
    with pytest.raises(ValueError, match="`y_val` must be numbers; got text"):
        MLPRegressor(**SMALL).fit(X, SUM, X_val=X, y_val=y)


def test_targets_that_are_text_are_refused_from_callbacks_and_pandas():
    pandas = pytest.importorskip("pandas")
    for dtype in (object, "string", "category"):
        with pytest.raises(ValueError, match="`y` must be numbers; got text"):
            MLPRegressor(**SMALL).fit(X, pandas.Series(TEXT["objects"]).astype(dtype))

    def look(progress):
        with pytest.raises(ValueError, match="`y` must be numbers; got text"):
            progress.network.loss(X, TEXT["numpy's text"])
        looked.append(progress.network.loss(X, SUM))

    looked: list = []
    MLPRegressor(callbacks=[look], **SMALL).fit(X, SUM)
    assert len(looked) == 8


def test_targets_that_are_objects_of_numbers_do_train():
    wanted = MLPRegressor(**SMALL).fit(X, SUM)
    assert _same_weights(MLPRegressor(**SMALL).fit(X, SUM.astype(object)), wanted)
    assert _same_weights(MLPRegressor(**SMALL).fit(X, SUM.tolist()), wanted)
