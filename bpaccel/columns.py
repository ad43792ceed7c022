"""Named columns: what a table of any kind is inside the library.

Columns are judged when they are used: `Table.numbers` and `Table.labels` give values one can learn from, or say in
words which cell cannot be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bpaccel.backends import library_of
from bpaccel.checks import unmasked


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one length by their names.

    Attributes
    ----------
    columns : dict of str to numpy.ndarray of shape (N,)
    source : str
        The file, for messages; empty for a table in memory.
    places : numpy.ndarray of int, shape (N,), or None
        The line or row of the source that each row was; None where they are its rows, counted from 0.
    unit : {"line", "row"}
        What ``places`` count.
    """

    columns: dict
    source: str = ""
    places: np.ndarray | None = field(default=None, repr=False)
    unit: str = "row"

    def __post_init__(self):
        named = f" of {self.source!r}" if self.source else ""
        if not self.columns:
            raise ValueError(f"a table must have at least one column; there is none{named}.")
        lengths = {name: len(values) for name, values in self.columns.items()}
        (first, rows), *others = lengths.items()
        if other := next((name for name, length in others if length != rows), None):
            raise ValueError(
                f"the columns{named} must be of one length; {first!r} has {rows} rows, {other!r} has {lengths[other]}."
            )

    @property
    def names(self):
        return tuple(self.columns)

    @property
    def rows(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name):
        if name not in self.columns:
            raise ValueError(self._unknown([name]))
        return self.columns[name]

    def drop(self, names):
        """The table without some columns."""
        if missing := [name for name in names if name not in self.columns]:
            raise ValueError(self._unknown(missing))
        return Table({k: v for k, v in self.columns.items() if k not in names}, self.source, self.places, self.unit)

    def require(self, names):
        """Raise ValueError unless all of these columns are there."""
        if missing := [name for name in names if name not in self.columns]:
            raise ValueError(self._unknown(missing))

    def take(self, rows):
        """The table of some rows, which remember their places."""
        places = rows if self.places is None else self.places[rows]
        return Table({name: values[rows] for name, values in self.columns.items()}, self.source, places, self.unit)

    def numbers(self, name):
        """A column as finite numbers.

        Returns
        -------
        numpy.ndarray of float64, shape (N,)

        Raises
        ------
        ValueError
            If there is no such column, or a cell is empty, text, nan or infinite.
        """
        values = self[name]
        if values.dtype.kind not in "biuf":
            values = self._parsed(name, values)
        values = values.astype(np.float64, copy=False)
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            self._refuse(name, bad[0], "is nan" if np.isnan(values[bad[0]]) else "is infinite")
        return values

    def labels(self, name):
        """A column as labels: text, whole numbers, truth values or finite numbers, with none missing.

        Returns
        -------
        numpy.ndarray of shape (N,)
            Text as an array of str.
        """
        values = self[name]
        if values.dtype.kind in "biu":
            return values
        if values.dtype.kind == "f":
            self.numbers(name)  # complains of nan and infinities
            return values
        cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in values.tolist()]
        if (row := next((row for row, cell in enumerate(cells) if _missing(cell)), None)) is not None:
            self._refuse(name, row, "is empty")
        kinds = {_kind(cell) for cell in cells}
        if len(kinds) > 1 or kinds == {None}:
            what = " and ".join(sorted({type(cell).__name__ for cell in cells}))
            raise ValueError(f"column {name!r}{self._of()} must be text, numbers or truth values; it holds {what}.")
        return values if kinds == {str} else np.array(cells)

    def _parsed(self, name, values):
        if values.dtype.kind not in "UTO":
            raise ValueError(
                f"column {name!r}{self._of()} must be numbers; it holds {values.dtype}. "
                f"Turn it into numbers, or drop it."
            )
        parsed = np.empty(len(values))
        for row, cell in enumerate(values.tolist()):
            if _missing(cell):
                self._refuse(name, row, "is empty")
            try:
                parsed[row] = float(cell if not isinstance(cell, str) or "_" not in cell else "text")
            except (TypeError, ValueError):
                self._refuse(name, row, f"is {cell!r}, and not a number")
        return parsed

    def _refuse(self, name, row, what):
        place = row if self.places is None else self.places[row]
        raise ValueError(
            f"{self.unit} {place}{self._of()}, column {name!r}: the cell {what}. "
            f"Put a value there, leave out the {self.unit}, or drop the column."
        )

    def _of(self):
        return f" of {self.source!r}" if self.source else ""

    def _unknown(self, missing):
        what = f"is no column {missing[0]!r}"
        if len(missing) > 1:
            what = f"are no columns {listed(map(repr, missing), 4)}"
        return f"there {what} in {repr(self.source) if self.source else 'the table'}; it has {listed(self.names)}."


def _missing(cell):
    # The last two are pandas' own.
    return not cell.strip() if isinstance(cell, str) else cell is None or str(cell) in ("nan", "<NA>", "NaT")


def _kind(cell):
    return next((kind for kind in (str, bool, (int, float)) if isinstance(cell, kind)), None)


def listed(names, most=8):
    """Names in one line, with only the number of those beyond ``most``."""
    names = list(map(str, names))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def as_table(data):
    """A table of any kind as a `Table`.

    Parameters
    ----------
    data : Table, dict of 1-D columns, or DataFrame
        Anything with ``.columns`` and ``[name]`` is a DataFrame. Columns may be of any array library; they are
        brought to the host.
    """
    if isinstance(data, Table):
        return data
    if not isinstance(data, Mapping) and not (hasattr(data, "columns") and hasattr(data, "__getitem__")):
        raise ValueError(
            f"`table` must be a dict of columns, a DataFrame, or what read_table returns; got {type(data).__name__}. "
            f"An array becomes one with dict(zip(names, X.T))."
        )
    names = list(data if isinstance(data, Mapping) else data.columns)
    check_names(map(str, names), "`table`")
    table = Table({str(name): as_column(data[name], name) for name in names})
    if table.rows == 0:
        raise ValueError("`table` must have at least one row; got none.")
    return table


def check_names(names, source):
    """Raise ValueError if a name stands twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{source} must name each column by its own name; {name!r} stands there twice.")
        seen.add(name)


def as_column(values, name):
    """Values of any library as a NumPy array of shape (N,)."""
    values = unmasked(f"table[{name!r}]", values)
    library = library_of(values)
    try:
        values = np.asarray(values) if library is None else library.to_numpy(values)
    except ValueError as error:
        raise ValueError(f"column {name!r} must be 1-D; got lists of different lengths.") from error
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must be 1-D, a value for each row; got shape {tuple(values.shape)}.")
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
