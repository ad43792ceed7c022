"""What this machine can do at best: its rate of logistics, and its memory's bandwidth, with all threads."""

import ctypes
import functools
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bpaccel.engines import thread_count
from bpaccel.engines.cpu.library import library
from bpaccel.native import build

CACHED = 2048  # numbers that stay in the first cache
READ_BYTES = 2**29  # far more than the last cache holds
SECONDS = 0.1  # of a sample


def measure(dtype, samples=7):
    """The best of some samples, for the floor is what can be reached.

    Returns
    -------
    dict
        ``logistic_seconds`` an element, ``bytes_a_second`` read.

    Raises
    ------
    bpaccel.engines.cpu.library.Missing
        If this processor has no kernels.
    bpaccel.native.build.BuildError
        If there is no compiler.
    """
    table = np.ones(READ_BYTES // 8)
    cuts = np.linspace(0, table.size // 64, thread_count() + 1).astype(int) * 64
    parts = [table[first:stop] for first, stop in pairwise(cuts)]
    with ThreadPoolExecutor(len(parts)) as pool:

        def seconds(function, arguments):
            began = time.perf_counter()
            list(pool.map(function, arguments))
            return time.perf_counter() - began

        own = [aligned(np.linspace(-8.0, 8.0, CACHED).astype(dtype)) for _ in parts]
        logistic(own[0], 1)
        took = seconds(lambda x: logistic(x, 1000), own) / 1000
        passes = max(1, round(SECONDS / took))
        elements = passes * CACHED * len(parts)
        read(parts[0])
        return {
            "logistic_seconds": min(seconds(lambda x: logistic(x, passes), own) for _ in range(samples)) / elements,
            "bytes_a_second": table.nbytes / min(seconds(read, parts) for _ in range(samples)),
        }


def seconds_a_row(floor, layer_sizes, dtype):
    """The least time a row: its logistics, or its bytes, whichever takes longer. Matrix products are not counted."""
    logistics = sum(layer_sizes[1:]) * floor["logistic_seconds"]
    size = (layer_sizes[0] + layer_sizes[-1]) * np.dtype(dtype).itemsize
    return max(logistics, size / floor["bytes_a_second"])


def logistic(x, passes):
    """The kernels' logistic of all numbers of an array, in place, some times; they are a multiple of 32."""
    getattr(_compiled(), f"logistic_{x.dtype.name}")(_address(x), ctypes.c_int64(x.size), ctypes.c_int64(passes))


def read(x):
    """The sum of an array of float64; its numbers are a multiple of 64."""
    return _compiled().sum(_address(x), ctypes.c_int64(x.size))


@functools.cache
def _compiled():
    """The functions of floor.cpp, for the level of this process; a call of them gives the GIL back."""
    compiler, target = build.find_compiler(), build.TARGETS[build.host()]
    level = next(known for known in target.libraries if known.name == library().level)
    with tempfile.TemporaryDirectory(prefix="bpaccel-", ignore_cleanup_errors=True) as folder:
        build.copy_sources(folder)
        shutil.copy(Path(__file__).with_suffix(".cpp"), folder)
        loaded = ctypes.CDLL(compiler.compile(target, replace(level, name="floor"), folder, "floor.cpp"))
    loaded.sum.restype = ctypes.c_double
    return loaded


def _address(x):
    return x.ctypes.data_as(ctypes.c_void_p)


def aligned(x, line=64):
    """A copy of an array that begins on a line of the cache."""
    memory = np.empty(x.nbytes + line, np.uint8)
    skip = -memory.ctypes.data % line
    place = memory[skip : skip + x.nbytes].view(x.dtype)
    place[:] = x
    return place
