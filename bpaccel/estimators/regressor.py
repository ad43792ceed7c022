"""MLPRegressor: which numbers belong to a row."""

from typing import ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from bpaccel import losses
from bpaccel.backends import library_of
from bpaccel.estimators import door, validation
from bpaccel.estimators.base import BaseMLP
from bpaccel.losses import Loss


class MLPRegressor(RegressorMixin, BaseMLP):
    """A multilayer perceptron that says which numbers belong to a row.

    scikit-learn's estimator of that name, on our engines: the same parameters, attributes and, on NumPy arrays in
    float64, the same numbers. X may be of any array library; what is fitted, and the predictions, are then where X is.

    Parameters
    ----------
    loss : str, Loss or pair of callables
        squared_error; poisson, over an output that is an exponential; absolute_error; ``huber:d``; ``quantile:q``; or
        your own ``(value, derivative)``, see `bpaccel.losses.get`.
    hidden_layer_sizes, activation, solver and all others
        As for `bpaccel.MLPClassifier`, which alone has ``class_weight``.

    Attributes
    ----------
    out_activation_ : {"identity", "exp"}
    coefs_, intercepts_, loss_curve_ and all others
        As for `bpaccel.MLPClassifier`, which alone has ``classes_``. Scores are R ** 2.
    """

    _peer: ClassVar = neural_network.MLPRegressor
    _parameter_constraints: ClassVar[dict] = {**BaseMLP._parameter_constraints, "loss": [str, Loss, tuple]}

    def __init__(self, loss="squared_error", hidden_layer_sizes=(100,), activation="relu", *, solver="adam",
                 alpha=0.0001, batch_size="auto", learning_rate="constant", learning_rate_init=0.001, power_t=0.5,
                 max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False, warm_start=False,
                 momentum=0.9, nesterovs_momentum=True, early_stopping=False, validation_fraction=0.1, beta_1=0.9,
                 beta_2=0.999, epsilon=1e-8, n_iter_no_change=10, max_fun=15000, l1=0.0, clip=None, dropout=0.0,
                 callbacks=(), engine="auto", threads=None):  # fmt: skip
        self._keep_parameters(locals())

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None, resume=None):
        """Learn from rows of which the numbers are known.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)
            Of any array library; everything follows it.
        y : array or list of shape (N,) or (N, O)
        sample_weight : array of shape (N,), optional
            How much each row counts.
        X_val, y_val, sample_weight_val : optional
            Rows that are not trained on, with as many numbers each: their loss and score are kept for each epoch, and
            with ``early_stopping=True`` they decide when to stop, in place of a part of X.
        resume : History, str or Path, optional
            What to go on with, as if it had never stopped: ``history_`` of this estimator's last `fit`, for
            ``max_iter`` further epochs; or the file that `bpaccel.callbacks.Checkpoint` wrote of a fit of the same
            rows and parameters, to the end of its ``max_iter`` epochs.

        Returns
        -------
        self
        """
        _refuse_text(y_val, "y_val")
        given = validation.given(self, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, given, resume=resume)

    @available_if(lambda self: self._is_stochastic())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Go once over some rows, on from where the weights are.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)
        y : array or list of shape (N,) or (N, O)
        sample_weight : array of shape (N,), optional

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X):
        """The numbers of each row.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)

        Returns
        -------
        array of shape (N,) or (N, O)
            Where X is.
        """
        outputs = self._outputs(X, "predict")
        return outputs[:, 0] if self.n_outputs_ == 1 else outputs

    def score(self, X, y, sample_weight=None):
        """R ** 2 of `predict` on some rows: 1 for the right numbers, 0 for their mean; averaged over the outputs.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)
        y : array or list of shape (N,) or (N, O)
        sample_weight : array of shape (N,), optional

        Returns
        -------
        float
        """
        self._check_place(X, "score")
        predicted = door.on_host(self.predict(X))
        return float(r2_score(door.on_host(y), predicted, sample_weight=door.on_host(sample_weight)))

    def _begin(self, X, y, incremental, saved=None):
        _refuse_text(y, "y")  # here, for behind the door text of numbers is numbers
        return super()._begin(X, y, incremental, saved)

    def _learn_targets(self, y, incremental):
        pass

    def _check_kind(self, y, name):
        _refuse_text(y, name)

    def _encoded(self, y):
        return y

    def _out_activation(self):
        return "exp" if self.loss == "poisson" or self.loss is losses.get("poisson", "exp") else "identity"

    def _score_outputs(self, outputs, y, sample_weight):
        return r2_score(y, outputs, sample_weight=sample_weight)


def _refuse_text(y, name):
    """Raise ValueError if targets are text, though it may be text of numbers."""
    if (library := library_of(y)) is not None and library.name != "numpy":
        return
    cells = np.asarray(y)
    kind = cells.dtype.kind
    if kind in "UST" or (kind == "O" and any(isinstance(cell, (str, bytes)) for cell in cells.flat)):
        raise ValueError(f"`{name}` must be numbers; got text (dtype {cells.dtype}). Make numbers of text of numbers, "
                         f"as .astype(float) does; classes are for MLPClassifier.")  # fmt: skip
