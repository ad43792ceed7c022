"""From our estimators to scikit-learn's, and back: parameters, weights, and where their training stands.

Both then predict the same, and go on with `partial_fit`, or with `fit` and ``warm_start=True``, to the same numbers.
``validation_loss_curve_`` and ``history_``, which scikit-learn's do not have, do not travel.
"""

import copy

import numpy as np
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from bpaccel.estimators import door
from bpaccel.estimators.optimizer import Optimizer, words_for
from bpaccel.solvers import Adam, GradientDescent, Momentum, Nesterov, Solver

# What both keep under the same name; lists are copied.
ATTRIBUTES = (
    "classes_", "loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_", "n_iter_", "t_",
    "n_features_in_", "feature_names_in_", "n_layers_", "n_outputs_", "out_activation_", "_label_binarizer",
    "_random_state", "_no_improvement_count", "_coef_indptr", "_intercept_indptr",
)  # fmt: skip
OWN = ("engine", "threads")  # how to compute, not what: nothing is lost without them


def to_sklearn(estimator, kind):
    """A copy of one of our estimators as one of scikit-learn's class ``kind``, on the host.

    Raises
    ------
    ValueError
        If a parameter, or the solver of the last training, says something that scikit-learn's has no word for.
    """
    values, lost = _in_their_words(estimator, kind)
    optimizer = getattr(estimator, "_optimizer", None)
    if optimizer is not None and words_for(optimizer.solver) is None and not lost:
        lost = [f"the solver of the last training, {optimizer.solver}"]
    if lost:
        raise ValueError(f"scikit-learn's {kind.__name__} has no word for {', '.join(lost)}. Use set_params to go on "
                         "without, or keep this estimator.")  # fmt: skip
    theirs = kind(**values)
    _copy(estimator, theirs)
    if hasattr(estimator, "coefs_"):
        theirs.coefs_, theirs.intercepts_ = map(_owned_all, (estimator.coefs_, estimator.intercepts_))
    if hasattr(theirs, "classes_"):
        theirs.classes_ = door.on_host(estimator.classes_)
    if hasattr(estimator, "_best_weights"):
        theirs._best_coefs = _owned_all(estimator._best_coefs)
        theirs._best_intercepts = _owned_all(estimator._best_intercepts)
    if hasattr(estimator, "_optimizer"):
        theirs._optimizer = _their_optimizer(estimator._optimizer, theirs.coefs_ + theirs.intercepts_)
    return theirs


def _in_their_words(estimator, kind):
    """The parameters of scikit-learn's class, and what they cannot say."""
    # Of our class, for a subclass may name other parameters.
    ours = next(base for base in type(estimator).__mro__ if "_peer" in vars(base))
    default, names = ours().get_params(deep=False), kind._get_param_names()
    values = {name: getattr(estimator, name) for name in default}
    if isinstance(values["solver"], Solver) and (words := words_for(values["solver"])) is not None:
        values |= {"learning_rate": "constant", **words}
    if isinstance(values["activation"], (list, tuple)) and len(set(values["activation"])) == 1:
        values["activation"] = values["activation"][0]
    if values["activation"] == "sigmoid":
        values["activation"] = "logistic"
    lost = [f"{n}={v!r}" for n, v in values.items() if n not in (*names, *OWN) and not _same(v, default[n])]
    for name in ("activation", "solver", "loss"):
        rules = kind._parameter_constraints.get(name)
        if rules and not any(isinstance(v := values[name], str) and v in rule.options for rule in rules):
            lost.append(f"{name}={v!r}")
    return {name: copy.deepcopy(v) for name, v in values.items() if name in names}, lost


def _same(value, default):
    if isinstance(default, tuple):  # callbacks: no list and no tuple of them are the same
        return isinstance(value, (list, tuple)) and tuple(value) == default
    return value is default or value == default


def from_sklearn(kind, theirs):
    """A copy of one of scikit-learn's estimators as one of our class ``kind``; NumPy's, see `BaseMLP.to`."""
    names, values = kind._get_param_names(), copy.deepcopy(theirs.get_params(deep=False))
    estimator = kind(**{name: value for name, value in values.items() if name in names})
    vars(estimator).update(values)  # a subclass may name other parameters
    _copy(theirs, estimator)
    if hasattr(theirs, "coefs_"):
        estimator._keep_weights(_joined(theirs.coefs_, theirs.intercepts_))
    if hasattr(theirs, "_best_coefs"):
        estimator._best_weights = _joined(theirs._best_coefs, theirs._best_intercepts)
    if hasattr(theirs, "validation_scores_"):  # theirs keeps no losses of them
        scores = theirs.validation_scores_
        estimator.validation_loss_curve_ = None if scores is None else [np.nan] * len(scores)
    if hasattr(theirs, "_optimizer"):
        estimator._optimizer = _our_optimizer(theirs._optimizer, len(theirs.coefs_))
    return estimator


def _copy(source, target):
    for name in ATTRIBUTES:
        if hasattr(source, name):
            setattr(target, name, copy.deepcopy(getattr(source, name)))


def _owned(a):
    return np.array(door.on_host(a))


def _joined(coefs, intercepts):
    return [np.concatenate([C, b[None, :]], axis=0) for C, b in zip(coefs, intercepts, strict=True)]


# Both take class and hyperparameters from the optimizer: the estimator's parameters may have been set since.
def _their_optimizer(ours, parameters):
    solver = ours.solver
    if isinstance(solver, Adam):
        optimizer = AdamOptimizer(parameters, ours.rate, solver.beta_1, solver.beta_2, solver.epsilon)
        if ours.state is not None:
            optimizer.ms, optimizer.vs = map(_owned_all, (ours.ms, ours.vs))
        optimizer.t = ours.t
    else:
        optimizer = SGDOptimizer(
            parameters, ours.learning_rate_init, ours.lr_schedule, ours.momentum, ours.nesterov, ours.power_t
        )
        if ours.state:
            optimizer.velocities = _owned_all(ours.velocities)
    optimizer.learning_rate = ours.learning_rate
    return optimizer


def _our_optimizer(theirs, count):
    if isinstance(theirs, AdamOptimizer):
        ours = Optimizer(Adam(theirs.beta_1, theirs.beta_2, theirs.epsilon), theirs.learning_rate_init)
        groups, ours.t = [[-m for m in theirs.ms], theirs.vs], theirs.t
    else:
        kind = Nesterov if theirs.nesterov else Momentum
        solver = kind(theirs.momentum) if theirs.momentum else GradientDescent()
        ours = Optimizer(solver, theirs.learning_rate_init, theirs.lr_schedule, theirs.power_t)
        ours.rate = float(theirs.learning_rate)
        groups = [theirs.velocities] if theirs.momentum else []
    ours.state = tuple(_joined(group[:count], group[count:]) for group in groups)
    return ours


def _owned_all(arrays):
    return [_owned(a) for a in arrays]
