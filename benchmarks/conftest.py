"""What the suites share: float64 on JAX, and a description of the machine without its name."""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported

import pytest

from bpaccel.bench import machine


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_machine_info(config):
    """Ours instead of the plugin's, which would write down the host's name."""
    return machine.describe()


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_commit_info(config):
    return {"id": machine.describe()["commit"]}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Without the thousands of single timings: median, minimum, maximum and spread stay."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
