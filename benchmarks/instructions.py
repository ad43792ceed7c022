"""Instructions a row of the fused pass of 3-4-1, counted in the assembly of its kernels for x86-64.

    python benchmarks/instructions.py

Each loop is a pass over the rows of a stretch: forward through each layer, then back through each. Of reading the rows
into the stretch, which comes before, there is a loop for each way that rows can lie, and it is not counted.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bpaccel.native import build

PASSES = ("forward, hidden layer", "forward, output", "back, output", "back, hidden layer")
HEADERS = ("level", "dtype", "pass", "instructions", "of vectors", "divisions", "loads and stores", "rows", "a row")
LEVELS = (build.V4, build.V3)
# Rows at a time, forward and back: see written.hpp.
ROWS = {"float32": (32, 16), "float64": (16, 8)}
SOURCE = """
#include "rows.hpp"
#include "written.hpp"
using namespace bp;
typedef activation::sigmoid S;
template <class T>
using Pass = Written<T, 128 / sizeof(T), lanes<T>, Network<S, S, loss::squared_error, false, 3, 4, 1>>;
extern "C" void learn(const Plan<REAL>& plan, const Stretch& stretch, REAL* memory, double* sums) {
    Pass<REAL>::learn(plan, stretch, memory, sums);
}
"""


def assembly(level, dtype):
    """The text that the pass of 3-4-1 is compiled to for a `build.Library` of Linux on x86-64.

    Raises
    ------
    bpaccel.native.build.BuildError
        If the package ziglang is not installed.
    """
    name = "linux-x86_64"
    compiler, target = build.find_compiler(name), build.TARGETS[name]
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-s")]
    command = [*compiler.command, *flags, *build.ZIG_FLAGS, "-fPIC", "-target", target.zig, *level.zig]
    real = {"float32": "float", "float64": "double"}[dtype]
    with tempfile.TemporaryDirectory(prefix="bpaccel-", ignore_cleanup_errors=True) as folder:
        build.copy_sources(folder)
        Path(folder, "pass.cpp").write_text(SOURCE)
        command += [f"-DREAL={real}", "-Wno-unused-command-line-argument", "-S", "pass.cpp", "-o", "pass.s"]
        subprocess.run(command, cwd=folder, check=True)
        return Path(folder, "pass.s").read_text()


def loops(text):
    """The innermost loops of some assembly, each a list of instructions."""
    labels, instructions, found = {}, [], []
    for line in map(str.strip, text.splitlines()):
        if label := re.match(r"(\.LBB\d+_\d+):", line):
            labels[label[1]] = len(instructions)
        elif line and line[0] not in ".#" and not line.endswith(":"):
            instructions.append(line)
    for end, line in enumerate(instructions):
        jump = re.match(r"j\w+\s+(\.LBB\d+_\d+)", line)
        if jump and labels.get(jump[1], end + 1) <= end:
            found.append((labels[jump[1]], end + 1))
    inner = [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [instructions[first:end] for first, end in inner]


def table():
    """The table: lists of str."""
    lines = []
    for level in LEVELS:
        for dtype, (forward, back) in ROWS.items():
            total = 0.0
            for name, body in zip(PASSES, loops(assembly(level, dtype)), strict=True):
                taken = back if name.startswith("back") else forward
                total += len(body) / taken
                vectors, memory = (sum(bool(re.search(what, line)) for line in body) for what in ("[xyz]mm", r"\("))
                divisions = sum(line.startswith("vdiv") for line in body)
                lines.append([level.name, dtype, name, *map(str, (len(body), vectors, divisions, memory, taken)),
                              f"{len(body) / taken:.1f}"])  # fmt: skip
            lines.append([level.name, dtype, "all", "", "", "", "", "", f"{total:.1f}"])
    return lines


def main():
    print(f"x86-64, {build.ZIGLANG}")
    print("| " + " | ".join(HEADERS) + " |")
    print("| :-- | :-- | :-- |" + " --: |" * (len(HEADERS) - 3))
    for line in table():
        print("| " + " | ".join(line) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
