"""A row of the tables is known by what it is: one of your own that has its name is taken for nothing else.

Activations and losses of one's own, under the names of ours, are trained by every engine that takes them, and the step
is compared with differences of the loss, which is written out here.
"""

import pickle

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import activations, losses
from bpaccel.activations import Activation
from bpaccel.backends import backend as backend_of_name
from bpaccel.engines.choice import ENGINES
from bpaccel.losses import Loss
from bpaccel.objective import Objective
from bpaccel.testing import check_gradients

RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((20, 3))
BITS = (RANDOM.random((20, 1)) < 0.5).astype(float)
NUMBERS = RANDOM.standard_normal((20, 1))
OURS = ["sigmoid", "softmax", "relu"]


def steep(name):
    """Twice as steep as the sigmoid: with the log loss no slope cancels."""
    return Activation(name, lambda z, xp: 0.5 * (xp.tanh(z) + 1.0), lambda a, xp: 2.0 * a * (1.0 - a))


def biquadratic(name):
    """The fourth power of the error."""
    return Loss(name, lambda y, l, xp: 0.25 * (y - l) ** 4, lambda y, l, xp: (y - l) ** 3)


def log_loss(y, l):
    return -(y * np.log(l) + (1.0 - y) * np.log(1.0 - l)).sum()


def differences(network, rows, wanted, value):
    """The gradient by each weight of a network 3-4-1 with a bias, by central differences in NumPy."""
    weights = [W.copy() for W in network.weights]

    def at():
        l = rows
        for W, f in zip(weights, network.activations):
            l = f.function(l @ W[:-1] + W[-1], np)
        return value(wanted, l)

    gradients = [np.empty_like(W) for W in weights]
    for W, gradient in zip(weights, gradients):
        for place in np.ndindex(W.shape):
            kept, ends = W[place], []
            for h in (1e-5, -1e-5):
                W[place] = kept + h
                ends.append(at())
            W[place], gradient[place] = kept, (ends[0] - ends[1]) / 2e-5
    return gradients


def check_one_step(make, y, value, backend, without=()):
    """One step of the sum's gradient, by each engine that takes the network; returns the engines that did."""
    where = backend_of_name(backend)
    wanted, taken, rate = differences(make(), X, y, value), set(), 0.5
    for engine in sorted(ENGINES.keys() - set(without)):
        network = make()
        before = [W.copy() for W in network.weights]
        try:
            network.train(where.asarray(X, "float64"), where.asarray(y, "float64"), steps=1, learning_rate=rate,
                          reduction="sum", engine=engine)  # fmt: skip
        except ImportError:
            continue
        except ValueError as error:
            if f"engine '{engine}' cannot do this" not in str(error):
                raise
            continue
        taken.add(engine)
        for W, was, gradient in zip(network.weights, before, wanted):
            np.testing.assert_allclose((was - where.to_numpy(W)) / rate, gradient, rtol=1e-6, atol=1e-8, err_msg=engine)
    return taken


@pytest.mark.parametrize("name", [*OURS, "mine"])
def test_an_output_of_ones_own_takes_no_short_cut(name, backend):
    """The log loss cancels our sigmoid's slope, and our softmax's: not those of a function that has their name."""

    def make():
        return bp.Network([3, 4, 1], activation=["tanh", steep(name)], loss="log_loss", bias=True, seed=1)

    taken = check_one_step(make, BITS, log_loss, backend, without=() if name == "sigmoid" else ("jit",))
    assert {"array", "blocked"} <= taken
    assert not taken & {"fused", "cuda", "wide"}  # whose formulas are ours


@pytest.mark.parametrize("name", OURS)
def test_a_hidden_layer_of_ones_own_is_computed_as_it_is(name, backend):
    def make():
        return bp.Network([3, 4, 1], activation=[steep(name), "sigmoid"], loss="log_loss", bias=True, seed=1)

    taken = check_one_step(make, BITS, log_loss, backend, without=("jit",))
    assert not taken & {"fused", "cuda", "wide"}


@pytest.mark.parametrize("name", ["squared_error", "log_loss", "poisson", "huber:0.5", "custom"])
def test_a_loss_of_ones_own_is_computed_as_it_is(name, backend):
    def make():
        return bp.Network([3, 4, 1], activation=["tanh", "sigmoid"], loss=biquadratic(name), bias=True, seed=1)

    def value(y, l):
        return 0.25 * ((y - l) ** 4).sum()

    taken = check_one_step(make, NUMBERS, value, backend, without=() if name == "squared_error" else ("jit",))
    assert {"array", "blocked"} <= taken
    assert not taken & {"fused", "cuda", "wide"}


@pytest.mark.parametrize("name", OURS)
def test_gradients_and_predictions_are_of_the_row(name):
    network = bp.Network([3, 4, 1], activation=["tanh", steep(name)], loss="log_loss", bias=True, seed=1)
    check_gradients(network, X, BITS)
    W, V = network.weights
    sums = np.tanh(X @ W[:-1] + W[-1]) @ V[:-1] + V[-1]
    np.testing.assert_allclose(network.predict(X), 1 / (1 + np.exp(-2 * sums)), rtol=1e-12)


def test_dropout_changes_hidden_layers_and_hands_the_output_on_as_it_is():
    """What silences units has the name of the activation it silences, and must stand where no slope cancels."""
    from bpaccel.dropout import Dropout

    ours = activations.get("sigmoid")
    first, last = Dropout(0.5, 1).activations((ours, ours), (3, 4, 1), backend_of_name("numpy"), "float64", 0, 0, 5)
    assert last is ours
    assert first not in losses.get("log_loss", ours).cancels


def test_engines_of_compiled_formulas_refuse_every_row_that_is_not_theirs(monkeypatch):
    """Also where a GPU is: the name of a row does not reach the kernel's source."""
    from bpaccel.data import Rows
    from bpaccel.engines.cuda import Cuda
    from bpaccel.engines.kernels import Kernels
    from bpaccel.engines.wide import Wide

    monkeypatch.setattr(Kernels, "out_of_reach", classmethod(lambda cls, backend: None))
    rows = Rows(X, BITS, backend=backend_of_name("numpy"), dtype="float64")
    sigmoid, softmax = map(activations.get, ("sigmoid", "softmax"))
    for engine in (Cuda, Wide):
        right = Objective((3, 1), (sigmoid,), losses.get("log_loss", sigmoid))
        assert engine.refuses(right, rows, None) is None
        for f, loss in ((steep("sigmoid"), "log_loss"), (sigmoid, biquadratic("squared_error")),
                        (steep("softmax"), "log_loss"), (sigmoid, biquadratic("huber:0.5"))):  # fmt: skip
            wrong = Objective((3, 1), (f,), losses.get(loss, f))
            assert "of your own" in engine.refuses(wrong, rows, None)
    for f, loss, cancels in ((sigmoid, "log_loss", 1), (softmax, "categorical", 1)):
        options = Cuda.options(Objective((3, 2), (f,), losses.get("log_loss", f)), "float64", weighted=0, vector=0)
        assert {f"-DLOSS=loss::{loss}", f"-DCANCELS={cancels}"} <= set(options)
    objective = Objective((3, 2), (sigmoid,), losses.get("huber:0.5", sigmoid))
    assert {"-DLOSS=loss::huber", "-DLOSS_NUMBER=0.5", "-DCANCELS=0"} <= set(
        Cuda.options(objective, "float64", weighted=0, vector=0)
    )


@pytest.mark.parametrize("words", [
    *({"activation": ["tanh", steep(name)], "loss": "log_loss"} for name in OURS),
    {"activation": [steep("tanh"), "identity"]},
    *({"activation": "sigmoid", "loss": biquadratic(name)} for name in ("squared_error", "log_loss", "huber:0.5")),
])  # fmt: skip
def test_what_is_ones_own_is_not_saved_under_the_name_of_ours(words, tmp_path):
    network = bp.Network([3, 4, 1], seed=1, **words)
    with pytest.raises(ValueError, match="of your own cannot be saved"):
        network.save(tmp_path / "net.bp")
    assert not list(tmp_path.iterdir())


# --- which loss goes with which output ---


def test_losses_hold_rows_and_take_names():
    """In a row that names ours, the names become rows; the output may be given by name too."""
    for loss in (*losses.LOSSES.values(), losses.get("log_loss", "softmax")):
        assert all(isinstance(f, Activation) for f in (*loss.cancels, *(loss.outputs or ())))
    mine = Loss("mine", lambda y, l, xp: y - l, lambda y, l, xp: y - l, ("exp",), ["exp", steep("sigmoid")])
    assert mine.cancels == (activations.get("exp"),)
    assert losses.get(mine, "exp") is losses.get(mine, activations.get("exp")) is mine
    with pytest.raises(ValueError, match="`activation` must be one of sigmoid"):
        Loss("mine", lambda y, l, xp: y - l, lambda y, l, xp: y - l, ("expp",))
    with pytest.raises(ValueError, match="`loss` 'mine' needs an output activation of exp or sigmoid; got 'relu'"):
        losses.get(mine, "relu")
    with pytest.raises(ValueError, match="`loss` 'mine' needs an output activation of exp or sigmoid; got 'sigmoid'"):
        losses.get(mine, "sigmoid")  # ours, where another of that name was wanted


def test_a_loss_of_ones_own_may_cancel_an_activation_of_ones_own():
    """The log loss over the steep sigmoid: half of it has the delta y - l, by the row and not by its name."""
    f = steep("steep")
    half = Loss("half", lambda y, l, xp: -0.5 * (y * xp.log(l) + (1 - y) * xp.log(1 - l)),
                lambda y, l, xp: 0.5 * (y - l) / (l * (1 - l)), (f,))  # fmt: skip
    short = bp.Network([3, 4, 1], activation=["tanh", f], loss=half, seed=1)
    check_gradients(short, X, BITS)
    long = bp.Network([3, 4, 1], activation=["tanh", steep("steep")], loss=half, seed=1)
    for a, b in zip(short.gradients(X, BITS), long.gradients(X, BITS)):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_an_output_without_a_slope_needs_a_loss_that_cancels_it():
    """It was a TypeError of the first step."""
    for name in ("softmax", "mine"):
        f = Activation(name, activations.get("softmax").function, None)
        for loss in ("log_loss", "squared_error"):
            with pytest.raises(ValueError, match=f"the output activation {name} has no slope.*got '{loss}'"):
                bp.Network([3, 2], activation=f, loss=loss)
        entropy = losses.get("log_loss", "softmax")
        mine = Loss("mine", entropy.value, entropy.error, (f,))
        check_gradients(bp.Network([3, 2], activation=f, loss=mine, seed=1), X, np.hstack([BITS, 1 - BITS]))


@pytest.mark.parametrize("words", [
    ("log_loss", "sigmoid"), ("log_loss", "softmax"), ("poisson", "exp"), ("squared_error",), ("huber:0.3",),
], ids=str)  # fmt: skip
def test_rows_of_ours_are_themselves_after_a_pickle(words):
    row = losses.get(*words)
    again, output = pickle.loads(pickle.dumps((row, activations.get(words[-1] if len(words) > 1 else "tanh"))))
    assert again is row
    assert losses.shipped(row)
    assert output in activations.ACTIVATIONS.values()


def test_a_family_of_ones_own_is_not_taken_for_ours(monkeypatch):
    """Neither while it stands in the table, nor the row that it made, when ours is back."""
    ours = losses.get("huber:0.125")

    def make(d):
        return biquadratic(f"huber:{d:g}")

    with monkeypatch.context() as patched:
        patched.setitem(losses.FAMILIES, "huber", (make, 1.0, 0.0, np.inf))
        other = losses.get("huber:0.125")
        assert other is not ours
        assert not losses.shipped(other)
    assert losses.get("huber:0.125") is ours
    assert losses.shipped(ours)
    assert not losses.shipped(other)


# --- printed formulas and estimators ---


def test_printed_formulas_name_ours_alone():
    """A short cut for an activation of one's own would be printed for ours of that name."""
    from bpaccel.formulas import rows

    def text(*words):
        return rows.loss(Loss("mine", lambda y, l, xp: y - l, lambda y, l, xp: y - l, *words))

    assert "bool cancels = same<F, activation::sigmoid>;" in text(("sigmoid",), ("sigmoid",))
    assert "bool cancels = false;" in text((steep("sigmoid"),), ("sigmoid",))
    assert "bool goes_with = same<F, activation::exp>;" in text((), (steep("sigmoid"), "exp"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # it has not converged
def test_estimators_take_rows_for_what_they_are():
    """The loss of several outputs is reported for each where it is our squared error, and not another of its name."""
    neural = pytest.importorskip("bpaccel.estimators")
    words = {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0}
    both = np.hstack([NUMBERS, X[:, :1]])
    named, other = (
        neural.MLPRegressor(loss=biquadratic(name), activation=steep(relu), **words).fit(X, both)
        for name, relu in (("squared_error", "relu"), ("mine", "mine"))
    )
    assert named.loss_curve_ == other.loss_curve_
    np.testing.assert_array_equal(named.predict(X), other.predict(X))
