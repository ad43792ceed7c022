"""Wide layers in the compiled engine: sums by units, weights in tiles, and what both leave over at their edges."""

import ctypes
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from bpaccel import solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.engines import Batches, Engine, lanes, products
from bpaccel.engines.layout import layout
from bpaccel.engines.numba import BLOCK_ROWS, LOOP_BYTES, PACKED_ROWS, SOURCE, Numba, address, aligned, kernel

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
        testing.check_case(Numba, case_of(name, dtype, bias=bias, n=n, weighted=n % 2 == 0))
    for rows in ("F", "strided"):
        testing.check_case(Numba, case_of(name, dtype, bias=True, n=333, layout=rows))


def test_the_nets_have_layers_of_both_kinds():
    lanes_of = {4: LOOP_BYTES // 4, 8: LOOP_BYTES // 8}
    found = {
        name: [layout(sizes, False, width, count, False) for width, count in lanes_of.items()]
        for name, sizes in NETS.items()
    }
    assert all(all(at.parts[:2]) and all(at.packed[:2]) for at in found["by units"])
    assert all(at.parts[0] and not at.parts[-1] for at in found["both"])
    assert all(not at.parts[0] and not at.parts[1] for at in found["narrow between"])
    assert all(at.packed[0] for at in found["outputs"])


def engine_of(case, threads=1, order=slice(None)):
    weights, *arrays = case.arrays()
    rows = Rows(*(a if a is None else a[order] for a in arrays), backend=NUMPY, dtype=case.dtype)
    return Numba(case.objective(reduction="mean"), rows, threads), weights


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


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_any_shape_and_stride(dtype, few):
    random, count = np.random.default_rng(0), 8 if few else LOOP_BYTES // np.dtype(dtype).itemsize
    compute = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 15)(
        kernel(products.products, dtype, count).address
    )
    for units, inner, how in itertools.product(
        (1, 2, 5, products.TILE, products.TILE + 1, 3 * products.TILE - 1),
        (1, 7, products.NEAR, 2 * products.NEAR + 3),
        (products.SET, products.ADD, products.MULTIPLY),
    ):
        width = count * int(random.integers(1, 4))
        l, w = random.standard_normal((inner, width + 5)), random.standard_normal((inner, units))
        before = random.standard_normal((units, width + 3))
        sums = l[:, :width].T @ w
        want = {
            products.SET: sums,
            products.ADD: before[:, :width].T + sums,
            products.MULTIPLY: before[:, :width].T * sums,
        }
        room = np.abs(l[:, :width]).T @ np.abs(w) + 1.0
        l, before = l.astype(dtype), before.astype(dtype)
        for way in ("rows", "columns", "tiles"):
            out, lay = before.copy(), w.astype(dtype)
            if way == "rows":
                where = (units, 1, 0)
            elif way == "columns":
                lay, where = np.ascontiguousarray(lay.T), (1, inner, 0)
            else:
                lay, where = packed(lay, count), (products.TILE, 1, inner * products.TILE)
            compute(
                None, address(out), 0, out.shape[1], units, address(l), 0, l.shape[1], width, address(lay), 0, *where,
                inner, how,
            )  # fmt: skip
            off = np.abs(out[:, :width].T - want[how]) / (room * np.maximum(1.0, np.abs(before[:, :width].T)))
            assert off.max() < 4 * np.finfo(dtype).eps * np.sqrt(inner), (units, inner, how, way)
            assert np.array_equal(out[:, width:], before[:, width:])  # nothing is written past the lanes


def packed(w, count):
    """Numbers in tiles, by the kernel that puts them there."""
    inner, units = w.shape
    room = aligned((-(-units // products.TILE) * inner * products.TILE + count) * w.itemsize).view(w.dtype)
    flat = np.zeros(w.size + count, w.dtype)
    flat[: w.size] = w.ravel()

    def alone(k, w, inner, units, out):
        products.pack_tiles(k, w, 0, inner, units, out)

    compiled = kernel(alone, w.dtype.name, count)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4)(compiled.address)
    call(None, address(flat), inner, units, address(room))
    return room


@pytest.mark.skipif(not lanes.WIDE_REGISTERS, reason="this processor has no wider registers than those")
def test_code_for_registers_of_32_bytes_is_right_too():
    code = """
from bpaccel import testing
import sys
from bpaccel.engines import lanes
from bpaccel.engines.numba import SOURCE
assert lanes.REGISTER_BYTES == 32
assert SOURCE != sys.argv[1]  # kernels for two processors share no list in Numba's cache
for dtype in ("float32", "float64"):
    for sizes in ((300, 60, 52, 2), (20, 5, 64, 40)):
        names = ("tanh",) * (len(sizes) - 2) + ("sigmoid",)
        case = testing.Case(sizes, names, "squared_error", dtype, bias=True, n=333)
        testing.check_case("numba", case)
"""
    features = (
        "+64bit,+avx,+avx2,+bmi,+bmi2,+cx16,+f16c,+fma,+fxsr,+popcnt,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", code, SOURCE], env=environment, check=True, timeout=300)
