"""A first call, timed in the process that makes it: `benchmarks/first.py` starts one process for each.

    python benchmarks/calls.py WORK WHO [FOLDER]

NumPy, its random numbers and the data are there before the clock starts. Then it runs for the import, and for the call
with all that the call itself loads. Prints JSON: seconds, bytes of memory at most, and what was learned. Nothing but
NumPy is imported at the top, and nothing at all that a call could find loaded already.
"""

import sys
import time

began = time.perf_counter()
import numpy as np  # noqa: E402
import numpy.random  # noqa: E402

numpy_seconds = time.perf_counter() - began

XOR = [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], [[0], [1], [1], [0]]
RATE = 16.0  # of the mean over the rows, where XOR's table is laid end to end


def rows(work, folder):
    """X and y of a work: XOR's table laid end to end as ``xor:ROWS:STEPS:DTYPE``, else two files of the folder."""
    if work.startswith("xor:"):
        _, n, _, dtype = work.split(":")
        return tuple(np.tile(np.array(part, dtype), (int(n) // 4, 1)) for part in XOR)
    return tuple(np.load(f"{folder}/{work}-{part}.npy") for part in "Xy")


def mean_error(weights):
    """The mean ``|y - output|`` that the weights reach on XOR's table."""
    l, y = map(np.array, XOR)
    for W in weights:
        l = 1 / (1 + np.exp(-(l @ np.asarray(W, "float64"))))
    return float(np.mean(np.abs(y - l)))


class Tutorial:
    """The tutorial's NumPy code, which needs no further import; with many rows its rate, over N, makes sums a mean."""

    def bring(self):
        pass

    def call(self, work, X, y):
        steps, rate = int(work.split(":")[2]), RATE / len(X) if len(X) > 4 else 1.0

        def nonlin(x, deriv=False):
            if deriv:
                return x * (1 - x)
            return 1 / (1 + np.exp(-x))

        np.random.seed(1)
        syn0 = (2 * np.random.random((3, 4)) - 1).astype(X.dtype)
        syn1 = (2 * np.random.random((4, 1)) - 1).astype(X.dtype)
        for _ in range(steps):
            l0 = X
            l1 = nonlin(np.dot(l0, syn0))
            l2 = nonlin(np.dot(l1, syn1))
            l2_error = y - l2
            l2_delta = l2_error * nonlin(l2, deriv=True)
            l1_error = l2_delta.dot(syn1.T)
            l1_delta = l1_error * nonlin(l1, deriv=True)
            syn1 += rate * l1.T.dot(l2_delta)
            syn0 += rate * l0.T.dot(l1_delta)
        return [syn0, syn1]

    def learned(self, weights):
        return {"value": mean_error(weights)}


class Network:
    """bpaccel's Network, on the same rows, weights and rate."""

    def bring(self):
        import bpaccel

        self.bp = bpaccel

    def call(self, work, X, y):
        many = len(X) > 4
        self.net = self.bp.Network([3, 4, 1], seed=1)
        return self.net.train(X, y, steps=int(work.split(":")[2]), learning_rate=RATE if many else 1.0,
                              reduction="mean" if many else "sum")  # fmt: skip

    def learned(self, history):
        return {"value": mean_error(self.net.weights), "engine": history.engine, "reason": history.reason}


class Theirs:
    """scikit-learn's MLPClassifier as it is by default."""

    def bring(self):
        from sklearn.neural_network import MLPClassifier

        self.kind = MLPClassifier

    def call(self, work, X, y):
        return self.kind(random_state=0).fit(X, y)

    def learned(self, model):
        return {"value": model.loss_, "epochs": model.n_iter_}


class Ours(Theirs):
    """bpaccel's."""

    def bring(self):
        from bpaccel import MLPClassifier

        self.kind = MLPClassifier

    def learned(self, model):
        return super().learned(model) | {"engine": model.history_.engine, "reason": model.history_.reason}


class Import:
    """``import bpaccel`` alone, and then the first use of a name in it."""

    def bring(self):
        import bpaccel

        self.bp = bpaccel

    def call(self, work, X, y):
        return self.bp.Network

    def learned(self, network):
        return {"value": 0.0}


WHO = {"tutorial": Tutorial, "bpaccel": Network, "scikit-learn": Theirs, "bpaccel estimator": Ours, "import": Import}


def peak():
    """Bytes of memory that this process held at most.

    Linux' ``ru_maxrss`` begins with what the process that started this one held: VmHWM does not.
    """
    try:
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(work, who, folder=None):
    """Make a call, and print what is known of it."""
    provider = WHO[who]()
    X, y = rows(work, folder) if work != "import" else (None, None)
    began = time.perf_counter()
    provider.bring()
    brought = time.perf_counter()
    result = provider.call(work, X, y)
    done = time.perf_counter()
    held = peak()
    import json

    print(json.dumps({"numpy": numpy_seconds, "import": brought - began, "call": done - brought, "peak": held,
                      **provider.learned(result)}))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
