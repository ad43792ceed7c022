"""Network: layer sizes, weights, and the few verbs that one wants of them."""

import contextlib
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from bpaccel import activations as _activations
from bpaccel import core, lbfgs, losses, solvers, training
from bpaccel.backends import BackendError, backend_of, resolve
from bpaccel.backends import backend as _backend_of_name
from bpaccel.checks import functions, not_negative, positive, share, sizes, whole
from bpaccel.checks import seed as checked_seed
from bpaccel.data import Rows, check_targets, dense, float_dtype, matrix, numbers, targets
from bpaccel.dropout import Dropout
from bpaccel.engines.blocked import feed
from bpaccel.engines.choice import ENGINES, choose, find, refusal, successor
from bpaccel.history import History, Plan
from bpaccel.objective import Objective


class Network:
    """A fully connected network, trained by backpropagation on whatever arrays it is given.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units of each layer, inputs first: ``[3, 4, 1]``.
    activation : str or sequence of str
        One for all layers, or one for each weight matrix.
    loss : str or pair of callables
        A name of `bpaccel.losses`, or your own ``(value, derivative)``.
    bias : bool
        Whether each layer has a bias. The tutorial's networks have none: a column of ones in X serves.
    init : {"uniform", "glorot", "glorot_sigmoid", "he"} or list of arrays
        How the weights are drawn, see `bpaccel.core.init_weights`; or the weights themselves.
    seed : int, numpy.random.RandomState or None
        The same seed gives the same weights on every backend.
    dtype : {"float32", "float64"}, optional
        What to compute in. By default what the X of the first `train` is in; integers take the widest of the device.
    backend : str, optional
        Where to compute, ``library[:device]``; by default where X lives. With a name, X is moved there, and results
        come back to where X lives.

    Attributes
    ----------
    weights : list of arrays
        One of shape (I, O) for each pair of layers; with a bias (I + 1, O), the last row being the bias.
    """

    def __init__(self, layer_sizes, *, activation="sigmoid", loss="squared_error", bias=False, init="uniform",
                 seed=None, dtype=None, backend=None):  # fmt: skip
        self.layer_sizes = sizes(layer_sizes)
        pairs = len(self.layer_sizes) - 1
        single = not isinstance(activation, (list, tuple))
        names = [_activations.get(activation)] * pairs if single else list(activation)
        if len(names) != pairs:
            raise ValueError(
                f"`activation` must be one name, or one for each of the {pairs} weight matrices; got {names}."
            )
        self.activations = tuple(map(_activations.get, names))
        for f in self.activations[:-1]:
            if f.slope is None:
                raise ValueError(f"`activation` {f.name!r} can only stand at the output; got {names}.")
        self.loss_function = losses.get(loss, self.activations[-1].name)
        self.bias = bool(bias)
        if not isinstance(seed, np.random.RandomState):
            seed = checked_seed(seed)
        given = isinstance(init, (list, tuple))
        if given:
            _check_weights(init, self.layer_sizes, self.bias)
        elif not isinstance(init, str) or init not in core.INITS:
            raise ValueError(f"`init` must be one of {', '.join(core.INITS)}, or a list of weights; got {init!r}.")
        self.dtype = _dtype(dtype)
        self._backend = None
        self._weights = list(init) if given else core.init_weights(self.layer_sizes, init, seed, self.bias)
        if dtype is not None:
            self._weights = [backend_of(W).asarray(W, self.dtype) for W in self._weights]
        if backend is not None:
            self.to(backend)

    @property
    def backend(self):
        """The name of the backend that this network was told to compute on; None if it follows X."""
        return None if self._backend is None else self._backend.name

    @property
    def weights(self):
        return self._weights

    @weights.setter
    def weights(self, weights):
        _check_weights(weights, self.layer_sizes, self.bias)
        self._weights = list(weights)

    def to(self, backend, dtype=None):
        """Compute on a backend from now on (None: where X lives), and bring the weights there.

        Parameters
        ----------
        backend : str or None
        dtype : {"float32", "float64"}, optional
            What to compute in from now on; by default as before.

        Returns
        -------
        Network
            This one.
        """
        self.dtype, before = _dtype(dtype) or self.dtype, self.dtype
        if backend is None:
            self._backend = None
            return self
        target = _backend_of_name(backend)
        if self.dtype is not None:
            try:
                target.check_dtype(self.dtype)
            except BackendError:
                self.dtype = before
                raise
        dtype = self.dtype or (None if "float64" in target.floats else target.widest)
        self._weights = [target.asarray(W, dtype) for W in self._weights]
        self._backend = target
        return self

    def train(self, X, y, *, steps=None, epochs=None, learning_rate=1.0, reduction="mean", solver="gradient_descent",
              batch_size=None, shuffle=True, seed=None, sample_weight=None, l1=0.0, l2=0.0, clip=None, dropout=0.0,
              engine="auto", threads=None, record_every=None, callbacks=(), resume=None, progress=False):  # fmt: skip
        """Change the weights, step by step, so that `predict` comes nearer to ``y``.

        Parameters
        ----------
        X : array of shape (N, I)
            Of any array library, a list or a DataFrame of numbers.
        y : array of shape (N, O), or (N,) for one output
            Class labels are to be one-hot: see `bpaccel.one_hot`.
        steps, epochs : int
            How many updates, or how many times over all rows; exactly one of them.
        learning_rate : float
        reduction : {"mean", "sum"}
            Whether a step follows the mean over its rows, or the sum, as the tutorial does.
        solver : str or Solver
            gradient_descent, momentum, nesterov, adam, adamw, rmsprop or lbfgs; or an instance, of a class of
            `bpaccel.solvers`, with your hyperparameters.
        batch_size : int, optional
            Rows of a step; by default all.
        shuffle : bool
            Whether mini-batches take the rows in a new order every epoch.
        seed : int, optional
            Of the order of rows, and of dropout.
        sample_weight : array of shape (N,), optional
            How much each row counts.
        l1, l2 : float
            The penalty ``l1 * sum |W| + l2 / 2 * sum W ** 2`` on the weights without the bias, added to the summed
            loss; with ``reduction="mean"`` it is divided by the weight of the rows too, as in scikit-learn.
        clip : float, optional
            The greatest length of an update, over all matrices together.
        dropout : float
            The share of the hidden units that are silent in each step, each row its own; see `bpaccel.dropout`. The
            losses of the history are those of the units that are left; `predict` and `loss` silence none.
        engine : str or type
            How to compute; "auto" chooses, and `History.reason` says why.
        threads : int, optional
            By default, as many as there are processors for this process.
        record_every : int, optional
            Steps between rows of the history; by default there are about 100 rows.
        callbacks : sequence of callable
            Each is called with a `bpaccel.training.Progress` at each row; True ends the training. `bpaccel.callbacks`
            has early stopping, checkpoints, schedules of the rate and a progress bar.
        resume : History, optional
            Of an earlier training of this network, which then goes on as if it had never stopped: ``steps`` or
            ``epochs`` count the further ones, at ``learning_rate``, whatever a callback had made of it.
        progress : bool
            Whether to show a bar (needs rich).

        Returns
        -------
        History

        Raises
        ------
        ValueError
            If an argument breaks its rule.
        DivergenceError
            If the loss is no longer finite. The weights of the last finite step are kept.
        """
        objective = self._objective(reduction, l1, l2, clip)
        rows = self._rows(X, y, sample_weight)
        plan = _plan(rows.n, batch_size, shuffle, seed, resume)
        count = _count(steps, epochs, plan)
        every = whole("record_every", record_every) if record_every is not None else -(-count // 100)
        learning_rate = positive("learning_rate", learning_rate)
        callbacks = functions("callbacks", callbacks)
        if progress:
            from bpaccel.callbacks import ProgressBar

            callbacks.append(ProgressBar())
        solver = "lbfgs" if isinstance(solver, str) and solver == "lbfgs" else solvers.get(solver)
        if solver == "lbfgs" and plan.batch_size < rows.n:
            raise ValueError("`batch_size` does not go with solver='lbfgs', which looks at all rows at once.")
        if share("dropout", dropout) > 0:
            objective = replace(objective, dropout=Dropout(float(dropout), plan.seed))
        if solver == "lbfgs":
            lbfgs.check_minimise(clip, dropout)
        state = _resumed(resume, solver, plan, (self.layer_sizes, self.bias))
        weights = [rows.backend.asarray(W, rows.dtype) for W in self._weights]
        # A resumed training keeps its engine where it can: the number of further steps must not change the bits.
        before = successor(resume.engine) if resume else ""
        resumed = engine == "auto" and state is not None and before in ENGINES
        resumed = resumed and refusal(find(before), objective, rows, solver) is None
        engine = before if resumed else engine
        runner, reason = choose(
            engine, objective, rows, solver, batch_rows=plan.batch_size, steps=count, threads=threads
        )
        reason = resume.reason if resumed else reason
        self.dtype = rows.dtype
        first = state.step if state else 0
        history = History(**resume.to_dict()) if resume else History()
        history.engine, history.reason = runner.name, reason
        common = {"step": first, "stop": first + count, "every": every, "callbacks": callbacks, "history": history}
        try:
            with rows.backend.active(), training.entered(callbacks):
                if solver == "lbfgs":
                    lbfgs.minimise(self, weights, runner, plan, **common)
                else:
                    arrays = solver.start(weights)
                    if state:
                        arrays = tuple([rows.backend.asarray(a, rows.dtype) for a in group] for group in state.arrays)
                    training.descend(self, weights, runner, solver, plan, rate=learning_rate, arrays=arrays, **common)
        finally:
            runner.close()
        return history

    def predict(self, X):
        """The network's answer to each row.

        Parameters
        ----------
        X : array of shape (N, I)

        Returns
        -------
        array of shape (N, O)
            Of the library, and on the device, that X lives on.
        """
        X = matrix(X, columns=self.layer_sizes[0])
        backend, dtype, weights = self._place(X)
        return self._home(X, backend, feed(weights, X, self.activations, backend, dtype))

    def layers(self, X):
        """All layers: ``[X, l1, l2, ...]``, the article's ``l0, l1, l2``; each of shape (N, O)."""
        X = matrix(X, columns=self.layer_sizes[0])
        backend, dtype, weights = self._place(X)
        with backend.active():
            layers = core.forward(weights, backend.asarray(dense(X), dtype), self.activations)
            return [self._home(X, backend, l) for l in layers]

    def errors(self, X, y):
        """Each layer's error: ``[l1_error, l2_error, ...]``, the last being ``y - output``, of shape (N, O).

        That of a layer below is what it contributed to the error above: ``delta @ W.T``.
        """
        X = matrix(X, columns=self.layer_sizes[0])
        rows = self._rows(X, y, None)
        weights = [rows.backend.asarray(W, rows.dtype) for W in self._weights]
        with rows.backend.active():
            X_here, y_here, _ = rows.read(0, rows.n)
            layers = core.forward(weights, X_here, self.activations)
            deltas = core.backward(weights, layers, y_here, self.activations, self.loss_function)
            errors = [d @ W[:n, :].T for d, W, n in zip(deltas[1:], weights[1:], self.layer_sizes[1:])]
            return [self._home(X, rows.backend, e) for e in [*errors, y_here - layers[-1]]]

    def loss(self, X, y, *, sample_weight=None, reduction="mean", l1=0.0, l2=0.0):
        """The objective at these rows, a float: what `train` minimises, with the same arguments."""
        objective = self._objective(reduction, l1, l2, None)
        rows, sums, _, penalty = self._evaluate(objective, X, y, sample_weight)
        totals = np.append(rows.backend.to_numpy(sums.totals), rows.backend.to_numpy(penalty))
        return float(objective.value(totals))

    def gradients(self, X, y, *, sample_weight=None, reduction="mean", l1=0.0, l2=0.0):
        """The gradient of `loss` by each weight matrix, in its true sign: a list of arrays where X lives."""
        objective = self._objective(reduction, l1, l2, None)
        rows, _, updates, _ = self._evaluate(objective, X, y, sample_weight)
        return [self._home(X, rows.backend, -u) for u in updates]

    def save(self, path):
        """Write the network to a file, which `bpaccel.load` reads; replaces it whole or not at all."""
        # Imported here, for the modules that files need cost as much as all others, and few trainings are saved.
        from bpaccel import storage

        storage.write(path, *self.to_parts())

    def to_parts(self):
        """A header of JSON values, and the weights as NumPy arrays: what a file of this network holds."""
        if not self._objective("mean", 0.0, 0.0, None).known:
            message = "a network with a loss or an activation of your own cannot be saved: keep its weights instead."
            raise ValueError(message)
        header = {
            "kind": "network",
            "layer_sizes": list(self.layer_sizes),
            "activation": [f.name for f in self.activations],
            "loss": self.loss_function.name,
            "bias": self.bias,
            "dtype": self.dtype,
        }
        arrays = {f"weights.{k}": backend_of(W).to_numpy(W) for k, W in enumerate(self._weights)}
        return header, arrays

    @classmethod
    def from_parts(cls, header, arrays):
        """The network of `to_parts`; arrays of other names are left aside.

        Raises
        ------
        ModelFileError
            If the parts contradict each other.
        """
        try:
            layer_sizes, bias, dtype = sizes(header["layer_sizes"]), bool(header["bias"]), header["dtype"]
            weights = [arrays[f"weights.{k}"] for k in range(len(layer_sizes) - 1)]
            if any(W.dtype.name not in ("float32", "float64") or not np.all(np.isfinite(W)) for W in weights):
                raise ValueError("a weight is not a finite float32 or float64 number")
            if dtype is not None and {W.dtype.name for W in weights} != {dtype}:
                raise ValueError(f"its dtype is {dtype!r}, that of its weights is another")
            network = cls(
                layer_sizes, activation=header["activation"], loss=header["loss"], bias=bias, init=weights, dtype=dtype
            )
        except (KeyError, TypeError, ValueError) as error:
            from bpaccel.storage import ModelFileError

            raise ModelFileError(f"the model file contradicts itself: {error}") from error
        return network

    def __getstate__(self):
        weights = [backend_of(W).to_numpy(W) for W in self._weights]
        return self.__dict__ | {"_weights": weights, "_backend": self.backend}

    def __setstate__(self, state):
        self.__dict__.update(state, _backend=None)
        if state["_backend"] is not None:
            # What was pickled on a GPU opens on a machine without one, on NumPy.
            with contextlib.suppress(BackendError):
                self.to(state["_backend"])

    def __repr__(self):
        names = [f.name for f in self.activations]
        options = {"activation": names, "loss": self.loss_function.name, "bias": self.bias, "dtype": self.dtype}
        text = ", ".join(f"{name}={value!r}" for name, value in {**options, "backend": self.backend}.items())
        return f"Network({list(self.layer_sizes)}, {text})"

    def __str__(self):
        lines = [f"Network {'-'.join(map(str, self.layer_sizes))}, loss {self.loss_function.name}, "
                 f"{sum(math.prod(W.shape) for W in self._weights):,} weights"]  # fmt: skip
        for k, (inputs, outputs) in enumerate(pairwise(self.layer_sizes)):
            bias = " + bias" if self.bias else ""
            lines.append(f"  l{k + 1} = {self.activations[k].name}(l{k} @ syn{k}{bias}): {inputs} -> {outputs}")
        return "\n".join(lines)

    def _objective(self, reduction, l1, l2, clip):
        if reduction not in ("mean", "sum"):
            raise ValueError(f"`reduction` must be 'mean' or 'sum'; got {reduction!r}.")
        clip = None if clip is None else positive("clip", clip)
        return Objective(self.layer_sizes, self.activations, self.loss_function, self.bias, reduction,
                         not_negative("l1", l1), not_negative("l2", l2), clip)  # fmt: skip

    def _rows(self, X, y, sample_weight):
        """The door: X, y and weights checked, converted and moved to where they are computed on."""
        X = matrix(X, columns=self.layer_sizes[0])
        if self.activations[-1].slope is None and getattr(y, "ndim", np.ndim(y)) == 1:
            raise ValueError("`y` must be one-hot, of shape (N, C), for a softmax output; got class labels of shape "
                             f"({len(y)},). Use classes, Y = bp.one_hot(y).")  # fmt: skip
        backend = resolve(self._backend, X=X, y=y, sample_weight=sample_weight)
        y = targets(y, X.shape[0], self.layer_sizes[-1])
        check_targets(y, self.loss_function)
        dtype = self.dtype or float_dtype(X, backend)
        backend.check_dtype(dtype)
        return Rows(X, y, sample_weight, backend=backend, dtype=dtype)

    def _place(self, X):
        """Where and in what to compute for X alone, and the weights there."""
        backend = resolve(self._backend, X=X)
        dtype = self.dtype or float_dtype(X, backend)
        backend.check_dtype(dtype)
        return backend, dtype, [backend.asarray(W, dtype) for W in self._weights]

    def _home(self, X, backend, result):
        """A result, brought back to where the caller's X lives."""
        home = backend_of(numbers(X))
        if home.library is backend.library and str(home.device) == str(backend.device):
            return result
        return home.asarray(backend.to_numpy(result))

    def _evaluate(self, objective, X, y, sample_weight):
        rows = self._rows(X, y, sample_weight)
        weights = [rows.backend.asarray(W, rows.dtype) for W in self._weights]
        engine, _ = choose("auto", objective, rows, None, batch_rows=rows.n, steps=1)
        try:
            with rows.backend.active(), engine.held():
                sums = engine.sums(weights, None, 0, rows.n)
                return rows, sums, *objective.finish(weights, sums)
        finally:
            engine.close()


def _dtype(dtype):
    """The name of a dtype, "float32" or "float64"; None stays None."""
    try:
        name = None if dtype is None else np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in (None, "float32", "float64"):
        raise ValueError(f"`dtype` must be 'float32', 'float64' or None; got {dtype!r}.")
    return name


def _check_weights(weights, layer_sizes, bias):
    shapes = [(i + bias, o) for i, o in pairwise(layer_sizes)]
    got = [tuple(getattr(W, "shape", (type(W).__name__,))) for W in weights]
    if got != shapes:
        raise ValueError(f"`weights` must be arrays of shapes {shapes}; got {got}.")


def _plan(n, batch_size, shuffle, seed, resume):
    size = n if batch_size is None else min(whole("batch_size", batch_size), n)
    seed = checked_seed(seed)
    if seed is None:
        state = getattr(resume, "state", None)
        seed = state.plan.seed if state else int(np.random.SeedSequence().generate_state(1)[0])
    return Plan(n, size, bool(shuffle), seed)


def _count(steps, epochs, plan):
    if (steps is None) == (epochs is None):
        raise ValueError(f"give exactly one of `steps` (updates) and `epochs`; got steps={steps!r}, epochs={epochs!r}.")
    return whole("steps", steps) if epochs is None else whole("epochs", epochs) * plan.steps_per_epoch


def _resumed(resume, solver, plan, shape):
    """The state to go on from, if it is of the same training."""
    if resume is None:
        return None
    state = getattr(resume, "state", None)
    if state is None:
        raise ValueError("`resume` must be a History that train returned; this one has no state.")
    if solver == "lbfgs":
        raise ValueError(
            "`resume` does not go with solver='lbfgs', which keeps no state; leave it out to go on from here."
        )
    if state.shape != shape:
        raise ValueError(f"`resume` must be of this network's shape {shape}; it is of {state.shape}.")
    if (state.solver, state.plan) != (solver, plan):
        raise ValueError(f"`resume` must go on with the same solver, rows, batch_size, shuffle and seed: "
                         f"it was {state.solver} on {state.plan}; got {solver} on {plan}.")  # fmt: skip
    return state
