"""Where the numbers of a network lie while `bpaccel.engines.fused` learns from a stretch of rows."""

from dataclasses import dataclass
from itertools import pairwise

from bpaccel.engines.lanes import TURNED_ROWS
from bpaccel.engines.memory import LINE_BYTES
from bpaccel.engines.plan import TOTALS
from bpaccel.engines.products import TILE

# What a thread's stretch of rows may fill: two thirds of the usual first cache; but of no unit less than the least, nor
# more rows than the most.
STRETCH_BYTES, LEAST_BYTES, MOST_ROWS = 32 * 2**10, 1024, 1024
# From so many inputs on, a layer's updates are summed by units. Below, to turn its deltas costs more than it saves, and
# the same if more than a quarter of the lanes held nothing (measured for 12 to 128 inputs and 16 to 50 units).
INPUTS_BY_UNITS = 16
# From so many inputs on, weights of a layer that is summed by units are put together in tiles, in runs with steps of
# some hundred rows (1024-1024-10: a step took 0.9 times as long).
PACKED_INPUTS = 64


@dataclass(frozen=True)
class Layout:
    """Places in a thread's memory and in the sums of a block, in numbers of the rows' dtype unless it says otherwise.

    Attributes
    ----------
    stretch, apart : int
        Rows of a stretch; from one unit to the next.
    targets, row_weights, turned : int
        Where they begin; the last are deltas that lie row by row. Inputs are the first.
    numbers : int
        Of all this memory.
    parts : tuple of int
        Where sums by units begin in those of a block: one for each matrix, 0 where they are kept in float64.
    slot_bytes : int
        Of the sums of a block.
    packed : tuple of int
        Numbers of the weights of a matrix in tiles, 0 where they are taken as they lie.
    """

    stretch: int
    apart: int
    targets: int
    row_weights: int
    turned: int
    numbers: int
    parts: tuple
    slot_bytes: int
    packed: tuple


def layout(sizes, bias, width, lanes, unrolled):
    """The `Layout` of a network, for numbers of ``width`` bytes and as many lanes."""
    line = LINE_BYTES // width
    shapes = [(i + bias, o) for i, o in pairwise(sizes)]
    filled = [_up(o, lanes) for o in sizes[1:]]
    by_units = [not unrolled and _by_units(i, o, f) for (i, o), f in zip(shapes, filled)]
    targets = sum(sizes) + (len(sizes) - 1) * (bias and not unrolled)  # with a unit that is always 1 in each layer
    row_weights = targets + sizes[-1]
    stretch = _stretch(row_weights + 1, width)
    # Units apart by (a multiple of) 4096 bytes would fall on the same lines of the cache, and wait for each other.
    apart = stretch + (line if stretch * width < 4096 else 8 * line)
    turned = (row_weights + 1) * apart
    numbers = turned + any(by_units) * stretch * (max(filled) + line)

    tiles = [-(-o // TILE) if chosen and i >= PACKED_INPUTS else 0 for (i, o), chosen in zip(shapes, by_units)]
    packed = tuple(count and count * i * TILE + lanes for count, (i, _) in zip(tiles, shapes))
    parts, slot_bytes = [], 8 * (sum(i * o for i, o in shapes) + TOTALS)
    for (i, _), f, chosen in zip(shapes, filled, by_units):
        if chosen:
            slot_bytes = _up(slot_bytes, LINE_BYTES)
        parts.append(slot_bytes // width if chosen else 0)
        slot_bytes += chosen * i * f * width
    return Layout(
        stretch, apart, targets * apart, row_weights * apart, turned, numbers, tuple(parts), slot_bytes, packed
    )


def _by_units(inputs, outputs, filled):
    return inputs >= INPUTS_BY_UNITS and outputs >= TURNED_ROWS and 4 * outputs >= 3 * filled


def _stretch(units, width):
    rows = MOST_ROWS
    while rows * width > LEAST_BYTES and rows * units * width > STRETCH_BYTES:
        rows //= 2
    return rows


def _up(number, multiple):
    return -(-number // multiple) * multiple
