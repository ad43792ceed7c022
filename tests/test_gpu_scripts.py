"""`benchmarks/gpu.py` where there is no GPU: a rehearsal runs through, and says what it could not do."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpaccel.engines import cuda
from bpaccel.libraries import why_not

ROOT = Path(__file__).parents[1]


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return loaded("gpu")


def visit(out, *arguments):
    if why_not("cupy") is None:
        pytest.skip("there is a GPU")
    command = [sys.executable, "benchmarks/gpu.py", *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done, json.loads((out / "gpu.json").read_text())["parts"]


def test_a_rehearsal_runs_through_and_says_what_it_could_not_do(host_cuda, tmp_path):
    only = "proofs,memcheck,suite,short,bandwidth,bpaccel wide,bpaccel blocked"
    done, parts = visit(tmp_path, "all", "--only", only)
    assert done.returncode == 2, (tmp_path / "gpu.log").read_text()
    assert list(parts) == ["describe", "proofs", "suite", "short", "memcheck", "bandwidth", "bpaccel wide",
                           "bpaccel blocked"]  # fmt: skip
    for name, part in parts.items():
        if name in ("memcheck", "suite"):
            assert part["status"].startswith("not done: no GPU: CuPy is ")
        else:
            assert part["status"] == "done", (tmp_path / "gpu.log").read_text()
    assert all(row["refused"] is None and row["error"] > 0 for row in parts["bpaccel wide"]["rows"])
    text = (tmp_path / "gpu.md").read_text()
    assert "this is a rehearsal on the processor, which measures nothing" in text
    assert "Would be timed, and computes what the core computes: bpaccel wide, bpaccel blocked." in text
    assert "us/step" not in text


def run(gpu, tmp_path, code, seconds=30.0, deadline=30.0):
    part = gpu.Part("part", seconds, (sys.executable, "-c", code))
    with (tmp_path / "log").open("w") as log:
        return gpu.run(part, log, dict(os.environ), deadline)[0]


def test_a_part_that_fails_or_hangs_stops_no_other(gpu, tmp_path):
    assert run(gpu, tmp_path, "pass") == "done"
    assert run(gpu, tmp_path, "raise SystemExit(3)") == "failed: exit status 3"
    assert run(gpu, tmp_path, "import time; time.sleep(60)", seconds=1.0) == "failed: stopped after 1 s"
    assert run(gpu, tmp_path, "pass", deadline=0.5) == "not done: the time was up"


def test_what_a_hanging_part_has_started_is_ended_too(gpu, tmp_path):
    child = tmp_path / "child"
    code = f"""
import subprocess, sys, time
held = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(child)!r}, "w").write(str(held.pid))
time.sleep(60)
"""
    assert run(gpu, tmp_path, code, seconds=3.0).startswith("failed: stopped")
    status = Path(f"/proc/{child.read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_results_that_are_cut_short_keep_what_they_had(gpu, tmp_path, monkeypatch):
    script = tmp_path / "parts.py"
    script.write_text("import sys; open(sys.argv[-1], 'w').write('{\"a\": 1}\\n{\"b\": '); raise SystemExit(1)")
    monkeypatch.setattr(gpu, "PARTS", script)
    with (tmp_path / "log").open("w") as log:
        found = gpu.run(gpu.Part("x", 30.0, (sys.executable, str(script))), log, dict(os.environ), 30.0)
    assert found == ("failed: exit status 1", [{"a": 1}])


def timed(provider, seconds, device, rows=1000, **more):
    summary = {"median": seconds, "spread": 0.1, "samples": 7}
    return {"provider": provider, "layer_sizes": [3, 4, 1], "rows": rows, "dtype": "float32", "refused": None,
            "seconds": summary, "device_seconds": summary | {"median": device} if device else None,
            "bytes_a_second": 2e12, "operations_a_second": 3e12, "error": 0.1} | more  # fmt: skip


def test_the_table_puts_the_quickest_first_and_shows_what_was_refused(gpu):
    rows = [timed("slow", 5e-6, 4e-6), timed("quick", 3e-6, None), {"provider": "gone", "refused": "not installed"}]
    machine = {"processor": "P", "cores": 2, "system": "L", "versions": {"python": "3"}, "commit": "c" * 40,
               "gpu": {"name": "A GPU", "memory": 2**37, "multiprocessors": 132, "compute_capability": "90",
                       "driver": 13000, "runtime": 13000}}  # fmt: skip
    proofs = [
        {"proof": "1 is 1", "passed": False, "wrong": 3},
        {"proof": "2 is 2", "passed": None, "why": "no g++"},
    ]
    parts = {"describe": [machine], "bandwidth": [{"bytes_a_second": 4e12}], "all": rows, "proofs": proofs}
    done = {name: {"status": "done", "seconds": 1.0, "rows": each} for name, each in parts.items()}
    report = {"date": "2026-01-01", "gpu": True, "parts": done}
    text = gpu.in_words(report)
    assert "A GPU, 128 GiB, 132 multiprocessors, compute capability 90" in text
    assert "A device-to-device copy moves 4,000 GB/s" in text
    quick, slow = text.index("| quick | 3.000 | 10% | host | 3.000 |"), text.index("| slow | 4.000 | 10% | device |")
    assert quick < slow
    assert "| 2,000.0 | 50% | 3.00 |" in text
    assert "* gone: not installed (all)" in text
    assert "1 is 1: **wrong**, 3 times" in text
    assert "2 is 2: not looked at: no g++" in text


def test_wheels_that_are_not_there_are_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "test", "--out", str(tmp_path), "--wheels", str(tmp_path / "none")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the wheels of ")


def test_a_part_that_does_not_exist_is_one_sentence(gpu, tmp_path, capsys):
    assert gpu.main(["test", "--out", str(tmp_path), "--only", "bandwith"]) == 1
    assert capsys.readouterr().err.startswith("error: `--only` must be parts of describe, proofs, suite")


def test_every_provider_has_its_part(gpu):
    assert tuple(loaded("gpu_parts").PROVIDERS) == gpu.PROVIDERS


def test_the_proof_of_the_reciprocal_compiles(nvrtc):
    parts = loaded("gpu_parts")
    _, kernels = nvrtc.compile(cuda.SOURCE.read_text() + parts.RECIPROCAL, parts.reciprocal_options(), 90)
    assert "all_reciprocals" in kernels
