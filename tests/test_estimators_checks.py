"""scikit-learn's own checks of estimators, all of them; those of array libraries run where SCIPY_ARRAY_API=1 is set."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from bpaccel import MLPClassifier, MLPRegressor
from bpaccel.libraries import LIBRARIES

# The checks themselves warn: that nothing converged in so few epochs, that a check was skipped.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning",
                                        "ignore::sklearn.exceptions.SkipTestWarning")  # fmt: skip


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_scikit_learns_checks(estimator, check, usable):
    # scikit-learn skips what is missing, also where it must run, or, of CuPy without a GPU, fails.
    for wanted in check.keywords.values():
        library = getattr(wanted, "xp", wanted)  # of checks that mix two, a pair with the device
        if library in LIBRARIES:
            usable(library)
    check(estimator)
