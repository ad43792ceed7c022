"""Tracing: a row of a table is called with values that note what is done to them.

The values have no numbers. `trace` hands them to a row as ``z``, ``a``, ``y`` or ``l``, and `namespace` as ``xp``; what
comes back is the last node of a graph of operations. Python's operators, the functions of `namespace`, and NumPy's own
functions by its protocols are noted. Whatever looks at more than one number is refused with a sentence. A decision of
Python's is refused as well: it would hold for all rows.

This module imports nothing but the standard library: it runs where the package is built.
"""

import math
import operator
import os
import struct
import traceback
from contextvars import ContextVar

INFINITE = math.inf
ANYWHERE = -INFINITE, INFINITE  # a span: the least and the greatest that a value may be; nan it may be as well


class Unprintable(ValueError):
    """A row is not a formula of one number; the message says why, where, and what to do."""


class DType(str):
    """The dtype of values: a string with a `name`, so that NumPy's own functions know it too."""

    __slots__ = ()

    @property
    def name(self):
        return str(self)

    def __eq__(self, other):
        return str(self) == str(getattr(other, "name", None) or getattr(other, "__name__", None) or other)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


class FInfo:
    """What ``xp.finfo`` says of a dtype."""

    def __init__(self, name, bits, fraction, exponent):
        self.dtype, self.bits = DType(name), bits
        self.eps = 2.0**-fraction
        self.smallest_normal = self.tiny = 2.0 ** (2 - 2**exponent)
        self.max = (2 - self.eps) * 2.0 ** (2**exponent - 1)
        self.min = -self.max


_FINFO = {"float32": FInfo("float32", 32, 23, 7), "float64": FInfo("float64", 64, 52, 10)}


# --- values ---


class Value:
    """A number of a row that is being traced.

    Attributes
    ----------
    op : str
        ``"input"``, ``"constant"``, an operator (``"-1"`` is the one with a single operand), or a C++ function's name.
    args : tuple of Value
    kind : str
        ``"V"``: it differs from row to row; ``"T"``: one number for all of them; ``"mask"``: a condition.
    span : tuple of float
        The least and the greatest that it may be.
    constant : float or str
        Of a constant its number, of an input its name.
    """

    shape, ndim = ("N", "O"), 2

    def __init__(self, trace, op, args, kind, span, constant):
        self.trace, self.op, self.args, self.kind, self.span, self.constant = trace, op, args, kind, span, constant
        self.serial = len(trace.values)

    __hash__ = object.__hash__

    @property
    def dtype(self):
        return self.trace.dtype

    def __array_namespace__(self, api_version=None):
        return namespace

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            raise Unprintable(f"it calls np.{ufunc.__name__}.{method}, which looks at several numbers at once")
        return _called(_UFUNCS.get(ufunc.__name__, ufunc.__name__), [self.trace.value(x) for x in inputs], options)

    def __array_function__(self, function, types, args, options):
        return _called(function.__name__, args, options)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise Unprintable(f"it asks a value for its .{name}: use xp.{name} if that looks at one number only")


def _called(name, args, options):
    if "out" in options or "where" in options:
        raise Unprintable(f"it hands np.{name} the argument `out` or `where`: use np.where to choose a number")
    return getattr(namespace, name)(*args, **options)


def _refusing(sentence):
    def method(self, *_, **__):
        raise Unprintable(sentence)

    return method


_ALONE = "a row is printed for one number, and sees no others"
_EXPONENT = "it has a power whose exponent is a value: use xp.exp(n * xp.log(x)), or math.log for a number"
for _names, _sentence in {
    ("bool",): "it has a Python `if`, `while`, `and`, `or`, `min` or `max` on a value, which differs from row to row: "
               "use xp.where",
    ("float", "int", "index", "complex"): "it makes a Python number of a value (float(), or a function of the module "
                                          "math): use the functions of xp",
    ("iter", "len", "contains"): f"it loops over the rows: {_ALONE}",
    ("getitem",): f"it takes some of the rows or outputs out: {_ALONE}",
    ("setitem",): "it writes into an array: use xp.where for what is to be another number",
    ("matmul", "rmatmul"): f"it multiplies matrices: {_ALONE}",
    ("rpow",): _EXPONENT,
}.items():  # fmt: skip
    for _name in _names:
        setattr(Value, f"__{_name}__", _refusing(_sentence))


class Parameter(float):
    """The number of a family, as ``huber:d`` has it: a float for names and checks, a value in arithmetic."""

    __hash__ = float.__hash__


_current: ContextVar = ContextVar("trace")


class Trace:
    """One call of a row, in one dtype: what was done, each thing once."""

    def __init__(self, dtype):
        self.dtype, self.values, self.parameter = DType(dtype), {}, None

    def note(self, op, *args, kind="V", span=ANYWHERE, constant=None):
        # A constant goes by its text: 0.0 and -0.0 are two, nan is one.
        key = op, repr(constant), *map(id, args)
        if key not in self.values:
            self.values[key] = Value(self, op, args, kind, span, constant)
        return self.values[key]

    def value(self, x):
        """A value as it is, a number as a constant."""
        if isinstance(x, Value):
            if x.trace is not self:
                raise Unprintable("it keeps a value for its next call: a formula has its own arguments alone")
            return x
        if isinstance(x, Parameter):
            return self.parameter
        shape = getattr(x, "shape", ())
        if not isinstance(shape, tuple) or shape:
            raise Unprintable(f"it holds an array of shape {shape} of its own, and an engine hands it only numbers")
        try:
            if isinstance(x, (str, bytes)):
                raise TypeError
            x = float(x)
        except (TypeError, ValueError, OverflowError):
            raise Unprintable(f"it computes with {x!r}, which is not a real number") from None
        rounded = self.rounded(x)
        x = rounded if math.isinf(rounded) else x
        return self.note("constant", kind="T", span=ANYWHERE if math.isnan(x) else (rounded, rounded), constant=x)

    def rounded(self, x):
        """The number of this dtype that is nearest to ``x``."""
        if self.dtype == "float64" or not math.isfinite(x):
            return x
        try:
            return struct.unpack("f", struct.pack("f", x))[0]
        except OverflowError:
            return math.copysign(INFINITE, x)

    def widened(self, span, units, exact=(0,)):
        """A span with room for a few units in the last place, except where numbers are met exactly."""
        eps = units * _FINFO[self.dtype].eps
        low, high = (0.0 if x in exact or math.isinf(x) else abs(x) * eps for x in span)
        return self.rounded(span[0] - low), self.rounded(span[1] + high)


def trace(function, names, dtype, spans=None, parameter=None):
    """What a row does in one dtype.

    Parameters
    ----------
    function : callable
        The row's: ``(*values, xp) -> value``; with a ``parameter``, that stands first.
    names : iterable of str
        Of the values.
    dtype : str
        "float32" or "float64".
    spans : dict, optional
        Where values lie, by name; any number if it is not there.
    parameter : tuple of float, optional
        Of a family: its number, the least and the greatest that it may be.

    Returns
    -------
    Value
        The result, of kind "V" or "T".

    Raises
    ------
    Unprintable
        Without the name and the place of the row, as `Exception` of any kind if the row raises one.
    """
    noted = Trace(dtype)
    token = _current.set(noted)
    try:
        first = []
        if parameter is not None:
            noted.parameter = noted.note("input", kind="T", span=tuple(map(noted.rounded, parameter[1:])), constant="d")
            first = [Parameter(parameter[0])]
        values = [noted.note("input", span=(spans or {}).get(name, ANYWHERE), constant=name) for name in names]
        result = function(*first, *values, namespace)
        if result is None:
            raise Unprintable("it returns None, not a number")
        result = noted.value(result)
    finally:
        _current.reset(token)
    if result.kind == "mask":
        raise Unprintable("it returns a condition, not a number: use xp.where(condition, 1.0, 0.0)")
    return result


def place(error, function):
    """Where a row went wrong, ``(file, line N)``: the last line of a person's own, or where the row is defined."""
    here, libraries = os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.abspath(os.__file__))
    lines = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error and error.__traceback__)]
    lines = [(name, n) for name, n in lines if os.path.dirname(os.path.abspath(name)) != here]
    own = [(name, n) for name, n in lines if not name.startswith("<frozen") and not _inside(name, libraries)]
    if code := getattr(function, "__code__", None):
        lines.insert(0, (code.co_filename, code.co_firstlineno))
    chosen = (own or lines)[-1:]
    return "".join(f" ({os.path.basename(name)}, line {line})" for name, line in chosen)


def _inside(name, folder):
    return os.path.abspath(name).startswith(folder + os.sep)


# --- operators ---


def _noted(*xs):
    """The trace of this call, and arguments as values."""
    now = _current.get()
    return now, [now.value(x) for x in xs]


def _numbers(*xs):
    """The same, where a condition counts as 1 or 0."""
    now, xs = _noted(*xs)
    one, zero = now.value(1.0), now.value(0.0)
    return now, [now.note("select", x, one, zero, span=(0.0, 1.0)) if x.kind == "mask" else x for x in xs]


def _kind(*xs):
    return "T" if all(x.kind == "T" for x in xs) else "V"


def _corners(now, function, a, b):
    """Where a result lies if it is monotone in both arguments: it takes its ends at corners, rounded as numbers are."""
    try:
        ends = [now.rounded(function(x, y)) for x in a for y in b]
    except (ZeroDivisionError, OverflowError):
        return ANYWHERE
    return ANYWHERE if any(map(math.isnan, ends)) else (min(ends), max(ends))


def _arithmetic(symbol, function):
    def method(self, other, swap=False):
        now, (a, b) = _noted(*((other, self) if swap else (self, other)))
        if a.kind == b.kind == "mask":
            raise Unprintable(f"it has {symbol} between two conditions: join them by & and |, or use xp.where")
        now, (a, b) = _numbers(a, b)
        spans = [x.span for x in (a, b)]
        if symbol in "+-":  # a product may be fused, and is not rounded then
            spans = [now.widened(x.span, 1) if x.op == "*" else x.span for x in (a, b)]
        span = _corners(now, function, *spans)
        if symbol == "/" and b.span[0] <= 0 <= b.span[1]:
            span = ANYWHERE
        if symbol == "*" and a is b:
            span = max(0.0, span[0]), span[1]
        return now.note(symbol, a, b, kind=_kind(a, b), span=span)

    return method


def _comparison(symbol):
    def method(self, other):
        now, (a, b) = _numbers(self, other)
        return now.note(symbol, a, b, kind="mask")

    return method


def _logical(symbol):
    def method(*conditions):
        now, conditions = _noted(*conditions)
        if any(c.kind != "mask" for c in conditions):
            raise Unprintable("it joins numbers by &, | or ~, which are for conditions: compare them with a number")
        return now.note(symbol, *conditions, kind="mask")

    return method


def _negative(x):
    now, (x,) = _numbers(x)
    return now.note("-1", x, kind=x.kind, span=(-x.span[1], -x.span[0]))


def _power(x, n):
    if isinstance(n, (Value, Parameter)):
        raise Unprintable(_EXPONENT)
    _, (x, n) = _numbers(x, n)
    n = n.constant
    if n not in (-1, 0.5, *range(1, 9)):
        raise Unprintable(f"it has the power {n:g}, which is not a whole number from 1 to 8, 0.5 or -1: "
                          f"use xp.exp({n:g} * xp.log(x))")  # fmt: skip
    if n == 0.5:
        return namespace.sqrt(x)
    if n == -1:
        return 1.0 / x
    half = x if n == 1 else _power(x, n // 2)
    return half if n == 1 else half * half * x if n % 2 else half * half


def _swapped(method):
    return lambda self, other: method(self, other, swap=True)


def _absolute(x):
    return namespace.abs(x)


_BOTH = {"neg": _negative, "pos": lambda self: _numbers(self)[1][0], "pow": _power, "abs": _absolute}
for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/"}.items():
    _BOTH[_name] = _arithmetic(_symbol, getattr(operator, _name))
    _BOTH[f"r{_name}"] = _swapped(_BOTH[_name])
for _name, _symbol in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    _BOTH[_name] = _comparison(_symbol)
_VALUES = {"eq": _comparison("=="), "ne": _comparison("!="), "invert": _logical("!")}
for _name, _symbol in {"and": "&", "or": "|"}.items():
    _VALUES[_name] = _VALUES[f"r{_name}"] = _logical(_symbol)
for _name, _method in {**_BOTH, **_VALUES}.items():
    setattr(Value, f"__{_name}__", _method)
for _name, _method in {**_BOTH, "rpow": _refusing(_EXPONENT)}.items():
    setattr(Parameter, f"__{_name}__", _method)


# --- the namespace ---


def _function(name, span, narrow=None, units=4):
    """A function of one number; ``narrow`` is the name of a shorter one, and whether it holds where the number lies."""

    def function(x, /):
        now, (x,) = _numbers(x)
        chosen = narrow[0] if narrow and narrow[1](*x.span) else name
        return now.note(chosen, x, span=now.widened(span(*x.span), units, exact=(-1, 0, 1)))

    return staticmethod(function)


def _monotone(function, low=-INFINITE, high=INFINITE):
    """The span of an increasing function; ``low`` and ``high`` are its ends where it has no value."""

    def at(x, otherwise):
        try:
            return function(x)
        except (OverflowError, ValueError):
            return otherwise

    return lambda a, b: (at(a, low), at(b, high))


def _bound(name, general, pick):
    def function(a, b, /):
        now, (a, b) = _numbers(a, b)
        a, b = (b, a) if a.kind == "T" else (a, b)
        span = pick(a.span[0], b.span[0]), pick(a.span[1], b.span[1])
        return now.note(name if b.kind == "T" else general, a, b, span=span)

    return staticmethod(function)


def _constant(number):
    def function(x, /, *, dtype=None, device=None):
        return namespace.astype(number, dtype)

    return staticmethod(function)


class Namespace:
    """The functions of ``xp`` that look at one number."""

    float32, float64 = DType("float32"), DType("float64")
    pi, e, inf, nan = math.pi, math.e, math.inf, math.nan

    exp = _function("exp", _monotone(math.exp, high=INFINITE), ("exp_down", lambda a, b: b <= 0))
    expm1 = _function("expm1", _monotone(math.expm1, high=INFINITE), ("expm1_down", lambda a, b: b <= 0))
    log = _function("log", _monotone(math.log), ("log_nonnegative", lambda a, b: a >= 0))
    log1p = _function("log1p", _monotone(math.log1p), ("log1p_unit", lambda a, b: a >= 0 and b <= 1))
    tanh = _function("tanh", _monotone(math.tanh))
    sqrt = _function("square_root", _monotone(math.sqrt, low=0.0), units=0)
    abs = _function("magnitude", lambda a, b: (max(0.0, a, -b), max(-a, b)), units=0)
    sign = _function("sign", lambda a, b: (-1.0 if a < 0 else 0.0, 1.0 if b > 0 else 0.0), units=0)
    maximum = _bound("at_least", "larger", max)
    minimum = _bound("at_most", "smaller", min)
    ones_like, zeros_like = _constant(1.0), _constant(0.0)

    @staticmethod
    def clip(x, /, min=None, max=None):
        x = x if min is None else namespace.maximum(x, min)
        return x if max is None else namespace.minimum(x, max)

    @staticmethod
    def where(condition, x1, x2, /):
        now, (condition,) = _noted(condition)
        _, (a, b) = _numbers(x1, x2)
        if condition.kind != "mask":
            raise Unprintable("it gives xp.where a number for a condition: compare it with another number")
        return now.note("select", condition, a, b, span=(min(a.span[0], b.span[0]), max(a.span[1], b.span[1])))

    @staticmethod
    def full_like(x, /, fill_value, *, dtype=None, device=None):
        return namespace.astype(fill_value, dtype)

    @staticmethod
    def asarray(obj, /, *, dtype=None, device=None, copy=None):
        return namespace.astype(obj, dtype)

    @staticmethod
    def astype(x, dtype, /, *, copy=True, device=None):
        now, (x,) = _numbers(x)
        if dtype is not None and now.dtype != dtype:
            raise Unprintable(f"it changes the dtype from {now.dtype} to {dtype}: a row keeps that of its values")
        return x

    @staticmethod
    def finfo(type, /):
        asked = type.dtype if isinstance(type, Value) else type
        for finfo in _FINFO.values():
            if finfo.dtype == asked:
                return finfo
        raise Unprintable(f"it asks for the finfo of {asked!r}, and values are float32 or float64: use that of z.dtype")

    square = staticmethod(lambda x, /: x * x)
    reciprocal = staticmethod(lambda x, /: 1.0 / x)

    def __getattr__(self, name):
        raise Unprintable(f"it calls {name}, which looks at several numbers at once or has no C++ here; what has: "
                          "arithmetic, comparisons, abs, clip, exp, expm1, log, log1p, maximum, minimum, sign, sqrt, "
                          "tanh, where")  # fmt: skip


for _name, _operator in {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "pow": "pow", "negative": "neg",
    "positive": "pos", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
    "not_equal": "ne", "logical_and": "and_", "logical_or": "or_", "logical_not": "invert",
}.items():  # fmt: skip
    setattr(Namespace, _name, staticmethod(getattr(operator, _operator)))
namespace = Namespace()

_UFUNCS = {"absolute": "abs", "fabs": "abs", "true_divide": "divide", "power": "pow", "float_power": "pow",
           "bitwise_and": "logical_and", "bitwise_or": "logical_or", "invert": "logical_not"}  # fmt: skip
