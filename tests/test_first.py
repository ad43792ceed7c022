"""`benchmarks/first.py`: first calls are made in new processes, with nothing loaded before, and both sides agree."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from bpaccel import bench
from bpaccel.bench import WrongResult
from bpaccel.bench import workloads as package

HERE = Path(__file__).parent.parent / "benchmarks"
TINY = "xor:4:20:float64"


@pytest.fixture
def first(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(bench, "CASE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0)
    yield importlib.import_module("first")
    for name in ("first", "report"):
        sys.modules.pop(name, None)


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("calls")
    sys.modules.pop("calls", None)


def table(folder):
    """A table of 60 rows, as the estimators' data are saved."""
    X = np.random.RandomState(0).standard_normal((60, 3))
    np.save(folder / "table-X.npy", X)
    np.save(folder / "table-y.npy", (X[:, 0] > X[:, 1]).astype(int))


def test_a_small_run(first, tmp_path, monkeypatch, capsys):
    works = [first.xor(4, 20, "float64", "few steps"),
             first.Work("table", "a table", "scikit-learn", "bpaccel estimator")]  # fmt: skip
    monkeypatch.setattr(first, "calls", lambda: works)
    monkeypatch.setattr(first, "save_tables", table)
    monkeypatch.setattr(first, "SIZES", (4,))
    assert first.main(["--rounds", "1", "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/first.json").read_text())
    assert {"numpy", "scikit-learn", "python"} < set(content["machine"]["versions"])
    assert set(content["imports"][0]) == {"numpy", "bpaccel", "bpaccel.Network"}
    assert [r["words"] for r in content["calls"]] == ["few steps", "a table"]
    for r in [*content["calls"], content["sizes"][0]["first"]]:
        assert r["engine"]
        assert r["reason"]
        for side in r["sides"].values():
            for name, figures in side.items():
                assert figures["samples"] == 1, name
                assert 0 < figures["min"] <= figures["median"] <= figures["max"], name
            assert side["import"]["median"] + side["call"]["median"] < side["process"]["median"]
    text = (tmp_path / "out/first.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert "| few steps | tutorial |" in text
    assert "The least ratios: " in text
    for block in (b for b in text.split("\n\n") if b.startswith("|")):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_another_result_is_not_reported(first, tmp_path, monkeypatch, capsys):
    real = first.call

    def off(work, who, folder):
        result = real(work, who, folder)
        return result | {"value": result["value"] + 3e-4 * (who == "bpaccel")}

    monkeypatch.setattr(first, "call", off)
    monkeypatch.setattr(first, "calls", lambda: [first.xor(4, 20, "float64", "few steps")])
    assert first.main(["--rounds", "1", "--only", "few steps", "--out", str(tmp_path)]) == 1
    assert "error: bpaccel learned something else than tutorial in few steps" in capsys.readouterr().err
    content = json.loads((tmp_path / "first.json").read_text())
    assert (len(content["calls"]), len(content["wrong"])) == (0, 1)
    assert "* Not reported: bpaccel learned something else" in (tmp_path / "first.md").read_text()


def test_losses_are_compared_relatively(first):
    work = first.Work("table", "a table", "scikit-learn", "bpaccel estimator")
    assert work.near(1e-6, 1.0005e-6)
    assert not work.near(1e-6, 1.002e-6)


def test_a_process_that_fails_is_told(first, tmp_path):
    with pytest.raises(WrongResult, match="tutorial failed at nothing: .*nothing-X.npy"):
        first.call("nothing", "tutorial", tmp_path)


def test_long_works_have_fewer_rounds(first, monkeypatch):
    monkeypatch.setattr(first, "LONG_SECONDS", 0.0)
    same = dict.fromkeys(("import", "call", "process", "peak", "value"), 1.0)
    monkeypatch.setattr(first, "call", lambda *_: same | {"engine": "e", "reason": "r"})
    assert first.compare(first.xor(4, 1, "float64", ""), 9, "")["ratios"]["call"]["samples"] == first.LEAST


def test_each_process_has_an_empty_home(first, tmp_path, monkeypatch):
    script = tmp_path / "calls.py"
    script.write_text("import json, os; home = os.environ['HOME']; cache = os.environ['XDG_CACHE_HOME']\n"
                      "print(json.dumps({'home': home, 'cache': cache, 'files': os.listdir(home)}))\n"
                      "open(home + '/left', 'w').close()")  # fmt: skip
    monkeypatch.setattr(first, "CALLS", script)
    homes = [first.call("work", "who", tmp_path) for _ in range(2)]
    assert homes[0]["home"] != homes[1]["home"]
    for told in homes:
        assert told["files"] == []
        assert told["cache"] == told["home"]
        assert not Path(told["home"]).exists()


def test_nothing_but_numpy_is_there_when_the_clock_starts():
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import numpy.random; known = set(sys.modules); import calls"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(*set(sys.modules) - known)"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["calls"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux' VmHWM leaves out what the parent held")
def test_the_peak_is_that_of_the_process_alone(first, tmp_path):
    held = np.ones(2**24)
    assert first.call(TINY, "tutorial", tmp_path)["peak"] < held.nbytes
    assert first.call("xor:4000000:1:float32", "tutorial", tmp_path)["peak"] > held.nbytes


@pytest.mark.parametrize("rows", [4, 40])
def test_the_tutorials_code_is_that_of_the_benchmarks(calls, rows):
    work = package.workload((3, 4, 1))
    if rows == 4:  # the article's rate, of the sum over its four rows
        work = package.Workload(work.layer_sizes, work.X, work.y, work.init, 4.0)
    theirs = package.Tutorial(work, *work.rows(rows, "float64"))
    theirs.advance(20)
    name = f"xor:{rows}:20:float64"
    weights = calls.Tutorial().call(name, *calls.rows(name, None))
    for is_, should in zip(weights, theirs.weights, strict=True):
        np.testing.assert_allclose(is_, should, rtol=0, atol=1e-14)
    assert calls.mean_error(weights) == pytest.approx(work.error(weights), abs=1e-15)


def test_the_data_are_those_of_scikit_learn(first, calls, tmp_path):
    first.save_tables(tmp_path)
    assert [len(calls.rows(work.name, tmp_path)[0]) for work in first.calls() if work.others == "scikit-learn"] == [
        1797, 569]  # fmt: skip
    X, _ = calls.rows("breast_cancer", tmp_path)
    np.testing.assert_allclose(X.std(axis=0), 1.0)
