"""Checks of arguments: what passes, what is refused, and that the sentence has the name, the rule and the value."""

import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from bpaccel import checks

# What is no number, though Python or NumPy would compute with some of it.
NO_NUMBERS = [True, False, np.True_, np.False_, "0.5", b"1", None, 0.5j, np.complex64(0.5), [0.5], np.array(0.5),
              np.array([0.5]), np.nan, -np.nan, np.inf, -np.inf, np.float32("nan"), 10**400, np.longdouble("inf"),
              Fraction(1, 2), np.timedelta64(1)]  # fmt: skip
RULES = {
    "positive": ("a finite number above 0", [5e-324, 1, 0.5, 7, np.float32(0.5), np.int8(3), 1e308], [0, -0.0, -1]),
    "not_negative": ("a finite number of at least 0", [0, -0.0, 1, 0.5, np.float16(2)], [-5e-324, -1]),
    "share": ("a number from 0 to below 1", [0, 0.5, 1 - 2**-53, np.float32(0.25)], [1, 1.0, -5e-324, 2]),
    "fraction": ("a number from 0 to 1", [0, 0.5, 1, 1.0, np.int64(1)], [1 + 2**-52, -5e-324, 2]),
}


@pytest.mark.parametrize("name", RULES)
def test_numbers_are_floats_within_their_rule(name):
    rule, right, wrong = RULES[name]
    check = getattr(checks, name)
    for value in right:
        assert type(check("rate", value)) is float
        assert check("rate", value) == value
    for value in [*wrong, *NO_NUMBERS]:
        with pytest.raises(ValueError, match="^" + re.escape(f"`rate` must be {rule}; got {value!r}.") + "$"):
            check("rate", value)


def test_a_share_is_below_1_also_where_a_float_holds_fewer_digits():
    """A long double below 1 may be 1 as a float: what is returned is what was checked."""
    nearly = np.longdouble(1) - np.finfo(np.longdouble).epsneg
    assert nearly < 1
    if float(nearly) == 1.0:
        with pytest.raises(ValueError, match="`rate` must be a number from 0 to below 1"):
            checks.share("rate", nearly)


def test_a_flag_is_true_or_false_and_nothing_that_counts_as_such():
    for value in (True, False, np.True_, np.False_):
        assert checks.flag("shuffle", value) is bool(value)
    for value in (0, 1, "no", "", None, 1.0, np.array(True), [True]):
        with pytest.raises(ValueError, match="^" + re.escape(f"`shuffle` must be True or False; got {value!r}.") + "$"):
            checks.flag("shuffle", value)


def test_whole_numbers_and_seeds_are_no_truth_values_and_no_times():
    for bad in (True, np.True_, np.timedelta64(3), 1.0, "3", None, 0, -1):
        with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1; got "):
            checks.whole("steps", bad)
    for bad in (True, np.True_, np.timedelta64(3), 1.0, "3", -1, 2**32):
        with pytest.raises(ValueError, match="`seed` must be a whole number from 0 to 4294967295, or None; got "):
            checks.seed(bad)


@pytest.mark.parametrize("bad", [None, 3, 3.0, np.int64(3), np.array(3), "34", [3], [3, True], [3, 0], [3, 1.0], []])
def test_layer_sizes_are_two_whole_numbers_or_more(bad):
    with pytest.raises(ValueError, match="`layer_sizes` must be at least two whole numbers of at least 1.*got"):
        checks.sizes(bad)
    assert checks.sizes(np.array([3, 4])) == (3, 4)


# --- masked arrays ---


def test_what_is_not_masked_is_returned_as_it_is():
    for x in ([1, 2], (np.ones(2), np.ones(2)), np.ones((2, 2)), None, "text", np.float64(1)):
        assert checks.unmasked("X", x) is x


@pytest.mark.parametrize("mask", [np.ma.nomask, [[False, False], [False, False]]])
def test_a_mask_that_hides_nothing_leaves_plain_data(mask):
    data = np.array([[1.0, 2.0], [3.0, 4.0]])
    got = checks.unmasked("X", np.ma.array(data, mask=mask, copy=False))
    assert type(got) is np.ndarray
    assert np.shares_memory(got, data)
    np.testing.assert_array_equal(got, data)


def test_a_mask_that_hides_something_is_refused_with_how_much_and_the_remedy():
    table = np.ma.array(np.arange(6.0).reshape(3, 2), mask=[[0, 1], [0, 0], [1, 0]])
    records = np.ma.array([(1, 2.0), (3, 4.0)], mask=[(1, 0), (0, 0)], dtype="i4,f4")
    for x, hidden in ((table, "2 of 6"), (table[:, 0], "1 of 3"), (np.ma.masked, "1 of 1"), (records, "1 of 2"),
                      ([table[0], table[1]], "1 of 4"), ([1.0, np.ma.masked], "1 of 1")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"`X` must have no masked cells; .* {hidden}\. .*\.filled.*\.compressed"):
            checks.unmasked("X", x)


def test_a_column_with_masked_cells_is_refused_by_its_name():
    """As any empty cell: what lies beneath the mask would be learned from."""
    from bpaccel.columns import as_table

    hidden, whole = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]), np.ma.array([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"`table\['b'\]` must have no masked cells; its mask hides 1 of 3"):
        as_table({"a": whole, "b": hidden})
    with pytest.raises(ValueError, match=r"`table\['b'\]` must have no masked cells"):
        as_table({"b": np.ma.array(["x", "y"], mask=[1, 0])})
    column = as_table({"a": whole})["a"]
    assert type(column) is np.ndarray
    np.testing.assert_array_equal(column, [1.0, 2.0, 3.0])


def test_a_data_frame_of_masked_columns_has_empty_cells():
    pandas = pytest.importorskip("pandas")
    from bpaccel.columns import as_table

    table = as_table(pandas.DataFrame({"a": np.ma.array([1.0, 2.0], mask=[0, 1])}))
    with pytest.raises(ValueError, match="row 1, column 'a': the cell is nan"):
        table.numbers("a")


def test_masked_arrays_cost_no_import():
    """NumPy loads its module for them when it is asked for: whoever has none does not pay for it."""
    code = "import sys; from bpaccel.checks import unmasked; unmasked('X', [1]); print('numpy.ma' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
