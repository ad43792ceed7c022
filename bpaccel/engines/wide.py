"""Wide networks on GPUs: CuPy's cuBLAS for the matrix products, one fused kernel for each pass between them.

The core on CuPy reads and writes every layer some ten times a step, and makes an array for each. Here a layer is
written by its product, passed over once for bias and activation, and read once by the product above; its delta is
passed over once. Rows go in blocks through buffers that are made once, so that memory is bounded. The kernels are
those of ``wide.cu``.
"""

import importlib.resources
import math
from functools import cache

import numpy as np

from bpaccel.engines import Sums
from bpaccel.engines.kernels import Kernels
from bpaccel.losses import kernel_name

# Bytes that a block's layers and deltas may fill. Some ten launches of a few microseconds each should be little beside
# the time that a GPU takes for so much memory; counted, and not yet measured on one.
BLOCK_BYTES = 256 * 2**20
THREADS = 256  # of a CUDA block, as wide.cu has it
KERNELS = ("activate", "descend", "softmax", "output", "add_totals")
# The place of a name is its number in wide.cu.
ACTIVATIONS = ("identity", "sigmoid", "tanh", "relu", "softmax", "leaky_relu", "elu", "softplus", "exp")
LOSSES = ("squared_error", "log_loss", "categorical", "absolute_error", "poisson", "huber", "quantile")


class Wide(Kernels):
    """The core with cuBLAS and fused element-wise kernels.

    cuBLAS computes in the arrays' own precision; TF32 only where CuPy is told so (``CUPY_TF32=1``).
    """

    name = "wide"
    same_bits = False  # cuBLAS chooses the order of its sums
    most_blocks = 2048  # CUDA blocks of a launch: a constant, so that the order of sums does not depend on the card

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self._real = np.dtype(rows.dtype).type
        with self.device:
            module = self.cupy.RawModule(code=source(), options=options(rows.dtype))
            # CuPy looks a module up each time that it is asked for a function of it.
            self._kernels = {name: module.get_function(name) for name in KERNELS}
        self._buffers = None

    @classmethod
    def refuses(cls, objective, rows, solver):
        if trouble := cls.out_of_reach(rows.backend):
            return trouble
        names = {*(f.name for f in objective.activations), kernel_name(objective.loss)}
        if not objective.shipped or not names <= {*ACTIVATIONS, *LOSSES}:
            return f"it knows {', '.join([*ACTIVATIONS, *LOSSES])}, not functions of your own. Use engine='array'."
        return None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        itemsize = 4 if rows.dtype == "float32" else 8
        values = sum(objective.layer_sizes[1:]) + 2 * max(objective.layer_sizes[1:])  # layers, and two deltas
        # No more than the rows of `Blocked`: a product in float32 over more would lose digits.
        return 2 ** max(8, min(16, int(math.log2(BLOCK_BYTES / (values * itemsize)))))

    def block(self, weights, X, y, w):
        with self.device:
            updates, totals = self._passes(self.entered(weights), *self.entered((X, y, w)))
            return Sums([self.left(u) for u in updates], self.left(totals))

    def _passes(self, weights, X, y, w):
        xp, n, objective = self.cupy, X.shape[0], self.objective
        layers, deltas, ones, part = self._for(n)
        weights = [xp.ascontiguousarray(W) for W in weights]
        w = ones if w is None else xp.ascontiguousarray(w)

        below, has_bias = X, np.int32(objective.bias)
        for W, l, f in zip(weights, layers, objective.activations):
            inputs = below.shape[1]
            xp.dot(below, W[:inputs], out=l)  # (n, I) @ (I, O) -> (n, O)
            matrix = (l, W, np.int64(inputs), has_bias, np.int64(l.size), np.int32(l.shape[1]))
            if f.name == "softmax":
                self._launch("softmax", l.size, *matrix)
            elif f.name != "identity" or objective.bias:
                self._launch("activate", l.size, _code(f), *matrix)
            below = l

        l, delta, f = layers[-1], deltas[-1], objective.activations[-1]
        family, number = _loss(objective)
        loss = np.int32(LOSSES.index(family)), self._real(number), np.int32(f in objective.loss.cancels)
        width, totals = np.int32(l.shape[1]), xp.empty(3, dtype=np.float64)
        y = xp.ascontiguousarray(y)
        blocks = self._launch("output", l.size, _code(f), *loss, y, l, w, delta, part, np.int64(l.size), width)
        self._launch("add_totals", 1, part, np.int32(blocks), width, totals)

        below = [X, *layers[:-1]]
        updates = [self._update(below[-1], delta, ones)]
        for k in reversed(range(len(layers) - 1)):
            l, error, f = layers[k], deltas[k], objective.activations[k]
            xp.dot(delta, weights[k + 1][: l.shape[1]].T, out=error)  # (n, O) @ (O, I) -> (n, I)
            if f.name != "identity":
                self._launch("descend", l.size, _code(f), error, l, np.int64(l.size))
            delta = error
            updates.append(self._update(below[k], delta, ones))
        return updates[::-1], totals

    def _launch(self, name, values, *arguments):
        """Launch a kernel over some numbers; returns its CUDA blocks, a function of how many numbers there are."""
        blocks = min(self.most_blocks, -(-values // THREADS))
        self._kernels[name]((blocks,), (THREADS,), arguments)
        return blocks

    def _update(self, l, delta, ones):
        """l.T @ delta, and under it, where there is a bias, the sum of delta over the rows: (I [+ 1], O)."""
        inputs, outputs = l.shape[1], delta.shape[1]
        update = self.cupy.empty((inputs + self.objective.bias, outputs), dtype=delta.dtype)
        self.cupy.dot(l.T, delta, out=update[:inputs])  # (I, n) @ (n, O) -> (I, O)
        if self.objective.bias:
            self.cupy.dot(ones[None, :], delta, out=update[inputs:])  # faster on CuPy than a sum over rows
        return update

    def _for(self, n):
        """The buffers, for n rows: layers, deltas, n ones, and the CUDA blocks' shares of the totals.

        All are views of memory that is taken once. Two deltas are alive at a time, so that every other layer's share
        one piece.
        """
        if self._buffers is None or n > len(self._buffers[2]):
            xp, sizes, dtype = self.cupy, self.objective.layer_sizes[1:], np.dtype(self.rows.dtype)
            layers = [xp.empty((n, size), dtype=dtype) for size in sizes]
            pair = [xp.empty(n * max(sizes[k::2], default=0), dtype=dtype) for k in (0, 1)]
            part = xp.empty(3 * self.most_blocks, dtype=np.float64)
            self._buffers = layers, pair, xp.ones(n, dtype=dtype), part
        layers, pair, ones, part = self._buffers
        sizes = self.objective.layer_sizes[1:]
        deltas = [pair[k % 2][: n * size].reshape(n, size) for k, size in enumerate(sizes)]
        return [l[:n] for l in layers], deltas, ones[:n], part


@cache
def source():
    """The CUDA C++ of the kernels."""
    return importlib.resources.files(__package__).joinpath("wide.cu").read_text()


def options(dtype):
    """What the compiler is told, beside the source: a tuple of str."""
    names = [f"-D{name.upper()}={k}" for table in (ACTIVATIONS, LOSSES) for k, name in enumerate(table)]
    return ("-std=c++17", f"-DREAL={'float' if dtype == 'float32' else 'double'}", *names)


def _code(activation):
    return np.int32(ACTIVATIONS.index(activation.name))


def _loss(objective):
    """The name of the loss in `LOSSES`, and its number."""
    return kernel_name(objective.loss), float(objective.loss.name.partition(":")[2] or 0)
