"""BaseMLP: what the classifier and the regressor have in common, which is nearly all."""

import contextlib
import json
import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted

from bpaccel import activations, losses
from bpaccel.activations import ACTIVATIONS, Activation
from bpaccel.backends import dtype_name
from bpaccel.data import check_targets, float_dtype
from bpaccel.dropout import Dropout
from bpaccel.engines.blocked import feed
from bpaccel.estimators import convert, door, validation
from bpaccel.estimators.epochs import PerOutput
from bpaccel.estimators.fits import LbfgsFit, StochasticFit, begin_curves, set_generator
from bpaccel.estimators.fitted import Fitted
from bpaccel.estimators.network import EstimatorNetwork
from bpaccel.estimators.optimizer import Optimizer, solver_of
from bpaccel.estimators.tasks import CallbackSupportMixin, SklearnCallbacks
from bpaccel.objective import Objective
from bpaccel.solvers import Solver, described
from bpaccel.training import DivergenceError, checkpoint
from bpaccel.training.callback import check_callbacks

# scikit-learn's name of ours.
TO_OURS = {"logistic": "sigmoid"}
HIDDEN = ("identity", "logistic", *(name for name, f in ACTIVATIONS.items() if f.slope is not None))


class BaseMLP(CallbackSupportMixin, Fitted, ABC):
    """The estimators' common part; use `MLPClassifier` or `MLPRegressor`."""

    _peer: ClassVar[Any]  # scikit-learn's own class

    _parameter_constraints: ClassVar[dict] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(HIDDEN)), Activation, list, tuple],
        "solver": [StrOptions({"lbfgs", "sgd", "adam", "adamw", "rmsprop"}), Solver],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "l1": [Interval(Real, 0, None, closed="left")],
        "clip": [Interval(Real, 0, None, closed="neither"), None],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "callbacks": [list, tuple],
        "engine": [str, type],
        "threads": [Interval(Integral, 1, None, closed="left"), None],
    }

    def _keep_parameters(self, values):
        """Set the parameters from the ``locals()`` of an ``__init__``, which may be that of a base class."""
        for name, value in values.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _learn_classes(self, y, classes):
        """Learn from the first `partial_fit` which classes there are, or check that they are still the same."""

    @abstractmethod
    def _learn_targets(self, y, incremental):
        """Learn from targets what their kind is (the classes), or check that they are of the kind that is known."""

    @abstractmethod
    def _encoded(self, y):
        """Targets for the network, of shape (N, O) or (N,), from those of the caller; both on the host."""

    @abstractmethod
    def _out_activation(self):
        """scikit-learn's name of the output activation."""

    @abstractmethod
    def _score_outputs(self, outputs, y, sample_weight):
        """The score of a network's outputs, of shape (n, O), on the host."""

    def _is_stochastic(self):
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    def _begin(self, X, y, incremental, saved=None):
        """Check rows and targets; the first time, draw the weights and set what is fitted to its start.

        Parameters
        ----------
        saved : Saved or None
            The fit that goes on.

        Returns
        -------
        X : Given
            The rows.
        y, Y : numpy.ndarray
            The targets, and these for the network, of shape (N, O).
        network : EstimatorNetwork
            With the weights to go on from.
        """
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        from_memory = saved is not None and saved.model is None
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental or from_memory)
        X, y = door.training_data(self, X, y, reset=first, y_numeric=not is_classifier(self))
        home = X.backend
        self._learn_targets(y, incremental or from_memory)
        if is_classifier(self):
            self._place_classes(home)
        Y = _columns(self._encoded(y))
        if not from_memory:
            self._random_state = check_random_state(self.random_state)
        if first:
            self.n_outputs_, self.out_activation_ = Y.shape[1], self._out_activation()
        else:
            self._check_columns(Y, "y")
            if not home.same_place(self._home()):
                self._move(home)
            weights = self._weights()
            hidden = [W.shape[1] for W in weights[:-1]]  # those of the first fit, as there
        network = EstimatorNetwork(
            [X.array.shape[1], *hidden, self.n_outputs_],
            activation=[*self._activations(len(hidden)), TO_OURS.get(self.out_activation_, self.out_activation_)],
            loss=self.loss,
            bias=True,
            init=self._init() if first else weights,
            seed=self._random_state if first else None,
            encode=self._network_targets,
        )
        check_targets(Y, network.loss_function)
        if first:
            self._initialize(network, home, float_dtype(X.array, home))
        return X, y, Y, network

    def _activations(self, count):
        given = self.activation
        single = not isinstance(given, (list, tuple))
        names = [given] * count if single else list(given)
        if len(names) != count:
            message = f"`activation` must be one name, or one for each of the {count} hidden layers; got {given!r}."
            raise ValueError(message)
        return [_activation(f) for f in names]

    def _init(self):
        """How weights are drawn: the bound that scikit-learn draws from is smaller for its logistic layers."""
        given = self.activation if isinstance(self.activation, (list, tuple)) else [self.activation]
        logistic = len(given) > 0 and all(_activation(f) is ACTIVATIONS["sigmoid"] for f in given)
        return "glorot_sigmoid" if logistic else "glorot"

    def _initialize(self, network, home, dtype):
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(network.layer_sizes)
        network.adopt([home.asarray(W, dtype) for W in network.weights])
        self._keep_weights(network.weights)
        self._best_weights = network.weights
        if self.solver != "lbfgs":
            begin_curves(self)
            self._no_improvement_count = 0

    def _network_targets(self, y, name="y"):
        """Targets for the network, of shape (N, O), from those of an argument that were not trained on."""
        y = door.on_host(y)
        self._check_kind(y, name)
        Y = _columns(np.asarray(self._encoded(y)))
        self._check_columns(Y, name)
        return Y

    def _check_kind(self, y, name):
        """Raise ValueError if targets are not of the kind, or of a class, that was learned."""

    def _check_columns(self, Y, name):
        if Y.shape[1] != self.n_outputs_:
            raise ValueError(
                f"`{name}` must have {self.n_outputs_} column(s), as the `y` that was fitted; got {Y.shape[1]}."
            )

    def initialize(self, X, y):
        """Draw the weights and set all attributes as `fit` does, without training.

        What follows may set ``coefs_`` and ``intercepts_``, and predict, or train from them: with `partial_fit`, or
        with `fit` and ``warm_start=True``.

        Parameters
        ----------
        X : array of shape (N, I)
        y : array of shape (N,) or (N, O)
            All classes must be there.

        Returns
        -------
        self
        """
        self._validate_params()
        with self._as_it_was_if_refused():
            for name in ("coefs_", "classes_", "_optimizer"):
                self.__dict__.pop(name, None)
            self._begin(X, y, incremental=False)
        return self

    def _fit(self, X, y, sample_weight=None, given=None, incremental=False, classes=None, resume=None):
        callbacks, told, before = check_callbacks(self.callbacks), (X, y, sample_weight), self.__dict__.copy()
        with self._as_it_was_if_refused():
            saved = self._saved(resume)
            if incremental:
                self._learn_classes(y, classes)
            X, y, Y, network = self._begin(X, y, incremental, saved)
            sample_weight = self._class_weighted(door.sample_weights(sample_weight, X.array.shape[0]), y)
            rows = door.rows(X, Y, sample_weight, dtype_name(network.weights[0]), widest=self.solver == "lbfgs")
            fit = self._set_up(network, rows, Y, given, incremental, saved)
            watched = not incremental and hasattr(self, "_skl_callbacks")
            fit.add([SklearnCallbacks(fit, *told), *callbacks] if watched else callbacks)
        try:
            with contextlib.closing(fit.engine):
                fit.run()
        except DivergenceError as error:
            message = (
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed. More exactly: {error}"
            )
            raise ValueError(message) from error
        except BaseException:
            if fit.loop.moment.step == fit.first:  # it failed before its first step: what was fitted before is there
                self.__dict__.clear()
                self.__dict__.update(before)
                fit.first = None
            raise
        finally:
            self._kept(network, fit)
        return self

    def _kept(self, network, fit):
        """Keep what a fit has come to; nothing where it failed before its first step."""
        if fit.first is not None:
            self._keep_weights(network.weights)
            self.history_ = fit.history
            if isinstance(fit, StochasticFit):
                self._best_weights, self._no_improvement_count = fit.best_weights, fit.no_improvement
            for message, category in fit.warnings:
                warnings.warn(message, category, stacklevel=5)

    def _saved(self, resume):
        """The fit to go on with: one of this estimator's, or one in a file."""
        saved = checkpoint.find(resume)
        if saved is not None and saved.model is None and resume is not getattr(self, "history_", None):
            raise ValueError("`resume` must be the `history_` of this estimator's last fit, or the path of a "
                             "checkpoint; got the History of another training.")  # fmt: skip
        kind = checkpoint.kind_of(LbfgsFit if self.solver == "lbfgs" else StochasticFit)
        if saved is not None and saved.model is not None and all(one[0] != kind for one in saved.callbacks):
            raise ValueError(f"`resume` must be the file of a fit of MLPClassifier or MLPRegressor with this solver, "
                             f"{self.solver}; it is of another training.")  # fmt: skip
        return saved

    def _set_up(self, network, rows, Y, given, incremental, saved):
        """The `Fit`: what draws from the random state does so in scikit-learn's order."""
        kept = saved.callbacks or () if saved is not None else ()
        own = checkpoint.kind_of(StochasticFit)
        state = next((state for kind, state, _ in kept if kind == own), None)
        if self.solver == "lbfgs":
            whole = LbfgsFit(self, network, rows, self._keep_weights, saved)
            self._coef_indptr, self._intercept_indptr = whole.coef_indptr, whole.intercept_indptr
            whole.set_up(self._objective(network, saved))
            return whole
        goes_on = hasattr(self, "_optimizer") and (incremental or (saved is not None and saved.model is None))
        optimizer = self._optimizer if goes_on else Optimizer.of(self)
        rules = self._rules(given)
        if saved is not None:
            checkpoint.same("rules of the fit", optimizer.rules if state is None else json.loads(state["rules"]), rules)
        optimizer.rules = rules
        if state is not None:
            if not isinstance(self.random_state, np.random.RandomState):
                self._random_state = np.random.RandomState(0)
            set_generator(self._random_state, state)
            optimizer.split = (state["train"], state["kept"]) if "train" in state else None
            optimizer.order = (state["epoch"], state["order"]) if "epoch" in state else None
        objective = self._objective(network, saved)
        fit = StochasticFit(self, network, rows, self._keep_weights, saved, optimizer=optimizer,
                            random=self._random_state, incremental=incremental)  # fmt: skip
        fit.best_weights, fit.no_improvement = self._best_weights, getattr(self, "_no_improvement_count", 0)
        split, kept = None, None
        if given is not None:
            kept = validation.own(self, given, objective, rows, self._network_targets, self._score_outputs)
        elif self.early_stopping:
            if saved is None:
                optimizer.split = validation.split(self, Y, self._random_state)
            split = optimizer.split
            kept = validation.Validation(objective, rows, split[1], self._score_outputs)
        fit.set_up(objective, kept, split)
        self._optimizer = optimizer
        return fit

    def _rules(self, given):
        """What else a fit that goes on must share, as JSON values: by what it is judged, and how its rate changes."""
        rows = None if given is None else len(given[0]) if hasattr(given[0], "__len__") else given[0].shape[0]
        return {
            "solver": described(solver_of(self)),
            "early_stopping": bool(self.early_stopping),
            "X_val": None if rows is None else f"{rows} rows",
            "learning_rate": self.learning_rate if self.solver == "sgd" else "constant",
            "learning_rate_init": float(self.learning_rate_init),
            "class_weight": repr(getattr(self, "class_weight", None)),
        }

    def _objective(self, network, saved):
        objective = Objective.of(network, "mean", self.l1, self.alpha, self.clip)
        if objective.loss is losses.get("squared_error") and self.n_outputs_ > 1:
            objective = PerOutput(**vars(objective))
        if self.dropout:
            before = saved.state.objective["dropout"] if saved is not None else None
            seed = int(self._random_state.randint(2**31)) if before is None else before[1]
            objective = replace(objective, dropout=Dropout(self.dropout, seed))
        return objective

    def _class_weighted(self, sample_weight, y):
        """Sample weights times those of the classes."""
        return sample_weight

    def _check_place(self, X, method):
        """Raise ValueError, in the name of a method, unless X is where this was fitted."""
        check_is_fitted(self, "coefs_")
        door.at_home(self, X, self._home(), method)

    def _outputs(self, X, method):
        """The network's outputs for X, of shape (N, O), where X is."""
        check_is_fitted(self, "coefs_")
        home = self._home()
        X = door.rows_to_predict(self, X, home, method)
        weights = self._weights()
        dtype = "float64" if "float64" in (float_dtype(X, home), dtype_name(weights[0])) else "float32"
        names = [*self._activations(len(weights) - 1), TO_OURS.get(self.out_activation_, self.out_activation_)]
        return feed([home.asarray(W, dtype) for W in weights], X, names, home, dtype)

    def to_sklearn(self):
        """A copy as scikit-learn's own class, on the host: it predicts the same, and goes on to the same numbers.

        ``validation_loss_curve_`` and ``history_``, which that class does not have, do not travel; nor do ``engine``
        and ``threads``.

        Raises
        ------
        ValueError
            If a parameter says something that scikit-learn's has no word for.
        """
        return convert.to_sklearn(self, self._peer)

    @classmethod
    def from_sklearn(cls, model):
        """A copy of scikit-learn's own class, fitted or not, as ours: it predicts the same, and goes on to the same
        numbers."""
        if not isinstance(model, cls._peer):
            raise ValueError(f"`model` must be scikit-learn's {cls._peer.__name__}; got {type(model).__name__}.")
        return convert.from_sklearn(cls, model)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags


def _activation(f):
    """The row of our table for a name of ours or of scikit-learn's; an `Activation` is returned as it is."""
    return activations.get(TO_OURS.get(f, f) if isinstance(f, str) else f)


def _columns(y):
    return y[:, None] if y.ndim == 1 else y
