"""Model files: arrays and one header, as safetensors.

A file is written beside its place and then renamed, so that what was there before survives a failure; equal models
are equal bytes. A digest of all that the file holds stands in the header, so that a file which is not what was written
does not load.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from bpaccel.files import replacing

KEY = "bpaccel"  # safetensors does not keep the order of its metadata keys: one key, with sorted JSON, does
FORMAT = 2  # of the files that are written; those of format 1 say no format, and have no digest
OURS = ("format", "digest")  # the entries of a header that are not the caller's
DEEPEST = 50  # lists and dicts in each other; many more than any header has, and few enough to be told in a message


class ModelFileError(ValueError):
    """A file that is not a model of ours, or is cut short, damaged or too new, or contradicts itself."""


def write(path, header, arrays):
    """Write a header (JSON values) and a dict of NumPy arrays.

    Parameters
    ----------
    path : str or Path
    header : dict
        Without "format" and "digest", which are added here.
    arrays : dict of numpy.ndarray
    """
    from safetensors.numpy import save

    # Copies, for another thread may go on training: what is summed up and what is written must be the same.
    arrays = {name: np.array(a, order="C") for name, a in arrays.items()}
    text = json.dumps(header, sort_keys=True)
    if isinstance(header, dict):
        if taken := [name for name in OURS if name in header]:
            raise ValueError(f"`header` must not have an entry {taken[0]!r}, which files have for themselves: give it "
                             "another name.")  # fmt: skip
        header = json.loads(text) | {"format": FORMAT}  # as it will be read: keys become text, tuples lists
        text = json.dumps(header | {"digest": _digest(header, arrays)}, sort_keys=True)
    content = save(arrays, {KEY: text})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path):
    """The header and the arrays of a file, as they were given to `write`.

    Raises
    ------
    ModelFileError
        If the file is not a whole bpaccel model, or is of a newer format.
    FileNotFoundError
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {str(path)!r}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    # A dtype that NumPy has not is a TypeError or an AttributeError, a shape that it cannot have a ValueError.
    except (SafetensorError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(f"{str(path)!r} is not a model file, or is cut short or damaged ({error}).") from error
    try:
        return _checked(json.loads(metadata[KEY]), arrays, path), arrays
    except ModelFileError:
        raise
    except (KeyError, ValueError, RecursionError) as error:
        message = f"{str(path)!r} is a safetensors file, but no model of bpaccel, or is damaged."
        raise ModelFileError(message) from error


def _checked(header, arrays, path):
    """The caller's part of a header, if the file is what was written."""
    if not isinstance(header, dict):
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but no model of bpaccel: its header is no dict.")
    if _depth(header) > DEEPEST:
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but no model of bpaccel: its header is too deep.")
    number, digest = header.get("format"), header.pop("digest", None)
    if isinstance(number, int) and number > FORMAT:
        raise ModelFileError(f"{str(path)!r} is of format {number}, and this bpaccel reads formats up to {FORMAT}: "
                             "load it with a newer bpaccel.")  # fmt: skip
    old = number is None and digest is None
    if not old and digest != _digest(header, arrays):
        raise ModelFileError(f"{str(path)!r} is damaged: it does not hold what was written (the digests differ). "
                             "Take a copy of it, or save the model again.")  # fmt: skip
    header.pop("format", None)
    return header


def _depth(value):
    """How many lists and dicts lie in each other, at most."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _digest(header, arrays):
    """A digest of a header (JSON values) and of the names, dtypes, shapes and numbers of arrays."""
    arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    # The shapes and dtypes say where the bytes of one array end and the next begin.
    form = [[name, a.dtype.name, a.shape] for name, a in arrays.items()]
    digest = hashlib.sha256(json.dumps([header, form], sort_keys=True).encode())
    for a in arrays.values():
        digest.update(a.astype(a.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8))
    return digest.hexdigest()
