"""`bpaccel train` and `bpaccel predict`, from end to end: each run is a process of its own."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

from bpaccel import Network
from bpaccel.readers import read_table
from bpaccel.tables import TableModel, hold_out, load

pytest.importorskip("typer")
pytest.importorskip("rich")


def bpaccel(*arguments, cwd):
    command = [sys.executable, "-m", "bpaccel", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, encoding="utf-8")


def plants(path, rows=120, seed=0, target=True):
    """A CSV file of two kinds of plants, with a column of names that nobody can learn from."""
    random = np.random.default_rng(seed)
    kinds = np.arange(rows) % 2
    height, width = 10 + 5 * kinds + random.normal(size=rows), 1000 * random.normal(size=rows)
    lines = ["name,height [cm],width,kind" if target else "width,height [cm]"]
    for k in range(rows):
        name = ("moss", "fern")[kinds[k]]
        lines.append(f"plant {k},{height[k]},{width[k]},{name}" if target else f"{width[k]},{height[k]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_refused(result, message):
    """One sentence on standard error, exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_train_and_predict(tmp_path):
    plants(tmp_path / "plants.csv")
    result = bpaccel(
        "train", "plants.csv", "--target", "kind", "--drop", "name", "--out", "m.safetensors", "--epochs", "60",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for line in (
        "task: classification of 'kind' (the target is text)",
        "columns: 2: height [cm], width",
        "classes: 2: fern, moss",
        "rows: 96 to learn from, 24 held out",
        "engine ",
        "held-out accuracy: 0.9",
        "on 24 rows",
        "model written to m.safetensors",
    ):
        assert line in result.stdout.replace("accuracy: 1.0", "accuracy: 0.9")

    # New rows: no target, columns in another order; the answer is the library's own.
    new = plants(tmp_path / "new.csv", seed=1, target=False)
    result = bpaccel("predict", "m.safetensors", "new.csv", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    expected = load(tmp_path / "m.safetensors").predict(read_table(new))
    assert result.stdout == "kind\n" + "".join(f"{kind}\n" for kind in expected)

    # The target is there: the predictions are scored, and go to a file.
    result = bpaccel("predict", "m.safetensors", "plants.csv", "--out", "p.csv", cwd=tmp_path)
    score = load(tmp_path / "m.safetensors").score(read_table(tmp_path / "plants.csv"))
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"accuracy: {score:.4f} on 120 rows\n"
    assert read_table(tmp_path / "p.csv").rows == 120
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "new.csv", "p.csv", "plants.csv"]


def test_scaling_is_the_training_shares_alone(tmp_path):
    """The model is the one that fit gives on that share: it knows nothing of the held-out rows, in no scale either."""
    plants(tmp_path / "plants.csv")
    options = ["--epochs", "2", "--hidden", "7,3", "--batch-size", "16", "--l2", "0.5", "--activation", "tanh"]
    options += ["--solver", "momentum", "--learning-rate", "0.1", "--seed", "3", "--holdout", "0.5", "--drop", "name"]
    result = bpaccel("train", "plants.csv", "--target", "kind", "--out", "m", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows, held = hold_out(read_table(tmp_path / "plants.csv").drop(["name"]), "kind", 0.5, seed=3)
    model = TableModel(hidden=(7, 3), activation="tanh", seed=3, task="classification")
    model.fit(rows, "kind", epochs=2, batch_size=16, l2=0.5, solver="momentum", learning_rate=0.1)
    assert f"held-out accuracy: {model.score(held):.4f} on 60 rows" in result.stdout
    np.testing.assert_array_equal(
        load(tmp_path / "m").predict_proba(read_table(tmp_path / "plants.csv")),
        model.predict_proba(read_table(tmp_path / "plants.csv")),
    )
    assert model._means[0] == pytest.approx(rows["height [cm]"].mean())
    assert model._means[0] != pytest.approx(read_table(tmp_path / "plants.csv")["height [cm]"].mean(), rel=1e-6)


def test_regression_without_holdout(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 2))
    np.savez(tmp_path / "t.npz", X=x, y=3 * x[:, 0] - x[:, 1])
    result = bpaccel(
        "train", "t.npz", "--target", "y", "--holdout", "0", "--hidden", "", "--epochs", "300", "--l2", "0",
        "--learning-rate", "0.02", "--no-standardise", "--engine", "blocked", "--backend", "numpy", "--out", "m",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "task: regression of 'y' (the target has fractions)" in result.stdout
    assert "rows: 100 to learn from, 0 held out" in result.stdout
    assert "engine blocked: asked for" in result.stdout
    assert "training (nothing was held out) R^2: 1.0000 on 100 rows" in result.stdout
    weights = load(tmp_path / "m").network.weights[0]
    np.testing.assert_allclose(weights[:, 0], [3, -1, 0], atol=1e-3)


def test_a_model_need_not_be_kept(tmp_path):
    plants(tmp_path / "t.csv")
    command = ["train", "t.csv", "--target", "kind", "--drop", "name", "--epochs", "1", "--task", "classification"]
    result = bpaccel(*command, cwd=tmp_path)
    assert result.returncode == 0
    assert "(asked for)" in result.stdout
    assert "the model is not kept: --out MODEL would write it" in result.stdout
    assert os.listdir(tmp_path) == ["t.csv"]


def test_the_commands_defaults_are_the_librarys():
    from bpaccel.cli import train

    command = {name: option.default for name, option in inspect.signature(train).parameters.items()}
    assert command["hidden"] == ",".join(map(str, inspect.signature(TableModel).parameters["hidden"].default))
    for function, names in (
        (TableModel, ("task", "activation", "standardise", "backend")),
        (TableModel.fit, ("learning_rate", "batch_size", "l2", "solver")),
        (Network.train, ("engine",)),
    ):
        for name in names:
            assert command[name] == inspect.signature(function).parameters[name].default, name
    table = {"x": np.arange(32.0), "y": np.arange(32) % 2}
    assert TableModel(seed=0).fit(table, "y").state.step == command["epochs"]


GOOD = "a,b,y\n" + "".join(f"{k},{k * k % 7},{'no' if k % 2 else 'yes'}\n" for k in range(20))

BAD_DATA = {
    "missing file": (None, "there is no file 't.csv'"),
    "empty file": ("", "'t.csv' is empty"),
    "empty table": ("a,b,y\n", "'t.csv' names columns, but has no rows"),
    "unknown target": (GOOD.replace("y\n", "z\n", 1), "there is no column 'y' in 't.csv'; it has a, b, z"),
    "ragged row": (GOOD + "1,2\n", "line 22 of 't.csv' has 2 cells"),
    "text": (GOOD + "1,red,no\n", "line 22 of 't.csv', column 'b': the cell is 'red', and not a number"),
    "nan": (GOOD + "nan,2,no\n", "line 22 of 't.csv', column 'a': the cell is nan"),
    "infinity": (GOOD + "1,-inf,no\n", "line 22 of 't.csv', column 'b': the cell is infinite"),
    "empty cell": (GOOD + ",2,no\n", "line 22 of 't.csv', column 'a': the cell is empty"),
    "empty target": (GOOD + "1,2,\n", "line 22 of 't.csv', column 'y': the cell is empty"),
    "target of one value": ("a,y\n1,x\n2,x\n3,x\n4,x\n5,x\n", "the same value in every row, x"),
    "markup": ("a,[/red] b,y\n1,[bold],x\n2,2,y\n", "column '[/red] b': the cell is '[bold]'"),
    "binary garbage": (bytes(range(256)), "is not a CSV file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_train_refuses_bad_data(tmp_path, name):
    content, message = BAD_DATA[name]
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = os.listdir(tmp_path)
    assert_refused(bpaccel("train", "t.csv", "--target", "y", "--out", "m", cwd=tmp_path), message)
    assert os.listdir(tmp_path) == before


BAD_OPTIONS = {
    "task": (["--task", "ranking"], "must be classification or regression"),
    "task that does not go": (["--task", "regression"], "column 'y': the cell is 'yes', and not a number"),
    "hidden": (["--hidden", "32;16"], "must be whole numbers with commas between them"),
    "learning rate": (["--learning-rate", "-1"], "`learning_rate` must be"),
    "divergence": (["--learning-rate", "1e200", "--solver", "gradient_descent"], "Use a smaller learning_rate"),
    "solver": (["--solver", "magic"], "`solver` must be one of"),
    "backend": (["--backend", "magic"], "`backend` 'magic' is not known"),
    "holdout": (["--holdout", "1"], "must be at least 0 and below 1"),
    "seed": (["--seed", "-1"], "`seed` must be a whole number from 0 to 4294967295, or None; got -1"),
    "target dropped": (["--drop", "y"], "there is no column 'y'"),
    "folder": (["--out", "none/m"], "there is no folder 'none'"),
    "a folder as file": (["--out", "."], "is there already and is not a file"),
    "the data themselves": (["--out", "t.csv"], "must not be written over"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_train_refuses_bad_options(tmp_path, name):
    """And an older model stays as it was."""
    options, message = BAD_OPTIONS[name]
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "m").write_text("before")
    assert_refused(bpaccel("train", "t.csv", "--target", "y", "--out", "m", *options, cwd=tmp_path), message)
    assert (tmp_path / "m").read_text() == "before"
    assert (tmp_path / "t.csv").read_text() == GOOD
    assert sorted(os.listdir(tmp_path)) == ["m", "t.csv"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model file, and the table that it was made from."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "t.csv").write_text(GOOD)
    fitted = TableModel(seed=0)
    fitted.fit(read_table(folder / "t.csv"), "y", epochs=1)
    fitted.save(folder / "m")
    return (folder / "m").read_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no file 't.csv'"),
        ("a\n1\n", "there is no column 'b' in 't.csv'; it has a"),
        ("a,b\n1,2\n3,nan\n", "line 3 of 't.csv', column 'b': the cell is nan"),
        ("a,b\n", "has no rows"),
    ],
)
def test_predict_refuses_bad_data(tmp_path, model, data, message):
    (tmp_path / "m").write_bytes(model)
    (tmp_path / "p.csv").write_text("before")
    if data is not None:
        (tmp_path / "t.csv").write_text(data)
    before = sorted(os.listdir(tmp_path))
    result = bpaccel("predict", "m", "t.csv", "--out", "p.csv", cwd=tmp_path)
    assert_refused(result, message)
    assert result.stdout == ""
    assert (tmp_path / "p.csv").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", ["missing", "data", "cut short", "network"])
def test_predict_refuses_what_is_no_model(tmp_path, model, kind):
    (tmp_path / "t.csv").write_text(GOOD)
    message = "is not a model file, or is cut short"
    if kind == "missing":
        message = "there is no model file 'm'"
    elif kind == "network":
        Network([2, 2], seed=0).save(tmp_path / "m")
        message = "'m' is a bare network"
    else:
        (tmp_path / "m").write_bytes(GOOD.encode() if kind == "data" else model[:-1])
    result = bpaccel("predict", "m", "t.csv", cwd=tmp_path)
    assert_refused(result, message)
    assert result.stdout == ""


def test_predict_never_writes_over_what_it_reads(tmp_path, model):
    (tmp_path / "m").write_bytes(model)
    (tmp_path / "t.csv").write_text(GOOD)
    for out in ("m", "t.csv"):
        result = bpaccel("predict", "m", "t.csv", "--out", out, cwd=tmp_path)
        assert_refused(result, "must not be written over")
    assert (tmp_path / "m").read_bytes() == model


def test_a_target_that_is_not_known_yet_is_only_not_scored(tmp_path, model):
    (tmp_path / "m").write_bytes(model)
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,yes\n3,4,\n")
    result = bpaccel("predict", "m", "t.csv", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("y\n")
    assert result.stdout.count("\n") == 3
    assert result.stderr.startswith("no score: line 3 of 't.csv', column 'y': the cell is empty")
