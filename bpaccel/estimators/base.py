"""BaseMLP: what the classifier and the regressor have in common, which is nearly all."""

import contextlib
import copy
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import check_is_fitted

from bpaccel.activations import ACTIVATIONS, Activation
from bpaccel.backends import BackendError, backend_of, dtype_name
from bpaccel.backends import backend as backend_of_name
from bpaccel.data import Rows, check_targets, float_dtype
from bpaccel.dropout import Dropout
from bpaccel.engines import choose
from bpaccel.estimators import convert, door
from bpaccel.estimators.epochs import Epochs, Monitor, Optimizer, PerOutput, Validation
from bpaccel.history import History
from bpaccel.network import Network, feed
from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop, Solver
from bpaccel.training import DivergenceError, descend, minimise

# scikit-learn's name of ours.
TO_OURS = {"logistic": "sigmoid"}
HIDDEN = ("identity", "logistic", *(name for name, f in ACTIVATIONS.items() if f.slope is not None))


class BaseMLP(BaseEstimator, ABC):
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

    classes_: Any  # of the classifier

    def _keep_parameters(self, values):
        for name in self._get_param_names():
            setattr(self, name, values[name])

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

    def _begin(self, X, y, incremental):
        """Check rows and targets; the first time, draw the weights and set what is fitted to its start.

        Returns
        -------
        X, y, Y
            The rows, the targets, and these for the network, of shape (N, O) and on the host.
        network : Network
            With the weights to go on from.
        """
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = door.training_data(self, X, y, reset=first, y_numeric=not is_classifier(self))
        self._learn_targets(y, incremental)
        if is_classifier(self):
            self._place_classes(backend_of(X))
        Y = _columns(self._encoded(y))
        self.n_outputs_ = Y.shape[1]
        self._random_state = check_random_state(self.random_state)
        if first:
            self.out_activation_ = self._out_activation()
        names = self._activations(len(hidden))
        # The bound that scikit-learn draws from is smaller for its logistic layers.
        init = "glorot_sigmoid" if set(names) == {"sigmoid"} else "glorot"
        network = Network(
            [X.shape[1], *hidden, self.n_outputs_],
            activation=[*names, TO_OURS.get(self.out_activation_, self.out_activation_)],
            loss=self.loss,
            bias=True,
            init=init if first else [door.on_host(W) for W in self._weights()],
            seed=self._random_state if first else None,
        )
        check_targets(Y, network.loss_function)
        if first:
            self._initialize(network, backend_of(X), X.dtype if not door.is_foreign(X) else dtype_name(X))
        return X, y, Y, network

    def _activations(self, count):
        given = self.activation
        single = not isinstance(given, (list, tuple))
        names = [given] * count if single else list(given)
        if len(names) != count:
            message = f"`activation` must be one name, or one for each of the {count} hidden layers; got {given!r}."
            raise ValueError(message)
        return [TO_OURS.get(f, f) if isinstance(f, str) else f for f in names]

    def _initialize(self, network, home, dtype):
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(network.layer_sizes)
        network.weights = [home.asarray(W, np.dtype(dtype).name) for W in network.weights]
        self._keep_weights(network.weights)
        if self.solver != "lbfgs":
            self.loss_curve_ = []
            self._no_improvement_count = 0
            self.best_loss_ = None if self.early_stopping else math.inf
            self.validation_scores_ = self.validation_loss_curve_ = self.best_validation_score_ = None

    def _keep_weights(self, weights):
        self.coefs_ = [W[:-1, :] for W in weights]
        self.intercepts_ = [W[-1, :] for W in weights]

    def _weights(self):
        """The matrices as the engines take them: the intercepts are the last row."""
        home = self._home()
        with home.active():
            pairs = zip(self.coefs_, self.intercepts_, strict=True)
            return [home.xp.concat([home.asarray(C), home.asarray(b)[None, :]], axis=0) for C, b in pairs]

    def _home(self):
        """Where the weights are: the `Backend` of the X that was fitted."""
        return backend_of(self.coefs_[0])

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
        for name in ("coefs_", "classes_", "_optimizer"):
            self.__dict__.pop(name, None)
        self._begin(X, y, incremental=False)
        return self

    def _fit(self, X, y, sample_weight=None, validation=None, incremental=False):
        X, y, Y, network = self._begin(X, y, incremental)
        home = backend_of(X)
        if validation is not None:
            X_val, y_val, weight = validation
            X_val, y_val = door.training_data(self, X_val, y_val, reset=False, y_numeric=not is_classifier(self))
            self._check_classes(y_val)
            weight = door.sample_weights(weight, X_val.shape[0])
            validation = X_val, _columns(self._encoded(y_val)), weight
        sample_weight = self._class_weighted(door.sample_weights(sample_weight, X.shape[0]), y)
        rows = Rows(X, Y, sample_weight, backend=home, dtype=float_dtype(X, home))
        objective = network._objective("mean", self.l1, self.alpha, self.clip)
        if objective.loss.name == "squared_error" and self.n_outputs_ > 1:
            objective = PerOutput(**vars(objective))
        if self.dropout:
            if self.solver == "lbfgs":
                message = "`dropout` does not go with solver='lbfgs', whose line search needs one and the same loss."
                raise ValueError(message)
            objective = replace(objective, dropout=Dropout(self.dropout, int(self._random_state.randint(2**31))))
        history = History()
        try:
            if self.solver == "lbfgs":
                self._minimise(network, objective, rows, history)
            else:
                self._descend(network, objective, rows, history, Y, validation, incremental)
        except DivergenceError as error:
            message = (
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed. More exactly: {error}"
            )
            raise ValueError(message) from error
        finally:
            self._keep_weights(network.weights)
            history.state = None  # the optimizer has it
            self.history_ = history
        return self

    def _class_weighted(self, sample_weight, y):
        """Sample weights times those of the classes."""
        return sample_weight

    def _check_classes(self, y):
        """Raise ValueError if targets are of a class that was not learned."""

    def _engine(self, objective, rows, solver, history, batch_rows, steps):
        engine, history.reason = choose(
            self.engine, objective, rows, solver, batch_rows=batch_rows, steps=steps, threads=self.threads
        )
        history.engine = engine.name
        return contextlib.closing(engine)

    def _minimise(self, network, objective, rows, history):
        if self.clip is not None:
            raise ValueError("`clip` does not go with solver='lbfgs', whose line search needs the gradient as it is.")
        plan = Epochs(rows.n, rows.n, False, 0)
        options = {"maxfun": self.max_fun, "gtol": self.tol}
        weights = [rows.backend.asarray(W, rows.dtype) for W in network.weights]
        with (
            rows.backend.active(),
            self._engine(objective, rows, "lbfgs", history, rows.n, self.max_iter) as engine,
        ):
            result = minimise(network, weights, engine, plan, step=0, stop=self.max_iter, every=1,
                              callbacks=list(self.callbacks), history=history, options=options)  # fmt: skip
        if history.stopped == "interrupted":
            warnings.warn("Training interrupted by user.", stacklevel=5)
        self.loss_ = history.loss[-1]
        self.n_iter_ = history.step[-1]
        if result is not None and history.stopped != "callback":
            self.n_iter_ = _check_optimize_result("lbfgs", result, self.max_iter)
            self.loss_ = result.fun

    def _descend(self, network, objective, rows, history, Y, validation, incremental):
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = self._new_optimizer()
        optimizer = self._optimizer
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        train, validation = self._set_aside(objective, rows, Y, validation)
        if validation is not None and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
            self.best_validation_score_, self._best_weights = -math.inf, network.weights
        n = rows.n if train is None else len(train)
        batch_size = min(200, n) if self.batch_size == "auto" else self.batch_size
        if batch_size > n:
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(message, stacklevel=5)
            batch_size = n
        # Nobody sees the order of the rows of a full batch, but the state of a generator that the caller gave.
        shuffle = self.shuffle and (batch_size < n or isinstance(self.random_state, np.random.RandomState))
        plan = Epochs(n, int(batch_size), shuffle, 0, optimizer.t, self._random_state, train)
        epochs = 1 if incremental else self.max_iter
        steps = epochs * plan.steps_per_epoch
        monitor = Monitor(self, optimizer, objective, plan, validation, self.early_stopping)
        self.n_iter_ = 0
        weights = [rows.backend.asarray(W, rows.dtype) for W in network.weights]
        state = optimizer.state
        if state is None:
            state = optimizer.solver.start(weights)
        state = tuple([rows.backend.asarray(a, rows.dtype) for a in group] for group in state)
        with (
            rows.backend.active(),
            self._engine(objective, rows, optimizer.solver, history, plan.batch_size, steps) as engine,
        ):
            try:
                descend(
                    network, weights, engine, optimizer.solver, plan, step=optimizer.t, stop=optimizer.t + steps,
                    rate=optimizer.rate, every=plan.steps_per_epoch, first_row=optimizer.t + plan.steps_per_epoch - 1,
                    callbacks=[monitor, *self.callbacks], history=history, arrays=state,
                )  # fmt: skip
                optimizer.state = history.state.arrays
            except DivergenceError as error:
                if not self.early_stopping:
                    raise
                monitor.record(math.nan, None)
                message = f"Training diverged, and the best weights are restored: {error}"
                warnings.warn(message, ConvergenceWarning, stacklevel=5)
        if history.stopped == "interrupted":
            warnings.warn("Training interrupted by user.", stacklevel=5)
        elif history.stopped == "steps" and not incremental:
            message = (
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet."
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=5)
        if self.early_stopping:
            network.weights = self._best_weights

    def _new_optimizer(self):
        if isinstance(self.solver, Solver):
            solver = self.solver
        elif self.solver == "sgd":
            kind = Nesterov if self.nesterovs_momentum else Momentum
            solver = kind(self.momentum) if self.momentum else GradientDescent()
        elif self.solver == "rmsprop":
            solver = RMSprop(epsilon=self.epsilon)
        else:
            solver = {"adam": Adam, "adamw": AdamW}[self.solver](self.beta_1, self.beta_2, self.epsilon)
        schedule = self.learning_rate if self.solver == "sgd" else "constant"
        return Optimizer(solver, self.learning_rate_init, schedule, self.power_t)

    def _set_aside(self, objective, rows, Y, validation):
        """The rows to train on (None: all), and the `Validation`, if there is one."""
        if validation is not None:
            X, Y, weight = validation
            rows = Rows(X, Y, weight, backend=rows.backend, dtype=rows.dtype)
            return None, Validation(objective, rows, None, self._score_outputs)
        if not self.early_stopping:
            return None, None
        # As text, because scikit-learn names the classes so where there are too few of them.
        stratify = Y.ravel().astype(str) if is_classifier(self) and self.n_outputs_ == 1 else None
        train, kept = train_test_split(
            np.arange(rows.n), random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(kept) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return train, Validation(objective, rows, kept, self._score_outputs)

    def _own_validation(self, X, y, sample_weight):
        """The validation data that the caller gave as (X, y, sample_weight); None if there are none."""
        if (X is None) != (y is None):
            raise ValueError("`X_val` and `y_val` go together: give both, or neither.")
        if X is None:
            if sample_weight is not None:
                raise ValueError("`sample_weight_val` goes with `X_val` and `y_val`: give all, or none.")
            return None
        if self.solver == "lbfgs":
            raise ValueError("`X_val` does not go with solver='lbfgs', which knows no epochs. Use another solver.")
        return X, y, sample_weight

    def _outputs(self, X, method):
        """The network's outputs for X, of shape (N, O), where X is."""
        check_is_fitted(self)
        home = self._home()
        X = door.rows_to_predict(self, X, home, method)
        weights = self._weights()
        dtype = "float64" if "float64" in (float_dtype(X, home), dtype_name(weights[0])) else "float32"
        names = [*self._activations(len(weights) - 1), TO_OURS.get(self.out_activation_, self.out_activation_)]
        return feed([home.asarray(W, dtype) for W in weights], X, names, home, dtype)

    def to_sklearn(self):
        """A copy as scikit-learn's own class, on the host: it predicts the same, and goes on to the same numbers.

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

    def to(self, backend):
        """Bring what was fitted to another library or device.

        Parameters
        ----------
        backend : str
            ``library[:device]``, such as ``"numpy"`` or ``"torch:cuda"``.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        self._move(backend_of_name(backend))
        return self

    def _move(self, home):
        def moved(arrays):
            return [_placed(a, home) for a in arrays]

        for name in ("coefs_", "intercepts_", "_best_weights"):
            if hasattr(self, name):
                setattr(self, name, moved(getattr(self, name)))
        if hasattr(self, "_optimizer") and self._optimizer.state is not None:
            self._optimizer.state = tuple(map(moved, self._optimizer.state))
        if hasattr(self, "classes_"):
            self._place_classes(home)

    def _place_classes(self, home):
        classes = door.on_host(self.classes_)
        if classes.dtype.kind in "biuf":  # text stays on the host: no other library has it
            self.classes_ = _placed(classes, home)

    def __getstate__(self):
        state = super().__getstate__()
        if "coefs_" not in state or self._home().library.name == "numpy":
            return state
        host = type(self).__new__(type(self))
        host.__dict__.update(state)
        if "_optimizer" in state:
            host._optimizer = copy.copy(self._optimizer)
        host._move(backend_of_name("numpy"))
        return host.__dict__ | {"_backend": self._home().name}

    def __setstate__(self, state):
        home = state.pop("_backend", None) if "_backend" in state else None
        super().__setstate__(state)
        if home is not None:
            # What was pickled on a GPU opens on a machine without one, on NumPy.
            with contextlib.suppress(BackendError):
                self._move(backend_of_name(home))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags


def _placed(x, home):
    """An array of numbers brought to a backend, in its own dtype, or the widest that is there."""
    own = dtype_name(x)
    if own.startswith("float"):
        return home.asarray(x, own if own in home.floats else home.widest)
    known = home.xp.__array_namespace_info__().dtypes(device=home.device)
    return home.asarray(x, own if own in known else "int32")


def _columns(y):
    return y[:, None] if y.ndim == 1 else y
