"""MLPClassifier and MLPRegressor: scikit-learn's multilayer perceptron on our engines, for any array library."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    message = "MLPClassifier and MLPRegressor need scikit-learn: pip install 'bpaccel[sklearn]'."
    raise ImportError(message) from error

from bpaccel.estimators.classifier import MLPClassifier
from bpaccel.estimators.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
