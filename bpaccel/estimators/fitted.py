"""Fitted: what an estimator has learned, where it is, and how it comes to another library, device or machine."""

import contextlib
import copy
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from bpaccel.backends import BackendError, backend_of, dtype_name
from bpaccel.backends import backend as backend_of_name
from bpaccel.estimators import door


class Fitted(BaseEstimator):
    """The part of the estimators that keeps what was fitted.

    ``coefs_`` and ``intercepts_`` are scikit-learn's lists; ``_weights`` joins them to the matrices that engines take.
    """

    classes_: Any  # of the classifier
    _optimizer: Any  # not of lbfgs

    def _keep_weights(self, weights):
        self.coefs_ = [W[:-1, :] for W in weights]
        self.intercepts_ = [W[-1, :] for W in weights]
        self._joined = list(weights), list(self.coefs_), list(self.intercepts_)

    def _weights(self):
        """The matrices as the engines take them: the intercepts are the last row."""
        matrices, *parts = getattr(self, "_joined", ((), (), ()))
        given = [self.coefs_, self.intercepts_]
        if [list(map(id, part)) for part in parts] == [list(map(id, part)) for part in given]:
            return list(matrices)  # nobody has set others: to join them anew would copy all weights
        self._check_weights()
        home = self._home()
        with home.active():
            pairs = zip(self.coefs_, self.intercepts_, strict=True)
            return [home.xp.concat([home.asarray(C), home.asarray(b)[None, :]], axis=0) for C, b in pairs]

    def _check_weights(self):
        """Raise ValueError unless the weights, which may be set, lead from the features to the outputs."""
        coefs, intercepts = ([tuple(np.shape(a)) for a in x] for x in (self.coefs_, self.intercepts_))
        chained = bool(coefs) and all(len(shape) == 2 for shape in coefs)
        chained = chained and all(a[1] == b[0] for a, b in pairwise(coefs))
        ends = (coefs[0][0], coefs[-1][1]) if chained else None
        if ends != (self.n_features_in_, self.n_outputs_) or intercepts != [shape[1:] for shape in coefs]:
            raise ValueError(
                f"`coefs_` must be matrices of shapes (I, O) that lead from {self.n_features_in_} features to "
                f"{self.n_outputs_} output(s), each with as many rows as the one before has columns, and `intercepts_` "
                f"one array of shape (O,) for each of them; got shapes {coefs} and {intercepts}. "
                "Set both lists, or call fit or initialize again."
            )

    @property
    def _best_coefs(self):
        return [W[:-1, :] for W in self._best_weights]

    @property
    def _best_intercepts(self):
        return [W[-1, :] for W in self._best_weights]

    def _home(self):
        """Where the weights are: the `Backend` of the X that was fitted."""
        return backend_of(self.coefs_[0])

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
        check_is_fitted(self, "coefs_")
        self._move(backend_of_name(backend))
        return self

    def _move(self, home):
        def moved(arrays):
            return [_placed(a, home) for a in arrays]

        for name in ("coefs_", "intercepts_", "_best_weights"):
            if hasattr(self, name):
                setattr(self, name, moved(getattr(self, name)))
        if hasattr(self, "_optimizer"):
            self._optimizer = copy.copy(self._optimizer)
            if self._optimizer.state is not None:
                self._optimizer.state = tuple(map(moved, self._optimizer.state))
        if hasattr(self, "classes_"):
            self._place_classes(home)

    def _place_classes(self, home):
        """Bring the classes to a backend, if it has them: text, and numbers that it has no dtype for, stay here."""
        classes = door.on_host(self.classes_)
        if home.library.name == "numpy":
            self.classes_ = classes
            return
        placed = _placed(classes, home) if classes.dtype.kind in "biuf" else classes
        self.classes_ = placed if np.array_equal(door.on_host(placed), classes) else classes

    @contextlib.contextmanager
    def _as_it_was_if_refused(self):
        """A context in which an error leaves the estimator as it was: unfitted, or as it was fitted before."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:  # Ctrl-C, too
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def __getstate__(self):
        state = super().__getstate__()
        state = {name: value for name, value in state.items() if name != "_joined"}
        if "history_" in state:  # its weights and arrays are the estimator's own, and need not be there twice
            state = state | {"history_": state["history_"].without_state()}
        if "coefs_" not in state or self._home().library.name == "numpy":
            return state
        host = type(self).__new__(type(self))
        host.__dict__.update(state)
        host._move(backend_of_name("numpy"))
        return host.__dict__ | {"_backend": self._home().name}

    def __setstate__(self, state):
        home = state.pop("_backend", None)
        super().__setstate__(state)
        if home is not None:
            # What was pickled on a GPU opens on a machine without one, on NumPy.
            with contextlib.suppress(BackendError):
                self._move(backend_of_name(home))


def _placed(x, home):
    """An array of numbers brought to a backend, in its own dtype, or the widest of its kind that is there."""
    own = dtype_name(x)
    if own.startswith("float"):
        return home.asarray(x, own if own in home.floats else home.widest)
    known = home.xp.__array_namespace_info__().dtypes(device=home.device)
    name = next(name for name in (own, "int64", "int32") if name in known)
    return home.asarray(door.on_host(x).astype(name), name)
