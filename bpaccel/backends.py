"""The switch: which array library computes, on which device.

A backend is named ``library[:device]``: ``numpy``, ``cupy``, ``cupy:1``, ``torch``, ``torch:cuda``, ``jax``,
``array_api_strict``; ``auto`` is CuPy where a GPU is usable, else NumPy. There is no process-wide state: a
backend is an argument, or it follows the arrays. With
`bpaccel.libraries` this is the only door to array-api-compat.
"""

import functools
import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpaccel.libraries import LIBRARIES, Library, suffix, why_not

VARIABLE = "BPACCEL_BACKEND"


class BackendError(ValueError):
    """A backend that does not exist, is not usable here, or lacks what was asked of it."""


@dataclass(frozen=True)
class Backend:
    """An array library and one of its devices.

    Attributes
    ----------
    name : str
        ``library`` or ``library:device``.
    xp : module
        The library's Array API namespace.
    device : object
        The library's own device object.
    """

    name: str
    library: Library
    xp: Any
    device: Any

    @property
    def floats(self):
        """Names of the real floating dtypes that the device has, of ``float32`` and ``float64``."""
        if self.library.name == "numpy":
            return ("float32", "float64")
        known = self.xp.__array_namespace_info__().dtypes(device=self.device, kind="real floating")
        return tuple(name for name in ("float32", "float64") if name in known)

    @property
    def widest(self):
        """``float64`` where the device has it, else ``float32``."""
        return self.floats[-1]

    def check_dtype(self, dtype):
        """Raise `BackendError` unless ``dtype`` (a name) is a floating dtype of this device."""
        if dtype in self.floats:
            return
        remedy = "Pass dtype='float32'."
        if self.library.name == "jax":
            remedy = "Set JAX_ENABLE_X64=1 (or jax.config.update('jax_enable_x64', True)), or pass dtype='float32'."
        raise BackendError(f"`dtype` {dtype!r} is not to be had on backend {self.name!r}, which has "
                           f"{' and '.join(self.floats)}. {remedy}")  # fmt: skip

    def asarray(self, x, dtype=None, owner=None):
        """``x``, of any library or a nested list, as an array of this backend; ``dtype`` is a name or None.

        ``owner`` is the row of `LIBRARIES` that ``x`` belongs to, for callers who have asked already.
        """
        owner = owner or library_of(x)
        dtype = None if dtype is None else getattr(self.xp, dtype)
        if self.library.name == "numpy":
            return np.asarray(x if owner is None else owner.to_numpy(x), dtype=dtype)
        if owner is not self.library:
            x = np.asarray(x) if owner is None else owner.to_numpy(x)
            # DLPack aborts on negative strides, and torch warns of arrays that it may not write to.
            x = np.ascontiguousarray(x, x.dtype.newbyteorder("="))
            x = x if x.flags.writeable else x.copy()
        elif hasattr(x, "detach"):
            x = x.detach()
        with self.active():
            return self.xp.asarray(x, dtype=dtype, device=self.device)

    def copy(self, x):
        """An array of this backend in memory of its own."""
        with self.active():
            return np.array(x) if self.library.name == "numpy" else self.xp.asarray(x, copy=True)

    def same_place(self, other):
        """Whether another backend is the same library on the same device."""
        return self.library.name == other.library.name and str(self.device) == str(other.device)

    def to_numpy(self, x):
        """``x``, an array of this backend, on the host."""
        return self.library.to_numpy(x)

    def synchronize(self, *arrays):
        """Wait until ``arrays`` are computed: devices and JAX compute behind the caller's back."""
        self.library.synchronize(arrays)

    def __reduce__(self):
        return backend, (self.name,)

    def active(self):
        """A context in which new arrays land on this device (CuPy allocates on its current one)."""
        return self.library.active(self.device)


_NUMPY = Backend("numpy", LIBRARIES["numpy"], np, "cpu")


def namespace(x):
    """The Array API namespace of an array: NumPy itself, else what array-api-compat says."""
    if isinstance(x, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(x)


def library_of(x):
    """The row of `LIBRARIES` that ``x`` belongs to; None for lists, DataFrames and other host data."""
    for library in LIBRARIES.values():
        if library.owns(x):
            return library
    if hasattr(x, "__array_namespace__") or type(x).__module__.startswith("dask."):
        raise BackendError(f"arrays of type {type(x).__module__}.{type(x).__name__} are not supported; "
                           f"bpaccel computes on {', '.join(LIBRARIES)}. Use numpy.asarray first.")  # fmt: skip
    return None


def backend_of(x):
    """The backend that an array lives on; NumPy for lists and DataFrames."""
    return backend_in(library_of(x), x)


def backend_in(library, x):
    """The backend that an array of a library lives on; NumPy if ``library`` is None."""
    if library is None or library.name == "numpy":
        return _NUMPY
    import array_api_compat

    device = array_api_compat.device(x)
    return Backend(f"{library.name}{suffix(library, device)}", library, importlib.import_module(library.module), device)


def dtype_name(x):
    """The plain name of an array's dtype, the same for all libraries: ``"float32"``."""
    dtype = x.dtype
    return _numpy_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


@functools.cache  # NumPy takes microseconds to name a dtype, and a short training asks often
def _numpy_name(dtype):
    return str(dtype.newbyteorder("="))


def available_backends():
    """What each library's state is here: ``{"numpy": "usable", "cupy": "installed, but no usable ..."}``."""
    return {name: why_not(name) or "usable" for name in LIBRARIES}


def backend(name):
    """The backend of a name.

    Parameters
    ----------
    name : str or Backend
        ``library[:device]``, or ``auto``.

    Returns
    -------
    Backend

    Raises
    ------
    BackendError
        If there is no such library, it is not usable here, or it has no such device.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise BackendError(f"`backend` must be a name such as 'numpy' or 'torch:cuda'; got {name!r}.")
    if name == "auto":
        name = "numpy" if why_not("cupy") else "cupy"
    if name == "numpy":
        return _NUMPY
    library_name, _, text = name.partition(":")
    if library_name not in LIBRARIES:
        raise BackendError(f"`backend` {name!r} is not known; it must be library[:device] with a library of "
                           f"{', '.join(LIBRARIES)}, or auto.")  # fmt: skip
    if trouble := why_not(library_name):
        raise BackendError(f"backend {name!r} is not usable: {trouble}.")
    library = LIBRARIES[library_name]
    xp = importlib.import_module(library.module)
    if library_name == "numpy" and text not in ("", "cpu"):
        raise BackendError(f"backend {name!r}: NumPy has no device {text!r}, only 'cpu'.")
    try:
        device = library.device(xp, text)
    except Exception as error:  # each library raises a type of its own for a device that is not there
        detail = str(error).strip().splitlines()
        raise BackendError(f"backend {name!r}: {library_name} has no device {text!r} here"
                           f"{' (' + detail[0] + ')' if detail else ''}.") from error  # fmt: skip
    return Backend(f"{library_name}{suffix(library, device)}", library, xp, device)


def resolve(name, **homes):
    """Where to compute: the name, else where the arrays live, else `BPACCEL_BACKEND`, else NumPy.

    Parameters
    ----------
    name : str, Backend or None
    **homes : Backend or None
        Where the caller's arrays live, by their argument names; None, that of host data, has no say.

    Raises
    ------
    BackendError
        If no name is given and the arrays live in two libraries or on two devices.
    """
    if name is not None:
        return backend(name)
    homes = {key: home for key, home in homes.items() if home is not None}
    first = next(iter(homes.values()), None)
    if not all(home.same_place(first) for home in homes.values()):
        places = " and ".join(f"`{key}` on {home.name}" for key, home in homes.items())
        raise BackendError(f"the arrays live in different places: {places}. "
                           f"Bring them to one, or name a backend for all: backend='numpy'.")  # fmt: skip
    if first is not None and first.library.name != "numpy":
        return first
    return backend(os.environ.get(VARIABLE) or "numpy")
