"""scikit-learn's order of rows, and how it reports a loss of several outputs: so that the numbers are its own."""

from dataclasses import dataclass

import numpy as np

from bpaccel.objective import Objective
from bpaccel.training.plan import AHEAD_ROWS, Plan


@dataclass(frozen=True)
class PerOutput(Objective):
    """The objective as scikit-learn reports the squared error of several outputs: divided by their number, while the
    gradient is not."""

    def value(self, totals):
        return super().value(totals * np.array([1.0, 1.0 / self.layer_sizes[-1], 1.0, 1.0]))


class Epochs(Plan):
    """scikit-learn's order of rows: each epoch shuffles the order of the one before.

    Parameters
    ----------
    n, batch_size, shuffle, first, first_epoch
        See `Plan`.
    random : numpy.random.RandomState
    rows : numpy.ndarray of shape (n,), or None
        The rows that are trained on, if not all are.
    """

    def __init__(self, n, batch_size, shuffle, first, random, rows=None, first_epoch=0):
        super().__init__(n, batch_size, shuffle, 0, first, first_epoch)
        self.random, self.rows = random, rows
        self._drawn: dict[int, np.ndarray] = {}
        self._before: tuple = 0, None  # the epoch that was drawn next, and the generator before

    def orders(self, epoch, last):
        if not self.shuffle:
            return [self.rows]
        if last not in self._drawn:
            self._before = max(self._drawn, default=self.first_epoch - 1) + 1, self.random.get_state()
        return [self.order(e) for e in range(epoch, last + 1)]

    def rewind(self, step):
        """Take back the orders that were drawn ahead of a step: it was not gone on to them."""
        first, state = self._before
        needed = self.epoch(step - 1) if step > self.first else self.first_epoch - 1
        if state is not None and max(self._drawn, default=needed) > needed:
            self.random.set_state(state)
            self._drawn = {epoch: order for epoch, order in self._drawn.items() if epoch < first}
            for epoch in range(first, needed + 1):
                self.order(epoch)

    def order(self, epoch):
        if not self.shuffle:
            return self.rows
        if epoch not in self._drawn:
            before, order = self._drawn.get(epoch - 1), np.arange(self.n)
            self.random.shuffle(order)  # what sklearn.utils.shuffle draws, without its checks
            self._drawn[epoch] = order if before is None else before[order]
            # A step that diverged is looked for in the epochs that were drawn at once, and in those before.
            self._drawn.pop(epoch - 1 - 2 * max(1, AHEAD_ROWS // self.n), None)
        if self.batch_size >= self.n:
            return self.rows
        order = self._drawn[epoch]
        return order if self.rows is None else self.rows[order]

    def last(self):
        """The last epoch whose order was drawn, and this order; None before the first."""
        return max(self._drawn.items(), default=None)

    def go_on(self, epoch, order):
        """Take over what `last` returned."""
        self._drawn = {epoch: order}

    def sizes(self):
        """Rows of each batch of an epoch."""
        starts = np.arange(self.steps_per_epoch) * self.batch_size
        return np.minimum(starts + self.batch_size, self.n) - starts
