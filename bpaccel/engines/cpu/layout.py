"""Where the numbers of a network lie while the kernels work on a stretch of rows, and in the sums of a block."""

from itertools import pairwise
from typing import NamedTuple

from bpaccel.engines.cpu.plan import STRETCH_BYTES, TOTALS, WORD_BYTES

# From so many inputs and outputs on, a layer's updates are summed by units. With fewer inputs, to transpose its deltas
# costs more than it saves, and the same if more than a quarter of the lanes held nothing (measured for 12 to 128 inputs
# and 16 to 50 units). The rule is the same for every processor, because it changes bits.
BY_UNITS = 16
LANE_BYTES = 128
# From so many inputs on, weights of a layer that is summed by units are put into tiles, in steps of some hundred rows
# (1024-1024-10: a step took 0.9 times as long).
PACKED_INPUTS = 64


class Layout(NamedTuple):
    """Places in a thread's memory, in units of ``apart`` numbers, and in the sums of a block.

    Attributes
    ----------
    targets, row_weights, transposed, masks : int
        Where they begin, in units; inputs are the first, then each layer.
    units : int
        Of all this memory.
    parts : tuple of int
        Where sums by units begin in those of a block, in bytes: one for each matrix, 0 where they are kept in float64.
    slot_bytes : int
        Of the sums of a block.
    tiles : tuple of int
        Numbers of the weights of a matrix in tiles, 0 where they are taken as they lie.
    """

    targets: int
    row_weights: int
    transposed: int
    masks: int
    units: int
    parts: tuple
    slot_bytes: int
    tiles: tuple


def layout(sizes, bias, width, table, written):
    """The `Layout` of a network for numbers of ``width`` bytes and the kernels of a `Table`.

    A network that is ``written`` out has no units that are always 1.
    """
    shapes = [(i + bias, o) for i, o in pairwise(sizes)]
    filled = [up(o, table.wide) for o in sizes[1:]]
    by_units = [not written and _by_units(i, o, width) for i, o in shapes]
    targets = sum(sizes) + (len(sizes) - 1) * (bias and not written)
    row_weights = targets + sizes[-1]
    transposed = row_weights + 1
    rows = STRETCH_BYTES // width
    deltas = max((f for f, chosen in zip(filled, by_units) if chosen), default=0)
    masks = transposed + (deltas and -(-rows * (deltas + 64 // width) // table.apart))
    parts, slot_bytes = [], 8 * (sum(i * o for i, o in shapes) + TOTALS)
    for (i, _), f, chosen in zip(shapes, filled, by_units):
        if chosen:
            slot_bytes = up(slot_bytes, LANE_BYTES)
        parts.append(slot_bytes if chosen else 0)
        slot_bytes += chosen * i * f * width
    tiles = tuple(
        -(-o // table.tile) * i * table.tile if chosen and i >= PACKED_INPUTS else 0
        for (i, o), chosen in zip(shapes, by_units)
    )
    units = masks + sum(sizes[1:-1]) * (not written)
    return Layout(targets, row_weights, transposed, masks, units + 1, tuple(parts), up(slot_bytes, WORD_BYTES), tiles)


def _by_units(inputs, outputs, width):
    return inputs >= BY_UNITS and outputs >= BY_UNITS and 4 * outputs >= 3 * up(outputs, LANE_BYTES // width)


def up(number, multiple):
    """The least multiple that is no less than a number."""
    return -(-number // multiple) * multiple
