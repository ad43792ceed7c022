"""Callbacks: what may be done at the rows of a training's history.

A callback is any function of a `Progress` that returns True to stop. These are classes of them, for ``train(...,
callbacks=[...])``. A row stands every ``record_every`` steps, and at the last. A callback that has a method
``finish(network, history)`` is called once more when the training has ended, whoever ended it; one that is a context
manager is entered before the first step, and left after the last, or where an error ends the training.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpaccel.checks import not_negative, positive, whole
from bpaccel.files import check_place


class _Validation:
    """The loss on rows that are not trained on, or without them on those that are; and where it was least."""

    def __init__(self, X, y, sample_weight):
        if (X is None) != (y is None) or (X is None and sample_weight is not None):
            raise ValueError("`X` and `y` of the validation go together, and `sample_weight` goes with them.")
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self._begin()

    def _begin(self):
        self.losses: list[float] = []
        self.best_loss, self.best_step = math.inf, None

    def _look(self, progress, gain=0.0):
        """Whether the loss at a row is less than ever, by more than ``gain``."""
        history = progress.history
        if len(history) == 1:  # a new training, not one that is resumed
            self._begin()
        if self.X is None:
            loss = history.loss[-1]
        else:
            loss = progress.network.loss(self.X, self.y, sample_weight=self.sample_weight)
        self.losses.append(loss)
        better = loss < self.best_loss - gain
        if better:
            self.best_loss, self.best_step = loss, progress.step
        return better


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
        Whether the network gets back the weights of the least loss; by default if there are rows of validation, for the
        history holds losses from before its steps. A training that is then resumed goes on from these weights, with the
        solver's state of the end.

    Attributes
    ----------
    losses : list of float
        At each row of the history.
    best_loss : float
    best_step : int
        The step whose weights had it.
    """

    def __init__(self, X=None, y=None, *, sample_weight=None, patience=10, min_delta=0.0, restore=None):
        super().__init__(X, y, sample_weight)
        self.patience, self.min_delta = whole("patience", patience), not_negative("min_delta", min_delta)
        if restore and X is None:
            raise ValueError("`restore` needs rows of validation: the history's losses are those from before a step. "
                             "Give `X` and `y`.")  # fmt: skip
        self.restore = X is not None if restore is None else bool(restore)

    def _begin(self):
        super()._begin()
        self._waited, self._weights = 0, None

    def __call__(self, progress):
        if self._look(progress, self.min_delta):
            self._waited, self._weights = 0, list(progress.network.weights) if self.restore else None
            return False
        self._waited += 1
        return self._waited >= self.patience

    def finish(self, network, history):
        if self._weights is not None:
            network.weights, self._weights = self._weights, None


class Checkpoint(_Validation):
    """Save the network while it is trained; each file is replaced as a whole, or not at all.

    Of an estimator that is the `Network` within it, which knows no classes: it predicts a column for each. A pickle of
    the estimator holds everything.

    Parameters
    ----------
    path : str or Path
        ``"{step}"`` in it becomes the number of the step.
    X, y, sample_weight : arrays, optional
        Rows of validation: the network is then saved only when their loss is less than ever.
    every : int
        Without rows of validation: how many rows of the history lie between two saves. The last is always saved.
    """

    def __init__(self, path, X=None, y=None, *, sample_weight=None, every=1):
        super().__init__(X, y, sample_weight)
        self.path, self.every = str(path), whole("every", every)
        check_place(self._path(0))
        if X is not None and every != 1:
            raise ValueError("`every` does not go with rows of validation, which say when to save.")

    def _path(self, step):
        return self.path.replace("{step}", str(step))

    def __call__(self, progress):
        better = self._look(progress)
        if better if self.X is not None else (len(progress.history) - 1) % self.every == 0:
            progress.network.save(self._path(progress.step))

    def finish(self, network, history):
        if self.X is None and history.step:
            network.save(self._path(history.step[-1]))


class Schedule:
    """Set the learning rate at each row of the history.

    The steps up to the first row, which is step 0, are at ``learning_rate``: give ``rate(0)`` there.

    Parameters
    ----------
    rate : callable
        ``(step) -> float``: the rate of the steps from there on; `StepDecay`, `Cosine`, `Warmup`, or your own.
    by : {"step", "epoch"}
        What it is called with: the number of the next step, or the epoch of the row.
    """

    def __init__(self, rate, *, by="step"):
        if not callable(rate):
            raise ValueError(f"`rate` must be a function of the {by}; got {rate!r}.")
        if by not in ("step", "epoch"):
            raise ValueError(f"`by` must be 'step' or 'epoch'; got {by!r}.")
        self.rate, self.by = rate, by

    def __call__(self, progress):
        progress.rate = self.rate(progress.step + 1 if self.by == "step" else progress.history.epoch[-1])


class ProgressBar:
    """A bar in the terminal that moves at each row of the history, with the loss, the time that is left, and above it
    which engine runs and why. It needs rich.
    """

    def __init__(self):
        if importlib.util.find_spec("rich") is None:
            raise ImportError("a progress bar needs rich: pip install 'bpaccel[cli]'.")
        self._bars: Any = None

    def __enter__(self):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns)
        self._bars.start()
        # It only shows that something is going on, until the first row says how many steps there are.
        self._task = self._bars.add_task("training", total=None)
        return self

    def __call__(self, progress):
        history = progress.history
        if self._bars.tasks[0].total is None:
            self._bars.console.print(f"engine {history.engine}: {history.reason}", highlight=False)
        done = min(progress.step + 1, progress.stop)
        self._bars.update(self._task, completed=done, total=progress.stop, description=f"loss {history.loss[-1]:.6g}")

    def __exit__(self, *error):
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
