"""What the estimators do at each epoch: the order of its rows, the losses that they record, and when to stop.

All of it is scikit-learn's rules, so that the numbers are its own.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.utils import shuffle

from bpaccel.history import Plan
from bpaccel.objective import Objective


@dataclass(frozen=True)
class PerOutput(Objective):
    """The objective as scikit-learn reports the squared error of several outputs: divided by their number, while the
    gradient is not."""

    def value(self, totals):
        return super().value(totals * np.array([1.0, 1.0 / self.layer_sizes[-1], 1.0, 1.0]))


@dataclass(frozen=True)
class Epochs(Plan):
    """scikit-learn's order of rows: each epoch shuffles the order of the one before.

    Attributes
    ----------
    random : numpy.random.RandomState
    rows : numpy.ndarray of shape (n,), or None
        The rows that are trained on, if not all are.
    """

    random: Any = None
    rows: Any = None
    drawn: dict = field(default_factory=dict, compare=False, repr=False)

    def order(self, epoch):
        if not self.shuffle:
            return self.rows
        if epoch not in self.drawn:
            before = self.drawn.get(epoch - 1)
            self.drawn[epoch] = shuffle(np.arange(self.n) if before is None else before, random_state=self.random)
            # A step that diverged is looked for in the last two epochs.
            self.drawn.pop(epoch - 3, None)
        if self.batch_size >= self.n:
            return self.rows
        order = self.drawn[epoch]
        return order if self.rows is None else self.rows[order]

    def sizes(self):
        """Rows of each batch of an epoch."""
        _, starts, stops = self.batches(self.first, self.first + self.steps_per_epoch, None)
        return stops - starts


class Monitor:
    """A callback of the training loop that keeps an estimator's records after each epoch, and says when to stop.

    Parameters
    ----------
    estimator : BaseMLP
    optimizer : Optimizer
    objective : Objective
    plan : Epochs
    validation : Validation or None
    tasks : Tasks
        Gets to know of each epoch.
    """

    def __init__(self, estimator, optimizer, objective, plan, validation, tasks):
        self.estimator, self.optimizer, self.objective = estimator, optimizer, objective
        self.plan, self.validation, self.tasks = plan, validation, tasks
        self.stop_early = estimator.early_stopping  # the validation's score decides, instead of the training's loss
        self._sizes = plan.sizes()
        if not self.stop_early and estimator.best_loss_ is None:  # the fit before this one went by the score
            estimator.best_loss_ = math.inf

    def __call__(self, progress):
        est, optimizer = self.estimator, self.optimizer
        optimizer.t, optimizer.rate = progress.step + 1, progress.rate
        weighted = progress.totals[:, 0] > 0  # the rows of a batch may all weigh nothing
        losses = np.where(weighted, self.objective.value(np.where(weighted[:, None], progress.totals, 1.0)), 0.0)
        # By rows, not by weights, as scikit-learn does.
        self.record(float(np.sum(losses * self._sizes) / self.plan.n), progress.network.weights)
        optimizer.end_epoch(est.t_)
        stop = False
        if est._no_improvement_count > est.n_iter_no_change:
            what = "Validation score" if self.stop_early else "Training loss"
            stop = optimizer.stop(
                f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} consecutive epochs.",
                est.verbose,
            )
            if not stop:
                est._no_improvement_count = 0
        progress.rate = optimizer.rate
        stop = self.tasks.end() or stop
        if not stop:
            self.tasks.begin()
        return stop

    def record(self, loss, weights):
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
                est.best_validation_score_, est._best_weights = score, weights
        elif est.validation_scores_ is not None:  # of an earlier fit: an entry for each epoch, as in the loss curve
            est.validation_loss_curve_.append(math.nan)
            est.validation_scores_.append(math.nan)
        if not self.stop_early:
            gained = not loss > est.best_loss_ - est.tol
            if loss < est.best_loss_:
                est.best_loss_ = loss
        est._no_improvement_count = 0 if gained else est._no_improvement_count + 1
