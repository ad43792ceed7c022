"""Checks of arguments that several modules share: each raises one sentence with name, rule and value."""

import math
import sys

import numpy as np

_NO_NUMBERS = (bool, np.timedelta64)  # though Python counts the one among its whole numbers, and NumPy the other


def sizes(layer_sizes):
    """Layer sizes as a tuple: at least two whole numbers of at least 1."""
    try:
        found = tuple(layer_sizes)
    except TypeError:
        found = (layer_sizes,)
    if len(found) < 2 or not all(map(_is_whole, found)):
        message = f"`layer_sizes` must be at least two whole numbers of at least 1, inputs first; got {layer_sizes!r}."
        raise ValueError(message)
    return tuple(map(int, found))


def whole(name, value):
    """A whole number of at least 1."""
    if not _is_whole(value):
        raise ValueError(f"`{name}` must be a whole number of at least 1; got {value!r}.")
    return int(value)


def positive(name, value):
    """A finite number above 0."""
    if not (number := _number(value)) > 0:
        raise ValueError(f"`{name}` must be a finite number above 0; got {value!r}.")
    return number


def not_negative(name, value):
    """A finite number of at least 0."""
    if not (number := _number(value)) >= 0:
        raise ValueError(f"`{name}` must be a finite number of at least 0; got {value!r}.")
    return number


def share(name, value):
    """A number from 0 to below 1."""
    if not 0 <= (number := _number(value)) < 1:
        raise ValueError(f"`{name}` must be a number from 0 to below 1; got {value!r}.")
    return number


def fraction(name, value):
    """A number from 0 to 1, with both ends."""
    if not 0 <= (number := _number(value)) <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1; got {value!r}.")
    return number


def flag(name, value):
    """True or False, of Python's or NumPy's: the word "no" would count as true, and 0 may be meant for a number."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False; got {value!r}.")
    return bool(value)


def functions(name, values):
    """A list or tuple of functions, as a new list."""
    if not isinstance(values, (list, tuple)) or not all(map(callable, values)):
        raise ValueError(f"`{name}` must be a list of functions; got {values!r}.")
    if kinds := [value.__name__ for value in values if isinstance(value, type)]:
        raise ValueError(f"`{name}` must be a list of functions; got the class {kinds[0]}: give {kinds[0]}(...).")
    return list(values)


def seed(value):
    """A whole number from 0 to 2**32 - 1, NumPy's range, or None."""
    whole_number = isinstance(value, (int, np.integer)) and not isinstance(value, _NO_NUMBERS)
    if value is not None and not (whole_number and 0 <= value < 2**32):
        raise ValueError(f"`seed` must be a whole number from 0 to {2**32 - 1}, or None; got {value!r}.")
    return None if value is None else int(value)


def unmasked(name, x):
    """The plain data of a masked array of NumPy's that hides nothing; anything else as it is.

    Raises
    ------
    ValueError
        If a mask hides something, also in a list of masked arrays: what lies beneath it is no value, and NumPy's own
        conversion would take it for one.
    """
    # Without NumPy's module for them, which takes longer to load than the rest of this library, there are none.
    kind = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    masked = [part for part in (x if isinstance(x, (list, tuple)) else [x]) if isinstance(part, kind)]
    hidden = sum(int(np.count_nonzero(part.mask)) for part in masked)
    if hidden:
        cells = sum(part.size for part in masked)
        raise ValueError(f"`{name}` must have no masked cells; its mask hides {hidden} of {cells}. Put values "
                         f"there with .filled(value), or drop their rows: .compressed() does in 1-D.")  # fmt: skip
    return np.ma.getdata(x) if isinstance(x, kind) else x


def _number(value):
    """A finite number as a float, anything else as nan."""
    if isinstance(value, _NO_NUMBERS) or not isinstance(value, (int, float, np.integer, np.floating)):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        return math.nan
    return number if math.isfinite(number) else math.nan


def _is_whole(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, _NO_NUMBERS) and value >= 1
