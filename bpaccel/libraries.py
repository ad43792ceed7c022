"""Array libraries: how each is loaded, told from others, brought to the host and waited for.

Adding a library is one row of `LIBRARIES`. Nothing is imported before it is asked for.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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


def suffix(library, device):
    """``:device`` in the words that `backend` takes; nothing for the library's plain CPU."""
    text = {"cupy": lambda: str(device.id), "array_api_strict": lambda: str(device).split("'")[1]}.get(
        library.name, lambda: str(device)
    )()
    return "" if text in ("cpu", "CPU_DEVICE", "cpu:0", "TFRT_CPU_0") else f":{text}"
