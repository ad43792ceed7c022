"""What the estimators do at each epoch: the order of its rows, the losses that they record, and when to stop.

All of it is scikit-learn's rules, so that the numbers are its own.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.utils import shuffle

from bpaccel import core
from bpaccel.history import Plan
from bpaccel.objective import Objective
from bpaccel.solvers import Adam, Solver

READ_ROWS = 2**14  # rows of the validation data that are looked at together


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


@dataclass
class Optimizer:
    """Where a training stands beside the weights: what `partial_fit` goes on from.

    Attributes
    ----------
    solver : Solver
    rate_init, power_t : float
    schedule : {"constant", "invscaling", "adaptive"}
    rate : float
        What the next epoch's steps are multiplied with.
    t : int
        Steps taken.
    state : tuple of lists of arrays, or None
        The solver's, where the rows were.
    """

    solver: Solver
    rate_init: float
    schedule: str = "constant"
    power_t: float = 0.5
    rate: float = field(init=False)
    t: int = 0
    state: Any = None

    def __post_init__(self):
        self.rate = float(self.rate_init)

    @property
    def learning_rate(self):
        """The rate, as scikit-learn shows it: Adam's with the correction of its first steps."""
        if isinstance(self.solver, Adam) and self.t:
            return self.rate * math.sqrt(1 - self.solver.beta_2**self.t) / (1 - self.solver.beta_1**self.t)
        return self.rate

    def end_epoch(self, rows_seen):
        """Lower the rate as the schedule has it, after so many rows in all."""
        if self.schedule == "invscaling":
            self.rate = self.rate_init / (rows_seen + 1) ** self.power_t

    def stop(self, why, verbose):
        """Whether to stop, as nothing improves; if not, with a smaller rate."""
        adaptive = self.schedule == "adaptive"
        stop = not adaptive or self.rate <= 1e-6
        if not stop:
            self.rate /= 5.0
        if verbose:
            what = f"Setting learning rate to {self.rate:f}" if not stop else "Stopping."
            print(f"{why} {'Learning rate too small. ' if stop and adaptive else ''}{what}")
        return stop


class Validation:
    """Rows that are not trained on, to be scored after each epoch.

    Parameters
    ----------
    objective : Objective
    rows : Rows
    order : numpy.ndarray of int or None
        Which of the rows; all, if None.
    score : callable
        ``(outputs, y, sample_weight) -> float``, of NumPy arrays of shapes (n, O), (n, O) and (n,) or None.
    """

    def __init__(self, objective, rows, order, score):
        self.objective, self.rows, self.order, self._score = objective, rows, order, score
        self.n = rows.n if order is None else len(order)

    def look(self, weights):
        """The loss, without the penalty, and the score."""
        to_numpy, xp = self.rows.backend.to_numpy, self.rows.backend.xp
        totals = np.zeros(4)
        parts: list[tuple] = []
        for at in range(0, self.n, READ_ROWS):
            X, y, w = self.rows.read(at, min(at + READ_ROWS, self.n), self.order)
            outputs = core.forward(weights, X, self.objective.activations)[-1]
            value = self.objective.loss.value(y, outputs, xp)
            totals[0] += X.shape[0] if w is None else float(xp.sum(w))
            totals[1] += float(xp.sum(value if w is None else value * w[:, None]))
            parts.append((to_numpy(outputs), to_numpy(y), None if w is None else to_numpy(w)))
        outputs, y, w = zip(*parts)
        outputs, y = np.concatenate(outputs), np.concatenate(y)
        w = None if w[0] is None else np.concatenate(w)
        score = float(self._score(outputs, y, w)) if np.all(np.isfinite(outputs)) else math.nan
        return float(self.objective.value(totals)) if totals[0] > 0 else math.nan, score


class Monitor:
    """A callback of the training loop that keeps an estimator's records after each epoch, and says when to stop.

    Parameters
    ----------
    estimator : BaseMLP
    optimizer : Optimizer
    objective : Objective
    plan : Epochs
    validation : Validation or None
    stop_early : bool
        Whether the validation's score decides, instead of the training's loss.
    """

    def __init__(self, estimator, optimizer, objective, plan, validation, stop_early):
        self.estimator, self.optimizer, self.objective = estimator, optimizer, objective
        self.plan, self.validation, self.stop_early = plan, validation, stop_early
        self._sizes = plan.sizes()

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
        if not self.stop_early:
            gained = not loss > est.best_loss_ - est.tol
            if loss < est.best_loss_:
                est.best_loss_ = loss
        est._no_improvement_count = 0 if gained else est._no_improvement_count + 1
