"""Products of matrices, a tile at a time: what `bpaccel.engines.fused` spends its time with where layers are wide.

A tile is some units of a layer times lanes: of rows, or of units of the layer above. Its sums stay in registers while
it runs along what is summed over; each step loads lanes once for all units, and one number for each of them. Forward,
backward and update are the same sums of other things: lanes times numbers.

The layout of a tile follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM
Transactions on Mathematical Software 34 (3), 2008. Lanes lie together as the fused pass keeps them; numbers may be put
together, by `pack_tiles`.
"""

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bpaccel.engines.lanes import I64, WIDE_REGISTERS, Value, lane_count, lanes_of
from bpaccel.engines.memory import LINE_BYTES, load, pointer, prefetch, store

# The most units of a tile. Lanes are two registers: AVX-512 has 32 of them, for 26 sums, what is multiplied, and a
# number that is spread; AVX2 has 16, for 12 sums.
TILE = 13 if WIDE_REGISTERS else 6
# The most that is summed over at once: then the numbers of a tile stay in the first cache for all lanes.
NEAR = 256
SET, ADD, MULTIPLY = range(3)  # what becomes of what lies where the sums go


def products(k, out, at, step, units, l, l_at, l_step, length, w, w_at, w_step, w_unit, w_tile, count, how):
    """Sums of lanes times numbers for some units: ``out[u] = sum(l[c] * w[c, u])`` over ``count`` of c.

    The ``length`` numbers of ``out[u]``, whole lanes of them, begin at ``at + u * step``, those of ``l[c]`` at
    ``l_at + c * l_step``; the number is at ``w_at + c * w_step + u * w_unit``, or those of a tile are together, as
    `pack_tiles` leaves them, ``w_tile`` from tile to tile. ``how`` is SET, ADD (the sums go on from what ``out`` holds)
    or MULTIPLY (what it holds is multiplied by them).
    """
    size = tile_units(units)
    parts = 1 if how == MULTIPLY else (count + NEAR - 1) // NEAR
    near = (count + parts - 1) // parts
    for c in range(0, count, near):
        some, then = min(near, count - c), ADD if c else how
        for u in range(0, units, size):
            number = w_at + c * w_step + (u // size * w_tile if w_tile else u * w_unit)
            tiled(
                k, min(size, units - u), out, at + u * step, step, l, l_at + c * l_step, l_step, length,
                w, number, w_step, w_unit, some, then,
            )  # fmt: skip


@numba.njit
def pack_tiles(k, w, w_at, count, units, out):
    """Put the numbers of each tile together: those for its units side by side, then the same of the next row of w.

    As they lie in w, a power of two apart, they would fall on the same lines of the cache. Up to as many numbers as
    lanes hold are read past the last, and set.
    """
    size = tile_units(units)
    for u in range(0, units, size):
        for c in range(count):
            for q in range(0, size, lane_count(k)):
                store(k, out, (u // size * count + c) * TILE + q, load(k, w, w_at + c * units + u + q))


@numba.njit
def tile_units(units):
    """Units of each tile but the last: about the same of all, for a small one costs as much to begin and to end."""
    tiles = (units + TILE - 1) // TILE
    return (units + tiles - 1) // tiles


@numba.njit
def filled(k, units):
    """Units, with those that fill lanes."""
    return (units + lane_count(k) - 1) // lane_count(k) * lane_count(k)


@intrinsic
def tiled(typing, kind, units, out, at, step, l, l_at, l_step, length, w, w_at, w_step, w_unit, count, how):
    """`products` for no more units than a tile has: code for each number of them."""

    def code(context, builder, sig, args):
        units, out, at, step, l, l_at, l_step, length, *numbers = args[1:]
        done = builder.append_basic_block("done")
        switch = builder.switch(units, done)
        for number in range(1, TILE + 1):
            case = builder.append_basic_block(f"units{number}")
            switch.add_case(I64(number), case)
            builder.position_at_end(case)
            with cgutils.for_range_slice(builder, I64(0), length, I64(lanes_of(kind).count), I64) as (v, _):
                _tile(builder, kind, number, out, builder.add(at, v), step, l, builder.add(l_at, v), l_step, *numbers)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(kind, *[types.int64] * 14), code


def _tile(builder, kind, units, out, at, step, l, l_at, l_step, w, w_at, w_step, w_unit, count, how):
    """Emit one loop for some units, with their sums in registers."""
    lanes, width, units = lanes_of(kind), kind.kind.width, range(units)
    element, vector = lanes.vector.element, lanes.vector.as_pointer()

    def lanes_at(place):
        return Value(builder, builder.load(builder.bitcast(place, vector), align=width))

    places = [pointer(builder, out, builder.add(at, builder.mul(step, I64(u))), element) for u in units]
    nothing = Value(builder, ir.Constant(lanes.vector, [0.0] * lanes.count))
    sums = [cgutils.alloca_once(builder, lanes.vector) for _ in units]
    for s in sums:
        builder.store(nothing.value, s)
    with builder.if_then(builder.icmp_signed("==", how, I64(ADD))):
        for s, place in zip(sums, places):
            builder.store(lanes_at(place).value, s)
            # What the next units are added to may be far away, and is on its way while these are computed.
            then = builder.gep(place, [builder.mul(step, I64(len(units)))])
            for line in range(0, lanes.count, LINE_BYTES // width):
                prefetch(builder, builder.gep(then, [I64(line)]), write=True)
    # Three numbers are found from one pointer, its step and twice the step: so few pointers are kept in registers. A
    # compiler would find each pointer from the one before it, a chain that takes longer than the sums: it is told
    # nothing of what they have in common.
    row = cgutils.alloca_once_value(builder, pointer(builder, l, l_at, element))
    address = element.as_pointer()
    hidden = ir.InlineAsm(ir.FunctionType(address, [address]), "", "=r,0", side_effect=False)
    columns = [
        cgutils.alloca_once_value(builder, pointer(builder, w, builder.add(w_at, builder.mul(w_unit, I64(u))), element))
        for u in units[::3]
    ]
    with cgutils.for_range(builder, count):
        here = builder.load(row)
        value = lanes_at(here)
        builder.store(builder.gep(here, [l_step]), row)
        starts = [builder.call(hidden, [builder.load(column)]) for column in columns]
        for u, s in zip(units, sums):
            number = builder.load(builder.gep(starts[u // 3], [builder.mul(w_unit, I64(u % 3))]))
            builder.store((Value(builder, builder.load(s)) + value * value.of(number)).value, s)
        for start, column in zip(starts, columns):
            builder.store(builder.gep(start, [w_step]), column)
    with builder.if_then(builder.icmp_signed("==", how, I64(MULTIPLY))):
        for s, place in zip(sums, places):
            builder.store((Value(builder, builder.load(s)) * lanes_at(place)).value, s)
    for s, place in zip(sums, places):
        builder.store(builder.load(s), builder.bitcast(place, vector), align=width)
