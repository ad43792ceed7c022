"""Do the tests see a bug? Breaks the fused kernel in one place at a time, and runs some of its tests each time.

    python tests/cuda/mutants.py [FILE]     writes the table to FILE too

First the tests as they are run in the suite; what they miss, under ThreadSanitizer, which knows what a barrier and a
fence order on a GPU, where the CPU orders more by itself. By hand, not in the suite.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "bpaccel/engines/mlp.cu").read_text()
# Every number of rows against NumPy, two solvers' steps, and the same bits in all ways and orders of threads.
PLAIN = (
    "float32-C or (one_by_one and float32 and (adam or nesterov)) or (orders_of_threads and (257 or 2500)) "
    "or last_steps or real_sizes"
)
THREAD = "orders_of_threads and 2500"
LIMIT_S = 60

MUTANTS = {  # what is broken: (the kernel's text, what stands there instead)
    # --- counting and electing ---
    "elects the last but one": (
        "atomicInc(counter, count - 1) == count - 1",
        "atomicInc(counter, count - 1) == count - 2",
    ),
    "the counter is not back at 0": ("atomicInc(counter, count - 1)", "atomicInc(counter, count)"),
    # --- rows ---
    "the tail of a share is lost": ("k < count; k += THREADS) learn_row", "k < 0; k += THREADS) learn_row"),
    "the last share is not cut": ("stop - first < SHARE_ROWS ? stop - first : SHARE_ROWS", "SHARE_ROWS"),
    # --- sums ---
    "adds half of the lanes": ("add_lanes<NS, 16>", "add_lanes<NS, 8>"),
    "lanes keep each other's half": ("second ? low : high, D)", "second ? high : low, D)"),
    "the last warp is not added": ("k < blockDim.x / 32; ++k", "k < blockDim.x / 32 - 1; ++k"),
    "every set but the first eight is lost": ("set < count; set += 8", "set < count && set < 8; set += 8"),
    "shares are added in the order of their arrival": (
        "add_threads(added, share_sums + local * NS);\n",
        "__shared__ int place;\n            if (threadIdx.x == 0)\n                place = (int)atomicAdd(counters + "
        "SHARES_COME + local / SHARES, 0u);\n            __syncthreads();\n"
        "            add_threads(added, share_sums + (local / SHARES * SHARES + place) * NS);\n",
    ),
    "sums of blocks at the wrong place": ("total : block_sums + block * NS", "total : block_sums + block * (NS - 1)"),
    "sums of later steps do not begin at 0": ("added[i] = 0;", "added[i] = taken && share == first_share ? w[0] : 0;"),
    # --- formulas ---
    "the logistic's slope is a": ("slope(Real a) { return fma(-a, a, a); }", "slope(Real a) { return a; }"),
    "a hidden layer's slope is forgotten": ("delta[o] *= Activation<L>::slope(above[o]);", ";"),
    "the error goes back through the next weight": (
        "error[i] = delta[0] * w[W + i * O];",
        "error[i] = delta[0] * w[W + (i + 1) % I * O];",
    ),
    "a row's weight does not weigh its error": ("if (WEIGHTED) delta[o] *= weight;", ""),
    # --- steps ---
    "the penalty pulls the other way": ("total[i] - rules[L2] * W", "total[i] + rules[L2] * W"),
    "Nesterov's step is momentum's": ("solver == NESTEROV ? fma(keep, velocity, rate * u) : velocity", "velocity"),
    # --- barriers and fences ---
    "no barrier before the warps' sums are read": (
        "warps[threadIdx.x / 32][first + i] = sums[i];\n    __syncthreads();",
        "warps[threadIdx.x / 32][first + i] = sums[i];",
    ),
    "no barrier between the eight groups and their sum": (
        "= sum;\n    }\n    __syncthreads();\n    for (int i = threadIdx.x; i < NS; i += blockDim.x) {\n"
        "        double sum = 0.;\n        for (int k = 0; k < 8",
        "= sum;\n    }\n    for (int i = threadIdx.x; i < NS; i += blockDim.x) {\n"
        "        double sum = 0.;\n        for (int k = 0; k < 8",
    ),
    "no barrier before a block is counted": (
        "__shared__ bool last;\n    __syncthreads();",
        "__shared__ bool last;",
    ),
    "no barrier after the election": ("    __syncthreads();\n    return last;", "    return last;"),
    "no barrier before the step": ("__shared__ double length;\n    __syncthreads();", "__shared__ double length;"),
    "no barrier after the weights are read": (
        "current[i] = __ldcg(weights + i);\n        __syncthreads();",
        "current[i] = __ldcg(weights + i);",
    ),
    "no barrier before the new weights are announced": (
        "if (gridDim.x == 1 || steps == 1) continue;\n        __syncthreads();",
        "if (gridDim.x == 1 || steps == 1) continue;",
    ),
    "no fence before a block is counted": ("__threadfence();  // what this block wrote", "// what this block wrote"),
    "no fence after the election": ("__threadfence();  // all are counted", "// all are counted"),
    "no fence before the new weights are announced": ("__threadfence();  // the new weights", "// the new weights"),
    "no fence after waiting for the step": ("__threadfence();  // the step is taken", "// the step is taken"),
    "the last step's announcement hides the one before": (
        "atomicAdd(counters + STEPS_TAKEN, 1u)",
        "atomicInc(counters + STEPS_TAKEN, (unsigned int)steps - 1)",
    ),
    "no wait for the step before": (
        "while (atomicAdd(counters + STEPS_TAKEN, 0u) < (unsigned int)taken) __nanosleep(32);",
        "",
    ),
}  # fmt: skip


def tests(folder, source, selection, sanitized):
    """Run tests with a kernel; returns how they failed, or None where they passed."""
    kernel = folder / f"{abs(hash((source, sanitized)))}.cu"
    kernel.write_text(source)
    environment = {**os.environ, "BPACCEL_KERNEL": str(kernel), "BPACCEL_HOST_CUDA_CACHE": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += ["tests/test_engines_cuda.py", "-k", selection]
    if sanitized:
        command = ["sh", "tests/cuda/sanitize.sh", "thread", sys.executable, "-k", selection]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"did not end in {LIMIT_S} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"ends with signal {-done.returncode}"
    text = done.stdout + done.stderr
    if not re.search(r"^FAILED |ThreadSanitizer: reported", text, re.MULTILINE):
        raise RuntimeError(f"the tests did not run:\n{text}")
    if warnings := re.search(r"ThreadSanitizer: (reported \d+ warnings)", text):
        race = re.search(r"SUMMARY: ThreadSanitizer: ([\w ]+)", text)  # if pytest did not keep it to itself
        return race[1] if race else warnings[1]
    name = re.search(r"^FAILED \S*::(\S+)", text, re.MULTILINE)[1]
    if re.search(r"^E +.*: error: ", text, re.MULTILINE):
        return f"does not compile ({name})"
    return f"{name}: {re.search(r'^E +(.*)', text, re.MULTILINE)[1]}"


def judged(folder, mutant):
    """How a mutant was caught: by plain tests, under ThreadSanitizer, or not."""
    name, (old, new) = mutant
    if SOURCE.count(old) != 1:
        raise ValueError(f"{name}: the kernel has its text {SOURCE.count(old)} times")
    source = SOURCE.replace(old, new)
    by = "tests"
    reason = tests(folder, source, PLAIN, sanitized=False)
    if reason is None:
        by, reason = "ThreadSanitizer", tests(folder, source, THREAD, sanitized=True)
    by, reason = (by, reason) if reason else ("**not caught**", "")
    row = f"| {name} | {by} | {' '.join(reason.replace('|', '/').split())[:110]} |"
    print(row, flush=True)
    return row


def table(rows):
    """The page with all rows, and what they were found with."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    caught = sum("not caught" not in row for row in rows)
    return f"""# Bugs put into the fused kernel, one at a time

`python tests/cuda/mutants.py`, {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, Python \
{platform.python_version()}, {compiler}; on the CPU, no GPU.
The kernel as it is passes both selections; of {len(rows)} broken ones, {caught} were caught.

* tests: `tests/test_engines_cuda.py -k "{PLAIN}"`
* ThreadSanitizer, for what these miss: the same file, `-k "{THREAD}"`

| broken | caught by | how it showed |
| :-- | :-- | :-- |
""" + "".join(row + "\n" for row in rows)


def main():
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        folder = Path(folder)
        for reason in pool.map(partial(tests, folder, SOURCE), (PLAIN, THREAD), (False, True)):
            if reason:
                sys.exit(f"the kernel as it is fails: {reason}")
        rows = list(pool.map(partial(judged, folder), MUTANTS.items()))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(table(rows))


if __name__ == "__main__":
    main()
