"""Deliberate faults in the kernels: some of `tests/native/mutants.py`, which tries all; and what they showed that no
other test sees."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpaccel import solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.engines import Batches
from bpaccel.engines.cpu import forward
from bpaccel.engines.cpu.fused import Fused
from bpaccel.engines.cpu.library import processor_levels

MUTANTS = Path(__file__).parent / "native" / "mutants.py"


def python(*arguments, **environment):
    """What Python prints, and how it ends, in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env={**os.environ, **environment}, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def levels():
    asked = os.environ.get("BPACCEL_LEVEL")
    return [asked] if asked else processor_levels()


# One of each kind, those among them that are not seen in numbers alone, or in one thread.
@pytest.mark.parametrize(
    "fault",
    [
        "the first block is dropped",
        "the tail of a block is lost",
        "rows at the wrong stride",
        "race: blocks are counted before they are done",
        "from left to right",
    ],
)
@pytest.mark.usefixtures("fused", "kernel_compiler")
def test_a_fault_is_seen_by_the_fuzz(fault):
    # Whether a race shows depends on the other thread's processor: on a busy machine it may take more than one run.
    for _ in range(5 if fault.startswith("race") else 1):
        done = python(MUTANTS, "--fuzz", "--only", fault)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout
    assert f"| {fault} | yes |" in done.stdout


def test_every_fault_has_its_place_in_the_sources():
    done = python(MUTANTS, "--list")
    assert done.returncode == 0, done.stdout


BESIDE = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import fuzz, memory
from bpaccel import solvers, testing
from bpaccel.backends import backend
from bpaccel.data import Rows
from bpaccel.engines import Batches
from bpaccel.engines.cpu import forward
from bpaccel.engines.cpu.fused import Fused
for dtype, at_end in itertools.product(("float32", "float64"), (True, False)):
    for columns, n in itertools.product((1, 2, 3, 4, 5, 8, 9, 16, 17), (*range(1, 34), 48, 64, 128, 256, 300)):
        X = fuzz.laid_out(np.ones((n, columns), dtype), "C", at_end)
        W = [np.ones((columns, 1), dtype)]
        with memory.strict(at_end):
            print(dtype, n, columns, flush=True)
            assert (forward.outputs(W, X, ("identity",), dtype) == columns).all()
print("done")
"""


@pytest.mark.skipif(os.name == "nt", reason="pages are not protected on Windows")
@pytest.mark.usefixtures("fused")
def test_no_number_beside_the_rows_is_read():
    """Of any number of rows and columns: vectors are longer than what is left of some."""
    for level in levels():
        done = python("-c", BESIDE, MUTANTS.parent, BPACCEL_LEVEL=level)
        assert done.returncode == 0, (level, done.stdout[-200:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("fused")
def test_a_softmax_of_large_sums_is_sure_and_no_larger(dtype):
    sums = np.array([[1000.0, 999.0, 0.0, -1000.0], [-1000.0, -1001.0, -1002.0, -5000.0]], dtype)
    found = forward.outputs([np.eye(4, dtype=dtype)], sums, ("softmax",), dtype)
    e = np.exp(sums.astype(np.float64) - sums.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, e / e.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("solver", [solvers.Momentum(), solvers.Adam(), solvers.RMSprop()], ids=str)
@pytest.mark.usefixtures("fused")
def test_states_that_would_be_subnormal_are_nothing_for_rows_in_chunks_too(solver):
    case = testing.Case((3, 2), ("identity",), "squared_error", "float32", n=20)
    X, weights = np.ones((20, 3), np.float32), [np.zeros((3, 2), np.float32)]
    size, rate = (1e-30, 1e-10) if isinstance(solver, solvers.Momentum) else (1e-20, 1.0)  # 1e-40 in the state
    y = np.full((20, 2), size, np.float32)
    for kind in (Rows, testing.ChunkedRows):
        rows = kind(X, y, None, backend=backend("numpy"), dtype="float32")
        engine = Fused(case.objective(reduction="mean"), rows, 1)
        _, state, _ = engine.run(weights, solver, solver.start(weights), Batches(None, [0], [20]), [rate], 0)
        small = state[1] if isinstance(solver, solvers.Adam) else state[0]
        assert not small[0].any(), kind.__name__
