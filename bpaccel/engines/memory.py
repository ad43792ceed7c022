"""Memory as kernels see it: numbers and lanes at addresses, tiles that are turned, and words that threads share.

Kernels get what they need by address: one signature for all arrays, read-only or not, and cheap calls.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bpaccel.engines.lanes import (
    FLOATS,
    I32,
    I64,
    REGISTER_BYTES,
    TURNED_ROWS,
    lanes_of,
    widened,
)

BYTES = ir.IntType(8).as_pointer()
LINE_BYTES = 64  # of the cache


def pointer(builder, address, index, type_):
    """A pointer to element ``index`` of an array of numbers of an LLVM type, at an address."""
    return builder.gep(builder.inttoptr(address, type_.as_pointer()), [index])


@intrinsic
def load(typing, kind, address, index):
    """Lanes from neighbouring numbers of an array, from ``index`` on."""
    lanes = lanes_of(kind)

    def code(context, builder, sig, args):
        where = pointer(builder, args[1], args[2], lanes.vector.element)
        return builder.load(builder.bitcast(where, lanes.vector.as_pointer()), align=kind.kind.width)

    return lanes(kind, types.int64, types.int64), code


@intrinsic
def line_numbers(typing, kind):
    """How many numbers a line of the cache holds."""
    return types.int64(kind), lambda context, builder, sig, args: I64(LINE_BYTES // kind.kind.width)


def prefetch(builder, place, write):
    """Emit the instruction that begins to bring the line of a number to the first cache, to stay there."""
    shape = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", (BYTES,), shape)
    builder.call(function, [builder.bitcast(place, BYTES), I32(int(write)), I32(3), I32(1)])  # the last: of data


@intrinsic
def fetch(typing, kind, address, index):
    """Begin to bring a number of an array, and what shares its line, to the first cache, wherever that may be."""

    def code(context, builder, sig, args):
        prefetch(builder, pointer(builder, args[1], args[2], lanes_of(kind).vector.element), write=False)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64), code


@intrinsic
def store(typing, kind, address, index, value):
    """The opposite of `load`."""
    lanes = lanes_of(kind)

    def code(context, builder, sig, args):
        where = pointer(builder, args[1], args[2], lanes.vector.element)
        builder.store(args[3], builder.bitcast(where, lanes.vector.as_pointer()), align=kind.kind.width)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, lanes), code


@intrinsic
def picked(typing, kind, address, index, step, first):
    """Lanes from every ``step``-th of the next count * step numbers, beginning with the ``first``; both are literals.

    They are read in one wide load, which calls for the same step share.
    """
    lanes = lanes_of(kind)
    if not all(isinstance(t, types.IntegerLiteral) for t in (step, first)):
        return None  # then Numba asks again, with what is literal

    def code(context, builder, sig, args):
        wide = ir.VectorType(lanes.vector.element, lanes.count * step.literal_value)
        where = pointer(builder, args[1], args[2], wide.element)
        value = builder.load(builder.bitcast(where, wide.as_pointer()), align=kind.kind.width)
        places = [step.literal_value * r + first.literal_value for r in range(lanes.count)]
        return builder.shuffle_vector(
            value, ir.Constant(wide, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes.count), places)
        )

    return lanes(kind, types.int64, types.int64, step, first), code


@intrinsic
def row_starts(typing, order, step, first):
    """Where the TURNED_ROWS rows of a tile begin, ``step`` apart: ``order[first:]``, or ``first`` on for order 0."""

    def code(context, builder, sig, args):
        order, step, first = args
        numbers = [builder.add(first, I64(j)) for j in range(TURNED_ROWS)]
        with builder.if_else(builder.icmp_signed("!=", order, I64(0))) as (listed, straight):
            with listed:
                listed_block = builder.block
                there = [builder.load(pointer(builder, order, n, I64)) for n in numbers]
            with straight:
                straight_block = builder.block
        places = []
        for n, other in zip(numbers, there):
            place = builder.phi(I64)
            place.add_incoming(other, listed_block)
            place.add_incoming(n, straight_block)
            places.append(place)
        return cgutils.pack_array(builder, [builder.mul(place, step) for place in places])

    return types.UniTuple(types.int64, TURNED_ROWS)(types.int64, types.int64, types.int64), code


@intrinsic
def turned_columns(typing, kind):
    """How many columns `turn` turns."""
    return types.int64(kind), lambda context, builder, sig, args: I64(REGISTER_BYTES // kind.kind.width)


@intrinsic
def turn(typing, kind, part, address, rows, column, a, at, apart):
    """Turn a tile of an array that lies row by row: its columns go to ``a`` from ``at`` on, ``apart``.

    ``rows`` is where the tile's rows begin, ``column`` the first of its columns; it has a ``part``-th, a literal, of
    `turned_columns`.
    """
    if not isinstance(part, types.IntegerLiteral):
        return None
    vector = ir.VectorType(lanes_of(kind).vector.element, REGISTER_BYTES // kind.kind.width // part.literal_value)
    places = range(vector.count)

    def code(context, builder, sig, args):
        address, rows, column, a, at, apart = args[2:]

        def where(address, index):
            return builder.bitcast(pointer(builder, address, index, vector.element), vector.as_pointer())

        def shuffled(left, right, places):
            return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, vector.count), places))

        starts = (builder.add(builder.extract_value(rows, j), column) for j in range(TURNED_ROWS))
        lines = [builder.load(where(address, start), align=kind.kind.width) for start in starts]
        for first in range(0, TURNED_ROWS, vector.count):
            tile, size = lines[first : first + vector.count], 1
            while size < vector.count:  # rows and columns change places, one bit of their numbers at a time
                for i in places:
                    if not i & size:
                        pair = tile[i], tile[i + size]
                        low = [vector.count + c - size if c & size else c for c in places]
                        high = [vector.count + c if c & size else c + size for c in places]
                        tile[i], tile[i + size] = shuffled(*pair, low), shuffled(*pair, high)
                size *= 2
            for number, value in enumerate(tile):
                index = builder.add(at, builder.add(builder.mul(apart, I64(number)), I64(first)))
                builder.store(value, where(a, index), align=kind.kind.width)
        return context.get_dummy_value()

    offsets = types.UniTuple(types.int64, TURNED_ROWS)
    return types.void(kind, part, types.int64, offsets, types.int64, types.int64, types.int64, types.int64), code


@intrinsic
def add_totals(typing, kind, address, index, step, first, second, third, fourth):
    """Add the sums of all lanes of four values to four numbers of float64, ``step`` apart.

    The four are folded together, which takes a third of the instructions of four times `total`.
    """

    def code(context, builder, sig, args):
        def halved(left, right, width, lanes):
            """The lanes of two vectors are runs of ``width``: runs of half as many, both halves of each added."""
            low = [run + lane for run in range(0, lanes, width) for lane in range(width // 2)]
            parts = (
                builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(places)), places))
                for places in (low, [place + width // 2 for place in low])
            )
            return builder.fadd(*parts)

        a, b, c, d = args[4:]
        count = width = a.type.count
        pairs = (halved(left, right, width, 2 * count) for left, right in ((a, b), (c, d)))
        one, width = halved(*pairs, width // 2, 2 * count), width // 4
        while width > 1:
            one, width = halved(one, one, width, one.type.count), width // 2
        for place in range(4):
            value = widened(builder, builder.extract_element(one, I32(place)))
            at = builder.add(args[2], builder.mul(args[3], I64(place)))
            where = pointer(builder, args[1], at, ir.DoubleType())
            builder.store(builder.fadd(builder.load(where), value), where)
        return context.get_dummy_value()

    lanes = lanes_of(kind)
    return types.void(kind, types.int64, types.int64, types.int64, lanes, lanes, lanes, lanes), code


@intrinsic
def add_lanes(typing, kind, address, index, value):
    """Add lanes to as many numbers of float64."""
    lanes = lanes_of(kind)

    def code(context, builder, sig, args):
        wide = ir.VectorType(ir.DoubleType(), lanes.count)
        value = args[3] if lanes.vector == wide else builder.fpext(args[3], wide)
        where = builder.bitcast(pointer(builder, args[1], args[2], ir.DoubleType()), wide.as_pointer())
        builder.store(builder.fadd(builder.load(where, align=8), value), where, align=8)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, lanes), code


@intrinsic
def number(typing, kind, address, index):
    """One number of an array, in the dtype of the kind."""
    dtype, llvm, _ = FLOATS[kind.kind.dtype]

    def code(context, builder, sig, args):
        return builder.load(pointer(builder, args[1], args[2], llvm))

    return dtype(kind, types.int64, types.int64), code


@intrinsic
def put(typing, kind, address, index, value):
    """Set one number of an array."""
    dtype, llvm, _ = FLOATS[kind.kind.dtype]

    def code(context, builder, sig, args):
        builder.store(args[3], pointer(builder, args[1], args[2], llvm))
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, dtype), code


# The words of a control block that threads share. What one thread wrote before it released a word, another sees after
# it acquired it.


@intrinsic
def acquire(typing, address, index):
    """Read a shared word."""

    def code(context, builder, sig, args):
        return builder.load_atomic(pointer(builder, args[0], args[1], I64), "acquire", 8)

    return types.int64(types.int64, types.int64), code


@intrinsic
def release(typing, address, index, value):
    """Set a shared word."""

    def code(context, builder, sig, args):
        builder.store_atomic(args[2], pointer(builder, args[0], args[1], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def swap(typing, address, index, old, new):
    """Set a shared word to ``new`` if it is ``old``; whether it was."""

    def code(context, builder, sig, args):
        where = pointer(builder, args[0], args[1], I64)
        return builder.extract_value(builder.cmpxchg(where, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), code


@intrinsic
def count_up(typing, address, index, number):
    """Add to a shared word."""

    def code(context, builder, sig, args):
        builder.atomic_rmw("add", pointer(builder, args[0], args[1], I64), args[2], "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def word(typing, address, index):
    """A whole number of an array of int64."""

    def code(context, builder, sig, args):
        return builder.load(pointer(builder, args[0], args[1], I64))

    return types.int64(types.int64, types.int64), code


@intrinsic
def real(typing, address, index):
    """A number of an array of float64."""

    def code(context, builder, sig, args):
        return builder.load(pointer(builder, args[0], args[1], ir.DoubleType()))

    return types.float64(types.int64, types.int64), code


@intrinsic
def set_real(typing, address, index, value):
    """Set a number of an array of float64."""

    def code(context, builder, sig, args):
        builder.store(args[2], pointer(builder, args[0], args[1], ir.DoubleType()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), code


@intrinsic
def call(typing, address, arguments):
    """Call a compiled kernel with a tuple of whole numbers (its kind has no value)."""

    def code(context, builder, sig, args):
        nothing = ir.Constant(ir.IntType(8).as_pointer(), None)
        numbers = [builder.extract_value(args[1], k) for k in range(len(args[1].type))]
        kernel = ir.FunctionType(ir.VoidType(), [nothing.type] + [I64] * len(numbers))
        builder.call(builder.inttoptr(args[0], kernel.as_pointer()), [nothing, *numbers])
        return context.get_dummy_value()

    return types.void(types.int64, arguments), code


@intrinsic
def offer(typing, address):
    """Offer the processor to other threads, by a C function of no arguments; address 0 does nothing."""

    def code(context, builder, sig, args):
        with builder.if_then(builder.icmp_signed("!=", args[0], I64(0))):
            builder.call(builder.inttoptr(args[0], ir.FunctionType(I32, ()).as_pointer()), ())
        return context.get_dummy_value()

    return types.void(types.int64), code


# Bits of an x86 processor's control word: what is subnormal is 0, where it is computed and where it is read.
FLUSH = 0x8040
X86 = llvmlite.binding.get_process_triple().startswith(("x86_64", "i386", "i686"))


def _control(builder, name, word):
    place = builder.bitcast(cgutils.alloca_once_value(builder, word), BYTES)
    shape = ir.FunctionType(ir.VoidType(), [BYTES])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), shape), [place])
    return builder.load(builder.bitcast(place, I32.as_pointer()))


@intrinsic
def flush_subnormals(typing):
    """From now on, in this thread, take subnormal numbers for 0: an operation takes many times as long with them.

    Returns what `restore_subnormals` wants. Does nothing on processors other than x86.
    """

    def code(context, builder, sig, args):
        if not X86:
            return I64(0)
        before = _control(builder, "stmxcsr", I32(0))
        _control(builder, "ldmxcsr", builder.or_(before, I32(FLUSH)))
        return builder.zext(before, I64)

    return types.int64(), code


@intrinsic
def restore_subnormals(typing, before):
    """The end of `flush_subnormals`."""

    def code(context, builder, sig, args):
        if X86:
            _control(builder, "ldmxcsr", builder.trunc(args[0], I32))
        return context.get_dummy_value()

    return types.void(types.int64), code
