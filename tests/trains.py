"""Whether the package that is installed here trains by its kernels: ``python tests/trains.py``, in its own process."""

from pathlib import Path

import numpy as np

import bpaccel

if Path(bpaccel.__file__).is_relative_to(Path(__file__).parents[1]):
    raise SystemExit(f"The package must be an installed one; it was that of the sources, {bpaccel.__file__}.")

X = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
y = np.array([[0.0], [1.0], [1.0], [0.0]])
for dtype in ("float32", "float64"):
    network = bpaccel.Network([3, 4, 1], seed=1)
    history = network.train(X.astype(dtype), y.astype(dtype), steps=60_000)
    error = abs(network.predict(X.astype(dtype)) - y).max()
    if history.engine != "fused" or not error < 0.01:
        raise SystemExit(f"{dtype}: trained by engine {history.engine}, to an error of {error}: {history.reason}.")
print(f"Trained by {bpaccel.__file__}: {history.reason}.")
