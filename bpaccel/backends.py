"""The switch: which array library computes, on which device.

A backend is named ``library[:device]``: ``numpy``, ``cupy``, ``cupy:1``, ``torch``, ``torch:cuda``, ``jax``,
``array_api_strict``; ``auto`` is CuPy where a GPU is usable, else NumPy. There is no process-wide state: a
backend is an argument, or it follows the arrays. This is the only module that knows array-api-compat, and adding
a library is one row of `LIBRARIES`.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

VARIABLE = "BPACCEL_BACKEND"


class BackendError(ValueError):
    """A backend that does not exist, is not usable here, or lacks what was asked of it."""


def _cupy_trouble(cupy):
    # `is_available` is the one call that answers without a driver; everything else raises CUDARuntimeError.
    return None if cupy.is_available() else "installed, but no usable CUDA device was found"


def _cupy_device(xp, text):
    import cupy

    number = int(text or cupy.cuda.runtime.getDevice())
    count = cupy.cuda.runtime.getDeviceCount()
    if number >= count:
        raise ValueError(f"there are {count} CUDA devices, numbered from 0")
    return cupy.cuda.Device(number)


def _torch_device(xp, text):
    import torch

    device = torch.device(text or "cpu")
    torch.empty(0, device=device)  # fails in words where the device is not there
    return device


def _jax_device(xp, text):
    import jax

    if not text:
        return jax.devices()[0]
    platform, _, number = text.partition(":")
    return jax.devices(platform)[int(number or 0)]


def _strict_device(xp, text):
    devices = {str(d).split("'")[1]: d for d in xp.__array_namespace_info__().devices()}
    return devices[text or "CPU_DEVICE"]


def _wait_for_cupy(arrays):
    import cupy

    for device in {int(a.device) for a in arrays}:
        cupy.cuda.Device(device).synchronize()


def _wait_for_torch(arrays):
    import torch

    for device in {a.device for a in arrays}:
        if device.type != "cpu":
            getattr(torch, device.type).synchronize(device)


def _wait_for_jax(arrays):
    import jax

    jax.block_until_ready(arrays)  # JAX has no global synchronisation


@dataclass(frozen=True)
class Library:
    """One array library: how it is loaded, told from others, brought to the host and waited for."""

    name: str
    module: str  # the namespace with the standard's functions
    package: str  # what must be importable
    remedy: str  # how to get it
    owns: Callable[[Any], bool]
    device: Callable[[Any, str], Any] = lambda xp, text: "cpu"
    to_numpy: Callable[[Any], np.ndarray] = np.asarray
    synchronize: Callable[[tuple], None] = lambda arrays: None
    trouble: Callable[[Any], str | None] = lambda module: None
    active: Callable[[Any], Any] = lambda device: contextlib.nullcontext()


def _compat(test):
    """A test of array-api-compat by name, imported when first needed: NumPy alone never pays for it."""

    def owns(x):
        import array_api_compat

        return getattr(array_api_compat, test)(x)

    return owns


LIBRARIES = {
    row.name: row
    for row in (
        Library("numpy", "numpy", "numpy", "pip install numpy", lambda x: isinstance(x, (np.ndarray, np.generic))),
        Library(
            "cupy",
            "array_api_compat.cupy",
            "cupy",
            "pip install 'bpaccel[cuda13]' (or [cuda12]) on a machine with an NVIDIA GPU",
            _compat("is_cupy_array"),
            _cupy_device,
            lambda x: x.get(),
            _wait_for_cupy,
            _cupy_trouble,
            lambda device: device,
        ),
        Library(
            "torch",
            "array_api_compat.torch",
            "torch",
            "pip install torch",
            _compat("is_torch_array"),
            _torch_device,
            lambda x: x.detach().cpu().resolve_neg().resolve_conj().numpy(),
            _wait_for_torch,
        ),
        Library("jax", "jax.numpy", "jax", "pip install jax", _compat("is_jax_array"), _jax_device,
                synchronize=_wait_for_jax),
        Library(
            "array_api_strict",
            "array_api_strict",
            "array_api_strict",
            "pip install array-api-strict",
            lambda x: type(x).__module__.startswith("array_api_strict"),
            _strict_device,
            # Its simulated devices refuse to be exported by protocol: copied to its CPU first, as from a GPU.
            lambda x: np.asarray(x.to_device(type(x.device)("CPU_DEVICE"))),
        ),
    )
}  # fmt: skip


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

    def asarray(self, x, dtype=None):
        """``x``, of any library or a nested list, as an array of this backend; ``dtype`` is a name or None."""
        owner = library_of(x)
        dtype = None if dtype is None else getattr(self.xp, dtype)
        if self.library.name == "numpy":
            return np.asarray(x if owner is None else owner.to_numpy(x), dtype=dtype)
        if owner is not self.library:
            x = np.asarray(x) if owner is None else owner.to_numpy(x)
            # DLPack aborts on negative strides, and torch warns of arrays that it may not write to.
            x = np.ascontiguousarray(x)
            x = x if x.flags.writeable else x.copy()
        elif hasattr(x, "detach"):
            x = x.detach()
        with self.active():
            return self.xp.asarray(x, dtype=dtype, device=self.device)

    def to_numpy(self, x):
        """``x``, an array of this backend, on the host."""
        return self.library.to_numpy(x)

    def synchronize(self, *arrays):
        """Wait until ``arrays`` are computed: devices and JAX compute behind the caller's back."""
        self.library.synchronize(arrays)

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
    if hasattr(x, "__array_namespace__") or hasattr(x, "dask"):
        raise BackendError(f"arrays of type {type(x).__module__}.{type(x).__name__} are not supported; "
                           f"bpaccel computes on {', '.join(LIBRARIES)}. Convert with numpy.asarray first.")  # fmt: skip
    return None


def backend_of(x):
    """The backend that an array lives on; NumPy for lists and DataFrames."""
    library = library_of(x)
    if library is None or library.name == "numpy":
        return _NUMPY
    import array_api_compat

    device = array_api_compat.device(x)
    return Backend(f"{library.name}{_suffix(library, device)}", library, importlib.import_module(library.module), device)


def _suffix(library, device):
    """``:device`` in the words that `backend` takes; nothing for the library's plain CPU."""
    text = {"cupy": lambda: str(device.id), "array_api_strict": lambda: str(device).split("'")[1]}.get(
        library.name, lambda: str(device)
    )()
    return "" if text in ("cpu", "CPU_DEVICE", "cpu:0", "TFRT_CPU_0") else f":{text}"


def dtype_name(x):
    """The plain name of an array's dtype, the same for all libraries: ``"float32"``."""
    return str(x.dtype).rpartition(".")[2]


def why_not(name):
    """Why a library cannot be used here, in words with the remedy; None where it can."""
    library = LIBRARIES[name]
    if importlib.util.find_spec(library.package) is None:
        return f"not installed: {library.remedy}"
    try:
        if trouble := library.trouble(importlib.import_module(library.package)):
            return trouble
        importlib.import_module(library.module)
    except Exception as error:  # a broken install is a reason, not a crash: drivers fail in many ways
        return f"installed, but it does not import: {type(error).__name__}: {error}"
    return None


def backends():
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
    return Backend(f"{library_name}{_suffix(library, device)}", library, xp, device)


def resolve(name, **arrays):
    """Where to compute: the name, else where the arrays live, else `BPACCEL_BACKEND`, else NumPy.

    Parameters
    ----------
    name : str, Backend or None
    **arrays
        The caller's arrays by their argument names; None and host data have no say.

    Raises
    ------
    BackendError
        If no name is given and the arrays live in two libraries or on two devices.
    """
    if name is not None:
        return backend(name)
    homes = {key: backend_of(x) for key, x in arrays.items() if x is not None and library_of(x) is not None}
    if len({(home.library.name, str(home.device)) for home in homes.values()}) > 1:
        places = " and ".join(f"`{key}` on {home.name}" for key, home in homes.items())
        raise BackendError(f"the arrays live in different places: {places}. "
                           f"Bring them to one, or name a backend for all: backend='numpy'.")  # fmt: skip
    for home in homes.values():
        if home.library.name != "numpy":
            return home
    return backend(os.environ.get(VARIABLE) or "numpy")
