"""Tables in files: what is read, and what is said of files that cannot be."""

import builtins
import os
import sys
from decimal import Decimal

import numpy as np
import pytest

from bpaccel import readers
from bpaccel.files import check_place
from bpaccel.readers import read_table, save_column


def written(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv(tmp_path):
    text = '\ufeffname, age,size,truth\nAnn,30,1.5,True\r\n"Bo, jr",4,-2e3,False\n\n'
    table = read_table(written(tmp_path, text))
    assert table.names == ("name", "age", "size", "truth")
    assert table.rows == 2
    assert table["name"].tolist() == ["Ann", "Bo, jr"]
    assert table["age"].dtype == np.int64
    np.testing.assert_array_equal(table["size"], [1.5, -2000.0])
    assert table["size"].dtype == np.float64
    assert table["truth"].tolist() == ["True", "False"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_csv_is_the_same_in_any_chunks(tmp_path, monkeypatch, chunk):
    """Also where a column shows only late that it is text: "01" must not have become 1 by then."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", chunk)
    table = read_table(written(tmp_path, "a,b,c\n1,01,1\n2,1.50,2\n3.5,x,3\n4,2,4\n"))
    np.testing.assert_array_equal(table["a"], [1.0, 2.0, 3.5, 4.0])
    assert table["b"].tolist() == ["01", "1.50", "x", "2"]
    assert table["c"].dtype == np.int64


def test_csv_numbers_beyond_int64(tmp_path):
    np.testing.assert_array_equal(read_table(written(tmp_path, f"a,b\n{10**20},1\n1,2\n"))["a"], [1e20, 1.0])


def test_csv_errors_name_the_line_also_after_blank_and_broken_lines(tmp_path):
    table = read_table(written(tmp_path, 'a,b\n1,"two\nlines"\n\n,x\n'))
    with pytest.raises(ValueError, match=r"^line 5 of '.*t\.csv', column 'a': the cell is empty"):
        table.numbers("a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "must name the columns, separated by commas; it is empty"),
        ("a,b\n", "names columns, but has no rows"),
        ("1,2\n3,4\n", "the first line .* must name the columns.*; it holds numbers only, 1, 2"),
        ("a;b\n1;2\n", "separated by commas; it has ';' between them"),
        ("a\tb\n1\t2\n", "it has '\\\\t' between them"),
        (",a\n0,1\n", "column 1 has no name"),
        ("a,b,a\n1,2,3\n", "'a' stands there twice"),
        ("a,b\n1,2\n3\n", "line 3 of .* has 1 cells, and the first line names 2 columns"),
        ("a,b\n1,2,3\n", "line 2 of .* has 3 cells"),
        ('a,b\n1,"2\n', "line 2 of .* is not CSV"),
        ("a,b\n1,2\nüü,3\n".encode("latin-1"), "line 3 of .* is not in UTF-8: save it as CSV in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not in UTF-8"),
        (bytes(range(256)) * 20, "is not a CSV file, or not in UTF-8"),
    ],
)
def test_csv_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, content))


def test_npy(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.arange(6).reshape(3, 2))
    table = read_table(path)
    assert table.names == ("c0", "c1")
    assert table["c1"].tolist() == [1, 3, 5]
    np.save(path, np.array([(1, 0.5, "x"), (2, 1.5, "y")], dtype=[("a", "i4"), ("b", "f4"), ("c", "U1")]))
    table = read_table(path)
    assert table.names == ("a", "b", "c")
    assert table["b"].tolist() == [0.5, 1.5]
    assert table["c"].tolist() == ["x", "y"]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), ()])
def test_npy_of_other_shapes(tmp_path, shape):
    np.save(tmp_path / "t.npy", np.ones(shape))
    with pytest.raises(ValueError, match="must hold a 2-D array"):
        read_table(tmp_path / "t.npy")


@pytest.mark.parametrize(("shape", "message"), [((0, 3), "has no rows"), ((3, 0), "at least one column")])
def test_npy_without_cells(tmp_path, shape, message):
    np.save(tmp_path / "t.npy", np.ones(shape))
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.npy")


def test_npz(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, X=np.arange(6.0).reshape(3, 2), y=np.array(["u", "v", "u"]))
    table = read_table(path)
    assert table.names == ("X0", "X1", "y")
    assert table["X1"].tolist() == [1.0, 3.0, 5.0]
    assert table["y"].tolist() == ["u", "v", "u"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((3, 2)), "y": np.ones(2)}, "'X0' has 3 rows, 'y' has 2"),
        ({"X": np.ones((3, 2)), "X1": np.ones(3)}, "'X1' stands there twice"),
        ({"a": np.ones((2, 2, 2))}, "'a' in .* must be a 1-D array"),
        ({"a": np.float64(1)}, "'a' in .* must be a 1-D array"),
        ({}, "at least one column"),
    ],
)
def test_npz_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.npz")


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
def test_python_objects_are_never_loaded(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    array = np.array([[Trap()]], dtype=object)
    (np.save if name == "t.npy" else np.savez)(tmp_path / name, array)
    with pytest.raises(ValueError, match="holds Python objects, which are not read"):
        read_table(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "whole": pyarrow.array([1, 2, 3]),
        "number": pyarrow.array([1.5, 2.5, 3.5], pyarrow.float32()),
        "truth": pyarrow.array([True, False, True]),
        "text": pyarrow.array(["x", "y", "x"]),
        "coded": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
        "money": pyarrow.array([Decimal("1.50"), Decimal("2"), Decimal("3")]),
        "gap": pyarrow.array([1, None, 3]),
        "__index_level_0__": pyarrow.array([7, 8, 9]),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.names == tuple(columns)[:-1]
    assert table["whole"].dtype == np.int64
    assert table["number"].dtype == np.float32
    assert table["truth"].dtype == np.bool_
    assert table["text"].tolist() == table["coded"].tolist() == ["x", "y", "x"]
    np.testing.assert_array_equal(table.numbers("money"), [1.5, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"row 1 of '.*t\.parquet', column 'gap': the cell is empty"):
        table.numbers("gap")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'bpaccel\[parquet\]'"):
        read_table(written(tmp_path, "x", "t.parquet"))


@pytest.mark.parametrize("name", ["t.npy", "t.npz", "t.parquet"])
@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"\x93NUMPY\x01", b"PK\x03\x04", b"PAR1", b"\0" * 100, b"\x80\x04."]
)
def test_not_what_its_ending_says(tmp_path, name, content):
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"is not a (\.np.|Parquet) file"):
        read_table(written(tmp_path, content, name))


@pytest.mark.parametrize(("kind", "name"), [("npy", "t.npz"), ("npz", "t.npy")])
def test_the_other_of_the_two(tmp_path, kind, name):
    with open(tmp_path / name, "wb") as file:
        (np.save if kind == "npy" else np.savez)(file, np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"is not a \.np. file, though its name says so"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["t.npy", "t.npz", "t.parquet"])
def test_cut_short(tmp_path, name):
    whole = tmp_path / name
    if name == "t.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"a": list(range(1000))}), whole)
    else:
        (np.save if name == "t.npy" else np.savez)(whole, np.ones((100, 3)))
    content = whole.read_bytes()
    for length in (1, 20, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match="cut short"):
            read_table(written(tmp_path, content[:length], name))


def test_missing_folders_and_endings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.csv'"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is not a file"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match=r"must end with \.csv, \.npy, \.npz, \.parquet.*got '\.xlsx'"):
        read_table(written(tmp_path, "a", "t.xlsx"))


def test_check_place(tmp_path):
    check_place(tmp_path / "new.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .* to write 'a\.csv' into"):
        check_place(tmp_path / "none" / "a.csv")
    with pytest.raises(ValueError, match="is there already and is not a file"):
        check_place(tmp_path)
    with pytest.raises(ValueError, match="is not a file"):
        check_place(os.devnull)
    data = written(tmp_path, "a\n1\n")
    check_place(data)
    with pytest.raises(ValueError, match="must not be written over"):
        check_place(tmp_path / "." / "t.csv", data)


def test_save_column(tmp_path):
    path = tmp_path / "p.csv"
    save_column(path, "a,b", np.array(["x", 'y "z"']))
    assert path.read_text() == '"a,b"\nx\n"y ""z"""\n'
    save_column(path, "n", np.array([0.1, 1e300]))
    np.testing.assert_array_equal(read_table(path)["n"], [0.1, 1e300])


def test_a_failed_save_leaves_what_was_there(tmp_path):
    path = written(tmp_path, "before", "p.csv")
    with pytest.raises(UnicodeEncodeError):
        save_column(path, "a", np.array(["x", "\ud800"]))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_import_is_light():
    import subprocess

    code = "import sys, bpaccel.tables, bpaccel.readers; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "pandas", "sklearn", "rich", "typer", "safetensors", "scipy"} & set(loaded)
