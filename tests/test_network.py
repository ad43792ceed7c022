"""Network: its verbs, its door, its files, and what it answers to wrong input."""

import copy
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bpaccel as bp
from bpaccel.storage import read, write
from bpaccel.training.history import History

X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
Y = np.array([0, 1, 1, 0])


def xor(**options):
    return bp.Network([3, 4, 1], seed=1, **options)


def test_layers_and_errors_are_the_articles():
    net = xor()
    syn1 = net.weights[1]
    l0, l1, l2 = net.layers(X)
    np.testing.assert_array_equal(l0, X)
    np.testing.assert_allclose(l2, 1 / (1 + np.exp(-(l1 @ syn1))), rtol=1e-14)
    l1_error, l2_error = net.errors(X, Y)
    np.testing.assert_array_equal(l2_error, Y[:, None] - l2)
    np.testing.assert_allclose(l1_error, (l2_error * l2 * (1 - l2)) @ syn1.T, rtol=1e-14)
    np.testing.assert_allclose(net.predict(X), l2, rtol=1e-14)


def test_errors_leave_the_bias_out():
    net = xor(bias=True)
    assert [e.shape for e in net.errors(X, Y)] == [(4, 4), (4, 1)]


def test_loss_is_what_train_minimises():
    net = xor()
    options = {"reduction": "mean", "l1": 0.1, "l2": 0.2, "sample_weight": [1, 2, 3, 4]}
    before = net.loss(X, Y, **options)
    history = net.train(X, Y, steps=1, **options)
    assert history.loss[0] == pytest.approx(before, rel=1e-15)
    e2 = (Y[:, None] - xor().predict(X))[:, 0] ** 2
    size = np.concatenate([W.ravel() for W in xor().weights])
    want = (np.dot(e2, [1, 2, 3, 4]) / 2 + 0.1 * np.abs(size).sum() + 0.1 * (size**2).sum()) / 10
    assert before == pytest.approx(want, rel=1e-14)


def test_gradients_have_the_true_sign_and_the_penalty():
    net = xor(bias=True)
    W, h = net.weights, 1e-6
    for k, at in ((0, (0, 1)), (1, (4, 0)), (0, (3, 2))):
        moved = []
        for step in (h, -h):
            weights = [V.copy() for V in W]
            weights[k][at] += step
            net.weights = weights
            moved.append(net.loss(X, Y, l1=0.1, l2=0.2))
        net.weights = W
        measured = (moved[0] - moved[1]) / (2 * h)
        assert net.gradients(X, Y, l1=0.1, l2=0.2)[k][at] == pytest.approx(measured, rel=1e-6)


def test_predict_takes_any_number_of_rows_in_any_number_of_threads(backend, monkeypatch):
    monkeypatch.setattr("bpaccel.engines.blocked.BLOCK_BYTES", 1)  # blocks of 256 rows
    monkeypatch.setattr("bpaccel.engines.blocked.FED_ROWS", 256)
    monkeypatch.setattr("bpaccel.engines.blocked.THREADED_NUMBERS", 0)
    rows = np.random.default_rng(0).random((2_000, 3))
    net = xor(backend=backend, dtype="float64")
    whole = net.layers(rows)[-1]
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        np.testing.assert_allclose(net.predict(rows), whole, rtol=1e-14)
    assert net.predict(rows[:1]).shape == (1, 1)


def test_the_first_training_fixes_the_dtype():
    net = xor()
    assert net.dtype is None
    assert net.predict(X.astype(np.float32)).dtype == np.float32
    net.train(X.astype(np.float32), Y, steps=1)
    assert net.dtype == "float32"
    assert net.predict(X.astype(np.float64)).dtype == np.float32
    assert {W.dtype for W in net.weights} == {np.dtype("float32")}


@pytest.mark.parametrize(("dtype", "computed"), [
    ("int8", "float64"), ("bool", "float64"), ("uint64", "float64"), ("float16", "float32"), ("float32", "float32"),
    ("float64", "float64"), ("longdouble", "float64"),
])  # fmt: skip
def test_every_number_is_computed_in_float32_or_float64(dtype, computed):
    assert xor().predict(X.astype(dtype)).dtype == computed


@given(
    x=hnp.arrays(
        st.sampled_from(["bool", "int8", "int64", "uint16", "float32", "float64"]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
        elements={"min_value": 0, "max_value": 1},
    ),
    order=st.sampled_from(["C", "F"]),
    step=st.sampled_from([1, -1, 2]),
    writeable=st.booleans(),
)
def test_any_layout_trains_like_a_plain_copy(x, order, step, writeable):
    odd = np.asarray(x, order=order)[::step]
    odd.flags.writeable = writeable
    before = odd.copy()
    y = np.arange(len(odd)) % 2
    nets = [bp.Network([x.shape[1], 2, 1], seed=1) for _ in range(2)]
    nets[0].train(odd, y, steps=2)
    nets[1].train(np.ascontiguousarray(odd), y, steps=2)
    for a, b in zip(nets[0].weights, nets[1].weights):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.array_equal(odd, before)


def test_dataframes_and_lists_come_in():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    np.testing.assert_array_equal(xor().predict(frame), xor().predict(X.tolist()))


def test_one_hot_is_its_own_inverse():
    classes, targets = bp.one_hot(["b", "a", "b", "c"])
    assert classes.tolist() == ["a", "b", "c"]
    assert classes[targets.argmax(axis=1)].tolist() == ["b", "a", "b", "c"]
    with pytest.raises(ValueError, match="`labels` must be 1-D"):
        bp.one_hot([[1, 2]])


def test_print_shows_the_lines_of_the_network():
    text = str(bp.Network([3, 4, 2], activation=["tanh", "softmax"], loss="log_loss", bias=True))
    assert "Network 3-4-2, loss log_loss, 26 weights" in text
    assert "l2 = softmax(l1 @ syn1 + bias): 4 -> 2" in text
    assert repr(xor()).startswith("Network([3, 4, 1], activation=['sigmoid', 'sigmoid']")


WRONG_NETWORKS = [
    ({"layer_sizes": [3]}, "`layer_sizes` must be at least two whole numbers"),
    ({"layer_sizes": [3, 0, 1]}, r"`layer_sizes` must be .*got \[3, 0, 1\]"),
    ({"layer_sizes": 3}, "`layer_sizes` must be at least two"),
    ({"layer_sizes": [3, 2.5, 1]}, "`layer_sizes` must be at least two whole numbers"),
    ({"activation": "swish"}, "`activation` must be one of sigmoid"),
    ({"activation": ["sigmoid"]}, "one for each of the 2 weight matrices; got"),
    ({"activation": ["softmax", "sigmoid"]}, "'softmax' can only stand at the output"),
    ({"loss": "hinge"}, "`loss` must be one of"),
    ({"seed": -1}, "`seed` must be a whole number from 0"),
    ({"seed": "one"}, "`seed` must be a whole number from 0"),
    ({"init": "zeros"}, "`init` must be one of uniform, glorot"),
    ({"dtype": "float16"}, "`dtype` must be 'float32', 'float64' or None; got 'float16'"),
    ({"backend": "nympy"}, "`backend` 'nympy' is not known"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG_NETWORKS)
def test_a_wrong_network_is_refused_in_words(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        bp.Network(**{"layer_sizes": [3, 4, 1], **options})


WRONG_INPUT = [
    ({"X": [0, 0, 1]}, r"`X` must be 2-D .*got shape \(3,\). Use X\[:, None\]"),
    ({"X": np.zeros((0, 3)), "y": []}, "`X` must have at least one row"),
    ({"X": np.zeros((4, 2))}, r"`X` must have 3 columns.*got shape \(4, 2\)"),
    ({"X": [[1, 2, 3], [1, 2]]}, "lists of different lengths"),
    ({"X": [["a", "b", "c"]] * 4}, "`X` must be real numbers; got text"),
    ({"X": X * 1j}, "`X` must be real numbers; got complex numbers"),
    ({"y": [0, 1]}, r"`y` must be of shape \(4, 1\).*got shape \(2,\)"),
    ({"y": np.zeros((4, 2))}, r"`y` must be of shape \(4, 1\)"),
    ({"y": ["a", "b", "a", "b"]}, "`y` must be real numbers; got text.*bp.one_hot"),
    ({"steps": None}, "exactly one of `steps`"),
    ({"epochs": 2}, "exactly one of `steps`"),
    ({"steps": 0}, "`steps` must be a whole number of at least 1; got 0"),
    ({"steps": 2.5}, "`steps` must be a whole number"),
    ({"batch_size": 0}, "`batch_size` must be a whole number"),
    ({"record_every": 0}, "`record_every` must be a whole number"),
    ({"learning_rate": 0}, "`learning_rate` must be a finite number above 0"),
    ({"learning_rate": np.inf}, "`learning_rate` must be a finite number above 0"),
    ({"learning_rate": "fast"}, "`learning_rate` must be a finite number above 0"),
    ({"reduction": "max"}, "`reduction` must be 'mean' or 'sum'"),
    ({"solver": "sgd"}, "`solver` must be one of"),
    ({"solver": "lbfgs", "batch_size": 2}, "`batch_size` does not go with solver='lbfgs'"),
    ({"engine": "warp"}, "`engine` must be auto"),
    ({"threads": 0}, "`threads` must be a whole number"),
    ({"sample_weight": [1, 2]}, r"`sample_weight` must be of shape \(4,\)"),
    ({"sample_weight": [1, 2, -1, 0]}, "`sample_weight` must be finite, not negative"),
    ({"sample_weight": [0, 0, 0, 0]}, "not all 0"),
    ({"sample_weight": [1, np.nan, 1, 1]}, "`sample_weight` must be finite"),
    ({"l2": -1}, "`l2` must be a finite number of at least 0"),
    ({"l1": 1j}, "`l1` must be a finite number of at least 0"),
    ({"seed": -1}, "`seed` must be a whole number from 0"),
    ({"clip": 0}, "`clip` must be a finite number above 0"),
    ({"resume": History()}, "`resume` must be a History that can go on"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG_INPUT)
def test_wrong_input_is_refused_in_words_and_changes_nothing(options, sentence):
    net = xor()
    before = [W.copy() for W in net.weights]
    with pytest.raises(ValueError, match=sentence):
        net.train(**{"X": X, "y": Y, "steps": 2, **options})
    assert net.dtype is None
    assert all(np.array_equal(a, b) for a, b in zip(net.weights, before))


def test_class_labels_for_a_softmax_name_one_hot():
    net = bp.Network([3, 4, 2], activation=["sigmoid", "softmax"], loss="log_loss")
    with pytest.raises(ValueError, match=r"must be one-hot.*bp\.one_hot\(y\)"):
        net.train(X, Y, steps=1)


@pytest.mark.parametrize(("loss", "output", "y", "sentence"), [
    ("log_loss", "sigmoid", [0, 1, 2, 0], "between 0 and 1 for loss='log_loss'; got values from 0 to 2"),
    ("poisson", "exp", [0, 1, -1, 0], "at least 0 for loss='poisson'"),
])  # fmt: skip
def test_targets_that_a_loss_cannot_take_are_refused(loss, output, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        bp.Network([3, 1], activation=output, loss=loss).train(X, y, steps=1)


def test_weights_of_wrong_shapes_are_refused():
    net = xor()
    with pytest.raises(ValueError, match=r"`weights` must be arrays of shapes \[\(3, 4\), \(4, 1\)\]"):
        net.weights = [np.zeros((3, 4))]


def test_a_saved_network_is_the_same_network(tmp_path, backend):
    net = bp.Network([3, 4, 2], activation=["relu", "softmax"], loss="log_loss", bias=True, seed=1)
    net.train(X.astype("float32"), bp.one_hot(Y)[1], steps=3)
    net.save(tmp_path / "a.safetensors")
    where = bp.backend(backend)
    again = bp.load(tmp_path / "a.safetensors", backend=backend)
    assert again.backend == where.name
    np.testing.assert_allclose(again.predict(X), net.predict(X), rtol=1e-6)
    again.to("numpy").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    np.testing.assert_array_equal(bp.load(tmp_path / "b.safetensors").predict(X), net.predict(X))
    assert repr(bp.load(tmp_path / "b.safetensors")) == repr(net)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    xor().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        bp.Network([3, 4, 1], seed=2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_function_of_ones_own_cannot_be_saved(tmp_path):
    net = bp.Network([3, 1], activation="identity", loss=(lambda y, l: (y - l) ** 2, lambda y, l: 2 * (l - y)))
    net.train(X, Y, steps=5, learning_rate=0.1)
    with pytest.raises(ValueError, match="a loss or an activation of your own cannot be saved"):
        net.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_refused_in_words(tmp_path):
    path = tmp_path / "a.safetensors"
    xor().save(path)
    content = path.read_bytes()
    for cut in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(bp.ModelFileError, match="is not a model file, or is cut short"):
            bp.load(path)
    path.write_bytes(b"step,loss\n0,1\n" * 20)
    with pytest.raises(bp.ModelFileError, match="is not a model file"):
        bp.load(path)
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        bp.load(tmp_path / "none.safetensors")
    from safetensors.numpy import save_file

    save_file({"weights.0": np.zeros((3, 1))}, path)
    with pytest.raises(bp.ModelFileError, match="no model of bpaccel"):
        bp.load(path)


@pytest.mark.parametrize("change", [
    {"layer_sizes": [3, 5, 1]}, {"layer_sizes": None}, {"activation": ["sigmoid"]}, {"loss": "hinge"}, {"bias": True},
    {"kind": "forest"},
])  # fmt: skip
def test_files_that_contradict_themselves_are_refused(tmp_path, change):
    path = tmp_path / "a.safetensors"
    xor().save(path)
    header, arrays = read(path)
    write(path, {**header, **change}, arrays)
    with pytest.raises(bp.ModelFileError):
        bp.load(path)


def test_a_network_can_be_pickled_and_copied(backend):
    net = bp.Network([3, 4, 2], activation=["relu", "softmax"], loss="log_loss", bias=True, seed=1, backend=backend)
    net.train(X, bp.one_hot(Y)[1], steps=2)
    for again in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert repr(again) == repr(net)
        np.testing.assert_array_equal(again.predict(X), net.predict(X))
        assert again.loss_function is net.loss_function


def test_what_was_pickled_on_a_gpu_opens_without_one(monkeypatch):
    net = (
        xor(backend="array_api_strict")
        if bp.available_backends()["array_api_strict"] == "usable"
        else pytest.skip("no strict")
    )
    content = pickle.dumps(net)
    monkeypatch.setattr(
        sys.modules["bpaccel.backends"], "why_not", lambda name: "no device here" if name != "numpy" else None
    )
    again = pickle.loads(content)
    assert again.backend is None
    np.testing.assert_allclose(again.predict(X), xor().predict(X))


def test_a_float64_model_can_be_taken_to_a_device_without_float64(tmp_path):
    pytest.importorskip("array_api_strict")
    net = xor()
    net.train(X, Y, steps=2)
    net.save(tmp_path / "a.safetensors")
    with pytest.raises(bp.BackendError, match="Pass dtype='float32'"):
        bp.load(tmp_path / "a.safetensors", backend="array_api_strict:no_float64")
    again = bp.load(tmp_path / "a.safetensors", backend="array_api_strict:no_float64", dtype="float32")
    np.testing.assert_allclose(again.predict(X), net.predict(X), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_a_dtype_may_be_named_as_numpy_does(dtype, tmp_path):
    net = xor(dtype=dtype)
    assert net.dtype == "float32"
    net.save(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("sizes", "array"), [
    ([10**6, 10**6], np.zeros((3, 4))), ([3, 4, 1], np.zeros((3, 4), np.int64)), ([3, 4, 1], np.full((3, 4), np.nan)),
])  # fmt: skip
def test_files_with_odd_weights_are_refused(tmp_path, sizes, array):
    path = tmp_path / "a.safetensors"
    net = xor()
    net.save(path)
    header, arrays = read(path)
    write(path, {**header, "layer_sizes": sizes}, {**arrays, "weights.0": array})
    with pytest.raises(bp.ModelFileError, match="contradicts itself"):
        bp.load(path)


def test_rows_of_a_softmax_must_sum_to_one():
    net = bp.Network([3, 2], activation="softmax", loss="log_loss")
    with pytest.raises(ValueError, match="`y` must be one-hot"):
        net.train(X, [[1, 1], [0, 0], [0, 1], [1, 0]], steps=1)
    net.train(X, [[0.25, 0.75]] * 4, steps=1)
