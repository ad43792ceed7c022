"""Callbacks: when they stop, what they save, which rates they set."""

import math
import os
import pickle
import signal
import threading

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import storage
from bpaccel.callbacks import Callback, Checkpoint, Cosine, EarlyStopping, ProgressBar, Schedule, StepDecay, Warmup
from bpaccel.training.callback import Progress

RANDOM = np.random.default_rng(0)
TABLE, TARGET = RANDOM.random((40, 3)), RANDOM.random(40)
X_VAL = RANDOM.random((20, 3))


def train(*callbacks, steps=200, net=None, **options):
    net = net or bp.Network([3, 20, 1], activation=["tanh", "identity"], seed=1, dtype="float64",
                            backend=options.pop("backend", None))  # fmt: skip
    options = {"solver": "adam", "learning_rate": 0.05, "record_every": 1, **options}
    return net, net.train(TABLE, TARGET, steps=steps, callbacks=list(callbacks), **options)


# What the network says after 30 steps, and some noise: further steps are for the worse.
Y_VAL = np.asarray(train(steps=30)[0].predict(X_VAL)) + 0.05 * RANDOM.standard_normal((20, 1))


def same(a, b):
    return all(np.array_equal(V, W) for V, W in zip(a.weights, b.weights, strict=True))


def test_early_stopping_puts_back_the_weights_of_the_least_validation_loss(backend):
    stopping = EarlyStopping(X_VAL, Y_VAL, patience=7)
    net, history = train(stopping, backend=backend)
    assert history.stopped == "callback"
    assert stopping.best_loss == min(stopping.losses)
    assert history.step[-1] == stopping.best_step + 7
    assert len(stopping.losses) == len(history)
    np.testing.assert_allclose(net.loss(X_VAL, Y_VAL), stopping.best_loss, rtol=1e-12)
    by_hand, _ = train(steps=stopping.best_step + 1, backend=backend)
    for V, W in zip(net.to("numpy").weights, by_hand.to("numpy").weights):
        np.testing.assert_allclose(V, W, rtol=1e-9)


def test_weights_that_are_not_put_back_are_those_of_the_end():
    net, history = train(EarlyStopping(X_VAL, Y_VAL, patience=7, restore=False))
    assert same(net, train(steps=history.step[-1] + 1)[0])


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_weights_are_put_back_however_training_ended(solver):
    stopping = EarlyStopping(X_VAL, Y_VAL, patience=10**6)
    net, history = train(stopping, solver=solver)
    assert history.stopped in ("steps", "converged")
    assert stopping.best_step < history.step[-1]
    assert net.loss(X_VAL, Y_VAL) == stopping.best_loss


def test_weights_are_put_back_after_ctrl_c():
    stopping = EarlyStopping(X_VAL, Y_VAL, patience=10**9)
    timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    net, history = train(stopping, steps=10**9, record_every=3, engine="array")
    assert history.stopped == "interrupted"
    assert net.loss(X_VAL, Y_VAL) == stopping.best_loss


def test_where_the_last_weights_are_the_best_training_can_be_resumed():
    stopping = EarlyStopping(TABLE, TARGET)
    net, history = train(stopping, steps=20, learning_rate=1e-3)
    assert stopping.best_step == 19
    train(stopping, steps=20, learning_rate=1e-3, net=net, resume=history)
    assert len(stopping.losses) == 40  # one that is resumed goes on counting
    assert same(net, train(steps=40, learning_rate=1e-3)[0])
    train(stopping, steps=5)
    assert len(stopping.losses) == 5  # and a new one begins anew


def test_early_stopping_on_the_training_loss():
    stopping = EarlyStopping(patience=3, min_delta=1e-3)
    net, history = train(stopping)
    assert history.stopped == "callback"
    assert stopping.losses == history.loss
    gains = -np.diff(np.minimum.accumulate(history.loss))
    assert gains[-3:].sum() <= 1e-3
    assert stopping.best_step == history.step[-4]
    assert same(net, train(steps=history.step[-1] + 1)[0])


def test_a_gain_is_more_than_min_delta():
    stopping, history, net = EarlyStopping(patience=2, min_delta=0.1), bp.History(), bp.Network([1, 1])
    stops = []
    for step, loss in enumerate((1.0, 0.95, 0.8, 0.75, 0.71)):
        history.append(step, step, loss, 0.0, 1.0, 0.0)
        stops.append(stopping(Progress(net, history, step, 1.0)))
    assert stops == [False, False, False, False, True]
    assert (stopping.best_step, stopping.best_loss) == (2, 0.8)


def test_a_loss_that_is_nan_is_no_gain():
    bad = np.full((20, 1), np.nan)
    _, history = train(EarlyStopping(X_VAL, bad, patience=4))
    assert history.step[-1] == 3
    net, _ = train(steps=4)
    assert same(net, train(EarlyStopping(X_VAL, bad, patience=4))[0])


def test_checkpoints_are_whole_files_of_the_rows_they_say(tmp_path):
    seen = []
    net, history = train(Checkpoint(tmp_path / "net-{step}.bp", every=3), lambda p: seen.append(p.network.weights),
                         steps=90, record_every=10)  # fmt: skip
    assert history.step == [*range(0, 90, 10), 89]
    names = {int(path.stem[4:]) for path in tmp_path.iterdir()}
    assert names == {0, 30, 60, 89}
    for step in (30, 89):
        saved = bp.load(tmp_path / f"net-{step}.bp")
        assert all(np.array_equal(a, b) for a, b in zip(saved.weights, seen[history.step.index(step)]))
    assert same(net, bp.load(tmp_path / "net-89.bp"))


def test_a_checkpoint_of_the_best_is_what_early_stopping_puts_back(tmp_path):
    path = tmp_path / "best.bp"
    net, _ = train(EarlyStopping(X_VAL, Y_VAL, patience=10**6), Checkpoint(path, X_VAL, Y_VAL))
    assert same(net, bp.load(path))


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "net.bp"
    train(Checkpoint(path), steps=3)
    before = path.read_bytes()

    def torn(temporary, content):
        with open(temporary, "wb") as file:
            file.write(content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(storage.Path, "write_bytes", torn)
    with pytest.raises(OSError, match="no space"):
        train(Checkpoint(path), steps=3)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.bp"]


def test_a_checkpoint_looks_for_its_place_before_any_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Checkpoint(tmp_path / "nowhere" / "net.bp")


def test_a_schedule_sets_the_rate_of_the_steps_to_come():
    decay = StepDecay(0.1, every=10, factor=0.5)
    net, history = train(Schedule(decay), steps=35, learning_rate=decay(0))
    np.testing.assert_allclose(history.rate, [0.1 * 0.5 ** (s // 10) for s in range(35)], rtol=1e-15)
    by_hand = bp.Network([3, 20, 1], activation=["tanh", "identity"], seed=1, dtype="float64")
    resume = None
    for steps, rate in ((10, 0.1), (10, 0.05), (10, 0.025), (5, 0.0125)):
        _, resume = train(net=by_hand, steps=steps, learning_rate=rate, resume=resume)
    assert same(net, by_hand)


def test_a_schedule_by_epochs():
    _, history = train(Schedule(lambda epoch: 0.1 / (1 + epoch), by="epoch"), epochs=3, steps=None, batch_size=10,
                       learning_rate=0.1)  # fmt: skip
    assert history.epoch == [e for e in range(3) for _ in range(4)]
    np.testing.assert_allclose(history.rate, [0.1 / (1 + e) for e in history.epoch], rtol=1e-15)


def test_the_cosine_is_torchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.003)
    for step in range(21):
        assert Cosine(0.3, 20)(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()
    assert Cosine(0.3, 20)(10**6) == pytest.approx(0.003)


def test_a_warm_up_grows_to_its_schedule():
    warm = Warmup(Cosine(1.0, 100), 4)
    np.testing.assert_allclose([warm(s) / Cosine(1.0, 100)(s) for s in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])


def test_callbacks_can_be_pickled_before_and_after_training(tmp_path):
    callbacks = [EarlyStopping(X_VAL, Y_VAL, patience=5), Checkpoint(tmp_path / "net.bp"), Schedule(Cosine(0.05, 99))]
    want, history = train(*pickle.loads(pickle.dumps(callbacks)))
    again, _ = train(*callbacks)
    assert same(want, again)
    stopping = pickle.loads(pickle.dumps(callbacks))[0]
    assert stopping.losses == callbacks[0].losses
    assert math.isfinite(stopping.best_loss)
    assert history.stopped == "callback"


@pytest.mark.parametrize(("make", "message"), [
    (lambda: EarlyStopping(X_VAL), "`X` and `y` of the validation go together"),
    (lambda: EarlyStopping(sample_weight=[1]), "`sample_weight` goes with them"),
    (lambda: EarlyStopping(patience=0), "`patience` must be a whole number"),
    (lambda: EarlyStopping(min_delta=-1), "`min_delta` must be a finite number of at least 0"),
    (lambda: EarlyStopping(restore=True), "`restore` needs rows of validation"),
    (lambda: Checkpoint("net.bp", every=0), "`every` must be a whole number"),
    (lambda: Schedule(0.1), "`rate` must be a function of the step; got 0.1"),
    (lambda: Schedule(StepDecay(1, 1), by="row"), "`by` must be 'step' or 'epoch'"),
    (lambda: StepDecay(0.1, 0), "`every` must be a whole number"),
    (lambda: Cosine(0.1, 10, 0.0), "`end` must be a finite number above 0"),
    (lambda: Warmup(Cosine(0.1, 10), 0), "`steps` must be a whole number"),
])  # fmt: skip
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_progress_bar_counts_the_steps_and_names_the_engine(capsys):
    pytest.importorskip("rich")
    bar = ProgressBar()
    _, history = train(bar, steps=30, record_every=7)
    out = capsys.readouterr().out.replace("\n", " ")
    assert f"engine {history.engine}: {history.reason}" in out
    assert "30/30" in out
    train(bar, steps=4, solver="lbfgs", learning_rate=1.0)  # and again, for another training
    assert "4/4" in capsys.readouterr().out
    pickle.loads(pickle.dumps(bar))


class Told(Callback):
    """A callback that keeps what it is told."""

    def __init__(self, error=None):
        self.error, self.seen = error, []

    def begin(self, progress, resumed):
        self.seen.append("begin")

    def __call__(self, progress):
        self.seen.append((progress.step, progress.stop))
        if self.error:
            raise self.error

    def end(self, progress, how):
        self.seen.append(how)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_callback_is_told_of_the_end_also_after_an_error(solver):
    fine, broken = Told(), Told(ArithmeticError("no"))
    train(fine, steps=2, solver=solver)
    assert fine.seen == ["begin", *((step, 2) for step in range(3 if solver == "lbfgs" else 2)), "steps"]
    with pytest.raises(ArithmeticError):
        train(broken, steps=2, solver=solver)
    assert broken.seen == ["begin", (0, 2), "failed"]


def test_without_rich_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bpaccel\[cli\]'"):
        ProgressBar()
