"""`benchmarks/sklearn_mlp.py`: equal results are asserted before timing, and the table says what was measured."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from bpaccel.bench import WrongResult

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("sklearn_mlp")
    for name in ("sklearn_mlp", "report"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_small_run(tool, dtype, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "LEAST_SECONDS", 0.0)
    options = ["--rows", "300", "--rounds", "1", "--dtype", dtype, "--only", "hidden=(32,)"]
    assert tool.main([*options, "--no-torch", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "sklearn-mlp.json").read_text())
    assert {"machine", "date", "kind"} < set(content)
    assert {"numpy", "scikit-learn"} < set(content["machine"]["versions"])
    assert [(r["data"], r["solver"], r["what"]) for r in content["results"]][:2] == [
        ("digits", "adam", "fit"), ("digits", "adam", "predict")]  # fmt: skip
    for r in content["results"]:
        assert r["ratios"]["scikit-learn"]["median"] > 0
        assert ("weights" in r["off"]["bpaccel"]) == (dtype == "float64")
    text = (tmp_path / "sklearn-mlp.md").read_text()
    assert text in capsys.readouterr().out + "\n"
    assert f"| events, 300 | 32 | lbfgs | all | {dtype} | fit, 5 iterations |" in text


@pytest.mark.parametrize("data", ["digits", "events"])
def test_pytorch_by_hand_is_the_same_training(tool, data):
    pytest.importorskip("torch")
    case = tool.Case(data, 1797, (32,), "adam", 200, 3, "float64")
    X, y = tool.table(case)
    theirs = tool.Estimator(tool.MLPClassifier, case, X, y)
    by_hand = tool.Torch(case, X, y, tool.start_of(case, X, y))
    theirs.fit()
    by_hand.fit()
    assert tool.check(case, "PyTorch", theirs, by_hand)["loss"] < 1e-4
    assert np.isfinite(X).all()
    assert 0.3 < (y == y.max()).mean() < 0.7 or data == "digits"


def test_another_result_is_not_timed(tool, monkeypatch, tmp_path, capsys):
    case = tool.Case("digits", 1797, (5,), "adam", 200, 2, "float64")
    fit = tool.Estimator.fit

    def wrong(self):
        fit(self)
        if type(self.model).__module__.startswith("bpaccel"):
            self.model.coefs_[0][0] += 1e-4

    monkeypatch.setattr(tool.Estimator, "fit", wrong)
    with pytest.raises(WrongResult, match="bpaccel is not scikit-learn in Case.*'weights'"):
        tool.measure(case, 1, torch=False)
    words = ["--rows", "300", "--no-torch", "--dtype", "float64", "--only", "lbfgs", "--out", str(tmp_path)]
    assert tool.main(words) == 1
    assert "error: bpaccel is not scikit-learn" in capsys.readouterr().err
    content = json.loads((tmp_path / "sklearn-mlp.json").read_text())
    assert (len(content["results"]), len(content["wrong"])) == (0, 3)
    assert "* Not timed: bpaccel is not scikit-learn" in (tmp_path / "sklearn-mlp.md").read_text()
