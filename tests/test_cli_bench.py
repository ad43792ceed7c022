"""`bpaccel bench` from outside: what it prints, what it writes, and what it says to bad input."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("typer")


def bpaccel(*arguments, **environment):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"} | environment
    return subprocess.run([sys.executable, "-m", "bpaccel", "bench", *map(str, arguments)],
                          capture_output=True, text=True, timeout=120, env=environment)  # fmt: skip


def test_table_figures_and_picture(tmp_path):
    done = bpaccel("--rows", "4:40", "--json", tmp_path / "b.json",
                   "--plot", tmp_path / "b.png", COLUMNS="80")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0.148637") == 3  # two lines, and the note below them
    assert "the same to 1e-5 in every line" in " ".join(done.stdout.split())
    assert "ratio: the time of the tutorial's own NumPy code over" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [(r["dtype"], r["rows"]) for r in results] == [("float32", 4), ("float32", 40)]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "many"], "--rows"),
        (["--backend", "fortran"], "fortran"),
        (["--engine", "steam"], "steam"),
        (["--json", "no/such/folder/b.json"], "no/such/folder"),
        (["--plot", "b.txt"], ".png"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    done = bpaccel(*arguments, COLUMNS="300")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_warns_of_a_slowed_blas():
    # A value that OpenBLAS does not know: it keeps to its own choice.
    done = bpaccel("--rows", "4", OPENBLAS_CORETYPE="unknown")
    assert done.returncode == 0
    assert "OPENBLAS_CORETYPE=unknown is set" in " ".join(done.stderr.split())
    assert "settings: OPENBLAS_CORETYPE=unknown" in done.stdout
