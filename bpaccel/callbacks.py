"""Callbacks: what may be done at the rows of a training's history.

A callback is any function of a `Progress` that returns True to stop, or a `Callback`, which is also told where a
training begins and how it ends. These are some of them, for ``train(..., callbacks=[...])``. A row stands every
``record_every`` steps, and at the last.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpaccel import storage
from bpaccel.backends import backend_of
from bpaccel.checks import flag, not_negative, positive, whole
from bpaccel.files import check_place
from bpaccel.training.callback import Callback

__all__ = ["Callback", "Checkpoint", "Cosine", "EarlyStopping", "ProgressBar", "Schedule", "StepDecay", "Warmup"]


class _Validation(Callback):
    """The loss on rows that are not trained on, or without them on those that are; and where it was least.

    Attributes
    ----------
    losses : list of float
        At each row of the history.
    best_loss : float
    best_step : int or None
    """

    def __init__(self, X, y, sample_weight):
        if (X is None) != (y is None) or (X is None and sample_weight is not None):
            raise ValueError("`X` and `y` of the validation go together, and `sample_weight` goes with them.")
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self._forget()

    def begin(self, progress, resumed):
        if not resumed:
            self._forget()

    def _forget(self):
        self.losses: list[float] = []
        self.best_loss, self.best_step = math.inf, None

    def _look(self, progress, gain=0.0):
        """Whether the loss at a row is less than ever, by more than ``gain``."""
        if self.X is None:
            loss = progress.history.loss[-1]
        else:
            loss = progress.network.loss(self.X, self.y, sample_weight=self.sample_weight)
        self.losses.append(loss)
        better = loss < self.best_loss - gain
        if better:
            self.best_loss, self.best_step = loss, progress.step
        return better

    def state(self):
        return {"losses": np.array(self.losses), "best_loss": self.best_loss, "best_step": self.best_step}

    def restore(self, state):
        self.losses = state["losses"].tolist()
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]


class EarlyStopping(_Validation):
    """Stop when the loss has not become less for some rows of the history.

    Parameters
    ----------
    X : array of shape (N, I), optional
        Rows of validation, whose loss is watched, without penalty and dropout; by default the loss of the history is.
    y : array of shape (N, O), or (N,)
    sample_weight : array of shape (N,), optional
    patience : int
        How many rows of the history in a row may go by without a gain.
    min_delta : float
        Less than this is no gain.
    restore : bool, optional
        Whether the network gets back the weights of the least loss, however the training ends; by default if there are
        rows of validation, for the history holds losses from before its steps. A training that is resumed goes on from
        the weights of its end, and not from these.

    Attributes
    ----------
    losses : list of float
        At each row of the history.
    best_loss : float
    best_step : int
        The step whose weights had it.

    Examples
    --------
    >>> import numpy as np, bpaccel as bp
    >>> X = np.linspace(0, 1, 20)[:, None]
    >>> stopping = bp.callbacks.EarlyStopping(X, X**2, patience=3)
    >>> network = bp.Network([1, 4, 1], seed=0)
    >>> history = network.train(X, X**2, steps=50, callbacks=[stopping])
    >>> network.loss(X, X**2) == stopping.best_loss
    True
    """

    def __init__(self, X=None, y=None, *, sample_weight=None, patience=10, min_delta=0.0, restore=None):
        super().__init__(X, y, sample_weight)
        self.patience, self.min_delta = whole("patience", patience), not_negative("min_delta", min_delta)
        self.restores = X is not None if restore is None else flag("restore", restore)
        if self.restores and X is None:
            raise ValueError("`restore` needs rows of validation: the history's losses are those from before a step. "
                             "Give `X` and `y`.")  # fmt: skip

    def _forget(self):
        super()._forget()
        self._waited, self._weights = 0, None

    def __call__(self, progress):
        if self._look(progress, self.min_delta):
            self._waited, self._weights = 0, list(progress.network.weights) if self.restores else None
            return False
        self._waited += 1
        return self._waited >= self.patience

    def end(self, progress, how):
        if self._weights is not None:
            home = backend_of(progress.network.weights[0])  # those of a file are on the host
            progress.network.weights = [home.asarray(W) for W in self._weights]

    def state(self):
        weights = {f"weights.{k}": backend_of(W).to_numpy(W) for k, W in enumerate(self._weights or ())}
        return super().state() | {"waited": self._waited} | weights

    def restore(self, state):
        super().restore(state)
        names = sorted((name for name in state if name.startswith("weights.")), key=lambda name: int(name[8:]))
        self._waited, self._weights = state["waited"], [state[name] for name in names] or None


class Checkpoint(_Validation):
    """Save the training, so that it can go on to the same bytes after whatever ends it: ``train(..., resume=path)``.

    The file is a model, too: `bpaccel.load` and ``bpaccel predict`` take it as the model of that step. It is replaced
    as a whole, or not at all. Of an estimator the model is the `Network` within it, which knows no classes: it predicts
    what its outputs say.

    Parameters
    ----------
    path : str or Path
        ``"{step}"`` in it becomes the number of the step.
    X, y, sample_weight : arrays, optional
        Rows of validation: ``path`` is then the model of the least loss so far, and what goes on is beside it, in
        ``path.resume``.
    every : int
        How many rows of the history lie between two saves. The last is always saved.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, bpaccel as bp
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.bp"
    >>> X, y = np.eye(3), np.ones(3)
    >>> cut_short = bp.Network([3, 1], seed=0)
    >>> history = cut_short.train(X, y, steps=5, callbacks=[bp.callbacks.Checkpoint(path)])
    >>> again = bp.Network([3, 1], seed=0)
    >>> again.train(X, y, steps=20, resume=path).step[-1]
    19
    """

    last = True  # what it saves is what the others have decided

    def __init__(self, path, X=None, y=None, *, sample_weight=None, every=1):
        super().__init__(X, y, sample_weight)
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise ValueError(f"`path` must be the path of a file; got {path!r}.")
        self.path, self.every = str(path), whole("every", every)
        check_place(self._path(0))
        if X is not None:
            check_place(f"{self._path(0)}.resume")
        self._rows = 0

    def _path(self, step):
        return self.path.replace("{step}", str(step))

    def _forget(self):
        super()._forget()
        self._rows = 0

    def begin(self, progress, resumed):
        super().begin(progress, resumed)
        progress.to_parts(model_only=True)  # a network that no file can hold is refused before the first step

    def __call__(self, progress):
        self._rows += 1
        if self.X is not None and self._look(progress):
            storage.write(self._path(progress.step), *progress.to_parts(model_only=True))
        if (self._rows - 1) % self.every == 0:
            self._save(progress)

    def end(self, progress, how):
        if how not in ("diverged", "failed"):  # the file of the last good row is worth more
            self._save(progress, how)

    def _save(self, progress, how=""):
        path = self._path(progress.step) + (".resume" if self.X is not None else "")
        storage.write(path, *progress.to_parts(how))

    def state(self):
        return super().state() | {"rows": self._rows}

    def restore(self, state):
        super().restore(state)
        self._rows = state["rows"]


class Schedule(Callback):
    """Set the learning rate, from the first step on; ``learning_rate`` then has no say.

    The rate is set at each row of the history, for the steps up to the next.

    Parameters
    ----------
    rate : callable
        ``(step) -> float``: the rate of the steps from there on; `StepDecay`, `Cosine`, `Warmup`, or your own.
    by : {"step", "epoch"}
        What it is called with: the number of the next step, or its epoch.

    Examples
    --------
    >>> import numpy as np, bpaccel as bp
    >>> halved = bp.callbacks.Schedule(bp.callbacks.StepDecay(1.0, every=2))
    >>> bp.Network([3, 1]).train(np.eye(3), np.ones(3), steps=4, record_every=1, callbacks=[halved]).rate
    [1.0, 1.0, 0.5, 0.5]
    """

    def __init__(self, rate, *, by="step"):
        if not callable(rate):
            raise ValueError(f"`rate` must be a function of the {by}; got {rate!r}.")
        if by not in ("step", "epoch"):
            raise ValueError(f"`by` must be 'step' or 'epoch'; got {by!r}.")
        self.rate, self.by, self._now = rate, by, None

    def begin(self, progress, resumed):
        if not resumed or self._now is None:
            self._now = self.rate(progress.step if self.by == "step" else progress.epoch)
        progress.rate = self._now  # a training that stopped between two rows goes on at the rate of the row before

    def __call__(self, progress):
        progress.rate = self._now = self.rate(progress.step + 1 if self.by == "step" else progress.epoch)

    def state(self):
        return {"now": self._now}

    def restore(self, state):
        self._now = state["now"]


class ProgressBar(Callback):
    """A bar in the terminal that moves at each row of the history, with the loss, the time that is left, and above it
    which engine runs and why. It needs rich.
    """

    def __init__(self):
        if importlib.util.find_spec("rich") is None:
            raise ImportError("a progress bar needs rich: pip install 'bpaccel[cli]'.")
        self._bars: Any = None

    def begin(self, progress, resumed):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns)
        self._bars.start()
        history = progress.history
        self._bars.console.print(f"engine {history.engine}: {history.reason}", highlight=False)
        self._task = self._bars.add_task("training", completed=progress.step, total=progress.stop)

    def __call__(self, progress):
        done = min(progress.step + 1, progress.stop)
        self._bars.update(self._task, completed=done, description=f"loss {progress.history.loss[-1]:.6g}")

    def end(self, progress, how):
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


@dataclass(frozen=True)
class StepDecay:
    """A rate that is multiplied by ``factor`` after every ``every`` steps (or epochs)."""

    rate: float
    every: int
    factor: float = 0.5

    def __post_init__(self):
        positive("rate", self.rate), whole("every", self.every), positive("factor", self.factor)

    def __call__(self, step):
        return self.rate * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Cosine:
    """A rate that falls over ``steps`` steps (or epochs) to a share ``end`` of itself, along half a cosine (Loshchilov
    & Hutter 2017, eq. 5, without restarts), and stays there."""

    rate: float
    steps: int
    end: float = 0.01

    def __post_init__(self):
        positive("rate", self.rate), whole("steps", self.steps), positive("end", self.end)

    def __call__(self, step):
        fall = 0.5 * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))
        return self.rate * (self.end + (1.0 - self.end) * fall)


@dataclass(frozen=True)
class Warmup:
    """The first ``steps`` steps (or epochs) of another schedule at a rate that grows to its own in equal parts."""

    schedule: Callable[[int], float]
    steps: int

    def __post_init__(self):
        whole("steps", self.steps)

    def __call__(self, step):
        return self.schedule(step) * min((step + 1) / self.steps, 1.0)
