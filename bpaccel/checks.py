"""Checks of arguments that several modules share: each raises one sentence with name, rule and value."""

import math

import numpy as np


def sizes(layer_sizes):
    """Layer sizes as a tuple: at least two whole numbers of at least 1."""
    found = tuple(layer_sizes) if not isinstance(layer_sizes, int) else (layer_sizes,)
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
    if not (_is_finite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number above 0; got {value!r}.")
    return float(value)


def not_negative(name, value):
    """A finite number of at least 0."""
    if not (_is_finite(value) and value >= 0):
        raise ValueError(f"`{name}` must be a finite number of at least 0; got {value!r}.")
    return float(value)


def share(name, value):
    """A number from 0 to below 1."""
    if not (_is_finite(value) and 0 <= value < 1):
        raise ValueError(f"`{name}` must be a number from 0 to below 1; got {value!r}.")
    return float(value)


def functions(name, values):
    """A list or tuple of functions, as a new list."""
    if not isinstance(values, (list, tuple)) or not all(map(callable, values)):
        raise ValueError(f"`{name}` must be a list of functions; got {values!r}.")
    return list(values)


def seed(value):
    """A whole number from 0 to 2**32 - 1, NumPy's range, or None."""
    whole_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if value is not None and not (whole_number and 0 <= value < 2**32):
        raise ValueError(f"`seed` must be a whole number from 0 to {2**32 - 1}, or None; got {value!r}.")
    return None if value is None else int(value)


def _is_finite(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)


def _is_whole(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
