"""Callbacks, by every way to train and every way to end: begun once, ended once, with the right word, always.

Each callback is also looked at by itself: what it holds must be of the rows that it saw.
"""

import numpy as np
import pytest

import bpaccel as bp
from bpaccel.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar, Schedule, StepDecay

pytestmark = [pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
              pytest.mark.filterwarnings("ignore:Training interrupted by user")]  # fmt: skip

X = np.random.RandomState(0).standard_normal((60, 4))
Y = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(60)


class Boom(Exception):
    """An error of a callback's own."""


class Told(Callback):
    """Keeps what it is told, and that it is told in order."""

    def __init__(self):
        self.told, self.rows = [], []

    def begin(self, progress, resumed):
        assert self.told == [] or self.told[-1][0] == "end"
        assert [W.shape for W in progress.network.weights]
        self.told.append(("begin", resumed))

    def __call__(self, progress):
        assert self.told[-1][0] == "begin"
        self.rows.append(progress.step)
        assert progress.history.step[-1] == progress.step

    def end(self, progress, how):
        assert self.told[-1][0] == "begin"
        assert all(np.all(np.isfinite(W)) for W in progress.network.weights)
        self.told.append(("end", how))


class Ends(Callback):
    """Brings about one of the ends, at the third row that it sees."""

    def __init__(self, how):
        self.how, self.seen = how, 0

    def __call__(self, progress):
        self.seen += 1
        if self.seen < 3:
            return False
        if self.how == "failed":
            raise Boom
        if self.how == "interrupted":
            raise KeyboardInterrupt
        if self.how == "diverged":
            progress.rate = 1e200
        return self.how == "callback"


def net():
    return bp.Network([4, 5, 1], activation=["tanh", "identity"], bias=True, seed=0)


def estimator(callbacks, **options):
    return bp.MLPRegressor(hidden_layer_sizes=(5,), max_iter=8, tol=0.0, random_state=0, batch_size=20, solver="sgd",
                           callbacks=callbacks, **options)  # fmt: skip


def by_train(callbacks):
    return lambda: net().train(X, Y, steps=8, record_every=1, callbacks=callbacks)


def by_mini_batches(callbacks):
    return lambda: net().train(X, Y, epochs=8, batch_size=20, record_every=3, solver="adam", callbacks=callbacks)


def by_resume(callbacks):
    network = net()
    history = network.train(X, Y, steps=4, record_every=1)
    return lambda: network.train(X, Y, steps=8, record_every=1, callbacks=callbacks, resume=history)


def by_lbfgs(callbacks):
    pytest.importorskip("scipy")
    return lambda: net().train(X, Y, steps=8, solver="lbfgs", record_every=1, callbacks=callbacks)


def by_table(callbacks):
    table = {**dict(zip("abcd", X.T)), "y": Y}
    return lambda: bp.TableModel(seed=0).fit(table, "y", epochs=8, batch_size=20, record_every=3, callbacks=callbacks)


def by_fit(callbacks):
    pytest.importorskip("sklearn")
    return lambda: estimator(callbacks).fit(X, Y).history_


def by_warm_start(callbacks):
    pytest.importorskip("sklearn")
    model = estimator([], warm_start=True).fit(X, Y)
    return lambda: model.set_params(callbacks=callbacks).fit(X, Y).history_


def by_partial_fit(callbacks):
    pytest.importorskip("sklearn")
    model = estimator(callbacks)

    def train():
        for _ in range(8):
            history = model.partial_fit(X, Y).history_
            if history.stopped != "steps":
                break
        return history

    return train


def by_fit_of_lbfgs(callbacks):
    pytest.importorskip("sklearn")
    return lambda: estimator(callbacks).set_params(solver="lbfgs", batch_size="auto").fit(X, Y).history_


WAYS = {f.__name__[3:]: f for f in (by_train, by_mini_batches, by_resume, by_lbfgs, by_table, by_fit, by_warm_start,
                                    by_partial_fit, by_fit_of_lbfgs)}  # fmt: skip
ENDS = ("steps", "callback", "interrupted", "failed", "diverged")


def _ended(train, how):
    """Train, and return how it ended, and the history if there is one."""
    try:
        history = train()
    except Boom:
        return "failed", None
    except KeyboardInterrupt:  # of an estimator's lbfgs, as scikit-learn's
        return "interrupted", None
    except bp.DivergenceError as error:
        return "diverged", error.history
    except ValueError as error:  # of an estimator, in scikit-learn's words
        return ("diverged" if "non-finite" in str(error) else str(error)), None
    return history.stopped, history


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_callback_is_begun_and_ended_once_with_the_right_word(way, how, tmp_path):
    if how == "diverged" and "lbfgs" in way.__name__:
        pytest.skip("the rate has no effect on L-BFGS")
    told = Told(), Told()
    stopping, path = EarlyStopping(X, Y, patience=1000), tmp_path / "net.bp"
    callbacks = [told[0], stopping, Schedule(StepDecay(0.01, 100)), Checkpoint(path), Ends(how), told[1]]
    if how == "diverged":
        del callbacks[2]
    got, history = _ended(way(callbacks), how)
    assert got == how or (how == "steps" and got == "converged")
    for one in told:
        begins, ends = one.told[::2], one.told[1::2]
        assert len(begins) == len(ends) > 0
        assert {end for _, end in ends[:-1]} <= {"steps"}  # each partial_fit is a training
        assert ends[-1] == ("end", got)
        resumed = way in (by_resume,)
        assert [resumed for _, resumed in begins] == [resumed or k > 0 for k in range(len(begins))]
    assert len(told[0].rows) - len(told[1].rows) == (how in ("failed", "interrupted"))
    assert len(stopping.losses) == len(told[0].rows)
    if history is not None:
        assert (history.state is None) == (how == "diverged")
        assert {len(column) for column in history.to_dict().values()} == {len(history)}
    if how in ("steps", "callback", "interrupted"):  # the file is of the end
        assert bp.load(path).to_parts()[0]["kind"] in ("network", "table")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_weights_that_are_left_are_the_best(way):
    """EarlyStopping puts back its best weights, however the training ends."""
    for how in ("steps", "callback", "interrupted"):
        stopping, seen = EarlyStopping(X, -Y, patience=1000), []

        class Last(Callback):
            last = True

            def end(self, progress, how, seen=seen):
                seen.append(progress.network.loss(X, -Y))

        _ended(way([stopping, Ends(how), Last()]), how)
        assert seen[-1] == stopping.best_loss == min(stopping.losses)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_callback_that_fails_at_its_beginning_or_end_hides_no_other(way):
    class FailsToBegin(Callback):
        def begin(self, progress, resumed):
            raise Boom

    class FailsToEnd(Callback):
        def end(self, progress, how):
            raise Boom

    first, never = Told(), Told()
    with pytest.raises(Boom):
        way([first, FailsToBegin(), never])()
    assert first.told[1:] == [("end", "failed")]
    assert never.told == []
    both = Told(), Told()
    with pytest.raises(Boom):
        way([both[0], FailsToEnd(), both[1]])()
    assert [one.told[-1][0] for one in both] == ["end", "end"]


@pytest.mark.parametrize("how", ENDS)
def test_a_bar_is_put_away(how, capsys):
    pytest.importorskip("rich")
    bar = ProgressBar()
    _ended(by_train([bar, Ends(how)]), how)
    assert "engine" in capsys.readouterr().out
    _ended(by_train([bar]), "steps")  # a bar that was left open would refuse a second


def test_a_plain_function_is_a_callback():
    seen = []
    net().train(X, Y, steps=3, record_every=1, callbacks=[lambda progress: seen.append(progress.step)])
    assert seen == [0, 1, 2]
