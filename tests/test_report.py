"""`benchmarks/report.py`: from saved figures to tables and pictures."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpaccel import bench

HERE = Path(__file__).parent.parent / "benchmarks"
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("benchmarks_report", HERE / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINE = {
    "processor": "A processor", "cores": 2, "memory": 2**34, "system": "Linux 1", "threads": 2, "blas": None,
    "versions": {"bpaccel": "0.1", "python": "3.11", "numpy": "2.4"}, "settings": {}, "commit": "f" * 40,
}  # fmt: skip


def ours(rows=(4, 40)):
    summary = {"median": 2e-6, "min": 1e-6, "max": 3e-6, "spread": 0.1, "samples": 5}
    results = [
        {"backend": "numpy", "asked": "auto", "engine": "array", "dtype": "float32", "rows": n, "refused": None,
         "wrong": False, "step_seconds": summary, "ns_a_row": 2000 / n, "rows_a_second": n / 2e-6, "gb_a_second": 0.5,
         "tutorial_step_seconds": summary, "ratio": summary | {"median": 7.5}, "error": 0.1486, "same_error": True}
        for n in rows
    ]  # fmt: skip
    results.append({"backend": "cupy", "asked": "auto", "engine": "auto", "dtype": "float32", "rows": 4,
                    "refused": "no GPU here", "wrong": False})  # fmt: skip
    work = {"words": "XOR", "layer_sizes": [3, 4, 1], "error_before": 0.4964, "error_after": 0.1486}
    return {"kind": bench.KIND, "date": "2026-01-01", "machine": MACHINE, "workload": work, "results": results}


def suite():
    rows = [
        {"extra_info": {"operation": operation, "backend": "numpy", "engine": "array", "dtype": "float64", "rows": n},
         "stats": {"median": 3e-5, "min": 2e-5, "max": 4e-5, "rounds": 5}}
        for operation in ("forward", "step") for n in (4, 400)
    ]  # fmt: skip
    return {"machine_info": MACHINE, "datetime": "2026-01-01T00:00:00", "benchmarks": rows}


def saved(tmp_path, **contents):
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [str(tmp_path / f"{name}.json") for name in contents]


def test_tables_and_pictures(report, tmp_path):
    out = tmp_path / "out"
    assert report.main([*saved(tmp_path, scaling=ours(), suite=suite()), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["report.md", "scaling.png", "suite-forward.png", "suite-step.png"]
    text = (out / "report.md").read_text()
    assert "| numpy | array | float32 | 40 | 2.00 | 2.00 | 50.0 | 0.500 | 7.50 | 0.148600 |" in text
    assert text.index("ratio: the time of the tutorial's own NumPy code over") < text.index("| backend | engine |")
    assert "| cupy | auto | float32 | 4 | - | - | - | - | - | [1] |" in text
    assert "[1] no GPU here" in text
    assert "| numpy | array | float64 | 400 | 30.0 | 20.0 | 40.0 | 75.0 | 5 |" in text
    assert "commit ffffffffffff" in text
    assert text.count("![") == 3


def test_tables_are_rectangular(report, tmp_path):
    report.main([*saved(tmp_path, scaling=ours(), suite=suite()), "--out", str(tmp_path)])
    blocks = (tmp_path / "report.md").read_text().split("\n\n")
    for block in (b for b in blocks if b.startswith("|")):
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"benchmarks": [{"stats": {}}]}', "\xff\xfe"])
def test_other_files_are_refused(report, tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    assert report.main([*saved(tmp_path, good=ours()), str(tmp_path / "x.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "x.json" in error
    assert "benchmark" in error
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_sentence(report, tmp_path, capsys):
    assert report.main([str(tmp_path / "gone.json"), "--out", str(tmp_path / "out")]) == 2
    assert "gone.json" in capsys.readouterr().err


def test_nothing_but_refusals_gives_no_picture(report, tmp_path):
    content = ours(rows=())
    assert report.main([*saved(tmp_path, none=content), "--out", str(tmp_path / "out")]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.md"]


@pytest.mark.parametrize("path", sorted(HERE.glob("results/*/peers.json")), ids=lambda path: path.parent.name)
def test_comparisons_that_were_kept_can_still_be_read(report, path, tmp_path, monkeypatch):
    monkeypatch.setattr(report.plots, "scaling", lambda *args, **kwargs: None)  # pictures take seconds
    assert report.main([str(path), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    _, _, ours = text.partition("### The tutorial's training")
    assert "| tutorial NumPy | float32 |" in ours
    assert re.search(r"[|] tutorial NumPy [|] float32 [|] .* [|] [0-9.]+ [|]", ours), "no ratio to ours"


def test_the_suites_run_and_their_json_is_read(report, tmp_path):
    """One small case of each suite, as `make bench` runs them all."""
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "suite.json"
    options = ["-k", "numpy-float64-4]", "-p", "no:xdist", "-p", "no:cacheprovider", "--benchmark-max-time=0.01", "-q"]
    command = [sys.executable, "-m", "pytest", str(HERE), f"--benchmark-json={path}", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE.parent, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "node" not in json.loads(path.read_text())["machine_info"]
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "suite-step.png").exists()
