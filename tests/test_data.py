"""Rows: what comes in at the door, and what is read from it in blocks."""

from dataclasses import replace

import numpy as np
import pytest

from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows, float_dtype, matrix, numbers, one_hot, targets

X, Y, W = np.arange(30.0).reshape(10, 3), np.arange(10.0)[:, None], np.arange(10.0)


def _rows(place, **options):
    where = backend_of_name(place)
    return where, Rows(X, Y, W, backend=where, dtype=options.get("dtype", where.widest))


def test_rows_are_read_in_blocks_and_by_order(place):
    where, rows = _rows(place)
    assert rows.n == 10
    assert [tuple(a.shape) for a in rows.arrays] == [(10, 3), (10, 1), (10,)]
    order = np.random.default_rng(0).permutation(10)
    for read, index in ((rows.read(2, 5), slice(2, 5)), (rows.read(2, 5, order), order[2:5]), (rows.read(9, 10), [9])):
        for got, whole in zip(read, (X, Y, W)):
            np.testing.assert_array_equal(where.to_numpy(got), whole[index])


def test_rows_without_weights_have_none(place):
    where = backend_of_name(place)
    rows = Rows(X, Y, backend=where, dtype=where.widest)
    assert rows.read(0, 3)[2] is None
    assert rows.read(0, 3, np.arange(10)[::-1].copy())[2] is None


def test_arrays_of_the_right_kind_are_not_copied():
    rows = Rows(X, Y, backend=backend_of_name("numpy"), dtype="float64")
    assert rows.arrays[0] is X
    assert np.shares_memory(rows.read(3, 7)[0], X)


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_a_memory_map_is_read_as_it_is_or_block_by_block(dtype, tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=dtype, shape=X.shape)
    stored[:] = X
    rows = Rows(stored, Y, backend=backend_of_name("numpy"), dtype="float64")
    assert (rows.arrays is None) == (dtype == "int32")
    order = np.arange(10)[::-1].copy()
    np.testing.assert_array_equal(rows.read(0, 4)[0], X[:4])
    np.testing.assert_array_equal(rows.read(0, 4, order)[0], X[::-1][:4])
    assert rows.read(0, 4)[0].dtype == np.float64


def test_a_memory_map_goes_to_another_backend_block_by_block(tmp_path, backend):
    stored = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype="float64", shape=X.shape)
    stored[:] = X
    where = backend_of_name(backend)
    rows = Rows(stored, Y, backend=where, dtype="float64")
    np.testing.assert_array_equal(where.to_numpy(rows.read(2, 4)[0]), X[2:4])


def test_arrays_that_a_device_has_no_room_for_stay_on_the_host():
    """They would move whole, and there would be no memory for them; what is on the device already needs none."""
    small = backend_of_name("array_api_strict")
    small = replace(
        small, library=small.library._replace(free=lambda device: 2 * 4 * 10 * 5)
    )  # bytes: twice X, y and w
    rows = Rows(X, Y, W, backend=small, dtype="float32")
    assert rows.arrays is not None
    rows = Rows(X, Y, W, backend=small, dtype="float64")
    assert rows.arrays is None
    for got, whole in zip(rows.read(2, 5), (X, Y, W)):
        np.testing.assert_array_equal(small.to_numpy(got), whole[2:5])
    there = [small.asarray(x, "float64") for x in (X, Y)]
    assert Rows(*there, W, backend=small, dtype="float64").arrays is not None


def test_the_dtype_is_the_arrays_own_or_the_widest():
    numpy = backend_of_name("numpy")
    for dtype, computed in (
        ("float32", "float32"),
        ("float64", "float64"),
        ("int8", "float64"),
        ("float16", "float32"),
    ):
        assert float_dtype(np.ones(1, dtype), numpy) == computed
    strict = pytest.importorskip("array_api_strict")
    assert float_dtype(strict.ones(1, dtype=strict.int8), backend_of_name("array_api_strict:no_float64")) == "float32"


def test_one_dimensional_targets_are_one_column(place):
    where = backend_of_name(place)
    y = targets(where.asarray([1, 2, 3], where.widest), 3, 1)
    assert tuple(y.array.shape) == (3, 1)
    with pytest.raises(ValueError, match=r"of shape \(3, 2\)"):
        targets(where.asarray([1, 2, 3], where.widest), 3, 2)


@pytest.mark.parametrize("bad", [np.array(["1"]), np.array([None]), np.array([1j]), np.array(["2020"], "M8[Y]")])
def test_only_real_numbers_come_in(bad):
    with pytest.raises(ValueError, match="`X` must be real numbers"):
        numbers(bad)


def test_a_matrix_has_two_dimensions():
    for bad in (np.ones(3), np.ones((2, 2, 2)), np.float64(1.0)):
        with pytest.raises(ValueError, match="`X` must be 2-D"):
            matrix(bad)


# --- one_hot ---


@pytest.mark.parametrize(("labels", "classes"), [
    ([True, False, True], [False, True]),
    (np.array([2, -1, 2], np.int8), [-1, 2]),
    ([1.5, 0, 1.5], [0.0, 1.5]),
    (["b", "", "nan"], ["", "b", "nan"]),
    ((b"b", b"a", b"b"), [b"a", b"b"]),
    (np.array(["b", "a", "b"], object), ["a", "b"]),
    (np.array(["2024", "2020", "2024"], "M8[Y]"), np.array(["2020", "2024"], "M8[Y]")),
    (np.ma.array([3, 1, 3]), [1, 3]),
    (np.ma.array([3, 1, 3], mask=[0, 0, 0]), [1, 3]),
])  # fmt: skip
def test_one_hot_gives_a_column_to_each_class(labels, classes):
    found, Y = one_hot(labels)
    assert list(found) == list(classes)
    assert type(found) is np.ndarray
    assert list(found[Y.argmax(axis=1)]) == list(np.asarray(labels))
    np.testing.assert_array_equal(Y.sum(axis=1), 1.0)


def test_one_hot_takes_labels_of_any_library(place):
    where = backend_of_name(place)
    classes, Y = one_hot(where.asarray(np.array([2, 0, 2]), "int32"))
    assert list(classes) == [0, 2]
    np.testing.assert_array_equal(Y, [[0, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize(("labels", "sentence"), [
    ([1.0, np.nan, 2.0, np.nan], "got 2 of 4, the first of them nan in row 1."),
    (np.array([1, np.nan], np.float32), "got 1 of 2, the first of them nan in row 1."),
    (np.array([np.nan, 1j]), "got 1 of 2"),
    (["a", None, "b"], "got 1 of 3, the first of them None in row 1."),
    (["a", "b", float("nan")], "got 1 of 3, the first of them nan in row 2."),
    ([True, None], "got 1 of 2, the first of them None in row 1."),
    (np.array(["2020", "NaT", "NaT"], "M8[D]"), "got 2 of 3, the first of them NaT in row 1."),
    (np.array(["NaT", 1], "m8[s]"), "got 1 of 2, the first of them NaT in row 0."),
], ids=str)  # fmt: skip
def test_one_hot_makes_no_class_of_what_is_missing(labels, sentence):
    with pytest.raises(ValueError, match="`labels` must have no missing values; .*Leave out such rows") as raised:
        one_hot(labels)
    assert sentence in str(raised.value)


def test_one_hot_refuses_what_pandas_calls_missing():
    pandas = pytest.importorskip("pandas")
    for labels in (pandas.Series([1, None], dtype="Int64"), pandas.Series(["a", pandas.NA], dtype="string"),
                   pandas.Series(["a", None]), pandas.Series(pandas.to_datetime(["2020", None])),
                   pandas.Categorical(["a", None]), np.array(["a", pandas.NA], object)):  # fmt: skip
        with pytest.raises(ValueError, match=r"`labels` must have no missing values; got 1 of 2, .* in row 1\."):
            one_hot(labels)


@pytest.mark.parametrize("labels", [[1, "a"], ["a", 2.5], [b"a", 1], [b"a", "a"], np.array([1, "a"], object)], ids=str)
def test_one_hot_refuses_a_mixture_of_text_and_others(labels):
    """NumPy makes text of a list with some text in it: the number 1 would be the class "1"."""
    with pytest.raises(ValueError, match="`labels` must be all numbers or all text; got a mixture"):
        one_hot(labels)


def test_one_hot_refuses_labels_that_a_mask_hides():
    for labels in (np.ma.array([1, 2, 1], mask=[0, 1, 0]), np.ma.array(["a", "b", "a"], mask=[0, 1, 0])):
        with pytest.raises(ValueError, match="`labels` must have no masked cells; its mask hides 1 of 3"):
            one_hot(labels)
    with pytest.raises(ValueError, match="`labels` must have no masked cells"):
        one_hot([1, np.ma.masked])
