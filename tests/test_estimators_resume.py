"""Fits of the estimators that were killed go on to the bytes of the unbroken ones: weights, records, random state."""

import contextlib
import copy
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from bpaccel import MLPClassifier, MLPRegressor, storage
from bpaccel.backends import backend as backend_of_name
from bpaccel.callbacks import Checkpoint, EarlyStopping, Schedule, StepDecay
from bpaccel.engines.blocked import Array
from bpaccel.estimators import door

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((90, 4))
SUM = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(90)
LABELS = np.where(SUM > 1, "high", np.where(SUM < -1, "low", "mid"))
RECORDS = ("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_", "validation_loss_curve_",
           "best_validation_score_", "_no_improvement_count")  # fmt: skip


class Killed(BaseException):
    """A kill."""


def kill_at(row):
    def callback(progress):
        if len(progress.history) == row:
            raise Killed

    return callback


def assert_same(a, b):
    for p, q in zip([*a.coefs_, *a.intercepts_, *a._best_weights], [*b.coefs_, *b.intercepts_, *b._best_weights]):
        assert door.on_host(p).tobytes() == door.on_host(q).tobytes()
    for name in RECORDS:
        assert repr(getattr(a, name, None)) == repr(getattr(b, name, None)), name
    columns = [{k: v for k, v in m.history_.to_dict().items() if k != "seconds"} for m in (a, b)]
    assert columns[0] == columns[1]
    assert a.history_.stopped == b.history_.stopped
    if hasattr(a, "_optimizer"):
        assert (a._optimizer.t, a._optimizer.rate) == (b._optimizer.t, b._optimizer.rate)
        for group, other in zip(a._optimizer.state, b._optimizer.state, strict=True):
            assert [door.on_host(p).tobytes() for p in group] == [door.on_host(q).tobytes() for q in other]
    states = [m._random_state.get_state(legacy=False)["state"] for m in (a, b)]
    assert states[0]["pos"] == states[1]["pos"]
    assert states[0]["key"].tobytes() == states[1]["key"].tobytes()


SMALL = {"hidden_layer_sizes": (6,), "max_iter": 12, "random_state": 3, "batch_size": 20}
FITS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.02, "n_iter_no_change": 1,
                 "tol": 1e-2},
    "rmsprop": {"solver": "rmsprop"},
    "full batch": {"batch_size": 90},
    "own order": {"shuffle": False},
    "dropout": {"dropout": 0.3},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.05},
    "stops by itself": {"tol": 0.5, "n_iter_no_change": 2},
}  # fmt: skip


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_killed_fit_ends_with_the_bytes_of_the_unbroken_one(kind, options, tmp_path):
    path, make, y = tmp_path / "fit.bp", MLPClassifier, LABELS
    if kind == "regressor":
        make, y = MLPRegressor, SUM
    options = SMALL | options
    whole = make(**options).fit(X, y)
    rows = [row for row in (2, 3, whole.n_iter_ - 1, whole.n_iter_) if 0 < row <= whole.n_iter_]
    for number, row in enumerate(sorted(set(rows))):
        resume = {"resume": path} if number else {}
        kill = kill_at(row + 1 if row == rows[0] else row)
        with contextlib.suppress(Killed):  # a fit may end before
            make(**options, callbacks=[Checkpoint(path), kill]).fit(X, y, **resume)
    again = make(**options, callbacks=[Checkpoint(path)]).fit(X, y, resume=path)
    assert_same(again, whole)
    assert_same(make(**options).fit(X, y, resume=path), whole)  # it had ended: it ends at once


def test_callbacks_of_ours_go_on_too(tmp_path):
    path = tmp_path / "fit.bp"

    def callbacks():
        return [EarlyStopping(X[:30], SUM[:30], patience=4), Schedule(StepDecay(0.1, 3), by="epoch")]

    whole = MLPRegressor(**SMALL, callbacks=callbacks()).fit(X, SUM)
    with pytest.raises(Killed):
        MLPRegressor(**SMALL, callbacks=[*callbacks(), kill_at(5), Checkpoint(path)]).fit(X, SUM)
    again = MLPRegressor(**SMALL, callbacks=[*callbacks(), Checkpoint(path)]).fit(X, SUM, resume=path)
    assert_same(again, whole)


def test_own_validation_rows_sparse_rows_and_multilabel(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    path, labels = tmp_path / "fit.bp", np.stack([SUM > 0, SUM > 1], axis=1).astype(int)
    given = {"X_val": X[:20], "y_val": labels[:20]}
    for rows in (X, sparse.csr_array(X)):
        whole = MLPClassifier(**SMALL, early_stopping=True).fit(rows, labels, **given)
        with pytest.raises(Killed):
            MLPClassifier(**SMALL, early_stopping=True, callbacks=[Checkpoint(path), kill_at(4)]).fit(
                rows, labels, **given
            )
        assert_same(MLPClassifier(**SMALL, early_stopping=True).fit(rows, labels, **given, resume=path), whole)


def test_on_every_backend(backend, tmp_path):
    """By the engine `array`: two equal fits of jax.jit may differ in the last digit of a loss that they report."""
    where, path = backend_of_name(backend), tmp_path / "fit.bp"
    here, options = where.asarray(X, where.widest), SMALL | {"engine": "array"}
    whole = MLPClassifier(**options).fit(here, LABELS)
    with pytest.raises(Killed):
        MLPClassifier(**options, callbacks=[Checkpoint(path), kill_at(4)]).fit(here, LABELS)
    assert_same(MLPClassifier(**options).fit(here, LABELS, resume=path), whole)


def test_without_a_seed_the_file_holds_what_was_drawn(tmp_path):
    """Nothing can be compared, but the fit must go on with its own split and order: the curves join."""
    path, options = tmp_path / "fit.bp", SMALL | {"random_state": None, "early_stopping": True}
    with pytest.raises(Killed):
        MLPRegressor(**options, callbacks=[Checkpoint(path), kill_at(5)]).fit(X, SUM)
    a, b = (MLPRegressor(**options).fit(X, SUM, resume=path) for _ in range(2))
    assert_same(a, b)


def test_a_generator_of_ones_own_goes_on_as_in_the_unbroken_fit(tmp_path):
    path = tmp_path / "fit.bp"
    own = np.random.RandomState(7)
    whole = MLPRegressor(**SMALL | {"random_state": own}).fit(X, SUM)
    with pytest.raises(Killed):
        MLPRegressor(**SMALL | {"random_state": np.random.RandomState(7)},
                     callbacks=[Checkpoint(path), kill_at(5)]).fit(X, SUM)  # fmt: skip
    other = np.random.RandomState(99)
    assert_same(MLPRegressor(**SMALL | {"random_state": other}).fit(X, SUM, resume=path), whole)


@pytest.mark.parametrize("options", [{}, {"early_stopping": True, "n_iter_no_change": 50}, {"dropout": 0.2},
                                     {"solver": "sgd", "learning_rate": "invscaling"}])  # fmt: skip
def test_a_fit_goes_on_from_its_own_history(options):
    options = {**SMALL, "tol": 0.0, "n_iter_no_change": 50, **options}
    whole = MLPRegressor(**options | {"max_iter": 12}).fit(X, SUM)
    model = MLPRegressor(**options | {"max_iter": 5}).fit(X, SUM)
    model.set_params(max_iter=7).fit(X, SUM, resume=model.history_)
    assert_same(model, whole)
    with pytest.raises(ValueError, match="`resume` must be the `history_` of this estimator's last fit"):
        model.fit(X, SUM, resume=whole.history_)
    other = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match="no state"):
        other.fit(X, SUM, resume=other.history_)


CHANGES = {
    "rows": ({}, X * 2, SUM, "the same rows"),
    "targets": ({}, X, SUM + 1, "the same rows"),
    "alpha": ({"alpha": 0.5}, X, SUM, "l2 was 0.0001 and is 0.5"),
    "batch": ({"batch_size": 30}, X, SUM, "batch_size"),
    "solver": ({"solver": "sgd"}, X, SUM, "solver"),
    "layers": ({"hidden_layer_sizes": (7,)}, X, SUM, "layer_sizes"),
    "features": ({}, X[:, :3], SUM, "layer_sizes"),
    "activation": ({"activation": "tanh"}, X, SUM, "activation"),
}


@pytest.mark.parametrize(("change", "rows", "y", "message"), CHANGES.values(), ids=CHANGES)
def test_what_changed_meanwhile_is_refused(change, rows, y, message, tmp_path):
    path = tmp_path / "fit.bp"
    MLPRegressor(**SMALL, callbacks=[Checkpoint(path)]).fit(X, SUM)
    model = MLPRegressor(**SMALL | {"max_iter": 20} | change)
    with pytest.raises(ValueError, match=f"`resume` must go on with .*{message}"):
        model.fit(rows, y, resume=path)
    assert not hasattr(model, "coefs_")


def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "fit.bp"
    MLPClassifier(**SMALL, callbacks=[Checkpoint(path)]).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"`resume` must go on with the same classes.*'high', 'low', 'mid'"):
        MLPClassifier(**SMALL).fit(X, np.char.upper(LABELS), resume=path)


def test_lbfgs_goes_on_from_its_weights(tmp_path):
    path = tmp_path / "fit.bp"
    options = {**SMALL, "solver": "lbfgs", "tol": 0.0}
    first = MLPRegressor(**options, callbacks=[Checkpoint(path), kill_at(5)])
    with pytest.raises(Killed):
        first.fit(X, SUM)
    model = MLPRegressor(**options).fit(X, SUM, resume=path)
    assert model.n_iter_ == model.history_.step[-1] == 12
    assert model.history_.loss == sorted(model.history_.loss, reverse=True)
    model.fit(X, SUM, resume=model.history_)
    assert model.n_iter_ == 24


def test_a_file_of_no_estimator_is_refused(tmp_path):
    import bpaccel as bp

    path = tmp_path / "net.bp"
    net = bp.Network([4, 6, 1], activation=["relu", "identity"], bias=True, seed=0)
    net.train(X, SUM, steps=60, solver="adam", batch_size=20, seed=0, callbacks=[Checkpoint(path)])
    with pytest.raises(ValueError, match="`resume` must be the file of a fit of MLPClassifier or MLPRegressor"):
        MLPRegressor(**SMALL).fit(X, SUM, resume=path)
    header, _ = storage.read(path)
    assert header["kind"] == "network"


@pytest.mark.parametrize("options", [{}, {"batch_size": 90, "random_state": np.random.RandomState(3)}, {"dropout": 0.2},
                                     {"shuffle": False}], ids=["batches", "all", "dropout", "own order"])  # fmt: skip
@pytest.mark.parametrize("block", [1, 2, 5, 6, 23, 31])
def test_what_was_interrupted_within_epochs_that_were_drawn_ahead_goes_on(options, block):
    """Epochs that cannot be the last go to the engine at once; an interrupt takes back those that did not come."""
    blocks = []

    class Interrupted(Array):
        joins_epochs = True

        def _count(self):
            blocks.append(1)
            if len(blocks) == block:
                raise KeyboardInterrupt

        def block(self, *args):
            self._count()
            return super().block(*args)

        def dropped_block(self, *args):
            self._count()
            return super().dropped_block(*args)

    def make(**more):
        options_ = {**SMALL, "max_iter": 12, "tol": 0.0, "n_iter_no_change": 5, **options, **more}
        if not isinstance(options_["random_state"], int):
            options_["random_state"] = np.random.RandomState(3)
        return MLPRegressor(**options_)

    drawn = {}  # what one epoch at a time draws: the order of each, and the generator after it

    def keep(progress):
        drawn[progress.history.epoch[-1]] = whole._optimizer.order, whole._random_state.get_state()

    whole = make(engine="array", callbacks=[keep])
    whole.fit(X, SUM)
    model = make(engine=Interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.fit(X, SUM)
    per_epoch = 1 if "batch_size" in options else 5
    steps = model._optimizer.t
    if model.history_.stopped != "interrupted":
        assert (per_epoch, block, steps) in {(1, 23, 12), (1, 31, 12)}
        return
    assert steps < block
    if steps and options.get("shuffle", True):
        order, state = drawn[(steps - 1) // per_epoch]
        assert model._optimizer.order[0] == order[0]
        np.testing.assert_array_equal(model._optimizer.order[1], order[1])
        np.testing.assert_array_equal(model._random_state.get_state()[1], state[1])
        assert model._random_state.get_state()[2] == state[2]
    if steps % per_epoch == 0:  # what is within an epoch goes on by a file, to the end of max_iter epochs
        model.set_params(engine="array", max_iter=12 - steps // per_epoch)
        model.fit(X, SUM, resume=model.history_)
        assert_same(model, whole)


RULES = {
    "early stopping": ({}, {"early_stopping": True}, {}),
    "no early stopping": ({"early_stopping": True}, {}, {}),
    "rows of validation": ({}, {}, {"X_val": X[:20], "y_val": SUM[:20]}),
    "schedule": ({"solver": "sgd"}, {"solver": "sgd", "learning_rate": "invscaling"}, {}),
    "rate": ({}, {"learning_rate_init": 0.1}, {}),
    "hyperparameters": ({}, {"beta_1": 0.5}, {}),
}


@pytest.mark.parametrize(("first", "then", "given"), RULES.values(), ids=RULES)
@pytest.mark.parametrize("by", ["file", "memory"])
def test_rules_of_a_fit_that_changed_are_refused(first, then, given, by, tmp_path):
    path = tmp_path / "fit.bp"
    model = MLPRegressor(**SMALL | {"max_iter": 4} | first)
    model.set_params(callbacks=[Checkpoint(path)] if by == "file" else []).fit(X, SUM)
    before = model.predict(X)
    changed = {"early_stopping": False, **then}
    with pytest.raises(ValueError, match="`resume` must go on with the same"):
        model.set_params(**changed, max_iter=20).fit(X, SUM, **given, resume=path if by == "file" else model.history_)
    np.testing.assert_array_equal(model.predict(X), before)


def test_fewer_epochs_than_were_done_are_refused(tmp_path):
    path = tmp_path / "fit.bp"
    MLPRegressor(**SMALL, callbacks=[Checkpoint(path)]).fit(X, SUM)
    with pytest.raises(ValueError, match="`max_iter` must be that of the whole fit"):
        MLPRegressor(**SMALL | {"max_iter": 3}).fit(X, SUM, resume=path)


def test_two_equal_resumed_fits_are_equal_pickles(tmp_path):
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "fit.bp"
    with pytest.raises(Killed):
        MLPRegressor(**SMALL, callbacks=[Checkpoint(path), kill_at(4)]).fit(X, SUM)
    a, b = (MLPRegressor(**SMALL).fit(X, SUM, resume=path) for _ in range(2))
    assert joblib.hash(a) == joblib.hash(b)


def test_a_copy_that_a_callback_takes_goes_on_at_the_right_rate():
    options = {**SMALL, "solver": "sgd", "learning_rate": "invscaling"}
    copies = []
    model = MLPRegressor(**options)
    model.set_params(callbacks=[lambda p: copies.append(copy.deepcopy(model)) if len(p.history) == 4 else None])
    model.fit(X, SUM)
    assert copies[0].set_params(callbacks=[])._optimizer.rate == model.history_.rate[4]
