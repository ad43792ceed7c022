"""Lanes: one number for each of several neighbouring rows, as a type of Numba's.

A kernel over lanes is written as for a single row, and each line of it works on 4 to 32 rows at a time in the
machine's vector registers. Nothing is left to a compiler's choice, so the order of every sum is what is written, and
no new function silently fails to vectorise.

The mathematics is written in plain Python over `Value`, whose operators emit instructions: it costs no time in
Numba's own front end. `lane_function` makes such a function callable from a kernel. A `Kind` goes through all of it:
a value known to the compiler, that says what the lanes hold and what kind of network is computed.
"""

import inspect
from dataclasses import dataclass

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

# a * b + c may be one instruction, and -0 may be 0; infinities and nan keep their meaning, sums their order.
FLAGS = ("contract", "nsz")
FLOATS = {"float32": (types.float32, ir.FloatType(), 32), "float64": (types.float64, ir.DoubleType(), 64)}
I32, I64 = ir.IntType(32), ir.IntType(64)
BYTES = ir.IntType(8).as_pointer()


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for: the type of its first argument, and so a part of its name in the cache.

    Attributes
    ----------
    dtype : {"float32", "float64"}
    count : int
        How many rows lanes hold.
    output, loss : str
        The output's activation, or that of a kernel of one activation; the loss.
    activations, shape : tuple
        Of each layer, and its units, for a kernel of a known network; else empty.
    bias : bool
        Of a known network.
    source : str
        A fingerprint of the sources, so that the cache never serves code of another version.
    """

    dtype: str
    count: int
    output: str = ""
    loss: str = ""
    activations: tuple = ()
    shape: tuple = ()
    bias: bool = False
    source: str = ""

    @property
    def width(self):
        """Bytes of a number."""
        return FLOATS[self.dtype][2] // 8


class KindType(types.Opaque):
    """The Numba type of one `Kind`: it has no value at run time."""

    def __init__(self, kind):
        self.kind = kind
        super().__init__(name=repr(kind))


class LanesType(types.Type):
    """The Numba type of lanes of one dtype and count."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"lanes({dtype}, {count})")

    @property
    def vector(self):
        return ir.VectorType(FLOATS[self.dtype][1], self.count)


def lanes_of(kind):
    return LanesType(kind.kind.dtype, kind.kind.count)


register_model(KindType)(models.OpaqueModel)
typeof_impl.register(Kind)(lambda kind, context: KindType(kind))
unbox(KindType)(lambda kind, value, c: NativeValue(c.context.get_dummy_value()))


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, lanes.vector)


class Value:
    """Lanes while code is emitted: its operators emit instructions, with numbers spread over all lanes."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    @property
    def float32(self):
        return self.value.type.element == ir.FloatType()

    def of(self, number):
        """Lanes that all hold a number: a constant, a pair of them (float32, float64), or a scalar value."""
        if isinstance(number, Value):
            return number
        vector = self.value.type
        if isinstance(number, ir.values.Value):
            return Value(self.builder, _spread(self.builder, number, vector))
        if isinstance(number, tuple):
            number = number[0 if self.float32 else 1]
        return Value(self.builder, ir.Constant(vector, [float(number)] * vector.count))

    def _emit(self, name, left, right):
        return Value(self.builder, getattr(self.builder, name)(left.value, right.value, flags=FLAGS))

    def __add__(self, other):
        return self._emit("fadd", self, self.of(other))

    def __sub__(self, other):
        return self._emit("fsub", self, self.of(other))

    def __rsub__(self, other):
        return self._emit("fsub", self.of(other), self)

    def __mul__(self, other):
        return self._emit("fmul", self, self.of(other))

    def __truediv__(self, other):
        return self._emit("fdiv", self, self.of(other))

    def __rtruediv__(self, other):
        return self._emit("fdiv", self.of(other), self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return Value(self.builder, self.builder.fneg(self.value))

    def less(self, other):
        """Where self < other: false for nan."""
        return self.builder.fcmp_ordered("<", self.value, self.of(other).value)

    def more(self, other):
        """Where self > other: false for nan."""
        return self.builder.fcmp_ordered(">", self.value, self.of(other).value)

    def where(self, condition, other):
        """Self where the condition holds, else other."""
        return Value(self.builder, self.builder.select(condition, self.value, self.of(other).value))

    def at_least(self, low):
        """The greater of the two; nan stays nan."""
        return self.of(low).where(self.less(low), self)

    def at_most(self, high):
        """The lesser of the two; nan stays nan."""
        return self.of(high).where(self.more(high), self)

    def abs(self):
        bits = self.bits()
        mask = ir.Constant(bits.type, [(1 << (bits.type.element.width - 1)) - 1] * bits.type.count)
        return self.from_bits(self.builder.and_(bits, mask))

    def bits(self):
        """The same bits as whole numbers."""
        ints = ir.VectorType(I32 if self.float32 else I64, self.value.type.count)
        return self.builder.bitcast(self.value, ints)

    def from_bits(self, bits):
        return Value(self.builder, self.builder.bitcast(bits, self.value.type))

    def whole(self, number):
        """A whole number in all lanes, as wide as the lanes' numbers."""
        ints = ir.VectorType(I32 if self.float32 else I64, self.value.type.count)
        return ir.Constant(ints, [number] * ints.count)

    def total(self):
        """The sum of all lanes, a scalar, always added in the same (pairwise) order."""
        value, count = self.value, self.value.type.count
        while count > 1:
            count //= 2
            halves = [
                self.builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, count), list(part)))
                for part in (range(count), range(count, 2 * count))
            ]
            value = self.builder.fadd(*halves)
        return self.builder.extract_element(value, I32(0))


def _spread(builder, value, vector):
    """A scalar of any float type in every lane."""
    if value.type == vector:
        return value
    if value.type != vector.element:
        value = (builder.fpext if vector.element == ir.DoubleType() else builder.fptrunc)(value, vector.element)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(
        one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, vector.count), None)
    )


def lane_function(function):
    """Make ``function(spec, *values)``, written over `Value`, callable from a kernel with a kind and the values.

    Lanes arrive as `Value`, other arguments as scalar LLVM values; the result is lanes.
    """

    def typed(typing, kind, *args):
        def code(context, builder, sig, values):
            wrapped = [Value(builder, v) if isinstance(t, LanesType) else v for t, v in zip(sig.args, values)]
            return function(kind.kind, *wrapped[1:]).value

        return lanes_of(kind)(kind, *args), code

    # Numba folds arguments by the signature, which is the function's own after the typing context.
    parameters = [inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    typed.__signature__ = inspect.Signature([*parameters, *inspect.signature(function).parameters.values()])
    typed.__name__ = function.__name__
    typed.__doc__ = function.__doc__
    return intrinsic(typed)


@lane_function
def muladd(spec, z, l, w):
    """z + l * w"""
    return z + l * z.of(w)


@lane_function
def mul(spec, a, b):
    """a * b"""
    return a * b


@lane_function
def add(spec, a, b):
    """a + b"""
    return a + b


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
    """How many numbers a line of the cache holds: 64 bytes."""
    return types.int64(kind), lambda context, builder, sig, args: I64(64 // kind.kind.width)


@intrinsic
def fetch(typing, kind, address, index):
    """Begin to bring a number of an array, and what shares its line, to the first cache, wherever that may be."""

    def code(context, builder, sig, args):
        where = builder.bitcast(pointer(builder, args[1], args[2], lanes_of(kind).vector.element), BYTES)
        shape = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (BYTES,), shape)
        builder.call(function, [where, I32(0), I32(3), I32(1)])  # to read, to be kept, data
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
def eight(typing, order, step, first):
    """Where eight rows ``order[first:first + 8]``, or ``first:first + 8`` for order 0, begin: ``step`` apart."""

    def code(context, builder, sig, args):
        order, step, first = args
        numbers = [builder.add(first, I64(j)) for j in range(8)]
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

    return types.UniTuple(types.int64, 8)(types.int64, types.int64, types.int64), code


@intrinsic
def tile_columns(typing, kind):
    """How many columns `turn` turns: as many numbers as fill 32 bytes."""
    return types.int64(kind), lambda context, builder, sig, args: I64(32 // kind.kind.width)


@intrinsic
def turn(typing, kind, address, rows, column, a, at, apart):
    """Turn a tile of an array that lies row by row: its columns go to ``a`` from ``at`` on, ``apart``.

    ``rows`` is where the tile's eight rows begin, ``column`` the first of its columns.
    """
    vector = ir.VectorType(lanes_of(kind).vector.element, 32 // kind.kind.width)
    places = range(vector.count)

    def code(context, builder, sig, args):
        def where(address, index):
            return builder.bitcast(pointer(builder, address, index, vector.element), vector.as_pointer())

        def shuffled(left, right, places):
            return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, vector.count), places))

        starts = (builder.add(builder.extract_value(args[2], j), args[3]) for j in range(8))
        rows = [builder.load(where(args[1], start), align=kind.kind.width) for start in starts]
        for first in range(0, 8, vector.count):
            tile, size = rows[first : first + vector.count], 1
            while size < vector.count:  # rows and columns change places, one bit of their numbers at a time
                for i in places:
                    if not i & size:
                        pair = tile[i], tile[i + size]
                        low = [vector.count + c - size if c & size else c for c in places]
                        high = [vector.count + c if c & size else c + size for c in places]
                        tile[i], tile[i + size] = shuffled(*pair, low), shuffled(*pair, high)
                size *= 2
            for column, value in enumerate(tile):
                index = builder.add(args[5], builder.add(builder.mul(args[6], I64(column)), I64(first)))
                builder.store(value, where(args[4], index), align=kind.kind.width)
        return context.get_dummy_value()

    offsets = types.UniTuple(types.int64, 8)
    return types.void(kind, types.int64, offsets, types.int64, types.int64, types.int64, types.int64), code


@intrinsic
def spread(typing, kind, value):
    """A number in all lanes."""
    lanes = lanes_of(kind)
    return lanes(kind, value), lambda context, builder, sig, args: _spread(builder, args[1], lanes.vector)


@intrinsic
def total(typing, kind, value):
    """The sum of all lanes, always added in the same order, as float64."""

    def code(context, builder, sig, args):
        return widened(builder, Value(builder, args[1]).total())

    return types.float64(kind, value), code


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


def widened(builder, scalar):
    """A scalar of any float type, as float64."""
    return scalar if scalar.type == ir.DoubleType() else builder.fpext(scalar, ir.DoubleType())


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


@intrinsic
def rounded(typing, kind, value):
    """A float64 in the dtype of the kind."""
    dtype, llvm, bits = FLOATS[kind.kind.dtype]

    def code(context, builder, sig, args):
        return args[1] if bits == 64 else builder.fptrunc(args[1], llvm)

    return dtype(kind, types.float64), code


@intrinsic
def lane_count(typing, kind):
    """How many rows lanes hold."""
    return types.int64(kind), lambda context, builder, sig, args: I64(kind.kind.count)


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
def count_up(typing, address, index):
    """Add 1 to a shared word."""

    def code(context, builder, sig, args):
        builder.atomic_rmw("add", pointer(builder, args[0], args[1], I64), I64(1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


# Kernels get what they need by address: one signature for all arrays, read-only or not, and cheap calls.


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
