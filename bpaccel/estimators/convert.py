"""From our estimators to scikit-learn's, and back: parameters, weights, and where their training stands.

Both then predict the same, and go on with `partial_fit`, or with `fit` and ``warm_start=True``, to the same numbers.
"""

import copy

import numpy as np
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from bpaccel.estimators import door

# What both keep under the same name; lists are copied.
ATTRIBUTES = (
    "classes_", "loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_", "n_iter_", "t_",
    "n_features_in_", "feature_names_in_", "n_layers_", "n_outputs_", "out_activation_", "_label_binarizer",
    "_random_state", "_no_improvement_count",
)  # fmt: skip
OWN = ("engine", "threads")  # how to compute, not what: nothing is lost without them


def to_sklearn(estimator, kind):
    """A copy of one of our estimators as one of scikit-learn's class ``kind``, on the host.

    Raises
    ------
    ValueError
        If a parameter says something that scikit-learn's has no word for.
    """
    values, names = estimator.get_params(deep=False), kind._get_param_names()
    default = type(estimator)().get_params(deep=False)
    lost = [f"{n}={v!r}" for n, v in values.items() if n not in (*names, *OWN) and v is not default[n]
            and v != default[n]]  # fmt: skip
    theirs = kind(**{name: copy.deepcopy(values[name]) for name in names if name in values})
    if isinstance(theirs.activation, (list, tuple)) and len(set(theirs.activation)) == 1:
        theirs.activation = theirs.activation[0]
    if theirs.activation == "sigmoid":
        theirs.activation = "logistic"
    for name in ("activation", "solver", "loss"):
        rules = kind._parameter_constraints.get(name)
        if rules and not any(isinstance(v := getattr(theirs, name), str) and v in rule.options for rule in rules):
            lost.append(f"{name}={v!r}")
    if lost:
        raise ValueError(f"scikit-learn's {kind.__name__} has no word for {', '.join(lost)}. Use set_params to go on "
                         "without, or keep this estimator.")  # fmt: skip
    _copy(estimator, theirs)
    if hasattr(estimator, "coefs_"):
        theirs.coefs_, theirs.intercepts_ = ([_owned(a) for a in x] for x in (estimator.coefs_, estimator.intercepts_))
    if hasattr(theirs, "classes_"):
        theirs.classes_ = door.on_host(estimator.classes_)
    if hasattr(estimator, "_best_weights"):
        theirs._best_coefs, theirs._best_intercepts = _split(estimator._best_weights)
    if hasattr(estimator, "_optimizer"):
        theirs._optimizer = _their_optimizer(estimator._optimizer, theirs)
    return theirs


def from_sklearn(kind, theirs):
    """A copy of one of scikit-learn's estimators as one of our class ``kind``; NumPy's, see `BaseMLP.to`."""
    names = kind._get_param_names()
    values = {name: copy.deepcopy(v) for name, v in theirs.get_params(deep=False).items() if name in names}
    estimator = kind(**values)
    _copy(theirs, estimator)
    if hasattr(theirs, "coefs_"):
        estimator._keep_weights(_joined(theirs.coefs_, theirs.intercepts_))
    if hasattr(theirs, "_best_coefs"):
        estimator._best_weights = _joined(theirs._best_coefs, theirs._best_intercepts)
    if hasattr(theirs, "validation_scores_"):  # theirs keeps no losses of them
        scores = theirs.validation_scores_
        estimator.validation_loss_curve_ = None if scores is None else [np.nan] * len(scores)
    if hasattr(theirs, "_optimizer"):
        estimator._optimizer = _our_optimizer(theirs._optimizer, estimator)
    return estimator


def _copy(source, target):
    for name in ATTRIBUTES:
        if hasattr(source, name):
            setattr(target, name, copy.deepcopy(getattr(source, name)))


def _owned(a):
    return np.array(door.on_host(a))


def _split(weights):
    """Matrices with the intercepts as their last row, as scikit-learn keeps them."""
    hosts = [_owned(W) for W in weights]
    return [W[:-1].copy() for W in hosts], [W[-1].copy() for W in hosts]


def _joined(coefs, intercepts):
    return [np.concatenate([C, b[None, :]], axis=0) for C, b in zip(coefs, intercepts, strict=True)]


def _their_optimizer(ours, theirs):
    parameters = theirs.coefs_ + theirs.intercepts_
    state: list = [] if ours.state is None else [[*coefs, *intercepts] for coefs, intercepts in map(_split, ours.state)]
    if theirs.solver == "adam":
        optimizer = AdamOptimizer(parameters, ours.rate_init, theirs.beta_1, theirs.beta_2, theirs.epsilon)
        if state:  # ours sums up updates, which are minus the gradients
            optimizer.ms, optimizer.vs = [-m for m in state[0]], state[1]
    else:
        optimizer = SGDOptimizer(
            parameters, ours.rate_init, ours.schedule, theirs.momentum, theirs.nesterovs_momentum, ours.power_t
        )
        if state:
            optimizer.velocities = state[0]
    optimizer.t, optimizer.learning_rate = ours.t, ours.learning_rate
    return optimizer


def _our_optimizer(theirs, estimator):
    ours, count = estimator._new_optimizer(), len(estimator.coefs_)
    if isinstance(theirs, AdamOptimizer):
        ours.t = theirs.t
        groups = [[-m for m in theirs.ms], theirs.vs]
    else:
        ours.rate = float(theirs.learning_rate)
        groups = [theirs.velocities] * len(ours.solver.start(estimator._weights()))
    ours.state = tuple(_joined(group[:count], group[count:]) for group in groups)
    return ours
