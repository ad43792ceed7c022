"""A few kills and interrupts at random moments; ``make torture`` does hundreds (tests/torture.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("mini-batches, adam", "early stopping, a schedule", "MLPClassifier, early stopping", "TableModel")


def test_what_was_killed_or_interrupted_goes_on_to_the_same_bytes():
    """In a process of its own: it forks, and must have no threads."""
    if not hasattr(os, "fork"):
        pytest.skip("its processes are forked")
    pytest.importorskip("sklearn")
    pytest.importorskip("typer")
    words = [word for name in NAMES for word in ("--only", name)]
    command = [sys.executable, Path(__file__).with_name("torture.py"), "--kills", "4", "--interrupts", "8", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, interrupts = re.search(r"^(\d+) kills \(SIGKILL\) and (\d+) interrupts", done.stdout, re.M).groups()
    assert int(kills) >= 5
    assert int(interrupts) == 8
