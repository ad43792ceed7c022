"""The library of kernels: which file this processor runs, whether it was made of today's sources, or why there is none.

The library is built with the package, see `bpaccel.native`. It is loaded once a process, when a fused engine is first
considered.
"""

import ctypes
import functools
import os
import platform

from bpaccel import activations, losses, native
from bpaccel.engines.cpu.plan import Plan, Table

# Instruction sets by level; the greatest first.
LEVELS = {"v4": "AVX-512", "v3": "AVX2", "arm64": "NEON"}
REBUILD = "Run make native in the project's folder, or install the package again"


class Missing(Exception):
    """There is no library that can be used here; the message says why, and what to do."""


class Library:
    """A loaded library.

    Attributes
    ----------
    level : str
        A key of `LEVELS`.
    tables : dict of str to Table
        Its kernels, by dtype.
    activations, losses : tuple of str
        The rows that it was built with, in its order.
    """

    def __init__(self, path, level):
        if not native.is_whole(path):
            raise Missing(f"the library {os.path.basename(path)} is damaged. {REBUILD}.")
        try:
            loaded = ctypes.CDLL(path)
            for name in ("bp_sources", "bp_activations", "bp_losses"):
                getattr(loaded, name).restype = ctypes.c_char_p
            loaded.bp_table.restype = ctypes.c_void_p
            made_of = loaded.bp_sources().decode()
        except (OSError, AttributeError) as error:
            raise Missing(f"the library {os.path.basename(path)} cannot be loaded ({error}). {REBUILD}.") from error
        if made_of != native.fingerprint():
            raise Missing(f"the library {os.path.basename(path)} was built of other sources. {REBUILD}.")
        self.level, self._loaded = level, loaded
        self.activations = tuple(loaded.bp_activations().decode().split())
        self.losses = tuple(loaded.bp_losses().decode().split())
        self.tables = {d: Table.from_address(loaded.bp_table(k)) for k, d in enumerate(("float32", "float64"))}
        if any(table.plan_bytes != ctypes.sizeof(Plan) for table in self.tables.values()):
            raise Missing(f"the library {os.path.basename(path)} knows another plan than plan.py. {REBUILD}.")

    def knows(self, objective):
        """Whether each activation and the loss is a row that the library was built with: the row, not its name."""
        loss = losses.shipped(objective.loss) and self.loss_name(objective) in self.losses
        return loss and self.knows_activations(objective.activations)

    def knows_activations(self, rows):
        """Whether each `Activation` is a row that the library was built with."""
        return all(activations.shipped(f) and f.name in self.activations for f in rows)

    def loss_name(self, objective):
        """What the library calls the loss of an objective: a family without its number, and one name for each row."""
        return losses.kernel_name(objective.loss)

    def written(self, objective, dtype):
        """The kernels (many rows, few rows) of a network that is written out, or None."""
        table = self.tables[dtype]
        names = [f.name for f in objective.activations]
        if len(set(names[:-1])) > 1:
            return None
        wanted = (objective.layer_sizes, objective.bias, self.activations.index(names[-1]),
                  self.losses.index(self.loss_name(objective)))  # fmt: skip
        for network in table.written[: table.networks]:
            found = tuple(network.sizes[: network.depth + 1]), bool(network.bias), network.output, network.loss
            if found == wanted and (len(names) == 1 or network.hidden == self.activations.index(names[0])):
                return network.many, network.few
        return None


def library():
    """The library of this process, at the level that BPACCEL_LEVEL asks for.

    Raises
    ------
    Missing
        If there is none that can be used here.
    ValueError
        If BPACCEL_LEVEL is no level.
    """
    found = _find(os.environ.get("BPACCEL_LEVEL", ""))
    if isinstance(found, Missing):
        raise found
    return found


def why_not():
    """Why there is no library that can be used here, in a sentence; None where there is one."""
    try:
        library()
    except Missing as error:
        return str(error)
    return None


def forget():
    """Look for the library again: for tests, and after a build."""
    _find.cache_clear()


@functools.cache
def _find(asked):
    try:
        return _load(asked)
    except Missing as error:
        if asked != "none":
            import logging  # three milliseconds that others need not wait for

            logging.getLogger("bpaccel").warning("the fused engine is not usable: %s", error)
        return error


def _load(asked):
    if asked == "none":
        raise Missing("the environment variable BPACCEL_LEVEL is none. Unset it to use the kernels.")
    if asked and asked not in LEVELS:
        raise ValueError(f"BPACCEL_LEVEL must be one of {', '.join(LEVELS)} or none; got {asked!r}.")
    levels = processor_levels()
    if asked and asked not in levels:
        raise Missing(f"BPACCEL_LEVEL asks for {asked}, and this processor runs {' and '.join(levels)}.")
    level = asked or levels[0]
    return Library(_file(level), level)


def processor_levels():
    """The levels that this processor and its system run, the greatest first.

    Raises
    ------
    Missing
        If it runs none, or the library that knows is not there.
    """
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return ("arm64",)
    if machine not in ("x86_64", "amd64"):
        raise Missing(f"there are no kernels for processors of the kind {machine}.")
    path = _file("level")
    if not native.is_whole(path):
        raise Missing(f"the library {os.path.basename(path)} is damaged. {REBUILD}.")
    try:
        greatest = ctypes.CDLL(path).bp_level()
    except (OSError, AttributeError) as error:
        raise Missing(f"the library {os.path.basename(path)} cannot be loaded ({error}). {REBUILD}.") from error
    levels = tuple(level for level in LEVELS if level.startswith("v") and int(level[1:]) <= greatest)
    if not levels:
        raise Missing("this processor has no AVX2 and FMA instructions, or its system keeps no wide registers.")
    return levels


def _file(level):
    path = native.library(level)
    if path is None or not os.path.exists(path):
        raise Missing(native.reason() or f"no library was built with this installation. {REBUILD}.")
    return path
