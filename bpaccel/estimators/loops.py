"""The estimators' two ways through the rows: epochs of a solver's steps, or L-BFGS over all rows at once.

Each is set up first, where arguments may be refused, and then run.
"""

import contextlib
import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.optimize import _check_optimize_result

from bpaccel.engines.choice import choose
from bpaccel.estimators import validation
from bpaccel.estimators.epochs import Epochs, Monitor
from bpaccel.estimators.optimizer import Optimizer
from bpaccel.history import History
from bpaccel.lbfgs import check_minimise, minimise
from bpaccel.training import DivergenceError, descend, entered


class _Loop:
    """What both have: a history, the engine that was chosen for it, which the caller closes, and the weights where the
    rows are."""

    def __init__(self, estimator, network, objective, rows):
        self.estimator, self.network, self.objective, self.rows = estimator, network, objective, rows
        self.history = History()
        self.engine: Any = None

    def _choose(self, solver, batch_rows, steps):
        engine, self.history.reason = choose(
            self.estimator.engine, self.objective, self.rows, solver,
            batch_rows=batch_rows, steps=steps, threads=self.estimator.threads,
        )  # fmt: skip
        self.history.engine = engine.name
        return engine

    def _here(self, arrays):
        return [self.rows.backend.asarray(a, self.rows.dtype) for a in arrays]

    @contextlib.contextmanager
    def _running(self):
        with self.rows.backend.active(), entered(self.estimator.callbacks):
            yield


class Minimisation(_Loop):
    """L-BFGS, with the limits of scikit-learn's."""

    task = "iteration"

    def __init__(self, estimator, network, objective, rows):
        super().__init__(estimator, network, objective, rows)
        check_minimise(estimator.clip, estimator.dropout)
        _keep_indices(estimator, objective.layer_sizes)
        self.plan = Epochs(rows.n, rows.n, False, 0)
        self.engine = self._choose("lbfgs", rows.n, estimator.max_iter)

    def run(self, tasks):
        est, history = self.estimator, self.history
        options = {"maxfun": est.max_fun, "gtol": est.tol}
        with self._running():
            result = minimise(
                self.network, self._here(self.network.weights), self.engine, self.plan, step=0, stop=est.max_iter,
                every=1, callbacks=[tasks, *est.callbacks], history=history, options=options,
            )  # fmt: skip
        if history.stopped == "interrupted":
            raise KeyboardInterrupt  # as there; the weights of the last iteration are kept
        est.loss_, est.n_iter_ = history.loss[-1], history.step[-1]
        if result is not None and history.stopped != "callback":
            est.n_iter_ = _check_optimize_result("lbfgs", result, est.max_iter)
            est.loss_ = result.fun


def _keep_indices(estimator, sizes):
    """Where each matrix, then each row of intercepts, stands in scikit-learn's vector of all weights."""
    shapes = list(pairwise(sizes))
    ends = np.cumsum([*(i * o for i, o in shapes), *sizes[1:]]).tolist()
    starts = [0, *ends]
    estimator._coef_indptr = list(zip(starts, ends, shapes))
    estimator._intercept_indptr = list(zip(starts, ends))[len(shapes) :]


class Descent(_Loop):
    """Epochs, with scikit-learn's order of rows and its rules of when to stop.

    Parameters
    ----------
    Y : numpy.ndarray of shape (N, O)
        The targets of ``rows``, on the host.
    given : tuple (X, y, sample_weight), or None
        Rows of validation from the caller.
    incremental : bool
        Whether it is one epoch of `partial_fit`.
    """

    task = "epoch"

    def __init__(self, estimator, network, objective, rows, Y, given, incremental):
        super().__init__(estimator, network, objective, rows)
        est = estimator
        if est.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        self.incremental = incremental
        goes_on = incremental and hasattr(est, "_optimizer")
        self.optimizer: Any = est._optimizer if goes_on else Optimizer.of(est)
        self._check_state()
        train, self.validation = None, None
        if given is not None:
            self.validation = validation.own(est, given, objective, rows)
        elif est.early_stopping:
            train, self.validation = validation.set_aside(est, objective, rows, Y)
        self.plan = self._plan(rows.n if train is None else len(train), train)
        self.steps = (1 if incremental else est.max_iter) * self.plan.steps_per_epoch
        self.engine = self._choose(self.optimizer.solver, self.plan.batch_size, self.steps)

    def _check_state(self):
        shapes = [tuple(W.shape) for W in self.network.weights]
        for group in self.optimizer.state or ():
            if (kept := [tuple(W.shape) for W in group]) != shapes:
                raise ValueError(
                    "`coefs_` were set to other shapes than those of the last training, which `partial_fit` goes on "
                    f"with: with the intercepts as last rows they were {kept}, and are {shapes}. "
                    "Use fit with warm_start=True, which begins anew from these weights."
                )

    def _plan(self, n, rows):
        est = self.estimator
        batch_size = min(200, n) if est.batch_size == "auto" else int(est.batch_size)
        if batch_size > n:
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(message, stacklevel=6)
            batch_size = n
        # Nobody sees the order of the rows of a full batch, but what it takes from a generator that others use too.
        own = isinstance(est.random_state, (int, np.integer))
        shuffle = est.shuffle and not (own and batch_size == n)
        return Epochs(n, batch_size, shuffle, 0, self.optimizer.t, est._random_state, rows)

    def run(self, tasks):
        est, optimizer, plan, history = self.estimator, self.optimizer, self.plan, self.history
        est._optimizer, est.n_iter_ = optimizer, 0
        if not hasattr(est, "loss_curve_"):  # the fit before this one was of lbfgs
            est._begin_curves()
        if self.validation is not None and est.validation_scores_ is None:
            # Of the epochs before this one there is nothing to know.
            est.validation_scores_ = [math.nan] * len(est.loss_curve_)
            est.validation_loss_curve_ = list(est.validation_scores_)
            est.best_validation_score_, est._best_weights = -math.inf, self.network.weights
        monitor = Monitor(est, optimizer, self.objective, plan, self.validation, tasks)
        weights = self._here(self.network.weights)
        state = optimizer.solver.start(weights) if optimizer.state is None else map(self._here, optimizer.state)
        with self._running():
            tasks.begin()
            try:
                descend(
                    self.network, weights, self.engine, optimizer.solver, plan, step=optimizer.t,
                    stop=optimizer.t + self.steps, rate=optimizer.rate, every=plan.steps_per_epoch,
                    first_row=optimizer.t + plan.steps_per_epoch - 1, callbacks=[monitor, *est.callbacks],
                    history=history, arrays=tuple(state),
                )  # fmt: skip
                optimizer.state = history.state.arrays  # type: ignore[union-attr]
            except DivergenceError as error:
                if not est.early_stopping:
                    raise
                monitor.record(math.nan, None)
                message = f"Training diverged, and the best weights are restored: {error}"
                warnings.warn(message, ConvergenceWarning, stacklevel=5)
        if history.stopped == "interrupted":
            warnings.warn("Training interrupted by user.", stacklevel=5)
        elif history.stopped == "steps" and not self.incremental:
            message = (
                f"Stochastic Optimizer: Maximum iterations ({est.max_iter}) reached and the optimization hasn't "
                "converged yet."
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=5)
        if est.early_stopping:
            self.network.weights = est._best_weights
