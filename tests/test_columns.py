"""Named columns: what may be learned from, and what is said of cells that may not."""

import numpy as np
import pytest

from bpaccel.columns import Table, as_table, listed


class Frame:
    """As little of a DataFrame as is asked for."""

    def __init__(self, **columns):
        self.columns, self._columns = list(columns), columns

    def __getitem__(self, name):
        return self._columns[name]


@pytest.mark.parametrize("make", [dict, Frame, lambda **c: as_table(c)])
def test_every_kind_of_table(make):
    table = as_table(make(a=[1, 2, 3], b=np.array(["x", "y", "x"])))
    assert table.names == ("a", "b")
    assert table.rows == 3
    np.testing.assert_array_equal(table.numbers("a"), [1.0, 2.0, 3.0])
    assert table.numbers("a").dtype == np.float64


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            0: pandas.array([1, 2, 3], dtype="Int64"),
            "text": ["x", "y", "x"],
            "category": pandas.Categorical(["u", "v", "u"]),
            "truth": pandas.array([True, False, True], dtype="boolean"),
            "gap": pandas.array([1, None, 3], dtype="Int64"),
        }
    )
    table = as_table(frame)
    assert table.names == ("0", "text", "category", "truth", "gap")
    np.testing.assert_array_equal(table.numbers("0"), [1, 2, 3])
    assert table.labels("text").tolist() == ["x", "y", "x"]
    assert table.labels("category").tolist() == ["u", "v", "u"]
    assert table.labels("truth").tolist() == [True, False, True]
    with pytest.raises(ValueError, match="row 1, column 'gap': the cell is"):
        table.numbers("gap")
    with pytest.raises(ValueError, match="'a' stands there twice"):
        as_table(pandas.DataFrame(np.ones((2, 2)), columns=["a", "a"]))


def test_columns_of_any_library(backend):
    from bpaccel.backends import backend as of_name

    column = of_name(backend).asarray(np.array([1.0, 2.0, 4.0]), "float64")
    np.testing.assert_array_equal(as_table({"a": column}).numbers("a"), [1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((2, 2)), "`table` must be a dict of columns, a DataFrame"),
        ({}, "must have at least one column"),
        ({"a": []}, "must have at least one row"),
        ({"a": 1.0}, "column 'a' must be 1-D"),
        ({"a": [[1, 2], [3]]}, "lists of different lengths"),
        ({"a": np.ones((2, 1))}, r"column 'a' must be 1-D, a value for each row; got shape \(2, 1\)"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "'a' has 2 rows, 'b' has 3"),
        ({1: [1], "1": [2]}, "'1' stands there twice"),
    ],
)
def test_no_table(table, message):
    with pytest.raises(ValueError, match=message):
        as_table(table)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, np.nan, 2.0], "row 1, column 'a': the cell is nan"),
        ([1.0, 2.0, -np.inf], "row 2, column 'a': the cell is infinite"),
        (["1", "", "2"], "row 1, column 'a': the cell is empty"),
        (["1", "2", "NA"], "row 2, column 'a': the cell is 'NA', and not a number"),
        (["1", "1_000"], "row 1, column 'a': the cell is '1_000'"),
        (np.array([1, None], dtype=object), "row 1, column 'a': the cell is empty"),
        (["1", "1e999"], "row 1, column 'a': the cell is infinite"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "must be numbers; it holds datetime64"),
        ([1j, 2], "must be numbers; it holds complex128"),
    ],
)
def test_numbers_refused(values, message):
    with pytest.raises(ValueError, match=message):
        as_table({"a": values}).numbers("a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, np.nan], "row 1, column 'a': the cell is nan"),
        (["x", " "], "row 1, column 'a': the cell is empty"),
        (np.array([None, "x"], dtype=object), "row 0, column 'a': the cell is empty"),
        (np.array(["x", 1], dtype=object), "must be text, numbers or truth values; it holds int and str"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "must be text, numbers or truth values; it holds date"),
    ],
)
def test_labels_refused(values, message):
    with pytest.raises(ValueError, match=message):
        as_table({"a": values}).labels("a")


def test_labels_of_objects_become_plain():
    table = as_table({"a": np.array([np.int64(1), 2], dtype=object), "b": np.array([True, np.False_], dtype=object)})
    assert table.labels("a").dtype == np.int64
    assert table.labels("b").dtype == np.bool_


def test_bytes_are_text():
    assert as_table({"a": np.array([b"x", b"y"])}).labels("a").tolist() == ["x", "y"]


def test_places_survive_a_choice_of_rows():
    table = Table({"a": np.array([1.0, np.nan, 3.0])}, source="f.csv", places=np.array([2, 3, 7]), unit="line")
    with pytest.raises(
        ValueError, match=r"^line 3 of 'f\.csv', column 'a': the cell is nan\. Put .* leave out the line"
    ):
        table.take(np.array([1, 2])).numbers("a")
    with pytest.raises(ValueError, match="row 1, column"):
        as_table({"a": [0.0, np.nan, 1.0]}).take(np.array([1, 2])).numbers("a")


def test_unknown_columns_are_named():
    table = as_table({"a": [1], "b": [2]})
    with pytest.raises(ValueError, match="there is no column 'c' in the table; it has a, b"):
        table.numbers("c")
    with pytest.raises(ValueError, match="there are no columns 'c', 'd' in the table"):
        table.require(["a", "c", "d"])
    with pytest.raises(ValueError, match="there is no column 'c'"):
        table.drop(["c"])
    assert table.drop(["a"]).names == ("b",)


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed(range(12), 3) == "0, 1, 2 and 9 more"
