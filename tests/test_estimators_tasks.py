"""scikit-learn's own callbacks on our estimators: what they are told, and that they may end a fit."""

import numpy as np
import pytest

pytest.importorskip("sklearn.callback")

from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bpaccel
from bpaccel import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((60, 4))
SUM = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(60)
LABELS = np.where(SUM > 1, "high", "low")
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 6, "random_state": 0}


class Recorder:
    """Keeps what it is told, and ends the fit after some epochs."""

    def __init__(self, stop_after=None):
        self.stop_after, self.told, self.models = stop_after, [], []

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.told.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
        self.told.append(("end", context.task_name, context.task_id))
        if context.parent is not None:
            self.models.append(fitted_estimator)
            self.data = X, y, metadata
        return len(self.models) == self.stop_after


@pytest.mark.parametrize(("solver", "name"), [("adam", "epoch"), ("lbfgs", "iteration")])
def test_each_epoch_is_a_task_of_the_fit(solver, name):
    recorder, weight = Recorder(), np.linspace(0.5, 2.0, 60)
    model = MLPRegressor(solver=solver, **SMALL).set_callbacks(recorder).fit(X, SUM, weight)
    epochs = [(what, name, k) for k in range(6) for what in ("begin", "end")]
    assert recorder.told == ["setup", ("begin", "fit", 0), *epochs, ("end", "fit", 0), "teardown"]
    assert recorder.data[0] is X
    assert recorder.data[1] is SUM
    assert recorder.data[2] == {"sample_weight": weight}
    for epochs, then in enumerate(recorder.models, 1):
        alone = MLPRegressor(solver=solver, **SMALL | {"max_iter": epochs}).fit(X, SUM, weight)
        np.testing.assert_allclose(then.predict(X), alone.predict(X), rtol=1e-12)
    np.testing.assert_array_equal(recorder.models[-1].predict(X), model.predict(X))


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_callback_may_end_the_fit(solver):
    recorder = Recorder(stop_after=3)
    model = MLPRegressor(solver=solver, **SMALL).set_callbacks(recorder).fit(X, SUM)
    assert model.n_iter_ == 3
    assert model.history_.stopped == "callback"
    assert len(recorder.models) == 3
    np.testing.assert_array_equal(recorder.models[-1].predict(X), model.predict(X))


def test_an_epoch_that_was_begun_and_does_not_come_is_ended_too():
    recorder = Recorder()
    model = MLPRegressor(callbacks=[lambda progress: len(progress.history) == 2], **SMALL).set_callbacks(recorder)
    model.fit(X, SUM)
    begun = [task for what, *task in recorder.told[1:-1] if what == "begin"]
    ended = [task for what, *task in recorder.told[1:-1] if what == "end"]
    assert sorted(begun) == sorted(ended)
    assert recorder.models.pop() is None
    assert len(recorder.models) == model.n_iter_ == 2


def test_where_training_fails_the_callbacks_are_put_away():
    recorder = Recorder()
    model = MLPRegressor(solver="sgd", learning_rate_init=1e9, activation="identity", **SMALL).set_callbacks(recorder)
    with pytest.raises(ValueError, match="non-finite"):
        model.fit(X, SUM)
    assert recorder.told[-1] == "teardown"
    model.set_params(learning_rate_init=0.001).partial_fit(X, SUM)  # which is no fit, and tells nobody
    assert recorder.told[-1] == "teardown"
    assert recorder.told.count("setup") == 1


def test_scores_of_each_epoch(backend):
    where = bpaccel.backend(backend)
    monitor = ScoringMonitor(scoring=lambda model, X, y: {"score": model.score(X, y)})
    here = where.asarray(X, where.widest)
    model = MLPClassifier(engine="array", learning_rate_init=0.1, **SMALL).set_callbacks(monitor).fit(here, LABELS)
    scores = [row["score"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 6
    assert scores[-1] == model.score(here, LABELS)
    assert len(set(scores)) > 1


def test_scores_are_asked_for_in_scikit_learns_words():
    pd = pytest.importorskip("pandas")
    monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    table = pd.DataFrame(X, columns=list("abcd"))
    model = MLPClassifier(early_stopping=True, **SMALL).set_callbacks(monitor).fit(table, LABELS)
    rows = monitor.get_logs().data
    assert {"accuracy", "neg_log_loss"} <= set(rows[0])
    assert len(rows) == 7  # the fit itself is one
    assert model.n_iter_ == 6


def test_a_bar_in_pipelines_and_searches(capsys):
    pytest.importorskip("rich")
    bar = ProgressBar(max_propagation_depth=None)
    make_pipeline(StandardScaler(), MLPClassifier(**SMALL)).set_callbacks(bar).fit(X, LABELS)
    search = GridSearchCV(MLPClassifier(**SMALL), {"alpha": [0.1, 1.0]}, cv=2).set_callbacks(bar)
    search.fit(X, LABELS)
    shown = capsys.readouterr().out
    assert "MLPClassifier" in shown
    assert "GridSearchCV" in shown


def test_callbacks_change_no_number():
    plain = MLPRegressor(**SMALL).fit(X, SUM)
    told = MLPRegressor(**SMALL).set_callbacks(Recorder()).fit(X, SUM)
    np.testing.assert_array_equal(plain.coefs_[0], told.coefs_[0])
    assert clone(told)._skl_callbacks == told._skl_callbacks
    assert not hasattr(told.set_callbacks(), "_skl_callbacks")
