"""Wide layers in the fused engine: sums by units, weights in tiles, and what both leave over at their edges."""

import ctypes
import itertools
from pathlib import Path

import numpy as np
import pytest

from bpaccel import solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.engines import Batches, Engine
from bpaccel.engines.cpu.fused import Fused
from bpaccel.engines.cpu.launch import PACKED_ROWS, address
from bpaccel.engines.cpu.layout import layout
from bpaccel.engines.cpu.library import library, processor_levels
from bpaccel.engines.cpu.plan import BLOCK_ROWS

pytestmark = pytest.mark.usefixtures("fused")
NUMPY = backend("numpy")
# More inputs than are summed over at once; units that leave lanes empty; layers by units, by rows, and both.
NETS = {
    "by units": (300, 90, 52, 2),
    "both": (70, 52, 33, 3),
    "narrow between": (20, 5, 64, 40),
    "outputs": (64, 130),
}


def case_of(name, dtype, **kwargs):
    sizes = NETS[name]
    names = ("tanh",) * (len(sizes) - 2) + ("sigmoid",)
    return testing.Case(sizes, names, "squared_error", dtype, **kwargs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_wide_layers_pass_the_conformance_suite(name, dtype):
    for bias, n in itertools.product((False, True), (1, 8, 31, 257, BLOCK_ROWS + 300)):
        testing.check_case(Fused, case_of(name, dtype, bias=bias, n=n, weighted=n % 2 == 0))
    for rows in ("F", "strided"):
        testing.check_case(Fused, case_of(name, dtype, bias=True, n=333, layout=rows))


def test_the_nets_have_layers_of_both_kinds():
    tables = library().tables
    found = {
        name: [layout(sizes, False, np.dtype(dtype).itemsize, table, False) for dtype, table in tables.items()]
        for name, sizes in NETS.items()
    }
    assert all(all(at.parts[:2]) and all(at.tiles[:2]) for at in found["by units"])
    assert all(at.parts[0] and not at.parts[-1] for at in found["both"])
    assert all(not at.parts[0] and not at.parts[1] for at in found["narrow between"])
    assert all(at.tiles[0] for at in found["outputs"])


def engine_of(case, threads=1, order=slice(None)):
    weights, *arrays = case.arrays()
    rows = Rows(*(a if a is None else a[order] for a in arrays), backend=NUMPY, dtype=case.dtype)
    return Fused(case.objective(reduction="mean"), rows, threads), weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_wide_layers_have_the_same_bits_for_any_threads_and_order(name, dtype):
    n, solver = 9 * BLOCK_ROWS + 77, solvers.get("momentum")
    case, order = case_of(name, dtype, bias=True, weighted=True, n=n), np.random.default_rng(0).permutation(n)

    def trained(order, engine, weights):
        batches = Batches(order, [0, 40, 5], [n, 5000, 45])
        weights, state, totals = engine.run(weights, solver, solver.start(weights), batches, [0.1] * 3, 0)
        return b"".join(np.ascontiguousarray(a).tobytes() for a in [*weights, *state[0], totals])

    want = trained(order, *engine_of(case))
    for threads in (2, 3, 8):
        assert trained(order, *engine_of(case, threads)) == want
    assert trained(None, *engine_of(case, 2, order)) == want


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("n", [PACKED_ROWS - 1, PACKED_ROWS])
def test_steps_in_one_call_are_steps_one_by_one(name, n):
    """Weights in tiles are put there anew in each step; and a run of few rows takes them as they lie."""
    engine, weights = engine_of(case_of(name, "float64", n=n))
    solver, batches = solvers.get("momentum"), Batches(None, [0] * 4, [n] * 4)
    several = engine.run(weights, solver, solver.start(weights), batches, [0.5] * 4, 0)
    singly = Engine.run(engine, weights, solver, solver.start(weights), batches, [0.5] * 4, 0)
    for ours, theirs in zip([*several[0], several[2]], [*singly[0], singly[2]], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 8, 2), (70, 52, 33, 3)])
def test_a_step_of_no_rows_asks_for_nothing(sizes):
    case = testing.Case(sizes, ("tanh",) * (len(sizes) - 2) + ("sigmoid",), "squared_error", "float64", n=20)
    engine, weights = engine_of(case)
    solver = solvers.get("gradient_descent")
    first, _, _ = engine.run(weights, solver, (), Batches(None, [0, 0], [20, 20]), [0.5, 0.5], 0)
    after, _, totals = engine.run(weights, solver, (), Batches(None, [0, 0, 7], [20, 20, 7]), [0.5] * 3, 0)
    assert all(np.array_equal(a, b) for a, b in zip(first, after, strict=True))
    assert not totals[2].any()


SET, ADD, MULTIPLY = range(3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_any_shape_and_stride(dtype, probe):
    text = Path(__file__).with_name("native").joinpath("products.cpp").read_text()
    loaded = ctypes.CDLL(probe(text))
    compute = getattr(loaded, f"products_{dtype}")
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    compute.argtypes = [pointer, whole, whole, pointer, whole, whole, pointer, whole, whole, whole, pointer]
    random, width, tile, near = np.random.default_rng(0), np.dtype(dtype).itemsize, loaded.tile(), loaded.near_()
    for units, inner, how in itertools.product(
        (1, 2, 5, tile, tile + 1, 3 * tile - 1), (1, 7, near, 2 * near + 3), (SET, ADD, MULTIPLY)
    ):
        length = loaded.lanes_of(width) * int(random.integers(1, 6))
        l, w = random.standard_normal((inner, length + 5)), random.standard_normal((inner, units))
        before = random.standard_normal((units, length + 3))
        sums, there = l[:, :length].T @ w, before[:, :length].T
        want = {SET: sums, ADD: there + sums, MULTIPLY: there * sums}[how]
        room = (np.abs(l[:, :length]).T @ np.abs(w) + 1.0) * np.maximum(1.0, np.abs(there))
        l, w = l.astype(dtype), w.astype(dtype)
        tiles = np.full(-(-units // tile) * inner * tile, np.nan, dtype)
        for way, lay in enumerate((w, np.ascontiguousarray(w.T), w)):  # in rows, in columns, in tiles
            out = before.astype(dtype)
            compute(address(out), out.shape[1], units, address(l), l.shape[1], length, address(lay), way, inner, how,
                    address(tiles))  # fmt: skip
            off = np.abs(out[:, :length].T - want) / room
            assert off.max() < 4 * np.finfo(dtype).eps * np.sqrt(inner), (units, inner, how, way)
            assert np.array_equal(out[:, length:], before.astype(dtype)[:, length:])


def test_four_vectors_added_up_together_have_the_bits_of_each_alone(probe):
    loaded = ctypes.CDLL(probe(Path(__file__).with_name("native").joinpath("sums.cpp").read_text()))
    for dtype, lanes in (("float32", 16), ("float32", 8), ("float64", 8)):
        x = np.random.default_rng(lanes).standard_normal((4, lanes))
        x, out = np.ascontiguousarray(x, dtype), np.empty(8, dtype)
        getattr(loaded, f"{dtype}_{lanes}")(ctypes.c_void_p(address(x)), ctypes.c_void_p(address(out)))
        halves = x
        while halves.shape[1] > 1:
            halves = halves[:, : halves.shape[1] // 2] + halves[:, halves.shape[1] // 2 :]
        assert out[:4].tobytes() == out[4:].tobytes() == halves[:, 0].tobytes()


@pytest.mark.parametrize("level", ["v4", "v3", "arm64"])
def test_every_level_passes_the_conformance_suite(level, monkeypatch):
    if level not in processor_levels():
        pytest.skip(f"this processor does not run level {level}")
    monkeypatch.setenv("BPACCEL_LEVEL", level)
    assert library().level == level
    testing.check_engine("fused")
    for name in NETS:
        testing.check_case("fused", case_of(name, "float32", bias=True, n=333))
