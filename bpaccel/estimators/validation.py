"""Validation: rows that are not trained on, given by the caller or set aside, and what they are asked."""

import math

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import train_test_split

from bpaccel import core
from bpaccel.data import Rows, check_targets
from bpaccel.estimators import door

READ_ROWS = 2**14  # rows that are looked at together


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


def given(estimator, X, y, sample_weight):
    """What the caller gave to `fit` as validation rows: (X, y, sample_weight), or None."""
    if (X is None) != (y is None):
        raise ValueError("`X_val` and `y_val` go together: give both, or neither.")
    if X is None:
        if sample_weight is not None:
            raise ValueError("`sample_weight_val` goes with `X_val` and `y_val`: give all, or none.")
        return None
    if estimator.solver == "lbfgs":
        raise ValueError("`X_val` does not go with solver='lbfgs', which knows no epochs. Use another solver.")
    return X, y, sample_weight


def own(estimator, given, objective, rows, encode, score):
    """The `Validation` of rows that the caller gave, which must be of the kind of ``rows``, those of training.

    Parameters
    ----------
    encode : callable
        ``(y, name) -> (N, O)``: targets for the network.
    score : callable
        See `Validation`.
    """
    X, y, weight = given
    X, y = door.training_data(estimator, X, y, reset=False, y_numeric=not is_classifier(estimator))
    if estimator.early_stopping and X.array.shape[0] < 2:
        raise ValueError("`X_val` must have at least 2 rows for early_stopping=True, which goes by their score; got 1.")
    Y = encode(y, "y_val")
    check_targets(Y, objective.loss, "y_val")
    weight = door.sample_weights(weight, X.array.shape[0])
    kept = Rows(X, Y, weight, backend=rows.backend, dtype=rows.dtype)
    return Validation(objective, kept, None, score)


def split(estimator, Y, random):
    """Which rows are trained on, and which are set aside, drawn as scikit-learn draws them.

    Parameters
    ----------
    estimator : BaseMLP
    Y : numpy.ndarray of shape (N, O)
    random : numpy.random.RandomState

    Returns
    -------
    train, kept : numpy.ndarray of int
    """
    # As text, because scikit-learn names the classes so where there are too few of them.
    stratify = Y.ravel().astype(str) if is_classifier(estimator) and estimator.n_outputs_ == 1 else None
    train, kept = train_test_split(
        np.arange(len(Y)), random_state=random, test_size=estimator.validation_fraction, stratify=stratify
    )
    if len(kept) < 2:
        raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
    return train, kept
