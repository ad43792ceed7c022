"""Backprop you can read, at the speed of the machine."""

from bpaccel import callbacks, tutorial
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
    "callbacks",
    "load",
    "one_hot",
    "tutorial",
]

__version__ = "0.1.0"


def __getattr__(name):
    # Not in __all__, and imported when first asked for: they need scikit-learn, which takes a second.
    if name in ("MLPClassifier", "MLPRegressor"):
        from bpaccel import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'bpaccel' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), "MLPClassifier", "MLPRegressor"])
