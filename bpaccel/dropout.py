"""Dropout: hidden units that are silent in a step, each row its own (Srivastava et al. 2014).

Who is silent is a pure function of the seed, the step, the place of the row in the order of its epoch, and the unit.
It is drawn on the host, so that every library, engine, number of threads and cut of a training sees the same.
"""

from typing import NamedTuple

import numpy as np

from bpaccel.activations import Activation

DRAWS = 8  # numbers of 32 bits that Philox makes of one value of its counter


class Dropout(NamedTuple):
    """Silence a share of the hidden units in each step, and make the others as much louder ("inverted" dropout).

    The expected layer is then the whole one, and predictions need no change.

    Attributes
    ----------
    rate : float
        The share of silent units, from 0 to below 1.
    seed : int
    """

    rate: float
    seed: int

    @property
    def silent_below(self):
        """A unit whose draw, a number of 32 bits, is below this whole number is silent."""
        return round(self.rate * 2**32)

    def speaking(self, units, step, first, n):
        """Which units are not silent: a bool array of shape (n, units), for rows ``first:first + n`` of a step."""
        # Philox is a function of a key and a counter (Salmon et al. 2011): each row has counters of its own, so that
        # rows can be drawn in any pieces.
        counters = -(-units // DRAWS)
        generator = np.random.Philox(key=[self.seed, step], counter=first * counters)
        draws = generator.random_raw(n * counters * DRAWS // 2).astype("<u8", copy=False).view("<u4")
        return draws.reshape(n, counters * DRAWS)[:, :units] >= self.silent_below

    def activations(self, activations, layer_sizes, backend, dtype, step, first, n):
        """The activations of a network as they are for rows ``first:first + n`` of a step."""
        hidden = layer_sizes[1:-1]
        speaking = self.speaking(sum(hidden), step, first, n)
        parts = np.split(speaking, np.cumsum(hidden)[:-1], axis=1) if hidden else []
        masked = [_masked(f, backend.asarray(part, dtype), 1.0 - self.rate) for f, part in zip(activations, parts)]
        return (*masked, activations[-1])


def _masked(f, mask, share):
    """An activation of which only the units where ``mask`` is 1 are left, as much louder as they are fewer."""

    def function(z, xp):
        return f.function(z, xp) * mask / share

    def slope(a, xp):  # from the output, as always: what the unit said, before it was made louder
        return xp.where(mask > 0, f.slope(a * share, xp), 0.0) / share

    return Activation(f.name, function, slope)
