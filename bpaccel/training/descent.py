"""The steps of a solver, taken by an engine.

The engine is asked to `run` some steps at a time: about half a second of them (Ctrl-C is seen in between), no further
than the epochs whose orders are drawn at once, and than the row of the history that callbacks wait for. No cut changes
a bit of the result.
"""

import math
import time

import numpy as np

from bpaccel.backends import namespace
from bpaccel.training.loop import DivergenceError

# How long an engine is left alone, and for how many steps: their totals are kept until then.
SLICE_SECONDS, SLICE_STEPS = 0.5, 2**16


# What overflows ends in a DivergenceError, which says more than NumPy's warnings.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def descend(loop):
    """Take the steps of a `Loop`, to its last; returns how they ended, "steps" or "callback".

    Raises
    ------
    DivergenceError
        If a loss or a weight is no longer finite.
    """
    plan, stop, limit = loop.work.plan, loop.span.stop, 1
    # Dropout is drawn by the place of a row in the order of its epoch.
    alone = not loop.work.engine.joins_epochs or loop.work.objective.dropout is not None
    before = loop.moment  # a cut earlier: the last weights whose loss was finite may be older than this cut's
    while loop.moment.step < stop:
        moment = loop.moment
        step = moment.step
        end = min(step + limit, stop, loop.waited_for())
        if plan.shuffled:
            end = min(end, plan.end_of_orders(step, alone))
        with loop.interrupts.free():
            sent = time.perf_counter()
            weights, arrays, totals = _steps(loop.work, moment, end)
            ended = time.perf_counter()
            finite = _finite(weights, totals)
        if not finite:
            raise _diverged(loop, before, end, sent, ended)
        enough = int(SLICE_SECONDS * (end - step) / max(ended - sent, 1e-9))
        limit = max(1, min(8 * limit, enough, SLICE_STEPS))
        before = moment
        rows = loop.took(end, weights, arrays, totals, sent, ended)
        if rows and loop.callbacks and loop.ask(rows):
            return "callback"
    return "steps"


def _steps(work, moment, stop):
    """From a moment to before a step ``stop``: weights, solver's state, and the totals (k, 4)."""
    batches = work.plan.batches(moment.step, stop)
    rates = np.full(stop - moment.step, moment.rate)
    weights, arrays, totals = work.engine.run(moment.weights, work.solver, moment.arrays, batches, rates, moment.step)
    return weights, arrays, work.rows.backend.to_numpy(totals)


def _finite(weights, totals):
    xp = namespace(weights[0])
    return bool(np.isfinite(totals).all()) and all(bool(xp.all(xp.isfinite(W))) for W in weights)


def _diverged(loop, before, end, sent, ended):
    """Go to the last moment whose loss was finite; returns the error that names the step after it.

    The step is found by halves of what was sent off last. ``before`` is the moment of the cut before that.
    """
    work = loop.work
    here, rate = loop.moment.step, loop.moment.rate
    good = here  # up to before this step, all is finite
    while good < end - 1:
        middle = (good + end) // 2
        weights, _, totals = _steps(work, loop.moment, middle)
        good, end = (middle, end) if _finite(weights, totals) else (good, middle)
    weights, _, totals = _steps(work, loop.moment, end)
    loss, fine = float(work.objective.value(totals)[-1]), np.all(np.isfinite(totals))
    step = end - 1
    if _finite(weights, totals):
        message = "the loss became nan or infinite, but not when the steps were taken again."
        return DivergenceError(message, step, loop.history)
    kept = step if fine else step - 1  # a loss that is not finite condemns the weights that it is of
    if kept > here:
        loop.took(kept, *_steps(work, loop.moment, kept), sent, ended)
    elif kept < here:  # of the cut before, whose last step made weights with an infinite loss
        loop.go_back(before)
        if kept > before.step:
            loop.took(kept, *_steps(work, before, kept), sent, sent)
    what = "the weights became infinite or nan" if fine else f"the loss became {loss}"
    remedy = f"Use a smaller learning_rate (it is {rate:g}), or standardise X."
    if step == 0 and not math.isfinite(loss):
        remedy = "X or y hold nan, infinite or very large values: clean or standardise them."
    message = f"{what} at step {step}; the weights of the last finite step are kept. {remedy}"
    return DivergenceError(message, step, loop.history)
