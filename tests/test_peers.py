"""The comparison with peers: never how fast, but that all do the same work, and that what fails is told."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import compare
import floor
import instructions
import peers

from bpaccel import bench
from bpaccel.bench.workloads import workload

XOR = (3, 4, 1)
compiled = pytest.mark.usefixtures("fused", "kernel_compiler")
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux alone")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Little time a case: what is tested does not depend on it."""
    for module, name in ((bench, "SAMPLE_SECONDS"), (compare, "SETTLE_SECONDS"), (compare, "LONG_SECONDS")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(floor, "READ_BYTES", 2**20)
    monkeypatch.setattr(floor, "SECONDS", 0.001)


class Slow(peers.TutorialPeer):
    """Takes one step less than it says."""

    def advance(self, steps):
        super().advance(steps - 1)
        self.step += 1


@pytest.mark.filterwarnings("ignore")  # other people's code warns of NumPy's changes and its own
@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_takes_the_steps_of_the_core(name):
    sizes = XOR if "torch" in name else (5, 8, 2)
    kind, work = peers.PEERS[name], workload(sizes)
    if reason := kind.refuses(sizes, "float64"):
        pytest.skip(f"{name}: {reason}")
    peer = kind(work, *work.rows(2 * len(work.X), "float64"))
    before = [W.copy() for W in work.weights()]
    peers.check(peer)
    assert peer.step == 0
    peer.advance(2)
    peer.wait()
    assert peer.step == 2
    assert all(W.shape == b.shape and np.isfinite(W).all() for W, b in zip(peer.reach(), before, strict=True))


@pytest.mark.parametrize("sizes", [(3, 1), XOR, (5, 8, 2)], ids=str)
def test_the_formulas_of_the_two_layer_network_too(sizes):
    work = workload(sizes)
    peers.check(peers.TutorialPeer(work, *work.rows(128, "float64")))


def test_a_peer_that_is_wrong_or_missing_is_told_and_not_timed(monkeypatch):
    class Missing(peers.TutorialPeer):
        needs = "no_such_library"
        refuses = classmethod(peers.Peer.refuses.__func__)

    monkeypatch.setitem(peers.PEERS, "slow", Slow)
    monkeypatch.setitem(peers.PEERS, "missing", Missing)
    tutorial, slow, missing = compare.times(["tutorial NumPy", "slow", "missing"], XOR, 40, "float64")
    assert tutorial["refused"] is None
    assert tutorial["step_seconds"]["samples"] >= compare.LEAST
    assert slow["wrong"]
    assert "wrong, so not timed: weights[0]" in slow["refused"]
    assert missing["refused"] == "not installed: pip install no_such_library"
    assert "step_seconds" not in slow
    assert "step_seconds" not in missing


def test_the_floor_is_the_slower_of_its_two_parts():
    limits = {"logistic_seconds": 2.0, "bytes_a_second": 8.0}
    assert floor.seconds_a_row(limits, XOR, "float32") == 10.0
    assert floor.seconds_a_row(limits | {"bytes_a_second": 1.0}, XOR, "float64") == 32.0


@compiled
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("float64", 1e-14)])
def test_the_floor_is_that_of_the_engines_logistic_and_of_all_numbers(dtype, rounding):
    assert all(value > 0 for value in floor.measure(dtype, samples=1).values())
    x = floor.aligned(np.linspace(-9, 9, 64).astype(dtype))
    once = 1 / (1 + np.exp(-x))
    floor.logistic(x, 2)
    np.testing.assert_allclose(x, 1 / (1 + np.exp(-once)), rtol=rounding)
    assert floor.read(np.arange(640.0)) == 640 * 639 / 2


def test_instructions_are_counted_loop_by_loop():
    pytest.importorskip("ziglang")
    table = instructions.table()
    a_row = {tuple(line[:2]): float(line[-1]) for line in table if line[2] == "all"}
    assert len(table) == 4 * (len(instructions.PASSES) + 1)
    assert all(int(line[4]) <= int(line[3]) for line in table if line[2] != "all")
    for level in ("v4", "v3"):
        assert 1.5 < a_row[level, "float64"] / a_row[level, "float32"] < 4
    for dtype in ("float32", "float64"):
        assert 1.5 < a_row["v3", dtype] / a_row["v4", dtype] < 4


@compiled
@linux
def test_memory_is_what_a_training_takes_beside_its_rows():
    """The tutorial keeps layers, deltas and temporaries of all rows: at least l1, l1_error and l1_delta at once."""
    rows = 400_000
    many = compare.apart(compare.extra_memory, "tutorial NumPy", XOR, rows, "float32")
    few = compare.apart(compare.extra_memory, "bpaccel fused", XOR, rows, "float32")
    assert many > 3 * 4 * 4 * rows
    assert few < many / 10


@compiled
@linux
def test_the_whole_comparison_at_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "PLAN", {(3, 1): (64,), XOR: (4, 400)})
    monkeypatch.setattr(compare, "MEMORY_ROWS", (1_000, 100_000))
    monkeypatch.setattr(compare, "GROWTH_ROWS", (1_000, 20_000))
    monkeypatch.setattr(compare, "SAMPLES", 1)
    path, folder = tmp_path / "peers.json", tmp_path / "rows"
    folder.mkdir()
    words = ["--json", str(path), "--peers", "tutorial NumPy,bpaccel fused", "--folder", str(folder)]
    assert compare.main(words) == 0
    content = json.loads(path.read_text())
    assert [g["rows"] for g in content["growth"]] == [1_000, 20_000]
    assert all(g["read_in_place"] for g in content["growth"])
    assert not list(folder.iterdir())
    assert {r["dtype"] for r in content["results"]} == {"float32", "float64"}
    assert all(r["share_of_floor"] > 0 for r in content["results"])
    assert content["machine"]["threads"] >= 1
    assert [(r["peer"], r["dtype"], r["refused"]) for r in content["tutorial"]] == [
        (peer, dtype, None) for dtype in ("float32", "float64") for peer in ("tutorial NumPy", "bpaccel fused")
    ]
    assert all(r["step_seconds"]["median"] > 0 for r in content["tutorial"])
    assert "ns a row" in capsys.readouterr().out

    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("benchmarks_report", Path(compare.__file__).with_name("report.py"))
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    for result in content["results"]:
        if result["peer"] == "tutorial NumPy" and result["rows"] == 400:
            result["ns_a_row"] = 1e-3  # the peer wins
    content["results"][0] |= {"refused": "no such thing"}
    path.write_text(json.dumps(content))
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("**0.001** (") == 2  # float32 and float64
    assert "[1] tutorial NumPy: no such thing." in text
    assert "| share of the floor |" in text
    assert "60,000 steps on 4 rows" in text
    assert re.search(r"[|] bpaccel fused [|] float64 [|] .* [|] 1.00 [|]", text), "over ours"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"peers-3-4-1-float32.png", "peers-floor.png", "peers-memory.png", "peers-growth.png"} <= names


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--peers", "steam"], "steam"), (["--share", "0"], "--share"), (["--json", "no/such/folder/x.json"], "no/such")],
)
def test_bad_words_are_one_sentence(words, message, tmp_path, capsys):
    assert compare.main(["--json", str(tmp_path / "x.json"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_smaller_plan_keeps_some_rows_of_each_network():
    assert compare.smaller({XOR: (4, 400, 40_000), (3, 1): (64,)}, 0.01) == {XOR: [4, 400], (3, 1): (64,)}
