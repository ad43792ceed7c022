"""The way forward alone, for predictions: the compiled pass over rows of any number."""

import ctypes
import math
from itertools import pairwise

import numpy as np

from bpaccel.activations import get
from bpaccel.data import dense, is_sparse
from bpaccel.engines import thread_count
from bpaccel.engines.cpu.launch import PACKED_ROWS, address, aligned, network_plan, readable
from bpaccel.engines.cpu.layout import layout
from bpaccel.engines.cpu.library import Missing, library
from bpaccel.engines.cpu.plan import BLOCK_ROWS
from bpaccel.engines.cpu.threads import helpers

# From so many multiplications on, a second thread gains more than it costs to ask for it: some 0.2 ms of work.
THREADED_WORK = 2**22
# Bytes of rows that are converted at once, where X is sparse or of another dtype.
CONVERTED_BYTES = 2**24
# Sparse rows with at most this share of numbers other than 0 are multiplied as they are: fuller ones are faster dense.
SPARSE_SHARE = 1 / 16


def usable(activations):
    """Whether the kernels know the activations, and can be used here."""
    try:
        return library().knows_activations(map(get, activations))
    except Missing:
        return False


def outputs(weights, X, activations, dtype):
    """The last layer for each row of X: the same bytes for any pieces of the rows, and any number of threads.

    Sparse rows with few numbers are multiplied as they are in the first layer; their outputs are then rounded otherwise
    than those of the same rows made dense.

    Parameters
    ----------
    weights : list of arrays of shape (I, O), or (I + 1, O) with a bias
        NumPy's, of ``dtype``.
    X : array of shape (N, I)
        NumPy's, or sparse.
    activations : sequence of Activation
        Rows that the library was built with.
    dtype : {"float32", "float64"}

    Returns
    -------
    numpy.ndarray of shape (N, O)
    """
    if is_sparse(X) and X.nnz <= SPARSE_SHARE * math.prod(X.shape):
        return _sparse_outputs(weights, X, activations, dtype)
    network = _Network(weights, X.shape[1], activations, dtype)
    result = np.empty((X.shape[0], network.sizes[-1]), dtype)
    if isinstance(X, np.ndarray) and X.dtype == dtype and readable(X):
        network.feed(X, result)
        return result
    some = max(BLOCK_ROWS, CONVERTED_BYTES // (np.dtype(dtype).itemsize * X.shape[1]) // BLOCK_ROWS * BLOCK_ROWS)
    for at in range(0, len(result), some):
        rows = np.ascontiguousarray(dense(X[at : at + some, ...]), dtype)
        network.feed(rows, result[at : at + some])
    return result


def _sparse_outputs(weights, X, activations, dtype):
    """The same for sparse rows, of which the first layer takes only what is there: SciPy's product, row by row."""
    (W, *others), f, inputs = weights, get(activations[0]), X.shape[1]
    W = np.asarray(W, dtype)
    result = np.empty((X.shape[0], weights[-1].shape[1]), dtype)
    rest = _Network(others, W.shape[1], activations[1:], dtype) if others else None
    some = max(1, CONVERTED_BYTES // (W.itemsize * W.shape[1]))
    for at in range(0, len(result), some):
        z = X[at : at + some, :].astype(dtype, copy=False) @ W[:inputs]
        with np.errstate(over="ignore", invalid="ignore"):  # the kernels say nothing either
            layer = f.function(z + W[inputs] if len(W) > inputs else z, np)
        if rest is None:
            result[at : at + some] = layer
        else:
            rest.feed(np.ascontiguousarray(layer), result[at : at + some])
    return result


class _Network:
    """The plan of a network for one prediction, and what its addresses point to."""

    def __init__(self, weights, inputs, activations, dtype):
        found = library()
        bias = weights[0].shape[0] > inputs
        names = [get(f).name for f in activations]
        self.sizes = [inputs, *(W.shape[1] for W in weights)]
        self.table, self.width = found.tables[dtype], np.dtype(dtype).itemsize
        self.layout = layout(self.sizes, bias, self.width, self.table, written=False)
        self.plan, *self._kept = network_plan(found, dtype, self.sizes, bias, names, self.layout)
        self._weights = np.concatenate([np.asarray(W, dtype).ravel() for W in weights])
        self.plan.weights = address(self._weights)

    def feed(self, X, result):
        """Set ``result`` (N, O), whose rows lie together, to the outputs of X."""
        plan, n = self.plan, len(X)
        field = plan.inputs
        field.at, field.row, field.column = address(X), X.strides[0] // self.width, X.strides[1] // self.width
        plan.rows, plan.outputs = n, address(result)
        if n >= PACKED_ROWS and any(self.layout.tiles):
            self._pack()
        work = n * sum(i * o for i, o in pairwise(self.sizes))
        threads = min(thread_count(), -(-n // BLOCK_ROWS)) if work >= THREADED_WORK else 1
        size = self.layout.units * self.table.apart * self.width

        def some(first, stop):
            scratch = aligned(size)
            self.table.predict(ctypes.addressof(plan), first, stop, address(scratch))

        if threads == 1:
            some(0, n)
            return
        share = -(-n // (threads * BLOCK_ROWS)) * BLOCK_ROWS
        others = [helpers().submit(some, at, min(at + share, n)) for at in range(share, n, share)]
        some(0, share)
        for other in others:
            other.wait()

    def _pack(self):
        sizes = self.layout.tiles
        tiles = aligned(sum(sizes) * self.width)
        firsts = np.cumsum([0, *sizes[:-1]]) * self.width + address(tiles)
        table = np.where(np.array(sizes) > 0, firsts, 0)
        self._kept += [tiles, table]
        self.plan.tiles = address(table)
        self.table.pack_weights(ctypes.addressof(self.plan))
