"""Some cases of the fuzz of the kernels; `make sanitize` runs more of them, under sanitizers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bpaccel.engines.cpu.library import processor_levels

NATIVE = Path(__file__).parent / "native"
pytestmark = [
    pytest.mark.usefixtures("fused"),
    pytest.mark.skipif(os.name == "nt", reason="pages are not protected on Windows"),
]


def python(*arguments, **environment):
    """What Python prints, and how it ends, in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env={**os.environ, **environment}, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options", [("--cases", 150), ("--cases", 30, "--shared", "--seed", 10**6)], ids=["any", "shared"]
)
def test_any_network_rows_and_steps_are_right_and_the_same_on_every_level(options):
    digests = set()
    asked = os.environ.get("BPACCEL_LEVEL")
    for level in [asked] if asked else processor_levels():
        done = python(NATIVE / "fuzz.py", *options, BPACCEL_LEVEL=level)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, "\n".join(lines[-20:])
        assert lines[-1].startswith(f"{options[1]} cases of level {level}: ")
        digests.add(lines[-1].split()[-1])
    assert len(digests) == 1


PLANTED = """
import sys
sys.path.insert(0, sys.argv[1])
import memory
import numpy as np
for size in (8, 4096, 12_000):
    for at_end in (True, False):
        array = memory.exact(size, at_end).view(np.float64)
        assert np.isnan(array).all()
        array[:] = 0
last = memory.exact(int(sys.argv[2]), sys.argv[3] == "end").view(np.float64)
print("there", flush=True)
beyond = np.lib.stride_tricks.as_strided(last, (len(last) + 1,))[-1] if sys.argv[3] == "end" else (
    np.lib.stride_tricks.as_strided(last, (2,), (-8,))[1])
print(beyond)
"""


@pytest.mark.parametrize("side", ["end", "begin"])
@pytest.mark.parametrize("size", [8, 4096, 12_000])
def test_a_number_beyond_exact_memory_cannot_be_read(side, size):
    done = python("-c", PLANTED, NATIVE, size, side)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS), done.stdout
    assert done.stdout.startswith("there")
