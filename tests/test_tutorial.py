"""The tutorial's digits, on every backend, and against its own dozen lines rebuilt here."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import tutorial
from bpaccel.backends import BackendError

# What the article prints after its loops, and what its programs hold when they are rebuilt (NumPy, float64).
TWO_OUTPUT = [0.00966449, 0.00786506, 0.99358898, 0.99211957]
TWO_WEIGHTS = [9.67299303, -0.2078435, -4.62963669]
THREE_OUTPUT = [0.00260572, 0.99672209, 0.99701711, 0.00386759]
THREE_ERRORS = [0.4964100319, 0.0085845257, 0.0057894599, 0.0046291768, 0.0039587653, 0.0035101226]


def nonlin(x, deriv=False):
    return x * (1 - x) if deriv else 1 / (1 + np.exp(-x))


def article(name, steps):
    """The article's program: its layers and errors in the last step, and the weights after it."""
    X, y = tutorial.data(name)
    random = np.random.RandomState(1)
    sizes = {"two_layer": [(3, 1)], "three_layer": [(3, 4), (4, 1)]}[name]
    syn = [2 * random.random_sample(size) - 1 for size in sizes]
    for _ in range(steps):
        layers = [X]
        for weights in syn:
            layers.append(nonlin(np.dot(layers[-1], weights)))
        errors = [y - layers[-1]]
        deltas = [errors[0] * nonlin(layers[-1], True)]
        if len(syn) == 2:
            errors.insert(0, deltas[0].dot(syn[1].T))
            deltas.insert(0, errors[0] * nonlin(layers[1], True))
        syn = [weights + layer.T.dot(delta) for weights, layer, delta in zip(syn, layers, deltas)]
    return layers, errors, deltas, syn


@pytest.fixture(scope="module")
def three_layer():
    return tutorial.three_layer("numpy")


def test_two_layer_on_every_backend(backend):
    lesson = tutorial.two_layer(backend)
    assert lesson.backend.startswith(backend)
    if lesson.dtype != "float64":
        pytest.skip(f"{backend} has no float64 here")
    # Within half a unit of the eighth place on NumPy; the libraries' exp differ in the last bits.
    places = 0.5e-8 if backend == "numpy" else 1e-6
    np.testing.assert_allclose(lesson.output[:, 0], TWO_OUTPUT, rtol=0, atol=places)
    np.testing.assert_allclose(lesson.weights[0][:, 0], TWO_WEIGHTS, rtol=0, atol=places)


def test_three_layer(three_layer):
    np.testing.assert_allclose(three_layer.output[:, 0], THREE_OUTPUT, rtol=0, atol=0.5e-8)
    errors = three_layer.error_every(10_000)
    assert list(errors) == [0, 10_000, 20_000, 30_000, 40_000, 50_000]
    np.testing.assert_allclose(list(errors.values()), THREE_ERRORS, rtol=0, atol=0.5e-10)


def test_three_layer_on_every_backend(backend):
    lesson = tutorial.three_layer(backend)
    assert lesson.backend.startswith(backend)
    if lesson.dtype != "float64":
        pytest.skip(f"{backend} has no float64 here")
    np.testing.assert_allclose(lesson.output[:, 0], THREE_OUTPUT, rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(lesson.error_every(10_000).values()), THREE_ERRORS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["two_layer", "three_layer"])
def test_is_the_article_s_own_program(name, three_layer):
    lesson = three_layer if name == "three_layer" else tutorial.two_layer("numpy")
    steps = lesson.last.step + 1
    assert steps == {"two_layer": 10_000, "three_layer": 60_000}[name]
    layers, errors, deltas, syn = article(name, steps)
    for got, wanted in ((lesson.last.layers, layers), (lesson.last.errors, errors), (lesson.last.deltas, deltas)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    for a, b in zip(lesson.weights, syn, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_first_iteration_is_the_untrained_network(three_layer):
    layers, errors, deltas, _ = article("three_layer", 1)
    first = three_layer.first
    assert first.step == 0
    for got, wanted in ((first.layers, layers), (first.errors, errors), (first.deltas, deltas)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)
    untrained = tutorial.network("three_layer", backend="numpy")
    for a, b in zip(first.weights, untrained.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_history_of_a_lesson(three_layer):
    steps = three_layer.history.step
    assert steps == sorted(set(steps))
    assert steps[:100] == list(range(100))
    assert steps[-1] == 59_999
    assert three_layer.error_every(30_000).keys() == {0, 30_000}
    assert three_layer.history.error[-1] == pytest.approx(np.mean(np.abs(three_layer.last.errors[-1])), rel=1e-14)


def test_everything_is_on_the_host(backend):
    lesson = tutorial.three_layer(backend, steps=2)
    looks = (lesson.first, lesson.last)
    parts = [a for look in looks for group in (look.weights, look.layers, look.errors, look.slopes) for a in group]
    assert all(type(a) is np.ndarray for a in [*parts, *lesson.weights, lesson.X, lesson.y, lesson.output])
    assert [W.shape for W in lesson.weights] == [(3, 4), (4, 1)]
    assert [l.shape for l in lesson.last.layers] == [(4, 3), (4, 4), (4, 1)]


def test_lesson_keeps_its_numbers_when_the_network_goes_on():
    lesson = tutorial.two_layer("numpy", steps=10)
    before = lesson.weights[0].copy()
    lesson.network.train(lesson.X, lesson.y, steps=5)
    np.testing.assert_array_equal(lesson.weights[0], before)


def test_float32_where_there_is_no_float64():
    pytest.importorskip("array_api_strict")
    lesson = tutorial.two_layer("array_api_strict:no_float64", steps=1000)
    assert lesson.dtype == "float32"
    np.testing.assert_allclose(lesson.output, article("two_layer", 1000)[0][-1], rtol=0, atol=1e-5)


def test_float64_where_there_is_none_is_refused():
    pytest.importorskip("array_api_strict")
    with pytest.raises(BackendError, match="float64"):
        tutorial.two_layer("array_api_strict:no_float64", dtype="float64")


def test_float32_on_request():
    lesson = tutorial.two_layer("numpy", dtype="float32")
    assert (lesson.dtype, lesson.output.dtype) == ("float32", np.float32)
    np.testing.assert_allclose(lesson.output[:, 0], TWO_OUTPUT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["array", "blocked"])
def test_engine_is_passed_on(engine):
    lesson = tutorial.three_layer("numpy", engine=engine, steps=300)
    assert lesson.history.engine == engine
    np.testing.assert_allclose(lesson.output, article("three_layer", 300)[0][-1], rtol=0, atol=1e-12)


def test_backend_of_the_environment(monkeypatch):
    pytest.importorskip("array_api_strict")
    monkeypatch.setenv("BPACCEL_BACKEND", "array_api_strict")
    assert tutorial.two_layer(steps=2).backend == "array_api_strict"


def test_data_sets():
    X, y = tutorial.data("two_layer")
    np.testing.assert_array_equal(y[:, 0], X[:, 0])
    X, y = tutorial.data("three_layer")
    np.testing.assert_array_equal(y[:, 0], X[:, 0] ^ X[:, 1])
    assert (X.shape, y.shape) == ((4, 3), (4, 1))


@pytest.mark.parametrize("call", [tutorial.data, tutorial.network])
def test_unknown_name(call):
    with pytest.raises(ValueError, match="one of two_layer, three_layer; got 'four_layer'"):
        call("four_layer")


@pytest.mark.parametrize("steps", [1, 0, -5, 2.0, True, "10"])
def test_steps_must_leave_room_to_look(steps):
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 2"):
        tutorial.two_layer("numpy", steps=steps)


@pytest.mark.parametrize("steps", [2, 3, 100, 101, 102])
def test_short_lessons(steps):
    lesson = tutorial.two_layer("numpy", steps=steps)
    assert lesson.history.step == list(range(steps))
    np.testing.assert_allclose(lesson.output, article("two_layer", steps)[0][-1], rtol=0, atol=1e-14)


def test_interrupted_lesson_is_none(monkeypatch):
    def interrupt(self, *args, **kwargs):
        return bp.History(stopped="interrupted")

    monkeypatch.setattr(bp.Network, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tutorial.two_layer("numpy")


def test_correlations(three_layer):
    rng = np.random.default_rng(0)
    columns, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    expected = [np.corrcoef(column, y[:, 0])[0, 1] for column in columns.T]
    np.testing.assert_allclose(tutorial.correlations(columns, y), expected, rtol=1e-12)
    # The third input never changes.
    np.testing.assert_array_equal(tutorial.correlations(three_layer.X, three_layer.y), [0, 0, np.nan])
    before, after = (
        tutorial.correlations(look.layers[1], three_layer.y) for look in (three_layer.first, three_layer.last)
    )
    assert np.max(np.abs(before)) < 0.12
    assert np.min(np.abs(after)) > 0.35


def test_lesson_is_reached_from_the_package():
    assert bp.tutorial.two_layer("numpy", steps=2).name == "two_layer"
    assert repr(bp.tutorial.two_layer("numpy", steps=2)) == (
        "Lesson(name='two_layer', backend='numpy', dtype='float64')"
    )


PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def test_every_block_of_the_page_runs_and_prints_what_it_shows():
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert sum(kind == "python" for kind, _ in blocks) > 10
    namespace, printed = {}, ""
    with np.printoptions():
        for kind, block in blocks:
            if kind == "text":
                assert printed == block
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, PAGE.name, "exec"), namespace)
            printed = out.getvalue()


def test_the_lines_the_page_quotes_are_there():
    package = Path(bp.__file__).parent
    source = "".join((package / name).read_text(encoding="utf-8") for name in ("core.py", "activations.py"))
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    quoted = [code for row in rows for code in re.findall(r"`([^`]+)`", row[1])]
    assert len(quoted) > 15
    assert [code for code in quoted if code not in source] == []
