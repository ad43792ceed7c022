"""Plan: which rows each step takes."""

import numpy as np

from bpaccel.engines import Batches

# The orders of several epochs are given to an engine at once, up to so many rows in all: short epochs would spend their
# time between two calls of it.
AHEAD_ROWS = 2**16


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
        self._last: tuple = None, None  # the epoch whose order was drawn last, and this order

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

    def end_of_orders(self, step, alone):
        """The first step after the epochs, from ``step``'s on, whose orders may be drawn at once; after one, where it
        is to be ``alone``."""
        epochs = 1 if alone else max(1, AHEAD_ROWS // self.n)
        return self.first + (self.epoch(step) - self.first_epoch + epochs) * self.steps_per_epoch

    def order(self, epoch):
        """The order of an epoch's rows; None for their own."""
        if not self.shuffled:
            return None
        if self._last[0] != epoch:
            self._last = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return self._last[1]

    def orders(self, epoch, last):
        """The orders of some epochs, up to the last; one alone where all have the same."""
        return [self.order(e) for e in range(epoch, last + 1)] if self.shuffled else [None]

    def batches(self, step, stop):
        """The `Batches` of steps ``step:stop``."""
        steps = np.arange(step - self.first, stop - self.first)
        starts = steps % self.steps_per_epoch * self.batch_size
        stops = np.minimum(starts + self.batch_size, self.n)
        orders = self.orders(self.epoch(step), self.epoch(stop - 1))
        if orders[-1] is orders[0]:
            return Batches(orders[0], starts, stops)
        ahead = (steps // self.steps_per_epoch - steps[0] // self.steps_per_epoch) * self.n
        return Batches(np.concatenate(orders), starts + ahead, stops + ahead)
