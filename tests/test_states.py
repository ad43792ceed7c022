"""Whatever is done to a model, in any order, ends in a model that saves and loads to the same bytes.

A state machine of hypothesis makes, sets, moves, trains, interrupts, saves, loads, goes on with, and copies; after each
step the model, and what training left, are held to what they promise. ``make torture`` runs more of them.
"""

import copy
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import bpaccel as bp
from bpaccel.backends import backend_of, dtype_name
from bpaccel.callbacks import Checkpoint

X = np.random.default_rng(0).standard_normal((30, 3))
Y = np.random.default_rng(1).random((30, 2))
TABLE = {"a": X[:, 0], "b": X[:, 1], "number": Y[:, 0], "kind": np.where(Y[:, 1] > 0.5, "yes", "no")}
PLACES = [None, "numpy", *(["array_api_strict"] if bp.available_backends()["array_api_strict"] == "usable" else [])]
DTYPES = st.sampled_from([None, "float32", "float64"])
TRAININGS = st.fixed_dictionaries({
    "solver": st.sampled_from(["gradient_descent", "momentum", "adam", "rmsprop"]),
    "batch_size": st.sampled_from([None, 7]),
    "record_every": st.sampled_from([1, 3, None]),
})  # fmt: skip
COUNT = int(os.environ.get("BPACCEL_STATES", "8"))


def interrupt_at(row):
    def callback(progress):
        if len(progress.history) >= row:
            raise KeyboardInterrupt

    return callback


class Models(RuleBasedStateMachine):
    """What a Network and a TableModel share: subclasses say how to make and to train."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.bp"
        self.run = Path(self.folder.name) / "run.bp"
        self.history, self.options, self.killed = None, None, None

    def teardown(self):
        self.folder.cleanup()

    @property
    def network(self):
        return self.model

    @rule(options=TRAININGS, steps=st.integers(1, 12))
    def train(self, options, steps):
        self.history, self.options = self.fit(steps=steps, **options), options
        assert self.history.stopped == "steps"

    @rule(options=TRAININGS, row=st.integers(1, 5))
    def interrupt(self, options, row):
        self.history = self.fit(steps=30, **options | {"record_every": 1}, callbacks=[interrupt_at(row)])
        self.options = options | {"record_every": 1}
        assert self.history.stopped == "interrupted"
        assert self.history.state.step == self.history.step[-1] + 1 == row

    @precondition(lambda self: self.history is not None)
    @rule(steps=st.integers(1, 6))
    def go_on(self, steps):
        done = self.history.state.step
        try:
            history = self.fit(steps=steps, resume=self.history, **self.options)
        except ValueError as error:  # the weights were set since, or rounded on the way to another dtype
            if not ("have been changed since" in str(error) or "dtype" in str(error)):
                raise
            self.history = None
            return
        assert history.state.step == history.step[-1] + 1 == done + steps
        self.history = history

    @rule(options=TRAININGS, row=st.integers(1, 5))
    def kill(self, options, row):
        """Cut a training short that has a checkpoint; the model is then that of a process that has just begun."""

        class Killed(BaseException):
            pass

        def kill(progress):
            if len(progress.history) > row:
                raise Killed

        before = pickle.dumps(self.model)
        options = options | {"record_every": 1, "seed": 3} if not isinstance(self.model, bp.TableModel) else options
        options = options | {"record_every": 1}
        try:
            self.fit(steps=9, callbacks=[kill, Checkpoint(self.run)], **options)
        except Killed:
            pass
        else:
            raise AssertionError("it was to be killed")
        self.model = pickle.loads(before)
        whole = self.fit(steps=9, **options)
        weights = [backend_of(W).to_numpy(W).tobytes() for W in self.network.weights]
        self.model = pickle.loads(before)
        self.history, self.options = self.fit(steps=9, resume=self.run, **options), options
        assert [backend_of(W).to_numpy(W).tobytes() for W in self.network.weights] == weights
        for name, column in whole.to_dict().items():
            assert name == "seconds" or column == getattr(self.history, name)

    @rule()
    def load(self):
        self.model.save(self.path)
        self.model = bp.load(self.path)
        self.model.seed = 1  # of a TableModel's weights; a file holds weights, and not how they were drawn

    @rule(how=st.sampled_from([copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]))
    def copied(self, how):
        self.model = how(self.model)

    @rule(place=st.sampled_from(PLACES), dtype=DTYPES)
    def move(self, place, dtype):
        assert self.model.to(place, dtype) is self.model
        if dtype is not None:
            assert {dtype_name(W) for W in self.network.weights} == {dtype}

    @invariant()
    def saves_and_loads_to_the_same_bytes(self):
        if not hasattr(self, "model"):
            return
        self.model.save(self.path)
        again = bp.load(self.path)
        again.save(f"{self.path}2")
        assert self.path.read_bytes() == Path(f"{self.path}2").read_bytes()
        names = {dtype_name(W) for W in self.network.weights}
        assert len(names) == 1
        assert self.network.dtype in (None, *names)
        for V, W in zip(self.network.weights, _weights(again), strict=True):
            np.testing.assert_array_equal(backend_of(V).to_numpy(V), W)


def _weights(model):
    return model.network.weights if isinstance(model, bp.TableModel) else model.weights


class Networks(Models):
    @initialize(
        hidden=st.integers(0, 4), bias=st.booleans(), dtype=DTYPES, activation=st.sampled_from(["tanh", "relu"])
    )
    def make(self, hidden, bias, dtype, activation):
        sizes = [3, hidden, 2] if hidden else [3, 2]
        self.model = bp.Network(sizes, activation=[activation] * (len(sizes) - 2) + ["sigmoid"], bias=bias, seed=0,
                                dtype=dtype)  # fmt: skip

    def fit(self, **options):
        return self.model.train(X, Y, **{"learning_rate": 0.05, "seed": 3, **options})

    @rule(dtype=st.sampled_from(["float16", "float32", "float64", "int32"]), in_place=st.booleans())
    def set(self, dtype, in_place):
        weights = [(3 * np.ones(tuple(W.shape))).astype(dtype) for W in self.model.weights]
        if in_place:
            self.model.weights[0] = weights[0]
        else:
            self.model.weights = weights

    @rule(wrong=st.sampled_from([np.nan, np.inf, 1j, "1", True]))
    def set_wrong(self, wrong):
        before = [backend_of(W).to_numpy(W).tobytes() for W in self.model.weights]
        try:
            self.model.weights = [np.full(tuple(W.shape), wrong) for W in self.model.weights]
        except ValueError:
            assert [backend_of(W).to_numpy(W).tobytes() for W in self.model.weights] == before
        else:
            raise AssertionError(f"weights of {wrong!r} were taken")


class Tables(Models):
    @property
    def network(self):
        return self.model.network

    @initialize(learned=st.sampled_from(["number", "kind"]), hidden=st.sampled_from([(), (4,)]), dtype=DTYPES)
    def make(self, learned, hidden, dtype):
        self.learned, self.model = learned, bp.TableModel(hidden=hidden, seed=1, dtype=dtype)
        self.fit(steps=2)

    def fit(self, **options):
        table = {k: v for k, v in TABLE.items() if k in ("a", "b", self.learned)}
        return self.model.fit(table, self.learned, **{"learning_rate": 0.01, **options})

    @rule()
    def refused(self):
        before = dict(vars(self.model))
        for table, target in (
            ({"a": [1.0, np.nan], "y": [0.0, 1.0]}, "y"),
            ({"y": [1.0, 2.0]}, "y"),
            (TABLE, "nothing"),
        ):
            try:
                self.model.fit(table, target)
            except ValueError:
                assert vars(self.model) == before
            else:
                raise AssertionError("it was to be refused")


SETTINGS = settings(max_examples=COUNT, stateful_step_count=12, suppress_health_check=list(HealthCheck))
TestNetworks, TestTables = Networks.TestCase, Tables.TestCase
TestNetworks.settings = TestTables.settings = SETTINGS
