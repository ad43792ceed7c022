"""What the estimators say to arguments that they cannot use: which one it is, and what would do."""

import copy
import re

import numpy as np
import pytest

pytest.importorskip("sklearn")

from bpaccel import MLPClassifier, MLPRegressor, Network
from bpaccel.backends import backend as backend_of_name
from bpaccel.backends import why_not
from bpaccel.callbacks import Checkpoint, EarlyStopping, ProgressBar

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((60, 4))
SUM = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(60)
LABELS = np.where(SUM > 1, "high", "low")
THREE = np.array(["a", "b", "c"])[np.digitize(SUM, [-1, 1])]
SEVERAL = (X[:, :2] > 0).astype(int)
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 6, "random_state": 0}


def _refused(words, model, *arguments, **options):
    with pytest.raises(ValueError, match=re.escape(words)):
        model.fit(*arguments, **options)
    assert not hasattr(model, "coefs_")


def test_rows_without_columns(backend):
    where = backend_of_name(backend)
    _refused("Found array with 0 feature(s) (shape=(60, 0)) while a minimum of 1 is required", MLPRegressor(**SMALL),
             where.asarray(X[:, :0], where.widest), SUM)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_tensor():
    if reason := why_not("torch"):
        pytest.skip(f"torch: {reason}")
    import torch

    for rows in (torch.asarray(X).to_sparse(), torch.asarray(X).to_sparse_csr()):
        _refused("`X` must be dense; got a tensor of layout torch.sparse", MLPRegressor(**SMALL), rows, SUM)
        with pytest.raises(ValueError, match=re.escape("Use X.to_dense()")):
            Network([4, 1]).predict(rows)


def test_callbacks_that_are_no_functions():
    _refused("`callbacks` must be a list of functions; got [3].", MLPRegressor(callbacks=[3], **SMALL), X, SUM)


def test_a_loss_of_ones_own_of_a_wrong_shape():
    for loss in [(lambda y, l: np.mean((y - l) ** 2), lambda y, l: l - y),
                 (lambda y, l: (y - l) ** 2, lambda y, l: np.sum(l - y)),
                 (lambda y, l: 1.0, lambda y, l: l - y)]:  # fmt: skip
        for solver in ("adam", "lbfgs"):
            with pytest.raises(ValueError, match=r"`loss`: your .* must return an array of shape \(60, 1\)"):
                MLPRegressor(loss, solver=solver, **SMALL).fit(X, SUM)


def test_class_weights():
    rule = "`class_weight` must be a dict {class: weight}, 'balanced' or None; for several labels a row, a list"
    for weight, y in (([1], LABELS), ([{"high": 1.0}], LABELS), ([1, 2], SEVERAL)):
        _refused(rule, MLPClassifier(class_weight=weight, **SMALL), X, y)
    _refused("`class_weight` must hold numbers of at least 0; got {'high': -1, 'low': 1}",
             MLPClassifier(class_weight={"high": -1, "low": 1}, **SMALL), X, LABELS)  # fmt: skip
    each = [{0: 1.0, 1: 2.0}, {0: 1.0, 1: 0.5}]
    assert MLPClassifier(class_weight=each, **SMALL).fit(X, SEVERAL).n_outputs_ == 2


def test_an_engine_for_another_library():
    _refused("Use backend='cupy', or give CuPy arrays.", MLPRegressor(engine="cuda", **SMALL), X, SUM)


@pytest.mark.parametrize("y", [LABELS, THREE, SEVERAL], ids=["binary", "multiclass", "multilabel"])
def test_callbacks_take_labels_as_fit_does(tmp_path, y):
    """And so does the network that any callback sees."""
    stopping = EarlyStopping(X[40:], y[40:], patience=50)
    losses = []
    saved = Checkpoint(tmp_path / "net.safetensors", X[40:], y[40:])
    model = MLPClassifier(callbacks=[stopping, saved, lambda p: losses.append(p.network.loss(X[40:], y[40:]))], **SMALL)
    model.fit(X[:40], y[:40], X_val=X[40:], y_val=y[40:])
    assert losses == stopping.losses == saved.losses == pytest.approx(model.validation_loss_curve_)
    kept = []
    MLPClassifier(callbacks=[lambda p: kept.append(copy.deepcopy(p.network)), ProgressBar()], **SMALL).fit(X, y)
    assert {type(network) for network in kept} == {Network}  # which takes what it computes with
    wrong = EarlyStopping(X[40:], np.full(20, "nobody"))
    with pytest.raises(ValueError, match="`y` has classes not in|`y` must be of the kind"):
        MLPClassifier(callbacks=[wrong], **SMALL).fit(X, y)
