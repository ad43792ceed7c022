"""TableModel: a network for tables, with its column names, its scaling and its class names.

What a network does not know about itself: which column is which input, how numbers were brought to one scale, and
what its outputs are called. All of it is saved with the weights, and `load` gives it back.
"""

import copy
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from bpaccel import storage
from bpaccel.backends import resolve
from bpaccel.callbacks import ProgressBar
from bpaccel.checks import flag
from bpaccel.checks import seed as checked_seed
from bpaccel.columns import Table, as_table, listed
from bpaccel.data import one_hot
from bpaccel.network import Network
from bpaccel.training import checkpoint, run
from bpaccel.training.callback import Callback, check_callbacks
from bpaccel.training.history import History
from bpaccel.training.run import Options

FEW_CLASSES = 20  # a column of whole numbers with more different values than this is a quantity, not a class
MOST_STEPS = 500  # of an epoch, where the size of a batch is not given: large tables take larger batches
TASKS = ("classification", "regression")


class Task(NamedTuple):
    """What is to be learned, ``"classification"`` or ``"regression"``, and why this was chosen."""

    name: str
    reason: str


def infer_task(labels, asked=None):
    """Whether a target column is a class or a quantity.

    Parameters
    ----------
    labels : array of shape (N,)
        The target.
    asked : {"classification", "regression"}, optional
        What was asked for, which then is the answer.

    Returns
    -------
    Task
    """
    if asked is not None:
        if asked not in TASKS:
            raise ValueError(
                f"`task` must be {' or '.join(TASKS)}, or None to infer it from the target; got {asked!r}."
            )
        return Task(asked, "asked for")
    if labels.dtype.kind not in "biuf":
        return Task("classification", "the target is text")
    if labels.dtype.kind == "b":
        return Task("classification", "the target is true or false")
    different = len(np.unique(labels))
    if labels.dtype.kind == "f" and np.any(labels != np.rint(labels)):
        return Task("regression", "the target has fractions")
    if different <= FEW_CLASSES and 2 * different <= len(labels):
        return Task("classification", f"the target is whole numbers with only {different} different values")
    return Task("regression", f"the target is numbers with {different:,} different values")


class TableModel:
    """A network that learns one column of a table from the others.

    A table is a dict of names and 1-D columns, a DataFrame (pandas, polars), or what `bpaccel.readers.read_table`
    returns. Columns are brought to the host and scaled there; the network computes on ``backend``.

    Parameters
    ----------
    hidden : sequence of int
        Units of the hidden layers; none for a linear model.
    task : {"classification", "regression"}, optional
        By default inferred from the target: see `infer_task`.
    activation : str
        Of the hidden layers.
    standardise : bool
        Whether each input, and the target of a regression, is brought to mean 0 and standard deviation 1.
    seed : int, optional
        Of the weights and of the order of the rows.
    dtype : {"float32", "float64"}, optional
        What to compute in; by default the widest that the backend has.
    backend : str, optional
        Where to compute, ``library[:device]``.

    Attributes
    ----------
    task : str
    reason : str
        Why this task.
    names : tuple of str
        The input columns, in the order in which they enter the network.
    target : str
    classes : numpy.ndarray of shape (C,), or None in a regression
        Sorted; of text, whole numbers, truth values or numbers, as the target was.
    network : Network
    """

    def __init__(self, *, hidden=(32,), task=None, activation="relu", standardise=True, seed=None, dtype=None,
                 backend=None):  # fmt: skip
        if task is not None:
            infer_task(None, task)
        if isinstance(hidden, str):
            raise ValueError(f"`hidden` must be whole numbers such as (32, 16); got {hidden!r}.")
        self.hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        self.activation, self.standardise = activation, flag("standardise", standardise)
        self.seed, self.dtype, self.backend = checked_seed(seed), dtype, backend
        self.task, self.reason, self._asked = task, None, task
        self.names: tuple[str, ...] = ()
        self.target: Any = None
        self.classes: Any = None
        self.network: Any = None
        self._means: Any = None
        self._scales: Any = None
        self._y_mean = self._y_scale = math.nan

    def fit(self, table, target, *, epochs=None, steps=None, learning_rate=0.003, batch_size=None, l2=0.01,
            solver="adam", sample_weight=None, resume=None, callbacks=(), progress=False, **options):  # fmt: skip
        """Learn a column from all others, from the start.

        A fit that is refused changes nothing: a model that was learned before is still there.

        Parameters
        ----------
        table : Table, dict or DataFrame
        target : str
            The column to learn.
        epochs, steps : int
            How often over all rows, or how many updates; by default 50 epochs.
        learning_rate : float
        batch_size : int, optional
            By default 32, or as many as make 500 steps an epoch; all rows for solver="lbfgs".
        l2 : float
        solver : str or Solver
        sample_weight : array of shape (N,), optional
        callbacks, progress
            See `Network.train`. The model may be asked from a callback.
        resume : History, str or Path, optional
            What to go on with, as if it had never stopped: what the last `fit` of this model returned, for as many
            further epochs; or the file that `bpaccel.callbacks.Checkpoint` wrote of a fit of the same table, to the end
            of all epochs.
        **options
            Further ones of `Network.train`: engine, threads, l1, clip, dropout, shuffle, record_every.

        Returns
        -------
        History

        Raises
        ------
        ValueError
            If a cell cannot be used, or an option breaks its rule.
        """
        if unknown := set(options) - set(Options._fields):
            raise TypeError(f"fit() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if "seed" in options:
            raise ValueError("`seed` is an argument of TableModel itself, for the weights and the order of the rows.")
        table = as_table(table)
        learned = copy.copy(self)
        y, columns = learned._learn(table, str(target))
        if epochs is None and steps is None:
            epochs = 50
        if batch_size is None and solver != "lbfgs":
            batch_size = max(32, -(-table.rows // MOST_STEPS))
        learned.network = learned._new_network(y.shape[1])
        if isinstance(resume, History):
            learned._go_on_from(self)
        X = learned._scaled(columns, learned.network.dtype)
        del columns  # a copy of the table that training need not keep
        callbacks = [_Begun(self, learned), *check_callbacks(callbacks)]
        if flag("progress", progress):
            callbacks.append(ProgressBar())
        asked = Options(
            epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size, l2=l2, solver=solver,
            seed=self.seed, resume=resume, callbacks=callbacks, **options,
        )  # fmt: skip
        return run.train(learned.network, X, y, sample_weight, asked, learned.to_parts)

    def _learn(self, table, target):
        """Learn the columns, their scaling and the kind of the target; returns targets and columns as numbers."""
        y = self._learn_target(table, target)
        self.names, self.target = tuple(name for name in table.names if name != target), target
        if not self.names:
            raise ValueError(f"`table` must have a column to learn {target!r} from; it has no other.")
        columns = [table.numbers(name) for name in self.names]
        scaling = [_scaling(column) if self.standardise else (0.0, 1.0) for column in columns]
        self._means, self._scales = np.array(scaling).T
        self._y_mean, self._y_scale = 0.0, 1.0
        if self.task == "regression":
            if self.standardise:
                self._y_mean, self._y_scale = _scaling(y)
            y = (y[:, None] - self._y_mean) / self._y_scale
        return y, columns

    def _go_on_from(self, model):
        """Take the weights of a model that has learned from the same table.

        Raises
        ------
        ValueError
            If it has not.
        """
        checkpoint.check_model(model.to_parts(), self.to_parts())
        self.network.weights = model.network.weights

    def predict(self, table):
        """The class, or the number, of each row: an array of shape (N,).

        Columns may come in any order; those that the model does not know are left aside.
        """
        outputs = self._outputs(table)
        if self.task == "classification":
            return self.classes[outputs.argmax(axis=1)]
        return outputs[:, 0].astype(np.float64) * self._y_scale + self._y_mean

    def predict_proba(self, table):
        """The probability of each class, in the order of ``classes``: an array of shape (N, C)."""
        if self._fitted() and self.task != "classification":
            raise ValueError("`predict_proba` is for a classification; this model is a regression. Use predict.")
        return self._outputs(table)

    def score(self, table):
        """How good the model is on a table with its target: accuracy, or R ** 2 in a regression."""
        table = as_table(table)
        predicted = self.predict(table)
        if self.task == "classification":
            labels = table.labels(self.target)
            if (labels.dtype.kind in "biuf") != (predicted.dtype.kind in "biuf"):
                labels, predicted = labels.astype(str), predicted.astype(str)
            return float(np.mean(labels == predicted))
        y = table.numbers(self.target)
        squares, spread = np.sum((y - predicted) ** 2), np.sum((y - y.mean()) ** 2)
        # One row, or many of one value, have no spread that could be explained.
        return float(1.0 - squares / spread) if spread > 0 else float(squares == 0)

    def save(self, path):
        """Write the model to a file, which `load` reads; replaces it whole or not at all."""
        storage.write(path, *self.to_parts())

    def to_parts(self):
        """A header of JSON values, and NumPy arrays: what a file of this model holds."""
        network, arrays = self._fitted().to_parts()
        header = {
            "kind": "table",
            "network": network,
            "task": self.task,
            "reason": self.reason,
            "columns": list(self.names),
            "target": self.target,
            "classes": None if self.classes is None else self.classes.tolist(),
            "standardise": self.standardise,
        }
        scaling = {"means": self._means, "scales": self._scales, "target": np.array([self._y_mean, self._y_scale])}
        return header, arrays | {f"scaling.{name}": values for name, values in scaling.items()}

    @classmethod
    def from_parts(cls, header, arrays):
        """The model of `to_parts`.

        Raises
        ------
        ModelFileError
            If the parts contradict each other.
        """
        try:
            network = Network.from_parts(header["network"], arrays)
            model = cls(hidden=network.layer_sizes[1:-1], task=header["task"],
                        activation=network.activations[0].name if len(network.activations) > 1 else "relu",
                        standardise=header["standardise"], dtype=network.dtype)  # fmt: skip
            model.network, model.reason, model.target = network, header["reason"], header["target"]
            model.names = tuple(header["columns"])
            model._means, model._scales = arrays["scaling.means"], arrays["scaling.scales"]
            model._y_mean, model._y_scale = map(float, arrays["scaling.target"])
            model.classes = None if header["classes"] is None else np.array(header["classes"])
            if model.classes is not None and model.classes.tolist() != header["classes"]:
                raise ValueError("its classes are of different kinds")
            if not isinstance(header["columns"], list):
                raise ValueError("its columns are no list")
            model._check()
        except storage.ModelFileError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise storage.ModelFileError(f"the model file contradicts itself: {error!r}") from error
        return model

    def to(self, backend, dtype=None):
        """Compute on a backend, and in a dtype, from now on; see `Network.to`.

        Returns
        -------
        TableModel
            This one.
        """
        self._fitted().to(backend, dtype)
        self.backend, self.dtype = self.network.backend, self.network.dtype
        return self

    def _check(self):
        inputs, *_, outputs = self.network.layer_sizes
        expected = 1 if self.task == "regression" else np.shape(self.classes)
        rules = {
            f"the network has {inputs} inputs, there are {len(self.names)} columns": len(self.names) == inputs,
            "a column stands twice, or has no name of text": len({n for n in self.names if isinstance(n, str)})
            == inputs,
            "the scaling is not one mean and one scale a column": self._means.shape == self._scales.shape == (inputs,),
            "the scaling is not finite": np.all(np.isfinite([*self._means, self._y_mean]))
            and all(0 < scale < np.inf for scale in [*self._scales, self._y_scale]),
            f"the network has {outputs} outputs, which is not what its classes ask for": expected
            in (outputs, (outputs,)),
            "it does not say its task": self.task in TASKS,
            "its target is not a name of text, or is one of its columns": isinstance(self.target, str)
            and self.target not in self.names,
            "its reason is not a text": isinstance(self.reason, str),
            "its classes are not sorted, of one kind, each once; or a regression has some": self._has_right_classes(),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise storage.ModelFileError(f"the model file contradicts itself: {broken[0]}.")

    def _has_right_classes(self):
        if self.task == "regression":
            return self.classes is None
        sorted_ = self.classes.ndim == 1 and bool(np.all(self.classes[:-1] < self.classes[1:]))
        return sorted_ and self.classes.dtype.kind in "biufU"

    def __repr__(self):
        if self.network is None:
            return f"TableModel(hidden={self.hidden}, task={self.task!r}, not trained yet)"
        classes = "" if self.classes is None else f" ({len(self.classes)} classes: {listed(self.classes)})"
        return (
            f"TableModel: {self.task} of {self.target!r}{classes} from {len(self.names)} columns: {listed(self.names)}"
        )

    def _learn_target(self, table, target):
        """The target as numbers, (N,) in a regression and one-hot (N, C) else; sets task, reason and classes."""
        labels = table.labels(target)
        different = len(np.unique(labels))
        self.task, self.reason = infer_task(labels, self._asked)
        self.classes = None
        if different == 1:
            raise ValueError(f"the target {target!r} has the same value in every row, {labels[0]!s}: nothing to learn.")
        if self.task == "regression":
            return table.numbers(target)
        if different == table.rows > 2:
            raise ValueError(
                f"the target {target!r} has another value in every row ({labels[0]!s}, {labels[1]!s}, ...): classes "
                f"must come more than once. Choose another target, or task='regression' for numbers."
            )
        classes, y = one_hot(labels)
        self.classes = np.array(classes.tolist())
        return y

    def _new_network(self, outputs):
        classification = self.task == "classification"
        init = {"sigmoid": "glorot_sigmoid", "tanh": "glorot"}.get(self.activation, "he")
        return Network(
            [len(self.names), *self.hidden, outputs],
            activation=[self.activation] * len(self.hidden) + ["softmax" if classification else "identity"],
            loss="log_loss" if classification else "squared_error",
            bias=True, init=init, seed=self.seed,
            dtype=self.dtype or resolve(self.backend).widest, backend=self.backend,
        )  # fmt: skip

    def _fitted(self):
        if self.network is None:
            raise ValueError("the model has not been trained yet: call fit first.")
        return self.network

    def _scaled(self, columns, dtype):
        """Columns as the network's X, of shape (N, I)."""
        X = np.empty((len(columns[0]), len(columns)), dtype=dtype)
        for k, column in enumerate(columns):
            X[:, k] = (column - self._means[k]) / self._scales[k]
        return X

    def _outputs(self, table):
        network, table = self._fitted(), as_table(table)
        table.require(self.names)
        outputs = network.predict(self._scaled([table.numbers(name) for name in self.names], network.dtype))
        if not np.all(np.isfinite(outputs)):
            raise ValueError(
                "the network's answer is not finite: the table holds values far beyond those it learned from."
            )
        return outputs


class _Begun(Callback):
    """Makes a model what it has learned as soon as the training begins: its other callbacks may ask it. A training that
    fails before its first row leaves the model as it was."""

    def __init__(self, model, learned):
        self.model, self.learned, self.before = model, learned, None

    def ahead(self):
        return sys.maxsize

    def begin(self, progress, resumed):
        self.before = dict(self.model.__dict__)
        self.model.__dict__.update(self.learned.__dict__)

    def __call__(self, progress):
        self.before = None

    def end(self, progress, how):
        if how in ("failed", "interrupted") and self.before is not None:
            self.model.__dict__.clear()
            self.model.__dict__.update(self.before)


def _scaling(column):
    """Mean and standard deviation; (mean, 1) for a constant column, which must not divide by 0."""
    largest = np.abs(column).max()
    if column.min() == column.max():
        return float(column[0]), 1.0
    shares = column / largest  # the squares of very large or very small numbers would be infinite, or 0
    return float(largest * shares.mean()), float(largest * shares.std()) or 1.0


def hold_out(table: Table, target, share, seed=None):
    """Two tables: what to learn from, and a share of the rows, drawn at random, to judge by.

    All cells are checked before, so that one that cannot be used is found at once and not after the training.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share that is held out must be at least 0 and below 1; got {share:g}.")
    table.labels(target)
    for name in table.names:
        if name != target:
            table.numbers(name)
    order = np.random.default_rng(checked_seed(seed)).permutation(table.rows)
    count = round(share * table.rows)
    if share and count == 0:
        raise ValueError(f"{table.rows} rows are too few to hold {share:g} of them out: give more rows, or hold out 0.")
    return table.take(np.sort(order[count:])), (table.take(np.sort(order[:count])) if count else None)


def load(path, backend=None, dtype=None):
    """What `Network.save` or `TableModel.save` wrote.

    Parameters
    ----------
    path : str or Path
    backend : str, optional
        Where to compute from now on.
    dtype : {"float32", "float64"}, optional
        What to compute in; by default as it was saved. A float64 model needs "float32" on a device without float64.

    Returns
    -------
    Network or TableModel

    Raises
    ------
    ModelFileError
        If the file is not a whole model of bpaccel, or contradicts itself.
    FileNotFoundError
    """
    header, arrays = storage.read(path)
    kinds: dict[str, Any] = {"network": Network, "table": TableModel}
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise storage.ModelFileError(f"{str(path)!r} is of kind {kind!r}, and this bpaccel knows {listed(kinds)} only.")
    model = kinds[kind].from_parts(header, arrays)
    return model if backend is None and dtype is None else model.to(backend, dtype)
