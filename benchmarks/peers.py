"""The peers: what a user would pick instead of us, training the same network on the same rows.

Each is a class with the contract of `bpaccel.bench.workloads.Tutorial`, so that `bpaccel.bench.Timer` times them all:
made of a workload and its rows, NumPy arrays X (N, I) and y (N, O); `restart`, `advance`, `wait`; and `reach`, the
weights as NumPy arrays. Adding one is a class and a row of `PEERS`. Nothing is imported before it is asked for.

All train sigmoid layers without bias on half the squared error, by full-batch gradient descent; where a library cannot,
its class says what it does instead.
"""

import functools
import importlib.util
import os
import tempfile
import warnings

import numpy as np

from bpaccel.bench.workloads import Case, Ours, Tutorial
from bpaccel.engines.cpu.library import why_not


class Peer:
    """A training by another library.

    Attributes
    ----------
    needs : str
        What must be importable.
    differs : str
        What its work differs in; nothing where its weights must become those of the core.
    """

    needs = "numpy"
    differs = ""

    def __init__(self, work, X, y):
        self.work, self.dtype, self.rate = work, X.dtype.name, work.rate / len(X)
        self.X, self.y = self.array(X), self.array(y)
        self.restart()

    @classmethod
    def refuses(cls, layer_sizes, dtype):
        """Why it cannot train a network, in words; None if it can."""
        if importlib.util.find_spec(cls.needs) is None:
            return f"not installed: pip install {cls.needs}"
        return None

    def array(self, x):
        """A NumPy array as one of the library's."""
        return x

    def restart(self):
        """Back to the weights before the first step."""
        self.step, self.weights = 0, [self.array(W) for W in self.work.weights(self.dtype)]

    def advance(self, steps):
        """Take some steps."""
        raise NotImplementedError

    def wait(self):
        """Until the device has done it."""

    def reach(self):
        """The weights that the steps have reached, as NumPy arrays."""
        return [np.asarray(W) for W in self.weights]


def step(sigmoid, weights, X, y, rate):
    """The tutorial's formulas for any number of layers, in arrays of any library: the weights after a step."""
    layers = [X]
    for W in weights:
        layers.append(sigmoid(layers[-1] @ W))
    delta = (y - layers[-1]) * layers[-1] * (1 - layers[-1])
    updates = [layers[-2].T @ delta]
    for W, l, below in zip(weights[:0:-1], layers[-2:0:-1], layers[-3::-1]):
        delta = (delta @ W.T) * l * (1 - l)
        updates.append(below.T @ delta)
    return [W + rate * u for W, u in zip(weights, updates[::-1])]


class TutorialPeer(Tutorial, Peer):
    """The tutorial's own NumPy code, of its three-layer network and of its two-layer one."""

    refuses = classmethod(
        lambda cls, sizes, dtype: None if len(sizes) <= 3 else "the tutorial has two layers of weights at most"
    )

    def advance(self, steps):
        if len(self.weights) == 2:
            super().advance(steps)
            return

        def nonlin(x, deriv=False):
            if deriv:
                return x * (1 - x)
            return 1 / (1 + np.exp(-x))

        X, y, rate = self.X, self.y, self.work.rate / len(self.X)
        (syn0,) = self.weights
        for _ in range(steps):
            l0 = X
            l1 = nonlin(np.dot(l0, syn0))
            l1_error = y - l1
            l1_delta = l1_error * nonlin(l1, True)
            syn0 += rate * np.dot(l0.T, l1_delta)
        self.step += steps


class TorchEager(Peer):
    """The tutorial's formulas on torch, an operation after the other."""

    needs = "torch"

    def array(self, x):
        import torch

        return torch.from_numpy(x)

    @functools.cached_property
    def one(self):
        import torch

        return self.compiled(functools.partial(step, torch.sigmoid))

    def compiled(self, one):
        return one

    def advance(self, steps):
        import torch

        with torch.no_grad():
            for _ in range(steps):
                self.weights = self.one(self.weights, self.X, self.y, self.rate)
        self.step += steps


class TorchCompile(TorchEager):
    """The same under torch.compile, a call a step."""

    def compiled(self, one):
        import torch

        torch.compiler.reset()  # a network's, not the last one's: torch counts how often it compiles a function anew
        return torch.compile(one, dynamic=False)


class TorchSGD(TorchEager):
    """torch.autograd and torch.optim.SGD."""

    def restart(self):
        import torch

        super().restart()
        for W in self.weights:
            W.requires_grad_()
        self.optimizer = torch.optim.SGD(self.weights, lr=self.rate)

    def advance(self, steps):
        import torch

        for _ in range(steps):
            l = self.X
            for W in self.weights:
                l = torch.sigmoid(l @ W)
            loss = 0.5 * ((self.y - l) ** 2).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.step += steps

    def reach(self):
        return [W.detach().numpy() for W in self.weights]


class JaxJit(Peer):
    """The tutorial's formulas under jax.jit, a call a step."""

    needs = "jax"

    @classmethod
    def refuses(cls, layer_sizes, dtype):
        if reason := super().refuses(layer_sizes, dtype):
            return reason
        import jax

        if dtype == "float64" and not jax.config.jax_enable_x64:
            return "float64 needs JAX_ENABLE_X64=1"
        return None

    def array(self, x):
        import jax.numpy as jnp

        return jnp.asarray(x)

    @functools.cached_property
    def run(self):
        import jax

        return self.compiled(functools.partial(step, jax.nn.sigmoid))

    def compiled(self, one):
        import jax

        one = jax.jit(one)

        def run(weights, X, y, rate, steps):
            for _ in range(steps):
                weights = one(weights, X, y, rate)
            return weights

        return run

    def advance(self, steps):
        self.weights = self.run(self.weights, self.X, self.y, self.rate, steps)
        self.step += steps

    def wait(self):
        import jax

        jax.block_until_ready(self.weights)


class JaxLoop(JaxJit):
    """The same, all steps in one jax.lax.fori_loop."""

    def compiled(self, one):
        import jax

        @jax.jit
        def run(weights, X, y, rate, steps):
            return jax.lax.fori_loop(0, steps, lambda _, weights: one(weights, X, y, rate), weights)

        return run


class ScikitLearn(Peer):
    """scikit-learn's MLPRegressor: `fit` with one batch of all rows, max_iter steps of plain sgd, no penalty."""

    needs = "sklearn"
    differs = "biases, no sigmoid at the output, its own weights to begin with"

    @classmethod
    def refuses(cls, layer_sizes, dtype):
        if len(layer_sizes) < 3:
            return "its output has no sigmoid, so that a network without hidden layers is a linear regression"
        return super().refuses(layer_sizes, dtype)

    def restart(self):
        from sklearn.neural_network import MLPRegressor

        self.step, n = 0, len(self.X)
        self.model = MLPRegressor(
            hidden_layer_sizes=self.work.layer_sizes[1:-1], activation="logistic", solver="sgd", alpha=0.0,
            batch_size=n, shuffle=False, momentum=0.0, nesterovs_momentum=False, learning_rate_init=0.01, tol=0.0,
            n_iter_no_change=10**9, warm_start=True, random_state=1,
        )  # fmt: skip

    def advance(self, steps):
        self.model.max_iter = steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            self.model.fit(self.X, self.y if self.y.shape[1] > 1 else self.y[:, 0])
        self.step += steps

    def reach(self):
        return self.model.coefs_


class Keras(JaxJit):
    """Keras 3 on JAX: Dense layers without bias, SGD, `train_on_batch` with all rows."""

    needs = "keras"

    def restart(self):
        # Read when Keras is imported; it would write a folder into the user's home.
        os.environ.setdefault("KERAS_BACKEND", "jax")
        os.environ.setdefault("KERAS_HOME", tempfile.gettempdir())
        import keras

        sizes, self.step = self.work.layer_sizes, 0
        if not hasattr(self, "model"):
            dense = [
                keras.layers.Dense(size, "sigmoid", use_bias=False, dtype=self.dtype, kernel_initializer="zeros")
                for size in sizes[1:]
            ]
            self.model = keras.Sequential([keras.Input((sizes[0],), dtype=self.dtype), *dense])
            # Its loss is the mean of the squares over outputs and rows: ours times 2 / O.
            rate = self.work.rate * sizes[-1] / 2
            self.model.compile(keras.optimizers.SGD(rate), "mean_squared_error")
        self.model.set_weights(self.work.weights(self.dtype))

    def advance(self, steps):
        for _ in range(steps):
            self.model.train_on_batch(self.X, self.y)
        self.step += steps

    def wait(self):
        pass  # the loss that train_on_batch returns is a number of Python's

    def reach(self):
        return self.model.get_weights()


class OurTraining(Ours):
    """bpaccel, as a peer among peers."""

    needs, differs, backend_name, engine_name = "numpy", "", "numpy", "auto"

    def __init__(self, work, X, y):
        case = Case(self.backend_name, self.engine_name, X.dtype.name, len(X), work.layer_sizes)
        super().__init__(case, (X, y))

    @classmethod
    def refuses(cls, layer_sizes, dtype):
        return Peer.refuses.__func__(cls, layer_sizes, dtype)

    def reach(self):
        return [self.backend.to_numpy(W) for W in self.weights]


class OurFused(OurTraining):
    """bpaccel's engine fused: the compiled kernels."""

    engine_name = "fused"

    @classmethod
    def refuses(cls, layer_sizes, dtype):
        return super().refuses(layer_sizes, dtype) or why_not()


class OurBlocked(OurTraining):
    """bpaccel's engine blocked: NumPy alone."""

    engine_name = "blocked"


PEERS = {
    "bpaccel fused": OurFused,
    "bpaccel blocked": OurBlocked,
    "tutorial NumPy": TutorialPeer,
    "torch eager": TorchEager,
    "torch autograd": TorchSGD,
    "torch.compile": TorchCompile,
    "JAX jit": JaxJit,
    "JAX fori_loop": JaxLoop,
    "scikit-learn": ScikitLearn,
    "Keras (JAX)": Keras,
}


class WrongPeer(ValueError):
    """A peer does not take the steps of the core, so that it is not timed."""


def check(peer, steps=3):
    """Raise `WrongPeer` unless some steps lead a fresh peer to the weights of the core in float64, on the table alone.

    In float32 a library that adds n rows one after the other is off by some thousandths of what the weights moved; a
    wrong formula by more than that. In float64 Keras is off by 1e-7, for it keeps the rate in float32.
    """
    if peer.differs:
        return
    peer.advance(steps)
    peer.wait()
    dtype = peer.reach()[0].dtype.name
    first, should = peer.work.weights(), peer.work.after(steps)
    for k, (is_, before, after) in enumerate(zip(peer.reach(), first, should, strict=True)):
        off = float(np.max(np.abs(is_ - after)) / np.max(np.abs(after - before)))
        if not off <= (0.01 if dtype == "float32" else 1e-6):
            raise WrongPeer(f"wrong, so not timed: weights[{k}] are {off:.3g} of their way from the core's")
    peer.restart()
