"""Our MLPClassifier beside scikit-learn's and PyTorch written by hand: the same fit, the same predictions, timed.

    python benchmarks/sklearn_mlp.py --out build [--rows 1000000] [--dtype float64,float32] [--rounds 5]

All get the same rows, initial weights, batches and solver. Before anything is timed, the results are compared: see
`check`. Then fit and predict are timed in turns, round by round, each warmed up by the fit that was compared. Writes
sklearn-mlp.json and sklearn-mlp.md.
"""

import argparse
import datetime
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from report import machine_lines, table_lines
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.utils import shuffle

import bpaccel as bp
from bpaccel import bench
from bpaccel.bench import WrongResult, machine, summary
from bpaccel.files import check_place

KIND = "bpaccel sklearn_mlp"  # what our JSON files say of themselves
SEED = 1
LEAST_SECONDS = 0.2  # a call that takes less is repeated for so long
PROVIDERS = ("scikit-learn", "bpaccel", "PyTorch")
HEADERS = ("data", "hidden", "solver", "batch", "dtype", "what", *PROVIDERS, "scikit-learn / bpaccel",
           "PyTorch / bpaccel", "engine")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One network and how it is trained; ``epochs`` are iterations for lbfgs, ``batch`` None is all rows."""

    data: str
    rows: int
    hidden: tuple
    solver: str
    batch: int | None
    epochs: int
    dtype: str

    def parameters(self):
        """What both estimators get: nothing stops them before their last epoch."""
        batch = {} if self.batch is None else {"batch_size": self.batch}
        return {"hidden_layer_sizes": self.hidden, "solver": self.solver, "max_iter": self.epochs, "tol": 0.0,
                "n_iter_no_change": np.inf, "random_state": SEED, **batch}  # fmt: skip


def cases(rows, dtypes):
    """digits, and a table of physics events, at the batches that people use."""
    for dtype in dtypes:
        yield Case("digits", 1797, (32,), "adam", 200, 20, dtype)
        yield Case("digits", 1797, (100,), "adam", 200, 20, dtype)
        yield Case("digits", 1797, (100,), "lbfgs", None, 20, dtype)
        for hidden in ((32,), (64, 32)):
            yield Case("events", rows, hidden, "adam", min(200, rows), 1, dtype)
            yield Case("events", rows, hidden, "adam", min(65_536, rows), 3, dtype)
            yield Case("events", rows, hidden, "lbfgs", None, 5, dtype)


def table(case):
    """X (N, I) and the labels y (N,) of a case; of events 28 columns, as the HIGGS data have them: some momenta, and
    quantities that are made of them, from which two kinds of events can be told in part."""
    if case.data == "digits":
        X, y = load_digits(return_X_y=True)
        return (X / 16).astype(case.dtype), y
    random = np.random.default_rng(SEED)
    X = random.standard_normal((case.rows, 28))
    mass = np.sqrt(X[:, 0] ** 2 + X[:, 1] ** 2 + np.abs(X[:, 2] * X[:, 3]) + 2.0 * np.abs(X[:, 4]))
    X[:, 21] = mass + 0.3 * random.standard_normal(case.rows)
    X[:, 22:] = X[:, 5:11] * X[:, 11:17]
    y = (mass + 0.5 * X[:, 22] + 0.5 * random.standard_normal(case.rows) > 1.6).astype(np.int64)
    return X.astype(case.dtype), y


class Estimator:
    """scikit-learn's class, or ours, which has its interface."""

    def __init__(self, kind, case, X, y):
        self.model, self.X, self.y = kind(**case.parameters()), X, y

    def fit(self):
        self.model.fit(self.X, self.y)

    def predict(self):
        return self.model.predict_proba(self.X)

    @property
    def loss(self):
        return self.model.loss_

    @property
    def engine(self):
        history = getattr(self.model, "history_", None)
        return history and history.engine


class Torch:
    """The same training as one writes it in PyTorch: autograd, its Adam, rows gathered by index."""

    engine = None

    def __init__(self, case, X, y, start):
        import torch

        self.torch, self.case, self.start = torch, case, start
        self.X = torch.asarray(X)
        self.classes = len(np.unique(y))
        self.y = torch.asarray(y) if self.classes > 2 else torch.asarray(y, dtype=self.X.dtype)[:, None]

    def fit(self):
        torch, case, n = self.torch, self.case, len(self.X)
        sizes = [self.X.shape[1], *case.hidden, self.classes if self.classes > 2 else 1]
        layers = []
        for inputs, outputs in pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs, dtype=self.X.dtype), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1])
        linear = list(self.net)[::2]
        with torch.no_grad():
            for layer, W, b in zip(linear, *self.start):
                layer.weight.copy_(torch.asarray(W.T.copy()))
                layer.bias.copy_(torch.asarray(b))
        loss_of = torch.nn.CrossEntropyLoss() if self.classes > 2 else torch.nn.BCEWithLogitsLoss()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.001)
        random = np.random.RandomState(SEED)
        for W, b in zip(*self.start):  # what the estimators draw before the first order of rows
            random.uniform(size=W.size), random.uniform(size=b.size)
        order = np.arange(n)
        for _ in range(case.epochs):
            order = shuffle(order, random_state=random)
            index, total = torch.asarray(order), torch.zeros((), dtype=self.X.dtype)
            for at in range(0, n, case.batch):
                rows = index[at : at + case.batch]
                squares = sum((layer.weight**2).sum() for layer in linear)
                loss = loss_of(self.net(self.X[rows]), self.y[rows]) + 0.5 * 1e-4 / len(rows) * squares
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            self.loss = float(total) / n

    def predict(self):
        with self.torch.inference_mode():
            outputs = self.net(self.X)
            if self.classes > 2:
                return self.torch.softmax(outputs, dim=1).numpy()
            outputs = self.torch.sigmoid(outputs)
            return self.torch.cat([1 - outputs, outputs], dim=1).numpy()


def start_of(case, X, y):
    """The weights that scikit-learn draws, as (coefs, intercepts): those of a model of no learning rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier(**case.parameters() | {"max_iter": 1, "solver": "sgd", "learning_rate_init": 1e-300,
                                                     "alpha": 0.0, "batch_size": len(X)}).fit(X, y)  # fmt: skip
    return model.coefs_, model.intercepts_


def check(case, name, theirs, ours):
    """Raise WrongResult unless two fits are the same.

    In float64 our weights are scikit-learn's to 1e-6. In float32, which no two libraries round alike, and for PyTorch,
    whose Adam adds its epsilon elsewhere, the losses agree to 1e-3 and the probabilities to 0.01 on average.
    """
    loss = abs(theirs.loss - ours.loss) / abs(theirs.loss)
    share = float(np.abs(theirs.predict() - ours.predict()).mean())
    off = {"loss": float(loss), "probabilities": share}
    exact = name == "bpaccel" and case.dtype == "float64"
    if exact:
        pairs = zip(theirs.model.coefs_ + theirs.model.intercepts_, ours.model.coefs_ + ours.model.intercepts_)
        off["weights"] = float(max(np.abs(a - b).max() for a, b in pairs))
    if not (off["loss"] <= 1e-3 and share <= 0.01 and off.get("weights", 0.0) <= 1e-6):
        raise WrongResult(f"{name} is not scikit-learn in {case}: {off}")
    return off


def seconds(call):
    """How long a call takes: the mean of several where it is short."""
    count, began = 0, time.perf_counter()
    while True:
        call()
        count += 1
        spent = time.perf_counter() - began
        if spent > LEAST_SECONDS:
            return spent / count


def measure(case, rounds, torch):
    """Compare and time the providers of one case: a list of rows, one for fit and one for predict."""
    X, y = table(case)
    providers = {
        "scikit-learn": Estimator(MLPClassifier, case, X, y),
        "bpaccel": Estimator(bp.MLPClassifier, case, X, y),
    }
    if torch and case.solver != "lbfgs":  # PyTorch's has another line search: another training
        providers["PyTorch"] = Torch(case, X, y, start_of(case, X, y))
    for provider in providers.values():
        provider.fit()
    off = {name: check(case, name, providers["scikit-learn"], provider) for name, provider in providers.items()
           if name != "scikit-learn"}  # fmt: skip
    rows = []
    for what in ("fit", "predict"):
        times = {name: [] for name in providers}
        for _ in range(rounds):
            for name, provider in providers.items():
                times[name].append(seconds(getattr(provider, what)))
        ours = np.array(times["bpaccel"])
        ratios = {name: summary(np.array(t) / ours) for name, t in times.items() if name != "bpaccel"}
        rows.append({**asdict(case), "what": what, "engine": providers["bpaccel"].engine, "off": off,
                     "seconds": {name: summary(t) for name, t in times.items()}, "ratios": ratios})  # fmt: skip
    return rows


def report(results, wrong, load):
    """Results with all that one needs to understand them later: a dict, ready for JSON."""
    import sklearn

    described = machine.describe()
    described["versions"] |= {"scikit-learn": sklearn.__version__}
    return {
        "kind": KIND,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": described | {"load_before": load},
        "results": results,
        "wrong": wrong,
    }


def markdown(content):
    """The table of a report: lines of Markdown."""
    rows = []
    for r in content["results"]:
        medians = [r["seconds"][name]["median"] if name in r["seconds"] else math.inf for name in PROVIDERS]
        times = [f"{1e3 * t:,.4g}" if math.isfinite(t) else "" for t in medians]
        fastest = int(np.argmin(medians))
        times[fastest] = f"**{times[fastest]}**"
        ratios = [f"{r['ratios'][name]['median']:.2f}" if name in r["ratios"] else "" for name in PROVIDERS[::2]]
        fit, unit = r["what"] == "fit", "iteration" if r["solver"] == "lbfgs" else "epoch"
        what = f"fit, {r['epochs']} {unit}{'s' * (r['epochs'] > 1)}" if fit else "predict"
        rows.append([
            f"{r['data']}, {r['rows']:,}", ", ".join(map(str, r["hidden"])), r["solver"],
            "all" if r["batch"] is None else f"{r['batch']:,}", r["dtype"], what, *times, *ratios, r["engine"] * fit,
        ])  # fmt: skip
    note = ("Milliseconds, medians; ratios are medians of the rounds' own, above 1 where we are faster; the fastest in "
            "bold. The engine is the one that `auto` chose.")  # fmt: skip
    wrong = [f"* Not timed: {message}" for message in content["wrong"]]
    return [*machine_lines(content["machine"], content["date"]), *table_lines(HEADERS, rows), "", note, "", *wrong]


def main(arguments=None):
    """Measure all cases, and write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table of events")
    parser.add_argument("--dtype", default="float64,float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose description has this in it")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", required=True, metavar="DIR", help="made where it is missing")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    check_place(out / "sklearn-mlp.json")
    load, results, wrong = machine.load(), [], []
    warnings.simplefilter("ignore", ConvergenceWarning)
    for case in cases(options.rows, options.dtype.split(",")):
        if options.only in str(case):
            print(case, file=sys.stderr)
            try:
                results += measure(case, options.rounds, not options.no_torch)
            except WrongResult as error:
                wrong.append(str(error))
                print(f"error: {error}", file=sys.stderr)
    content = report(results, wrong, load)
    bench.write(out / "sklearn-mlp.json", content)
    (out / "sklearn-mlp.md").write_text("\n".join(markdown(content)))
    print("\n".join(markdown(content)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
