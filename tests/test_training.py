"""Training: history, resuming, stopping, and that looking changes no bit."""

import os
import signal
import threading

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import core
from bpaccel.engines.blocked import Array
from bpaccel.engines.choice import ENGINES, find
from bpaccel.solvers import SOLVERS, Momentum
from bpaccel.training import descent
from bpaccel.training.plan import Plan

X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
Y = np.array([0, 1, 1, 0])
RANDOM = np.random.default_rng(0)
TABLE, TARGET = RANDOM.random((50, 3)), RANDOM.random(50)


def xor(**options):
    return bp.Network([3, 4, 1], seed=1, **options)


def same(a, b):
    return all(np.array_equal(V, W) for V, W in zip(a.weights, b.weights, strict=True))


def test_mean_at_rate_4_is_the_tutorial_bit_for_bit_on_4_rows():
    a, b = xor(), xor()
    a.train(X, Y, steps=50, reduction="sum", learning_rate=1.0)
    b.train(X, Y, steps=50, reduction="mean", learning_rate=4.0)
    assert same(a, b)


def test_a_row_holds_what_its_step_computed_before_its_update():
    net = xor()
    history = net.train(X, Y, steps=3, record_every=1)
    other = xor()
    for s in range(3):
        assert history.loss[s] == pytest.approx(other.loss(X, Y), rel=1e-15)
        assert history.error[s] == pytest.approx(float(np.abs(other.errors(X, Y)[-1]).mean()), rel=1e-15)
        other.train(X, Y, steps=1)
    assert history.step == history.epoch == [0, 1, 2]
    assert history.rate == [1.0] * 3
    assert history.seconds == sorted(history.seconds)


def test_rows_are_multiples_and_the_last():
    assert xor().train(X, Y, steps=25, record_every=10).step == [0, 10, 20, 24]
    assert xor().train(X, Y, steps=21, record_every=10).step == [0, 10, 20]
    assert 90 <= len(xor().train(X, Y, steps=999)) <= 101
    assert len(xor().train(X, Y, steps=3)) == 3


@pytest.mark.parametrize("batch_size", [None, 7])
def test_looking_changes_no_bit(batch_size, monkeypatch):
    def train(**options):
        net = xor()
        net.train(TABLE, TARGET, steps=60, batch_size=batch_size, seed=3, solver="adam", learning_rate=0.01, **options)
        return net

    plain = train()
    assert same(plain, train(record_every=1, callbacks=[lambda progress: progress.network.predict(X) is None]))
    monkeypatch.setattr(descent, "SLICE_SECONDS", 0.0)
    assert same(plain, train(record_every=60))


def test_mini_batches_take_every_row_once_an_epoch():
    """With a rate too small to move anything, an epoch's mean loss is the loss of all rows."""
    net = xor()
    loss, error = net.loss(TABLE, TARGET), np.abs(net.errors(TABLE, TARGET)[-1]).mean()
    history = net.train(TABLE, TARGET, epochs=3, batch_size=8, learning_rate=1e-12, record_every=7, seed=0)
    assert history.step == [0, 7, 14, 20]
    assert history.epoch == [0, 1, 2, 2]
    one_epoch = xor().train(TABLE, TARGET, epochs=1, batch_size=8, learning_rate=1e-12, record_every=100, seed=0)
    batches = xor().train(TABLE, TARGET, epochs=1, batch_size=8, learning_rate=1e-12, record_every=1, seed=0)
    assert len(batches) == 7
    weights = [8] * 6 + [2]  # an epoch's last batch is short
    assert np.average(batches.loss, weights=weights) == pytest.approx(loss, rel=1e-9)
    assert np.average(batches.error, weights=weights) == pytest.approx(error, rel=1e-9)
    assert one_epoch.loss[-1] == pytest.approx(np.average(batches.loss[1:], weights=weights[1:]), rel=1e-9)


def test_the_order_of_an_epoch_is_the_documented_one():
    plan = Plan(n=10, batch_size=3, shuffle=True, seed=7)
    np.testing.assert_array_equal(plan.order(2), np.random.default_rng([7, 2]).permutation(10))
    assert Plan(10, 3, False, 7).order(0) is None
    assert Plan(10, 10, True, 7).order(0) is None
    assert plan.batches(2, 4).order is plan.order(0)
    batches = plan.batches(2, 6)  # of two epochs: their orders stand one after the other
    np.testing.assert_array_equal(batches.order, [*plan.order(0), *plan.order(1)])
    assert (batches.starts.tolist(), batches.stops.tolist()) == ([6, 9, 10, 13], [9, 10, 13, 16])
    own = Plan(10, 3, False, 7).batches(2, 6)
    assert (own.order, own.starts.tolist(), own.stops.tolist()) == (None, [6, 9, 0, 3], [9, 10, 3, 6])


@pytest.mark.parametrize("joins", [False, True])
def test_only_engines_that_gain_by_it_get_several_epochs_at_once(joins):
    """One that compiles for the length of an order, as jit on JAX does, would compile for each number of epochs."""
    orders = []

    class Looks(Array):
        joins_epochs = joins

        def run(self, weights, solver, state, batches, rates, step):
            orders.append(len(batches.order))
            return super().run(weights, solver, state, batches, rates, step)

    looked, plain = xor(), xor()
    looked.train(TABLE, TARGET, epochs=30, batch_size=8, seed=1, engine=Looks)
    plain.train(TABLE, TARGET, epochs=30, batch_size=8, seed=1, engine="array", record_every=1,
                callbacks=[lambda progress: None])  # fmt: skip
    assert same(looked, plain)
    assert (max(orders) > len(TABLE)) == joins
    assert [name for name in ENGINES if find(name).joins_epochs] == ["fused"]


def test_the_seed_gives_the_order():
    def train(seed):
        net = xor()
        net.train(TABLE, TARGET, epochs=2, batch_size=8, seed=seed)
        return net

    assert same(train(1), train(1))
    assert not same(train(1), train(2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_resumed_training_equals_an_unbroken_one_to_the_bit(solver, batch_size):
    options = {"solver": solver, "batch_size": batch_size, "learning_rate": 0.05, "record_every": 5}
    whole, parts = xor(), xor()
    want = whole.train(TABLE, TARGET, steps=40, seed=9, **options)
    history = parts.train(TABLE, TARGET, steps=13, seed=9, **options)  # 13 is within an epoch of 8 steps
    history = parts.train(TABLE, TARGET, steps=20, resume=history, **options)
    history = parts.train(TABLE, TARGET, steps=7, resume=history, **options)
    assert same(whole, parts)
    assert history.step[-1] == want.step[-1] == 39
    assert history.loss[-1] == pytest.approx(want.loss[-1], rel=0.2)  # of fewer batches, with mini-batches
    assert set(want.step) <= set(history.step)


def test_a_training_without_a_seed_can_be_resumed():
    net = xor()
    history = net.train(TABLE, TARGET, steps=3, batch_size=8)
    again = net.train(TABLE, TARGET, steps=3, batch_size=8, resume=history)
    assert again.state.plan == history.state.plan


@pytest.mark.parametrize("change", [{"solver": "adam"}, {"batch_size": 9}, {"seed": 1}, {"shuffle": False},
                                    {"solver": Momentum(0.5)}])  # fmt: skip
def test_resuming_another_training_is_refused(change):
    options = {"solver": "momentum", "batch_size": 8, "seed": 0, "shuffle": True}
    net = xor()
    history = net.train(TABLE, TARGET, steps=3, **options)
    with pytest.raises(ValueError, match="`resume` must go on with the same solver"):
        net.train(TABLE, TARGET, steps=3, resume=history, **{**options, **change})
    with pytest.raises(ValueError, match="`resume` must go on with the same"):
        net.train(TABLE[:40], TARGET[:40], steps=3, resume=history, **options)


def test_resume_leaves_the_first_history_as_it_was():
    net = xor()
    first = net.train(X, Y, steps=3)
    before = first.to_dict()
    net.train(X, Y, steps=3, resume=first)
    assert first.to_dict() == before


def test_a_training_can_be_resumed_on_another_backend(backend):
    options = {"solver": "adam", "learning_rate": 0.05}
    whole, parts = xor(dtype="float64"), xor(dtype="float64")
    whole.train(TABLE, TARGET, steps=10, **options)
    history = parts.train(TABLE, TARGET, steps=5, **options)
    parts.to(backend).train(TABLE, TARGET, steps=5, resume=history, **options)
    for a, b in zip(whole.weights, parts.to("numpy").weights):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_compiled_training_can_be_resumed_where_its_engine_cannot_go():
    pytest.importorskip("jax")
    net = xor(backend="jax:cpu", dtype="float64")  # on a GPU another engine is taken
    history = net.train(TABLE, TARGET, steps=5)
    assert history.engine == "jit"
    assert net.to("numpy").train(TABLE, TARGET, steps=5, resume=history).engine in ("fused", "array")


def test_every_backend_trains_like_numpy(place):
    where = bp.backend(place)
    for dtype in where.floats:
        options = {"batch_size": 16, "seed": 2, "solver": "nesterov", "learning_rate": 0.05, "l2": 0.01, "clip": 0.5,
                   "sample_weight": np.linspace(0, 2, 50)}  # fmt: skip
        ours, theirs = xor(dtype=dtype), xor(dtype=dtype, backend=place)
        a = ours.train(TABLE, TARGET, steps=12, **options)
        b = theirs.train(TABLE, TARGET, steps=12, **options)
        np.testing.assert_allclose(b.loss, a.loss, rtol=1e3 * np.finfo(dtype).eps)
        np.testing.assert_allclose(theirs.predict(X), ours.predict(X), rtol=1e3 * np.finfo(dtype).eps)


def test_callbacks_see_every_row_and_may_stop_or_change_the_rate():
    seen = []

    def slower(progress):
        progress.rate *= 0.5
        seen.append((progress.step, progress.history.loss[-1]))

    def stop(progress):
        return progress.step >= 4

    net = xor()
    history = net.train(X, Y, steps=100, record_every=2, callbacks=[stop, slower])
    assert history.stopped == "callback"
    assert history.step == [0, 2, 4]
    assert history.rate == [1.0, 0.5, 0.25]
    assert seen == list(zip(history.step, history.loss))
    by_hand = xor()
    for steps, rate in ((1, 1.0), (2, 0.5), (2, 0.25)):
        by_hand.train(X, Y, steps=steps, learning_rate=rate)
    assert same(net, by_hand)


def test_a_callback_sees_the_weights_after_the_step():
    kept = []
    xor().train(X, Y, steps=2, record_every=1, callbacks=[lambda p: kept.append([W.copy() for W in p.network.weights])])
    net = xor()
    net.train(X, Y, steps=1)
    assert all(np.array_equal(a, b) for a, b in zip(kept[0], net.weights))


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_a_history_is_the_same_whether_a_callback_waits_for_its_rows_or_not(batch_size, every):
    def trained(callbacks):
        net = xor()
        history = net.train(TABLE, TARGET, steps=50, batch_size=batch_size, seed=3, record_every=every,
                            learning_rate=0.1, callbacks=callbacks)  # fmt: skip
        columns = history.to_dict()
        seconds = columns.pop("seconds")
        assert seconds == sorted(seconds)
        return columns, [W.tobytes() for W in net.weights]

    assert trained([]) == trained([lambda progress: False])


def test_to_dict_is_columns_of_plain_numbers():
    history = xor().train(X, Y, steps=5)
    columns = history.to_dict()
    assert list(columns) == ["step", "epoch", "loss", "error", "rate", "seconds"]
    assert {type(v) for values in columns.values() for v in values} == {int, float}
    assert history.stopped == "steps"
    assert history.engine in ("fused", "array")
    assert history.reason


@pytest.mark.parametrize("engine", ["array", "fused"])
def test_ctrl_c_ends_training_with_what_there_is(engine, request):
    if engine == "fused":
        request.getfixturevalue("fused")
    net = xor()
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    history = net.train(X, Y, steps=10**9, record_every=1000, engine=engine)
    assert history.stopped == "interrupted"
    assert history.step[-1] > 0
    done = history.state.step
    again = xor()
    again.train(X, Y, steps=done, engine=engine)
    assert same(net, again)
    further = net.train(X, Y, steps=10, record_every=1000, resume=history)
    assert further.step[-1] == done + 9
    assert (further.engine, further.reason) == (engine, history.reason)


def test_divergence_names_the_step_and_keeps_the_last_finite_weights():
    def network():
        return bp.Network([3, 4, 1], activation="identity", seed=1)

    net = network()
    with pytest.raises(bp.DivergenceError, match=r"at step \d+; .*smaller learning_rate \(it is 50\)") as caught:
        net.train(TABLE, TARGET, steps=1000, learning_rate=50.0, record_every=1000)
    step = caught.value.step
    assert np.isfinite(net.loss(TABLE, TARGET))
    again = network()
    again.train(TABLE, TARGET, steps=step - 1, learning_rate=50.0)
    assert same(net, again)
    assert not np.isfinite(loss_after(network(), step))
    assert np.isfinite(loss_after(network(), step - 1))


def loss_after(net, steps):
    """The loss after some steps, by the core alone, whatever becomes of it."""
    weights, names = net.weights, net.activations
    with np.errstate(all="ignore"):
        for _ in range(steps):
            layers = core.forward(weights, TABLE, names)
            deltas = core.backward(weights, layers, TARGET[:, None], names)
            weights = core.apply_updates(weights, core.batch_updates(layers, deltas), 50.0 / len(TABLE))
        return float(np.sum((TARGET[:, None] - core.forward(weights, TABLE, names)[-1]) ** 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(bad):
    broken = TABLE.copy()
    broken[7, 1] = bad
    net = bp.Network([3, 1], activation="identity", seed=1)
    with pytest.raises(bp.DivergenceError, match="at step 0; .*X or y hold nan"):
        net.train(broken, TARGET, steps=3)
    assert same(net, bp.Network([3, 1], activation="identity", seed=1))


def test_lbfgs_converges_where_least_squares_does():
    pytest.importorskip("scipy")
    net = bp.Network([3, 1], activation="identity", bias=True, seed=1)
    history = net.train(TABLE, TARGET, steps=200, solver="lbfgs")
    assert history.stopped == "converged"
    exact = np.linalg.lstsq(np.c_[TABLE, np.ones(50)], TARGET, rcond=None)[0]
    np.testing.assert_allclose(net.weights[0][:, 0], exact, atol=1e-6)
    assert history.loss == sorted(history.loss, reverse=True)
    assert history.error[-1] == pytest.approx(np.abs(net.errors(TABLE, TARGET)[-1]).mean(), rel=1e-12)


def test_lbfgs_counts_iterations_and_asks_callbacks():
    pytest.importorskip("scipy")
    net = xor()
    history = net.train(TABLE, TARGET, steps=5, solver="lbfgs", record_every=1)
    assert history.step == [0, 1, 2, 3, 4, 5]
    assert history.stopped == "steps"
    stopped = xor().train(TABLE, TARGET, steps=5, solver="lbfgs", record_every=1, callbacks=[lambda p: p.step == 2])
    assert (stopped.stopped, stopped.step) == ("callback", [0, 1, 2])
    assert net.train(TABLE, TARGET, steps=2, solver="lbfgs", record_every=1, resume=history).step == list(range(8))


def test_progress_shows_a_bar_and_which_engine_runs(capsys):
    pytest.importorskip("rich")
    history = xor().train(X, Y, steps=20, progress=True)
    out = capsys.readouterr().out
    assert f"engine {history.engine}: {history.reason}" in " ".join(out.split())
    assert "20/20" in out


def test_a_replay_that_stays_finite_ends():
    """An engine whose sums are nan once only, as a race may make them."""

    class Flaky(Array):
        calls = 0

        def run(self, *args):
            weights, state, totals = super().run(*args)
            Flaky.calls += 1
            return weights, state, totals * np.nan if Flaky.calls == 3 else totals

    with pytest.raises(bp.DivergenceError, match="but not when the steps were taken again") as caught:
        xor().train(X, Y, steps=10**6, engine=Flaky)
    assert caught.value.history.stopped == "diverged"
    assert Flaky.calls < 1000


def test_a_callbacks_rate_is_checked_and_stays_a_plain_number():
    def half(progress):
        progress.rate *= np.float64(0.5)

    net = xor(dtype="float32")
    history = net.train(X, Y, steps=3, record_every=1, callbacks=[half])
    assert {type(rate) for rate in history.rate} == {float}
    assert {W.dtype for W in net.weights} == {np.dtype("float32")}
    with pytest.raises(ValueError, match="`rate` must be a finite number above 0"):
        xor().train(X, Y, steps=3, record_every=1, callbacks=[lambda progress: setattr(progress, "rate", -1)])


def test_a_callback_may_answer_with_numpys_true():
    history = xor().train(X, Y, steps=9, record_every=1, callbacks=[lambda p: np.mean(p.history.error) < 1])
    assert history.stopped == "callback"


def test_resuming_with_another_network_is_refused():
    history = xor().train(X, Y, steps=2)
    with pytest.raises(ValueError, match="`resume` must be of this network's shape"):
        bp.Network([3, 5, 1], seed=1).train(X, Y, steps=2, resume=history)


def test_lbfgs_takes_no_clip():
    with pytest.raises(ValueError, match="`clip` does not go with solver='lbfgs'"):
        xor().train(X, Y, steps=2, solver="lbfgs", clip=1.0)


def test_lbfgs_is_not_called_compiled_on_jax():
    pytest.importorskip("scipy")
    pytest.importorskip("jax")
    assert xor(backend="jax").train(X, Y, steps=2, solver="lbfgs").engine == "array"


def test_weights_that_lbfgs_showed_stay_as_they_were():
    pytest.importorskip("scipy")
    kept = []

    def keep(progress):
        kept.append((progress.network.weights, progress.network.loss(X, Y), progress.history.loss[-1]))

    xor().train(X, Y, steps=5, solver="lbfgs", record_every=1, callbacks=[keep])
    net = xor(dtype="float64")
    for weights, loss, recorded in kept:
        net.weights = weights
        assert net.loss(X, Y) == loss == pytest.approx(recorded)
