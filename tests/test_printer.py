"""The printer of formulas: what it prints, and what it refuses with a sentence."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bpaccel import activations, losses
from bpaccel.activations import Activation
from bpaccel.formulas import rows
from bpaccel.formulas.printer import body
from bpaccel.formulas.tracing import Unprintable, namespace
from bpaccel.losses import Loss

HERE = Path(__file__).name
MASK = np.ones((4, 3))
_memory = []


def printed(function, **options):
    """The lines of a function of ``z``, in one."""
    return " ".join(body("it", function, "z", **options).lines)


def single(function):
    """The same, of a function that is printed once a dtype: that of float32."""
    return printed(function).partition("} else {")[0]


def python(*arguments, env=None):
    """What another process prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def line_of(function):
    return function.__code__.co_firstlineno


# --- what is refused ---

REFUSED = {
    "a Python if": (lambda z, xp: z if z > 0 else 0.1 * z, "has a Python `if`.*use xp.where"),
    "max": (lambda z, xp: max(z, 0.0), "`min` or `max` on a value.*use xp.where"),
    "in": (lambda z, xp: z in (0.0, 1.0), "on a value.*use xp.where"),
    "sort": (lambda z, xp: xp.sort(z), "calls sort, which looks at several numbers.*what has: arithmetic"),
    "a sum over outputs": (lambda z, xp: z / xp.sum(z, axis=1, keepdims=True), "calls sum, which looks at several"),
    "a loop over rows": (lambda z, xp: xp.asarray([math.exp(v) for v in z]), "loops over the rows"),
    "len": (lambda z, xp: z / len(z), "loops over the rows"),
    "math.exp": (lambda z, xp: math.exp(z), "makes a Python number of a value.*use the functions of xp"),
    "an array of its own": (lambda z, xp: z * MASK, r"holds an array of shape \(4, 3\) of its own"),
    "NumPy's array first": (lambda z, xp: MASK * z, r"holds an array of shape \(4, 3\) of its own"),
    "writing into it": (lambda z, xp: z.__setitem__(z < 0, 0.0), "writes into an array: use xp.where"),
    "writing by out=": (lambda z, xp: np.add(z, 1.0, out=z), "hands np.add the argument `out` or `where`"),
    "a method": (lambda z, xp: z.clip(0, 1), "asks a value for its .clip: use xp.clip"),
    "an index": (lambda z, xp: z[:, :1], "takes some of the rows or outputs out"),
    "a power": (lambda z, xp: xp.abs(z) ** 1.5, r"has the power 1.5, which is not .*use xp.exp\(1.5 \* xp.log\(x\)\)"),
    "a value as exponent": (lambda z, xp: 2.0**z, "exponent is a value: .* or math.log for a number"),
    "a value to a value": (lambda z, xp: xp.abs(z) ** z, r"exponent is a value: use xp.exp\(n \* xp.log\(x\)\)"),
    "np.sum": (lambda z, xp: np.sum(z), "calls sum, which looks at several numbers"),
    "np.add.reduce": (lambda z, xp: np.add.reduce(z), "calls np.add.reduce, which looks at several numbers"),
    "a matrix": (lambda z, xp: z @ MASK.T, "multiplies matrices"),
    "a matrix first": (lambda z, xp: MASK @ z, "holds an array of shape"),
    "its own mistake": (lambda z, xp: z + undefined, "raised NameError: name 'undefined' is not defined"),  # noqa: F821
    "a random number": (lambda z, xp: z * np.random.rand(), "is another formula each time that it is called"),
    "another module's function": (lambda z, xp: json.dumps(z), "raised TypeError: .* not JSON serializable"),
    "joined numbers": (lambda z, xp: xp.where(z & 1, z, 0.0), "joins numbers by &"),
    "added conditions": (lambda z, xp: xp.where((z > 0) + (z < 1), z, 0.0), r"has \+ between two conditions"),
    "softmax": (activations.ACTIVATIONS["softmax"].function, "calls max, which looks at several numbers"),
    "a number as condition": (lambda z, xp: xp.where(z, 1.0, 0.0), "a number for a condition: compare it"),
    "a condition": (lambda z, xp: z > 0, r"returns a condition, not a number: use xp.where"),
    "nothing": (lambda z, xp: None, "returns None, not a number"),
    "a text": (lambda z, xp: z * "3", "computes with '3', which is not a real number"),
    "a complex number": (lambda z, xp: z * 1j, "computes with 1j, which is not a real number"),
    "another dtype": (lambda z, xp: xp.astype(z, xp.float32), "changes the dtype from float64 to float32"),
    "finfo of an integer": (lambda z, xp: z * xp.finfo("int8").eps, "asks for the finfo of 'int8'"),
    "a value of another call": (lambda z, xp: _memory.append(z) or z + _memory[0], "keeps a value for its next call"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_formula_of_one_number_is_refused_in_a_sentence(name):
    """It names the row, the file and the line, and what was wrong; mostly what to do, too."""
    function, sentence = REFUSED[name]
    with pytest.raises(Unprintable) as refusal:
        rows.activation(Activation("mine", function, lambda a, xp: a))
    file = Path(function.__code__.co_filename).name
    text = str(refusal.value)
    found = re.fullmatch(rf"`activation` 'mine' cannot be compiled \({file}, line (\d+)\): it (.*)\.", text)
    assert found, text
    assert re.search(sentence, found[2]), text
    lines = {number for _, _, number in function.__code__.co_lines() if number}
    assert int(found[1]) in lines


@pytest.mark.parametrize("place", ["slope", "value", "error"])
def test_the_sentence_says_which_function_it_is(place):
    bad = lambda *values: values[0] if values[0] > 0 else 0.0  # noqa: E731
    good = lambda *values: values[0]  # noqa: E731
    what, prints, row = {
        "slope": ("the slope of `activation` 'mine'", rows.activation, Activation("mine", good, bad)),
        "value": ("`loss` 'mine'", rows.loss, Loss("mine", bad, good)),
        "error": ("the error of `loss` 'mine'", rows.loss, Loss("mine", good, bad)),
    }[place]
    with pytest.raises(Unprintable) as refusal:
        prints(row)
    assert str(refusal.value).startswith(f"{what} cannot be compiled ({HERE}, line {line_of(bad)}): it has")


def test_the_line_is_the_persons_own_and_not_that_of_a_library():
    def helper(z):
        return np.linalg.norm(z)

    with pytest.raises(Unprintable, match=rf"\({HERE}, line {line_of(helper) + 1}\)"):
        printed(lambda z, xp: helper(z))
    with pytest.raises(Unprintable, match=rf"\({HERE}, line {line_of(helper) + 6}\)"):
        printed(lambda z, xp: json.dumps(z))


def test_a_pair_of_functions_without_xp():
    pair = losses.get((lambda y, l: np.log1p((y - l) ** 2), lambda y, l: 2 * (l - y) / (1 + (y - l) ** 2)))
    text = rows.loss(pair)
    assert "bp::log1p(t1 * t1)" in text
    pair = losses.get((lambda y, l: np.sum(y - l), lambda y, l: y - l))
    line = line_of(test_a_pair_of_functions_without_xp) + 4
    with pytest.raises(Unprintable, match=rf"`loss` 'custom' cannot be compiled \({HERE}, line {line}\): it calls sum"):
        rows.loss(pair)
    pair = losses.get((lambda y, l: 1.0, lambda y, l: y - l))
    with pytest.raises(Unprintable, match="your value must return an array of shape .* got a plain number"):
        rows.loss(pair)


def test_a_row_without_a_slope_is_refused_unless_kernels_have_it():
    with pytest.raises(Unprintable, match="'mine' cannot be compiled: it has no slope"):
        rows.activation(Activation("mine", lambda z, xp: z, None))
    assert rows.activation(activations.get("softmax")) == "struct softmax {};\n"


@pytest.mark.parametrize("name", ["my row", "Mine", "2nd", "", "a;b"])
def test_a_name_that_is_none_in_cpp_is_refused(name):
    row = Activation(name, lambda z, xp: z, lambda a, xp: a)
    with pytest.raises(Unprintable, match=r"cannot be compiled: in C\+\+ a row's name has small letters"):
        rows.activation(row)
    assert rows.activation(row, "own0").startswith("struct own0 {")


@pytest.mark.parametrize("use", [float, lambda d: d == 1.0, math.sqrt, lambda d: d // 1])
def test_a_family_that_makes_a_python_number_of_its_number_is_refused(monkeypatch, use):
    """It would be printed for one number, and run with all."""
    monkeypatch.setitem(losses.FAMILIES, "mine", (
        lambda d: Loss("mine", lambda y, l, xp: (y - l) * float(use(d)), lambda y, l, xp: y - l), 1.0, 0.0, math.inf,
    ))  # fmt: skip
    with pytest.raises(Unprintable, match="`loss` 'mine' cannot be compiled .*makes a Python number of the family's"):
        rows.family("mine")


# --- what is printed ---

PRINTED = {
    "NumPy's number first": (lambda z, xp: np.float64(2) * z, "return T(2.0) * z;"),
    "a condition as a number": (lambda z, xp: (z > 0) * 0.5 + xp.astype(z < -1, z.dtype),
                                "return bp::fma(bp::select(z > T(0.0), bp::all<V>(T(1.0)), bp::all<V>(T(0.0))), "
                                "bp::all<V>(T(0.5)), "
                                "bp::select(z < T(-1.0), bp::all<V>(T(1.0)), bp::all<V>(T(0.0))));"),
    "conditions": (lambda z, xp: xp.where((z > 0) & ~(z > 1) | (z < -3), z, 0.0),
                   "return bp::select(((z > T(0.0)) & !(z > T(1.0))) | (z < T(-3.0)), z, bp::all<V>(T(0.0)));"),
    "NumPy's functions": (lambda z, xp: np.where(np.abs(z) < 1, z, np.sign(z)),
                          "return bp::select(bp::magnitude(z) < T(1.0), z, bp::sign(z));"),
    "NumPy's own dtype": (lambda z, xp: np.clip(z, np.finfo(z.dtype).eps, 1.0),
                          "return bp::at_most(bp::at_least(z, bp::either<T>(1.1920928955078125e-07, "
                          "2.220446049250313e-16)), T(1.0));"),
    "its dtype": (lambda z, xp: z if z.dtype == xp.float32 else 2 * z,
                  "if constexpr (bp::same<T, float>) {     return z; } else {     return T(2.0) * z; }"),
    "a float in between": (lambda z, xp: xp.exp(-1.0) * z**3,
                           "return bp::exp_down(bp::all<V>(T(-1.0))) * (z * z * z);"),
    "bounds by name": (lambda z, xp: xp.clip(z, max=1.0), "return bp::at_most(z, T(1.0));"),
    "brackets": (lambda z, xp: z - (1.0 - (z - 2.0)) / (z / 3.0), "return z - (T(1.0) - (z - T(2.0))) / (z / T(3.0));"),
    "two signs": (lambda z, xp: xp.negative(-z), "return -(-z);"),
    "a fused difference": (lambda z, xp: 1.0 - z * (z + 1.0), "return bp::fma(-z, z + T(1.0), bp::all<V>(T(1.0)));"),
    "a product used twice": (lambda z, xp: (z * 2.0 + 1.0) / xp.sqrt(z * 2.0),
                             "const V t1 = z * T(2.0); return (t1 + T(1.0)) / bp::square_root(t1);"),
    "two numbers for all rows": (lambda z, xp: xp.where(xp.ones_like(z) > 0.5, z, 0.0),
                                 "return bp::select(bp::all<V>(T(1.0)) > bp::all<V>(T(0.5)), z, bp::all<V>(T(0.0)));"),
    "signed zeros": (lambda z, xp: xp.where(z > 0.0, z, -0.0),
                     "return bp::select(z > T(0.0), z, bp::all<V>(T(-0.0)));"),
    "infinity and nan": (lambda z, xp: xp.where(z > -xp.inf, z, xp.nan),
                         "return bp::select(z > T(-bp::infinite<T>()), z, bp::all<V>(T(bp::not_a_number<T>())));"),
    "a number too large for float32": (lambda z, xp: xp.minimum(z, 1e300),
                                       "return bp::at_most(z, bp::either<T>(bp::infinite<T>(), 1e+300));"),
    "no number of its own": (lambda z, xp: 0.5, "return bp::all<V>(T(0.5));"),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_what_is_printed(name):
    function, text = PRINTED[name]
    assert printed(function) == text


def test_a_division_has_its_short_form_only_far_from_underflow_and_overflow():
    assert "return bp::quotient(" in printed(lambda z, xp: xp.clip(z, 0.0, 1.0) / 3.0)
    for function in (
        lambda z, xp: z / 3.0,
        lambda z, xp: 1.0 / xp.maximum(z, 1.0),
        lambda z, xp: 1.0 / xp.clip(z, 1e-38, 1.0),
        lambda z, xp: 1.0 / xp.clip(z, -1.0, 1.0),
        lambda z, xp: 1e20 / xp.clip(z, 1e-20, 1.0),
    ):
        assert "quotient" not in single(function)


SPANS = {
    "exp_down": (lambda z, xp: xp.exp(-xp.abs(z)), lambda z, xp: xp.exp(xp.abs(z))),
    "expm1_down": (lambda z, xp: xp.expm1(xp.minimum(z, 0.0)), lambda z, xp: xp.expm1(xp.minimum(z, 0.1))),
    "log_nonnegative": (lambda z, xp: xp.log(z * z), lambda z, xp: xp.log(z * z - 1.0)),
    "log1p_unit": (lambda z, xp: xp.log1p(xp.exp(-xp.abs(z))), lambda z, xp: xp.log1p(2.0 * xp.exp(-xp.abs(z)))),
}


@pytest.mark.parametrize("name", SPANS)
def test_a_shorter_function_is_taken_only_where_its_number_lies(name):
    inside, outside = SPANS[name]
    assert name in printed(inside)
    assert name not in printed(outside)
    assert name.partition("_")[0] in printed(outside)


def test_where_a_number_lies_is_known_as_computers_round():
    """In exact numbers the difference is at least 0; rounded to float32, or fused with the product, it may be less."""
    assert "log_nonnegative" not in single(lambda z, xp: xp.log(xp.maximum(z, 0.01) + 0.04 - 0.05))
    assert "bp::log(" in printed(lambda z, xp: xp.log(xp.square(xp.maximum(z, 0.1)) - 0.1 * 0.1))
    assert "log_nonnegative" not in printed(lambda z, xp: xp.log(xp.exp(xp.maximum(z, 2.0)) - math.exp(2.0)))
    assert "bp::log(" in printed(lambda z, xp: xp.log(xp.maximum(z, 1 / 3) * 3.0 - 1.0))
    assert "log_nonnegative" in single(lambda z, xp: xp.log(1.0 - xp.clip(z, 0.0, 1.0)))


def test_a_comparison_with_a_familys_number_is_printed(monkeypatch):
    monkeypatch.setitem(losses.FAMILIES, "mine", (
        lambda d: Loss("mine", lambda y, l, xp: xp.where(d > 0.5, d * y, -d), lambda y, l, xp: abs(d) + l * d),
        1.0, 0.0, 9.0,
    ))  # fmt: skip
    text = rows.family("mine")
    assert "bp::select(bp::all<V>(d) > bp::all<V>(T(0.5)), d * y, bp::all<V>(-d))" in text
    assert "bp::fma(l, bp::all<V>(d), bp::magnitude(bp::all<V>(d)))" in text


def test_every_row_of_the_tables_is_printed_and_listed():
    text, (fs, ls) = rows.header(), rows.names()
    assert fs == tuple(activations.ACTIVATIONS)
    assert set(ls) == {*losses.LOSSES, *losses.FAMILIES, "categorical"}
    for namespace_, names in (("activation", fs), ("loss", ls)):
        inside = text.partition(f"namespace {namespace_} {{")[2].partition(f"}}  // namespace {namespace_}")[0]
        assert tuple(re.findall(r"struct (\w+) \{", inside)) == names
        assert f'{namespace_}_names[] = "{" ".join(names)}"' in text
        assert f"= List<{', '.join(f'{namespace_}::{n}' for n in names)}>;" in text


def test_a_row_added_to_a_table_is_printed(monkeypatch):
    monkeypatch.setitem(activations.ACTIVATIONS, "softsign", Activation(
        "softsign", lambda z, xp: z / (1.0 + xp.abs(z)), lambda a, xp: (1.0 - xp.abs(a)) ** 2))  # fmt: skip
    monkeypatch.setitem(losses.LOSSES, "cauchy", Loss(
        "cauchy", lambda y, l, xp: 0.5 * xp.log1p((y - l) ** 2), lambda y, l, xp: (y - l) / (1.0 + (y - l) ** 2),
        outputs=("softsign", "identity"), cancels=("softsign",)))  # fmt: skip
    text = rows.header()
    assert "activation::softsign" in text.partition("using Activations")[2]
    assert "loss::cauchy" in text.partition("using Losses")[2]
    cauchy = text.partition("struct cauchy {")[2].partition("\n};")[0]
    assert "cancels = same<F, activation::softsign>;" in cauchy
    assert "goes_with = same<F, activation::softsign> || same<F, activation::identity>;" in cauchy


def test_which_losses_go_with_which_outputs():
    """As `losses.get` has it, where the name log_loss means `categorical` over a softmax."""
    text = rows.header().partition("namespace loss {")[2]
    for struct in rows.names()[1]:
        inside = text.partition(f"struct {struct} {{")[2].partition("\n};")[0]
        for what in ("goes_with", "cancels"):
            condition = re.search(rf"bool {what} = (.*);", inside)[1]
            for output in activations.ACTIVATIONS:
                name = "log_loss" if struct == "categorical" else struct
                try:
                    row = losses.get(name, output)
                    ours = (struct == "categorical") == (output == "softmax")
                except ValueError:
                    ours = False
                said = f"activation::{output}>" in condition
                said = not said if condition.startswith("!") else said
                if what == "goes_with":
                    assert said == ours
                elif ours:
                    assert said == (activations.get(output) in row.cancels)


def test_a_tuned_form_stands_beside_the_plain_one():
    text = rows.activation(activations.get("sigmoid"))
    assert "value(V z) { return bp::logistic_of_powers(z); }" in text
    assert "slope(V a) { return bp::logistic_slope(a); }" in text
    assert "plain_value(V z) {" in text
    assert "plain_slope(V a) {" in text
    assert "plain" not in rows.activation(activations.get("tanh"))
    assert vars(Activation("mine", abs, None)) == vars(Activation("mine", abs, None, None, None))


def test_names_of_ours_are_those_of_cpp_and_of_no_keyword():
    for name in (*rows.names()[0], *rows.names()[1]):
        assert re.fullmatch("[a-z][a-z0-9_]*", name)


def test_printing_is_deterministic():
    """The same in another process with other hashes, and in several threads at once."""
    here, found = rows.header(), []
    assert rows.header() == here
    for seed in ("0", "1"):
        assert python("-m", "bpaccel.formulas.rows", env={**os.environ, "PYTHONHASHSEED": seed}) == here
    threads = [threading.Thread(target=lambda: found.append(rows.header())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [here] * 4


def test_a_long_formula_is_printed():
    def long(z, xp):
        for _ in range(3000):
            z = z * 0.5 + 1.0
        return z

    assert printed(long).count("bp::fma(") == 3000


def test_it_runs_with_nothing_but_the_standard_library():
    """As where the package is built: no NumPy, no package of others at all."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "bpaccel"}:
            raise ImportError(f"{name} is not of the standard library")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
from bpaccel.formulas import rows
sys.stdout.write(rows.header())
assert "numpy" not in sys.modules
"""
    root = Path(rows.__file__).parents[2]
    assert python("-I", "-S", "-c", code, str(root)) == rows.header()


def test_a_name_that_is_not_in_the_namespace_says_what_is():
    """All that the sentence lists is there."""
    with pytest.raises(Unprintable, match="calls cumsum") as refusal:
        namespace.cumsum  # noqa: B018
    listed = str(refusal.value).partition("comparisons, ")[2].split(", ")
    assert len(listed) > 10
    assert all(hasattr(type(namespace), name) for name in listed)
