"""Solvers: what is done with the updates.

A solver is a frozen set of hyperparameters and two pure functions, `start` and `step`; its state is a tuple of
weight-shaped lists. Updates are *minus* the gradient, so a solver adds them. Adding one is a class and a row of
`SOLVERS`.
"""

from dataclasses import dataclass, fields

from bpaccel.backends import namespace
from bpaccel.core import apply_updates


def _zeros(weights):
    return [namespace(W).zeros_like(W) for W in weights]


@dataclass(frozen=True)
class Solver:
    """The contract: `start` makes a state for weights, `step` returns new weights and a new state.

    ``step(weights, updates, state, rate, t)`` takes the updates of step ``t`` (counted from 0), all of the weights'
    own shapes, dtype and device, and changes nothing in place.
    """

    def start(self, weights):
        return ()

    def __str__(self):
        values = ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{_name(self)}({values})" if values else _name(self)


@dataclass(frozen=True)
class GradientDescent(Solver):
    """The tutorial's ``syn += rate * update``."""

    def step(self, weights, updates, state, rate, t):
        return apply_updates(weights, updates, rate), state


@dataclass(frozen=True)
class Momentum(Solver):
    """A velocity that keeps a share ``momentum`` of itself (Polyak 1964)."""

    momentum: float = 0.9

    def step(self, weights, updates, state, rate, t):
        (velocities,) = state
        velocities = [self.momentum * v + rate * u for v, u in zip(velocities, updates)]
        return apply_updates(weights, velocities, 1.0), (velocities,)

    def start(self, weights):
        return (_zeros(weights),)


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Momentum that looks one step ahead (Sutskever et al. 2013, as scikit-learn and torch write it)."""

    def step(self, weights, updates, state, rate, t):
        _, (velocities,) = super().step(weights, updates, state, rate, t)
        ahead = [self.momentum * v + rate * u for v, u in zip(velocities, updates)]
        return apply_updates(weights, ahead, 1.0), (velocities,)


@dataclass(frozen=True)
class Adam(Solver):
    """Steps scaled by running means of the updates and of their squares (Kingma & Ba 2014, algorithm 1, in the more
    efficient order of its section 2)."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def start(self, weights):
        return (_zeros(weights), _zeros(weights))

    def step(self, weights, updates, state, rate, t):
        means, squares = state
        means = [self.beta_1 * m + (1.0 - self.beta_1) * u for m, u in zip(means, updates)]
        squares = [self.beta_2 * s + (1.0 - self.beta_2) * (u * u) for s, u in zip(squares, updates)]
        rate = rate * (1.0 - self.beta_2 ** (t + 1)) ** 0.5 / (1.0 - self.beta_1 ** (t + 1))
        scaled = [m / (namespace(s).sqrt(s) + self.epsilon) for m, s in zip(means, squares)]
        return apply_updates(weights, scaled, rate), (means, squares)


SOLVERS = {"gradient_descent": GradientDescent, "momentum": Momentum, "nesterov": Nesterov, "adam": Adam}


def _name(solver):
    return next((name for name, kind in SOLVERS.items() if type(solver) is kind), type(solver).__name__)


def get(solver):
    """The solver of a name, with its default hyperparameters; a `Solver` is returned as it is.

    Raises
    ------
    ValueError
        If there is no such solver.
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    raise ValueError(f"`solver` must be one of {', '.join([*SOLVERS, 'lbfgs'])}, or a Solver; got {solver!r}.")
