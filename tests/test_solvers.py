"""Solvers: against the formulas, written out once more, and against torch's own."""

import numpy as np
import pytest

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
