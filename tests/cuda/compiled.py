"""What NVIDIA's compiler makes of our kernels, read without a GPU or a driver: NVRTC, through CuPy's own binding."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# What CuPy puts behind the options that it is given, where the last of two counts (cupy/cuda/compiler.py).
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


def missing():
    """Why kernels cannot be compiled here, with the remedy; None where they can."""
    remedy = "pip install cupy-cuda13x nvidia-cuda-nvrtc"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {remedy}"
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except RuntimeError as error:  # the library is looked for at the first call
        return f"CuPy finds no NVRTC ({str(error).splitlines()[0]}): {remedy}"
    return None


def no_disassembler():
    """Why machine code cannot be read here, with the remedy; None where it can."""
    return None if _nvdisasm() else "nvdisasm is not installed: pip install nvidia-cuda-nvdisasm"


def _nvdisasm():
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    return next((tool for folder in folders for tool in Path(folder).glob("*/bin/nvdisasm")), shutil.which("nvdisasm"))


@dataclass(frozen=True)
class Kernel:
    """The compiler's own report of a kernel: registers of a thread, bytes of its stack, bytes of spilled registers."""

    registers: int
    stack: int
    spills: int


def compile(source, options, arch):
    """Compile CUDA C++ as CuPy does, for a chip, ``90`` for compute capability 9.0.

    Returns
    -------
    binary : bytes
    kernels : dict of Kernel
        By name.

    Raises
    ------
    RuntimeError
        With the compiler's own words, if it does not compile.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (*options, *CUPY_OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v"))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        log = nvrtc.getProgramLog(program)
        binary = nvrtc.getCUBIN(program) + b"\0"  # CuPy takes the last byte for the end of a text
    finally:
        nvrtc.destroyProgram(program)
    kernels = {}
    for name, report in re.findall(r"entry function '(\w+)'(.*?)Compile time", log, re.DOTALL):
        numbers = [rf"(\d+) {words}" for words in ("registers", "bytes stack frame", "bytes spill stores")]
        kernels[name] = Kernel(*(int(re.search(number, report)[1]) for number in numbers))
    return binary, kernels


def instructions(binary, kernel, folder):
    """A kernel's machine instructions, a list of str, in their order."""
    path = Path(folder) / "kernels.cubin"
    path.write_bytes(binary)
    text = subprocess.run([_nvdisasm(), "-c", path], capture_output=True, text=True, check=True).stdout
    body = re.search(rf"\.text\.{kernel}:(.*?)(\.section|\Z)", text, re.DOTALL)[1]
    return re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", body)
