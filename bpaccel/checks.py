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
    if not (np.isscalar(value) and not isinstance(value, str) and math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number above 0; got {value!r}.")
    return float(value)


def _is_whole(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
