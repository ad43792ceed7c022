"""Lanes: one number for each of several neighbouring rows, as a type of Numba's.

A kernel over lanes is written as for a single row, and each line of it works on 4 to 32 rows at a time in the
machine's vector registers. Nothing is left to a compiler's choice, so the order of every sum is what is written, and
no new function silently fails to vectorise.

The mathematics is written in plain Python over `Value`, whose operators emit instructions: it costs no time in
Numba's own front end. `lane_function` makes such a function callable from a kernel. A `Kind` goes through all of it:
a value known to the compiler, that says what the lanes hold and what kind of network is computed.
"""

import hashlib
import inspect
from dataclasses import dataclass
from types import FunctionType

import numba
from llvmlite import ir
from numba import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

# a * b + c may be one instruction, and -0 may be 0; infinities and nan keep their meaning, sums their order.
FLAGS = ("contract", "nsz")
FLOATS = {"float32": (types.float32, ir.FloatType(), 32), "float64": (types.float64, ir.DoubleType(), 64)}
I32, I64 = ir.IntType(32), ir.IntType(64)
# What the processor knows that code is made for: this one, if Numba's environment says nothing else.
FEATURES = numba.config.CPU_FEATURES
if FEATURES is None:
    FEATURES = get_host_cpu_features()
PROCESSOR = f"{numba.config.CPU_NAME} {FEATURES}"
WIDE_REGISTERS = "+avx512f" in FEATURES.split(",")
REGISTER_BYTES = 64 if WIDE_REGISTERS else 32
TURNED_ROWS = REGISTER_BYTES // 4  # rows of a tile that is turned: in float64, of two tiles


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
def add(spec, a, b):
    """a + b"""
    return a + b


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


def widened(builder, scalar):
    """A scalar of any float type, as float64."""
    return scalar if scalar.type == ir.DoubleType() else builder.fpext(scalar, ir.DoubleType())


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


def kernel(function, kind):
    """A function over lanes, compiled for a kind: an object with its address.

    Kept on the disk, if there is a place that may be written to.
    """
    # Numba lists all that it keeps of a function in one file. Two processes that compile it for two kinds at once could
    # both take the same place for their code, and one would find the other's there. So each kind gets a function of
    # its own: then at worst both write the same.
    own = FunctionType(function.__code__, function.__globals__, function.__name__)
    own.__module__ = function.__module__
    own.__qualname__ = f"{function.__qualname__}_{hashlib.sha256(repr(kind).encode()).hexdigest()[:16]}"
    signature = types.void(KindType(kind), *[types.int64] * (function.__code__.co_argcount - 1))
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(own)
    except RuntimeError:
        return numba.cfunc(signature, error_model="numpy")(own)
