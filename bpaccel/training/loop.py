"""The loop of a training: the one owner of its state, whoever takes the steps.

`descent` and `lbfgs` take steps and tell the loop of each with `Loop.took` and `Loop.reached`. The loop writes the
history, asks the callbacks, ends the training where they, Ctrl-C or an error say so, and puts together what is needed
to go on.
"""

import math
import time
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import backend_of
from bpaccel.checks import positive
from bpaccel.solvers import described
from bpaccel.training.callback import Callback, Progress
from bpaccel.training.history import State
from bpaccel.training.interrupts import Interrupts

NO_TOTALS = np.empty((0, 4))


class DivergenceError(ArithmeticError):
    """The loss became nan or infinite. The network keeps the weights of the last step whose loss was finite.

    Attributes
    ----------
    step : int
        The step whose loss, or whose new weights, were not finite.
    history : History
        The rows before it.
    """

    def __init__(self, message, step, history):
        super().__init__(message)
        self.step, self.history = step, history

    def __reduce__(self):
        return type(self), (str(self), self.step, self.history)


class Work(NamedTuple):
    """What a step depends on, beside the moment.

    Attributes
    ----------
    objective : Objective
    rows : Rows
    solver : Solver, or "lbfgs"
    plan : Plan
    engine : Engine
    reason : str
        Why this engine.
    rate : float or None
        The learning rate that was asked for.
    """

    objective: Any
    rows: Any
    solver: Any
    plan: Any
    engine: Any
    reason: str
    rate: float | None = None


class Span(NamedTuple):
    """How far a training goes, and which of its steps are rows of the history.

    Attributes
    ----------
    stop : int
        The step after the last.
    every : int
        Steps between two rows.
    first_row : int
        The step of one row: the others are multiples of ``every`` from it, and the last step.
    """

    stop: int
    every: int
    first_row: int = 0


class Moment(NamedTuple):
    """Where a training is. It is set as one, so that weights, solver's state and history are always of one step.

    Attributes
    ----------
    step : int
        Steps taken.
    weights : list of arrays
    arrays : tuple of lists of arrays
        The solver's state.
    rate : float
        The learning rate of the steps to come.
    rows : int
        Rows of the history.
    since : numpy.ndarray of shape (k, 4)
        Totals of the steps that are in no row yet.
    """

    step: int
    weights: list
    arrays: tuple
    rate: float
    rows: int = 0
    since: Any = NO_TOTALS


class Loop:
    """A training: its moment, its history, its callbacks, and how it ends.

    Parameters
    ----------
    network : Network
        Gets the weights of each moment that callbacks see, and those of the end.
    work : Work
    span : Span
    moment : Moment
        Where it begins.
    callbacks : sequence of callable
    history : History
        Gets the rows.
    parts : callable
        ``(loop, stopped, model_only) -> (header, arrays)``: see `Progress.to_parts`.
    resumed : bool
        Whether it goes on with an earlier training.
    """

    def __init__(self, network, work, span, moment, callbacks, history, parts, resumed):
        self.network, self.work, self.span, self.moment = network, work, span, moment
        self.callbacks, self.history, self.resumed = callbacks, history, resumed
        self._parts, self._begun = parts, []
        self.interrupts = Interrupts()
        self.stopped = ""  # "callback", as soon as one has said so
        self.row = self._next_row(moment.step)
        before = history.seconds[-1] if history.seconds and math.isfinite(history.seconds[-1]) else 0.0
        self.began = time.perf_counter() - before
        history.engine, history.reason = work.engine.name, work.reason

    def run(self, take):
        """Train.

        Parameters
        ----------
        take : callable
            Takes the steps of a loop, and returns how they ended: "steps", "callback" or "converged".

        Returns
        -------
        History
        """
        how = "failed"
        with self.interrupts:
            try:
                self.network.adopt(self.moment.weights)
                self._begin()
                how = self.stopped or take(self)
            except KeyboardInterrupt:
                how = "interrupted"
            except DivergenceError:
                how = "diverged"
                raise
            finally:
                self._end(how)
        if self.interrupts.pending:  # it came when the training was already ending
            self.history.stopped = "interrupted"
        return self.history

    def took(self, step, weights, arrays, totals, began, ended):
        """The steps up to before ``step`` are taken, from ``began`` to ``ended`` on the clock; their totals (k, 4).

        Returns
        -------
        list of numpy.ndarray of shape (j, 4)
            The totals in each of the rows that are now complete.
        """
        moment, plan = self.moment, self.work.plan
        rows = np.arange(self.row, step, self.span.every)
        if step == self.span.stop and rows[-1:] != step - 1:
            rows = np.append(rows, step - 1)
        since = np.concatenate([moment.since, totals]) if len(moment.since) else totals
        stops = rows + 1 - step + len(since)
        if plan.batch_size == plan.n:  # a row is its step's
            left, starts = NO_TOTALS, stops - 1
        else:  # or the mean of all steps since the row before
            left, starts = since[stops[-1] if len(rows) else 0 :], np.append(0, stops[:-1])
        if len(rows):
            share = (rows + 1 - moment.step) / (step - moment.step)
            seconds = began - self.began + (ended - began) * share
            self.history.extend(rows.tolist(), plan.epoch(rows).tolist(), *self._means(since, starts, stops),
                                [moment.rate] * len(rows), seconds.tolist())  # fmt: skip
        self.moment = Moment(step, weights, arrays, moment.rate, len(self.history), left)
        if len(rows):
            self.row = min(int(rows[-1]) + self.span.every, self.span.stop - 1)
        return [since[a:b] for a, b in zip(starts, stops)] if self.callbacks else []

    def go_back(self, moment):
        """Return to a moment before this one; its history has fewer rows."""
        self.history.truncate(moment.rows)
        self.moment, self.row = moment, self._next_row(moment.step)

    def reached(self, step, weights, row=None):
        """A step of L-BFGS is taken; ``row`` is its loss and error, if it is to be a row of the history."""
        if row is not None:
            self.history.append(step, step, *row, self.moment.rate, time.perf_counter() - self.began)
        self.moment = self.moment._replace(step=step, weights=weights, rows=len(self.history))

    def waited_for(self):
        """The step after the row of the history that callbacks wait for, which no engine may go beyond."""
        if not self.callbacks:
            return self.span.stop
        rows = min(callback.ahead() if isinstance(callback, Callback) else 1 for callback in self.callbacks)
        return self.row + 1 + (rows - 1) * self.span.every

    def ask(self, rows=(None,)):
        """Ask the callbacks at the rows that were added last, of which ``rows`` are the totals; returns whether they
        end the training."""
        self.network.adopt(self.moment.weights)
        steps = self.history.step[len(self.history) - len(rows) :]
        answers = [self._ask(step, totals) for step, totals in zip(steps, rows)]
        return any(answers)

    def _ask(self, step, totals):
        """Ask the callbacks at a row.

        All of them are asked, also after one said stop. Those that come `last` see what the others have decided.
        """
        progress = self._progress(step, totals)
        try:
            early = [callback(progress) for callback in self.callbacks if not comes_last(callback)]
        finally:  # also where one of them fails: the others have decided
            self._take_rate(progress)
        self.stopped = "callback" if any(map(_is_true, early)) else ""
        late = [callback(progress) for callback in self.callbacks if comes_last(callback)]
        self._take_rate(progress)
        if any(map(_is_true, late)):
            self.stopped = "callback"
        return bool(self.stopped)

    def _next_row(self, step):
        """The first row of the history from a step on."""
        return min(step + (self.span.first_row - step) % self.span.every, self.span.stop - 1)

    def _begin(self):
        progress = self._progress(self.moment.step)
        for callback in self.callbacks:
            if isinstance(callback, Callback):
                self._begun.append(callback)
                callback.begin(progress, self.resumed)
        self._take_rate(progress)

    def _take_rate(self, progress):
        if progress.rate != self.moment.rate:
            self.moment = self.moment._replace(rate=positive("rate", progress.rate))

    def _end(self, how):
        """Leave everything of one step, and tell the callbacks: all of them, also if one of them fails."""
        moment, history = self.moment, self.history
        self.network.adopt(moment.weights)
        own = self.network.weights if self._begun else None
        history.truncate(moment.rows)
        history.stopped = how
        progress, errors = self._progress(history.step[-1] if history.step else moment.step), []
        for callback in sorted(self._begun, key=comes_last):
            try:
                callback.end(progress, how)
            except Exception as error:
                errors.append(error)
        left = self.network.weights if self._begun else None
        history.state = None if how == "diverged" else self._state(None if left is own else left)
        if errors and how not in ("failed", "diverged"):  # the error that ended the training says more
            raise errors[0]

    def _state(self, left):
        moment, work = self.moment, self.work
        # Copies, for those of the network may be changed in place.
        weights = [work.rows.backend.copy(W) for W in moment.weights]
        left = left and [backend_of(W).copy(W) for W in left]
        return State(moment.step, weights, moment.arrays, moment.rate, moment.since, described(work.solver),
                     work.plan.settings(), work.objective.settings(), left)  # fmt: skip

    def _progress(self, step, totals=None):
        epoch = self.work.plan.epoch(self.moment.step)
        return Progress(self.network, self.history, step, self.moment.rate, totals, self.span.stop, epoch=epoch,
                        parts=lambda stopped, *more: self._parts(self, stopped or self.stopped, *more))  # fmt: skip

    def _means(self, totals, starts, stops):
        """Losses and errors of the rows: of each its only step's, or means over its steps."""
        if (stops - starts == 1).all() and (totals[starts, 0] > 0).all():
            found = totals[starts]
            return self.work.objective.value(found).tolist(), (found[:, 2] / found[:, 0]).tolist()
        return zip(*(_mean(self.work.objective, totals[a:b]) for a, b in zip(starts, stops)))


def comes_last(callback):
    """Whether a callback is to be asked after all others."""
    return isinstance(callback, Callback) and callback.last


def _is_true(answer):
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def _mean(objective, totals):
    """Loss and error over some steps: the weighted means of the totals (k, 4)."""
    weight = totals[:, 0]
    if not weight.sum() > 0:  # batches may weigh nothing, if the sample weights of all of their rows are 0
        return math.nan, math.nan
    values = objective.value(np.where(weight[:, None] > 0, totals, [1.0, 0, 0, 0]))
    return float(np.sum(weight * values) / weight.sum()), float(totals[:, 2].sum() / weight.sum())
