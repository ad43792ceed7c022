"""Checkpoints: what a file holds of a training, and how one goes on from it.

The file is that of the model at the moment, with more in it: where the training stands (`State`), its history, the
state of its callbacks. Arrays are tensors of the file, and all else is JSON in its header: nothing in it can run code.
"""

import hashlib
import json
import warnings
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import backend_of, dtype_name
from bpaccel.solvers import described
from bpaccel.training.callback import Callback
from bpaccel.training.history import COLUMNS, History, State

SECTION = "training"  # of the header, and of the tensors' names
SAMPLE = 1000  # rows that are compared, at most: a training of other rows must not be gone on with unseen


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
    """

    state: State
    history: History
    every: int | None = None
    stopped: str = ""
    rows: str | None = None
    callbacks: list | None = None
    model: Any = None


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
            raise ValueError(f"`resume` must be a History that can go on; this one has no state: its training "
                             f"{'diverged' if resume.stopped == 'diverged' else 'has not ended yet'}.")  # fmt: skip
        return Saved(resume.state, resume)
    if isinstance(resume, (str, bytes)) or hasattr(resume, "__fspath__"):
        return read(resume)
    raise ValueError(f"`resume` must be a History that a training returned, or the path of a checkpoint; "
                     f"got {type(resume).__name__}.")  # fmt: skip


def read(path):
    """The training in the file ``PATH.resume`` if it is there, else in ``PATH``.

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
    beside = path.with_name(f"{path.name}.resume")
    path = beside if beside.is_file() else path
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
        kept.append([type(callback).__name__, plain, sorted(more), callback.last])
        tensors |= {f"callbacks.{number}.{key}": value for key, value in more.items()}
    section = {
        "step": moment.step,
        "rate": moment.rate,
        "groups": len(moment.arrays),
        "every": loop.span.every,
        "solver": described(work.solver),
        "plan": work.plan.settings(),
        "objective": work.objective.settings(),
        "rows": digest(work.rows),
        "engine": loop.history.engine,
        "reason": loop.history.reason,
        "stopped": stopped,
        "callbacks": kept,
    }
    return header | {SECTION: section}, arrays | {f"{SECTION}.{name}": value for name, value in tensors.items()}


def digest(rows):
    """A digest of up to a thousand `Rows`, evenly spread, as they are computed on."""
    count = min(rows.n, SAMPLE)
    found = hashlib.sha256(str(rows.n).encode())
    sample = np.arange(count) * rows.n // count
    for x in rows.read(0, count, sample):
        if x is not None:
            host = np.ascontiguousarray(rows.backend.to_numpy(x))
            found.update(f"{host.dtype.name}{host.shape}".encode() + host.tobytes())
    return found.hexdigest()


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
    _same("objective", state.objective, work.objective.settings())
    if (state.solver, state.plan) != (described(work.solver), work.plan.settings()):
        raise ValueError(f"`resume` must go on with the same solver, rows, batch_size, shuffle and seed: it was "
                         f"{state.solver} on {_said(state.plan)}; got {described(work.solver)} on "
                         f"{_said(work.plan.settings())}.")  # fmt: skip
    if saved.model is None:
        _check_weights(state, network)
    if saved.rows is not None and saved.rows != digest(work.rows):
        raise ValueError("`resume` must go on with the same rows: those of X, y or sample_weight have changed since.")


def restore(saved, callbacks):
    """Give each callback the state that it had: the first of a class that of the first, and so on."""
    found = list(saved.callbacks or ())
    for callback in callbacks:
        if not isinstance(callback, Callback):
            continue
        kind = type(callback).__name__
        mine = next((one for one in found if one[0] == kind), None)
        if mine is not None:
            found.remove(mine)
            callback.restore(mine[1])
    if left := [kind for kind, state, last in found if state and not last]:  # what comes last decides nothing
        warnings.warn(f"the checkpoint holds the state of {' and '.join(left)}, and `callbacks` has no such: "
                      "the training goes on without.", stacklevel=4)  # fmt: skip


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
        (kind, plain | {key: tensors[f"callbacks.{number}.{key}"] for key in keys}, last)
        for number, (kind, plain, keys, last) in enumerate(section["callbacks"])
    ]
    return Saved(state, history, int(section["every"]), section["stopped"], section["rows"], callbacks,
                 (header, arrays))  # fmt: skip


def _split_state(callback):
    """A callback's state: its JSON values, and its arrays."""
    state, name = callback.state(), type(callback).__name__
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"the state of callback {name} must be a dict with keys of text; got {state!r}.")
    plain, arrays = {}, {}
    for key, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.isnative:
            arrays[key] = value
        elif _is_plain(value) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value))):
            plain[key] = [_item(v) for v in value] if isinstance(value, (list, tuple)) else _item(value)
        else:
            raise ValueError(f"the state of callback {name} must hold texts, numbers, None, lists of these, and NumPy "
                             f"arrays of numbers; {key!r} is of type {type(value).__name__}.")  # fmt: skip
    return plain, arrays


def _is_plain(value):
    return value is None or isinstance(value, (str, bool, int, float, np.bool_, np.integer, np.floating))


def _item(value):
    return value.item() if isinstance(value, np.generic) else value


def check_model(saved, parts):
    """Raise ValueError unless the parts (header, arrays) of two models agree in all but the weights."""
    (was, old), (now, new) = saved, parts
    told = (SECTION, "reason")  # why a task was chosen is said to people
    was, now = ({k: v for k, v in header.items() if k not in told} for header in (was, json.loads(json.dumps(now))))
    _same("model", was, now)
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


def _same(what, was, now):
    changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
    if changed:
        said = " and ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise ValueError(f"`resume` must go on with the same {what}: {said}.")


def _said(settings):
    return ", ".join(f"{name}={value}" for name, value in settings.items())
