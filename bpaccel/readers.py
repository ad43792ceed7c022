"""Tables in files: CSV, `.npy`, `.npz` and Parquet, read into named columns.

A table is read whole; what a column holds is only judged when it is used, so that a column of names may stay in the
file as long as nobody learns from it. Errors say where in the file the trouble is.
"""

import csv
from array import array
from pathlib import Path

import numpy as np

from bpaccel.columns import Table, as_column, check_names
from bpaccel.files import replacing

CHUNK_ROWS = 2**15  # rows of a CSV file that are held as text at once: text takes some ten times as much memory


def read_table(path):
    """The table in a file.

    Parameters
    ----------
    path : str or Path
        ``.csv`` (UTF-8, commas, the first line names the columns); ``.npy`` (a 2-D array, whose columns are named
        c0, c1, ..., or a structured one); ``.npz`` (1-D arrays are columns by their names, a 2-D ``X`` is X0, X1,
        ...); ``.parquet``.

    Returns
    -------
    Table
        Whole numbers, numbers and truth values as NumPy arrays of shape (N,); all else as arrays of text.

    Raises
    ------
    ValueError
        If the file is no such table, or has no rows; it names the place and the remedy.
    FileNotFoundError
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{str(path)!r} must end with {', '.join(READERS)}, to say what it is; got {path.suffix!r}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty.")
    table = reader(path)
    if table.rows == 0:
        raise ValueError(f"{str(path)!r} names columns, but has no rows.")
    return table


def _csv(path):
    with open(path, "rb") as file:
        start = file.read(4096)
    if b"\0" in start or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{str(path)!r} is not a CSV file, or not in UTF-8: save it as CSV in UTF-8.")
    try:
        # A column may look like numbers for long and turn out to be text: it is then read again, as text alone.
        table, late = _csv_columns(path, frozenset())
        return _csv_columns(path, late)[0] if late else table
    except UnicodeDecodeError as error:
        raise ValueError(
            f"line {_undecodable(path)} of {str(path)!r} is not in UTF-8: save it as CSV in UTF-8."
        ) from error


def _undecodable(path):
    """The number of the first line that is not UTF-8; looked for only when there is one."""
    with open(path, "rb") as file:
        return next(number for number, line in enumerate(file, 1) if "\ufffd" in line.decode(errors="replace"))


def _csv_columns(path, text):
    """The table, and the columns (by number) that turned out to be text after a chunk of numbers."""
    # utf-8-sig: spreadsheets begin their files with a byte order mark, which is no part of the first name.
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = _header(next((row for row in reader if row), []), path)
            chunks: list[list] = [[] for _ in names]
            lines, rows = array("q"), []
            for row in reader:
                if len(row) != len(names):
                    if not row:
                        continue  # a blank line, most often the last
                    raise ValueError(
                        f"line {reader.line_num} of {str(path)!r} has {len(row)} cells, and the first line names "
                        f"{len(names)} columns. Complete the line, or put cells with commas in quotation marks."
                    )
                rows.append(row)
                lines.append(reader.line_num)
                if len(rows) == CHUNK_ROWS:
                    _convert(rows, chunks, text)
                    rows = []
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {str(path)!r} is not CSV: {error}.") from error
    _convert(rows, chunks, text)
    late = {k for k, parts in enumerate(chunks) if len({part.dtype == object for part in parts}) == 2}
    columns = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in zip(names, chunks)}
    return Table(columns, source=str(path), places=np.asarray(lines, dtype=np.int64), unit="line"), late


def _header(row, path):
    names = [cell.strip() for cell in row]
    rule = f"the first line of {str(path)!r} must name the columns, separated by commas"
    if not any(names):
        raise ValueError(f"{rule}; it is empty.")
    if all(_as_numbers([name]) is not None for name in names):
        raise ValueError(f"{rule}; it holds numbers only, {', '.join(names[:3])}: put a line of names above them.")
    if len(names) == 1 and (wrong := next((mark for mark in ";\t" if mark in names[0]), None)):
        raise ValueError(f"{rule}; it has {wrong!r} between them: save the file with commas.")
    if "" in names:
        raise ValueError(f"{rule}; column {names.index('') + 1} has no name.")
    check_names(names, f"the first line of {str(path)!r}")
    return names


def _convert(rows, chunks, text):
    for k, cells in enumerate(zip(*rows)):
        numbers = None if k in text else _as_numbers(cells)
        if numbers is None:
            numbers = np.empty(len(cells), dtype=object)  # of str: one long cell must not widen all the others
            numbers[:] = cells
        chunks[k].append(numbers)


def _as_numbers(cells):
    """Cells as int64, else as float64 (nan and infinities included, for a later complaint); None if some are text."""
    if "_" in "".join(cells):  # Python would read 1_000 as a number; in a table it is a name
        return None
    for kind, dtype in ((int, np.int64), (float, np.float64)):
        try:
            return np.fromiter(map(kind, cells), dtype, len(cells))
        except (ValueError, OverflowError):
            continue
    return None


def _arrays(path, kind):
    """The array of a .npy file, the dict of arrays of a .npz file."""
    with open(path, "rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            loaded = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
        except MemoryError:
            raise
        except Exception as error:  # zip, zlib, struct, tokenize: there are as many errors as ways to be broken
            if "Object arrays" in str(error):
                message = f"{str(path)!r} holds Python objects, which are not read because they could run code: "
                raise ValueError(message + "save numbers or text, with array.astype(float) or astype(str).") from error
            raise ValueError(f"{str(path)!r} is not a {path.suffix} file, or is cut short.") from error
    if not isinstance(loaded, kind):
        raise ValueError(f"{str(path)!r} is not a {path.suffix} file, though its name says so.")
    return loaded


def _npy(path):
    loaded = _arrays(path, np.ndarray)
    if loaded.dtype.names and loaded.ndim == 1:
        return _table([(name, loaded[name]) for name in loaded.dtype.names], path)
    if loaded.ndim != 2 or loaded.dtype.names:
        shape = tuple(loaded.shape)
        raise ValueError(f"{str(path)!r} must hold a 2-D array (rows, columns), or a 1-D structured one; got {shape}.")
    return _table([(f"c{k}", loaded[:, k]) for k in range(loaded.shape[1])], path)


def _npz(path):
    columns = []
    for name, values in _arrays(path, dict).items():
        if not isinstance(values, np.ndarray) or values.ndim not in (1, 2) or values.dtype.names:
            raise ValueError(f"{name!r} in {str(path)!r} must be a 1-D array (a column), or 2-D (rows, columns).")
        if values.ndim == 1:
            columns.append((name, values))
        else:
            columns += [(f"{name}{k}", values[:, k]) for k in range(values.shape[1])]
    return _table(columns, path)


def _table(columns, path):
    """A table of pairs (name, values)."""
    check_names((name for name, _ in columns), repr(str(path)))
    return Table({name: as_column(values, name) for name, values in columns}, source=str(path))


def _parquet(path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"to read {str(path)!r}, Parquet needs pyarrow: pip install 'bpaccel[parquet]'.") from error
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a Parquet file, or is cut short.") from error
    # An index that pandas put into the file is the number of a row, not something to learn from.
    pairs = [pair for pair in zip(table.column_names, table.columns) if not pair[0].startswith("__index_level_")]
    return _table([(name, _from_arrow(column, pyarrow)) for name, column in pairs], path)


def _from_arrow(column, pyarrow):
    types = pyarrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    if types.is_integer(column.type) and column.null_count:
        return np.array(column.to_pylist(), dtype=object)  # keeps whole numbers whole, and what is missing visible
    return column.to_numpy()


READERS = {".csv": _csv, ".npy": _npy, ".npz": _npz, ".parquet": _parquet}


def write_column(file, name, values):
    """Write one column as CSV to an open text file: its name, then a value a line."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([name])
    writer.writerows([value] for value in values.tolist())


def save_column(path, name, values):
    """Write one column as a CSV file; what was there before is replaced whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write_column(file, name, values)
