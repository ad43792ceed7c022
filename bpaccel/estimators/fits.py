"""The two ways of a fit through the rows: epochs of a solver's steps, or L-BFGS over all rows at once.

A fit is the first callback of the training loop: it keeps the estimator's records at each epoch, and says when to stop,
by scikit-learn's rules. What the loop needs to go on is its `Optimizer`, and what else it needs is its `state`. It is
set up first, where arguments may be refused, and then run.
"""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.optimize import _check_optimize_result

from bpaccel.backends import backend_of
from bpaccel.engines.choice import choose
from bpaccel.estimators.door import on_host
from bpaccel.estimators.epochs import Epochs
from bpaccel.training import checkpoint
from bpaccel.training.callback import Callback
from bpaccel.training.descent import descend
from bpaccel.training.history import History
from bpaccel.training.lbfgs import Minimisation, check_minimise
from bpaccel.training.loop import DivergenceError, Loop, Moment, Span, Work


class Fit(Callback):
    """What both have.

    Parameters
    ----------
    estimator : BaseMLP
        Gets the records, under scikit-learn's public names.
    network : Network
        With the weights to begin with.
    rows : Rows
    keep : callable
        ``(weights)``: gives the estimator the weights of the moment, so that it can be asked while it is fitted.
    saved : Saved or None
        The fit that goes on.

    Attributes
    ----------
    warnings : list of tuple (message, category)
        For the one who called `fit`.
    best_weights : list of arrays
        Those of the best score on rows of validation.
    first : int
        The step that it begins with.
    stopping : bool
        Whether it has said at the last row that the training is to stop.
    """

    task = ""  # what scikit-learn's callbacks are told that a row is

    def __init__(self, estimator, network, rows, keep, saved):
        self.estimator, self.network, self.rows, self.keep, self.saved = estimator, network, rows, keep, saved
        self.warnings: list[tuple] = []
        self.best_weights: Any = network.weights
        self.stopping = False
        self.first: int | None = None
        self.loop: Any = None

    @property
    def resumed(self):
        """Whether it goes on with an earlier training, as callbacks are told."""
        return self.saved is not None

    @property
    def history(self):
        return self.loop.history

    @property
    def engine(self):
        return self.loop.work.engine

    def begin(self, progress, resumed):
        self.keep(progress.network.weights)

    def state(self):
        classes = getattr(self.estimator, "classes_", None)
        return {"classes": None if classes is None else on_host(classes).tolist()}

    def restore(self, state):
        if (classes := Fit.state(self)["classes"]) != state["classes"]:
            raise ValueError(f"`resume` must go on with the same classes: they were {state['classes']}, and `y` has "
                             f"{classes}.")  # fmt: skip

    def __call__(self, progress):
        self.keep(progress.network.weights)

    def _set_up(self, objective, solver, plan, span, moment):
        """The loop, for the arguments of a fit that is new; one that goes on begins where the earlier one stood."""
        est, saved = self.estimator, self.saved
        engine, reason = choose(
            est.engine, objective, self.rows, solver, batch_rows=plan.batch_size, steps=span.stop - moment.step,
            threads=est.threads, prefer=saved.history.engine if saved else None,
        )  # fmt: skip
        work, history = Work(objective, self.rows, solver, plan, engine, reason), History()
        if saved is not None:
            checkpoint.check(saved, work, self.network)
            state, history = saved.state, History(**saved.history.to_dict())
            moment = Moment(state.step, self._here(state.weights), tuple(map(self._here, state.arrays)), state.rate,
                            len(history), state.since)  # fmt: skip
        if span.stop < moment.step:
            raise ValueError(f"`max_iter` must be that of the whole fit, of which the checkpoint has done "
                             f"{moment.step} steps; got {span.stop} steps.")  # fmt: skip
        self.loop = Loop(self.network, work, span, moment, [self], history, self._parts, self.resumed)
        self.first = moment.step
        if saved is not None and saved.stopped in ("callback", "converged"):
            self.loop.stopped = saved.stopped

    def _parts(self, loop, stopped, model_only=False):
        return checkpoint.to_parts(loop, self.network.to_parts, stopped, model_only)

    def _here(self, arrays, owner=None):
        return [self.rows.backend.asarray(a, self.rows.dtype, owner) for a in arrays]

    def _weights(self):
        """The weights to begin with, in the dtype of the rows; they are where the rows are."""
        return self._here(self.network.weights, self.rows.backend.library)

    def add(self, callbacks):
        """Take the other callbacks; each of them gets the state that it had in the fit that goes on."""
        self.loop.callbacks = [self, *callbacks]
        if self.saved is not None:
            checkpoint.restore(self.saved, self.loop.callbacks)

    def _run(self, take):
        with self.rows.backend.active():
            self.loop.run(take)


class LbfgsFit(Fit):
    """L-BFGS, with the limits of scikit-learn's.

    Attributes
    ----------
    coef_indptr, intercept_indptr : list
        Where each matrix, and each row of intercepts, stands in scikit-learn's vector of all weights.
    """

    task = "iteration"

    def __init__(self, estimator, network, rows, keep, saved):
        super().__init__(estimator, network, rows, keep, saved)
        shapes = list(pairwise(network.layer_sizes))
        ends = np.cumsum([*(i * o for i, o in shapes), *network.layer_sizes[1:]]).tolist()
        starts = [0, *ends]
        self.coef_indptr = list(zip(starts, ends, shapes))
        self.intercept_indptr = list(zip(starts, ends))[len(shapes) :]

    def set_up(self, objective):
        est, n = self.estimator, self.rows.n
        check_minimise(est.clip, est.dropout)
        moment = Moment(0, self._weights(), (), 1.0)
        further = self.saved.state.step if self.saved and self.saved.every is None else 0
        self._set_up(objective, "lbfgs", Epochs(n, n, False, 0, None), Span(further + est.max_iter, 1), moment)

    def run(self):
        est = self.estimator
        minimisation = Minimisation({"maxfun": est.max_fun, "gtol": est.tol})
        self._run(minimisation)
        history, result = self.history, minimisation.result
        if history.stopped == "interrupted":
            raise KeyboardInterrupt  # as there; the weights of the last iteration are kept
        est.loss_, est.n_iter_ = history.loss[-1], history.step[-1]
        if result is not None and history.stopped != "callback":
            before = history.step[-1] - result.nit
            est.n_iter_ = before + _check_optimize_result("lbfgs", result, est.max_iter)
            est.loss_ = result.fun


class StochasticFit(Fit):
    """Epochs, with scikit-learn's order of rows and its rules of when to stop.

    Parameters
    ----------
    optimizer : Optimizer
        Where the training stands.
    random : numpy.random.RandomState
    incremental : bool
        Whether it is one epoch of `partial_fit`.
    """

    task = "epoch"

    def __init__(self, estimator, network, rows, keep, saved, *, optimizer, random, incremental):
        super().__init__(estimator, network, rows, keep, saved)
        if estimator.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        self.optimizer, self.random, self.incremental = optimizer, random, incremental
        self.stop_early = estimator.early_stopping  # the validation's score decides, instead of the training's loss
        self.no_improvement, self.validation, self.split = 0, None, None
        self._check_state()

    @property
    def resumed(self):
        return super().resumed or (self.incremental and self.optimizer.t > 0)

    def _check_state(self):
        shapes = [tuple(W.shape) for W in self.network.weights]
        for group in self.optimizer.state or ():
            if (kept := [tuple(W.shape) for W in group]) != shapes:
                raise ValueError(
                    "`coefs_` were set to other shapes than those of the last training, which `partial_fit` goes on "
                    f"with: with the intercepts as last rows they were {kept}, and are {shapes}. "
                    "Use fit with warm_start=True, which begins anew from these weights."
                )

    def set_up(self, objective, validation, split):
        """Choose an engine.

        Parameters
        ----------
        objective : Objective
        validation : Validation or None
            Rows that are not trained on.
        split : tuple (train, kept) of numpy.ndarray of int, or None
            Which rows were set aside, if some were.
        """
        est, optimizer = self.estimator, self.optimizer
        self.validation, self.split = validation, split
        train = None if split is None else split[0]
        plan = self.plan = self._plan(self.rows.n if train is None else len(train), train)
        further = optimizer.t if self.saved is None or self.saved.every is None else 0
        steps = (1 if self.incremental else est.max_iter) * plan.steps_per_epoch
        span = Span(further + steps, plan.steps_per_epoch, plan.first + plan.steps_per_epoch - 1)
        weights = self._weights()
        state = optimizer.solver.start(weights) if optimizer.state is None else map(self._here, optimizer.state)
        self._set_up(
            objective, optimizer.solver, plan, span, Moment(optimizer.t, weights, tuple(state), optimizer.rate)
        )
        self._sizes = plan.sizes()

    def _plan(self, n, rows):
        est = self.estimator
        batch_size = min(200, n) if est.batch_size == "auto" else int(est.batch_size)
        if batch_size > n:
            self.warnings.append(
                ("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", UserWarning)
            )
            batch_size = n
        # Nobody sees the order of the rows of a full batch, but what it takes from a generator that others use too.
        own = isinstance(est.random_state, (int, np.integer))
        shuffle = bool(est.shuffle) and not (own and batch_size == n)
        optimizer = self.optimizer
        first = (optimizer.t, optimizer.epochs) if self.saved is None else optimizer.first
        plan = Epochs(n, batch_size, shuffle, first[0], self.random, rows, first[1])
        if self.saved is not None and optimizer.order is not None:
            plan.go_on(*optimizer.order)
        optimizer.first = first
        return plan

    def run(self):
        est = self.estimator
        if self.saved is None:
            self._begin_records()
        try:
            self._run(descend)
        except DivergenceError as error:
            if not est.early_stopping:
                raise
            message = f"Training diverged, and the best weights are restored: {error}"
            self.warnings.append((message, ConvergenceWarning))
        if self.history.stopped == "interrupted":
            self.warnings.append(("Training interrupted by user.", UserWarning))
        elif self.history.stopped == "steps" and not self.incremental:
            message = (
                f"Stochastic Optimizer: Maximum iterations ({est.max_iter}) reached and the optimization hasn't "
                "converged yet."
            )
            self.warnings.append((message, ConvergenceWarning))

    def _begin_records(self):
        est = self.estimator
        est.n_iter_ = 0
        if not hasattr(est, "loss_curve_"):  # the fit before this one was of lbfgs
            begin_curves(est)
        if self.validation is not None and est.validation_scores_ is None:
            # Of the epochs before this one there is nothing to know.
            est.validation_scores_ = [math.nan] * len(est.loss_curve_)
            est.validation_loss_curve_ = list(est.validation_scores_)
            est.best_validation_score_, self.best_weights = -math.inf, self.network.weights
        if not self.stop_early and est.best_loss_ is None:  # the fit before this one went by the score
            est.best_loss_ = math.inf

    def __call__(self, progress):
        super().__call__(progress)
        est, optimizer = self.estimator, self.optimizer
        optimizer.keep(self.loop.moment, self.plan)
        weighted = progress.totals[:, 0] > 0  # the rows of a batch may all weigh nothing
        objective = self.loop.work.objective
        losses = np.where(weighted, objective.value(np.where(weighted[:, None], progress.totals, 1.0)), 0.0)
        # By rows, not by weights, as scikit-learn does.
        self._record(float(np.sum(losses * self._sizes) / self.plan.n), progress.network.weights)
        stop, rate = False, optimizer.rate_after(est.t_, progress.rate)
        if self.no_improvement > est.n_iter_no_change:
            what = "Validation score" if self.stop_early else "Training loss"
            stop, rate = optimizer.stop(
                f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} consecutive epochs.",
                rate, est.verbose,
            )  # fmt: skip
            if not stop:
                self.no_improvement = 0
        progress.rate, self.stopping = rate, stop
        optimizer.rate = rate  # for a copy of the estimator that another callback makes
        return stop

    def ahead(self):
        """The epochs that cannot be the last, nor change the rate."""
        est = self.estimator
        if self.validation is not None or self.optimizer.lr_schedule == "invscaling" or est.verbose:
            return 1
        return int(min(max(1, est.n_iter_no_change + 1 - self.no_improvement), est.max_iter))

    def end(self, progress, how):
        self.plan.rewind(self.loop.moment.step)
        self.optimizer.keep(self.loop.moment, self.plan)
        if self.stop_early:
            if how == "diverged":
                self._record(math.nan, None)
            progress.network.weights = self.best_weights
        self.keep(progress.network.weights)

    def _record(self, loss, weights):
        """Keep an epoch's loss and score, and count the epochs without gain; no weights where they are not finite."""
        est = self.estimator
        est.n_iter_ += 1
        est.t_ += self.plan.n
        est.loss_ = loss
        est.loss_curve_.append(loss)
        if est.verbose:
            print(f"Iteration {est.n_iter_}, loss = {loss:.8f}")
        if self.validation is not None:
            validation_loss, score = (math.nan, math.nan) if weights is None else self.validation.look(weights)
            est.validation_loss_curve_.append(validation_loss)
            est.validation_scores_.append(score)
            if est.verbose:
                print(f"Validation score: {score:f}")
            gained = not score < est.best_validation_score_ + est.tol
            if score > est.best_validation_score_:
                est.best_validation_score_, self.best_weights = score, weights
        elif est.validation_scores_ is not None:  # of an earlier fit: an entry for each epoch, as in the loss curve
            est.validation_loss_curve_.append(math.nan)
            est.validation_scores_.append(math.nan)
        if not self.stop_early:
            gained = not loss > est.best_loss_ - est.tol
            if loss < est.best_loss_:
                est.best_loss_ = loss
        self.no_improvement = 0 if gained else self.no_improvement + 1

    def state(self):
        est, found = self.estimator, super().state() | {"no_improvement": self.no_improvement}
        for name in RECORDS:
            found[name] = getattr(est, name, None)
        for name in CURVES:
            curve = getattr(est, name)
            found[name] = None if curve is None else np.array(curve, np.float64)
        for k, W in enumerate(self.best_weights):
            found[f"best.{k}"] = backend_of(W).to_numpy(W)
        if self.split is not None:
            found["train"], found["kept"] = self.split
        if (last := self.plan.last()) is not None:
            found["epoch"], found["order"] = last
        dropout = self.loop.work.objective.dropout
        found["dropout_seed"] = None if dropout is None else dropout.seed
        found["rules"] = json.dumps(self.optimizer.rules)
        return found | generator_state(self.random)

    def restore(self, state):
        super().restore(state)
        est = self.estimator
        self.no_improvement = state["no_improvement"]
        for name in RECORDS:
            setattr(est, name, state[name])
        for name in CURVES:
            setattr(est, name, None if state[name] is None else state[name].tolist())
        self.best_weights = self._here([state[f"best.{k}"] for k in range(len(self.best_weights))])


# The estimator's records, under their own names, that a fit which goes on takes over.
RECORDS = ("n_iter_", "t_", "loss_", "best_loss_", "best_validation_score_")
CURVES = ("loss_curve_", "validation_scores_", "validation_loss_curve_")


def begin_curves(estimator):
    """The records of an estimator before its first epoch."""
    estimator.loss_curve_ = []
    estimator.best_loss_ = None if estimator.early_stopping else math.inf
    estimator.validation_scores_ = estimator.validation_loss_curve_ = estimator.best_validation_score_ = None


def generator_state(random):
    """The state of a RandomState, as a callback's state holds it."""
    kind, keys, *numbers = random.get_state(legacy=True)
    if kind != "MT19937":
        raise ValueError(f"`random_state` of a fit with a checkpoint must be a seed, or a RandomState of MT19937; "
                         f"got one of {kind}.")  # fmt: skip
    return {"random": keys, "random_at": list(numbers)}


def set_generator(random, state):
    """Give a RandomState what `generator_state` returned."""
    random.set_state(("MT19937", state["random"], *state["random_at"]))
