"""The machine that a benchmark ran on, in plain words and numbers.

No host name, user or path is among them, so that results can be shown to others.
"""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import bpaccel
from bpaccel.engines import processors, thread_count
from bpaccel.engines.cpu.library import Missing, library

LIBRARIES = ("numpy", "cupy", "torch", "jax", "array_api_strict")
# What changes the speed, or the results, of the libraries: shown where it is set.
SETTINGS = (
    "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "JAX_ENABLE_X64", "CUPY_TF32", "CUPY_ACCELERATORS", "BPACCEL_LEVEL",
)  # fmt: skip


def describe(threads=None):
    """The machine, the versions of the libraries that are loaded, BLAS, and the settings that count.

    Parameters
    ----------
    threads : int, optional
        What was asked of the engines.

    Returns
    -------
    dict
        Ready for JSON. Memory is in bytes. ``level`` is that of the compiled kernels, None where there are none;
        ``commit`` is None where the package is not in a checkout.
    """
    return {
        "processor": _processor(),
        "cores": processors(),
        "memory": memory(),
        "system": f"{platform.system()} {platform.release()}",
        "threads": thread_count(threads),
        "level": _level(),
        "versions": versions(),
        "blas": _blas(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "commit": _commit(),
    }


def versions():
    """Versions of bpaccel, Python and the array libraries that are loaded: a dict of str."""
    loaded = {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}
    return {"bpaccel": bpaccel.__version__, "python": platform.python_version()} | loaded


def in_words(machine):
    """The same as a few lines of text."""
    versions = machine["versions"]
    memory = f", {machine['memory'] / 2**30:.0f} GiB" if machine["memory"] else ""
    commit, _, changed = (machine["commit"] or "").partition("-")
    commit = f" (commit {commit[:12]}{', changed since' * bool(changed)})" if commit else ""
    kernels = f", kernels of level {machine['level']}" if machine.get("level") else ""
    lines = [
        f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}",
        f"bpaccel {versions['bpaccel']}{commit}, Python {versions['python']}",
        ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("bpaccel", "python")),
        f"BLAS: {machine['blas'] or 'unknown (threadpoolctl is not installed)'}; engines: {machine['threads']} threads"
        f"{kernels}",
    ]
    if machine.get("load_before") is not None:
        lines[0] += f", load average {machine['load_before']:.1f} before the run"
    if machine["settings"]:
        lines.append("settings: " + ", ".join(f"{name}={value}" for name, value in machine["settings"].items()))
    return lines


def load():
    """How many processes wanted to run, on average over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def memory():
    """Bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def blas_threads(threads):
    """A context that holds BLAS to some threads, if threadpoolctl is there; None leaves it alone."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return contextlib.nullcontext() if threads is None else threadpool_limits(threads, user_api="blas")


def device(backend):
    """What a backend computes on, in its maker's words where the library knows them."""
    name, place = backend.library.name, backend.device
    if name == "cupy":
        import cupy

        return cupy.cuda.runtime.getDeviceProperties(place.id)["name"].decode()
    if name == "torch" and place.type == "cuda":
        import torch

        return torch.cuda.get_device_name(place)
    return getattr(place, "device_kind", None) or str(place)  # JAX's devices have a kind


def _processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _level():
    try:
        return library().level
    except Missing:
        return None


def _blas():
    """The BLAS that NumPy calls, the kernel that it chose, and its threads; None without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    words = [f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'kernel unknown')}, "
             f"{pool['num_threads']} threads)" for pool in pools]  # fmt: skip
    return ", ".join(dict.fromkeys(words)) or "none found"


def _commit():
    """The commit of the checkout that this file is tracked in, with -dirty where files were changed since; or None."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
