"""Model files: arrays and one header, as safetensors.

A file is written beside its place and then renamed, so that what was there before survives a failure; equal models
are equal bytes.
"""

import json
from pathlib import Path

import numpy as np

from bpaccel.files import replacing

KEY = "bpaccel"  # safetensors does not keep the order of its metadata keys: one key, with sorted JSON, does


class ModelFileError(ValueError):
    """A file that is not a model of ours, or is cut short, or contradicts itself."""


def write(path, header, arrays):
    """Write a header (JSON values) and a dict of NumPy arrays."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    content = save(arrays, {KEY: json.dumps(header, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path):
    """The header and the arrays of a file.

    Raises
    ------
    ModelFileError
        If the file is not a whole bpaccel model.
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
    except (SafetensorError, TypeError) as error:  # a dtype that NumPy has not is a TypeError
        raise ModelFileError(f"{str(path)!r} is not a model file, or is cut short ({error}).") from error
    try:
        header = json.loads(metadata[KEY])
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but no model of bpaccel.") from error
    return header, arrays
