"""History: what a training saw, what it needs to go on, and what its callbacks get."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bpaccel.engines import Batches

COLUMNS = ("step", "epoch", "loss", "error", "rate", "seconds")


class State(NamedTuple):
    """What a resumed training needs beside the weights: where it stopped, and what must not change."""

    step: int
    solver: Any
    arrays: Any
    plan: Any
    shape: Any


@dataclass(eq=False)
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
        Since training began; rows that an engine computed in one call share its time evenly.
    engine, reason : str
        Which engine ran, and why it was chosen.
    stopped : {"steps", "callback", "interrupted", "converged", "diverged"}
        Why training ended; the last is that of a `DivergenceError`.
    state : State
        For ``train(resume=history)``.
    """

    step: list = field(default_factory=list)
    epoch: list = field(default_factory=list)
    loss: list = field(default_factory=list)
    error: list = field(default_factory=list)
    rate: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    engine: str = ""
    reason: str = ""
    stopped: str = ""
    state: State | None = field(default=None, repr=False)

    def append(self, *row):
        """Add one row, in the order of the columns."""
        for name, value in zip(COLUMNS, row, strict=True):
            getattr(self, name).append(value)

    def to_dict(self):
        """The columns as ``{name: list}``, ready for a DataFrame or for JSON."""
        return {name: list(getattr(self, name)) for name in COLUMNS}

    def __len__(self):
        return len(self.step)


@dataclass(frozen=True)
class Plan:
    """Which rows each step takes: a pure function of the step, so that a resumed run goes on as if never stopped.

    Attributes
    ----------
    n : int
        Rows in all.
    batch_size : int
        Rows of a step; an epoch's last batch may be short.
    shuffle : bool
    seed : int
        The order of epoch ``e`` is ``default_rng([seed, e]).permutation(n)``.
    first : int
        The step that epoch 0 begins with.
    """

    n: int
    batch_size: int
    shuffle: bool
    seed: int
    first: int = 0

    @property
    def steps_per_epoch(self):
        return -(-self.n // self.batch_size)

    @property
    def shuffled(self):
        """Whether the order of the rows matters: a full batch is the same sum in any order."""
        return self.shuffle and self.batch_size < self.n

    def epoch(self, step):
        return (step - self.first) // self.steps_per_epoch

    def end_of_epoch(self, step):
        """The first step after ``step``'s epoch."""
        return self.first + (self.epoch(step) + 1) * self.steps_per_epoch

    def order(self, epoch):
        """The order of an epoch's rows; None for their own."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.n) if self.shuffled else None

    def batches(self, step, stop, order):
        """The `Batches` of steps ``step:stop``."""
        starts = np.arange(step - self.first, stop - self.first) % self.steps_per_epoch * self.batch_size
        return Batches(order, starts, np.minimum(starts + self.batch_size, self.n))


@dataclass(eq=False)
class Progress:
    """What a callback gets at each row of the history; returning True from it stops the training.

    Attributes
    ----------
    network : Network
        With the weights after the step: to be looked at, since training goes on from its own.
    history : History
        So far; its last row is the step's.
    step : int
    rate : float
        The learning rate; set it to change that of the steps to come.
    totals : numpy.ndarray of shape (k, 4), or None
        Weight, loss, |error| and penalty, each summed, of the steps since the row before (of a full batch, of the last
        steps only); None for L-BFGS.
    stop : int
        The step after the last, if nothing ends the training before.
    """

    network: Any
    history: History
    step: int
    rate: float
    totals: Any = None
    stop: int | None = None
