"""Activations: what a layer makes of its sums, and how steep that function is.

Every slope is computed from the *output*, the tutorial's own trick: for the sigmoid ``a * (1 - a)``, with no second
exponential. Adding an activation is one row of `ACTIVATIONS`: a function of the sums ``z`` and a slope from the
outputs ``a``, both of shape (N, O), written with the Array API namespace ``xp``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True, eq=False)
class Activation:
    """A row of the table.

    Attributes
    ----------
    name : str
    function : callable
        ``(z, xp) -> a``: outputs of shape (N, O) from sums of shape (N, O).
    slope : callable or None
        ``(a, xp) -> da/dz``, from the outputs; None where no element-wise slope exists (softmax), so that the
        activation can only stand at the output, with a loss that cancels it.
    tuned, tuned_slope : str or None
        Functions of native/formulas.hpp that compiled engines take instead of `function` and `slope`: the same within
        a few units in the last place, in fewer instructions.
    """

    name: str
    function: Callable[[Array, Any], Array]
    slope: Callable[[Array, Any], Array] | None
    tuned: str | None = None
    tuned_slope: str | None = None

    def __reduce__(self):  # rows of ours are pickled by name: their functions have none
        return (get, (self.name,)) if ACTIVATIONS.get(self.name) is self else super().__reduce__()


# 1 / (1 + exp(-z)), computed from exp(-|z|): no overflow, and within 1 eps far into the left tail.
def _sigmoid(z, xp):
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1.0, e) / (1.0 + e)


def _softmax(z, xp):
    e = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    return e / xp.sum(e, axis=1, keepdims=True)


# log(1 + exp(z)) without overflow.
def _softplus(z, xp):
    return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))


ACTIVATIONS = {
    row.name: row
    for row in (
        Activation("sigmoid", _sigmoid, lambda a, xp: a * (1.0 - a), "logistic_of_powers", "logistic_slope"),
        Activation("tanh", lambda z, xp: xp.tanh(z), lambda a, xp: 1.0 - a * a),
        Activation("relu", lambda z, xp: xp.maximum(z, 0.0), lambda a, xp: xp.where(a > 0, xp.ones_like(a), 0.0)),
        Activation("identity", lambda z, xp: z, lambda a, xp: xp.ones_like(a)),
        Activation("softmax", _softmax, None),
        Activation("leaky_relu", lambda z, xp: xp.where(z > 0, z, 0.01 * z),
                   lambda a, xp: xp.where(a > 0, xp.ones_like(a), 0.01)),
        Activation("elu", lambda z, xp: xp.where(z > 0, z, xp.expm1(-xp.abs(z))),
                   lambda a, xp: xp.where(a > 0, 1.0, a + 1.0)),
        Activation("softplus", _softplus, lambda a, xp: -xp.expm1(-a)),
        Activation("exp", lambda z, xp: xp.exp(z), lambda a, xp: a),
    )
}  # fmt: skip

_SHIPPED = frozenset(ACTIVATIONS.values())


def shipped(row):
    """Whether a row stands in this file, so that compiled kernels were built with it: the row, not its name."""
    return row in _SHIPPED


def get(activation):
    """The row of a name; a row is returned as it is.

    Raises
    ------
    ValueError
        If there is no such activation.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, or an Activation; got {activation!r}.")
