"""Time and memory of a training step: bpaccel and its peers, in turns, beside the floor of this machine.

    python benchmarks/compare.py --json build/peers.json
    python benchmarks/report.py build/peers.json --out build

For networks and numbers of rows it times all that `peers.PEERS` names, measures the memory that each takes, what the
machine can do at best, and how time and memory of the engine fused grow up to 10^8 rows in a file. A peer that is
missing, refuses or is wrong stays in the figures, with the reason.
"""

import argparse
import contextlib
import datetime
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported

import floor
import numpy as np
from peers import PEERS, WrongPeer, check

import bpaccel as bp
from bpaccel import bench
from bpaccel.bench import machine
from bpaccel.bench.workloads import workload
from bpaccel.files import check_place

KIND = "bpaccel peers"
XOR = (3, 4, 1)
# Rows of each network: few, as many as fill caches, and more than they hold.
PLAN = {
    (3, 1): (64, 6_400, 640_000),
    XOR: (4, 400, 10_000, 100_000, 1_000_000, 4_000_000),
    (16, 32, 1): (64, 6_400, 320_000),
    (32, 16, 1): (64, 6_400, 320_000),
    (28, 300, 1): (64, 6_400, 102_400),
    (64, 32, 10): (64, 6_400, 102_400),
    (784, 128, 10): (64, 6_400, 60_032),
}
MEMORY_ROWS = (1_000, 100_000, 1_000_000, 4_000_000, 16_000_000)
GROWTH_ROWS = tuple(10**k for k in range(3, 9))
SETTLE_SECONDS = 0.03  # idle OpenBLAS threads spin for some tens of milliseconds: torch took up to half as long again
SAMPLES, LEAST, LONG_SECONDS = 9, 3, 6.0  # samples of each; at least so many where a cell takes longer
TUTORIAL_STEPS, TUTORIAL_ERROR = 60_000, 0.00318  # of the article's second network, and the mean |error| it ends with
PATIENCE_SECONDS = 10.0  # a peer that needs more for them is left out


def times(names, layer_sizes, rows, dtype):
    """Seconds a step of each peer, in turns on the same rows: a list of dicts, ready for JSON."""
    work, results, timers = workload(layer_sizes), [], {}
    X, y = work.rows(rows, dtype)
    for name in names:
        result = {"peer": name, "layer_sizes": list(layer_sizes), "rows": rows, "dtype": dtype,
                  "differs": PEERS[name].differs, "refused": None, "wrong": False}  # fmt: skip
        results.append(result)
        if reason := PEERS[name].refuses(layer_sizes, dtype):
            result["refused"] = reason
            continue
        try:
            training = PEERS[name](work, X, y)
            check(training)
            timers[name] = bench.Timer(training)
        except Exception as error:  # other people's libraries fail in many ways: the others are timed all the same
            result |= {"refused": _sentence(error), "wrong": isinstance(error, WrongPeer)}
    taken: dict = {name: [] for name in timers}
    while taken and len(min(taken.values(), key=len)) < SAMPLES:
        for name, timer in timers.items():
            _settle(timer)
            taken[name].append(timer.sample())
        spent = sum(t.seconds * len(taken[name]) for name, t in timers.items())
        if spent > LONG_SECONDS and len(taken[name]) >= LEAST:
            break
    for result in results:
        if name_times := taken.get(result["peer"]):
            timer = timers[result["peer"]]
            result["step_seconds"] = bench.summary(name_times) | {"steps_a_sample": timer.steps * timer.repeats}
            result["ns_a_row"] = 1e9 * result["step_seconds"]["median"] / rows
    return results


def _sentence(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _settle(timer):
    """Take steps that are not timed, until the threads of who came before no longer wait for work at full speed."""
    began = time.perf_counter()
    while True:
        timer.warm_up()
        if time.perf_counter() - began >= SETTLE_SECONDS:
            break
    if timer.steps == bench.STEPS:
        timer.training.restart()


def tutorial(names, dtype):
    """Seconds a step of the tutorial's whole training, 60,000 steps on 4 rows, in turns: a list of dicts."""
    work, results, taken = replace(workload(XOR), rate=4.0), [], {}
    X, y = work.rows(4, dtype)
    for name in names:
        kind = PEERS[name]
        if kind.differs or (name.startswith("bpaccel") and name != "bpaccel fused"):
            continue
        reason = kind.refuses(XOR, dtype)
        if reason is None:
            try:
                run = partial(_ours, work, X, y) if name == "bpaccel fused" else partial(_theirs, kind(work, X, y))
                reason = _too_slow_or_wrong(work, run)
            except Exception as error:  # as in `times`
                reason = _sentence(error)
        results.append({"peer": name, "dtype": dtype, "steps": TUTORIAL_STEPS, "refused": reason})
        if reason is None:
            taken[run] = results[-1].setdefault("seconds", [])
    for _ in range(SAMPLES):
        for run, seconds in taken.items():
            if len(seconds) < LEAST or sum(seconds) < LONG_SECONDS:
                time.sleep(SETTLE_SECONDS)
                began = time.perf_counter()
                run(TUTORIAL_STEPS)
                seconds.append(time.perf_counter() - began)
    for result in results:
        if result["refused"] is None:
            result["step_seconds"] = bench.summary([t / TUTORIAL_STEPS for t in result.pop("seconds")])
    return results


def _ours(work, X, y, steps):
    """What a user calls, with all that it does beside the engine; returns the weights."""
    net = bp.Network(XOR, seed=1, dtype=X.dtype.name)
    net.train(X, y, steps=steps, learning_rate=work.rate, engine="fused")
    return net.weights


def _theirs(peer, steps):
    peer.restart()
    peer.advance(steps)
    peer.wait()
    return peer.reach()


def _too_slow_or_wrong(work, run):
    """Why the tutorial's training is not timed, in words; None if it is."""
    run(100)
    began = time.perf_counter()
    run(100)
    seconds = TUTORIAL_STEPS / 100 * (time.perf_counter() - began)
    if seconds > PATIENCE_SECONDS:
        return f"would take {seconds:.0f} s"
    error = work.error([np.asarray(W) for W in run(TUTORIAL_STEPS)])
    if not abs(error - TUTORIAL_ERROR) <= 1e-4:
        return f"wrong, so not timed: it ends with an error of {error:.3g}, and the tutorial with {TUTORIAL_ERROR:g}"
    return None


def extra_memory(name, layer_sizes, rows, dtype):
    """Bytes that a training takes at most beside X and y, in this process: run it in a fresh one."""
    work = workload(layer_sizes)
    table = work.rows(max(len(work.X), 64), dtype)  # for a few rows ours takes another kernel than for many
    warm = PEERS[name](work, *table)  # what importing and compiling take is no training's
    warm.advance(1)
    warm.wait()
    X, y = work.rows(rows, dtype)
    before = _status("VmRSS") - _status("RssFile")
    _forget_peak()
    training = PEERS[name](work, X, y)
    training.advance(3)
    training.wait()
    return max(0, _status("VmHWM") - _status("RssFile") - before)


def grown(rows, folder):
    """Time a step and extra memory of the engine fused, 3-4-1 in float32, on rows in a file: in a fresh process."""
    X, y = (np.load(Path(folder) / f"{part}.npy", mmap_mode="r")[:rows] for part in "Xy")
    work = workload(XOR)
    PEERS["bpaccel fused"](work, *work.rows(64, "float32")).advance(1)
    for part in (X, y):
        part.max()  # into the page cache, where the next passes find it if it is large enough
    before = _status("VmRSS") - _status("RssFile")
    _forget_peak()
    training = PEERS["bpaccel fused"](work, X, y)
    shared = all(np.shares_memory(a, b) for a, b in zip((X, y), training.rows.arrays))
    timer = bench.Timer(training)
    taken = [timer.sample() for _ in range(SAMPLES if timer.seconds < 1 else LEAST)]
    return {
        "rows": rows, "step_seconds": bench.summary(taken), "read_in_place": shared,
        "extra_bytes": max(0, _status("VmHWM") - _status("RssFile") - before),
    }  # fmt: skip


@contextlib.contextmanager
def rows_in_files(rows, folder):
    """XOR rows in float32, in two .npy files that are deleted afterwards: the folder that holds them."""
    with tempfile.TemporaryDirectory(prefix="bpaccel-", dir=folder) as place:
        for name, part in zip("Xy", workload(XOR).rows(4, "float32")):
            whole = np.lib.format.open_memmap(
                Path(place) / f"{name}.npy", mode="w+", dtype="float32", shape=(rows, part.shape[1])
            )
            whole.reshape(-1, 4, part.shape[1])[:] = part
            whole.flush()
            del whole
        yield place


def apart(function, *arguments):
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _status(field):
    """Bytes, from Linux' account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status must have a field {field!r}: memory is measured on Linux alone.")


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to what is used now


def measure(names, plan, memory_rows, growth_rows, folder, say):
    """The whole comparison: a dict, ready for JSON. ``say`` is called with each line of progress."""
    load, results, memory, growth = machine.load(), [], [], []
    limits = {dtype: floor.measure(dtype) for dtype in ("float32", "float64")}
    say(f"floor: {limits}")
    for sizes, counts in plan.items():
        for dtype in ("float32", "float64") if sizes == XOR else ("float32",):
            for rows in counts:
                cell = times(names, sizes, rows, dtype)
                results += cell
                timed = [f"{r['peer']} {r['ns_a_row']:.3g}" for r in cell if not r["refused"]]
                say(f"{'-'.join(map(str, sizes))} {dtype} {rows:,} rows, ns a row: {', '.join(timed)}")
    whole = [result for dtype in ("float32", "float64") for result in tutorial(names, dtype)]
    timed = [f"{r['peer']} {1e6 * r['step_seconds']['median']:.3g}" for r in whole if not r["refused"]]
    say(f"{TUTORIAL_STEPS:,} steps on 4 rows, us a step: {', '.join(timed)}")
    for result in results:
        least = floor.seconds_a_row(limits[result["dtype"]], result["layer_sizes"], result["dtype"])
        result["floor_ns_a_row"] = 1e9 * least
        if not result["refused"]:
            result["share_of_floor"] = 1e9 * least / result["ns_a_row"]
    for name in names:
        if PEERS[name].refuses(XOR, "float32") is None:
            taken = [apart(extra_memory, name, XOR, rows, "float32") for rows in memory_rows]
            memory += [
                {"peer": name, "rows": n, "dtype": "float32", "extra_bytes": b} for n, b in zip(memory_rows, taken)
            ]
            say(f"{name}, extra MiB: {', '.join(f'{b / 2**20:.1f}' for b in taken)}")
    if growth_rows and PEERS["bpaccel fused"].refuses(XOR, "float32") is None:
        with rows_in_files(max(growth_rows), folder) as place:
            for rows in growth_rows:
                growth.append(apart(grown, rows, place))
                seconds = growth[-1]["step_seconds"]["median"]
                say(f"growth, {rows:,} rows: {1e9 * seconds / rows:.3g} ns a row, "
                    f"{growth[-1]['extra_bytes'] / 2**20:.1f} MiB extra")  # fmt: skip
    return {
        "kind": KIND, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe() | {"load_before": load}, "floor": limits, "results": results, "memory": memory,
        "growth": growth, "tutorial": whole,
    }  # fmt: skip


def smaller(plan, share):
    """A plan with fewer rows: those above ``share`` of each network's most are left out."""
    return {sizes: [n for n in rows if n <= share * max(rows)] or rows[:1] for sizes, rows in plan.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", required=True, metavar="FILE", help="where to write the figures")
    parser.add_argument("--peers", default=",".join(PEERS), help="a comma list of: %(default)s")
    parser.add_argument("--share", type=float, default=1.0, help="leave out rows above this share of the most")
    parser.add_argument(
        "--folder", help="where the file of 10^8 rows (1.6 GB) is made; else the system's temporary one"
    )
    options = parser.parse_args(arguments)
    try:
        names = [name.strip() for name in options.peers.split(",")]
        if unknown := [name for name in names if name not in PEERS]:
            raise ValueError(f"`--peers` must be of {', '.join(PEERS)}; got {unknown[0]!r}.")
        if not 0 < options.share <= 1:
            raise ValueError(f"`--share` must be above 0 and at most 1; got {options.share:g}.")
        check_place(options.json)
        memory, growth = ([n for n in rows if n <= options.share * max(rows)] for rows in (MEMORY_ROWS, GROWTH_ROWS))
        content = measure(
            names, smaller(PLAN, options.share), memory, growth, options.folder, lambda s: print(s, flush=True)
        )
        bench.write(options.json, content)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(result["wrong"] for result in content["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
