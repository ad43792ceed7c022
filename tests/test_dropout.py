"""Dropout: who is silent, the gradient of what is left, and that no cut, engine or library changes it."""

import math

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import activations, engines, testing
from bpaccel.backends import backend as backend_of_name
from bpaccel.dropout import Dropout
from bpaccel.engines import choice
from bpaccel.training import descent

RANDOM = np.random.default_rng(0)
TABLE, TARGET = RANDOM.random((300, 3)), RANDOM.random(300)


def trained(steps=30, resume=None, net=None, **options):
    net = net or bp.Network([3, 8, 8, 1], seed=1, bias=True, dtype="float64", backend=options.pop("backend", None))
    options = {"dropout": 0.3, "learning_rate": 0.2, "seed": 5, "batch_size": 70, "record_every": 100, **options}
    return net, net.train(TABLE, TARGET, steps=steps, resume=resume, **options)


def weights(*arguments, **options):
    net, _ = trained(*arguments, **options)
    return np.concatenate([np.asarray(bp.backend("numpy").asarray(W)).ravel() for W in net.to("numpy").weights])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_a_share_of_the_units_is_silent_and_the_sum_stays_in_expectation(rate):
    n, units = 2000, 53
    speaking = Dropout(rate, 3).speaking(units, 7, 0, n)
    assert speaking.shape == (n, units)
    spread = math.sqrt(rate * (1 - rate))
    assert abs(speaking.mean() - (1 - rate)) <= 5 * spread / math.sqrt(n * units)
    assert np.all(np.abs(speaking.mean(axis=0) - (1 - rate)) <= 5 * spread / math.sqrt(n))
    f = Dropout(rate, 3).activations(activations_of("identity", "identity"), (2, units, 1), backend_of_name("numpy"),
                                     "float64", 7, 0, n)[0]  # fmt: skip
    np.testing.assert_allclose(f.function(np.ones((n, units)), np), speaking / (1 - rate))


def activations_of(*names):
    return tuple(map(activations.get, names))


def test_who_is_silent_depends_on_seed_step_and_row_alone():
    def drawn(seed, step, first, n):
        return Dropout(0.5, seed).speaking(13, step, first, n)

    whole = drawn(1, 2, 0, 100)
    np.testing.assert_array_equal(np.vstack([drawn(1, 2, at, 25) for at in range(0, 100, 25)]), whole)
    for other in (drawn(2, 2, 0, 100), drawn(1, 3, 0, 100), drawn(1, 2, 100, 100)):
        assert 0.4 < (other == whole).mean() < 0.6
    # Philox's raw numbers are the same in every version of NumPy; so are the masks.
    assert "".join(str(int(s)) for s in drawn(7, 0, 0, 2).ravel()) == GOLDEN


GOLDEN = "01100010000110011110100111"


@pytest.mark.parametrize("engine", ["array", "blocked"])
def test_the_engines_that_know_it_are_right_on_every_backend(engine, place):
    for dtype in backend_of_name(place).floats:
        testing.check_dropout(engine, dtype, place)


@pytest.mark.parametrize("name", sorted(set(activations.ACTIVATIONS) - {"softmax"}))
def test_the_updates_are_minus_the_gradient_of_what_is_left(name):
    case = testing.Case((3, 5, 4, 1), (name, name, "identity"), "squared_error", "float64", bias=True, n=12)
    weights, rows = testing._rows(case, backend_of_name("numpy"))
    runner = choice.find("array")(case.objective(dropout=Dropout(0.4, 1)), rows)
    updates = runner.dropped_sums(weights, None, 0, 12, 3).updates
    random, h = np.random.default_rng(0), 1e-6
    for _ in range(3):
        along = [random.standard_normal(W.shape) for W in weights]
        at = [runner.dropped_sums([W + s * d for W, d in zip(weights, along)], None, 0, 12, 3).totals[1]
              for s in (h, -h)]  # fmt: skip
        slope = sum((u * d).sum() for u, d in zip(updates, along))
        assert (at[0] - at[1]) / (2 * h) == pytest.approx(-slope, rel=1e-6, abs=1e-6)


def test_no_cut_resume_threads_or_engine_changes_the_training(monkeypatch):
    want = weights()
    assert not np.allclose(want, weights(dropout=0.0))
    assert not np.allclose(want, weights(seed=6))
    np.testing.assert_array_equal(want, weights(record_every=1))
    net, history = trained(13)
    net, history = trained(4, history, net)
    trained(13, history, net)
    np.testing.assert_array_equal(want, np.concatenate([W.ravel() for W in net.weights]))
    monkeypatch.setattr(descent, "SLICE_SECONDS", 0.0)
    np.testing.assert_array_equal(want, weights(record_every=100))
    np.testing.assert_allclose(want, weights(engine="blocked"), rtol=1e-12)
    monkeypatch.setattr(choice.find("blocked"), "rows_of_a_block", classmethod(lambda *_: 16))
    cut = weights(engine="blocked", threads=1)
    np.testing.assert_allclose(want, cut, rtol=1e-9)
    np.testing.assert_array_equal(cut, weights(engine="blocked", threads=3))


def test_every_library_silences_the_same(backend):
    np.testing.assert_allclose(weights(backend=backend), weights(), rtol=1e-9)


def test_predictions_silence_no_unit():
    net, history = trained(record_every=1)
    np.testing.assert_array_equal(net.predict(TABLE), net.predict(TABLE))
    np.testing.assert_allclose(net.predict(TABLE), net.layers(TABLE)[-1])
    assert history.engine in ("fused", "array")
    whole, dropped = bp.Network([3, 50, 1], seed=1), bp.Network([3, 50, 1], seed=1)
    without, with_it = (n.train(TABLE, TARGET, steps=1, dropout=d).loss[0] for n, d in ((whole, 0.0), (dropped, 0.5)))
    assert without == pytest.approx(bp.Network([3, 50, 1], seed=1).loss(TABLE, TARGET))
    assert with_it != pytest.approx(without, rel=1e-3)


def test_jit_refuses_it_and_auto_takes_another():
    pytest.importorskip("jax")
    with pytest.raises(ValueError, match="engine 'jit' cannot do this: it knows no dropout. Use engine='blocked'"):
        trained(engine="jit", backend="jax")
    assert trained(10, backend="jax")[1].engine == "array"


def test_auto_without_kernels_takes_blocks(monkeypatch):
    monkeypatch.setenv("BPACCEL_LEVEL", "none")
    rows = testing._rows(
        testing.Case((3, 4, 1), ("tanh",) * 2, "squared_error", "float32", n=9), backend_of_name("numpy")
    )
    objective = testing.Case((3, 4, 1), ("tanh",) * 2, "squared_error", "float32").objective(dropout=Dropout(0.1, 1))
    chosen, _ = choice.choose("auto", objective, rows[1], None, batch_rows=10**6, steps=10**6)
    assert chosen.name == "blocked"


def test_an_engine_of_ones_own_that_does_not_know_it_refuses():
    class Own(engines.Engine):
        name = "own"

        @classmethod
        def rows_of_a_block(cls, objective, rows):
            return rows.n

        def block(self, weights, X, y, w):
            raise AssertionError

    with pytest.raises(ValueError, match="engine 'own' cannot do this: it knows no dropout"):
        trained(engine=Own)


@pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan"), "half", None])
def test_the_rate_is_checked(bad):
    with pytest.raises(ValueError, match="`dropout` must be a number from 0 to below 1; got"):
        trained(dropout=bad)


def test_lbfgs_takes_none():
    with pytest.raises(ValueError, match="`dropout` does not go with solver='lbfgs'"):
        trained(solver="lbfgs", batch_size=None)
