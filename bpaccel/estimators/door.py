"""The door of the estimators: what is given to fit and predict, checked.

NumPy arrays, lists, DataFrames and sparse matrices go through scikit-learn's own `validate_data`. Arrays of other
libraries do not, for it would bring them to the host, or needs its dispatch switch: they meet the same rules here, and
stay where they are. Targets and sample weights are checked on the host, by scikit-learn; `Rows` moves them.
"""

import numpy as np
from sklearn.utils.validation import (
    _check_n_features,
    _check_sample_weight,
    check_consistent_length,
    column_or_1d,
    validate_data,
)

from bpaccel.backends import backend_of, dtype_name, library_of
from bpaccel.data import float_dtype, matrix

FLOATS = (np.float64, np.float32)
SPARSE = ("csr", "csc")


def on_host(x):
    """``x`` as scikit-learn takes it: arrays of other libraries as NumPy's, anything else as it is."""
    library = None if x is None else library_of(x)
    return x if library is None else library.to_numpy(x)


def is_foreign(X):
    """Whether ``X`` is an array of another library than NumPy."""
    return backend_of(X).library.name != "numpy"


def same_place(home, other):
    """Whether two backends are one library on one device."""
    return (home.library.name, str(home.device)) == (other.library.name, str(other.device))


def training_data(estimator, X, y, *, reset, y_numeric=False):
    """Rows and targets for fit.

    Parameters
    ----------
    estimator : BaseEstimator
    X : array, DataFrame or sparse matrix of shape (N, I)
    y : array or list of shape (N,) or (N, O)
        Of any library.
    reset : bool
        Whether the estimator learns the number and the names of the features now, or knows them.
    y_numeric : bool
        Whether targets are numbers, not classes.

    Returns
    -------
    X : array of shape (N, I) of X's library, or sparse
        In float32 or float64.
    y : numpy.ndarray of shape (N,) or (N, O)
    """
    y = on_host(y)
    rules = {"multi_output": True, "y_numeric": y_numeric, "reset": reset}
    if is_foreign(X):
        X = _foreign(estimator, X, reset)
        y = validate_data(estimator, y=y, **rules)
        check_consistent_length(np.empty((X.shape[0], 0)), y)
    else:
        X, y = validate_data(estimator, X, y, accept_sparse=SPARSE, dtype=FLOATS, **rules)
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    return X, y


def rows_to_predict(estimator, X, home, method):
    """X for predict: of the library and the device, ``home`` (a `Backend`), that the estimator was fitted on."""
    place = backend_of(X)
    if not same_place(place, home):
        message = (
            f"Inputs passed to {type(estimator).__name__}.{method}() must use the same namespace and the same device "
            f"as those passed to fit(): that was {home.name}, and these are on {place.name}. "
            f"Use .to({place.name!r}) on the estimator, or bring X to {home.name}."
        )
        raise ValueError(message)
    if is_foreign(X):
        return _foreign(estimator, X, reset=False)
    return validate_data(estimator, X, accept_sparse=SPARSE, reset=False)


def sample_weights(sample_weight, n):
    """Sample weights for ``n`` rows on the host; None stays None."""
    if sample_weight is None:
        return None
    return _check_sample_weight(on_host(sample_weight), np.empty((n, 1)))


def _foreign(estimator, X, reset):
    X = matrix(X)
    if X.shape[1] == 0:
        raise ValueError(f"Found array with 0 feature(s) (shape={tuple(X.shape)}) while a minimum of 1 is required by "
                         f"{type(estimator).__name__}.")  # fmt: skip
    backend = backend_of(X)
    X = backend.asarray(X, float_dtype(X, backend))
    xp = backend.xp
    if not bool(xp.all(xp.isfinite(X))):
        what = "NaN" if bool(xp.any(xp.isnan(X))) else f"infinity or a value too large for {dtype_name(X)}"
        raise ValueError(f"Input X contains {what}. {type(estimator).__name__} takes finite numbers only: "
                         "impute missing values or drop their rows first.")  # fmt: skip
    _check_n_features(estimator, X, reset=reset)
    return X
