"""Every processor gives the same bytes: AVX-512 and AVX2 here, AVX2 and NEON under qemu."""

import ctypes
import functools
import itertools
import os
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bpaccel import activations, losses, solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.dropout import Dropout
from bpaccel.engines import Batches
from bpaccel.engines.cpu import forward, fused, launch, library
from bpaccel.engines.cpu.fused import Fused
from bpaccel.engines.cpu.plan import BLOCK_ROWS, Address, Field, Plan, Table
from bpaccel.formulas import rows
from bpaccel.native import build

pytestmark = pytest.mark.usefixtures("fused")
DTYPES = ["float32", "float64"]


def run(sizes, names, loss="squared_error", *, solver="gradient_descent", batch=None, changes=(), **words):
    """A case without its dtype, the changes of its objective, its solver, the rows of its batches (None: all rows)."""
    return (sizes, names, loss), {"n": BLOCK_ROWS + 77} | words, dict(changes), solver, batch


RUNS = {
    "written out": run((3, 4, 1), ("sigmoid", "sigmoid"), n=2 * BLOCK_ROWS + 77),
    "written out, few rows": run((3, 4, 1), ("sigmoid", "sigmoid"), n=5),
    "written out, bias": run((2, 4, 1), ("tanh", "sigmoid"), "log_loss", bias=True, weighted=True, solver="momentum"),
    "narrow": run((5, 7, 1), ("softplus", "identity"), "huber:0.3", bias=True, solver="nesterov", layout="F"),
    "by units, in an order": run((28, 32, 1), ("relu", "sigmoid"), "log_loss", solver="adam", batch=200),
    "wide, in tiles": run((70, 52, 33, 3), ("tanh", "elu", "softmax"), "log_loss", bias=True, solver="adamw",
                          changes={"l1": 1e-3, "l2": 0.1, "clip": 0.5}),
    "dropout": run((6, 9, 20, 2), ("tanh", "relu", "identity"), solver="rmsprop", layout="strided",
                   changes={"dropout": Dropout(0.3, 7)}, batch=1100),
}  # fmt: skip
_OUTPUTS = {"log_loss": "sigmoid", "poisson": "exp"}
RUNS |= {f"activation {f}": run((6, 5, 2), (f, f), n=300) for f in activations.ACTIVATIONS if f != "softmax"}
RUNS |= {f"loss {name}": run((6, 5, 2), ("tanh", _OUTPUTS.get(name, "identity")), name, n=300)
         for name in (*losses.LOSSES, *losses.FAMILIES)}  # fmt: skip


def results(name, dtype):
    """What comes of a run of `RUNS`, by the library that is installed: arrays by name."""
    words, more, changes, solver, size = RUNS[name]
    case = testing.Case(*words, dtype, **more)
    weights, X, y, w = case.arrays()
    objective = case.objective(reduction="mean", **changes)
    engine = Fused(objective, Rows(X, y, w, backend=backend("numpy"), dtype=dtype), threads=1)
    solver, order = solvers.get(solver), None if size is None else np.random.default_rng(0).permutation(case.n)
    starts = 2 * [*range(0, case.n, size or case.n)]  # two epochs
    batches = Batches(order, starts, [min(at + (size or case.n), case.n) for at in starts])
    weights, state, totals = engine.run(weights, solver, solver.start(weights), batches, [0.1] * len(starts), 0)
    outputs = forward.outputs(weights, X, objective.activations, dtype)
    state = [W for group in state for W in group]
    return {"weights": weights, "state": state, "totals": [totals], "outputs": [outputs]}


def assert_same_bytes(name, got, want):
    for what in want:
        for k, (a, b) in enumerate(zip(got[what], want[what], strict=True)):
            assert np.isfinite(b).all(), f"{name}: {what}[{k}]"
            assert a.tobytes() == b.tobytes(), f"{name}: {what}[{k}] are at most {np.max(np.abs(a - b)):.3g} off"


class Emulated(library.Library):
    """The library of another processor. An emulator runs its kernels, on copies of the memory that a plan points to.

    Parameters
    ----------
    level : str
    command : list of str
        Runs tests/native/probe.cpp.
    file : pathlib.Path
        What the program takes for its memory.
    """

    PLACE = 2**36  # of the file, in the program

    def __init__(self, level, command, file):
        self.level, self._command, self._file = level, command, file
        self.activations, self.losses = (tuple(names) for names in rows.names())
        self._arrays = {}  # by address
        words = iter(np.frombuffer(self._ran(bytes(2**14)), np.int64).tolist())
        self.tables = {dtype: self._table(words, library.library().tables[dtype]) for dtype in DTYPES}
        assert all(table.plan_bytes == ctypes.sizeof(Plan) for table in self.tables.values())

    def _table(self, words, ours):
        """The `Table` that the program describes; its networks are those of ``ours``, with kernels of its own."""

        def take(count):
            return list(itertools.islice(words, count))

        names = [name for name, _ in Table._fields_]
        table = SimpleNamespace(**dict(zip(names, take(len(names)))))
        table.activate, table.slopes = take(len(self.activations)), take(len(self.activations))
        table.outputs = [take(len(self.losses)) for _ in self.activations]
        table.written = [
            SimpleNamespace(depth=network.depth, sizes=network.sizes, bias=network.bias, hidden=network.hidden,
                            output=network.output, loss=network.loss, many=many, few=few)
            for network, (many, few) in zip(ours.written[: table.networks], iter(lambda: take(2), []))
        ]  # fmt: skip
        for name in ("lead", "predict", "pack_weights"):
            setattr(table, name, functools.partial(self._call, getattr(table, name)))
        return table

    def install(self, monkeypatch):
        """Use it in place of this processor's library, by one thread at a time."""
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

        def address(array, plain=launch.address):
            if array is not None:
                self._arrays[plain(array)] = array
            return plain(array)

        for module in (launch, forward, fused):
            monkeypatch.setattr(module, "address", address)
        for module in (launch, forward):
            monkeypatch.setattr(module, "library", lambda: self)

    def _call(self, kernel, plan_at, *more):
        image, copied = bytearray(64), []

        def put(data):
            image.extend(bytes(-len(image) % 128))
            image.extend(data)
            return self.PLACE + len(image) - len(data)

        def moved(at):
            low, high = np.lib.array_utils.byte_bounds(self._arrays[at])
            to = put(ctypes.string_at(low, high - low))
            copied.append((low, high - low, to - self.PLACE))
            return to + at - low

        plan = Plan.from_buffer_copy(ctypes.string_at(plan_at, ctypes.sizeof(Plan)))
        tiles = self._arrays[plan.tiles] if plan.tiles else None
        if tiles is not None:  # addresses of others: they lie together, from the first that is there
            first = int(tiles[tiles > 0][0])
            tiles = np.where(tiles > 0, tiles - first + moved(first), 0)
        for name, kind in Plan._fields_:
            if kind is Field and (field := getattr(plan, name)).at:
                field.at = moved(field.at)
            elif kind is Address and getattr(plan, name) and name not in ("learn", "output"):
                setattr(plan, name, 0 if name == "yield" else moved(getattr(plan, name)))
        if tiles is not None:
            plan.tiles = put(tiles.tobytes())
        more = [moved(word) if word in self._arrays else word for word in more]
        plan_at = put(bytes(plan))
        image[:40] = struct.pack("<5q", kernel, plan_at, *more, *[0] * (3 - len(more)))
        image = self._ran(image)
        for low, size, at in copied:
            if ctypes.string_at(low, size) != image[at : at + size]:
                ctypes.memmove(low, image[at : at + size], size)

    def _ran(self, image):
        self._file.write_bytes(image)
        with open(self._file, "r+b") as file:
            subprocess.run(self._command, stdin=file, check=True, timeout=300)
        return self._file.read_bytes()


def program(source, folder, name, level):
    """Compile a program for one of `build.TARGETS` that needs no C library; returns its path."""
    build.copy_sources(folder)
    compiler, target = build.find_compiler(name), build.TARGETS[name]
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    command = [*compiler.command, *flags, *build.ZIG_FLAGS, "-static", "-target", target.zig, *level.zig, source]
    caches = {name: str(folder / "cache") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    subprocess.run([*command, "-o", "program"], cwd=folder, env={**os.environ, **caches}, check=True)
    return str(folder / "program")


EMULATED = {
    "arm64": ("linux-aarch64", build.ARM64, "qemu-aarch64"),
    "v3": ("linux-x86_64", build.V3, "qemu-x86_64", "-cpu", "Haswell"),  # which has no AVX-512
}


@pytest.fixture(scope="module", params=EMULATED)
def emulated(request, emulator, tmp_path_factory):
    """The library of another processor: of ARM, or of an x86-64 without AVX-512."""
    target, level, *command = EMULATED[request.param]
    command[0] = emulator(command[0])
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(Path(__file__).parent / "native" / "probe.cpp", folder)
    return Emulated(request.param, [*command, program("probe.cpp", folder, target, level)], folder / "memory")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_avx2_and_avx512_give_the_same_bytes(name, dtype, monkeypatch):
    levels = library.processor_levels()
    if levels != ("v4", "v3"):
        pytest.skip(f"this processor runs {' and '.join(levels)}, not v4 and v3")
    of = {}
    for level in levels:
        monkeypatch.setenv("BPACCEL_LEVEL", level)
        of[level] = results(name, dtype)
    assert_same_bytes(name, of["v4"], of["v3"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_processors_give_the_same_bytes(dtype, emulated, monkeypatch):
    here = {name: results(name, dtype) for name in RUNS}
    emulated.install(monkeypatch)
    for name in RUNS:
        assert_same_bytes(name, results(name, dtype), here[name])


def assert_subnormals_are_nothing(dtype):
    """Neither deltas, which here are less than the row weights, nor a prediction is a subnormal number."""
    tiny = np.finfo(dtype).tiny
    case = testing.Case((3, 4, 1), ("sigmoid", "sigmoid"), "squared_error", dtype, n=100)
    weights, X, y, _ = case.arrays()
    w = np.full(case.n, 1.5 * tiny, dtype)
    assert 0 < w[0] * np.asarray(0.2, dtype) < tiny
    data = Rows(X, np.clip(y, 0, 1), w, backend=backend("numpy"), dtype=dtype)
    engine = Fused(case.objective(reduction="mean"), data, threads=1)
    moved, _, totals = engine.run(weights, solvers.get("gradient_descent"), (), Batches(None, [0], [case.n]), [1.0], 0)
    assert totals[0, 0] > 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(moved, weights))
    small = np.full((1, 1), tiny**0.5 / 4, dtype)
    assert 0 < small[0, 0] ** 2 < tiny
    assert forward.outputs([small], small, ["identity"], dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_nothing(dtype, monkeypatch):
    for level in library.processor_levels():
        monkeypatch.setenv("BPACCEL_LEVEL", level)
        assert_subnormals_are_nothing(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_nothing_on_other_processors(dtype, emulated, monkeypatch):
    emulated.install(monkeypatch)
    assert_subnormals_are_nothing(dtype)


def test_each_processor_knows_its_level(emulator, tmp_path):
    qemu = emulator("qemu-x86_64")
    source = tmp_path / "main.cpp"
    source.write_text('#include "level.cpp"\n__asm__(".globl _start\\n_start: call bp_level\\n mov %eax, %edi\\n '
                      'mov $60, %eax\\n syscall");\n')  # fmt: skip
    path = program(source.name, tmp_path, "linux-x86_64", build.LEVEL)
    said = {cpu: subprocess.run([qemu, "-cpu", cpu, path], check=False).returncode for cpu in ("Haswell", "core2duo")}
    assert said == {"Haswell": 3, "core2duo": 0}
