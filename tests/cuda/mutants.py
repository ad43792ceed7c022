"""Do the tests see a bug? Breaks our CUDA code in one place at a time, and runs some of its tests each time.

    python tests/cuda/mutants.py [FILE]     writes the table to FILE too

Kernels, and the code that launches them. First the tests as they are run in the suite; what they miss, under a
sanitizer: ThreadSanitizer knows what a barrier and a fence order on a GPU, where the CPU orders more by itself. By
hand; the suite tries a few of them.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SANITIZERS = {"thread": "ThreadSanitizer", "address": "AddressSanitizer and UBSan"}
PATIENCE = 5  # a broken one may take so many times as long as the right one


class Tests(NamedTuple):
    """What is run for a file: a test file, which of its tests, and for what these miss, which under which sanitizer."""

    file: str
    plain: str
    sanitizer: str  # as sanitize.sh calls it
    sanitized: str


# Every number of rows against NumPy, two solvers' steps, the same bits in all ways and orders of threads, and the tree.
KERNEL = Tests(
    "tests/test_engines_cuda.py",
    "float32-C or (one_by_one and float32 and (adam or nesterov)) or (orders_of_threads and (257 or 2500)) "
    "or odd_addresses or last_steps or real_sizes or one_tree or (climbed and 129)",
    "thread",
    "(orders_of_threads and 2500) or 1-72",
)
LAUNCHES = Tests(
    "tests/test_engines_cuda.py",
    "however_late or first_copy or (orders_of_threads and (200 or 2500)) or mini_batches or odd_addresses "
    "or real_sizes",
    "address",  # where no processor minds, it minds addresses that are no multiple of 16
    "odd_addresses or mini_batches",
)
WIDE = Tests(
    "tests/test_engines_wide.py",
    "wide_networks or wide_softmax or order_of_threads",
    "thread",
    "order_of_threads or wide_softmax",
)
TESTS = {"mlp.cu": KERNEL, "cuda.py": LAUNCHES, "buffers.py": LAUNCHES, "wide.cu": WIDE}

# What is broken: (the file's text, what stands there instead).
MLP = {
    # --- counting and electing ---
    "elects the last but one": (
        "atomicInc(counter, count - 1) == count - 1",
        "atomicInc(counter, count - 1) == count - 2",
    ),
    "the counter is not back at 0": ("atomicInc(counter, count - 1)", "atomicInc(counter, count)"),
    # --- rows ---
    "the tail of a share is lost": ("k < count; k += THREADS) learn_row", "k < 0; k += THREADS) learn_row"),
    "the last share is not cut": ("stop - first < SHARE_ROWS ? stop - first : SHARE_ROWS", "SHARE_ROWS"),
    "a share is left out": ("share += gridDim.x)", "share += gridDim.x + 1)"),
    "columns at the wrong stride": ("rows.x[at * rows.x_row + i * rows.x_column]", "rows.x[at * rows.x_row + i]"),
    "rows at the wrong stride": ("rows.y[at * rows.y_row + o * rows.y_column]", "rows.y[at * NO + o * rows.y_column]"),
    # --- sums ---
    "sums are added in the order of their arrival, by atomics": (
        "add_threads(added, share_sums + local * NS);",
        "add_threads(added, total);\n            __syncthreads();\n            for (int i = threadIdx.x; i < NS; "
        "i += blockDim.x) atomicAdd(share_sums + local * NS + i, total[i]);",
    ),
    "adds half of the lanes": ("add_lanes<NS, 16>", "add_lanes<NS, 8>"),
    "lanes keep each other's half": ("second ? low : high, D)", "second ? high : low, D)"),
    "the last warp is not added": ("(int)blockDim.x / 32);", "(int)blockDim.x / 32 - 1);"),
    "sums are added from left to right": (
        "for (int half = 1; half < N; half *= 2) {\n#pragma unroll\n"
        "        for (int k = 0; k + half < N; k += 2 * half)\n"
        "            if (k + half < count) node[k] += node[k + half];\n    }",
        "for (int k = 1; k < N; ++k)\n        if (k < count) node[0] += node[k];",
    ),
    "every set but the first eight is lost": ("const int eights = (count + 7) / 8;", "const int eights = 1;"),
    "sets that are not there are added": ("}, count - k / NS * 8);", "}, 8);"),
    "sums of eights are looked for among single sets": ("int apart = NS;; apart *= 8", "int apart = NS;;"),
    "eights are added that lie apart": ("first = sets + k / NS * 8 * apart", "first = sets + k / NS * apart"),
    "shares are added in the order of their arrival": (
        "add_threads(added, share_sums + local * NS);\n",
        "__shared__ int place;\n            if (threadIdx.x == 0)\n                place = (int)atomicAdd(counters + "
        "SHARES_COME + local / SHARES, 0u);\n            __syncthreads();\n"
        "            add_threads(added, share_sums + (local / SHARES * SHARES + place) * NS);\n",
    ),
    "sums of groups at the wrong place": ("total : group_sums + group * NS", "total : group_sums + group * (NS - 1)"),
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
    "no barrier between two levels of the tree": (
        "count = eights;\n        __syncthreads();",
        "count = eights;",
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
    "the first step's announcement stands for all": (
        "STEPS_TAKEN, 0u) < (unsigned int)taken)",
        "STEPS_TAKEN, 0u) < 1u)",
    ),
    "no wait for the step before": (
        "while (atomicAdd(counters + STEPS_TAKEN, 0u) < (unsigned int)taken) __nanosleep(32);",
        "",
    ),
}  # fmt: skip
WIDE_CU = {
    "the tail of a layer is lost": (
        "for (long long i = packs * PACK + first; i < values; i += stride)\n        z[i]",
        "for (long long i = values; i < values; i += stride)\n        z[i]",
    ),
    "the tail of a delta is lost": ("i < values; i += stride) error[i]", "i < 0; i += stride) error[i]"),
    "the bias of the wrong column": ("c = c + 1 == width ? 0 : c + 1;", ""),
    "the column of a later turn is wrong": (
        "column = column >= width - step ? column - (width - step) : column + step;",
        "",
    ),
    "a slope is forgotten": ("e.value[i] *= slope(f, l.value[i]);", ""),
    "half of a warp is added": ("d > 0; d >>= 1) sum +=", "d > 1; d >>= 1) sum +="),
    "a softmax overflows": ("exp(r[c] - most)", "exp(r[c])"),
    "classes beyond a warp are left out": (
        "for (int c = lane; c < width; c += 32) r[c] /= sum;",
        "if (lane < width) r[lane] /= sum;",
    ),
    "the weight of another row": ("row += rows_on;", ""),
    "weights are counted for every output": ("if (column == 0) s[0]", "s[0]"),
    "the error is summed, not averaged over outputs": ("totals[2] = s[2] / width;", "totals[2] = s[2];"),
    "no barrier before the warps' sums are read": (
        "__syncthreads();\n    if (threadIdx.x) return;",
        "if (threadIdx.x) return;",
    ),
    "the last warp is not added": ("k < WARPS; ++k", "k < WARPS - 1; ++k"),
    "the first CUDA block's share is left out": (
        "int b = threadIdx.x; b < blocks",
        "int b = threadIdx.x + 1; b < blocks",
    ),
}
CUDA_PY = {
    "work memory for the first step's rows": (
        "self._work(min(self.rows, buffers.rows),",
        "self._work(int(self.stops[0] - self.starts[0]),",
    ),
    "one group's sums of memory": ("-(-self.rows // e.group_rows())", "1"),
    "a launch begins within a group": ("layer_sizes, self.group_rows())", "layer_sizes, self.block_rows)"),
    "too few counters": ("cp.zeros(2 + -(-shares // e.shares), np.uint32)", "cp.zeros(2, np.uint32)"),
    "every buffer is taken for the first": ("begin = first // self._share_rows", "begin = 0"),
    "rows are looked for where they were on the host": ("np.array([origin, step,", "np.array([0, step,"),
    "the order is not looked at": ("np.int32(order is not None)", "np.int32(0)"),
    "half a warp": ("min(self._threads, -(-rows // 32) * 32)", "min(self._threads, rows)"),
    "packed loads from odd addresses": ("x.data.ptr % 16 == 0", "True"),
    "packed loads from odd rows": ("not (self.starts % 4).any()", "True"),
    "each launch takes the first step": ("launch(j, self.rows)", "launch(0, self.rows)"),
    "one share too few": ("shares = -(-rows // self._share_rows)", "shares = max(1, rows // self._share_rows)"),
}
BUFFERS_PY = {
    "a first copy waits for nobody": ("        self.used.record(cupy.cuda.get_current_stream())\n", ""),
    "a copy does not wait for the kernel before": ("            buffer.used.record(self._kernels())\n", ""),
    "a kernel does not wait for its rows": ("            self._kernels().wait_event(buffer.copied)\n", ""),
    "rows are changed before they are copied": (
        "        self.copied.synchronize()  # before what it copies from changes\n",
        "",
    ),
    "one buffer": ("self.pair[k % 2]", "self.pair[0]"),
}
MUTANTS = {"mlp.cu": MLP, "wide.cu": WIDE_CU, "cuda.py": CUDA_PY, "buffers.py": BUFFERS_PY}


def checkout(folder):
    """A copy of what the tests need, to be broken."""
    shutil.copytree(ROOT / "bpaccel", folder / "bpaccel", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def broken(file, old, new):
    """The text of a file of `bpaccel.engines` with one place replaced, which it must have once."""
    text = (ROOT / "bpaccel/engines" / file).read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file} must have once what a mutant replaces; it has {text.count(old)} times: {old!r}")
    return text.replace(old, new)


def failure(file, text, cache, *, sanitized=False, limit=None):
    """Run a file's tests with another text in its place: how they failed, or None where they passed.

    Raises
    ------
    subprocess.TimeoutExpired
        If they do not end within ``limit`` seconds.
    """
    tests = TESTS[file]
    with tempfile.TemporaryDirectory() as folder:
        checkout(Path(folder))
        (Path(folder) / "bpaccel/engines" / file).write_text(text)
        environment = {**os.environ, "PYTHONPATH": folder, "BPACCEL_HOST_CUDA_CACHE": str(cache)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        command += [tests.file, "-k", tests.plain]
        if sanitized:
            command = ["sh", "tests/cuda/sanitize.sh", tests.sanitizer, sys.executable, "-s", "-k", tests.sanitized]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode == 0:
        return None
    if done.returncode < 0 or done.returncode > 128:
        return f"ends with signal {abs(done.returncode) % 128}"
    text = done.stdout + done.stderr
    if race := re.search(r"SUMMARY: ThreadSanitizer: ([\w ]+)", text):
        return race[1]
    if error := re.search(r"runtime error: (.*)", text):
        return re.sub("0x[0-9a-f]+", "...", error[1])
    if not re.search(r"^FAILED ", text, re.MULTILINE):
        raise RuntimeError(f"the tests did not run:\n{text}")
    name = re.search(r"^FAILED \S*::(\S+)", text, re.MULTILINE)[1]
    if error := re.search(r"^E +.*: (error: .*)", text, re.MULTILINE):
        return f"does not compile: {error[1]}"
    return f"{name}: {re.search(r'^E +(.*)', text, re.MULTILINE)[1]}"


def judged(cache, limits, mutant):
    """How a mutant was caught: by plain tests, under ThreadSanitizer, by the clock, or not."""
    file, name, old, new = mutant
    by, reason = "**not caught**", ""
    for sanitized in (False, True):
        limit = limits[TESTS[file], sanitized]
        try:
            found = failure(file, broken(file, old, new), cache, sanitized=sanitized, limit=limit)
        except subprocess.TimeoutExpired:
            by, reason = "the clock", f"did not end in {limit:.0f} s, {PATIENCE} times what the right one takes"
            break
        if found:
            by, reason = SANITIZERS[TESTS[file].sanitizer] if sanitized else "tests", found
            break
    row = f"| {file} | {name} | {by} | {' '.join(reason.replace('|', '/').split())[:110]} |"
    print(row, flush=True)
    return row


def timed(cache, file, sanitized):
    """Seconds that the tests of a file take with its right text, compiled anew; they must pass."""
    began = time.monotonic()
    reason = failure(file, (ROOT / "bpaccel/engines" / file).read_text(), cache, sanitized=sanitized)
    if reason:
        sys.exit(f"{file} as it is fails: {reason}")
    return time.monotonic() - began


def table(rows, limits):
    """The page with all rows, and what they were found with."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    caught = sum("not caught" not in row for row in rows)
    used = []
    for (tests, sanitized), limit in limits.items():
        files = ", ".join(f"`{name}`" for name, each in TESTS.items() if each == tests)
        command = f'`{tests.file} -k "{tests.sanitized if sanitized else tests.plain}"`'
        where = f", under {SANITIZERS[tests.sanitizer]}" if sanitized else ""
        used.append(f"* {files}: {command}{where}, at most {limit:.0f} s")
    return f"""# Bugs put into our CUDA code, one at a time

`python tests/cuda/mutants.py`, {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, Python \
{platform.python_version()}, {compiler}; on the CPU, no GPU.
The code as it is passes all that is named here; of {len(rows)} broken ones, {caught} were caught.

{chr(10).join(used)}

| file | broken | caught by | how it showed |
| :-- | :-- | :-- | :-- |
""" + "".join(row + "\n" for row in rows)


def main():
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        limits = {}
        for file, tests in TESTS.items():
            for sanitized in (False, True):
                if (tests, sanitized) not in limits:
                    limits[tests, sanitized] = PATIENCE * timed(cache, file, sanitized)
        mutants = [(file, name, *texts) for file, found in MUTANTS.items() for name, texts in found.items()]
        rows = list(pool.map(partial(judged, cache, limits), mutants))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(table(rows, limits))


if __name__ == "__main__":
    main()
