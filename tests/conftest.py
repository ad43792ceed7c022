"""Fixtures that all tests share: the backends, as parameters with plain ids.

A library that is missing is a visible skip with its reason; named in `BPACCEL_REQUIRE`, it is a failure.
"""

import os
import shutil
import signal

os.environ.setdefault("JAX_ENABLE_X64", "1")  # float64 on JAX, for tests against NumPy's
os.environ.pop("BPACCEL_BACKEND", None)
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest

from bpaccel.backends import why_not

# A shell that runs the suite in the background has it ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("bpaccel", deadline=None, derandomize=True)
hypothesis.settings.load_profile("bpaccel")

LIBRARIES = ["numpy", "array_api_strict", "jax", "torch", "cupy"]
PLACES = [
    *(f"array_api_strict:{device}" for device in ("device1", "device2", "no_float64", "no_x64")),
    *LIBRARIES,
]


def _usable(name):
    library = name.partition(":")[0]
    skip_or_fail(library, why_not(library))
    return name


def skip_or_fail(name, reason):
    """Skip for a reason why ``name`` is not usable, or fail where it must be; nothing where there is no reason."""
    if reason is not None:
        if name in os.environ.get("BPACCEL_REQUIRE", "").split(","):
            pytest.fail(f"{name} is required by BPACCEL_REQUIRE, but {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")


def _parameters(names):
    return [pytest.param(name, id=name, marks=pytest.mark.gpu if name == "cupy" else ()) for name in names]


@pytest.fixture(params=_parameters(LIBRARIES))
def backend(request):
    """The name of each library's default backend."""
    return _usable(request.param)


@pytest.fixture(params=_parameters(PLACES))
def place(request):
    """The same, with all five devices that array-api-strict simulates."""
    return _usable(request.param)


@pytest.fixture(scope="session")
def usable():
    """A function that skips, or fails where it must run, unless the library of a name is usable."""
    return _usable


@pytest.fixture(scope="session")
def fused():
    """The library of compiled kernels is there."""
    from bpaccel.engines.cpu import library

    skip_or_fail("fused", library.why_not())


@pytest.fixture(scope="session")
def kernel_compiler():
    """The compiler of the kernels for this machine, a `bpaccel.native.build.Compiler`."""
    from bpaccel.native import build

    try:
        reason = None if build.host() else "there are no kernels for this system and processor"
        compiler = None if reason else build.find_compiler()
    except build.BuildError as error:
        reason = str(error)
    skip_or_fail("fused", reason)
    return compiler


@pytest.fixture
def probe(kernel_compiler, tmp_path):
    """A function that compiles a text with the headers of the kernels, and returns the path of the library."""
    from bpaccel.native import build

    def compiled(text):
        build.copy_sources(tmp_path)
        (tmp_path / "probe.cpp").write_text(text)
        target = build.TARGETS[build.host()]
        level = target.libraries[0] if len(target.libraries) == 1 else build.V3
        return kernel_compiler.compile(target, level, str(tmp_path), "probe.cpp")

    return compiled


@pytest.fixture(scope="session")
def gnu_compiler():
    """The command g++."""
    skip_or_fail("g++", None if shutil.which("g++") else "it is not in PATH")
    return "g++"


@pytest.fixture(scope="session")
def emulator():
    """A function: the command that runs programs of another processor, for a name of qemu's."""
    import importlib.util

    def command(name):
        found = shutil.which(f"{name}-static") or shutil.which(name)
        reason = None if found else f"{name} is not in PATH"
        if not importlib.util.find_spec("ziglang"):
            reason = "its programs are compiled by the package ziglang, which is not installed"
        skip_or_fail("qemu", reason)
        return found

    return command


@pytest.fixture(scope="session")
def host_cuda():
    """The stand-in for CuPy that runs CUDA kernels on the CPU; it needs g++."""
    import host_cuda

    skip_or_fail("g++", host_cuda.missing())
    return host_cuda


@pytest.fixture(scope="session")
def nvrtc():
    """NVIDIA's compiler and its report; it needs CuPy and NVRTC, not a GPU."""
    import compiled

    skip_or_fail("nvrtc", compiled.missing())
    return compiled


@pytest.fixture(scope="session")
def nvdisasm(nvrtc):
    """The same, where machine code can be read too."""
    skip_or_fail("nvdisasm", nvrtc.no_disassembler())
    return nvrtc
