"""Solvers: what is done with the updates.

A solver is a frozen set of hyperparameters and two pure functions, `start` and `step`; its state is a tuple of
weight-shaped lists. Updates are *minus* the gradient, so a solver adds them. Adding one is a class and a row of
`SOLVERS`.
"""

from dataclasses import dataclass, fields

from bpaccel.backends import namespace
from bpaccel.checks import fraction, not_negative, positive, share
from bpaccel.core import apply_updates


def _zeros(weights):
    return [namespace(W).zeros_like(W) for W in weights]


def _mean_squares(squares, updates, share):
    """Running means of the squares of the updates, which keep ``share`` of themselves."""
    return [share * s + (1.0 - share) * (u * u) for s, u in zip(squares, updates)]


@dataclass(frozen=True, eq=False, repr=False)
class Solver:
    """The contract: `start` makes a state for weights, `step` returns new weights and a new state.

    ``step(weights, updates, state, rate, t)`` takes the updates of step ``t`` (counted from 0), all of the weights'
    own shapes, dtype and device, and changes nothing in place.
    """

    def start(self, weights):
        return ()

    def _hold(self, **rules):
        """Hold hyperparameters to rules of `bpaccel.checks`. They become Python's floats, for a float64 of NumPy's
        would make float64 of float32 weights."""
        for name, rule in rules.items():
            object.__setattr__(self, name, rule(name, getattr(self, name)))

    # Written once: for each class anew, as a dataclass does, they take as long to make as the rest of this module.
    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self):
        return hash((type(self), *vars(self).items()))

    def __repr__(self):
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __str__(self):
        values = ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{_name(self)}({values})" if values else _name(self)


@dataclass(frozen=True, eq=False, repr=False)
class GradientDescent(Solver):
    """The tutorial's ``syn += rate * update``."""

    def step(self, weights, updates, state, rate, t):
        return apply_updates(weights, updates, rate), state


@dataclass(frozen=True, eq=False, repr=False)
class Momentum(Solver):
    """A velocity that keeps a share ``momentum`` of itself (Polyak 1964)."""

    momentum: float = 0.9

    def __post_init__(self):
        self._hold(momentum=fraction)

    def step(self, weights, updates, state, rate, t):
        (velocities,) = state
        velocities = [self.momentum * v + rate * u for v, u in zip(velocities, updates)]
        return apply_updates(weights, velocities, 1.0), (velocities,)

    def start(self, weights):
        return (_zeros(weights),)


@dataclass(frozen=True, eq=False, repr=False)
class Nesterov(Momentum):
    """Momentum that looks one step ahead (Sutskever et al. 2013, as scikit-learn and torch write it)."""

    def step(self, weights, updates, state, rate, t):
        _, (velocities,) = super().step(weights, updates, state, rate, t)
        ahead = [self.momentum * v + rate * u for v, u in zip(velocities, updates)]
        return apply_updates(weights, ahead, 1.0), (velocities,)


@dataclass(frozen=True, eq=False, repr=False)
class Adam(Solver):
    """Steps scaled by running means of the updates and of their squares (Kingma & Ba 2014, algorithm 1, in the more
    efficient order of its section 2)."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        self._hold(beta_1=share, beta_2=share, epsilon=positive)

    def start(self, weights):
        return (_zeros(weights), _zeros(weights))

    def step(self, weights, updates, state, rate, t):
        means, squares = self._running_means(updates, state)
        rate = rate * (1.0 - self.beta_2 ** (t + 1)) ** 0.5 / (1.0 - self.beta_1 ** (t + 1))
        scaled = [m / (namespace(s).sqrt(s) + self.epsilon) for m, s in zip(means, squares)]
        return apply_updates(weights, scaled, rate), (means, squares)

    def _running_means(self, updates, state):
        means, squares = state
        means = [self.beta_1 * m + (1.0 - self.beta_1) * u for m, u in zip(means, updates)]
        return means, _mean_squares(squares, updates, self.beta_2)


@dataclass(frozen=True, eq=False, repr=False)
class AdamW(Adam):
    """Adam beside which the weights decay by themselves: each step first multiplies them by
    ``1 - rate * weight_decay`` (Loshchilov & Hutter 2019, algorithm 2, as torch writes it).

    Unlike the objective's ``l2`` the decay is no part of the loss, and is not scaled by the running means. All weights
    decay, the bias too, as in torch and optax where nothing else is asked for. As in the paper, ``epsilon`` is added to
    the *corrected* root of the squares; Adam adds it to the root itself.
    """

    weight_decay: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        self._hold(weight_decay=not_negative)

    def step(self, weights, updates, state, rate, t):
        means, squares = self._running_means(updates, state)
        correction = (1.0 - self.beta_2 ** (t + 1)) ** 0.5
        scaled = [m / (namespace(s).sqrt(s) / correction + self.epsilon) for m, s in zip(means, squares)]
        decayed = [W * (1.0 - rate * self.weight_decay) for W in weights]
        return apply_updates(decayed, scaled, rate / (1.0 - self.beta_1 ** (t + 1))), (means, squares)


@dataclass(frozen=True, eq=False, repr=False)
class RMSprop(Solver):
    """Updates divided by the root of the running mean of their squares (Hinton 2012, lecture 6e), and a velocity of
    them that keeps a share ``momentum`` of itself; as torch writes it."""

    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self):
        self._hold(alpha=share, epsilon=positive, momentum=fraction)

    def start(self, weights):
        return (_zeros(weights), _zeros(weights))

    def step(self, weights, updates, state, rate, t):
        squares, velocities = state
        squares = _mean_squares(squares, updates, self.alpha)
        scaled = [u / (namespace(s).sqrt(s) + self.epsilon) for u, s in zip(updates, squares)]
        velocities = [self.momentum * v + u for v, u in zip(velocities, scaled)]
        return apply_updates(weights, velocities, rate), (squares, velocities)


SOLVERS = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
}


def described(solver):
    """A text that tells a solver from all others, with its hyperparameters: for files."""
    if isinstance(solver, Solver) and type(solver) not in SOLVERS.values():
        return f"{type(solver).__module__}.{solver!r}"
    return str(solver)


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
