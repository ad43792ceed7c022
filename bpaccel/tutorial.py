"""The tutorial: its two data sets and its two networks, by name, trained as the article trains them.

The source is the article "BP neural network algorithm python implementation", whose two programs train ``syn0`` on
four rows for 10,000 steps, and ``syn0, syn1`` for 60,000; `docs/tutorial.md` retells it beside our code::

    import bpaccel as bp

    lesson = bp.tutorial.three_layer()
    lesson.output  # what the article prints: 0.00260572, 0.99672209, 0.99701711, 0.00386759

``N`` is the number of rows, here 4; ``I`` the inputs of a layer and ``O`` its outputs.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpaccel import activations
from bpaccel.backends import backend_of, resolve
from bpaccel.network import Network

# Both parts have the same inputs. The third column is always 1: it does the work of a bias.
X = ((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1))


@dataclass(frozen=True)
class Part:
    """One of the article's two programs.

    Attributes
    ----------
    y : tuple of int
        The output wanted for each row of `X`.
    layer_sizes : tuple of int
    """

    y: tuple
    layer_sizes: tuple


PARTS = {
    "two_layer": Part((0, 0, 1, 1), (3, 1)),  # y is the first column
    "three_layer": Part((0, 1, 1, 0), (3, 4, 1)),  # y is "either of the first two, not both"
}


@dataclass(frozen=True, eq=False)
class Iteration:
    """A network as it stands in one step, before that step's update: what the article looks at.

    Attributes
    ----------
    step : int
        Counted from 0.
    weights : tuple of numpy.ndarray of shape (I, O)
        ``syn0, syn1``.
    layers : tuple of numpy.ndarray of shape (N, O)
        ``l0, l1, l2``; the last is the output.
    errors : tuple of numpy.ndarray of shape (N, O)
        ``l1_error, l2_error``; the last is ``y - output``.
    """

    step: int
    weights: tuple
    layers: tuple
    errors: tuple

    @property
    def slopes(self):
        """The sigmoid's slope at each unit of ``l1, l2``: the article's ``nonlin(l1, True)``."""
        return tuple(activations.get("sigmoid").slope(l, np) for l in self.layers[1:])

    @property
    def deltas(self):
        """``l1_delta, l2_delta``: error times slope."""
        return tuple(error * slope for error, slope in zip(self.errors, self.slopes))


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one of the two trainings shows. All arrays are NumPy's, on the host, wherever it was trained.

    Attributes
    ----------
    name : {"two_layer", "three_layer"}
    X : numpy.ndarray of shape (N, 3)
    y : numpy.ndarray of shape (N, 1)
    first, last : Iteration
        The first step and the last, each before its update.
    weights : tuple of numpy.ndarray of shape (I, O)
        After the last update.
    history : History
        Its column ``error`` is the mean |y - output|.
    network : Network
        Trained, on its backend.
    backend, dtype : str
        Where, and in what, it was computed.
    """

    name: str
    X: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    first: Iteration = field(repr=False)
    last: Iteration = field(repr=False)
    weights: tuple = field(repr=False)
    history: Any = field(repr=False)
    network: Network = field(repr=False)
    backend: str
    dtype: str

    @property
    def output(self):
        """What the article prints after its loop: the last layer as the last step computed it, before its update."""
        return self.last.layers[-1]

    def error_every(self, steps=10_000):
        """The mean |y - output| at steps 0, ``steps``, 2 * ``steps`` ... that were recorded: ``{step: error}``."""
        pairs = zip(self.history.step, self.history.error)
        return {step: error for step, error in pairs if step % steps == 0}


def data(name):
    """The data set of a part.

    Parameters
    ----------
    name : {"two_layer", "three_layer"}

    Returns
    -------
    X : numpy.ndarray of int, shape (4, 3)
    y : numpy.ndarray of int, shape (4, 1)
        ``"two_layer"``: the first column; ``"three_layer"``: the exclusive or of the first two.
    """
    return np.array(X), np.array(_part(name).y)[:, None]


def network(name, *, backend=None, dtype=None):
    """The untrained network of a part, with the article's first weights (``RandomState(1)``).

    Parameters
    ----------
    name : {"two_layer", "three_layer"}
    backend : str, optional
        Where to compute; by default ``BPACCEL_BACKEND``, else NumPy.
    dtype : {"float32", "float64"}, optional
        By default the widest that the backend has: float64, but for JAX without x64 and some devices.

    Returns
    -------
    Network
        3-1 or 3-4-1 sigmoid units without a bias.
    """
    home = resolve(backend)
    return Network(_part(name).layer_sizes, activation="sigmoid", loss="squared_error", bias=False, init="uniform",
                   seed=1, dtype=dtype or home.widest, backend=home)  # fmt: skip


def two_layer(backend=None, *, dtype=None, engine="auto", steps=10_000):
    """The article's first part: inputs and output, one matrix of weights, 10,000 steps.

    Parameters
    ----------
    backend : str, optional
        Where to compute; by default ``BPACCEL_BACKEND``, else NumPy.
    dtype : {"float32", "float64"}, optional
        By default the widest that the backend has.
    engine : str
    steps : int
        At least 2.

    Returns
    -------
    Lesson
        Its ``output``, on NumPy, is ``0.00966449, 0.00786506, 0.99358898, 0.99211957``.
    """
    return _teach("two_layer", backend, dtype, engine, steps)


def three_layer(backend=None, *, dtype=None, engine="auto", steps=60_000):
    """The article's second part: a hidden layer of 4 units, two matrices of weights, 60,000 steps.

    Parameters
    ----------
    backend : str, optional
        Where to compute; by default ``BPACCEL_BACKEND``, else NumPy.
    dtype : {"float32", "float64"}, optional
        By default the widest that the backend has.
    engine : str
    steps : int
        At least 2.

    Returns
    -------
    Lesson
        Its ``output``, on NumPy, is ``0.00260572, 0.99672209, 0.99701711, 0.00386759``.
    """
    return _teach("three_layer", backend, dtype, engine, steps)


def correlations(columns, y):
    """How far each column goes up and down with the output: Pearson's r, the article's table of the hidden layer.

    Parameters
    ----------
    columns : array of shape (N, O)
        A layer.
    y : array of shape (N, 1)

    Returns
    -------
    numpy.ndarray of shape (O,)
        From -1 to 1; nan for a column that is constant, which goes along with nothing.
    """
    columns, y = np.asarray(columns, dtype=float), np.asarray(y, dtype=float)
    varies = np.ptp(columns, axis=0) > 0
    columns, y = columns - columns.mean(axis=0), y - y.mean()
    scale = np.sqrt((columns**2).sum(axis=0) * (y**2).sum())
    return np.divide((columns * y).sum(axis=0), scale, out=np.full(len(scale), np.nan), where=varies)


def _part(name):
    if name not in PARTS:
        raise ValueError(f"`name` must be one of {', '.join(PARTS)}; got {name!r}.")
    return PARTS[name]


def _teach(name, backend, dtype, engine, steps):
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"`steps` must be a whole number of at least 2, the first and the last; got {steps!r}.")
    X, y = data(name)
    net = network(name, backend=backend, dtype=dtype)
    how = {"learning_rate": 1.0, "reduction": "sum", "engine": engine}
    first = _look(net, X, y, 0)
    # The article prints the last layer as its last step computed it, before that step's update: so we stop one step
    # early to look, and then take the last step. Until then the history notes each of the first hundred steps, where
    # most happens, and every 50th of the others.
    history: Any = None
    step = 0
    for stop, every in ((min(100, steps - 1), 1), (steps - 1, 50)):
        if step < stop:
            history = net.train(X, y, steps=stop - step, record_every=every, resume=history, **how)
            step = stop
        if history.stopped == "interrupted":  # half a lesson is none
            raise KeyboardInterrupt
    last = _look(net, X, y, steps - 1)
    history = net.train(X, y, steps=1, resume=history, **how)
    return Lesson(name, X, y, first, last, _on_host(net.weights), history, net, net.backend, net.dtype)


def _look(net, X, y, step):
    return Iteration(step, _on_host(net.weights), tuple(net.layers(X)), tuple(net.errors(X, y)))


def _on_host(weights):
    # Copies: a library may hand out its own memory.
    return tuple(np.array(backend_of(W).to_numpy(W)) for W in weights)
