"""Our kernels as NVIDIA's compiler sees them, for the chips of several years: no GPU is needed, NVRTC is."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from bpaccel import activations
from bpaccel.engines import cuda, wide
from bpaccel.testing import Case

ARCHS = (75, 80, 90, 100, 120)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_wide_kernels_keep_their_numbers_in_registers(nvrtc, arch, dtype):
    _, kernels = nvrtc.compile(wide.source(), wide.options(dtype), arch)
    assert set(kernels) == set(wide.KERNELS)
    for name, kernel in kernels.items():
        assert kernel.stack == kernel.spills == 0, f"{name}: {kernel}"
        assert kernel.registers <= (128 if name == "softmax" else 64), f"{name}: {kernel}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_and_deltas_move_16_bytes_at_a_time(nvdisasm, dtype, tmp_path):
    binary, _ = nvdisasm.compile(wide.source(), wide.options(dtype), 90)
    for name, loads in (("activate", 1), ("descend", 2)):
        code = nvdisasm.instructions(binary, name, tmp_path)
        assert sum("LDG.E.128" in line for line in code) >= loads, name
        assert sum("STG.E.128" in line for line in code) >= 1, name


def test_no_kernel_adds_floats_in_the_order_of_arrival(nvdisasm, tmp_path):
    binary, kernels = nvdisasm.compile(wide.source(), wide.options("float32"), 90)
    for name in kernels:
        assert not [line for line in nvdisasm.instructions(binary, name, tmp_path) if re.match(r"(RED|ATOM)", line)]


# Networks that the fused engine takes: the tutorial's, and some with every activation and every loss among them.
FUSED = [
    Case((3, 1), ("sigmoid",), "squared_error", "float32"),
    Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float32"),
    Case((2, 4, 1), ("tanh", "sigmoid"), "log_loss", "float32", bias=True, weighted=True),
    Case((4, 4, 2), ("relu", "softmax"), "log_loss", "float32"),
    Case((3, 3, 3, 2), ("elu", "tanh", "leaky_relu"), "huber:0.5", "float32", bias=True),
    Case((4, 4, 4), ("softplus", "exp"), "poisson", "float32"),
    Case((3, 16, 1), ("sigmoid", "identity"), "quantile:0.9", "float32"),
    Case((3, 1), ("sigmoid",), "absolute_error", "float64", bias=True),
    Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", "float64"),
    Case((3, 8, 1), ("sigmoid", "sigmoid"), "squared_error", "float64"),
]


def near_the_limit(count, seed=0):
    """Networks that keep almost as many numbers as a thread may, of any kind: ``(case, vector)``."""
    rng = np.random.default_rng(seed)
    names = [name for name in activations.ACTIVATIONS if name != "softmax"]
    found = []
    while len(found) < count:
        depth, form = int(rng.integers(1, 4)), rng.random(4)
        sizes = tuple(int(size) for size in rng.integers(1, 10, depth + 1))
        outer = "softmax" if sizes[-1] > 1 and form[0] < 0.2 else str(rng.choice(names))
        chosen = (*(str(name) for name in rng.choice(names, depth - 1)), outer)
        loss = "log_loss" if outer in ("softmax", "sigmoid") else str(rng.choice(["squared_error", "huber:0.5"]))
        dtype = "float64" if form[1] < 0.4 else "float32"
        case = Case(sizes, chosen, loss, dtype, bias=bool(form[2] < 0.5), weighted=bool(form[3] < 0.5))
        for vector in (True, False):
            need = cuda.Cuda.registers(case.objective(), dtype, weighted=case.weighted, vector=vector)
            if 0.85 * cuda.MOST_REGISTERS <= need <= cuda.MOST_REGISTERS:
                found.append((case, vector))
    return found[:count]


def fused(compiler, case, arch, vector=True, choices=cuda.Cuda.blocks_at_once):
    """The machine code of a network's kernel, the compiler's report, and how many of its CUDA blocks fit at once: the
    first choice that spills nothing, as the engine makes it."""
    options = cuda.Cuda.options(case.objective(), case.dtype, weighted=case.weighted, vector=vector)
    for blocks in choices:
        binary, kernels = compiler.compile(cuda.SOURCE.read_text(), (*options, f"-DMIN_BLOCKS={blocks}"), arch)
        assert set(kernels) == {"train"}
        if kernels["train"].stack == 0:
            break
    return binary, kernels["train"], blocks


@pytest.mark.parametrize("case", FUSED, ids=str)
@pytest.mark.parametrize("arch", [75, 90, 120])
def test_a_fused_network_keeps_its_numbers_in_registers(nvrtc, arch, case):
    _, kernel, blocks = fused(nvrtc, case, arch)
    assert kernel.stack == kernel.spills == 0, kernel
    assert kernel.registers * cuda.Cuda.threads_of_a_block * blocks <= 2**16, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_so_does_one_that_is_almost_refused(nvrtc, arch):
    """With one CUDA block on a multiprocessor at least, which is what is asked for last."""
    for case, vector in near_the_limit(6, seed=arch):
        _, kernel, _ = fused(nvrtc, case, arch, vector, choices=(1,))
        assert kernel.stack == kernel.spills == 0, f"{case}, vector={vector}: {kernel}"


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_that_are_not_packed_spill_nothing_either(nvrtc, arch):
    for case in FUSED[1], FUSED[8]:
        _, kernel, _ = fused(nvrtc, case, arch, vector=False)
        assert kernel.stack == kernel.spills == 0, f"{case}: {kernel}"


def test_the_tutorials_network_reads_its_rows_16_bytes_at_a_time(nvdisasm, tmp_path):
    """Four rows of 3 inputs and 1 target are 4 loads, and no number on their way goes through memory."""
    binary, _, blocks = fused(nvdisasm, FUSED[1], 90)
    assert blocks == 3
    code = nvdisasm.instructions(binary, "train", tmp_path)
    assert sum(line.startswith("LDG.E.128") for line in code) == 4
    assert not [line for line in code if re.match(r"(LDL|STL)", line)]
    assert not [line for line in code if re.match(r"(RED|ATOM)", line) and re.search(r"F(16|32|64)", line)]


def test_the_code_that_is_looked_at_is_the_code_that_cupy_makes(nvdisasm, tmp_path):
    """CuPy puts options of its own behind ours: on a GPU, subnormal numbers of float32 are 0."""
    source = Path(importlib.util.find_spec("cupy").submodule_search_locations[0], "cuda/compiler.py").read_text()
    for option in nvdisasm.CUPY_OPTIONS:
        assert repr(option) in source
    binary, _, _ = fused(nvdisasm, FUSED[1], 90)
    code = [line.split()[0] for line in nvdisasm.instructions(binary, "train", tmp_path)]
    additions = {name for name in code if name.startswith("FADD")}  # divisions and roots have steps that are not
    assert additions == {"FADD.FTZ"}
