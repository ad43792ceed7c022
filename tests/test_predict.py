"""Predictions: the same bytes for any pieces, plain checks, and sparse rows that are never made dense."""

import tracemalloc

import numpy as np
import pytest

import bpaccel as bp
from bpaccel.engines.cpu import forward

sparse = pytest.importorskip("scipy.sparse")

RANDOM = np.random.default_rng(0)
FEW = sparse.random_array((1000, 2000), density=0.01, format="csr", rng=RANDOM)
FULL = sparse.random_array((300, 40), density=0.5, format="csr", rng=RANDOM)


def network(sizes, **options):
    names = ["tanh"] * (len(sizes) - 2) + ["softmax"]
    return bp.Network(sizes, activation=names, loss="log_loss", seed=1, init="glorot", **options)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix, sparse.coo_array])
@pytest.mark.parametrize("sizes", [[2000, 3], [2000, 7, 3], [2000, 16, 5, 3]], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_sparse_rows_answer_as_dense_ones(kind, sizes, bias):
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        net = network(sizes, bias=bias, dtype=dtype)
        found = net.predict(kind(FEW))
        assert (type(found), found.dtype.name) == (np.ndarray, dtype)
        np.testing.assert_allclose(found, net.predict(FEW.toarray()), rtol=tolerance, atol=tolerance)


def test_full_sparse_rows_are_multiplied_dense():
    net = network([40, 7, 3], dtype="float64")
    np.testing.assert_array_equal(net.predict(FULL), net.predict(FULL.toarray()))


@pytest.mark.parametrize("rows", [FEW, FEW.toarray()], ids=["sparse", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bytes_for_any_pieces_and_threads(rows, dtype, monkeypatch):
    net = network([2000, 16, 5, 3], bias=True, dtype=dtype)
    whole = net.predict(rows)
    for size in (1, 7, 400):
        pieces = [net.predict(rows[at : at + size]) for at in range(0, 800, size)]
        assert np.concatenate(pieces)[:800].tobytes() == whole[:800].tobytes()
    monkeypatch.setattr(forward, "THREADED_WORK", 1)
    for threads in "123":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert net.predict(rows).tobytes() == whole.tobytes()
    monkeypatch.setattr(forward, "CONVERTED_BYTES", 2**12)
    assert net.predict(rows).tobytes() == whole.tobytes()


def test_no_dense_copy_is_made(fused):
    wide = sparse.random_array((1000, 20_000), density=0.0015, format="csr", rng=RANDOM)
    net = network([20_000, 8, 3], dtype="float64")
    net.predict(wide[:2])
    tracemalloc.start()
    net.predict(wide)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8e6  # dense rows would be 160 MB


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [[0, 1], [2, 5, 9], ["no", "yes"], ["a", "b", "c"], [True, False]], ids=str)
def test_an_estimator_answers_as_scikit_learns(labels, dtype):
    sklearn = pytest.importorskip("sklearn.neural_network")
    X = RANDOM.standard_normal((60, 4)).astype(dtype)
    y = np.array(labels)[np.arange(60) % len(labels)]
    ours = bp.MLPClassifier((5,), max_iter=3, random_state=0, tol=0.0)
    theirs = sklearn.MLPClassifier((5,), max_iter=3, random_state=0, tol=0.0)
    for model in (ours, theirs):
        with pytest.warns(UserWarning, match="Maximum iterations"):
            model.fit(X, y)
    a, b = ours.predict(X), theirs.predict(X)
    assert a.dtype == b.dtype
    assert np.mean(a == b) > 0.95
    for wrong in (X[:, :3], X[:0], np.full((2, 4), np.nan, dtype), X[0], X.astype(str)):
        with pytest.raises(ValueError) as mine:
            ours.predict(wrong)
        with pytest.raises(ValueError) as other:
            theirs.predict(wrong)
        assert str(mine.value) == str(other.value)


def test_weights_that_were_set_are_used():
    """What is kept joined for predictions is left when others are set, or changed in place."""
    pytest.importorskip("sklearn")
    X = RANDOM.standard_normal((30, 4))
    model = bp.MLPRegressor(hidden_layer_sizes=(), max_iter=2, random_state=0, tol=0.0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, X[:, 0])
    model.coefs_[0][:] = 0.0
    model.intercepts_[0][:] = 3.0
    np.testing.assert_array_equal(model.predict(X), 3.0)
    model.coefs_, model.intercepts_ = [np.ones((4, 1))], [np.zeros(1)]
    np.testing.assert_allclose(model.predict(X), X.sum(axis=1))
    model.intercepts_[0] = np.ones(1)
    np.testing.assert_allclose(model.predict(X), X.sum(axis=1) + 1.0)
