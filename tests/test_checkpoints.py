"""Checkpoints: a training that was killed goes on to the bytes of the unbroken one; what changed meanwhile is refused.

A kill is played by an exception that no code of ours handles, so that only what is in the file is left. The real kills
are in tests/torture.py.
"""

import json
import math
import tracemalloc

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import storage
from bpaccel.callbacks import Callback, Checkpoint, Cosine, EarlyStopping, Schedule, StepDecay
from bpaccel.engines.blocked import Array
from bpaccel.solvers import SOLVERS, Adam, Momentum
from bpaccel.training import checkpoint, descent

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.random((50, 3)), RANDOM.random(50)
X_VAL, Y_VAL = RANDOM.random((20, 3)), RANDOM.random(20)


class Killed(BaseException):
    """A kill: not an Exception, so that nobody takes it for an answer."""


def kill_at(row):
    def callback(progress):
        if len(progress.history) == row:
            raise Killed

    return callback


def network(**options):
    return bp.Network([3, 5, 1], activation=["tanh", "identity"], seed=1, **options)


def columns(history):
    found = history.to_dict()
    del found["seconds"]
    return found


def assert_same(one, other):
    """Weights and history of two trainings, to the byte."""
    (a, h), (b, k) = one, other
    assert [bp.backends.backend_of(W).to_numpy(W).tobytes() for W in a.weights] == [
        bp.backends.backend_of(W).to_numpy(W).tobytes() for W in b.weights
    ]
    assert json.dumps(columns(h)) == json.dumps(columns(k))
    assert h.stopped == k.stopped


def killed_and_resumed(path, make, rows=(3, 4, 9), callbacks=list, **options):
    """A training that is killed at some rows, and begun again each time with what is in the file."""
    for number, row in enumerate(rows):
        resume = {"resume": path} if number else {}
        with pytest.raises(Killed):
            make().train(X, Y, callbacks=[*callbacks(), kill_at(row), Checkpoint(path)], **options, **resume)
    again = make()
    return again, again.train(X, Y, callbacks=[*callbacks(), Checkpoint(path)], resume=path, **options)


TRAININGS = {
    **{f"{name}-{size}": {"solver": name, "batch_size": size} for name in SOLVERS for size in (None, 7)},
    "own hyperparameters": {"solver": Adam(0.8, 0.99, 1e-6), "batch_size": 16},
    "dropout": {"dropout": 0.3, "batch_size": 16, "solver": "adam"},
    "dropout, all rows": {"dropout": 0.3},
    "penalties": {"l1": 1e-3, "l2": 1e-2, "clip": 0.5, "solver": "nesterov", "batch_size": 9},
    "own order": {"shuffle": False, "batch_size": 8},
    "weights": {"sample_weight": np.linspace(0, 2, 50), "batch_size": 8},
    "array": {"engine": "array", "batch_size": 8, "solver": "adam"},
    "blocked": {"engine": "blocked", "solver": "rmsprop"},
}


@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("every", [1, 7])
def test_a_killed_training_ends_with_the_bytes_of_the_unbroken_one(options, every, tmp_path):
    options = {"steps": 90, "learning_rate": 0.03, "seed": 5, "record_every": every, **options}
    whole = network()
    want = whole, whole.train(X, Y, **options)
    assert_same(killed_and_resumed(tmp_path / "net.bp", network, **options), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_every_backend(backend, dtype, tmp_path):
    def make():
        return network(dtype=dtype, backend=backend)

    options = {"epochs": 6, "batch_size": 16, "solver": "adam", "learning_rate": 0.03, "seed": 5, "record_every": 3}
    whole = make()
    want = whole, whole.train(X, Y, **options)
    assert_same(killed_and_resumed(tmp_path / "net.bp", make, rows=(2, 4), **options), want)


@pytest.mark.parametrize("patience", [3, 1000])
def test_early_stopping_and_schedules_go_on_too(patience, tmp_path):
    """Also where the kill comes right after the row that ended the training, and before its best weights are back."""

    def callbacks():
        return [EarlyStopping(X_VAL, Y_VAL, patience=patience), Schedule(Cosine(0.2, 60))]

    options = {"steps": 60, "solver": "adam", "batch_size": 10, "seed": 2, "record_every": 2, "learning_rate": 0.2}
    whole = network()
    want = whole, whole.train(X, Y, callbacks=callbacks(), **options)
    last = len(want[1])
    for rows in ((2, 5, min(9, last)), (last,), (last - 1, last)):
        path = tmp_path / f"net{len(rows)}.bp"
        assert_same(killed_and_resumed(path, network, rows=rows, callbacks=callbacks, **options), want)


def test_what_has_ended_ends_at_once(tmp_path):
    path, options = tmp_path / "net.bp", {"steps": 500, "solver": "adam", "record_every": 1}
    first, again = network(), network()

    def stopping():
        return [EarlyStopping(X_VAL, Y_VAL, patience=2), Checkpoint(path)]

    want = first, first.train(X, Y, callbacks=stopping(), **options)
    assert want[1].stopped == "callback"
    seen = []
    got = again.train(X, Y, callbacks=[*stopping(), lambda progress: seen.append(progress)], resume=path, **options)
    assert_same((again, got), want)
    assert seen == []
    with pytest.warns(UserWarning, match="holds the state of EarlyStopping"):
        done = network().train(X, Y, steps=500, solver="adam", record_every=1, resume=path)
    assert done.step == want[1].step


def test_a_file_of_a_shorter_training_goes_on_to_the_new_end(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=30, record_every=10, callbacks=[Checkpoint(path)])
    again, whole = network(), network()
    history = again.train(X, Y, steps=80, resume=path)
    assert history.step == [0, 10, 20, 29, 30, 40, 50, 60, 70, 79]
    whole.train(X, Y, steps=80)
    assert [W.tobytes() for W in again.weights] == [W.tobytes() for W in whole.weights]


def test_the_file_is_the_model_of_the_row(tmp_path):
    kept = {}

    def keep(progress):
        kept[progress.step] = progress.network.predict(X_VAL)

    network().train(X, Y, steps=30, record_every=10, callbacks=[Checkpoint(tmp_path / "{step}.bp", every=2), keep])
    assert {path.name for path in tmp_path.iterdir()} == {"0.bp", "20.bp", "29.bp"}
    for step in (0, 20, 29):
        np.testing.assert_array_equal(bp.load(tmp_path / f"{step}.bp").predict(X_VAL), kept[step])


def test_with_rows_of_validation_the_best_is_in_the_file_and_what_goes_on_beside_it(tmp_path):
    path = tmp_path / "net.bp"
    options = {"steps": 60, "solver": "adam", "learning_rate": 0.1, "record_every": 1}
    whole, stopping = network(), EarlyStopping(X_VAL, Y_VAL, patience=1000)
    whole.train(X, Y, callbacks=[stopping], **options)
    plain = network()
    want = plain, plain.train(X, Y, **options)
    with pytest.raises(Killed):
        network().train(X, Y, callbacks=[Checkpoint(path, X_VAL, Y_VAL, every=3), kill_at(30)], **options)
    again = network()
    got = again.train(X, Y, callbacks=[Checkpoint(path, X_VAL, Y_VAL, every=3)], resume=path, **options)
    assert_same((again, got), want)
    assert bp.load(path).loss(X_VAL, Y_VAL) == stopping.best_loss
    assert {p.name for p in tmp_path.iterdir()} == {"net.bp", "net.bp.resume"}


CHANGES = {
    "rows": ({"X": X * 2}, "the same rows"),
    "targets": ({"y": Y + 1}, "the same rows"),
    "fewer rows": ({"X": X[:40], "y": Y[:40]}, "solver, rows, batch_size"),
    "weights of rows": ({"sample_weight": np.linspace(0, 1, 50)}, "the same rows"),
    "batch_size": ({"batch_size": 9}, "batch_size was 8 and is 9"),
    "shuffle": ({"shuffle": False}, "shuffle"),
    "seed": ({"seed": 4}, "seed"),
    "solver": ({"solver": "adam"}, "solver"),
    "hyperparameters": ({"solver": Momentum(0.5)}, "momentum=0.9.*and is .*momentum=0.5"),
    "reduction": ({"reduction": "sum"}, "reduction was 'mean' and is 'sum'"),
    "l1": ({"l1": 0.1}, "l1 was 0.0 and is 0.1"),
    "l2": ({"l2": 0.1}, "l2 was 0.0 and is 0.1"),
    "clip": ({"clip": 0.1}, "clip was None and is 0.1"),
    "dropout": ({"dropout": 0.1}, "dropout was None"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_changed_meanwhile_is_refused(change, message, tmp_path):
    options = {"X": X, "y": Y, "steps": 40, "solver": "momentum", "batch_size": 8, "seed": 3}
    net = network()
    history = net.train(callbacks=[Checkpoint(tmp_path / "net.bp")], **options | {"steps": 20})
    other = network()
    before = [W.tobytes() for W in other.weights]
    with pytest.raises(ValueError, match=f"`resume` must go on with .*{message}"):
        other.train(resume=tmp_path / "net.bp", **options | change)
    assert [W.tobytes() for W in other.weights] == before
    assert other.dtype is None
    if "same rows" not in message:  # a History keeps no digest of the rows
        with pytest.raises(ValueError, match=f"`resume` must go on with .*{message}"):
            net.train(resume=history, **options | change)


def test_another_network_is_refused(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=5, callbacks=[Checkpoint(path)])
    for other, message in [
        (bp.Network([3, 6, 1], activation=["tanh", "identity"]), r"layer_sizes was \[3, 5, 1\] and is \[3, 6, 1\]"),
        (bp.Network([3, 5, 1], activation=["relu", "identity"]), "activation was .*tanh.* and is .*relu"),
        (bp.Network([3, 5, 1], activation=["tanh", "identity"], loss="huber"), "loss was"),
        (network(dtype="float32"), "dtype was 'float64' and is 'float32'"),
    ]:
        with pytest.raises(ValueError, match=f"`resume` must go on with the same model: {message}"):
            other.train(X, Y, steps=9, resume=path)


def test_files_that_are_none(tmp_path):
    net, path = network(), tmp_path / "net.bp"
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        net.train(X, Y, steps=9, resume=path)
    net.save(path)
    with pytest.raises(ValueError, match="`resume` must be a file that callbacks.Checkpoint wrote"):
        net.train(X, Y, steps=9, resume=path)
    with pytest.raises(ValueError, match="`resume` must be a History that a training returned, or the path"):
        net.train(X, Y, steps=9, resume=3)
    network().train(X, Y, steps=5, callbacks=[Checkpoint(path)])
    header, arrays = storage.read(path)
    for section in ({**header["training"], "groups": 2}, {**header["training"], "plan": None}, {}, [], "text"):
        storage.write(path, {**header, "training": section}, arrays)
        with pytest.raises(bp.ModelFileError, match="contradicts itself"):
            net.train(X, Y, steps=9, resume=path)
    del arrays["training.history.loss"]
    storage.write(path, header, arrays)
    with pytest.raises(bp.ModelFileError, match="contradicts itself"):
        net.train(X, Y, steps=9, resume=path)


def test_lbfgs_goes_on_from_its_weights(tmp_path):
    pytest.importorskip("scipy")
    path, net = tmp_path / "net.bp", network()
    first = net.train(X, Y, steps=5, solver="lbfgs", record_every=1, callbacks=[Checkpoint(path)])
    again = network()
    history = again.train(X, Y, steps=12, solver="lbfgs", record_every=1, resume=path)
    assert history.step == list(range(13))
    assert history.loss[:6] == first.loss
    assert history.loss[-1] < first.loss[-1]
    more = net.train(X, Y, steps=3, solver="lbfgs", record_every=1, resume=first)
    assert more.step == list(range(9))


class Counts(Callback):
    """A callback with a state of every kind that may be."""

    def __init__(self):
        self.seen, self.began = [], None

    def begin(self, progress, resumed):
        self.began = resumed

    def __call__(self, progress):
        self.seen.append(progress.step)

    def state(self):
        return {"seen": list(self.seen), "text": "ü", "none": None, "number": 1 / 3, "whole": np.int64(3),
                "array": np.array([[math.inf, math.nan]]), "yes": True}  # fmt: skip

    def restore(self, state):
        self.seen, self.restored = state["seen"], state


def test_the_state_of_a_callback_comes_back(tmp_path):
    path, first, again, other = tmp_path / "net.bp", Counts(), Counts(), Counts()
    with pytest.raises(Killed):
        network().train(X, Y, steps=9, record_every=1, callbacks=[first, Checkpoint(path), kill_at(4)])
    network().train(X, Y, steps=9, record_every=1, callbacks=[again, other], resume=path)
    assert again.seen == list(range(9))[: len(again.seen)]
    assert again.seen[-1] == 8
    assert (again.began, first.began) == (True, False)
    state = again.restored
    assert (state["text"], state["none"], state["number"], state["whole"], state["yes"]) == ("ü", None, 1 / 3, 3, True)
    np.testing.assert_array_equal(state["array"], [[math.inf, math.nan]])
    assert not hasattr(other, "restored")  # the second of its class, of which the file has none


@pytest.mark.parametrize(("value", "kind"), [({}, "dict"), ([[1]], "list"), (object(), "object"), ({1}, "set"),
                                             (np.array(["a"]), "ndarray"), (1j, "complex")])  # fmt: skip
def test_a_state_that_no_file_can_hold_is_refused_with_its_key(value, kind, tmp_path):
    class Odd(Callback):
        def state(self):
            return {"fine": 1, "odd": value}

    with pytest.raises(ValueError, match=f"the state of callback Odd must hold .*'odd' is of type {kind}"):
        network().train(X, Y, steps=9, callbacks=[Odd(), Checkpoint(tmp_path / "net.bp")])


def test_a_state_that_nobody_takes_is_told_of(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=9, callbacks=[EarlyStopping(), Checkpoint(path)])
    with pytest.warns(UserWarning, match="holds the state of EarlyStopping"):
        network().train(X, Y, steps=19, resume=path, callbacks=[Checkpoint(path)])


def test_an_engine_that_is_not_here_is_replaced_and_said(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=9, callbacks=[Checkpoint(path)], engine="array")
    header, arrays = storage.read(path)
    for engine in ("cuda", "of another version", "numba"):
        header["training"]["engine"] = engine
        storage.write(path, header, arrays)
        history = network().train(X, Y, steps=19, resume=path)
        assert history.engine in ("fused", "array")
        if engine != "numba":
            assert f"engine {engine!r}, which began this training, cannot go on with it: " in history.reason


TABLE = {"a": X[:, 0], "b": X[:, 1], "label": np.where(Y > 0.5, "high", "low"), "y": Y}
FITS = {
    "classification": ("label", {"batch_size": 8}),
    "regression": ("y", {}),
    "early stopping": ("y", {"record_every": 1}),
}


@pytest.mark.parametrize(("target", "options"), FITS.values(), ids=FITS)
def test_a_table_model_goes_on(target, options, tmp_path):
    path = tmp_path / "model.bp"
    options = {"epochs": 8, **options}
    table = {k: v for k, v in TABLE.items() if k != ("y" if target == "label" else "label")}
    whole = bp.TableModel(seed=3)
    want = whole.fit(table, target, **options)
    with pytest.raises(Killed):
        bp.TableModel(seed=3).fit(table, target, callbacks=[Checkpoint(path), kill_at(3)], **options)
    assert isinstance(bp.load(path), bp.TableModel)
    again = bp.TableModel(seed=3)
    got = again.fit(table, target, callbacks=[Checkpoint(path)], resume=path, **options)
    assert_same((again.network, got), (whole.network, want))
    np.testing.assert_array_equal(bp.load(path).predict(table), whole.predict(table))
    changed = table | {"a": table["a"] * 2 + 1}
    with pytest.raises(ValueError, match="`resume` must go on with the same model: its scaling.means"):
        again.fit(changed, target, resume=path, **options)
    with pytest.raises(ValueError, match="`resume` must go on with the same model: columns was"):
        again.fit({"c" if k == "b" else k: v for k, v in table.items()}, target, resume=path, **options)


def test_a_table_model_goes_on_from_its_history():
    """At bc13972 the weights were drawn anew, under the solver's state of the old ones."""
    table = {"a": X[:, 0], "b": X[:, 1], "y": Y}
    whole, parts = bp.TableModel(seed=3), bp.TableModel(seed=3)
    whole.fit(table, "y", epochs=8)
    history = parts.fit(table, "y", epochs=3)
    parts.fit(table, "y", epochs=5, resume=history)
    assert [W.tobytes() for W in parts.network.weights] == [W.tobytes() for W in whole.network.weights]
    with pytest.raises(ValueError, match="scaling"):
        parts.fit(table | {"a": table["a"] * 3}, "y", epochs=5, resume=history)
    with pytest.raises(ValueError, match="not been trained"):
        bp.TableModel(seed=3).fit(table, "y", epochs=5, resume=history)


def test_what_an_earlier_training_left_beside_the_file_is_not_taken_for_this_ones(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=5, record_every=1, callbacks=[Checkpoint(path, X_VAL, Y_VAL)])
    network().train(X, Y, steps=40, record_every=1, callbacks=[Checkpoint(path)])
    assert checkpoint.find(path).state.step == 40
    network().train(X, Y, steps=7, record_every=1, callbacks=[Checkpoint(path, X_VAL, Y_VAL)])
    assert checkpoint.find(path).state.step == 7


@pytest.mark.parametrize("by", ["step", "epoch"])
def test_a_schedule_goes_on_from_between_two_rows(by, tmp_path, monkeypatch):
    """The rate between two rows is that of the row before, also after an interrupt."""
    monkeypatch.setattr(descent, "SLICE_STEPS", 3)
    path, options = tmp_path / "net.bp", {"steps": 40, "record_every": 10, "batch_size": 20, "seed": 1}

    class Interrupted(Array):
        def run(self, *args):
            if args[-1] <= 15 < args[-1] + len(args[-2]):
                raise KeyboardInterrupt
            return super().run(*args)

    def callbacks():
        return [Schedule(StepDecay(0.1, every=3, factor=0.7), by=by), Checkpoint(path)]

    whole = network()
    want = whole, whole.train(X, Y, callbacks=callbacks(), engine="array", **options)
    cut = network()
    first = callbacks()
    history = cut.train(X, Y, callbacks=first, engine=Interrupted, **options)
    assert history.stopped == "interrupted"
    assert history.state.step > history.step[-1] + 1
    again = network()
    assert_same((again, again.train(X, Y, callbacks=callbacks(), engine="array", resume=path, **options)), want)
    rest = options | {"steps": 40 - history.state.step}
    assert_same((cut, cut.train(X, Y, callbacks=first, engine="array", resume=history, **rest)), want)


def test_states_of_every_shape_come_back(tmp_path):
    class Shapes(Callback):
        def state(self):
            return {"point": np.array(3.0), "empty": np.zeros((0, 2)), "long": list(range(5000)), "floats": [0.5] * 200,
                    "half": np.ones(3, np.float16)}  # fmt: skip

        def restore(self, state):
            self.found = state

    path, again = tmp_path / "net.bp", Shapes()
    network().train(X, Y, steps=3, callbacks=[Shapes(), Checkpoint(path)])
    assert len(storage.read(path)[0]["training"]["callbacks"][0][1]) == 0  # the long lists are no part of the header
    network().train(X, Y, steps=5, callbacks=[again], resume=path)
    assert again.found["long"] == list(range(5000))
    assert again.found["floats"] == [0.5] * 200
    for name, value in Shapes().state().items():
        if isinstance(value, np.ndarray):
            assert (again.found[name].shape, again.found[name].dtype) == (value.shape, value.dtype)


def test_a_state_that_does_not_fit_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=3, callbacks=[Counts(), Checkpoint(path)])

    class Other(Counts):
        def restore(self, state):
            self.other = state["other"]

    Other.__qualname__ = Counts.__qualname__
    with pytest.raises(ValueError, match="a state of .*Counts that this one cannot take over"):
        network().train(X, Y, steps=5, callbacks=[Other()], resume=path)


@pytest.mark.parametrize(("call", "message"), [
    (lambda path: Checkpoint(None), "`path` must be the path of a file"),
    (lambda path: Checkpoint(""), "`path` must be the path of a file"),
    (lambda path: network().train(X, Y, steps=5, callbacks=[Checkpoint]), "got the class Checkpoint: give Checkpoint"),
    (lambda path: network().train(X, Y, steps=5, callbacks=[Finishes()]), "Finishes has a method 'finish'"),
    (lambda path: network().train(X, Y, steps=5, resume=""), "`resume` must be a History"),
    (lambda path: network().train(X, Y, steps=5, resume=path), "of which the checkpoint has done 20"),
    (lambda path: network().train(X, Y, steps=30, resume=path, learning_rate=0.5), "learning_rate was 1.0 and is 0.5"),
    (lambda path: own().train(X, Y, steps=5, callbacks=[Checkpoint(path)]), "loss or an activation of your own"),
])  # fmt: skip
def test_wrong_arguments_are_refused_before_the_first_step(call, message, tmp_path):
    path = tmp_path / "net.bp"
    network().train(X, Y, steps=20, callbacks=[Checkpoint(path)])
    with pytest.raises(ValueError, match=message):
        call(path)


class Finishes:
    """A callback of an earlier version."""

    def __call__(self, progress):
        pass

    def finish(self, network, history):
        pass


def own():
    return bp.Network([3, 1], activation="identity", loss=(lambda y, l: (y - l) ** 2, lambda y, l: 2 * (l - y)), seed=0)


def test_sparse_rows_are_compared_without_being_made_dense(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    wide = sparse.random_array((2000, 20_000), density=1e-4, format="csr", rng=np.random.default_rng(0))
    rows = bp.Network([20_000, 2, 1], seed=0).rows(wide, np.ones(2000))
    tracemalloc.start()
    found = rows.digest
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert found == bp.Network([20_000, 2, 1], seed=0).rows(wide.copy(), np.ones(2000)).digest
    assert found != bp.Network([20_000, 2, 1], seed=0).rows(2 * wide, np.ones(2000)).digest
