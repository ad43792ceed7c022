"""History: what a training saw, and what it needs to go on."""

import copy
import math
from typing import Any, NamedTuple

COLUMNS = ("step", "epoch", "loss", "error", "rate", "seconds")


class State(NamedTuple):
    """Where a training stands, and what must not change when it goes on.

    Attributes
    ----------
    step : int
        Steps taken.
    weights : list of arrays
        After these steps.
    arrays : tuple of lists of arrays
        The solver's state after these steps.
    rate : float
        The learning rate of the steps to come.
    since : numpy.ndarray of shape (k, 4)
        The totals of the steps that are in no row of the history yet.
    solver : str
    plan, objective : dict
        Their settings, as JSON values.
    left : list of arrays, or None
        The weights that the network was left with, where a callback has put back better ones.
    """

    step: int
    weights: list
    arrays: tuple
    rate: float
    since: Any
    solver: str
    plan: dict
    objective: dict
    left: list | None = None


class History:
    """What training saw: columns of plain numbers, a row for each recorded step.

    Row ``s`` holds what step ``s`` computed *before* its update, as the tutorial prints it; with mini-batches, the
    weighted mean since the row before.

    Attributes
    ----------
    step, epoch : list of int
    loss : list of float
        The objective that is minimised, penalty included.
    error : list of float
        The weighted mean of ``|y - output|``.
    rate : list of float
        The learning rate of the step.
    seconds : list of float
        Since training began; rows that an engine computed in one call share its time evenly. A pickle holds no times:
        two equal trainings are equal pickles. There they are nan.
    engine, reason : str
        Which engine ran, and why it was chosen.
    stopped : {"steps", "callback", "interrupted", "converged", "diverged", "failed"}
        Why training ended: "diverged" is that of a `DivergenceError`, "failed" that of any other error.
    state : State or None
        For ``train(resume=history)``; None after a divergence.
    """

    def __init__(self, *, engine="", reason="", stopped="", state=None, **columns):
        if unknown := set(columns) - set(COLUMNS):
            raise TypeError(f"a History has the columns {', '.join(COLUMNS)}; got {', '.join(sorted(unknown))}.")
        self.step, self.epoch, self.loss, self.error, self.rate, self.seconds = (
            list(columns.get(name, ())) for name in COLUMNS
        )
        self.engine, self.reason, self.stopped, self.state = engine, reason, stopped, state

    def append(self, *row):
        """Add one row, in the order of the columns."""
        for name, value in zip(COLUMNS, row, strict=True):
            getattr(self, name).append(value)

    def extend(self, *columns):
        """Add some rows: a list for each column, in their order."""
        for name, values in zip(COLUMNS, columns, strict=True):
            getattr(self, name).extend(values)

    def truncate(self, rows):
        """Leave the first rows only: an interrupt may have come in the middle of one."""
        for name in COLUMNS:
            del getattr(self, name)[rows:]

    def without_state(self):
        """A copy that cannot be gone on with."""
        return History(engine=self.engine, reason=self.reason, stopped=self.stopped, **self.to_dict())

    def to_dict(self):
        """The columns as ``{name: list}``, ready for a DataFrame or for JSON."""
        return {name: list(getattr(self, name)) for name in COLUMNS}

    def __len__(self):
        return len(self.step)

    def __getstate__(self):
        return self.__dict__ | {"seconds": [math.nan] * len(self.seconds)}

    def __copy__(self):
        return History(**self.__dict__)

    def __deepcopy__(self, memo):  # a copy in memory keeps its times
        return History(**copy.deepcopy(self.__dict__, memo))

    def __repr__(self):
        last = f", step {self.step[-1]:,}: loss {self.loss[-1]:.6g}" if self.step else ""
        return f"History({len(self)} rows{last}, engine={self.engine!r}, stopped={self.stopped!r})"
