"""Losses: what an output costs, and the error that is sent back from it.

``y`` is what was wanted and ``l`` what came out, both of shape (N, O). The sign is the tutorial's: an error is
*minus* the derivative of the loss by the output, ``y - l`` for the squared error, and is added. Adding a loss is one
row of `LOSSES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpaccel import activations

Array = Any


@dataclass(frozen=True, eq=False)
class Loss:
    """A row of the table.

    Attributes
    ----------
    name : str
    value : callable
        ``(y, l, xp) -> (N, O)``: the loss of each output, to be summed over outputs and rows.
    error : callable
        ``(y, l, xp) -> (N, O)``: minus the derivative of `value` by the output ``l``.
    cancels : tuple of Activation
        Output activations whose slope cancels in ``error * slope``, so that the delta is ``y - l`` exactly. Names of
        our table become its rows: another activation of that name does not cancel.
    outputs : tuple of Activation or None
        Which of our output activations the loss makes sense for, names too; None for any that has a slope.
    targets : tuple of float
        The least and the greatest ``y`` allowed.
    """

    name: str
    value: Callable[[Array, Array, Any], Array]
    error: Callable[[Array, Array, Any], Array]
    cancels: tuple = ()
    outputs: tuple | None = None
    targets: tuple = (-math.inf, math.inf)

    def __post_init__(self):
        for name in ("cancels", "outputs"):
            if (rows := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(activations.get, rows)))

    def __reduce__(self):  # rows of ours are pickled by name: their functions have none
        output = self.outputs[0] if self.outputs else "identity"
        return (get, (self.name, output)) if known(self, output) else super().__reduce__()


# Probabilities are clipped to [eps, 1 - eps], as scikit-learn does: a sure and wrong answer costs a finite loss.
def _clipped(l, xp):
    eps = float(xp.finfo(l.dtype).eps)
    return xp.clip(l, eps, 1.0 - eps)


def _binary_value(y, l, xp):
    p = _clipped(l, xp)
    return -(y * xp.log(p) + (1.0 - y) * xp.log(1.0 - p))


def _binary_error(y, l, xp):
    p = _clipped(l, xp)
    return (y - p) / (p * (1.0 - p))


def _categorical_value(y, l, xp):
    return -y * xp.log(_clipped(l, xp))


# The number is written so that it can be read back exactly: files and compiled engines know a loss by its name.
def _named(family, number):
    short = f"{number:g}"
    return f"{family}:{short if float(short) == number else repr(number)}"


def _huber(d):
    def value(y, l, xp):
        a = xp.abs(y - l)
        return xp.where(a <= d, 0.5 * a * a, d * (a - 0.5 * d))

    return Loss(_named("huber", d), value, lambda y, l, xp: xp.clip(y - l, -d, d))


def _quantile(q):
    def value(y, l, xp):
        e = y - l
        return xp.where(e > 0, q * e, (q - 1.0) * e)

    def error(y, l, xp):
        return xp.where(y > l, xp.full_like(y, q), xp.where(y < l, xp.full_like(y, q - 1.0), 0.0))

    return Loss(_named("quantile", q), value, error)


# Half the Poisson deviance, as scikit-learn has it: y log(y / l) - y + l, where 0 log 0 is 0.
def _poisson_value(y, l, xp):
    l = _positive(l, xp)
    return xp.where(y > 0, y * (xp.log(xp.where(y > 0, y, 1.0)) - xp.log(l)), 0.0) - y + l


def _positive(l, xp):
    return xp.maximum(l, float(xp.finfo(l.dtype).smallest_normal))


LOSSES = {
    row.name: row
    for row in (
        Loss("squared_error", lambda y, l, xp: 0.5 * (y - l) ** 2, lambda y, l, xp: y - l),
        Loss("log_loss", _binary_value, _binary_error, ("sigmoid",), ("sigmoid", "softmax"), (0, 1)),
        Loss("absolute_error", lambda y, l, xp: xp.abs(y - l), lambda y, l, xp: xp.sign(y - l)),
        Loss("poisson", _poisson_value, lambda y, l, xp: y / _positive(l, xp) - 1.0, ("exp",),
             ("exp", "softplus", "sigmoid"), (0, math.inf)),
    )
}  # fmt: skip

# Rows that take a number, written ``name:number``; without one, the number here.
FAMILIES = {"huber": (_huber, 1.0, 0.0, math.inf), "quantile": (_quantile, 0.5, 0.0, 1.0)}

# What "log_loss" means over a softmax: one class of many, not many yes-or-no answers.
_CATEGORICAL = Loss(
    "log_loss", _categorical_value, lambda y, l, xp: y / _clipped(l, xp), ("softmax",), ("softmax",), (0, 1)
)

_made: dict = {}  # one row for each family and number, so that equal names are equal rows
_SHIPPED = frozenset([*LOSSES.values(), _CATEGORICAL])
_SHIPPED_FAMILIES = dict(FAMILIES)


def shipped(row):
    """Whether a row stands in this file, or is of a family here, so that compiled kernels were built with it."""
    ours = _SHIPPED_FAMILIES.values()
    # Another thread may make a row meanwhile.
    return row in _SHIPPED or any(row is made and family in ours for (family, _), made in list(_made.items()))


def kernel_name(row):
    """What compiled kernels call a row of this file: a family without its number, and the log loss over a softmax
    ``categorical``."""
    return "categorical" if row is _CATEGORICAL else row.name.partition(":")[0]


def get(loss, output="identity"):
    """The row of a loss, for the output activation it stands on.

    Parameters
    ----------
    loss : str, Loss or pair of callables
        A name of `LOSSES`; ``huber:d`` or ``quantile:q``; or your own ``(value, derivative)``, each
        ``(y, output) -> array of shape (N, O)``, the derivative taken by the output, in its true sign.
    output : Activation or str
        The output activation. One of your own goes with every loss, if it has a slope: what it stands for is yours to
        know.

    Raises
    ------
    ValueError
        If there is no such loss, or it does not go with the output activation.
    """
    row, output = _find(loss), activations.get(output)
    if row is LOSSES["log_loss"] and output in _CATEGORICAL.cancels:
        return _CATEGORICAL
    if row.outputs is not None and activations.shipped(output) and output not in row.outputs:
        needed = " or ".join(f.name for f in row.outputs)
        raise ValueError(f"`loss` {row.name!r} needs an output activation of {needed}; got {output.name!r}.")
    if output.slope is None and output not in row.cancels:
        raise ValueError(f"the output activation {output.name} has no slope, and goes with a loss that cancels it "
                         f"only, as softmax with loss='log_loss'; got {row.name!r}.")  # fmt: skip
    return row


def known(loss, output):
    """Whether a `Loss` is a row of ours, and not functions of a user's own, over an output activation."""
    try:
        return get(loss.name, output) is loss
    except ValueError:
        return False


def _find(loss):
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        value, derivative = (_whole(function, what) for function, what in zip(loss, ("value", "derivative")))
        return Loss("custom", value, lambda y, l, xp: -derivative(y, l, xp))
    if isinstance(loss, str):
        name, _, text = loss.partition(":")
        if name in FAMILIES:
            return _family(name, text)
        if loss in LOSSES:
            return LOSSES[loss]
    raise ValueError(
        f"`loss` must be one of {', '.join([*LOSSES, *FAMILIES])}, or a pair (value, derivative); got {loss!r}."
    )


def _whole(function, what):
    """A function of one's own, held to a number for each output: a sum of them would be broadcast, and be wrong."""

    def checked(y, l, xp):
        result = function(y, l)
        shape = getattr(result, "shape", None)
        if shape is None or tuple(shape) != tuple(l.shape):
            got = "a plain number" if shape is None else f"one of shape {tuple(shape)}"
            raise ValueError(f"`loss`: your {what} must return an array of shape {tuple(l.shape)}, a number for each "
                             f"output of each row; got {got}. Do not sum or average it.")  # fmt: skip
        return result

    return checked


def _family(name, text):
    make, number, low, high = FAMILIES[name]
    try:
        number = float(text) if text else number
    except ValueError:
        number = math.nan
    if not low < number < high:
        raise ValueError(f"`loss` '{name}:number' needs a number between {low:g} and {high:g}; got {text!r}.")
    return _made.setdefault((FAMILIES[name], number), make(number))
