"""The rows of `bpaccel.activations` and `bpaccel.losses` as C++: the header rows.hpp.

The header stands in no folder: it is printed where kernels are compiled. ``python -m bpaccel.formulas.rows`` shows it.
"""

import re
from dataclasses import replace

from bpaccel import activations, losses
from bpaccel.formulas.printer import body
from bpaccel.formulas.tracing import Unprintable

_HEAD = """\
// The rows of bpaccel/activations.py and bpaccel/losses.py, printed by bpaccel/formulas/rows.py: change those files.
//
// V is a number, or a vector of numbers (machine.hpp). In namespace bp:
//
//     activation::NAME   value(z)             its output, from the sum
//                        slope(a)             the derivative of that, from the output
//                        plain_value(z), plain_slope(a)   the row's own text, where it names a tuned form
//     loss::NAME         value(y, l, d)       of the target y and the output l; d is the number of a family, huber:d
//                        error(y, l, d)       minus the derivative of that by l
//                        cancels<F>           whether error times the slope of activation F is y - l
//                        goes_with<F>         whether it can stand on activation F
//     Activations        a List of all, in the order of the words of activation_names
//     Losses             a List of all, in the order of the words of loss_names
//
// softmax is an empty struct, as it looks at a whole row: kernels write it out. Its log_loss is `categorical`.
#pragma once

#include "formulas.hpp"

namespace bp {

template <class... Rows> struct List { static constexpr int count = sizeof...(Rows); };

"""


def activation(row, struct=None):
    """The struct of an `Activation` in C++.

    Parameters
    ----------
    row : Activation
    struct : str, optional
        Its name in C++; that of the row unless given.

    Raises
    ------
    Unprintable
        If the row has no slope, or is no formula of one number.
    """
    if row is activations.get("softmax"):
        return f"struct {struct or row.name} {{}};\n"
    what = f"`activation` {row.name!r}"
    if row.slope is None:
        raise Unprintable(f"{what} cannot be compiled: it has no slope, and of such rows kernels have softmax alone.")
    value = body(what, row.function, "z")
    slope = body(f"the slope of {what}", row.slope, "a", {"a": value.span})
    methods = [*_tuned("value", "z", value, row.tuned), *_tuned("slope", "a", slope, row.tuned_slope)]
    return _struct(struct or row.name, methods)


def loss(row, struct=None):
    """The struct of a `Loss` in C++; the parameters and errors are those of `activation`."""
    return _loss(row, struct or row.name, row.value, row.error)


def family(name):
    """The struct of a family of losses in C++, whose number is known only when a kernel runs."""
    make, *parameter = losses.FAMILIES[name]
    functions = (
        lambda d, y, l, xp: make(d).value(y, l, xp),
        lambda d, y, l, xp: make(d).error(y, l, xp),
    )
    return _loss(make(parameter[0]), name, *functions, tuple(parameter))


def names():
    """The names of all structs in C++, in the order of the lists: of activations, and of losses."""
    return tuple(activations.ACTIVATIONS), (*losses.LOSSES, "categorical", *losses.FAMILIES)


def header():
    """The text of rows.hpp.

    Raises
    ------
    Unprintable
        If a row is no formula of one number.
    """
    binary, categorical = losses.get("log_loss", "sigmoid"), losses.get("log_loss", "softmax")
    structs = [activation(row) for row in activations.ACTIVATIONS.values()]
    parts = [loss(_without(row, categorical) if row is binary else row) for row in losses.LOSSES.values()]
    parts += [loss(categorical, "categorical"), *map(family, losses.FAMILIES)]
    fs, ls = names()
    return "\n".join([
        f"{_HEAD}namespace activation {{\n", *structs, "}  // namespace activation\n",
        "namespace loss {\n", *parts, "}  // namespace loss\n",
        f"using Activations = List<{', '.join(f'activation::{n}' for n in fs)}>;",
        f"using Losses = List<{', '.join(f'loss::{n}' for n in ls)}>;",
        f'constexpr char activation_names[] = "{" ".join(fs)}";',
        f'constexpr char loss_names[] = "{" ".join(ls)}";\n', "}  // namespace bp\n",
    ])  # fmt: skip


def _without(row, other):
    """A row without the outputs that another row is for."""
    return replace(row, outputs=tuple(f for f in row.outputs if f not in other.outputs))


def _loss(row, struct, value, error, parameter=None):
    what, spans = f"`loss` {row.name!r}", {"y": tuple(map(float, row.targets))}
    cancels = _among(row.cancels)
    goes_with = "!same<F, activation::softmax>" if row.outputs is None else _among(row.outputs)
    return _struct(struct, [
        *_method("value", "yl", body(what, value, "yl", spans, parameter), "d"),
        *_method("error", "yl", body(f"the error of {what}", error, "yl", spans, parameter), "d"),
        f"template <class F> static constexpr bool cancels = {cancels};",
        f"template <class F> static constexpr bool goes_with = {goes_with};",
    ])  # fmt: skip


def _among(some):
    """The condition that an activation is one of some. A person's own is not in the table: its C++ name is another."""
    known = [f.name for f in some if f in activations.ACTIVATIONS.values()]
    return " || ".join(f"same<F, activation::{name}>" for name in known) or "false"


def _struct(name, lines):
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise Unprintable(f"{name!r} cannot be compiled: in C++ a row's name has small letters, digits and _ alone.")
    return "\n".join([f"struct {name} {{", *(f"    {line}" for line in lines), "};\n"])


def _tuned(name, letter, plain, form):
    """A method that calls a tuned form, and the plain one beside it; the plain one alone where no form is named."""
    if form is None:
        return _method(name, letter, plain)
    call = f"template <class V> FORMULA V {name}(V {letter}) {{ return bp::{form}({letter}); }}"
    return [call, *_method(f"plain_{name}", letter, plain)]


def _method(name, letters, printed, number=""):
    """The lines of a method; the ``number`` of a family is one for all lanes."""
    arguments = [f"V {x}" if printed.uses(x) else "V" for x in letters]
    arguments += [f"Real<V> {x}" if printed.uses(x) else "Real<V>" for x in number]
    lines = ["using T = Real<V>;"] if printed.uses("T") else []
    return [f"template <class V> FORMULA V {name}({', '.join(arguments)}) {{",
            *(f"    {line}" for line in (*lines, *printed.lines)), "}"]  # fmt: skip


if __name__ == "__main__":
    print(header(), end="")
