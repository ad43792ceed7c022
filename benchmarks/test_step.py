"""How long the parts of a training step take: 4 rows to 4 million, float32 and float64, on every backend.

`forward` is `Network.predict`, `updates` is `Engine.sums`, `step` is `Engine.run` for one step; all with the engine
that "auto" chooses. Each case is made by one function, and checked against the core in NumPy float64 before it is
timed.
"""

import os

import numpy as np
import pytest

import bpaccel as bp
from bpaccel.backends import LIBRARIES, why_not
from bpaccel.bench import machine
from bpaccel.bench.workloads import Case, Ours

ROWS = (4, 400, 40_000, 4_000_000)
SLOW = {"array_api_strict": 40_000}  # checks every call, and is no library to be fast with
CASES = [
    Case(library, "auto", dtype, rows)
    for library in LIBRARIES
    for dtype in ("float32", "float64")
    for rows in ROWS
    if rows <= SLOW.get(library, max(ROWS))
]
# A round of 4 million rows takes up to half a second; few rows are repeated until the clock can be trusted.
pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.5, min_time=0.001, warmup=False)


@pytest.fixture(params=CASES, ids=lambda case: f"{case.backend}-{case.dtype}-{case.rows}")
def ours(request):
    """One case, checked, on its device; a library that is missing is a visible skip."""
    case = request.param
    if reason := why_not(case.backend):
        if case.backend in os.environ.get("BPACCEL_REQUIRE", "").split(","):
            pytest.fail(f"{case.backend} is required by BPACCEL_REQUIRE, but {reason}", pytrace=False)
        pytest.skip(f"{case.backend}: {reason}")
    training = Ours(case)
    try:
        with training.backend.active():
            training.check()
            yield training
    finally:
        training.close()


def timed(benchmark, ours, function, operation):
    """Time a function that returns arrays, the device waited for, after one call that is not timed."""

    def call():
        result = function()
        ours.backend.synchronize(*result)
        return result

    call()
    benchmark.group = operation
    result = benchmark(call)
    benchmark.extra_info |= {
        "operation": operation, "backend": ours.case.backend, "engine": ours.engine.name, "dtype": ours.case.dtype,
        "rows": ours.case.rows, "device": machine.device(ours.backend), "versions": machine.versions(),
    }  # fmt: skip
    if benchmark.stats is not None:  # it is under --benchmark-disable
        benchmark.extra_info["ns_a_row"] = 1e9 * benchmark.stats.stats.median / ours.case.rows
    return result


def test_forward(benchmark, ours):
    work = ours.work
    network = bp.Network(work.layer_sizes, init=work.init, seed=1, dtype=ours.case.dtype)
    X = ours.rows.arrays[0]
    (output,) = timed(benchmark, ours, lambda: [network.predict(X)], "forward")
    error = np.mean(np.abs(ours.host[1] - ours.backend.to_numpy(output)), dtype=np.float64)
    assert error == pytest.approx(work.expected[0], abs=1e-6)


def test_updates(benchmark, ours):
    def updates():
        sums = ours.sums()
        return [*sums.updates, sums.totals]

    timed(benchmark, ours, updates, "updates")


def test_step(benchmark, ours):
    def step():
        ours.restart()
        ours.advance(1)
        return [*ours.weights, ours.totals]

    timed(benchmark, ours, step, "step")
