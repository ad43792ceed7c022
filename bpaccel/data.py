"""Rows: whatever the caller's data are, as dense 2-D blocks of numbers on one backend.

This is the door of the library: everything is checked, converted and moved here, once, and what is behind it can
rely on that.
"""

import math

import numpy as np

from bpaccel.backends import Backend, dtype_name, library_of

_NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
            "float16", "bfloat16", "float32", "float64", "float96", "float128")  # fmt: skip

# Rows may fill so much of a device's free memory: the rest is for what is computed of them.
SHARE_OF_MEMORY = 0.5


def is_sparse(x):
    """Whether ``x`` is a sparse matrix or array of SciPy's, which is told by what it can do: SciPy is not imported."""
    return hasattr(x, "tocsr")


def dense(x):
    """``x``, with the zeros that a sparse one leaves out."""
    return x.toarray() if is_sparse(x) else x


def numbers(x, name="X"):
    """``x`` if it is an array of real numbers, of any library; lists and DataFrames become NumPy arrays.

    Of the sparse ones, only X may be one: it becomes CSR, whose rows can be read.

    Raises
    ------
    ValueError
        If it holds text, objects, complex numbers or lists of different lengths.
    """
    if name == "X" and is_sparse(x):
        x = x.tocsr()
    elif library_of(x) is None:
        try:
            x = np.asarray(x)
        except ValueError as error:
            message = f"`{name}` must be a rectangular array of numbers; got lists of different lengths."
            raise ValueError(message) from error
    if str(getattr(x, "layout", "")).startswith("torch.sparse"):
        raise ValueError(f"`{name}` must be dense; got a tensor of layout {x.layout}. Use {name}.to_dense(), or give "
                         f"a sparse array of SciPy's.")  # fmt: skip
    if dtype_name(x) not in _NUMBERS:
        what = "text or objects" if not dtype_name(x).startswith("complex") else "complex numbers"
        raise ValueError(f"`{name}` must be real numbers; got {what} (dtype {x.dtype}). "
                         f"Encode text columns as numbers first; bp.one_hot encodes class labels.")  # fmt: skip
    return x


def matrix(x, name="X", columns=None):
    """``x`` as a 2-D array of real numbers with at least one row; checked, neither converted nor moved."""
    x = numbers(x, name)
    if x.ndim != 2:
        shape = tuple(x.shape)
        remedy = f"Use {name}[:, None] for one feature, or {name}[None, :] for one row." if x.ndim == 1 else ""
        raise ValueError(f"`{name}` must be 2-D (rows, features); got shape {shape}. {remedy}".rstrip())
    if x.shape[0] == 0:
        raise ValueError(f"`{name}` must have at least one row; got shape {tuple(x.shape)}.")
    if columns is not None and x.shape[1] != columns:
        raise ValueError(f"`{name}` must have {columns} columns, one for each unit of the layer it meets; "
                         f"got shape {tuple(x.shape)}.")  # fmt: skip
    return x


def targets(y, rows, columns):
    """``y`` as a 2-D array of shape (rows, columns); a 1-D one is one column."""
    y = numbers(y, "y")
    shape = tuple(y.shape)
    if columns == 1 and shape == (rows,):
        return y[:, None]
    if shape != (rows, columns):
        raise ValueError(f"`y` must be of shape ({rows}, {columns}), a row for each row of X and a column for each "
                         f"output; got shape {shape}.")  # fmt: skip
    return y


def float_dtype(x, backend):
    """The name of the dtype to compute in: ``x``'s own float32 or float64, else the widest of the device."""
    own = dtype_name(x)
    if own in ("float16", "bfloat16"):
        return "float32"
    return own if own in ("float32", "float64") else backend.widest


class Rows:
    """Rows of inputs, targets and weights, read in blocks that are dense, converted and on the backend.

    Arrays are converted and moved once. A memory map that would need either, a sparse X, and arrays that the device has
    no room for, are left where they are, and converted block by block, so that they never are in memory, or dense, as a
    whole.

    Parameters
    ----------
    X : array of shape (N, I)
        Or sparse, CSR or CSC.
    y : array of shape (N, O)
    sample_weight : array of shape (N,), optional
        How much each row counts: finite, not negative, not all 0.
    backend : Backend
    dtype : {"float32", "float64"}

    Attributes
    ----------
    n : int
        N.
    arrays : tuple (X, y, w) or None
        All rows, if they are in memory on the backend.
    """

    def __init__(self, X, y, sample_weight=None, *, backend: Backend, dtype: str):
        self.n, self.backend, self.dtype = X.shape[0], backend, dtype
        if sample_weight is not None:
            sample_weight = _checked_weights(numbers(sample_weight, "sample_weight"), self.n)
        info = None if backend.library.name == "numpy" else backend.xp.__array_namespace_info__()
        self._index = np.intp if info is None else info.default_dtypes(device=backend.device)["indexing"]
        self._source: tuple = (X.tocsr() if is_sparse(X) else X, y, sample_weight)
        self.arrays = None
        if not any(_stays(x, backend, dtype) for x in self._source) and self._fits():
            self.arrays = self._source = self._converted(self._source)
        else:  # blocks are put together on the host
            self._source = tuple(x if x is None or is_sparse(x) else library_of(x).to_numpy(x) for x in self._source)

    def _fits(self):
        """Whether the backend's device has room for what is not there yet."""
        free = self.backend.library.free(self.backend.device)
        away = [x for x in self._source if x is not None and library_of(x).name != self.backend.library.name]
        moved = np.dtype(self.dtype).itemsize * sum(math.prod(x.shape) for x in away)
        return free is None or moved <= SHARE_OF_MEMORY * free

    def _converted(self, arrays):
        return tuple(None if x is None else self.backend.asarray(x, self.dtype) for x in arrays)

    def read(self, start, stop, order=None):
        """Rows ``start:stop``, or ``order[start:stop]``, as (X, y, w); w is None where no row has a weight."""
        if self.arrays is None:
            return self._converted(self.on_host(start, stop, order))
        if order is None:
            return tuple(None if x is None else x[start:stop, ...] for x in self.arrays)
        xp = self.backend.xp
        index = order[start:stop]
        if xp is not np:
            index = xp.asarray(index, dtype=self._index, device=self.backend.device)
        return tuple(None if x is None else xp.take(x, index, axis=0) for x in self.arrays)

    def on_host(self, start, stop, order=None):
        """The same rows as NumPy arrays of the dtypes they are stored in: for engines that move them by themselves."""
        rows = slice(start, stop) if order is None else order[start:stop]
        host = (x if x is None or is_sparse(x) else library_of(x).to_numpy(x) for x in self._source)
        return tuple(None if x is None else dense(x[rows]) for x in host)


def _stays(x, backend, dtype):
    """Whether ``x`` is to be left as it is, and converted block by block."""
    return is_sparse(x) or (isinstance(x, np.memmap) and (backend.library.name != "numpy" or x.dtype.name != dtype))


def _checked_weights(weights, n):
    if tuple(weights.shape) != (n,):
        raise ValueError(f"`sample_weight` must be of shape ({n},), one for each row; got {tuple(weights.shape)}.")
    host = library_of(weights).to_numpy(weights)
    if not np.all(np.isfinite(host)) or np.any(host < 0) or not host.sum() > 0:
        raise ValueError("`sample_weight` must be finite, not negative, and not all 0; "
                         f"got values from {host.min()} to {host.max()}.")  # fmt: skip
    return weights


def one_hot(labels):
    """Class labels as the targets of a network: a column for each class.

    Parameters
    ----------
    labels : array or list of shape (N,)
        Numbers or text.

    Returns
    -------
    classes : numpy.ndarray of shape (C,)
        The classes, sorted.
    Y : numpy.ndarray of float64, shape (N, C)
        1 in the column of the row's class, else 0. ``classes[Y.argmax(axis=1)]`` gives the labels back.
    """
    library = library_of(labels)
    labels = np.asarray(labels) if library is None else library.to_numpy(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"`labels` must be 1-D with at least one label; got shape {labels.shape}.")
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            "`labels` must be all numbers or all text; got a mixture, or values that are missing."
        ) from error
    Y = np.zeros((len(labels), len(classes)))
    Y[np.arange(len(labels)), codes] = 1.0
    return classes, Y


def check_targets(y, loss, name="y"):
    """Raise ValueError unless the loss can be asked for all of ``y``, an argument of that name."""
    low, high = loss.targets
    if math.isinf(low) and math.isinf(high):
        return
    host = library_of(y).to_numpy(y)
    if loss.outputs == ("softmax",) and not np.allclose(host.sum(axis=1), 1.0, rtol=0, atol=1e-3):
        message = (
            f"`{name}` must be one-hot, or probabilities that sum to 1 in each row, for a softmax output. "
            "Use bp.one_hot."
        )
        raise ValueError(message)
    least, most = float(host.min()), float(host.max())
    if least < low or most > high:
        rule = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"`{name}` must be {rule} for loss={loss.name!r}; got values from {least:g} to {most:g}.")
