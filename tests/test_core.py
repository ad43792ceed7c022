"""The lesson, against the tutorial's own lines, and on every array library."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpaccel import activations, core, losses
from bpaccel import testing as conformance
from bpaccel.backends import backend as backend_of_name
from bpaccel.network import Network

X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1.0]])
Y = np.array([[0.0], [1], [1], [0]])


def nonlin(x, deriv=False):
    return x * (1 - x) if deriv else 1 / (1 + np.exp(-x))


def test_a_step_is_the_tutorials():
    np.random.seed(1)
    syn0, syn1 = 2 * np.random.random((3, 4)) - 1, 2 * np.random.random((4, 1)) - 1
    weights = core.init_weights([3, 4, 1], seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(weights, [syn0, syn1]))

    l1 = nonlin(X @ syn0)
    l2 = nonlin(l1 @ syn1)
    l2_delta = (Y - l2) * nonlin(l2, True)
    l1_delta = l2_delta.dot(syn1.T) * nonlin(l1, True)
    names = ["sigmoid", "sigmoid"]
    layers = core.forward(weights, X, names)
    deltas = core.backward(weights, layers, Y, names)
    updates = core.batch_updates(layers, deltas)
    weights = core.apply_updates(weights, updates, 1.0)
    for got, want in zip([*layers[1:], *deltas], [l1, l2, l1_delta, l2_delta]):
        np.testing.assert_allclose(got, want, rtol=1e-14)
    np.testing.assert_allclose(weights[1], syn1 + l1.T.dot(l2_delta), rtol=1e-14)
    np.testing.assert_allclose(weights[0], syn0 + X.T.dot(l1_delta), rtol=1e-14)


def test_the_lesson_stays_short():
    assert len(inspect.getsource(core).splitlines()) <= 160


def test_the_bias_is_the_last_row():
    """A bias is the weight of an input that is always 1."""
    random = np.random.default_rng(0)
    with_bias = [random.standard_normal((4, 4)), random.standard_normal((5, 2))]
    ones = np.ones((4, 1))
    names, y = ["tanh", "identity"], random.standard_normal((4, 2))
    layers = core.forward(with_bias, X, names)
    l1 = np.tanh(np.hstack([X, ones]) @ with_bias[0])
    np.testing.assert_allclose(layers[-1], np.hstack([l1, ones]) @ with_bias[1], rtol=1e-14)
    deltas = core.backward(with_bias, layers, y, names)
    updates = core.batch_updates(layers, deltas, bias=True)
    np.testing.assert_allclose(updates[1], np.hstack([l1, ones]).T @ deltas[1], rtol=1e-13, atol=1e-14)
    assert [u.shape for u in updates] == [W.shape for W in with_bias]


@pytest.mark.parametrize("init", core.INITS)
def test_one_seed_gives_the_same_weights_everywhere(init, place):
    drawn = core.init_weights([3, 5, 2], init, seed=7, bias=True)
    net = Network([3, 5, 2], init=init, seed=7, bias=True, backend=place)
    for W, N in zip(drawn, net.weights):
        here = backend_of_name(place).to_numpy(N)
        assert np.array_equal(here, W.astype(here.dtype))
        assert W.dtype == np.float64


def test_glorot_is_scikit_learns_draw():
    sklearn = pytest.importorskip("sklearn.neural_network")
    theirs = sklearn.MLPRegressor(hidden_layer_sizes=(4,), activation="tanh", random_state=3, solver="sgd",
                                  learning_rate_init=1e-30)  # fmt: skip
    theirs.partial_fit(X, Y.ravel())
    ours = core.init_weights([3, 4, 1], "glorot", seed=3, bias=True)
    for W, coefs, intercepts in zip(ours, theirs.coefs_, theirs.intercepts_):
        assert np.array_equal(W[:-1], coefs)
        assert np.array_equal(W[-1], intercepts)


def test_nothing_is_changed_in_place():
    weights = core.init_weights([3, 4, 1], seed=1)
    before = [W.copy() for W in weights]
    names = ["sigmoid", "sigmoid"]
    layers = core.forward(weights, X, names)
    kept = [l.copy() for l in layers]
    deltas = core.backward(weights, layers, Y, names)
    core.apply_updates(weights, core.batch_updates(layers, deltas), 1.0)
    assert all(np.array_equal(a, b) for a, b in zip(weights + layers, before + kept))


OUTPUTS = {"log_loss": ["sigmoid", "softmax"], "poisson": ["exp", "softplus"]}
HIDDEN = [name for name, f in activations.ACTIVATIONS.items() if f.slope is not None]
PAIRS = [
    (f, loss, out) for f in HIDDEN for loss in [*losses.LOSSES, *losses.FAMILIES] for out in OUTPUTS.get(loss, [f])
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("activation", "loss", "output"), PAIRS)
def test_gradients_are_the_losses_own(activation, loss, output, bias):
    """The gradient check, along random directions, for nets of two to four layers."""
    random = np.random.default_rng(3)
    for hidden in ([], [4], [4, 3]):
        net = Network([3, *hidden, 2], activation=[*[activation] * len(hidden), output], loss=loss, bias=bias, seed=5,
                      init="glorot")  # fmt: skip
        X = random.standard_normal((6, 3))
        y = np.eye(2)[random.integers(0, 2, 6)] if loss in OUTPUTS else random.standard_normal((6, 2))
        conformance.check_gradients(net, X, y, sample_weight=random.random(6), seed=1)


@given(
    n=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    dtype=st.sampled_from(["float32", "float64"]),
    layout=st.sampled_from(["C", "F", "strided"]),
    bias=st.booleans(),
    weighted=st.booleans(),
    engine=st.sampled_from(["array", "blocked"]),
)
def test_any_shape_dtype_and_layout(n, sizes, dtype, layout, bias, weighted, engine):
    names = ("sigmoid",) * (len(sizes) - 1)
    case = conformance.Case(tuple(sizes), names, "squared_error", dtype, bias, weighted, n, layout)
    conformance.check_case(engine, case)
