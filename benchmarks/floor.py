"""What this machine can do at best: its rate of logistics, and its memory's bandwidth, with all threads."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from bpaccel.engines import lanes, memory, thread_count, vmath

CACHED = 2048  # numbers that stay in the first cache
LANES = {"float32": 32, "float64": 16}
READ_BYTES = 2**29  # far more than the last cache holds
SECONDS = 0.1  # of a sample


def measure(dtype, samples=7):
    """The best of some samples, for the floor is what can be reached.

    Returns
    -------
    dict
        ``logistic_seconds`` an element, ``bytes_a_second`` read.
    """
    logistic, read = _logistic(dtype), _reader()
    table = np.ones(READ_BYTES // 8)
    parts = np.array_split(table, thread_count())
    with ThreadPoolExecutor(len(parts)) as pool:

        def seconds(function, arguments):
            began = time.perf_counter()
            list(pool.map(function, arguments))
            return time.perf_counter() - began

        own = [_aligned(np.linspace(-8.0, 8.0, CACHED).astype(dtype)) for _ in parts]
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


def _logistic(dtype):
    count = LANES[dtype]
    sigmoid = lanes.lane_function(lambda spec, value: vmath.sigmoid(value))

    def run(k, a, n, passes):
        for _ in range(passes):
            for r in range(0, n, count):
                memory.store(k, a, r, sigmoid(k, memory.load(k, a, r)))

    signature = numba.types.void(lanes.KindType(lanes.Kind(dtype, count)), *[numba.int64] * 3)
    compiled = numba.cfunc(signature, error_model="numpy")(run)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3)(compiled.address)  # gives the GIL back

    def logistic(x, passes):
        call(None, x.ctypes.data, x.size, passes)

    logistic.keep = compiled
    return logistic


def _reader():
    @numba.njit(nogil=True, fastmath=True)
    def read(x):
        total = 0.0
        for value in x:
            total += value
        return total

    return read


def _aligned(x, line=64):
    memory = np.empty(x.nbytes + line, np.uint8)
    skip = -memory.ctypes.data % line
    place = memory[skip : skip + x.nbytes].view(x.dtype)
    place[:] = x
    return place
