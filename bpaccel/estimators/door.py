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

from bpaccel.backends import backend as backend_of_name
from bpaccel.backends import dtype_name, library_of
from bpaccel.checks import unmasked
from bpaccel.data import Given, Rows, float_dtype, given, matrix

FLOATS = (np.float64, np.float32)
NUMPY = backend_of_name("numpy")
SPARSE = ("csr", "csc")


def on_host(x):
    """``x`` as scikit-learn takes it: arrays of other libraries as NumPy's, anything else as it is."""
    library = None if x is None else library_of(x)
    return x if library is None else library.to_numpy(x)


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
    X : Given
        Of shape (N, I), of X's library, or sparse; in float32 or float64.
    y : numpy.ndarray of shape (N,) or (N, O)
    """
    X, y = given_or_host(X), on_host(unmasked("y", y))
    rules = {"multi_output": True, "y_numeric": y_numeric, "reset": reset}
    if isinstance(X, Given):
        X = _foreign(estimator, X, reset)
        y = validate_data(estimator, y=y, **rules)
        check_consistent_length(np.empty((X.array.shape[0], 0)), y)
    else:
        X, y = validate_data(estimator, X, y, accept_sparse=SPARSE, dtype=FLOATS, **rules)
        X = Given(X, NUMPY, True)
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    return X, y


def given_or_host(X):
    """Rows as `Given` if they are an array of another library than NumPy; what scikit-learn takes, as it is."""
    X = unmasked("X", X)
    library = library_of(X)
    if library is None or library.name == "numpy":
        return X
    return given(X, library=library)


def rows(X, Y, sample_weight, dtype, widest):
    """`Rows` to train on, where X is.

    Parameters
    ----------
    X : Given
    Y : numpy.ndarray of shape (N, O)
    sample_weight : numpy.ndarray of shape (N,), or None
    dtype : str
        That of the weights.
    widest : bool
        Whether the rows are to be in float64, where the device has it.
    """
    Y, sample_weight = (None if x is None else Given(x, NUMPY, True) for x in (Y, sample_weight))
    home = X.backend
    dtype = dtype if dtype in home.floats else home.widest
    return Rows(X, Y, sample_weight, backend=home, dtype=home.widest if widest else dtype, own_dtype=dtype)


def rows_to_predict(estimator, X, home, method):
    """X for predict: of the library and the device, ``home`` (a `Backend`), that the estimator was fitted on."""
    X = at_home(estimator, X, home, method)
    if isinstance(X, Given):
        return _foreign(estimator, X, reset=False).array
    if _is_plain(estimator, X):
        return X
    return validate_data(estimator, X, accept_sparse=SPARSE, reset=False)


def at_home(estimator, X, home, method):
    """X as `given_or_host` makes it, if it is where the estimator was fitted; the message names the method."""
    X = given_or_host(X)
    place = X.backend if isinstance(X, Given) else NUMPY
    if not place.same_place(home):
        message = (
            f"Inputs passed to {type(estimator).__name__}.{method}() must use the same namespace and the same device "
            f"as those passed to fit(): that was {home.name}, and these are on {place.name}. "
            f"Use .to({place.name!r}) on the estimator, or bring X to {home.name}."
        )
        raise ValueError(message)
    return X


def _is_plain(estimator, X):
    """Whether rows are just what scikit-learn would make of them: its checks take longer than to predict some rows."""
    plain = type(X) is np.ndarray and X.ndim == 2 and X.dtype in FLOATS and X.dtype.isnative
    plain = plain and X.shape[0] > 0 and X.shape[1] == estimator.n_features_in_
    if not plain or hasattr(estimator, "feature_names_in_"):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        # One sum is not finite if a number is not, and may be so without it: then scikit-learn looks closer.
        return bool(np.isfinite(X.sum()))


def sample_weights(sample_weight, n):
    """Sample weights for ``n`` rows on the host; None stays None."""
    if sample_weight is None:
        return None
    return _check_sample_weight(on_host(unmasked("sample_weight", sample_weight)), np.empty((n, 1)))


def _foreign(estimator, X, reset):
    X = matrix(X)
    shape = tuple(X.array.shape)
    if shape[1] == 0:
        raise ValueError(f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required by "
                         f"{type(estimator).__name__}.")  # fmt: skip
    backend = X.backend
    array = backend.asarray(X.array, float_dtype(X.array, backend), backend.library)
    xp = backend.xp
    if not bool(xp.all(xp.isfinite(array))):
        what = "NaN" if bool(xp.any(xp.isnan(array))) else f"infinity or a value too large for {dtype_name(array)}"
        raise ValueError(f"Input X contains {what}. {type(estimator).__name__} takes finite numbers only: "
                         "impute missing values or drop their rows first.")  # fmt: skip
    _check_n_features(estimator, array, reset=reset)
    return X._replace(array=array)
