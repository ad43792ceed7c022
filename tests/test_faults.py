"""Faults that were found in the field, each under its number: the right value, which commit bc13972 did not give.

A: work was lost. B: something was silently wrong. What belongs to a kind that has a file of its own is tested there,
too: files (test_files, test_storage), checkpoints (test_checkpoints, test_estimators_resume), callbacks
(test_callback_matrix), arguments (test_checks), rows of the tables (test_rows_not_names).
"""

import copy
import os
import pickle
import signal

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import losses, solvers
from bpaccel.activations import ACTIVATIONS, Activation
from bpaccel.callbacks import Callback, Checkpoint, EarlyStopping, Schedule, StepDecay
from bpaccel.data import Rows
from bpaccel.training.interrupts import Interrupts

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(400, 6)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 4, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn")


def saved_and_loaded(model, path):
    model.save(path)
    again = bp.load(path)
    again.save(f"{path}2")
    assert path.read_bytes() == (path.parent / f"{path.name}2").read_bytes()
    return again


# --- A: work was lost ---


@pytest.mark.parametrize("change", [
    lambda net: net.to(None, dtype="float32"),
    lambda net: setattr(net, "weights", [W.astype("float32") for W in net.weights]),
    lambda net: setattr(net, "weights", [np.ones(W.shape, int) for W in net.weights]),
    lambda net: net.weights.__setitem__(0, np.zeros((3, 1), "float16")),
], ids=["to", "float32", "integers", "in place"])  # fmt: skip
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_a1_a_network_that_was_set_or_moved_can_be_saved_and_loaded(change, dtype, tmp_path):
    net = bp.Network([3, 1], dtype=dtype, seed=0)
    change(net)
    again = saved_and_loaded(net, tmp_path / "m")
    names = {W.dtype.name for W in again.weights}
    assert names == {again.dtype} if again.dtype else names in ({"float32"}, {"float64"})
    np.testing.assert_array_equal(again.predict(np.eye(3)), net.predict(np.eye(3)))


def test_a1_in_the_words_of_the_report(tmp_path):
    bp.Network([3, 1], dtype="float64").save(tmp_path / "m")
    bp.load(tmp_path / "m", dtype="float32").save(tmp_path / "m")
    assert bp.load(tmp_path / "m").dtype == "float32"
    integers = bp.Network([2, 1], init=[np.array([[1], [2]])])
    assert saved_and_loaded(integers, tmp_path / "n").weights[0].tolist() == [[1.0], [2.0]]
    model = bp.TableModel(seed=0, dtype="float64")
    model.fit({"a": X[:, 0], "y": X[:, 1]}, "y", epochs=1)
    assert saved_and_loaded(model.to(None, "float32"), tmp_path / "t").network.dtype == "float32"


def test_a1_a_training_that_is_refused_leaves_a_network_that_can_be_saved(tmp_path):
    net = bp.Network([6, 1], seed=0)
    for wrong in ({"engine": "nothing"}, {"solver": "nothing"}, {"learning_rate": -1}, {"resume": "nowhere"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            net.train(X.astype("float32"), Y, **{"steps": 3, **wrong})
        assert net.dtype is None
        saved_and_loaded(net, tmp_path / "m")


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_a2_an_interrupt_leaves_history_weights_and_state_of_one_step(solver, after):
    """The signal comes from within the engine, where it is raised, or from a callback, where it waits."""
    if solver == "lbfgs":
        pytest.importorskip("scipy")
    net, whole, seen = bp.Network([6, 4, 1], seed=1), bp.Network([6, 4, 1], seed=1), []

    def interrupt(progress):
        seen.append(progress.step)
        if len(seen) == after + 1:
            os.kill(os.getpid(), signal.SIGINT)

    history = net.train(X, Y, steps=100, solver=solver, record_every=1, callbacks=[interrupt])
    assert history.stopped == "interrupted"
    lengths = {len(column) for column in history.to_dict().values()}
    assert lengths == {after + 1}
    steps = history.step[-1] + (solver != "lbfgs")
    assert history.state.step == steps
    if steps:
        whole.train(X, Y, steps=steps, solver=solver, record_every=1)
    assert [W.tobytes() for W in net.weights] == [W.tobytes() for W in whole.weights]


def test_a2_a_row_that_was_half_written_is_taken_back():
    """Where a program has a handler of its own for SIGINT, the interrupt may come anywhere."""
    net, calls = bp.Network([6, 4, 1], seed=1), []
    extend = bp.History.extend

    def torn(self, *columns):
        calls.append(columns)
        if len(calls) == 7:
            self.step.extend(columns[0])
            raise KeyboardInterrupt
        extend(self, *columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bp.History, "extend", torn)
        history = net.train(X, Y, steps=50, record_every=1, callbacks=[lambda progress: None])
    assert history.stopped == "interrupted"
    assert {len(column) for column in history.to_dict().values()} == {6}
    assert history.state.step == 6


def test_a2_the_first_ctrl_c_waits_and_the_second_does_not():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)  # waits
        with pytest.raises(KeyboardInterrupt), interrupts.free():
            pytest.fail("what waits is raised where it suits")
        with interrupts.free(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)  # nobody asked any more
    assert interrupts.pending


def test_a2_ctrl_c_at_the_last_row_loses_no_history():
    net = bp.Network([6, 4, 1], seed=1)

    def interrupt(progress):
        if progress.step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    history = net.train(X, Y, steps=10, record_every=1, callbacks=[interrupt])
    assert (history.stopped, history.state.step) == ("interrupted", 10)


@pytest.mark.parametrize("signals", [1, 2])
def test_a2_ctrl_c_in_a_training_within_a_callback_ends_both(signals):
    inner, outer = bp.Network([6, 1], seed=1), bp.Network([6, 4, 1], seed=1)
    ends = []

    def interrupt(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def nested(progress):
        if progress.step == 5:
            for _ in range(signals):
                ends.append(inner.train(X, Y, steps=50, record_every=1, callbacks=[interrupt]).stopped)

    history = outer.train(X, Y, steps=50, record_every=1, callbacks=[nested])
    assert history.stopped == "interrupted"
    assert history.step[-1] == 5
    assert ends == ["interrupted"] * signals


def test_a3_a_history_that_was_pickled_can_be_gone_on_with():
    """What was killed goes on from a file: test_checkpoints."""
    whole, parts = bp.Network([6, 4, 1], seed=1), bp.Network([6, 4, 1], seed=1)
    whole.train(X, Y, steps=20, solver="adam", batch_size=30, seed=2)
    history = parts.train(X, Y, steps=9, solver="adam", batch_size=30, seed=2)
    history, parts = pickle.loads(pickle.dumps((history, parts)))
    parts.train(X, Y, steps=11, solver="adam", batch_size=30, seed=2, resume=history)
    assert [W.tobytes() for W in parts.weights] == [W.tobytes() for W in whole.weights]


def test_a3_what_was_interrupted_between_two_rows_goes_on_to_the_same_history():
    class Once(Callback):
        def __call__(self, progress):
            return progress.step >= 20

    options = {"solver": "adam", "batch_size": 30, "seed": 2, "record_every": 10}
    whole, parts = bp.Network([6, 4, 1], seed=1), bp.Network([6, 4, 1], seed=1)
    want = whole.train(X, Y, steps=41, **options)
    first = parts.train(X, Y, steps=41, callbacks=[Once()], **options)
    state = first.state
    for steps in (3, 4):  # to within a row, and on
        first = parts.train(X, Y, steps=steps, resume=first, **options)
        first.truncate(len([s for s in first.step if s % 10 == 0]))
        state = first.state
    assert state.step == 28
    got = parts.train(X, Y, steps=13, resume=first, **options)
    assert got.step == want.step
    assert [W.tobytes() for W in parts.weights] == [W.tobytes() for W in whole.weights]


def test_a4_a_refused_fit_of_a_table_changes_nothing():
    model = bp.TableModel(seed=0)
    model.fit({"a": X[:, 0], "y": Y}, "y", epochs=1)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="nan"):
        model.fit({"b": [1.0, np.nan], "z": [0.5, 1.5]}, "z")
    assert dict(vars(model)) == before


@pytest.mark.parametrize("change", [{"reduction": "sum"}, {"l1": 0.1}, {"l2": 0.1}, {"clip": 1.0}, {"dropout": 0.5}])
def test_a5_resume_ignores_nothing(change):
    net = bp.Network([6, 4, 1], seed=1)
    history = net.train(X, Y, steps=5)
    with pytest.raises(ValueError, match=f"`resume` must go on with the same objective: {next(iter(change))} was"):
        net.train(X, Y, steps=5, resume=history, **change)


def test_a5_resume_refuses_weights_that_are_not_those_of_its_end():
    net = bp.Network([6, 4, 1], seed=1)
    history = net.train(X, Y, steps=5, solver="adam")
    net.weights = bp.Network([6, 4, 1], seed=2).weights
    with pytest.raises(ValueError, match="the weights of this network have been changed since"):
        net.train(X, Y, steps=5, solver="adam", resume=history)
    with pytest.raises(ValueError, match="the weights of this network have been changed since"):
        bp.Network([6, 4, 1], seed=3).train(X, Y, steps=5, solver="adam", resume=history)


def test_a6_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    net, path, link = bp.Network([3, 1], seed=0), tmp_path / "m", tmp_path / "link"
    net.save(path)
    path.chmod(0o600)
    link.symlink_to(path)
    net.save(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert {p.name for p in tmp_path.iterdir()} == {"m", "link"}


def test_a7_a_place_that_cannot_be_written_is_found_before_the_training(tmp_path):
    with pytest.raises(OSError):
        Checkpoint(tmp_path / ("x" * 300))
    with pytest.raises(OSError):
        Checkpoint("/proc/model.bp")


@pytest.mark.parametrize("row", [0, 2])
def test_a8_an_interrupt_within_an_epoch_leaves_the_optimizer_of_one_step(row, sklearn):
    """The third step of an epoch of four is never taken."""
    from bpaccel.engines.blocked import Array

    calls, blocks = [], []

    class Interrupted(Array):
        def run(self, *args):
            calls.append(args[-1])
            return super().run(*args)

        def block(self, *args):
            blocks.append(1)
            if len(blocks) == 4 * row + 3:
                raise KeyboardInterrupt
            return super().block(*args)

    model = bp.MLPClassifier(**SMALL, batch_size=100, engine=Interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(X, Y)
    optimizer = model._optimizer
    assert optimizer.t == calls[-1]
    assert (optimizer.t == 0) == all(not np.any(a) for group in optimizer.state for a in group)


# --- B: silently wrong ---


@pytest.mark.parametrize(("scale", "offset"), [(2e8, 5e8), (4e6, 1e7)])
def test_b1_lbfgs_computes_in_float64(scale, offset, sklearn):
    from sklearn.neural_network import MLPRegressor as Theirs

    t = offset + scale * np.sin(X[:, 0])
    options = {"hidden_layer_sizes": (30,), "solver": "lbfgs", "max_iter": 500, "random_state": 0}
    score = bp.MLPRegressor(**options).fit(X.astype("f4"), t).score(X.astype("f4"), t)
    assert score > Theirs(**options).fit(X.astype("f4"), t).score(X.astype("f4"), t) - 0.01
    assert score > 0.98


def test_b1_a_network_in_float32_too():
    pytest.importorskip("scipy")
    net, rows = bp.Network([6, 1], activation="identity", bias=True, seed=0), X.astype("f4")
    t = (1e6 + 1e3 * X[:, :1]).astype("f4")
    net.train(rows, t, steps=200, solver="lbfgs")
    assert np.mean((net.predict(rows).astype("f8") - t) ** 2) < 1e-4 * t.astype("f8").var()
    assert net.dtype == "float32"
    assert {W.dtype.name for W in net.weights} == {"float32"}


def test_b1_a_stop_at_a_great_gradient_warns():
    """A loss whose derivative is wrong: no line search finds a gain along it."""
    pytest.importorskip("scipy")
    net = bp.Network([6, 1], activation="identity", loss=(lambda y, l: 0.5 * (y - l) ** 2, lambda y, l: y - l), seed=0)
    with pytest.warns(RuntimeWarning, match="the gradient is still"):
        net.train(X, 100.0 * Y, steps=50, solver="lbfgs")


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
def test_b2_an_estimator_answers_from_its_own_callback_with_the_weights_of_now(kind, options, sklearn):
    seen = []

    def ask(progress):
        own = progress.network.predict(X)
        answer = model.predict_proba(X)[:, 1:] if kind == "MLPClassifier" else model.predict(X)[:, None]
        np.testing.assert_array_equal(answer, own)
        np.testing.assert_array_equal(copy.deepcopy(model).predict(X), model.predict(X))
        seen.append(model.score(X, Y))

    model = getattr(bp, kind)(**SMALL, callbacks=[ask], **options)
    model.fit(X, Y)
    model.set_params(max_iter=2).fit(X, Y)  # at bc13972: the weights of the fit before
    assert len(set(seen)) > 1


def test_b3_score_goes_through_predict(sklearn):
    class Thresholded(bp.MLPClassifier):
        def predict(self, X):
            return np.ones(len(X), int)

    assert Thresholded(**SMALL).fit(X, Y).score(X, Y) == Y.mean()


@pytest.mark.parametrize("take", [
    lambda masked: bp.Network([6, 1]).train(masked, Y, steps=1),
    lambda masked: bp.Network([6, 1]).predict(masked),
    lambda masked: bp.Network([6, 1]).train(X, masked[:, 0], steps=1),
    lambda masked: bp.Network([6, 1]).train(X, Y, sample_weight=np.abs(masked[:, 0]), steps=1),
    lambda masked: bp.one_hot(masked[:, 0]),
    lambda masked: bp.TableModel().fit({"a": masked[:, 0], "y": X[:, 1]}, "y"),
    lambda masked: bp.MLPRegressor().fit(masked, Y),
    lambda masked: bp.MLPRegressor().fit(X, masked[:, 0]),
    lambda masked: bp.MLPRegressor().fit(X, Y, sample_weight=np.abs(masked[:, 0])),
    lambda masked: bp.MLPRegressor(**SMALL).fit(X, Y).predict(masked),
])  # fmt: skip
def test_b4_a_mask_that_hides_something_is_refused(take, sklearn):
    masked = np.ma.array(X, mask=np.zeros(X.shape, bool))
    masked[3, 0] = np.ma.masked
    with pytest.raises(ValueError, match="masked|hid"):
        take(masked)


def test_b4_a_mask_that_hides_nothing_is_no_matter():
    a, b = bp.Network([6, 1], seed=0), bp.Network([6, 1], seed=0)
    a.train(np.ma.array(X, mask=False), Y, steps=3)
    b.train(X, Y, steps=3)
    np.testing.assert_array_equal(a.weights[0], b.weights[0])


def test_b5_shapes_are_checked_where_weights_are_read():
    for use in (lambda n: n.train(X, Y, steps=1), lambda n: n.predict(X), lambda n: n.save("never"),
                lambda n: n.loss(X, Y), lambda n: copy.deepcopy(n), lambda n: n.to("numpy")):  # fmt: skip
        net = bp.Network([6, 4, 1], seed=0)
        net.weights[0] = np.ones((4, 6))
        with pytest.raises(ValueError, match=r"`weights` must be arrays of shapes \[\(6, 4\), \(4, 1\)\]"):
            use(net)


def test_b5_the_callers_arrays_are_copied(backend):
    where = bp.backend(backend)
    W = [where.asarray(np.ones((6, 4)), where.widest), where.asarray(np.ones((4, 1)), where.widest)]
    made, given = bp.Network([6, 4, 1], init=W), bp.Network([6, 4, 1])
    given.weights = W
    for net in (made, given):
        assert all(own is not V for own, V in zip(net.weights, W))
    if backend == "numpy":
        W[0][:] = 7.0
        assert np.all(made.weights[0] == 1.0)
        assert np.all(given.weights[0] == 1.0)


def test_b6_after_a_divergence_the_best_weights_are_put_back():
    net, stopping = bp.Network([6, 1], activation="identity", seed=0), None
    stopping = EarlyStopping(X, Y, patience=10**6)

    def faster(progress):
        progress.rate = 1e3 if progress.step > 5 else progress.rate

    with pytest.raises(bp.DivergenceError):
        net.train(X, Y, steps=1000, learning_rate=0.1, record_every=1, callbacks=[stopping, faster])
    assert net.loss(X, Y) == stopping.best_loss < 1.0


def test_b6_a_training_that_goes_on_after_a_stop_never_ends_worse_than_its_best():
    far = X[:30] * 3
    net, stopping = (
        bp.Network([6, 8, 1], activation=["tanh", "identity"], seed=0),
        EarlyStopping(far, Y[:30], patience=2),
    )
    options = {"solver": "adam", "learning_rate": 0.1, "record_every": 1}
    history = net.train(X, Y, steps=300, callbacks=[stopping], **options)
    assert history.stopped == "callback"
    best = stopping.best_loss
    for _ in range(3):
        history = net.train(X, Y, steps=4, callbacks=[stopping], resume=history, **options)
        assert net.loss(far, Y[:30]) == stopping.best_loss <= best


def test_b6_patience_is_reached_under_partial_fit(sklearn):
    stopping = EarlyStopping(X, 1 - Y, patience=3)  # wrong targets: it can but get worse
    model = bp.MLPClassifier(**SMALL, callbacks=[stopping])
    stopped = []
    while "callback" not in stopped and len(stopped) < 30:
        stopped.append(model.partial_fit(X, Y, classes=[0, 1]).history_.stopped)
    assert stopped[-1] == "callback"
    assert len(stopping.losses) == len(stopped) == np.argmin(stopping.losses) + 4


def test_b7_a_schedule_rules_partial_fit_and_epochs_are_not_late(sklearn):
    model = bp.MLPRegressor(**SMALL | {"solver": "sgd"}, callbacks=[Schedule(StepDecay(0.01, 1), by="epoch")])
    rates = [model.partial_fit(X, Y).history_.rate[0] for _ in range(4)]
    assert rates == [0.01, 0.01 * 0.5, 0.01 * 0.25, 0.01 * 0.125][: len(rates)]
    fitted = bp.MLPRegressor(**SMALL, callbacks=[Schedule(StepDecay(0.01, 1), by="epoch")]).fit(X, Y)
    assert fitted.history_.rate == [0.01, 0.005, 0.0025, 0.00125]
    net = bp.Network([6, 1], seed=0)
    history = net.train(
        X, Y, epochs=3, batch_size=100, record_every=1, callbacks=[Schedule(StepDecay(1.0, 1), by="epoch")]
    )
    assert history.rate == [0.5**epoch for epoch in history.epoch]


def test_b8_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "m"
    bp.Network([3, 4, 1], seed=0).save(path)
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(content) - 200, len(content), 40):  # in the tensors
        flipped = bytearray(content)
        flipped[at] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(bp.ModelFileError):
            bp.load(path)


def test_b9_an_activation_of_ones_own_is_not_taken_for_ours():
    own = Activation("sigmoid", lambda z, xp: 0.5 + 0.25 * xp.tanh(z), lambda a, xp: 0.25 - 4.0 * (a - 0.5) ** 2)
    net = bp.Network([6, 1], activation=own, loss="log_loss", seed=0)
    gradient, step = net.gradients(X, Y)[0], 1e-6
    for k in range(6):
        moved = [net.weights[0] + sign * step * np.eye(6)[:, k : k + 1] for sign in (1, -1)]
        up, down = (bp.Network([6, 1], activation=own, loss="log_loss", init=[W]).loss(X, Y) for W in moved)
        assert gradient[k, 0] == pytest.approx((up - down) / (2 * step), rel=1e-5)
    assert own is not ACTIVATIONS["sigmoid"]
    assert own not in losses.get("log_loss", "sigmoid").cancels


@pytest.mark.parametrize(("call", "name"), [
    (lambda: bp.Network([1, 1], init=[np.array([[np.nan]])]), "weights"),
    (lambda: bp.Network([1, 1], init=[np.array([[np.inf]])]), "weights"),
    (lambda: bp.Network([1, 1], init=[np.array([[1j]])]), "weights"),
    (lambda: bp.Network([1, 1], init=[np.array([[True]])]), "weights"),
    (lambda: bp.Network([1, 1], init=[np.array([["1"]])]), "weights"),
    (lambda: setattr(bp.Network([1, 1]), "weights", [np.array([[np.nan]])]), "weights"),
    (lambda: bp.Network([1, 1], bias="no"), "bias"),
    (lambda: bp.Network([6, 1]).train(X, Y, steps=1, shuffle="no"), "shuffle"),
    (lambda: bp.Network([6, 1]).train(X, Y, steps=1, progress="no"), "progress"),
    (lambda: bp.Network([6, 1]).train(X, Y, steps=1, learning_rate=True), "learning_rate"),
    (lambda: bp.Network([6, 1]).train(X, Y, steps=1, l2=True), "l2"),
    (lambda: bp.TableModel(standardise="no"), "standardise"),
    (lambda: EarlyStopping(X, Y, restore="no"), "restore"),
    (lambda: bp.one_hot([1.0, np.nan]), "labels"),
    (lambda: bp.MLPRegressor().fit(X, Y.astype(str)), "y"),
    (lambda: bp.MLPRegressor().fit(X, Y.astype(str).astype(object)), "y"),
])  # fmt: skip
def test_b10_what_is_no_value_is_refused_by_name(call, name, sklearn):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()


@pytest.mark.parametrize("row", [0, 3])
def test_b11_a_callbacks_own_stop_iteration_comes_out(row):
    pytest.importorskip("scipy")

    def exhausted(progress):
        if progress.step == row:
            raise StopIteration("mine")

    for solver in ("lbfgs", "adam"):
        with pytest.raises(StopIteration, match="mine"):
            bp.Network([6, 4, 1], seed=0).train(X, Y, steps=9, solver=solver, record_every=1, callbacks=[exhausted])


def test_b12_rows_on_another_device_of_the_library_are_asked_whether_they_fit():
    pytest.importorskip("array_api_strict")
    there, here = bp.backend("array_api_strict:device1"), bp.backend("array_api_strict:device2")
    library = here.library._replace(free=lambda device: 1000)
    small = bp.backends.Backend(here.name, library, here.xp, here.device)
    x, y = there.asarray(X, "float64"), there.asarray(Y[:, None], "float64")
    assert Rows(x, y, backend=small, dtype="float64").arrays is None  # read block by block
    assert Rows(here.asarray(X), here.asarray(Y[:, None]), backend=small, dtype="float64").arrays is not None


@pytest.mark.parametrize(("make", "name"), [
    (lambda: solvers.Adam(beta_1=1.0), "beta_1"),
    (lambda: solvers.Adam(beta_2=-0.1), "beta_2"),
    (lambda: solvers.Adam(epsilon=0.0), "epsilon"),
    (lambda: solvers.AdamW(weight_decay=np.nan), "weight_decay"),
    (lambda: solvers.Momentum(1.5), "momentum"),
    (lambda: solvers.Nesterov(np.nan), "momentum"),
    (lambda: solvers.RMSprop(alpha=1.5), "alpha"),
    (lambda: solvers.RMSprop(epsilon="small"), "epsilon"),
])  # fmt: skip
def test_b13_hyperparameters_are_checked_where_they_are_given(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()


def test_a1_weights_that_no_file_can_hold_leave_the_old_file(tmp_path):
    net = bp.Network([3, 1], seed=0)
    net.save(tmp_path / "m")
    net.weights[0][0] = np.nan
    with pytest.raises(ValueError, match="weights that are nan or infinite cannot be saved"):
        net.save(tmp_path / "m")
    assert np.isfinite(bp.load(tmp_path / "m").weights[0]).all()
    with pytest.raises(ValueError, match="float32 is too small for these weights"):
        bp.Network([3, 1], init=[np.full((3, 1), 1e300)]).to(None, "float32")


def test_a1_a_training_that_is_refused_keeps_all_digits(tmp_path):
    net, other = bp.Network([6, 1], seed=0), bp.Network([6, 2, 1], seed=0)
    other.train(X.astype("f4"), Y, steps=2, callbacks=[Checkpoint(tmp_path / "m")])
    before = net.weights[0].tobytes()
    with pytest.raises(ValueError, match="layer_sizes"):
        net.train(X.astype("f4"), Y, steps=9, resume=tmp_path / "m")
    assert (net.weights[0].tobytes(), net.dtype) == (before, None)


@pytest.mark.parametrize("kind", ["table", "estimator"])
def test_a4_a_training_that_fails_before_its_first_step_leaves_the_model(kind, sklearn):
    wrong = [Schedule(lambda step: 0.0)]
    if kind == "table":
        model, table = bp.TableModel(seed=0), {"a": X[:, 0], "b": X[:, 1], "y": X[:, 0] + X[:, 1]}
        model.fit(table, "y", epochs=5)
        before = model.predict(table)
        with pytest.raises(ValueError, match="`rate` must be"):
            model.fit(table, "y", callbacks=wrong)
        np.testing.assert_array_equal(model.predict(table), before)
    else:
        model = bp.MLPClassifier(**SMALL).fit(X, Y)
        before = dict(vars(model))
        with pytest.raises(ValueError, match="`rate` must be"):
            model.set_params(callbacks=wrong).fit(X, Y)
        assert set(vars(model)) == set(before)
        assert model.coefs_ is before["coefs_"]
        assert model._optimizer is before["_optimizer"]


def test_a4_ctrl_c_while_an_estimator_is_set_up_leaves_the_model(sklearn, monkeypatch):
    from bpaccel.estimators import door

    model = bp.MLPClassifier(**SMALL).fit(X, Y)
    before = dict(vars(model))

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert vars(model) == before


def test_a5_weights_that_were_changed_in_place_are_refused():
    net = bp.Network([6, 4, 1], seed=1)
    history = net.train(X, Y, steps=5, solver="adam")
    net.weights[0][:] = 0
    with pytest.raises(ValueError, match="the weights of this network have been changed since"):
        net.train(X, Y, steps=5, solver="adam", resume=history)


def test_b6_best_weights_of_a_file_are_where_the_network_is(backend, tmp_path):
    where, path = bp.backend(backend), tmp_path / "m"
    there = where.asarray(X, where.widest), where.asarray(Y, where.widest)
    options = {"record_every": 1, "engine": "array"}
    bp.Network([6, 1], seed=0).train(*there, steps=3, callbacks=[EarlyStopping(X, 1 - Y), Checkpoint(path)], **options)
    net = bp.Network([6, 1], seed=0)
    net.train(*there, steps=9, callbacks=[EarlyStopping(X, 1 - Y)], resume=path, **options)
    assert bp.backends.backend_of(net.weights[0]).library.name == where.library.name


# --- D3: what is compared or pickled holds no clock ---


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
def test_d3_two_equal_fits_are_equal_pickles(options, sklearn):
    joblib = pytest.importorskip("joblib")
    fits = [bp.MLPClassifier(**SMALL, **options).fit(X, Y) for _ in range(2)]
    assert joblib.hash(fits[0]) == joblib.hash(fits[1])
    trainings = []
    for _ in range(2):
        net = bp.Network([6, 1], seed=0)
        trainings.append((net, net.train(X, Y, steps=20, seed=1)))
    assert joblib.hash(trainings[0]) == joblib.hash(trainings[1])
    assert np.isnan(pickle.loads(pickle.dumps(trainings[0][1])).seconds).all()
    assert np.isfinite(trainings[0][1].seconds).all()
