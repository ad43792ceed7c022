"""Backprop you can read, at the speed of the machine."""

import importlib
import sys

__version__ = "0.1.0"

# Which module each public name comes from. A module is imported when it is first asked for: `bpaccel.activations` and
# `bpaccel.losses` need nothing but Python, and whoever trains on arrays does not wait for the tables.
_HOMES = {
    "BackendError": "backends",
    "DivergenceError": "training",
    "History": "training.history",
    "ModelFileError": "storage",
    "Network": "network",
    "TableModel": "tables",
    "available_backends": "backends",
    "backend": "backends",
    "load": "tables",
    "one_hot": "data",
}
_ESTIMATORS = ("MLPClassifier", "MLPRegressor")  # not in __all__, for they need scikit-learn

__all__ = sorted([*_HOMES, "callbacks", "tutorial"])


def __getattr__(name):
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    if name in _ESTIMATORS:
        return getattr(importlib.import_module(f"{__name__}.estimators"), name)
    module = f"{__name__}.{name}"
    try:
        if not name.startswith("_"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__():
    return sorted([*__all__, *_ESTIMATORS])
