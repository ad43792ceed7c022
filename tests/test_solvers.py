"""Solvers: against the formulas, written out once more, and against torch's own."""

from dataclasses import fields, replace

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import solvers
from bpaccel.backends import backend as backend_of_name


def _steps(solver, gradients, rate=0.1, backend="numpy", dtype="float64"):
    where = backend_of_name(backend)
    weights = [where.asarray(np.ones((2, 3)), dtype)]
    state = solver.start(weights)
    for t, g in enumerate(gradients):
        weights, state = solver.step(weights, [where.asarray(-g, dtype)], state, rate, t)
    return where.to_numpy(weights[0])


GRADIENTS = list(np.random.default_rng(0).standard_normal((6, 2, 3)))


@pytest.mark.parametrize(("name", "make"), [
    ("gradient_descent", lambda torch, p: torch.optim.SGD(p, lr=0.1)),
    ("nesterov", lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    ("momentum", lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    ("adamw", lambda torch, p: torch.optim.AdamW(p, lr=0.1)),
    (solvers.AdamW(0.8, 0.95, 0.3, 0.5),
     lambda torch, p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95), eps=0.3, weight_decay=0.5)),
    ("rmsprop", lambda torch, p: torch.optim.RMSprop(p, lr=0.1)),
    (solvers.RMSprop(0.9, 0.2, 0.7), lambda torch, p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=0.2, momentum=0.7)),
], ids=lambda part: "" if callable(part) else str(part))  # fmt: skip
def test_steps_are_torchs(name, make):
    torch = pytest.importorskip("torch")
    p = torch.ones((2, 3), dtype=torch.float64, requires_grad=True)
    optimizer = make(torch, [p])
    for steps, g in enumerate(GRADIENTS, 1):
        p.grad = torch.asarray(g)
        optimizer.step()
        np.testing.assert_allclose(
            _steps(solvers.get(name), GRADIENTS[:steps]), p.detach().numpy(), rtol=1e-13, atol=1e-15
        )


def test_the_decay_of_adamw_is_beside_its_loss():
    """Without gradients the weights shrink by rate times decay alone, where l2 would step by the whole rate."""
    nothing = [np.zeros((2, 3))] * 4
    np.testing.assert_allclose(_steps(solvers.AdamW(weight_decay=0.5), nothing), 0.95**4, rtol=1e-14)


def test_adam_is_the_papers():
    """Kingma & Ba 2014, algorithm 1, with its epsilon beside the corrected root."""
    w, m, v = np.ones((2, 3)), 0.0, 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(_steps(solvers.get("adam"), GRADIENTS), w, rtol=1e-6)


@pytest.mark.parametrize("name", ["gradient_descent", "momentum", "nesterov", "adam"])
def test_steps_are_scikit_learns(name):
    optimizers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    w = [np.ones((2, 3))]
    theirs = {
        "gradient_descent": lambda: optimizers.SGDOptimizer(w, 0.1, momentum=0.0, nesterov=False),
        "momentum": lambda: optimizers.SGDOptimizer(w, 0.1, momentum=0.9, nesterov=False),
        "nesterov": lambda: optimizers.SGDOptimizer(w, 0.1, momentum=0.9, nesterov=True),
        "adam": lambda: optimizers.AdamOptimizer(w, 0.1),
    }[name]()
    for g in GRADIENTS:
        theirs.update_params(w, [g])
    np.testing.assert_allclose(_steps(solvers.get(name), GRADIENTS), w[0], rtol=1e-14)


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_steps_are_the_same_everywhere(name, place):
    for dtype in backend_of_name(place).floats:
        there = _steps(solvers.get(name), GRADIENTS, backend=place, dtype=dtype)
        np.testing.assert_allclose(there, _steps(solvers.get(name), GRADIENTS), rtol=40 * np.finfo(dtype).eps)
        assert there.dtype == dtype


def test_a_solver_says_what_it_is():
    assert str(solvers.Momentum(0.5)) == "momentum(momentum=0.5)"
    assert str(solvers.get("gradient_descent")) == "gradient_descent"
    with pytest.raises(ValueError, match=r"`solver` must be one of gradient_descent.*lbfgs.*got 'sgd'"):
        solvers.get("sgd")


# --- hyperparameters ---


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: solvers.Adam(beta_1=1.0), "`beta_1` must be a number from 0 to below 1; got 1.0."),
    (lambda: solvers.Adam(beta_2=1), "`beta_2` must be a number from 0 to below 1; got 1."),
    (lambda: solvers.AdamW(beta_1=-0.1), "`beta_1` must be a number from 0 to below 1; got -0.1."),
    (lambda: solvers.Adam(epsilon=0), "`epsilon` must be a finite number above 0; got 0."),
    (lambda: solvers.Adam(epsilon=float("inf")), "`epsilon` must be a finite number above 0; got inf."),
    (lambda: solvers.AdamW(weight_decay=-1), "`weight_decay` must be a finite number of at least 0; got -1."),
    (lambda: solvers.AdamW(epsilon=-1e-8), "`epsilon` must be a finite number above 0; got -1e-08."),
    (lambda: solvers.Momentum(1.5), "`momentum` must be a number from 0 to 1; got 1.5."),
    (lambda: solvers.Nesterov(-0.5), "`momentum` must be a number from 0 to 1; got -0.5."),
    (lambda: solvers.RMSprop(alpha=1.5), "`alpha` must be a number from 0 to below 1; got 1.5."),
    (lambda: solvers.RMSprop(momentum=2), "`momentum` must be a number from 0 to 1; got 2."),
    (lambda: replace(solvers.Adam(), beta_2=7), "`beta_2` must be a number from 0 to below 1; got 7."),
])  # fmt: skip
def test_a_hyperparameter_beyond_its_range_is_refused_where_it_is_given(make, sentence):
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value) == sentence


@pytest.mark.parametrize("kind", solvers.SOLVERS.values(), ids=list(solvers.SOLVERS))
def test_every_hyperparameter_is_held_to_a_rule(kind):
    """Whatever a solver is made with: what is no number is refused, with its name and the value."""
    for field in fields(kind):
        for bad in (float("nan"), True, np.True_, "0.5", 0.5j, None, [0.5], np.array(0.5), -1, np.float32("inf")):
            with pytest.raises(ValueError, match=rf"`{field.name}` must be a .*number.*; got ") as raised:
                kind(**{field.name: bad})
            assert str(raised.value).endswith(f"; got {bad!r}.")


def test_the_ends_of_the_ranges_are_allowed():
    """A momentum of 1 is scikit-learn's too: a velocity that forgets nothing."""
    for solver in (solvers.Momentum(0), solvers.Momentum(1), solvers.Nesterov(1.0), solvers.RMSprop(0, 5e-324, 1),
                   solvers.Adam(0, 0.0), solvers.AdamW(weight_decay=0)):  # fmt: skip
        assert np.all(np.isfinite(_steps(solver, GRADIENTS)))


@pytest.mark.parametrize("kind", solvers.SOLVERS.values(), ids=list(solvers.SOLVERS))
def test_numbers_of_numpy_leave_the_weights_their_dtype(kind):
    """They come from grids of searches; a float64 of NumPy's times float32 weights is float64."""
    solver = kind(**{field.name: np.float64(field.default) for field in fields(kind)})
    assert all(type(value) is float for value in vars(solver).values())
    assert solver == kind()
    assert _steps(solver, GRADIENTS, dtype="float32").dtype == np.float32
    rows = np.ones((4, 3), np.float32)
    network = bp.Network([3, 1], seed=1)
    network.train(rows, rows[:, :1], steps=2, solver=solver, engine="array")
    assert network.weights[0].dtype == np.float32
