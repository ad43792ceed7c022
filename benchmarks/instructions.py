"""Instructions a row of the fused pass of 3-4-1, counted in the assembly that Numba made for this processor.

    python benchmarks/instructions.py

Each loop is a pass over the rows of a stretch: forward through each layer, then back through each. Of reading the rows
into the stretch, which comes before, there is a loop for each way that rows can lie, and it is not counted.
"""

import dataclasses
import re
import sys

import numba
from numba import types

from bpaccel.engines import fused, lanes
from bpaccel.engines.numba import LESSON_BYTES

PASSES = ("forward, hidden layer", "forward, output", "back, output", "back, hidden layer")
HEADERS = ("dtype", "pass", "instructions", "of vectors", "divisions", "loads and stores", "rows", "a row")


def assembly(dtype, count):
    """The text that the lesson of 3-4-1 is compiled to, for ``count`` rows at a time."""
    kind = lanes.Kind(dtype, count, "sigmoid", "squared_error", ("sigmoid", "sigmoid"), (3, 4, 1), False)
    signature = types.void(lanes.KindType(dataclasses.replace(kind)), *[types.int64] * 7)
    compiled = numba.cfunc(signature, error_model="numpy")(fused.learn_unrolled)
    return compiled._library.get_asm_str()


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


def rows():
    """The table: lists of str."""
    table = []
    for dtype, width in (("float32", 4), ("float64", 8)):
        count, total = LESSON_BYTES // width, 0.0
        for name, body in zip(PASSES, loops(assembly(dtype, count)), strict=True):
            taken = count // 2 if name.startswith("back") else count  # a pass back takes half as many: see unrolled.py
            total += len(body) / taken
            vectors, memory = (sum(bool(re.search(what, line)) for line in body) for what in ("[xyz]mm", r"\("))
            divisions = sum(line.startswith("vdiv") for line in body)
            table.append([dtype, name, *map(str, (len(body), vectors, divisions, memory, taken)),
                          f"{len(body) / taken:.1f}"])  # fmt: skip
        table.append([dtype, "all", "", "", "", "", "", f"{total:.1f}"])
    return table


def main():
    import llvmlite.binding

    print(f"{llvmlite.binding.get_host_cpu_name()}, numba {numba.__version__}, bpaccel's lanes of {LESSON_BYTES} bytes")
    print("| " + " | ".join(HEADERS) + " |")
    print("| :-- | :-- |" + " --: |" * (len(HEADERS) - 2))
    for row in rows():
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
