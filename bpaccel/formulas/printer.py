"""The printer: a traced row as the body of a C++ function.

The body is a template over numbers ``V`` of type ``T``: a vector's lanes, or the number of a GPU's thread. It calls the
functions of formulas.hpp and machine.hpp.
"""

import math
import re
from dataclasses import dataclass

from bpaccel.formulas.tracing import Unprintable, place, trace

# How tightly a text holds together, as in C++; a call, a name and a constant need no brackets.
_ALONE, _SIGN, _PRODUCT, _SUM, _COMPARISON, _LOGIC = range(6, 0, -1)
_BINARY = {"*": _PRODUCT, "/": _PRODUCT, "+": _SUM, "-": _SUM, "&": _LOGIC, "|": _LOGIC,
           **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), _COMPARISON)}  # fmt: skip
_UNARY = {"-1": "-", "!": "!"}


@dataclass(frozen=True)
class Body:
    """The lines of a C++ function's body, and the span of its result."""

    lines: tuple[str, ...]
    span: tuple[float, float]

    def uses(self, name):
        return any(re.search(rf"\b{name}\b", line) for line in self.lines)


def body(what, function, names, spans=None, parameter=None):
    """Print a row's function.

    Parameters
    ----------
    what : str
        How messages call it: "`activation` 'softsign'".
    function : callable
        ``(*values, xp) -> value``; with a ``parameter``, that stands first.
    names : str
        A letter for each value, which is its name in C++.
    spans : dict of tuple, optional
        Between which numbers values lie, by name: shorter functions may serve there.
    parameter : tuple of float, optional
        Of a family: its number, and the least and the greatest that it may be. It is ``d`` in C++.

    Returns
    -------
    Body

    Raises
    ------
    Unprintable
        If it is no formula of one number: in a sentence with file and line.
    """

    def text(dtype, parameter=parameter):
        try:
            result = trace(function, names, dtype, spans, parameter)
        except Exception as error:
            why = str(error) if isinstance(error, Unprintable) else f"it raised {type(error).__name__}: {error}"
            raise Unprintable(f"{what} cannot be compiled{place(error, function)}: {why.rstrip('.')}.") from error
        return _Text(result)

    first, single, double = text("float32"), text("float32"), text("float64")
    wrong = None
    if not first.same(single):
        wrong = "it is another formula each time that it is called (a random number, or a count of calls)"
    elif parameter is not None and not single.same(text("float32", _another(*parameter))):
        wrong = ("it makes a Python number of the family's number, by float(), by the module math or by ==: "
                 "use arithmetic, or the functions of xp")  # fmt: skip
    if wrong is not None:
        raise Unprintable(f"{what} cannot be compiled{place(None, function)}: {wrong}.")
    span = min(single.span[0], double.span[0]), max(single.span[1], double.span[1])
    if single.lines == double.lines:
        return Body(_filled(single.lines, single.constants, double.constants), span)
    one, two = _filled(single.lines, single.constants), _filled(double.lines, double.constants)
    lines = ["if constexpr (bp::same<T, float>) {", *_indented(one), "} else {", *_indented(two), "}"]
    return Body(tuple(lines), span)


def _another(number, low, high):
    """Another number of a family."""
    return (2 * number + 1 if math.isinf(high) else (number + high) / 2), low, high


class _Text:
    """The C++ of one trace. What is used more than once gets a name.

    Constants differ by dtype: they are kept aside, and the lines hold their places.
    """

    def __init__(self, result):
        self.span = result.span
        self.lines: list[str] = []
        self.constants: list[float] = []
        self.texts: dict = {}  # by value: its text, and how tightly that holds together
        values = _needed(result)
        uses = dict.fromkeys(values, 0)
        for x in values:
            for arg in x.args:
                uses[arg] += 1
        fused = {x: product for x in values if (product := _fused(x, uses)) is not None}
        absorbed = set(fused.values())
        for x in values:
            if x not in absorbed:
                text = self._written(x, fused.get(x))
                if uses[x] > 1 and x.args:
                    name, kind = f"t{len(self.lines) + 1}", "auto" if x.kind == "mask" else x.kind
                    self.lines.append(f"const {kind} {name} = {text[0]};")
                    text = name, _ALONE
                self.texts[x] = text
        self.lines.append(f"return {self._of(result, 'V')};")

    def same(self, other):
        return self.lines == other.lines and list(map(repr, self.constants)) == list(map(repr, other.constants))

    def _of(self, x, kind=None, above=0):
        """A value's text: in all lanes if kind "V" is asked for, in brackets unless it holds tighter than ``above``."""
        text, tight = self.texts[x]
        if kind == "V" and x.kind == "T":
            return f"bp::all<V>({text})"
        return text if tight > above else f"({text})"

    def _written(self, x, product):
        if x.op == "input":
            return x.constant, _ALONE
        if x.op == "constant":
            self.constants.append(x.constant)
            return f"T(@{len(self.constants) - 1})", _ALONE
        if product is not None:
            return self._fma(x, product), _ALONE
        if x.op in _UNARY:
            return _UNARY[x.op] + self._of(x.args[0], above=_SIGN), _SIGN
        if x.op == "/" and x.kind == "V" and _mild(x):
            return f"bp::quotient({', '.join(self._of(arg, 'V') for arg in x.args)})", _ALONE
        if x.op in _BINARY:
            a, b = x.args
            tight = _BINARY[x.op]
            # A comparison of two numbers of all lanes must be a condition of all lanes.
            kind = "V" if x.kind == "mask" and a.kind == b.kind == "T" else None
            right = _COMPARISON if tight == _LOGIC else tight
            left = tight - 1 if tight in (_SUM, _PRODUCT) else right
            return f"{self._of(a, kind, left)} {x.op} {self._of(b, kind, right)}", tight
        kinds = {"at_least": "VT", "at_most": "VT", "select": " VV"}.get(x.op, "VV")
        return f"bp::{x.op}({', '.join(self._of(arg, kind) for arg, kind in zip(x.args, kinds))})", _ALONE

    def _fma(self, x, product):
        """``p q + r`` rounded once, where a sum has a product that nothing else needs."""
        first = x.args[0] is product
        p, q = (self._of(arg, "V") for arg in product.args)
        r = self._of(x.args[1 if first else 0], "V", _SIGN if x.op == "-" and first else 0)
        if x.op == "-" and first:
            r = f"-{r}"
        elif x.op == "-":
            p = f"-{self._of(product.args[0], 'V', _SIGN)}"
        return f"bp::fma({p}, {q}, {r})"


def _needed(result):
    """The values that a result is made of, each after those that it is made of itself."""
    found, waiting = {result}, [result]
    while waiting:
        for arg in waiting.pop().args:
            if arg not in found:
                found.add(arg)
                waiting.append(arg)
    return sorted(found, key=lambda x: x.serial)


def _fused(x, uses):
    """The product of a sum that is to be fused with it, or None."""
    if x.op in ("+", "-") and x.kind == "V":
        for arg in x.args:
            if arg.op == "*" and arg.kind == "V" and uses[arg] == 1:
                return arg
    return None


def _mild(division):
    """Whether numbers stay so far from underflow and overflow that `quotient` holds."""
    most = {"float32": 1e30, "float64": 1e300}[division.dtype]
    a, b = (x.span for x in division.args)
    return b[0] >= 1 / most and all(-most <= x <= most for x in (*a, *b, *division.span))


def _filled(lines, singles, doubles=None):
    """Constants put in: one, or one a dtype."""
    doubles = singles if doubles is None else doubles

    def constant(match):
        a, b = _literal(singles[int(match[1])]), _literal(doubles[int(match[1])])
        return f"T({a})" if a == b else f"bp::either<T>({a}, {b})"

    return tuple(re.sub(r"T\(@(\d+)\)", constant, line) for line in lines)


def _literal(x):
    if math.isnan(x):
        return "bp::not_a_number<T>()"
    return ("-" if x < 0 else "") + "bp::infinite<T>()" if math.isinf(x) else repr(x)


def _indented(lines):
    return [f"    {line}" for line in lines]
