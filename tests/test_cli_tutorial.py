"""`bpaccel tutorial`, from outside: what it prints, what it draws, and how it refuses."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("typer", reason="the extra `cli` is not installed")
pytest.importorskip("rich", reason="the extra `cli` is not installed")


def bpaccel(*arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("BPACCEL_BACKEND", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-m", "bpaccel", "tutorial", *arguments],
        capture_output=True, encoding="utf-8", timeout=300, env=clean | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A whole run with a picture: the process, and the picture's path."""
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    path = tmp_path_factory.mktemp("pictures") / "[red]old.png"  # a name that looks like markup
    path.write_bytes(b"old")
    return bpaccel("--plot", str(path)), path


def test_prints_the_article_s_digits(told):
    process, _ = told
    assert process.returncode == 0
    assert process.stderr == ""
    text = process.stdout
    assert "[[0.00966449]\n [0.00786506]\n [0.99358898]\n [0.99211957]]" in text
    assert "[[0.00260572]\n [0.99672209]\n [0.99701711]\n [0.00386759]]" in text
    for step, error in (("0", "0.4964100319"), ("10,000", "0.0085845257"), ("50,000", "0.0035101226")):
        assert re.search(rf"^ *{step} +{error}$", text, re.MULTILINE)
    assert re.search(r"^syn0 +-0\.1660 +9\.6730$", text, re.MULTILINE)
    assert re.search(r"^ +3 +-0\.1127 +-0\.5608$", text, re.MULTILINE)  # the third hidden unit's correlation
    assert "Correlation of the three columns with y: 1.00, 0.00, none" in text


def test_stops_where_the_article_does(told):
    text = told[0].stdout
    stops = ["Part 1", "The data", "Output after training", "The first iteration", "The last iteration", "The error",
             "The weights", "Part 2", "The data", "Output after training", "The first iteration, forward",
             "The first iteration, backward", "The last iteration, forward", "The last iteration, backward",
             "The error", "Correlation of each hidden unit", "The weights", "picture:"]  # fmt: skip
    at = 0
    for stop in stops:
        at = text.find(stop, at)
        assert at >= 0, stop
        at += 1


def test_fits_80_columns(told):
    lines = told[0].stdout.splitlines()
    assert all(len(line) <= 80 or line.startswith("picture:") for line in lines)
    assert "\x1b" not in told[0].stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in told[0].stdout  # nothing was cut off


def test_draws_the_picture(told):
    process, path = told
    assert process.stdout.endswith(f"picture: {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


def test_on_another_backend_and_engine_and_an_ascii_pipe():
    # A float32 device, told through the environment; the characters of tables must do without Unicode.
    pytest.importorskip("array_api_strict")
    code = """
import sys
from bpaccel import tutorial
from bpaccel.__main__ import main
for teach in (tutorial.two_layer, tutorial.three_layer):
    teach.__kwdefaults__["steps"] = 150  # the digits are tested elsewhere
sys.argv[1:] = ["tutorial", "--engine", "blocked"]
main()
"""
    environment = {"BPACCEL_BACKEND": "array_api_strict:no_float64", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | environment)
    assert process.returncode == 0, process.stderr
    text = process.stdout.decode("ascii")
    assert "array_api_strict:no_float64 in float32, engine blocked" in " ".join(text.split())
    assert "has no float64 here" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plot", "picture.txt"], r"must end with \.png, .*; got 'picture\.txt'"),
        (["--plot", "picture"], r"must end with \.png, .*; got 'picture'"),
        (["--plot", ""], r"must end with \.png"),
        (["--plot", "no_such_folder/picture.png"], "no folder 'no_such_folder'"),
        (["--backend", "abacus"], "`backend` 'abacus' is not known"),
        (["--backend", "numpy:7"], "NumPy has no device '7'"),
        (["--engine", "steam"], "`engine` must be auto, .*; got 'steam'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    process = bpaccel(*arguments)
    assert process.returncode == 2
    assert process.stdout == ""  # nothing was trained
    assert re.fullmatch(r"error: .*\n", process.stderr)
    assert re.search(sentence, process.stderr)


def test_backend_without_its_library_says_what_to_install():
    process = bpaccel("--backend", "cupy")
    if process.returncode == 0:
        pytest.skip("a CUDA device is here")
    assert process.returncode == 2
    assert re.fullmatch(r"error: backend 'cupy' is not usable: .*\n", process.stderr)


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["extra"], ["--plot"]])
def test_unknown_arguments(arguments):
    process = bpaccel(*arguments)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


def test_help_names_the_options():
    process = bpaccel("--help")
    assert process.returncode == 0
    assert all(option in process.stdout for option in ("--backend", "--engine", "--plot"))
