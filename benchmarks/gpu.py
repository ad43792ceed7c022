"""One visit to a machine with a GPU: prove what is there, and measure it, in minutes.

    python benchmarks/gpu.py test  --out DIR [--wheels DIR]      # the suite with CuPy required, proofs, sanitizers
    python benchmarks/gpu.py bench --out DIR [--wheels DIR]      # times beside CuPy, PyTorch, JAX, and a plain copy
    python benchmarks/gpu.py all   --out DIR [--wheels DIR]

Each part runs in a process of its own, for a limited time, and its results are written as it ends: none can stop the
others. Nothing is fetched; packages that the machine lacks come as wheels, in a folder. On a machine without a GPU the
parts are rehearsed as far as that goes, and the report says plainly what was not done. DIR gets ``gpu.json``,
``gpu.md`` and ``gpu.log``. Exits with 0 if everything was done and right, 1 if something failed, 2 if nothing failed
but something could not be done.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = Path(__file__).with_name("gpu_parts.py")
PROVIDERS = ("bpaccel cuda", "bpaccel cuda (one grid)", "bpaccel cuda (launches)", "bpaccel cuda (sweeps=1)",
             "bpaccel cuda (sweeps=2)", "bpaccel wide", "bpaccel blocked", "bpaccel array", "cupy.fuse", "torch",
             "torch.compile", "jax.jit", "jax fori_loop")  # fmt: skip
TESTS_SECONDS, BENCH_SECONDS = 230, 240
# Seconds for a provider: together with the copy what a visit has for them. Compiling takes its time.
SECONDS = {"bpaccel cuda": 25, "torch.compile": 30}
OTHERS = 14
# What says by what a kernel is held up; gpu.log gets it.
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy")
SETTINGS = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX would take most of the GPU's memory for itself
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # and round products to TF32, which nobody else does here
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Part:
    """Something to do: a command, and how many seconds it may take."""

    name: str
    seconds: float
    command: tuple
    needs: str | None = None  # why it cannot be done here
    settings: tuple = ()  # pairs of environment variable and value
    by: float = math.inf  # so many seconds after the visit began it must have ended: the rest is for others


def parts(what, trouble, workers):
    """What there is to do, in order; ``trouble`` is why there is no GPU here, or None."""
    no_gpu = f"no GPU: CuPy is {trouble}" if trouble else None
    sanitizer = no_gpu or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not on the PATH")
    own = [sys.executable, str(PARTS)]

    def part(name, seconds, *arguments, **more):
        return Part(name, seconds, (*own, *arguments), **more)

    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    if workers > 1:
        pytest += ["-n", str(workers), "--dist", "worksteal"]
    tests = [
        part("proofs", 45, "proofs"),
        Part("suite", 160, tuple(pytest), no_gpu, (("BPACCEL_REQUIRE", "numpy,cupy"),)),
        part("short", 30, "short"),
        *(
            Part(tool, 60, ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *own, "short"), sanitizer)
            for tool in ("memcheck", "racecheck")
        ),
    ]
    counted = no_gpu or (None if shutil.which("ncu") else "ncu is not on the PATH")
    ncu = ("ncu", "-k", "train", *(x for name in SECTIONS for x in ("--section", name)), *own, "counters")
    limits = {name: SECONDS.get(name, OTHERS) for name in PROVIDERS}
    measured = [
        part("bandwidth", 15, "bandwidth"),
        # A provider ends by itself, but for the case that it is at.
        *(part(name, limit + 15, "measure", name, str(limit)) for name, limit in limits.items()),
        Part("ncu", 30, ncu, counted),
    ]
    tests = [replace(each, by=TESTS_SECONDS) for each in tests]
    return [part("describe", 30, "describe")] + tests * (what != "bench") + measured * (what != "test")


def run(part, log, environment, seconds):
    """Run a part: its status in words, and the rows that it wrote."""
    if part.needs:
        return f"not done: {part.needs}", []
    if seconds < 1:
        return "not done: the time was up", []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        ours = str(PARTS) in part.command
        command = [*part.command, *(("--results", str(results)) if ours else ())]
        print(f"\n===== {part.name}: {' '.join(command)}", file=log, flush=True)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            env=environment | dict(part.settings), start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(min(part.seconds, seconds))
            status = "done" if code == 0 else f"failed: exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"failed: stopped after {min(part.seconds, seconds):.0f} s"
            _stop(process)
        except BaseException:
            _stop(process)
            raise
        lines = results.read_text().splitlines() if results.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last one, cut short
            break
    return status, rows


def _stop(process):
    """End a part and whatever it has started: kindly, so that pytest says how far it came, then not."""
    for number, patience in ((signal.SIGINT, 8), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
            break
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    with contextlib.suppress(ProcessLookupError):  # children that outlived it
        os.killpg(process.pid, signal.SIGKILL)


def in_words(report):
    """The report as Markdown: what was done, and the times, best first."""
    machine = next(iter(report["parts"].get("describe", {}).get("rows", [])), {})
    gpu = machine.get("gpu")
    lines = ["# A visit to a GPU", "", f"{report['date']}, commit {machine.get('commit') or 'unknown'}", ""]
    if gpu:
        lines += [
            f"* {gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, {gpu['multiprocessors']} multiprocessors, "
            f"compute capability {gpu['compute_capability']}, driver {gpu['driver']}, CUDA {gpu['runtime']}"
        ]
    else:
        lines += ["* **No GPU here: this is a rehearsal on the processor, which measures nothing.**"]
    if machine:
        lines += [f"* {machine['processor']}, {machine['cores']} cores, {machine['system']}",
                  "* " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())]  # fmt: skip
    lines += [f"* settings: {', '.join(f'{k}={v}' for k, v in SETTINGS.items())}", ""]
    lines += ["| part | status | seconds |", "| :-- | :-- | --: |"]
    lines += [f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in report["parts"].items()]
    proofs = report["parts"].get("proofs", {}).get("rows", [])
    lines += ["", *(f"* {_proof(report['gpu'], **row)}" for row in proofs)]
    return "\n".join([*lines, "", *_times(report), ""])


def _proof(gpu, proof, passed, why=None, wrong=0, dtype=None, rows=None):
    where = f" ({dtype}, {rows:,} rows)" if dtype else ""
    seen = {True: "proved" if gpu else "rehearsed", False: "**wrong**", None: "not looked at"}[passed]
    return f"{proof}{where}: {seen}" + f", {wrong:,} times" * bool(wrong) + (f": {why}" if why else "")


def _times(report):
    copy = next(iter(report["parts"].get("bandwidth", {}).get("rows", [])), None)
    rows = [row for part in report["parts"].values() for row in part["rows"] if "provider" in row]
    if not rows:
        return []
    refused = {}
    for row in rows:
        if row["refused"]:
            where = f"{'-'.join(map(str, row['layer_sizes']))}, {row['rows']:,} rows" if "rows" in row else "all"
            refused.setdefault((row["provider"], row["refused"]), []).append(where)
    lines = []
    if refused:
        lines += ["Not timed:", ""]
        lines += [f"* {name}: {why} ({'; '.join(places)})" for (name, why), places in refused.items()]
        lines += [""]
    timed = [row for row in rows if not row["refused"]]
    if not report["gpu"]:
        names = dict.fromkeys(row["provider"] for row in timed)
        return [*lines, f"Would be timed, and computes what the core computes: {', '.join(names) or 'nothing'}."]
    if copy:
        lines += [f"A device-to-device copy moves {1e-9 * copy['bytes_a_second']:,.0f} GB/s, read and written."]
    lines += ["Times are medians, of the device's own events where the library has them (\"device\"), of the caller's "
              "clock else. GB/s: X and y read once a step; share: that over the copy's."]  # fmt: skip
    for sizes, n in dict.fromkeys((tuple(row["layer_sizes"]), row["rows"]) for row in timed):
        lines += ["", f"## {'-'.join(map(str, sizes))}, {n:,} rows", "",
                  "| provider | us/step | spread | clock | us/step with launch | GB/s | share | TFLOP/s |",
                  "| :-- | --: | --: | :-- | --: | --: | --: | --: |"]  # fmt: skip
        alike = [row for row in timed if (tuple(row["layer_sizes"]), row["rows"]) == (sizes, n)]
        for row in sorted(alike, key=lambda row: (row["device_seconds"] or row["seconds"])["median"]):
            best = row["device_seconds"] or row["seconds"]
            share = f"{row['bytes_a_second'] / copy['bytes_a_second']:.0%}" if copy else "-"
            lines += [f"| {row['provider']} | {1e6 * best['median']:,.3f} | {best['spread']:.0%} | "
                      f"{'device' if row['device_seconds'] else 'host'} | {1e6 * row['seconds']['median']:,.3f} | "
                      f"{1e-9 * row['bytes_a_second']:,.1f} | {share} | "
                      f"{1e-12 * row['operations_a_second']:,.2f} |"]  # fmt: skip
    return lines


def main(arguments=None):
    """Run the parts, and write the report as each ends."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("test", "bench", "all"))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="made where it is missing")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="packages that the machine lacks")
    parser.add_argument("--seconds", type=float, help="for all parts together (test 230, bench 240, all 470)")
    parser.add_argument("--commit", metavar="HASH", help="of the checkout, where this is a copy without its history")
    parser.add_argument("--only", metavar="PART,...", help="these parts, and describe")
    parser.add_argument(
        "--workers", type=int, default=None, help="of the suite (default: half the processors, up to 8)"
    )
    options = parser.parse_args(arguments)
    visit = time.monotonic()
    deadline = visit + (options.seconds or {"test": TESTS_SECONDS, "bench": BENCH_SECONDS}.get(
        options.what, TESTS_SECONDS + BENCH_SECONDS))  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site, (options.out / "gpu.log").open("w") as log:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if options.wheels:
            paths.insert(1, site)
            wheels = sorted(map(str, options.wheels.glob("*.whl")))
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-cache-dir"]
            done = subprocess.run([*pip, "--target", site, *wheels], stdout=log, stderr=subprocess.STDOUT, check=False)
            if done.returncode or not wheels:
                print(f"error: the wheels of {options.wheels} could not be installed; see gpu.log", file=sys.stderr)
                return 1
        environment = os.environ | SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        trouble = _trouble(environment)
        if trouble:
            environment["BPACCEL_REHEARSAL"] = "1"
            print(f"no GPU here (CuPy is {trouble}): a rehearsal")
        workers = options.workers or min(8, max(1, (os.cpu_count() or 2) // 2))
        wanted = parts(options.what, trouble, workers)
        if options.only:
            names = {"describe", *options.only.split(",")}
            if unknown := names - {part.name for part in wanted}:
                print(f"error: `--only` must be parts of {', '.join(p.name for p in wanted)}; got {', '.join(unknown)}",
                      file=sys.stderr)  # fmt: skip
                return 1
            wanted = [part for part in wanted if part.name in names]
        report = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "what": options.what,
                  "gpu": trouble is None, "settings": SETTINGS, "parts": {}}  # fmt: skip
        for part in wanted:
            began = time.monotonic()
            status, rows = run(part, log, environment, min(deadline, visit + part.by) - began)
            seconds = time.monotonic() - began
            if part.name == "describe" and rows:
                rows[0]["commit"] = rows[0]["commit"] or options.commit
            report["parts"][part.name] = {"status": status, "seconds": seconds, "rows": rows}
            (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / "gpu.md").write_text(in_words(report))
            print(f"{part.name}: {status} ({seconds:.0f} s)", flush=True)
    print(in_words(report))
    found = [part["status"] for part in report["parts"].values()]
    if any(status.startswith("failed") for status in found):
        return 1
    return 0 if trouble is None and all(status == "done" for status in found) else 2


def _trouble(environment):
    """Why CuPy cannot be used here; None where it can. Asked in a process of its own: this one stays off the GPU."""
    code = "from bpaccel.libraries import why_not; print(why_not('cupy') or '')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or (None if done.returncode == 0 else done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
