"""Rows: whatever the caller's data are, as dense 2-D blocks of numbers on one backend.

This is the door of the library: everything is checked, converted and moved here, once, and what is behind it can
rely on that.
"""

import functools
import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from bpaccel import activations
from bpaccel.backends import Backend, backend_in, dtype_name, library_of
from bpaccel.backends import backend as backend_of_name
from bpaccel.checks import unmasked

_NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
            "float16", "bfloat16", "float32", "float64", "float96", "float128")  # fmt: skip

# So many rows, or numbers, are looked at to tell whether rows are the same as before.
SAMPLE, SAMPLE_NUMBERS = 1000, 2**20
# Rows may fill so much of a device's free memory: the rest is for what is computed of them.
SHARE_OF_MEMORY = 0.5


def is_sparse(x):
    """Whether ``x`` is a sparse matrix or array of SciPy's, which is told by what it can do: SciPy is not imported."""
    return hasattr(x, "tocsr")


def dense(x):
    """``x``, with the zeros that a sparse one leaves out."""
    return x.toarray() if is_sparse(x) else x


class Given(NamedTuple):
    """An argument, and what it is: asked once, where it enters, and passed on.

    Attributes
    ----------
    array : array of real numbers
        Of any library, or sparse (CSR) of SciPy's.
    backend : Backend
        Where it lives.
    placed : bool
        Whether it says where to compute; lists, DataFrames and sparse matrices are host data, and do not.
    """

    array: Any
    backend: Backend
    placed: bool

    @property
    def home(self):
        """Where the argument asks to be computed; None if it has no say."""
        return self.backend if self.placed else None

    def on_host(self):
        """The array as NumPy's."""
        return self.backend.to_numpy(self.array)


def given(x, name="X", library=None):
    """An argument as `Given`, if it is an array of real numbers; lists and DataFrames become NumPy arrays.

    Of the sparse ones, only X may be one: it becomes CSR, whose rows can be read. ``library`` is the row of `LIBRARIES`
    that it belongs to, for callers who have asked already.

    Raises
    ------
    ValueError
        If it holds text, objects, complex numbers, hidden cells or lists of different lengths.
    """
    if isinstance(x, Given):
        return x
    if name == "X" and is_sparse(x):
        x, backend, placed = x.tocsr(), backend_of_name("numpy"), False
    else:
        x = unmasked(name, x)
        library = library or library_of(x)
        backend, placed = backend_in(library, x), library is not None
        if library is None:
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
    return Given(x, backend, placed)


def numbers(x, name="X"):
    """The array of `given`."""
    return given(x, name).array


def matrix(x, name="X", columns=None):
    """``x`` as `Given`, if it is a 2-D array of real numbers with at least one row; neither converted nor moved."""
    x = given(x, name)
    shape = tuple(x.array.shape)
    if len(shape) != 2:
        remedy = f"Use {name}[:, None] for one feature, or {name}[None, :] for one row." if len(shape) == 1 else ""
        raise ValueError(f"`{name}` must be 2-D (rows, features); got shape {shape}. {remedy}".rstrip())
    if shape[0] == 0:
        raise ValueError(f"`{name}` must have at least one row; got shape {shape}.")
    if columns is not None and shape[1] != columns:
        raise ValueError(f"`{name}` must have {columns} columns, one for each unit of the layer it meets; "
                         f"got shape {shape}.")  # fmt: skip
    return x


def targets(y, rows, columns):
    """``y`` as `Given`, of shape (rows, columns); a 1-D one is one column."""
    y = given(y, "y")
    shape = tuple(y.array.shape)
    if columns == 1 and shape == (rows,):
        return y._replace(array=y.array[:, None])
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
    own_dtype : {"float32", "float64"}
        What X is of, or was asked for: narrower than ``dtype`` where a solver needs more digits.
    arrays : tuple (X, y, w) or None
        All rows, if they are in memory on the backend.
    """

    def __init__(self, X, y, sample_weight=None, *, backend: Backend, dtype: str, own_dtype: str | None = None):
        X, y = given(X), given(y, "y")
        self.n, self.backend, self.dtype, self.own_dtype = X.array.shape[0], backend, dtype, own_dtype or dtype
        if sample_weight is not None:
            sample_weight = _checked_weights(given(sample_weight, "sample_weight"), self.n)
        info = None if backend.library.name == "numpy" else backend.xp.__array_namespace_info__()
        self._index = np.intp if info is None else info.default_dtypes(device=backend.device)["indexing"]
        source = X, y, sample_weight
        if is_sparse(X.array):
            source = X._replace(array=X.array.tocsr()), y, sample_weight
        self.arrays = None
        if not any(_stays(x, backend, dtype) for x in source) and self._fits(source):
            self.arrays = tuple(
                None if x is None else backend.asarray(x.array, dtype, x.backend.library) for x in source
            )
            self._source: tuple = self.arrays
            self._to_host = backend.to_numpy
        else:  # blocks are put together on the host
            self._source = tuple(x if x is None or is_sparse(x.array) else x.on_host() for x in source)
            self._source = tuple(x.array if isinstance(x, Given) else x for x in self._source)
            self._to_host = np.asarray

    @functools.cached_property
    def digest(self):
        """A digest of some rows, evenly spread, as they are computed on: whether other rows are the same."""
        columns = sum(x.shape[1] for x in self._source[:2])
        count = min(self.n, max(1, min(SAMPLE, SAMPLE_NUMBERS // columns)))
        found = hashlib.sha256(str(self.n).encode())
        for x in self.read(0, count, np.arange(count) * self.n // count):
            if x is not None:
                host = np.ascontiguousarray(self.backend.to_numpy(x))
                found.update(f"{host.dtype.name}{host.shape}".encode() + host.tobytes())
        return found.hexdigest()

    def _fits(self, source):
        """Whether the backend's device has room for what is not there yet."""
        free = self.backend.library.free(self.backend.device)
        away = [x for x in source if x is not None and not x.backend.same_place(self.backend)]
        moved = np.dtype(self.dtype).itemsize * sum(math.prod(x.array.shape) for x in away)
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
        host = (x if x is None or is_sparse(x) else self._to_host(x) for x in self._source)
        return tuple(None if x is None else dense(x[rows]) for x in host)


def _stays(x, backend, dtype):
    """Whether ``x`` is to be left as it is, and converted block by block."""
    if x is None or not isinstance(x.array, np.memmap):
        return x is not None and is_sparse(x.array)
    return backend.library.name != "numpy" or x.array.dtype != np.dtype(dtype)  # the order of bytes is of the dtype


def _checked_weights(weights, n):
    shape = tuple(weights.array.shape)
    if shape != (n,):
        raise ValueError(f"`sample_weight` must be of shape ({n},), one for each row; got {shape}.")
    host = weights.on_host()
    if not np.all(np.isfinite(host)) or np.any(host < 0) or not host.sum() > 0:
        raise ValueError("`sample_weight` must be finite, not negative, and not all 0; "
                         f"got values from {host.min()} to {host.max()}.")  # fmt: skip
    return weights


def one_hot(labels):
    """Class labels as the targets of a network: a column for each class.

    Parameters
    ----------
    labels : array or list of shape (N,)
        Numbers, text or truth values, none of them missing.

    Returns
    -------
    classes : numpy.ndarray of shape (C,)
        The classes, sorted.
    Y : numpy.ndarray of float64, shape (N, C)
        1 in the column of the row's class, else 0. ``classes[Y.argmax(axis=1)]`` gives the labels back.
    """
    labels = _labels(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"`labels` must be 1-D with at least one label; got shape {labels.shape}.")
    if (missing := np.flatnonzero(_missing(labels))).size:
        raise ValueError(f"`labels` must have no missing values; got {missing.size} of {len(labels)}, the first of "
                         f"them {labels[missing[0]]} in row {missing[0]}. Leave out such rows, or give them a class "
                         f"of their own.")  # fmt: skip
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError("`labels` must be all numbers or all text; got a mixture.") from error
    Y = np.zeros((len(labels), len(classes)))
    Y[np.arange(len(labels)), codes] = 1.0
    return classes, Y


def _labels(labels):
    """Labels as a NumPy array; of objects where a list mixes text with others, which NumPy would make text too."""
    labels = unmasked("labels", labels)
    library = library_of(labels)
    if library is not None:
        return library.to_numpy(labels)
    found = np.asarray(labels)
    text = {"U": str, "S": bytes}.get(found.dtype.kind)
    mixed = text is not None and isinstance(labels, (list, tuple)) and not all(isinstance(x, text) for x in labels)
    return np.array(labels, dtype=object) if mixed else found


def _missing(labels):
    """Which labels are nan, NaT, None or pandas' NA: an array of shape (N,), or one truth value for all."""
    if labels.dtype.kind in "fcmM":
        return labels != labels  # nan and NaT are not equal to themselves
    if labels.dtype.kind not in "OT":
        return False
    return [x is None or (not isinstance(x, str) and str(x) in ("nan", "NaN", "NaT", "<NA>")) for x in labels.tolist()]


def check_targets(y, loss, name="y"):
    """Raise ValueError unless the loss can be asked for all of ``y``, an argument of that name."""
    low, high = loss.targets
    if math.isinf(low) and math.isinf(high):
        return
    host = given(y, name).on_host()
    if loss.outputs == (activations.get("softmax"),) and not np.allclose(host.sum(axis=1), 1.0, rtol=0, atol=1e-3):
        message = (
            f"`{name}` must be one-hot, or probabilities that sum to 1 in each row, for a softmax output. "
            "Use bp.one_hot."
        )
        raise ValueError(message)
    least, most = float(host.min()), float(host.max())
    if least < low or most > high:
        rule = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"`{name}` must be {rule} for loss={loss.name!r}; got values from {least:g} to {most:g}.")
