"""Backprop you can read, at the speed of the machine."""

from bpaccel import tutorial
from bpaccel.backends import BackendError, backend, backends
from bpaccel.data import one_hot
from bpaccel.history import History
from bpaccel.network import Network
from bpaccel.storage import ModelFileError
from bpaccel.tables import TableModel, load
from bpaccel.training import DivergenceError

__all__ = [
    "BackendError",
    "DivergenceError",
    "History",
    "ModelFileError",
    "Network",
    "TableModel",
    "backend",
    "backends",
    "load",
    "one_hot",
    "tutorial",
]

__version__ = "0.1.0"
