"""The lesson: a neural network and its training, in five functions.

They are the dozen lines of the tutorial for any number of layers, on any array library of the Array API standard.
``N`` is the number of rows (examples), ``I`` the inputs of a layer and ``O`` its outputs. ``layers`` are values, the
article's ``l0, l1, l2``; ``weights`` are its ``syn0, syn1``. One training step is::

    layers  = forward(weights, X, activations)
    deltas  = backward(weights, layers, y, activations)
    updates = batch_updates(layers, deltas)
    weights = apply_updates(weights, updates, rate=1.0)

The sign is the tutorial's: an update is *minus* the gradient of the loss, summed over the rows, and is added.
"""

import math
from itertools import pairwise

import numpy as np

from bpaccel import activations as _activations
from bpaccel import losses as _losses
from bpaccel.backends import namespace

# Bounds of the uniform draw, by layer. glorot: Glorot & Bengio 2010, eq. 16 (a third of it in the squared bound for
# sigmoids, as scikit-learn has it); he: He et al. 2015, the same idea for relu.
INITS = {
    "uniform": lambda inputs, outputs: 1.0,
    "glorot": lambda inputs, outputs: math.sqrt(6 / (inputs + outputs)),
    "glorot_sigmoid": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "he": lambda inputs, outputs: math.sqrt(6 / inputs),
}


def init_weights(layer_sizes, init="uniform", seed=None, bias=False):
    """Random weights with mean 0, drawn layer by layer.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units of each layer, inputs first: ``[3, 4, 1]``.
    init : {"uniform", "glorot", "glorot_sigmoid", "he"}
        The bound of the draw. ``"uniform"`` is the tutorial's ``2 * random(shape) - 1``.
    seed : int, numpy.random.RandomState or None
    bias : bool
        Whether each matrix gets one more row, the last: the weights of an input that is always 1.

    Returns
    -------
    list of numpy.ndarray
        One float64 matrix of shape (I, O), or (I + 1, O), for each pair of layers. Always drawn by NumPy in float64:
        one seed gives the same weights on every backend.
    """
    random = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    weights = []
    for inputs, outputs in pairwise(layer_sizes):
        bound = INITS[init](inputs, outputs)
        weights.append(random.uniform(-bound, bound, (inputs + bias, outputs)))
    return weights


def forward(weights, X, activations):
    """Feed the rows through the network.

    Parameters
    ----------
    weights : list of arrays of shape (I, O) or (I + 1, O)
    X : array of shape (N, I)
    activations : sequence of str or Activation
        One for each matrix.

    Returns
    -------
    list of arrays
        ``[X, l1, l2, ...]``; each layer is of shape (N, O), the last is the network's answer.
    """
    xp = namespace(X)
    layers = [X]
    for W, f in zip(weights, map(_activations.get, activations), strict=True):
        l = layers[-1]
        inputs = l.shape[1]
        z = l @ W if W.shape[0] == inputs else l @ W[:inputs, :] + W[inputs, :]  # (N, I) @ (I, O) [+ bias] -> (N, O)
        layers.append(f.function(z, xp))
    return layers


def backward(weights, layers, y, activations, loss="squared_error", sample_weight=None):
    """Send the error back through the network: each layer's error times its slope.

    Parameters
    ----------
    weights : list of arrays of shape (I, O) or (I + 1, O)
    layers : list of arrays
        What `forward` returned.
    y : array of shape (N, O)
        What the last layer should have been.
    activations : sequence of str or Activation
    loss : str or Loss
    sample_weight : array of shape (N,), optional
        How much each row counts.

    Returns
    -------
    list of arrays of shape (N, O)
        ``[l1_delta, l2_delta, ...]``: one for each matrix, minus the derivative of the loss by the layer's sums.
    """
    xp = namespace(y)
    l, activations = layers[-1], [_activations.get(f) for f in activations]
    loss = _losses.get(loss, activations[-1])
    if activations[-1] in loss.cancels:
        delta = y - l
    else:
        error = loss.error(y, l, xp)  # y - l for squared_error
        delta = error * activations[-1].slope(l, xp)
    if sample_weight is not None:
        delta = delta * sample_weight[:, None]

    deltas = [delta]
    for W, l, f in reversed(list(zip(weights[1:], layers[1:-1], activations))):
        error = delta @ W[: l.shape[1], :].T  # how much each unit of l contributed: (N, O) @ (O, I) -> (N, I)
        delta = error * f.slope(l, xp)
        deltas.append(delta)
    return deltas[::-1]


def batch_updates(layers, deltas, bias=False):
    """What the rows together ask of the weights.

    Parameters
    ----------
    layers : list of arrays
        What `forward` returned.
    deltas : list of arrays
        What `backward` returned.
    bias : bool
        Whether the matrices have a last row for the bias.

    Returns
    -------
    list of arrays
        One of each weight matrix's shape: minus the gradient of the loss, summed over the N rows.
    """
    updates = [l.T @ delta for l, delta in zip(layers, deltas)]  # (I, N) @ (N, O) -> (I, O)
    if bias:
        xp = namespace(deltas[0])
        updates = [xp.concat([u, xp.sum(d, axis=0, keepdims=True)], axis=0) for u, d in zip(updates, deltas)]
    return updates


def apply_updates(weights, updates, rate):
    """New weights, one step of ``rate`` along the updates; the old ones stay as they were."""
    return [W + rate * u for W, u in zip(weights, updates)]
