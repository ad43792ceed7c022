"""What the estimators do that scikit-learn's do not: a short test for each row of the table in README.md, of its name.

Each asks scikit-learn's own class too, or a formula by hand. tests/test_estimators_more.py looks closer.
"""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network as theirs
from sklearn.metrics import accuracy_score, log_loss
from sklearn.utils import compute_sample_weight

from bpaccel import MLPClassifier, MLPRegressor, load
from bpaccel.backends import backend as backend_of_name
from bpaccel.backends import backend_of
from bpaccel.callbacks import Checkpoint, EarlyStopping, ProgressBar, Schedule, StepDecay

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((60, 4))
SUM = X.sum(axis=1) + 0.5 * np.random.RandomState(1).standard_normal(60)
LABELS = np.where(SUM > 1, "high", "low")
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 6, "random_state": 0}
# One step of plain gradient descent on all rows, without penalty.
STEP = {**SMALL, "max_iter": 1, "alpha": 0.0, "batch_size": 60}


def _moved(model):
    """What a step did to each number of a net that was drawn with the same seed."""
    before = type(model)(**model.get_params()).initialize(X, SUM)
    pairs = zip(before.coefs_ + before.intercepts_, model.coefs_ + model.intercepts_, strict=True)
    return np.concatenate([np.ravel(b - a) for a, b in pairs]), before


def _forward(model, rows, functions):
    for C, b, f in zip(model.coefs_, model.intercepts_, functions, strict=True):
        rows = f(rows @ C + b)
    return rows


def _lacks(kind, **options):
    """scikit-learn's class knows no such parameter."""
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        getattr(theirs, kind)(**options)


def test_the_table_of_the_readme_has_a_test_behind_each_row():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = readme.partition("## scikit-learn's MLP")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w.*?) \|", table, re.M)
    tests = [name for name in globals() if name.startswith("test_")]
    assert ["test_" + re.sub(r"\W", "_", row.lower()) for row in rows] == tests[1:]


def test_any_array_library_and_device(place):
    where = backend_of_name(place)
    here, y = where.asarray(X, where.widest), where.asarray(SUM, where.widest)
    model = MLPRegressor(**SMALL).fit(here, y)
    for got in (model.coefs_[0], model.predict(here)):
        home = backend_of(got)
        assert (home.library.name, str(home.device)) == (where.library.name, str(where.device))
    wanted = theirs.MLPRegressor(**SMALL).fit(X, SUM).predict(X)
    tolerance = 1e-9 if where.widest == "float64" else 1e-3
    np.testing.assert_allclose(where.to_numpy(model.predict(here)), wanted, rtol=tolerance, atol=tolerance)


def test_own_validation_rows_and_their_loss_curve():
    train, new = (X[:40], LABELS[:40]), {"X_val": X[40:], "y_val": LABELS[40:]}
    with pytest.raises(TypeError, match="X_val"):
        theirs.MLPClassifier(**SMALL).fit(*train, **new)
    model = MLPClassifier(**SMALL).fit(*train, **new)
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == len(model.loss_curve_) == 6
    assert model.validation_loss_curve_[-1] == pytest.approx(log_loss(LABELS[40:], model.predict_proba(X[40:])))
    assert model.validation_scores_[-1] == accuracy_score(LABELS[40:], model.predict(X[40:]))


def test_class_weight():
    _lacks("MLPClassifier", class_weight="balanced")
    weight = compute_sample_weight("balanced", LABELS)
    wanted = theirs.MLPClassifier(**SMALL).fit(X, LABELS, weight).predict_proba(X)
    model = MLPClassifier(**SMALL, class_weight="balanced").fit(X, LABELS)
    np.testing.assert_allclose(model.predict_proba(X), wanted, rtol=1e-9)
    assert np.abs(wanted - theirs.MLPClassifier(**SMALL).fit(X, LABELS).predict_proba(X)).max() > 1e-3


OWN = (lambda y, l: np.log(np.cosh(l - y)), lambda y, l: np.tanh(l - y))


@pytest.mark.parametrize(("loss", "derivative"), [
    ("absolute_error", np.sign),
    ("huber:0.5", lambda r: np.clip(r, -0.5, 0.5)),
    ("quantile:0.9", lambda r: np.where(r > 0, 0.1, -0.9)),
    (OWN, np.tanh),
], ids=["absolute_error", "huber", "quantile", "own"])  # fmt: skip
def test_losses(loss, derivative):
    """Where nothing tells the rows apart, the prediction is the number at which the loss is least."""
    with pytest.raises(ValueError, match="The 'loss' parameter of MLPRegressor must be"):
        theirs.MLPRegressor(loss=loss).fit(X, SUM)
    y = np.random.RandomState(2).exponential(size=201)
    y[:20] += 100.0  # the mean, which the squared error wants, is far off
    same = np.zeros((201, 1))
    model = MLPRegressor(loss, **SMALL | {"max_iter": 600, "batch_size": 201, "learning_rate_init": 0.02, "tol": 0})
    predicted = model.fit(same, y).predict(same)
    left, right = (derivative(predicted - y + d).mean() for d in (-0.15, 0.15))
    assert left < 0 < right


def test_dropout():
    _lacks("MLPClassifier", dropout=0.5)
    noise = np.random.RandomState(3).randint(2, size=60)
    options = {**SMALL, "hidden_layer_sizes": (100,), "max_iter": 200, "learning_rate_init": 0.02}
    plain, dropped = (MLPClassifier(**options, dropout=share).fit(X, noise) for share in (0.0, 0.8))
    assert plain.score(X, noise) == 1.0  # learned by heart
    assert dropped.score(X, noise) < 0.95
    logits = _forward(dropped, X, [lambda z: np.maximum(z, 0), lambda z: z])[:, 0]  # all units speak
    np.testing.assert_allclose(dropped.predict_proba(X)[:, 1], 1 / (1 + np.exp(-logits)), rtol=1e-9)


FUNCTIONS = {
    "identity": lambda z: z,
    "logistic": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.exp(z) - 1),
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "exp": np.exp,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_per_layer_and_the_whole_table(name):
    options = {**SMALL, "hidden_layer_sizes": (5, 3), "activation": [name, "tanh"]}
    with pytest.raises(ValueError, match="The 'activation' parameter of MLPRegressor must be"):
        theirs.MLPRegressor(**options).fit(X, SUM)
    model = MLPRegressor(**options).fit(X, SUM)
    by_hand = _forward(model, X, [FUNCTIONS[name], np.tanh, FUNCTIONS["identity"]])
    np.testing.assert_allclose(model.predict(X), by_hand[:, 0], rtol=1e-9)


def test_weights_without_fit():
    """XOR: the difference of two ramps, written down."""
    rows, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
    coefs, intercepts = [np.ones((2, 2)), np.array([[4.0], [-8.0]])], [np.array([0.0, -1.0]), np.array([-2.0])]
    model = MLPClassifier(hidden_layer_sizes=(2,), random_state=0).initialize(rows, y)
    model.coefs_, model.intercepts_ = coefs, intercepts
    assert model.score(rows, y) == 1.0
    assert model.n_iter_ == 0
    without = theirs.MLPClassifier(hidden_layer_sizes=(2,), random_state=0)
    without.coefs_, without.intercepts_ = coefs, intercepts
    with pytest.raises(AttributeError):
        without.predict(rows)


def test_l1_penalty():
    _lacks("MLPRegressor", l1=1.0)
    plain, penalised = (MLPRegressor(**STEP, solver="sgd", momentum=0.0, l1=l1).fit(X, SUM) for l1 in (0.0, 3.0))
    _, before = _moved(plain)
    size = sum(np.abs(C).sum() for C in before.coefs_)
    assert penalised.loss_ - plain.loss_ == pytest.approx(3.0 * size / 60)  # a mean over rows, as that of alpha
    for C, without, drawn in zip(penalised.coefs_, plain.coefs_, before.coefs_, strict=True):
        np.testing.assert_allclose(C - without, -0.001 * 3.0 / 60 * np.sign(drawn), rtol=1e-6)


def test_gradient_clipping():
    _lacks("MLPRegressor", clip=1.0)
    spoilt = SUM.copy()
    spoilt[0] = 1e8
    options = {**SMALL, "solver": "sgd", "learning_rate_init": 0.02, "batch_size": 1, "max_iter": 20, "tol": 0}
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite"):
        theirs.MLPRegressor(**options).fit(X, spoilt)
    model = MLPRegressor(**options, clip=1.0).fit(X, spoilt)
    assert model.score(X[1:], SUM[1:]) > 0.5


def test_adamw_and_rmsprop():
    """A first step is as long for every number, whatever its gradient: Adam's running means are the gradient and its
    square, RMSprop's hundredth part of the square."""
    for solver, length in (("adamw", 0.01), ("rmsprop", 0.01 / np.sqrt(0.01))):
        options = {**STEP, "solver": solver, "learning_rate_init": 0.01, "activation": "tanh"}
        with pytest.raises(ValueError, match="The 'solver' parameter of MLPRegressor must be"):
            theirs.MLPRegressor(**options).fit(X, SUM)
        moved, before = _moved(MLPRegressor(**options).fit(X, SUM))
        if solver == "adamw":  # the weights decay by themselves
            moved += 0.01 * 0.01 * np.concatenate([np.ravel(a) for a in before.coefs_ + before.intercepts_])
        np.testing.assert_allclose(np.abs(moved), length, rtol=1e-3)


def test_callbacks(tmp_path, capsys):
    _lacks("MLPRegressor", callbacks=[])
    halves = Schedule(StepDecay(0.01, every=2), by="epoch")
    model = MLPRegressor(**SMALL, learning_rate_init=0.01, callbacks=[halves, Checkpoint(tmp_path / "net.safetensors")])
    model.fit(X, SUM)
    assert model.history_.rate == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025], rel=1e-12)
    saved = load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(saved.predict(X)[:, 0], model.predict(X))
    patient = EarlyStopping(X[:20], -SUM[:20], patience=2)  # wrong targets: it can but get worse
    stopped = MLPRegressor(**SMALL, learning_rate_init=0.1, callbacks=[patient]).fit(X, SUM)
    assert stopped.history_.stopped == "callback"
    assert stopped.n_iter_ == np.argmin(patient.losses) + 3 < 6
    MLPRegressor(**SMALL, callbacks=[ProgressBar()]).fit(X, SUM)
    assert "6/6" in capsys.readouterr().out
    if hasattr(ours := MLPRegressor(**SMALL), "set_callbacks"):  # tests/test_estimators_tasks.py looks closer
        assert ours.set_callbacks() is ours
        assert not hasattr(theirs.MLPRegressor(), "set_callbacks")


def test_both_ways_to_scikit_learn(tmp_path):
    """A process that cannot import us opens the pickle; back here, training goes on to the same numbers."""
    model = MLPClassifier(**SMALL).fit(X, LABELS)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model.to_sklearn()))
    np.save(tmp_path / "X.npy", X)
    code = """
import pickle, sys
sys.modules["bpaccel"] = None  # `import bpaccel` is an ImportError
import numpy as np
model = pickle.load(open("model.pickle", "rb"))
assert type(model).__module__.startswith("sklearn."), type(model)
np.save("answers.npy", model.predict_proba(np.load("X.npy")))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), model.predict_proba(X), rtol=1e-12)
    back = MLPClassifier.from_sklearn(pickle.loads((tmp_path / "model.pickle").read_bytes()))
    np.testing.assert_array_equal(
        back.partial_fit(X, LABELS).predict_proba(X), model.partial_fit(X, LABELS).predict_proba(X)
    )
