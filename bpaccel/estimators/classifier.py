"""MLPClassifier: which class a row belongs to."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from bpaccel.backends import backend_of
from bpaccel.estimators import door, validation
from bpaccel.estimators.base import BaseMLP


class MLPClassifier(ClassifierMixin, BaseMLP):
    """A multilayer perceptron that says which class a row belongs to.

    scikit-learn's estimator of that name, on our engines: the same parameters, attributes and, on NumPy arrays in
    float64, the same numbers. X may be of any array library; what is fitted, and the predictions, are then where X is.
    It minimises the log loss, over a logistic output for two classes or several labels a row, else over softmax.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Units of each hidden layer.
    activation : str, Activation or list of them
        Of all hidden layers, or of each: logistic (or sigmoid), tanh, relu, identity, leaky_relu, elu, softplus, exp.
    solver : {"lbfgs", "sgd", "adam", "adamw", "rmsprop"} or Solver
        lbfgs looks at all rows at once; an instance brings hyperparameters of its own. adamw lets the weights decay at
        a rate of 0.01 beside the penalty ``alpha``: set that to 0 for the decay alone, and its rate with
        ``AdamW(weight_decay=...)``.
    alpha : float
        The L2 penalty of the weights without the intercepts; divided by the weight of a batch's rows, as their loss.
    batch_size : int or "auto"
        Rows of a step; ``"auto"`` is 200, or all if there are fewer. Not for lbfgs.
    learning_rate : {"constant", "invscaling", "adaptive"}
        Of sgd: as it is; divided by ``(rows seen + 1) ** power_t`` after each epoch; or divided by 5 whenever
        ``n_iter_no_change`` epochs in a row brought no gain of ``tol``, until it is 1e-6.
    learning_rate_init : float
    power_t : float
    max_iter : int
        The most epochs; of lbfgs, iterations.
    shuffle : bool
        Whether each epoch takes the rows in a new order.
    random_state : int, numpy.random.RandomState or None
        Of the weights, of the rows that early stopping sets aside, and of the order of rows.
    tol : float
        What counts as a gain; of lbfgs, the greatest gradient at which it has converged.
    verbose : bool or int
        Whether to print a line an epoch.
    warm_start : bool
        Whether `fit` goes on from the weights of the last one, with its hidden layers and in its dtype.
    momentum : float
    nesterovs_momentum : bool
        Of sgd.
    early_stopping : bool
        Whether to stop by the score on rows that are not trained on, and to restore the weights of the best.
    validation_fraction : float
        The share of the rows that early stopping sets aside, unless `fit` is given its own.
    beta_1, beta_2, epsilon : float
        Of adam and adamw; epsilon of rmsprop too.
    n_iter_no_change : int
        How many epochs without gain end the training.
    max_fun : int
        The most looks at the loss of lbfgs.
    class_weight : dict, list of dicts, "balanced" or None
        How much rows of each class count.
    l1 : float
        The penalty ``l1 * sum |W|`` beside that of ``alpha``.
    clip : float or None
        The greatest length of an update, over all weights together.
    dropout : float
        The share of the hidden units that are silent in each step; see `bpaccel.dropout`. Not for lbfgs.
    callbacks : sequence of callable
        Each is called with a `Progress` at each epoch; True ends the training. `bpaccel.callbacks` has
        some; targets given to them, or to the network that they see, are as for `fit`. scikit-learn's own callbacks
        (``sklearn.callback``) go to ``set_callbacks``; `fit` tells them of each epoch.
    engine : str or type
        How to compute, see `bpaccel.Network.train`; ``history_.reason`` says why the automatic choice was made.
    threads : int or None

    Attributes
    ----------
    classes_ : array of shape (C,)
        Where X was; text, and numbers that are not to be had there, on the host.
    coefs_, intercepts_ : list of arrays of shapes (I, O) and (O,)
        Where X was. May be set.
    loss_ : float
        Of the last epoch, penalty included.
    loss_curve_ : list of float
        Of each epoch. Not for lbfgs, nor are those below.
    best_loss_ : float or None
        None with early stopping.
    validation_scores_, validation_loss_curve_ : list of float, or None
        Of each epoch, if there are rows to validate on, else nan if an earlier or later fit had some; the loss is
        without the penalty.
    best_validation_score_ : float or None
    n_iter_, t_ : int
        Epochs (iterations of lbfgs), and rows seen in all.
    n_features_in_, n_layers_, n_outputs_ : int
    feature_names_in_ : numpy.ndarray of str
        If X was a DataFrame.
    out_activation_ : {"softmax", "logistic"}
    history_ : History
        A row for each epoch of the last training, with its times and the engine that ran.
    """

    _peer: ClassVar = neural_network.MLPClassifier
    _parameter_constraints: ClassVar[dict] = {
        **BaseMLP._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }
    loss = "log_loss"

    def __init__(self, hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001, batch_size="auto",
                 learning_rate="constant", learning_rate_init=0.001, power_t=0.5, max_iter=200, shuffle=True,
                 random_state=None, tol=1e-4, verbose=False, warm_start=False, momentum=0.9, nesterovs_momentum=True,
                 early_stopping=False, validation_fraction=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8,
                 n_iter_no_change=10, max_fun=15000, class_weight=None, l1=0.0, clip=None, dropout=0.0, callbacks=(),
                 engine="auto", threads=None):  # fmt: skip
        self._keep_parameters(locals())

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None, resume=None):
        """Learn from rows of which the class is known.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)
            Of any array library; everything follows it.
        y : array or list of shape (N,) or (N, O)
            Class labels, or zeros and ones of shape (N, O) for several labels a row.
        sample_weight : array of shape (N,), optional
            How much each row counts.
        X_val, y_val, sample_weight_val : optional
            Rows that are not trained on, with targets of the same kind: their loss and score are kept for each epoch,
            and with ``early_stopping=True`` they decide when to stop, in place of a part of X.
        resume : History, str or Path, optional
            What to go on with, as if it had never stopped: ``history_`` of this estimator's last `fit`, for
            ``max_iter`` further epochs; or the file that `bpaccel.callbacks.Checkpoint` wrote of a fit of the same
            rows and parameters, to the end of its ``max_iter`` epochs.

        Returns
        -------
        self
        """
        given = validation.given(self, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, given, resume=resume)

    @available_if(lambda self: self._is_stochastic())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Go once over some rows, on from where the weights are.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)
        y : array or list of shape (N,) or (N, O)
        sample_weight : array of shape (N,), optional
        classes : array of shape (C,), optional
            All classes that will ever come; needed the first time.

        Returns
        -------
        self
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' does not go with partial_fit, which never sees all rows. "
                             "Use sklearn.utils.compute_class_weight, and give a dict.")  # fmt: skip
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def predict(self, X):
        """The class of each row.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)

        Returns
        -------
        array of shape (N,) or (N, O)
            Where X is; on the host if ``classes_`` are.
        """
        return self._labels(self._outputs(X, "predict"))

    def predict_proba(self, X):
        """The probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : array, DataFrame or sparse matrix of shape (N, I)

        Returns
        -------
        array of shape (N, C)
            Where X is.
        """
        outputs = self._outputs(X, "predict_proba")
        if self.n_outputs_ > 1:
            return outputs
        return backend_of(outputs).xp.concat([1.0 - outputs, outputs], axis=1)

    def predict_log_proba(self, X):
        """The logarithm of `predict_proba`, also of a subclass's own."""
        self._check_place(X, "predict_log_proba")
        probabilities = self.predict_proba(X)
        return backend_of(probabilities).xp.log(probabilities)

    def score(self, X, y, sample_weight=None):
        """The accuracy of `predict` on some rows: the share of those whose class, or whose labels, are all right.

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
        return float(accuracy_score(door.on_host(y), predicted, sample_weight=door.on_host(sample_weight)))

    def _learn_classes(self, y, classes):
        # scikit-learn's own rules and words, for classes that may be of any library.
        known = SimpleNamespace(classes_=door.on_host(getattr(self, "classes_", None)))
        if _check_partial_fit_first_call(known, door.on_host(classes)):
            y = door.on_host(y)
            multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if multilabel else known.classes_)
            self.classes_ = known.classes_

    def _learn_targets(self, y, incremental):
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        elif self.warm_start:
            classes, known = unique_labels(y), door.on_host(self.classes_)
            if set(classes) != set(known):
                raise ValueError("warm_start can only be used where `y` has the same classes as in the previous call "
                                 f"to fit. Previously got {known}, `y` has {classes}")  # fmt: skip
        else:
            self._check_classes(y)

    def _check_classes(self, y):
        classes, known = unique_labels(y), door.on_host(self.classes_)
        if len(np.setdiff1d(classes, known, assume_unique=True)):
            raise ValueError(f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has {classes}.")

    def _check_kind(self, y, name):
        kind, fitted = type_of_target(y, input_name=name), self._label_binarizer.y_type_
        kinds = ("binary", "multiclass") if not fitted.startswith("multilabel") else (fitted,)
        if kind not in kinds:
            raise ValueError(f"`{name}` must be of the kind of the `y` that was fitted, {fitted}; got {kind}.")
        if kind.startswith("multilabel"):
            self._check_columns(y, name)
        else:
            self._check_classes(y)

    def _encoded(self, y):
        return self._label_binarizer.transform(y).astype(bool)

    def _out_activation(self):
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _class_weighted(self, sample_weight, y):
        if self.class_weight is None:
            return sample_weight
        listed = isinstance(self.class_weight, list)
        if listed and (y.ndim == 1 or not all(isinstance(weights, dict) for weights in self.class_weight)):
            raise ValueError("`class_weight` must be a dict {class: weight}, 'balanced' or None; for several labels a "
                             f"row, a list of a dict for each. Got {self.class_weight!r}.")  # fmt: skip
        weight = compute_sample_weight(self.class_weight, y)
        if not np.all(weight >= 0):
            raise ValueError(f"`class_weight` must hold numbers of at least 0; got {self.class_weight!r}.")
        return weight if sample_weight is None else weight * sample_weight

    def _labels(self, outputs):
        """The classes of a network's outputs: where they are, or on the host if they are no numbers."""
        home = backend_of(outputs)
        if home.library.name == "numpy" or isinstance(self.classes_, np.ndarray):
            return self._host_labels(home.to_numpy(outputs))
        xp = home.xp
        if self.out_activation_ == "softmax":
            return xp.take(self.classes_, xp.argmax(outputs, axis=1), axis=0)
        above = outputs > 0.5
        if self._label_binarizer.y_type_.startswith("multilabel"):
            return xp.astype(above, self.classes_.dtype)
        last = self.classes_.shape[0] - 1  # there may be one class only
        return xp.where(above[:, 0], self.classes_[last], self.classes_[0])

    def _host_labels(self, outputs):
        classes = door.on_host(self.classes_)
        if self.out_activation_ == "softmax":
            return classes[outputs.argmax(axis=1)]
        if self._label_binarizer.y_type_.startswith("multilabel"):
            return self._label_binarizer.inverse_transform(outputs[:, 0] if self.n_outputs_ == 1 else outputs)
        last = len(classes) - 1  # there may be one class only
        return np.where(outputs[:, 0] > 0.5, classes[last], classes[0])

    def _score_outputs(self, outputs, y, sample_weight):
        if self.out_activation_ == "softmax":
            right = outputs.argmax(axis=1) == y.argmax(axis=1)
        else:
            right = np.all((outputs > 0.5) == (y > 0.5), axis=1)
        return np.average(right, weights=sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
