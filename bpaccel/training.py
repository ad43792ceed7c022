"""Training: the loop over steps.

The loop asks an engine to `run` some steps, looks at their totals, and goes on. It cuts about every half second (Ctrl-C
is seen there), at epochs of a new order, and at the rows of the history where callbacks wait for them; no cut changes a
bit of the result.
"""

import contextlib
import math
import time
from typing import Any, NamedTuple

import numpy as np

from bpaccel.backends import namespace
from bpaccel.checks import positive
from bpaccel.history import Progress, State

# How long the loop leaves an engine alone, and for how many steps: their totals are kept until then.
SLICE_SECONDS, SLICE_STEPS = 0.5, 2**16


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


class _Cut(NamedTuple):
    """Where the engine was sent off, so that it can be again."""

    step: int
    weights: list
    arrays: Any
    rate: float


# What overflows ends in a DivergenceError, which says more than NumPy's warnings.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def descend(network, weights, engine, solver, plan, *, step, stop, rate, every, callbacks, history, arrays,
            first_row=0):  # fmt: skip
    """Take steps ``step:stop`` with a solver.

    Parameters
    ----------
    network : Network
        Gets the weights at each cut.
    weights : list of arrays
        Where the rows are.
    engine : Engine
    solver : Solver
    plan : Plan
    step, stop : int
        The first step, and the one after the last.
    rate : float
        Learning rate.
    every : int
        Steps between rows of the history.
    callbacks : sequence of callable
    history : History
        Gets the rows, in place.
    arrays : object
        The solver's state.
    first_row : int
        The step of one row of the history: the others are multiples of ``every`` from it, and the last step.

    Raises
    ------
    DivergenceError
        If a loss or a weight is no longer finite.
    """
    began = time.perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
    limit, order, epoch = 1, None, None
    record = _Record(history, engine.objective, plan, step, stop, every, first_row)
    cuts: list[_Cut] = []
    done = (step, weights, arrays)  # set as one, so that Ctrl-C never finds a part of a step
    try:
        while step < stop:
            if plan.epoch(step) != epoch:
                epoch = plan.epoch(step)
                order = plan.order(epoch)
            end = min(step + limit, stop)
            if callbacks:
                end = min(end, record.row + 1)
            if plan.shuffled:
                end = min(end, plan.end_of_epoch(step))
            cuts = [*cuts[-1:], _Cut(step, weights, arrays, rate)]
            sent = time.perf_counter()
            rates = np.full(end - step, rate)
            weights, arrays, totals = engine.run(weights, solver, arrays, plan.batches(step, end, order), rates, step)
            totals = engine.rows.backend.to_numpy(totals)
            ended = time.perf_counter()
            enough = int(SLICE_SECONDS * (end - step) / max(ended - sent, 1e-9))
            limit = max(1, min(8 * limit, enough, SLICE_STEPS))
            if not (np.all(np.isfinite(totals)) and _finite(weights)):
                raise _diverged(network, engine, solver, plan, cuts, end, history)
            since = record.add(totals, rate, sent - began, ended - began)
            step, done = end, (end, weights, arrays)
            network.weights = weights
            if callbacks and since is not None:
                progress = Progress(network, history, history.step[-1], rate, since, stop)
                if asked_to_stop(callbacks, progress):
                    history.stopped = "callback"
                    break
                rate = positive("rate", progress.rate)
        else:
            history.stopped = "steps"
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    step, network.weights, arrays = done
    history.state = State(step, solver, arrays, plan, shape_of(engine.objective))
    finish(callbacks, network, history)


class _Record:
    """The rows of a history, made of the totals of steps as they come.

    Attributes
    ----------
    row : int
        The step of the next row.
    """

    def __init__(self, history, objective, plan, step, stop, every, first_row):
        self.history, self.objective, self.plan = history, objective, plan
        self.step, self.stop, self.every = step, stop, every
        self.row = min(step + (first_row - step) % every, stop - 1)
        self._since = np.empty((0, 4))  # totals that are not in a row yet

    def add(self, totals, rate, began, ended):
        """Take the totals (k, 4) of the next k steps, which took from ``began`` to ``ended``, in seconds.

        Returns the totals that are in the last of the rows that they complete, or None if they complete none.
        """
        first, end = self.step, self.step + len(totals)
        self.step = end
        rows = np.arange(self.row, end, self.every)
        if end == self.stop and rows[-1:] != end - 1:
            rows = np.append(rows, end - 1)
        since = np.concatenate([self._since, totals]) if len(self._since) else totals
        stops = rows + 1 - end + len(since)
        if self.plan.batch_size == self.plan.n:  # a row is its step's
            self._since, starts = since[:0], stops - 1
        else:  # or the mean of all steps since the row before
            self._since, starts = since[stops[-1] if len(rows) else 0 :], np.append(0, stops[:-1])
        if not len(rows):
            return None
        self.row = min(int(rows[-1]) + self.every, self.stop - 1)
        seconds = began + (ended - began) * (rows + 1 - first) / (end - first)
        means = self._means(since, starts, stops)
        for row, (loss, error), second in zip(rows.tolist(), means, seconds.tolist()):
            self.history.append(row, self.plan.epoch(row), loss, error, rate, second)
        return since[starts[-1] : stops[-1]]

    def _means(self, totals, starts, stops):
        """Loss and error of each row: those of its only step, or means over its steps."""
        if np.all(stops - starts == 1) and np.all(totals[starts, 0] > 0):
            found = totals[starts]
            return zip(self.objective.value(found).tolist(), (found[:, 2] / found[:, 0]).tolist())
        return [_mean(self.objective, totals[a:b]) for a, b in zip(starts, stops)]


def shape_of(objective):
    return objective.layer_sizes, objective.bias


def asked_to_stop(callbacks, progress):
    answers = [callback(progress) for callback in callbacks]  # all of them are asked, also after one said stop
    return any(isinstance(answer, (bool, np.bool_)) and answer for answer in answers)


@contextlib.contextmanager
def entered(callbacks):
    """A context within that of each callback that is a context manager: it begins and ends with the training, also
    where that ends in an error."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            if hasattr(callback, "__enter__"):
                stack.enter_context(callback)
        yield


def finish(callbacks, network, history):
    for callback in callbacks:
        if hasattr(callback, "finish"):
            callback.finish(network, history)


def _mean(objective, totals):
    """Loss and error over some steps: the weighted means of the totals (k, 4)."""
    weight = totals[:, 0]
    if not weight.sum() > 0:  # batches may weigh nothing, if the sample weights of all of their rows are 0
        return math.nan, math.nan
    values = objective.value(np.where(weight[:, None] > 0, totals, [1.0, 0, 0, 0]))
    return float(np.sum(weight * values) / weight.sum()), float(totals[:, 2].sum() / weight.sum())


def _finite(weights):
    xp = namespace(weights[0])
    return all(bool(xp.all(xp.isfinite(W))) for W in weights)


def _diverged(network, engine, solver, plan, cuts, end, history):
    """Find the step by halves of what was sent off last; keep the last weights whose loss was finite."""
    history.stopped = "diverged"

    def sent_off(cut, stop):
        """From a cut to before a step ``stop``: what a cut there would be, and the totals."""
        order = plan.order(plan.epoch(cut.step))
        batches = plan.batches(cut.step, stop, order)
        rates = np.full(stop - cut.step, cut.rate)
        weights, arrays, totals = engine.run(cut.weights, solver, cut.arrays, batches, rates, cut.step)
        return _Cut(stop, weights, arrays, cut.rate), engine.rows.backend.to_numpy(totals)

    before, here = cuts[0], cuts[-1]
    while here.step < end - 1:
        middle = (here.step + end) // 2
        there, totals = sent_off(here, middle)
        if np.all(np.isfinite(totals)) and _finite(there.weights):
            before, here = here, there
        else:
            end = middle
    there, totals = sent_off(here, end)
    loss = float(engine.objective.value(totals)[0])
    if not np.all(np.isfinite(totals)):
        what, kept = f"the loss became {loss}", before.weights
        if before.step < here.step - 1:
            kept = sent_off(before, here.step - 1)[0].weights
    elif not _finite(there.weights):
        what, kept = "the weights became infinite or nan", here.weights
    else:
        message = "the loss became nan or infinite, but not when the steps were taken again."
        return DivergenceError(message, here.step, history)
    network.weights = kept
    remedy = f"Use a smaller learning_rate (it is {here.rate:g}), or standardise X."
    if here.step == 0 and not math.isfinite(loss):
        remedy = "X or y hold nan, infinite or very large values: clean or standardise them."
    message = f"{what} at step {here.step}; the weights of the last finite step are kept. {remedy}"
    return DivergenceError(message, here.step, history)
