"""Array libraries: how each is loaded, told from others, brought to the host and waited for.

Adding a library is one row of `LIBRARIES`. Nothing is imported before it is asked for.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

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

    # An array's own device has a number, "cuda:0", where a name may have none; and it fails in words if there is none.
    return torch.empty(0, device=text or "cpu").device


def _cupy_devices(xp):
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(k)["name"].decode() for k in range(count)]
    return [f"{k} ({name})" for k, name in enumerate(names)]


def _torch_devices(xp):
    import torch

    gpus = [f"cuda:{k} ({torch.cuda.get_device_name(k)})" for k in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *["mps"] * torch.backends.mps.is_available()]


def _jax_devices(xp):
    import jax

    return [str(device) for device in jax.devices()]


def _torch_to_numpy(x):
    import torch

    x = x.detach().cpu().resolve_neg().resolve_conj()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16


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


# What a library keeps for itself to give it out again is free, too.
def _free_for_cupy(device):
    import cupy

    with device:
        return device.mem_info[0] + cupy.get_default_memory_pool().free_bytes()


def _free_for_torch(device):
    import torch

    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _free_for_jax(device):
    found = device.memory_stats() or {}  # nothing, on the CPU
    return found["bytes_limit"] - found["bytes_in_use"] if "bytes_limit" in found else None


class Library(NamedTuple):
    """One array library: how it is loaded, told from others, brought to the host and waited for."""

    name: str
    module: str  # the namespace with the standard's functions
    package: str  # what must be importable
    remedy: str  # how to get it
    owns: Callable[[Any], bool]
    device: Callable[[Any, str], Any] = lambda xp, text: "cpu"
    devices: Callable[[Any], list] = lambda xp: ["cpu"]  # their names, as `bpaccel info` shows them
    to_numpy: Callable[[Any], np.ndarray] = np.asarray
    synchronize: Callable[[tuple], None] = lambda arrays: None
    trouble: Callable[[Any], str | None] = lambda module: None
    active: Callable[[Any], Any] = lambda device: contextlib.nullcontext()
    free: Callable[[Any], int | None] = lambda device: None  # bytes of a device's own memory; None: it is the host's


def _compat(test):
    """A test of array-api-compat by name, imported when first needed: NumPy alone never pays for it."""

    def owns(x):
        import array_api_compat

        return getattr(array_api_compat, test)(x)

    return owns


LIBRARIES = {
    row.name: row
    for row in (
        Library(
            name="numpy",
            module="numpy",
            package="numpy",
            remedy="pip install numpy",
            owns=lambda x: isinstance(x, (np.ndarray, np.generic)),
        ),
        Library(
            name="cupy",
            module="array_api_compat.cupy",
            package="cupy",
            remedy="pip install 'bpaccel[cuda13]' (or [cuda12]) on a machine with an NVIDIA GPU",
            owns=_compat("is_cupy_array"),
            device=_cupy_device,
            devices=_cupy_devices,
            to_numpy=lambda x: x.get(),
            synchronize=_wait_for_cupy,
            trouble=_cupy_trouble,
            active=lambda device: device,
            free=_free_for_cupy,
        ),
        Library(
            name="torch",
            module="array_api_compat.torch",
            package="torch",
            remedy="pip install torch",
            owns=_compat("is_torch_array"),
            device=_torch_device,
            devices=_torch_devices,
            to_numpy=_torch_to_numpy,
            synchronize=_wait_for_torch,
            free=_free_for_torch,
        ),
        Library(
            name="jax",
            module="jax.numpy",
            package="jax",
            remedy="pip install jax",
            owns=_compat("is_jax_array"),
            device=_jax_device,
            devices=_jax_devices,
            synchronize=_wait_for_jax,
            free=_free_for_jax,
        ),
        Library(
            name="array_api_strict",
            module="array_api_strict",
            package="array_api_strict",
            remedy="pip install array-api-strict",
            owns=lambda x: type(x).__module__.startswith("array_api_strict"),
            device=_strict_device,
            devices=lambda xp: [str(device).split("'")[1] for device in xp.__array_namespace_info__().devices()],
            # Its simulated devices refuse to be exported by protocol: copied to its CPU first, as from a GPU.
            to_numpy=lambda x: np.asarray(x.to_device(type(x.device)("CPU_DEVICE"))),
        ),
    )
}


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
