"""A training from its arguments: what `Network.train` and `TableModel.fit` ask for, checked and carried out."""

import contextlib
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bpaccel import solvers
from bpaccel.checks import flag, positive, share, whole
from bpaccel.checks import seed as checked_seed
from bpaccel.dropout import Dropout
from bpaccel.engines.choice import choose
from bpaccel.objective import Objective
from bpaccel.training.callback import check_callbacks
from bpaccel.training.descent import descend
from bpaccel.training.history import History
from bpaccel.training.loop import Loop, Moment, Span, Work
from bpaccel.training.plan import Plan


class Options(NamedTuple):
    """The keywords of `Network.train` that say how to train: it says what each means."""

    steps: Any = None
    epochs: Any = None
    learning_rate: Any = 1.0
    reduction: Any = "mean"
    solver: Any = "gradient_descent"
    batch_size: Any = None
    shuffle: Any = True
    seed: Any = None
    l1: Any = 0.0
    l2: Any = 0.0
    clip: Any = None
    dropout: Any = 0.0
    engine: Any = "auto"
    threads: Any = None
    record_every: Any = None
    callbacks: Any = ()
    resume: Any = None


def train(network, X, y, sample_weight, options, model_parts=None):
    """Train a network.

    Nothing of the network changes before all arguments are found to be right.

    Parameters
    ----------
    network : Network
    X, y, sample_weight : arrays
    options : Options
    model_parts : callable, optional
        What a checkpoint's file holds beside the training: the ``to_parts`` of a model around the network.

    Returns
    -------
    History
    """
    o, model_parts = options, model_parts or network.to_parts
    rate, callbacks = positive("learning_rate", o.learning_rate), check_callbacks(o.callbacks)
    solver = "lbfgs" if isinstance(o.solver, str) and o.solver == "lbfgs" else solvers.get(o.solver)
    saved = _saved(o.resume)
    objective = Objective.of(network, o.reduction, o.l1, o.l2, o.clip)
    rows = network.rows(X, y, sample_weight, widest=solver == "lbfgs")
    plan = _plan(rows.n, o, saved)
    span = _span(o, plan, saved)
    if share("dropout", o.dropout) > 0:
        objective = replace(objective, dropout=Dropout(float(o.dropout), plan.seed))
    take = _steps_of(solver, plan, o)
    first = saved.state.step if saved else 0
    engine, reason = choose(
        o.engine, objective, rows, solver, batch_rows=plan.batch_size, steps=max(span.stop - first, 1),
        threads=o.threads, prefer=saved.history.engine if saved else None,
    )  # fmt: skip
    with contextlib.closing(engine):
        work = Work(objective, rows, solver, plan, engine, reason, rate)
        if saved is not None and saved.history.engine == engine.name and saved.model is None:
            work = work._replace(reason=saved.history.reason)
        weights, dtype = network.weights, network.dtype
        try:
            network.adopt(weights, dtype or rows.own_dtype)
            moment, history = _start(network, work, saved, callbacks, model_parts)
        except BaseException:
            network.dtype = dtype
            network.adopt(weights)
            raise
        loop = Loop(network, work, span, moment, callbacks, history, _parts(model_parts), saved is not None)
        loop.stopped = saved.stopped if saved and saved.stopped in ("callback", "converged") else ""
        with rows.backend.active():
            return loop.run(take)


def _saved(resume):
    if resume is None:
        return None
    from bpaccel.training import checkpoint  # few trainings go on

    return checkpoint.find(resume)


def _parts(model_parts):
    def parts(loop, stopped, model_only=False):
        from bpaccel.training import checkpoint

        return checkpoint.to_parts(loop, model_parts, stopped, model_only)

    return parts


def _plan(n, options, saved):
    size = n if options.batch_size is None else min(whole("batch_size", options.batch_size), n)
    seed = checked_seed(options.seed)
    if seed is None:
        seed = saved.state.plan["seed"] if saved else int(np.random.SeedSequence().generate_state(1)[0])
    return Plan(n, size, flag("shuffle", options.shuffle), seed)


def _span(options, plan, saved):
    """To which step, with which rows: a `History` is gone on with for further steps, a file to the end of the whole."""
    steps, epochs = options.steps, options.epochs
    if (steps is None) == (epochs is None):
        raise ValueError(f"give exactly one of `steps` (updates) and `epochs`; got steps={steps!r}, epochs={epochs!r}.")
    count = whole("steps", steps) if epochs is None else whole("epochs", epochs) * plan.steps_per_epoch
    every = -(-count // 100) if options.record_every is None else whole("record_every", options.record_every)
    if saved is None:
        return Span(count, every)
    if saved.every is None:
        return Span(saved.state.step + count, every)
    if count < saved.state.step:
        raise ValueError(f"`steps` or `epochs` must be those of the whole training, of which the checkpoint has done "
                         f"{saved.state.step} steps; got {count} steps.")  # fmt: skip
    return Span(count, saved.every if options.record_every is None else every)


def _steps_of(solver, plan, options):
    """What takes the steps of a loop."""
    if solver != "lbfgs":
        return descend
    from bpaccel.training import lbfgs

    lbfgs.check_minimise(options.clip, options.dropout)
    if plan.batch_size < plan.n:
        raise ValueError("`batch_size` does not go with solver='lbfgs', which looks at all rows at once.")
    return lbfgs.Minimisation()


def _start(network, work, saved, callbacks, model_parts):
    """The moment that a training begins with, and its history so far; callbacks get the states that they had."""
    rows, rate = work.rows, work.rate

    def here(arrays):
        return [rows.backend.asarray(a, rows.dtype) for a in arrays]

    if saved is None:
        weights = here(network.weights)
        return Moment(0, weights, () if work.solver == "lbfgs" else work.solver.start(weights), rate), History()
    from bpaccel.training import checkpoint

    checkpoint.check(saved, work, network, model_parts)
    checkpoint.restore(saved, callbacks)
    state = saved.state
    if saved.model is not None:
        rate = state.rate
    history = History(**saved.history.to_dict())
    moment = Moment(state.step, here(state.weights), tuple(map(here, state.arrays)), rate, len(history), state.since)
    return moment, history
