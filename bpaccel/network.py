"""Network: layer sizes, weights, and the few verbs that one wants of them."""

import contextlib
import math
from itertools import pairwise

import numpy as np

from bpaccel import activations as _activations
from bpaccel import core, losses
from bpaccel.backends import BackendError, backend_of, dtype_name, resolve
from bpaccel.backends import backend as _backend_of_name
from bpaccel.checks import flag, functions, sizes
from bpaccel.checks import seed as checked_seed
from bpaccel.data import Rows, check_targets, dense, float_dtype, given, matrix, targets
from bpaccel.engines.blocked import feed
from bpaccel.engines.choice import choose
from bpaccel.objective import Objective
from bpaccel.training import run
from bpaccel.training.run import Options


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
        self.loss_function = losses.get(loss, self.activations[-1])
        self.bias = flag("bias", bias)
        if not isinstance(seed, np.random.RandomState):
            seed = checked_seed(seed)
        self.dtype, self._backend = _dtype(dtype), None
        if isinstance(init, (list, tuple)):
            self.weights = init
        elif not isinstance(init, str) or init not in core.INITS:
            raise ValueError(f"`init` must be one of {', '.join(core.INITS)}, or a list of weights; got {init!r}.")
        else:
            self.adopt(core.init_weights(self.layer_sizes, init, seed, self.bias))
        if backend is not None:
            self.to(backend)

    @property
    def backend(self):
        """The name of the backend that this network was told to compute on; None if it follows X."""
        return None if self._backend is None else self._backend.name

    @property
    def weights(self):
        # The list may have been changed in place: what is not as it must be is found here, before it is computed with.
        if not self._weights_are_right():
            self.weights = self._weights
        return self._weights

    @weights.setter
    def weights(self, weights):
        shapes = self._shapes()
        if not isinstance(weights, (list, tuple)):
            raise ValueError(f"`weights` must be a list of arrays of shapes {shapes}; got {type(weights).__name__}.")
        got = [tuple(getattr(W, "shape", (type(W).__name__,))) for W in weights]
        if got != shapes:
            raise ValueError(f"`weights` must be arrays of shapes {shapes}; got {got}.")
        weights = [given(W, "weights") for W in weights]
        for k, W in enumerate(weights):
            host = W.on_host()
            if host.dtype.kind == "b" or not np.all(np.isfinite(host)):
                what = "truth values" if host.dtype.kind == "b" else "nan or infinite ones"
                raise ValueError(f"`weights` must be finite numbers; matrix {k} holds {what}.")
        self.adopt([W.backend.copy(W.array) for W in weights])

    def adopt(self, weights, dtype=None):
        """Take over weights of the right shapes: in the dtype of this network, without a copy where they are of it.

        Parameters
        ----------
        weights : list of arrays
            Nobody else may change them later.
        dtype : {"float32", "float64"}, optional
            What to compute in from now on; by default as before.
        """
        self.dtype = dtype or self.dtype
        names = {dtype_name(W) for W in weights}
        if (common := self.dtype or ("float32" if names == {"float32"} else "float64")) and names != {common}:
            weights = [_floats(W, common) for W in weights]
        self._weights = list(weights)

    def _weights_are_right(self):
        shapes = [getattr(W, "shape", None) for W in self._weights]
        names = {dtype_name(W) for W in self._weights if hasattr(W, "dtype")}
        known = ({self.dtype},) if self.dtype else ({"float32"}, {"float64"})
        return names in known and list(map(tuple, filter(None, shapes))) == self._shapes()

    def _shapes(self):
        return [(i + self.bias, o) for i, o in pairwise(self.layer_sizes)]

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
        dtype = _dtype(dtype) or self.dtype
        weights = self.weights
        if dtype == "float32":
            largest = max(float(np.abs(backend_of(W).to_numpy(W)).max()) for W in weights)
            if largest > float(np.finfo("float32").max):
                raise ValueError(f"`dtype` float32 is too small for these weights, whose largest is {largest:g}.")
        if backend is None:
            self.adopt(weights, dtype)
            self._backend = None
            return self
        target = _backend_of_name(backend)
        if dtype is not None:
            target.check_dtype(dtype)
        moved = [
            target.asarray(W, dtype or (None if dtype_name(W) in target.floats else target.widest)) for W in weights
        ]
        self.adopt(moved, dtype)
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
            Each is called with a `bpaccel.training.callback.Progress` at each row; True ends the training.
            `bpaccel.callbacks` has early stopping, checkpoints, schedules of the rate, a progress bar, and the protocol
            of your own, `bpaccel.callbacks.Callback`.
        resume : History, str or Path, optional
            An earlier training of this network to go on with, as if it had never stopped: a History, and ``steps`` or
            ``epochs`` count the further ones, at ``learning_rate``; or the file that `bpaccel.callbacks.Checkpoint`
            wrote, and they are those of the whole training, at the rate that it had: the call that was killed is
            repeated, and ends with the same bytes. L-BFGS goes on from its weights with an empty memory, and ends with
            other bytes.
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
        FileNotFoundError
            If ``resume`` is the path of no file.
        ModelFileError
            If that file is damaged.
        """
        if flag("progress", progress):
            from bpaccel.callbacks import ProgressBar  # few trainings are watched

            callbacks = [*functions("callbacks", callbacks), ProgressBar()]
        options = Options(steps, epochs, learning_rate, reduction, solver, batch_size, shuffle, seed, l1, l2, clip,
                          dropout, engine, threads, record_every, callbacks, resume)  # fmt: skip
        return run.train(self, X, y, sample_weight, options)

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
        return _home(X, backend, feed(weights, X.array, self.activations, backend, dtype))

    def layers(self, X):
        """All layers: ``[X, l1, l2, ...]``, the article's ``l0, l1, l2``; each of shape (N, O)."""
        X = matrix(X, columns=self.layer_sizes[0])
        backend, dtype, weights = self._place(X)
        with backend.active():
            layers = core.forward(weights, backend.asarray(dense(X.array), dtype), self.activations)
            return [_home(X, backend, l) for l in layers]

    def errors(self, X, y):
        """Each layer's error: ``[l1_error, l2_error, ...]``, the last being ``y - output``, of shape (N, O).

        That of a layer below is what it contributed to the error above: ``delta @ W.T``.
        """
        X = matrix(X, columns=self.layer_sizes[0])
        rows = self.rows(X, y)
        weights = [rows.backend.asarray(W, rows.dtype) for W in self.weights]
        with rows.backend.active():
            X_here, y_here, _ = rows.read(0, rows.n)
            layers = core.forward(weights, X_here, self.activations)
            deltas = core.backward(weights, layers, y_here, self.activations, self.loss_function)
            errors = [d @ W[:n, :].T for d, W, n in zip(deltas[1:], weights[1:], self.layer_sizes[1:])]
            return [_home(X, rows.backend, e) for e in [*errors, y_here - layers[-1]]]

    def loss(self, X, y, *, sample_weight=None, reduction="mean", l1=0.0, l2=0.0):
        """The objective at these rows, a float: what `train` minimises, with the same arguments."""
        objective = Objective.of(self, reduction, l1, l2)
        rows, sums, _, penalty = self._evaluate(objective, X, y, sample_weight)
        totals = np.append(rows.backend.to_numpy(sums.totals), rows.backend.to_numpy(penalty))
        return float(objective.value(totals))

    def gradients(self, X, y, *, sample_weight=None, reduction="mean", l1=0.0, l2=0.0):
        """The gradient of `loss` by each weight matrix, in its true sign: a list of arrays where X lives."""
        objective = Objective.of(self, reduction, l1, l2)
        X = matrix(X, columns=self.layer_sizes[0])
        rows, _, updates, _ = self._evaluate(objective, X, y, sample_weight)
        return [_home(X, rows.backend, -u) for u in updates]

    def save(self, path):
        """Write the network to a file, which `bpaccel.load` reads; replaces it whole or not at all."""
        # Imported here, for the modules that files need cost as much as all others, and few trainings are saved.
        from bpaccel import storage

        storage.write(path, *self.to_parts())

    def to_parts(self):
        """A header of JSON values, and the weights as NumPy arrays: what a file of this network holds."""
        if not Objective.of(self).known:
            message = "a network with a loss or an activation of your own cannot be saved: keep its weights instead."
            raise ValueError(message)
        arrays = {f"weights.{k}": backend_of(W).to_numpy(W) for k, W in enumerate(self.weights)}
        if not all(np.all(np.isfinite(W)) for W in arrays.values()):
            message = "a network with weights that are nan or infinite cannot be saved: set finite ones, or train it."
            raise ValueError(message)
        header = {
            "kind": "network",
            "layer_sizes": list(self.layer_sizes),
            "activation": [f.name for f in self.activations],
            "loss": self.loss_function.name,
            "bias": self.bias,
            "dtype": self.dtype,
        }
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
            layer_sizes, bias, dtype = sizes(header["layer_sizes"]), header["bias"], header["dtype"]
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
        weights = [backend_of(W).to_numpy(W) for W in self.weights]
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
                 f"{sum(math.prod(W.shape) for W in self.weights):,} weights"]  # fmt: skip
        for k, (inputs, outputs) in enumerate(pairwise(self.layer_sizes)):
            bias = " + bias" if self.bias else ""
            lines.append(f"  l{k + 1} = {self.activations[k].name}(l{k} @ syn{k}{bias}): {inputs} -> {outputs}")
        return "\n".join(lines)

    def rows(self, X, y, sample_weight=None, *, widest=False):
        """The rows that this network is trained on: checked, converted, and moved to where it computes.

        Parameters
        ----------
        X, y, sample_weight : arrays
            See `train`.
        widest : bool
            Whether they are to be in float64, where the device has it.

        Returns
        -------
        Rows
        """
        X = matrix(X, columns=self.layer_sizes[0])
        if self.activations[-1].slope is None and getattr(y, "ndim", np.ndim(y)) == 1:
            raise ValueError("`y` must be one-hot, of shape (N, C), for a softmax output; got class labels of shape "
                            f"({len(y)},). Use classes, Y = bp.one_hot(y).")  # fmt: skip
        y = targets(y, X.array.shape[0], self.layer_sizes[-1])
        weight = None if sample_weight is None else given(sample_weight, "sample_weight")
        backend = resolve(self._backend, X=X.home, y=y.home, sample_weight=weight and weight.home)
        check_targets(y, self.loss_function)
        dtype = self.dtype or float_dtype(X.array, backend)
        backend.check_dtype(dtype)
        return Rows(X, y, weight, backend=backend, dtype=backend.widest if widest else dtype, own_dtype=dtype)

    def _place(self, X):
        """Where and in what to compute for X alone, and the weights there."""
        backend = resolve(self._backend, X=X.home)
        dtype = self.dtype or float_dtype(X.array, backend)
        backend.check_dtype(dtype)
        return backend, dtype, [backend.asarray(W, dtype) for W in self.weights]

    def _evaluate(self, objective, X, y, sample_weight):
        rows = self.rows(X, y, sample_weight)
        weights = [rows.backend.asarray(W, rows.dtype) for W in self.weights]
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


def _floats(W, dtype):
    """A matrix in a dtype of floats, where it is; in the widest that its device has, if it lacks that one."""
    home = backend_of(W)
    return home.asarray(W, dtype if dtype in home.floats else home.widest)


def _home(X, backend, result):
    """A result, brought back to where the caller's X, a `Given`, lives."""
    if X.backend.same_place(backend):
        return result
    return X.backend.asarray(backend.to_numpy(result))
