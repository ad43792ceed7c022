"""The protocol of callbacks, and what they are told."""

from bpaccel.checks import functions

# What only a `Callback` is asked for; the last two are those of earlier versions.
PROTOCOL = ("begin", "end", "state", "restore", "finish", "__enter__")


class Callback:
    """What may be done at the rows of a training's history; a plain function of a `Progress` serves, too.

    Each method may be left out. `begin` and `end` are called once a training each, also where the training ends in an
    error: what `begin` opened, `end` can close.

    Attributes
    ----------
    last : bool
        Whether it is asked after all others, when they have decided on the rate and on the end.

    Examples
    --------
    >>> import numpy as np, bpaccel as bp
    >>> class Count(bp.callbacks.Callback):
    ...     def begin(self, progress, resumed):
    ...         self.rows = self.rows if resumed else 0
    ...     def __call__(self, progress):
    ...         self.rows += 1
    ...     def state(self):
    ...         return {"rows": self.rows}
    ...     def restore(self, state):
    ...         self.rows = state["rows"]
    >>> count = Count()
    >>> history = bp.Network([3, 1]).train(np.eye(3), np.ones(3), steps=5, record_every=1, callbacks=[count])
    >>> count.rows
    5
    """

    last = False

    def begin(self, progress, resumed):
        """A training begins: anew, or (``resumed``) where an earlier one ended, whose `state` was given to `restore`,
        or is still here."""

    def ahead(self):
        """How many rows may come before it has to be asked: it is then asked about each, with the weights of the last.
        More than one saves time where steps are short, for a callback that looks at no weights."""
        return 1

    def __call__(self, progress):
        """A row was added to the history; True ends the training."""

    def end(self, progress, how):
        """The training ended; ``how`` is the word that `History.stopped` will say."""

    def state(self):
        """What a resumed training needs: a dict of texts, numbers, None, lists of these, and NumPy arrays."""
        return {}

    def restore(self, state):
        """Take over what `state` returned, maybe in another process; called before `begin`."""


def check_callbacks(callbacks):
    """Callbacks as a list; ValueError for what is none, or would not be told what it waits for."""
    callbacks = functions("callbacks", callbacks)
    for callback in callbacks:
        waits = [name for name in PROTOCOL if hasattr(callback, name)]
        if waits and not isinstance(callback, Callback):
            raise ValueError(f"`callbacks`: {type(callback).__name__} has a method {waits[0]!r}, which only a subclass "
                             "of bpaccel.callbacks.Callback is asked for: derive it from that class.")  # fmt: skip
    return callbacks


class Progress:
    """What a callback gets; returning True from a row stops the training.

    Attributes
    ----------
    network : Network
        With the weights of the moment: to be looked at, since training goes on from its own.
    history : History
        So far; its last row is the step's.
    step : int
        The step of the row; where a training begins, its first step.
    epoch : int
        The epoch of the steps to come.
    rate : float
        The learning rate; set it to change that of the steps to come.
    totals : numpy.ndarray of shape (k, 4), or None
        Weight, loss, |error| and penalty, each summed, of the steps since the row before (of a full batch, of the last
        step only); None for L-BFGS.
    stop : int
        The step after the last, if nothing ends the training before.
    """

    def __init__(self, network, history, step, rate, totals=None, stop=None, *, epoch=None, parts=None):
        self.network, self.history, self.step, self.rate = network, history, step, rate
        self.totals, self.stop, self.epoch, self._parts = totals, stop, epoch, parts

    def to_parts(self, stopped="", model_only=False):
        """What a file holds that the training can go on from: a header of JSON values, and NumPy arrays.

        Parameters
        ----------
        stopped : str
            How the training ended, if it did: see `History.stopped`.
        model_only : bool
            Whether only the model is wanted.
        """
        return self._parts(stopped, model_only)
