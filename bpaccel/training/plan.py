"""Plan: which rows each step takes."""

import numpy as np

from bpaccel.engines import Batches


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
    first, first_epoch : int
        The step that it begins with, and the number of its epoch.
    """

    def __init__(self, n, batch_size, shuffle, seed, first=0, first_epoch=0):
        self.n, self.batch_size, self.shuffle, self.seed = n, batch_size, shuffle, seed
        self.first, self.first_epoch = first, first_epoch

    def settings(self):
        """What a resumed training must share, as JSON values."""
        return {"rows": self.n, "batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed}

    @property
    def steps_per_epoch(self):
        return -(-self.n // self.batch_size)

    @property
    def shuffled(self):
        """Whether the order of the rows matters: a full batch is the same sum in any order."""
        return self.shuffle and self.batch_size < self.n

    def epoch(self, step):
        return self.first_epoch + (step - self.first) // self.steps_per_epoch

    def end_of_epoch(self, step):
        """The first step after ``step``'s epoch."""
        return self.first + (self.epoch(step) - self.first_epoch + 1) * self.steps_per_epoch

    def order(self, epoch):
        """The order of an epoch's rows; None for their own."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.n) if self.shuffled else None

    def batches(self, step, stop, order):
        """The `Batches` of steps ``step:stop``."""
        starts = np.arange(step - self.first, stop - self.first) % self.steps_per_epoch * self.batch_size
        return Batches(order, starts, np.minimum(starts + self.batch_size, self.n))
