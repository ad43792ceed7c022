"""What our launch code uses of CuPy, on NumPy arrays: CUDA C++ is compiled by g++ and run on the CPU.

It stands in for the module `cupy`, so that the code that launches kernels on a GPU runs unchanged under test. Unlike
the driver it checks every argument against its parameter, what is not yet written is nan, what a kernel writes behind
an array is an error, and copies and kernels of a stream come as late as its events and synchronisations allow.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HEADER = Path(__file__).with_name("cuda_host.hpp")
_FOLDER = f"bpaccel-host-cuda-{getattr(os, 'getuid', int)()}"
CACHE = Path(os.environ.get("BPACCEL_HOST_CUDA_CACHE", Path(tempfile.gettempdir()) / _FOLDER))
SANITIZE = os.environ.get("BPACCEL_SANITIZE", "")  # "thread" or "address,undefined"
# -ffp-contract=off: a fused multiply-add only where the source says fma. Hidden and not gnu-unique: modules compiled
# with other macros keep shared memory of their own. -Wdouble-promotion: no float32 kernel computes in float64 unawares.
FLAGS = [
    *("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"),
    *("-fvisibility=hidden", "-fno-gnu-unique"),
    *("-Wall", "-Wextra", "-Wdouble-promotion", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused", "-x", "c++", "-"),
]
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")


def missing():
    """Why kernels cannot be run on this machine's CPU; None where they can."""
    if not hasattr(os, "getuid") or os.uname().sysname != "Linux":
        return "CUDA kernels run on the CPU on Linux only"
    return None if shutil.which("g++") else "no g++ on the PATH"


class RawModule:
    """`cupy.RawModule`: its functions are called as ``f(grid, block, args)``.

    Attributes
    ----------
    seed : int
        Of the order in which threads and blocks run. The class's, so that a test can set it for all.
    """

    seed = 0

    def __init__(self, code, *, options=(), enable_cooperative_groups=False):
        self.cooperative = enable_cooperative_groups
        self.library = _compiled(code, tuple(options))

    def get_function(self, name):
        return _Function(self, name)


@functools.cache
def _compiled(code, options):
    """A loaded library, compiled unless the cache has it."""
    text = code + "".join(f"\nHOST_KERNEL({name})" for name in _KERNEL.findall(code)) + "\n"
    command = ["g++", "-include", str(HEADER), *FLAGS, *(o for o in options if o.startswith("-D"))]
    if SANITIZE:
        command += ["-g", f"-fsanitize={SANITIZE}"]
    key = "\0".join([text, HEADER.read_text(), *command, _processor()])
    path = CACHE / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".so")
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, "-o", str(scratch)], input=text, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        scratch.replace(path)  # whole or not at all: other processes compile the same
    return ctypes.CDLL(str(path))


@functools.cache
def _processor():
    """What -march=native means here: a cache may outlive the machine."""
    command = ["g++", "-march=native", "-Q", "--help=target"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class _Function:
    local_size_bytes = 0  # g++ spills as it likes

    def __init__(self, module, name):
        self._module, self._name = module, name
        self._launch = getattr(module.library, name + "_launch")
        signature = getattr(module.library, name + "_signature")
        signature.restype = ctypes.c_char_p
        self._parameters = signature().decode().split()

    def __call__(self, grid, block, args):
        if len(args) != len(self._parameters):
            raise TypeError(f"{self._name} takes {len(self._parameters)} arguments, not {len(args)}")
        cells = [
            _cell(f"argument {i} of {self._name}", value, parameter)
            for i, (value, parameter) in enumerate(zip(args, self._parameters))
        ]
        cuda.get_current_stream().submit(lambda: self._run(grid, block, cells, args))

    def _run(self, grid, block, cells, keep):
        argv = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
        grid, block = ((ctypes.c_uint * 3)(*size, *[1] * (3 - len(size))) for size in (grid, block))
        why = ctypes.create_string_buffer(400)
        seed, room = ctypes.c_uint64(RawModule.seed), ctypes.c_size_t(len(why))
        if self._launch(grid, block, argv, seed, int(self._module.cooperative), why, room):
            raise RuntimeError(f"{self._name}: {why.value.decode()}")
        for memory in list(_memory.values()):
            if (memory[memory.size - GUARD :] != 0xFF).any():
                raise RuntimeError(f"{self._name} wrote behind an array of {memory.size - GUARD} bytes")


def _cell(where, value, parameter):
    """The bytes that the kernel reads for one argument; a parameter is "Pf4" (const float*), "pf4" or "si8"."""
    kind, dtype = parameter[0], np.dtype(parameter[1:])
    if kind == "s":
        if not isinstance(value, np.generic) or value.dtype != dtype:
            raise TypeError(f"{where} must be a numpy.{dtype}; got {value!r}")
        return np.array([value])
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise TypeError(f"{where} must be an array of {dtype}; got {value!r}")
    if kind == "p" and not value.flags.writeable:
        raise ValueError(f"{where} is written by the kernel, but read-only")
    return np.array([value.ctypes.data], dtype=np.uint64)


class Stream:
    """A stream whose work is done as late as it may be; the null stream's is done at once, after all others'."""

    _all: list = []  # noqa: RUF012
    _current: list = []  # noqa: RUF012

    def __init__(self, null=False, non_blocking=False):
        self._null, self._work, self._done = null, [], 0
        if not null:
            Stream._all.append(self)
        self._blocking = not non_blocking

    def submit(self, function):
        self._work.append(function)
        if self._null:
            for stream in Stream._all:
                if stream._blocking:
                    stream.synchronize()
            self.synchronize()

    def synchronize(self):
        self._catch_up(self._done + len(self._work))

    def wait_event(self, event):
        place = event.place  # as it is now: an event may be recorded again
        if place is not None:
            self.submit(lambda: place[0]._catch_up(place[1]))

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def __enter__(self):
        Stream._current.append(self)
        return self

    def __exit__(self, *_):
        Stream._current.pop()

    def _catch_up(self, count):
        while self._done < count:
            self._done += 1
            self._work.pop(0)()


class Event:
    """A place in a stream's work."""

    def __init__(self, **_):
        self.place = None

    def record(self, stream=None):
        stream = stream or cuda.get_current_stream()
        self.place = stream, stream._done + len(stream._work)

    def synchronize(self):
        if self.place is not None:
            stream, count = self.place
            stream._catch_up(count)


class Device:
    """One of two GPUs, each of two multiprocessors; without a number, the current one."""

    attributes = {"MultiProcessorCount": 2, "CooperativeLaunch": 1, "L2CacheSize": 2**25}  # noqa: RUF012
    _current = [0]  # noqa: RUF012

    def __init__(self, device=None):
        self.id = Device._current[-1] if device is None else int(device)

    def __enter__(self):
        Device._current.append(self.id)
        return self

    def __exit__(self, *_):
        Device._current.pop()


_NULL = Stream(null=True)
cuda = SimpleNamespace(
    Stream=Stream,
    Event=Event,
    Device=Device,
    alloc_pinned_memory=bytearray,
    get_current_stream=lambda: Stream._current[-1] if Stream._current else _NULL,
)


class ndarray(np.ndarray):
    """A device array, of NumPy: its pointer is called `data.ptr`."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def set(self, host, stream=None):
        """Copy from the host; reads it when the stream comes to it."""
        (stream or cuda.get_current_stream()).submit(lambda: np.copyto(self, host, casting="no"))


# Bytes behind an array, which nobody may write to; a sanitizer looks itself.
GUARD = 0 if SANITIZE else 4096
_memory: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def empty(shape, dtype=float):
    """Memory as a GPU may hand it out: full of nan, or of large numbers."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + GUARD, 0xFF, np.uint8)
    _memory[id(memory)] = memory
    return memory[:size].view(dtype).reshape(shape).view(ndarray)


def zeros(shape, dtype=float):
    array = empty(shape, dtype)
    array[...] = 0
    return array


def asarray(x):
    return np.asarray(x).view(ndarray)


def from_dlpack(x):
    """Another library's array, in the same memory; NumPy's own may be read-only."""
    return asarray(x) if isinstance(x, np.ndarray) else np.from_dlpack(x).view(ndarray)


def concatenate(arrays):
    return np.concatenate(arrays).view(ndarray)


def __getattr__(name):
    return getattr(np, name)
