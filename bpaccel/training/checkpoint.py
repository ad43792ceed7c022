"""Checkpoints: what a file holds of a training, and how one goes on from it.

The file is that of the model at the moment, with more in it: where the training stands (`State`), its history, the
state of its callbacks. Arrays are tensors of the file, and all else is JSON in its header: nothing in it can run code.
"""

import json
import warnings
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import backend_of, dtype_name
from bpaccel.solvers import described
from bpaccel.training.callback import Callback
from bpaccel.training.history import COLUMNS, History, State

SECTION = "training"  # of the header, and of the tensors' names
LONG, LIST = 100, "list of "  # a callback's longer lists of numbers are tensors: a header must not be large


class Saved(NamedTuple):
    """An earlier training to go on with.

    Attributes
    ----------
    state : State
    history : History
        Its rows.
    every : int or None
        Steps between two rows; None where it was given as a `History`, as are those below.
    stopped : str
        How it ended; empty where it was cut short.
    rows : str or None
        The digest of its rows.
    callbacks : list of tuple (kind, state, last), or None
    model : tuple (header, arrays), or None
        All of the file.
    rate : float or None
        The learning rate that was asked for.
    """

    state: State
    history: History
    every: int | None = None
    stopped: str = ""
    rows: str | None = None
    callbacks: list | None = None
    model: Any = None
    rate: float | None = None


def find(resume):
    """What ``resume`` asks to go on with: a `History` that a training returned, or the path of a checkpoint.

    Returns
    -------
    Saved or None
    """
    if resume is None:
        return None
    if isinstance(resume, History):
        if resume.state is None:
            raise ValueError("`resume` must be a History that can go on; this one has no state: its training diverged, "
                             "or has not ended, or it is of a copy of an estimator. Use a checkpoint.")  # fmt: skip
        return Saved(resume.state, resume)
    if isinstance(resume, (str, bytes)) or hasattr(resume, "__fspath__"):
        return read(resume)
    raise ValueError(f"`resume` must be a History that a training returned, or the path of a checkpoint; "
                     f"got {type(resume).__name__}.")  # fmt: skip


def read(path):
    """The training in the file ``PATH``, or in ``PATH.resume``, if ``PATH`` is a model alone or is not there.

    Raises
    ------
    FileNotFoundError
    ModelFileError
        If the file is damaged.
    ValueError
        If it holds a model, but no training.
    """
    import os
    from pathlib import Path

    from bpaccel import storage

    path = Path(os.fsdecode(path))
    if not path.name:
        raise ValueError(
            f"`resume` must be a History that a training returned, or the path of a checkpoint; got {path}."
        )
    beside = path.with_name(f"{path.name}.resume")
    header, arrays = ({}, {}) if beside.is_file() and not path.exists() else storage.read(path)
    if SECTION not in header and beside.is_file():
        path = beside
        header, arrays = storage.read(path)
    if SECTION not in header:
        raise ValueError(f"`resume` must be a file that callbacks.Checkpoint wrote; {str(path)!r} holds a model, and "
                         "nothing of a training that could go on.")  # fmt: skip
    try:
        return _parsed(header, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise storage.ModelFileError(f"the checkpoint {str(path)!r} contradicts itself: {error!r}.") from error


def to_parts(loop, model_parts, stopped="", model_only=False):
    """The parts of a file: those of a model, and the training of a `Loop` in them.

    Parameters
    ----------
    loop : Loop
    model_parts : callable
        ``() -> (header, arrays)`` of the model at the moment.
    stopped : str
        How the training has ended, if it has.
    model_only : bool
        Whether the training is left out.
    """
    if model_only:
        return model_parts()
    (header, arrays), moment, work = model_parts(), loop.moment, loop.work
    to_numpy, history = work.rows.backend.to_numpy, loop.history.to_dict()
    own = loop.network.weights
    tensors: dict[str, Any] = {f"history.{name}": np.asarray(history[name], np.float64) for name in COLUMNS}
    tensors["since"] = np.asarray(moment.since, np.float64)
    if any(W is not V for W, V in zip(moment.weights, own)):  # the model's are other ones, the best or rounded ones
        tensors |= {f"weights.{k}": to_numpy(W) for k, W in enumerate(moment.weights)}
    for g, group in enumerate(moment.arrays):
        tensors |= {f"solver.{g}.{k}": to_numpy(a) for k, a in enumerate(group)}
    kept = []
    for number, callback in enumerate(c for c in loop.callbacks if isinstance(c, Callback)):
        plain, more = _split_state(callback)
        kept.append([kind_of(type(callback)), plain, sorted(more), callback.last])
        tensors |= {f"callbacks.{number}.{key}": value for key, value in more.items()}
    section = {
        "step": moment.step,
        "rate": moment.rate,
        "groups": len(moment.arrays),
        "every": loop.span.every,
        "solver": described(work.solver),
        "plan": work.plan.settings(),
        "objective": work.objective.settings(),
        "learning_rate": work.rate,
        "rows": work.rows.digest,
        "engine": loop.history.engine,
        "reason": loop.history.reason,
        "stopped": stopped,
        "callbacks": kept,
    }
    return header | {SECTION: section}, arrays | {f"{SECTION}.{name}": value for name, value in tensors.items()}


def check(saved, work, network, model_parts=None):
    """Raise ValueError, in one sentence, unless a training is the one that was saved.

    Parameters
    ----------
    saved : Saved
    work : Work
        Of the training that is to go on.
    network : Network
        Which it is to train.
    model_parts : callable, optional
        The ``to_parts`` of a model around the network.
    """
    state = saved.state
    if saved.model is not None:
        check_model(saved.model, (model_parts or network.to_parts)())
    sizes = state.objective["layer_sizes"]
    if sizes != (here := work.objective.settings()["layer_sizes"]):
        raise ValueError(f"`resume` must be of this network's shape {here}; it is of {sizes}.")
    same("objective", state.objective, work.objective.settings())
    was, now = state.plan | {"solver": state.solver}, work.plan.settings() | {"solver": described(work.solver)}
    if saved.rate is not None and work.solver != "lbfgs":
        was, now = was | {"learning_rate": saved.rate}, now | {"learning_rate": work.rate}
    same("solver, rows, batch_size, shuffle, seed and learning_rate", was, now)
    if saved.model is None:
        _check_weights(state, network)
    if saved.rows is not None and saved.rows != work.rows.digest:
        raise ValueError("`resume` must go on with the same rows: those of X, y or sample_weight have changed since.")


def restore(saved, callbacks):
    """Give each callback the state that it had: the first of a class that of the first, and so on."""
    found = list(saved.callbacks or ())
    for callback in callbacks:
        if not isinstance(callback, Callback):
            continue
        kind = kind_of(type(callback))
        at = next((k for k, one in enumerate(found) if one[0] == kind), None)
        if at is None:
            continue
        _, state, _ = found.pop(at)
        try:
            callback.restore(state)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the checkpoint holds a state of {kind} that this one cannot take over: {error!r}. "
                             "Is it of another version?") from error  # fmt: skip
    # What comes last decides nothing.
    if left := [kind.rpartition(".")[2] for kind, state, last in found if state and not last]:
        warnings.warn(f"the checkpoint holds the state of {' and '.join(left)}, and `callbacks` has no such: "
                      "the training goes on without.", stacklevel=5)  # fmt: skip


def _parsed(header, arrays):
    section, prefix = header[SECTION], f"{SECTION}."
    tensors = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    plan, objective = section["plan"], section["objective"]
    if not isinstance(plan, dict) or not {"rows", "batch_size", "shuffle", "seed"} <= plan.keys():
        raise ValueError("its plan is none")
    count = len(objective["layer_sizes"]) - 1
    columns: dict[str, Any] = {name: tensors[f"history.{name}"].tolist() for name in COLUMNS}
    if len({len(values) for values in columns.values()}) != 1:
        raise ValueError("its history has columns of different lengths")
    for name in ("step", "epoch"):
        columns[name] = list(map(int, columns[name]))
    weights = [tensors.get(f"weights.{k}", arrays[f"weights.{k}"]) for k in range(count)]
    groups = tuple([tensors[f"solver.{g}.{k}"] for k in range(count)] for g in range(section["groups"]))
    if any(a.shape != W.shape for group in groups for a, W in zip(group, weights)):
        raise ValueError("the solver's state has not the shapes of the weights")
    state = State(int(section["step"]), weights, groups, float(section["rate"]), tensors["since"],
                  section["solver"], plan, objective)  # fmt: skip
    history = History(engine=section["engine"], reason=section["reason"], stopped=section["stopped"], **columns)
    callbacks = [
        (kind, _joined(plain, {key: tensors[f"callbacks.{number}.{key}"] for key in keys}), last)
        for number, (kind, plain, keys, last) in enumerate(section["callbacks"])
    ]
    return Saved(state, history, int(section["every"]), section["stopped"], section["rows"], callbacks,
                 (header, arrays), section["learning_rate"])  # fmt: skip


def _split_state(callback):
    """A callback's state: its JSON values, and its arrays."""
    state, name = callback.state(), type(callback).__name__
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"the state of callback {name} must be a dict with keys of text; got {state!r}.")
    plain, arrays = {}, {}
    for key, value in state.items():
        if type(value) is np.ndarray and value.dtype.kind in "biuf" and value.itemsize <= 8 and value.dtype.isnative:
            arrays[key] = value
        elif (
            isinstance(value, (list, tuple))
            and len(value) > LONG
            and len(set(map(type, value))) == 1
            and type(value[0]) in (int, float)
        ):
            arrays[f"{LIST}{key}"] = np.array(value, np.int64 if type(value[0]) is int else np.float64)
        elif _is_plain(value) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value))):
            plain[key] = [_item(v) for v in value] if isinstance(value, (list, tuple)) else _item(value)
        else:
            raise ValueError(f"the state of callback {name} must hold texts, numbers, None, lists of these, and NumPy "
                             f"arrays of numbers; {key!r} is of type {type(value).__name__}.")  # fmt: skip
    return plain, arrays


def _joined(plain, arrays):
    """A callback's state from what `_split_state` made of it."""
    lists = {name.removeprefix(LIST): a.tolist() for name, a in arrays.items() if name.startswith(LIST)}
    return plain | lists | {name: a for name, a in arrays.items() if not name.startswith(LIST)}


def kind_of(cls):
    """What tells a class of callbacks from others."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_plain(value):
    plain = value is None or isinstance(value, (str, bool, int, float, np.bool_, np.integer, np.floating))
    return plain and not isinstance(value, np.longdouble)


def _item(value):
    return value.item() if isinstance(value, np.generic) else value


def check_model(saved, parts):
    """Raise ValueError unless the parts (header, arrays) of two models agree in all but the weights."""
    (was, old), (now, new) = saved, parts
    told = (SECTION, "reason")  # why a task was chosen is said to people
    was, now = ({k: v for k, v in header.items() if k not in told} for header in (was, json.loads(json.dumps(now))))
    same("model", was, now)
    for name, a in new.items():
        if not name.startswith("weights.") and not np.array_equal(a, old.get(name)):
            raise ValueError(f"`resume` must go on with the same model: its {name} were other ones. Were the rows the "
                             "same?")  # fmt: skip


def _check_weights(state, network):
    """Raise ValueError unless a network has the weights that its training ended with, or those that a callback has put
    there at the end."""

    def as_here(weights):
        return [backend_of(W).to_numpy(W).astype(dtype_name(V)) for W, V in zip(weights, network.weights)]

    own = [backend_of(V).to_numpy(V) for V in network.weights]
    ends = [state.weights, *([state.left] if state.left is not None else [])]
    if not any(all(map(np.array_equal, as_here(weights), own)) for weights in ends):
        raise ValueError("`resume` must go on from where the training ended; the weights of this network have been "
                         "changed since. Leave `resume` out to train from these weights.")  # fmt: skip


def same(what, was, now):
    """Raise ValueError, in one sentence, unless two dicts of settings agree."""
    changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
    changed = ["kind"] if "kind" in changed else changed  # then nothing else can be compared
    if changed:
        said = " and ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise ValueError(f"`resume` must go on with the same {what}: {said}.")
