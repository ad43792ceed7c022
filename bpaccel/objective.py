"""Objective: what is minimised, and how the sums over rows become the updates of a step."""

from dataclasses import dataclass

from bpaccel import activations, losses
from bpaccel.activations import ACTIVATIONS, Activation
from bpaccel.backends import namespace
from bpaccel.checks import not_negative, positive
from bpaccel.dropout import Dropout
from bpaccel.losses import Loss


@dataclass(frozen=True)
class Objective:
    """What is minimised: the network's shape, its loss, and how the rows' losses become one number.

    Attributes
    ----------
    layer_sizes : tuple of int
    activations : tuple of Activation
        One for each weight matrix.
    loss : Loss
    bias : bool
        Whether the last row of each matrix belongs to an input that is always 1.
    reduction : {"mean", "sum"}
        ``"sum"``: loss + penalty, the tutorial's; ``"mean"``: that, divided by the sum of the sample weights.
    l1, l2 : float
        The penalty ``l1 * sum |W| + l2 / 2 * sum W ** 2``, of the weights without the bias.
    clip : float or None
        The greatest length (L2 norm over all matrices together) that an update may have.
    dropout : Dropout or None
        Which hidden units are silent, step by step.
    """

    layer_sizes: tuple
    activations: tuple[Activation, ...]
    loss: Loss
    bias: bool = False
    reduction: str = "mean"
    l1: float = 0.0
    l2: float = 0.0
    clip: float | None = None
    dropout: Dropout | None = None

    @property
    def known(self):
        """Whether all activations and the loss are rows of our tables, and not functions of a user's own."""
        ours = [ACTIVATIONS.get(f.name) is f for f in self.activations]
        return all(ours) and losses.known(self.loss, self.activations[-1])

    @property
    def shipped(self):
        """Whether all activations and the loss are rows that this package came with, which its kernels know."""
        return all(map(activations.shipped, self.activations)) and losses.shipped(self.loss)

    @classmethod
    def of(cls, network, reduction="mean", l1=0.0, l2=0.0, clip=None):
        """The objective of a `Network`, for arguments as they were given.

        Raises
        ------
        ValueError
            If an argument breaks its rule.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"`reduction` must be 'mean' or 'sum'; got {reduction!r}.")
        clip = None if clip is None else positive("clip", clip)
        return cls(network.layer_sizes, network.activations, network.loss_function, network.bias, reduction,
                   not_negative("l1", l1), not_negative("l2", l2), clip)  # fmt: skip

    def settings(self):
        """What a resumed training must share, as JSON values."""
        return {
            "layer_sizes": list(self.layer_sizes),
            "activation": [f.name for f in self.activations],
            "loss": self.loss.name,
            "bias": self.bias,
            "reduction": self.reduction,
            "l1": self.l1,
            "l2": self.l2,
            "clip": self.clip,
            "dropout": None if self.dropout is None else list(self.dropout),
        }

    def finish(self, weights, sums):
        """The updates of a step, reduced, penalised and clipped, and the penalty (a 0-D array, not yet reduced)."""
        xp = namespace(sums.totals)
        updates, penalty = sums.updates, 0.0 * sums.totals[0]
        if self.l1 or self.l2:
            penalised = []
            for W, u in zip(weights, updates):
                W = xp.astype(W, u.dtype)
                if self.bias:  # the bias shifts, it does not bend: it is not penalised
                    W = xp.concat([W[:-1, :], xp.zeros_like(W[-1:, :])], axis=0)
                penalised.append(u - self.l2 * W - self.l1 * xp.sign(W))
                penalty = penalty + self.l1 * xp.sum(xp.abs(W)) + 0.5 * self.l2 * xp.sum(W * W)
            updates = penalised
        if self.reduction == "mean":
            weight = sums.totals[0]
            # A mini-batch of rows that count nothing asks for nothing, also of the penalty.
            share = xp.where(weight > 0, 1.0 / xp.where(weight > 0, weight, 1.0), 0.0)
            updates = [u * share for u in updates]
        if self.clip is not None:
            squares = 0.0
            for u in updates:
                squares = squares + xp.sum(u * u)
            length = xp.sqrt(squares)
            scale = xp.where(length > self.clip, self.clip / xp.where(length > 0, length, 1.0), 1.0)
            updates = [u * scale for u in updates]
        return [xp.astype(u, W.dtype, copy=False) for W, u in zip(weights, updates)], penalty

    def value(self, totals):
        """The objective of each row of an array of totals (k, 4): weight, loss, |error|, penalty."""
        divisor = totals[..., 0] if self.reduction == "mean" else 1.0
        return (totals[..., 1] + totals[..., 3]) / divisor
