"""First calls: what a person waits for in a new process, beside scikit-learn and the tutorial's NumPy code.

    python benchmarks/first.py --out build [--rounds 7] [--only digits]

Each call is made in a process of its own (`benchmarks/calls.py`) whose home and cache folders are empty, in turns with
what it is compared with. Both must have learned the same, or nothing is reported of them. Then the steps of `auto` are
timed warm, as `bpaccel bench` does. Writes first.json and first.md.
"""

import argparse
import compileall
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import machine_lines, table_lines

import bpaccel
from bpaccel import bench
from bpaccel.bench import WrongResult, machine, summary, view
from bpaccel.bench.workloads import Case
from bpaccel.files import check_place

KIND = "bpaccel first"  # what our JSON files say of themselves
CALLS = Path(__file__).with_name("calls.py")
SIZES = tuple(4 * 10**k for k in range(7))  # rows, of which 100 steps are taken
LEAST, LONG_SECONDS = 3, 90.0  # rounds of a work whose rounds take longer together
FIGURES = ("import", "call", "process", "peak")
# Of nets: absolute, for the tutorial's sums of float32 over 4 million rows are themselves 3e-5 off. Of estimators'
# float64: relative, after hundreds of epochs.
SAME_ERROR, SAME_LOSS = 1e-4, 1e-3


@dataclass(frozen=True)
class Work:
    """What is called first: its name in `calls.py`, in words, who does it, and how far apart the results may be."""

    name: str
    words: str
    others: str
    ours: str

    def near(self, a, b):
        """Whether two sides learned the same."""
        return abs(a - b) <= (SAME_ERROR if self.ours == "bpaccel" else SAME_LOSS * abs(a))


def calls():
    """The whole jobs of the table: scikit-learn's default fit of two data sets, and the tutorial's."""
    sklearn = ("scikit-learn", "bpaccel estimator")
    yield Work("digits", "digits / 16, default fit", *sklearn)
    yield Work("breast_cancer", "breast cancer, standardised, default fit", *sklearn)
    yield xor(4, 60_000, "float64", "the tutorial's XOR, 60,000 steps, float64")
    for dtype in ("float32", "float64"):
        yield xor(1_000_000, 10, dtype, f"a million rows of XOR, 10 steps, {dtype}")


def xor(rows, steps, dtype, words):
    """The tutorial's 3-4-1 on XOR."""
    return Work(f"xor:{rows}:{steps}:{dtype}", words, "tutorial", "bpaccel")


def save_tables(folder):
    """The data of the estimators, as files: scikit-learn, which has them, must not be loaded where it is timed."""
    from sklearn.datasets import load_breast_cancer, load_digits

    digits, cancer = load_digits(), load_breast_cancer()
    deviations = (cancer.data - cancer.data.mean(axis=0)) / cancer.data.std(axis=0)
    for name, X, y in (("digits", digits.data / 16, digits.target), ("breast_cancer", deviations, cancer.target)):
        np.save(folder / f"{name}-X.npy", X)
        np.save(folder / f"{name}-y.npy", y)


def call(work, who, folder):
    """Make a first call in a new process: its own figures, and the seconds of the whole process.

    Raises
    ------
    WrongResult
        If the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="home-", dir=folder) as home:
        places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), home)
        kept = dict(os.environ)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-W", "ignore", str(CALLS), work, who, str(folder)],
                              capture_output=True, text=True, check=False, env=kept | places)  # fmt: skip
        seconds = time.perf_counter() - began
    if done.returncode:
        raise WrongResult(f"{who} failed at {work}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout) | {"process": seconds}


def compare(work, rounds, folder):
    """Two sides of a work in turns: a dict, ready for JSON.

    Raises
    ------
    WrongResult
        If the two sides learned something else.
    """
    taken = {work.others: [], work.ours: []}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST and time.perf_counter() - began > LONG_SECONDS:
            break
        for who, results in taken.items():
            results.append(call(work.name, who, folder))
    theirs, ours = taken[work.others], taken[work.ours]
    for a, b in zip(theirs, ours):
        if not work.near(a["value"], b["value"]):
            raise WrongResult(f"{work.ours} learned something else than {work.others} in {work.words}: "
                              f"{b['value']:.8g}, not {a['value']:.8g}")  # fmt: skip
    ratios = {
        "call": [a["call"] / b["call"] for a, b in zip(theirs, ours)],
        "import and call": [(a["import"] + a["call"]) / (b["import"] + b["call"]) for a, b in zip(theirs, ours)],
        "process": [a["process"] / b["process"] for a, b in zip(theirs, ours)],
    }
    return {
        "work": work.name, "words": work.words, "others": work.others, "ours": work.ours,
        "engine": ours[0]["engine"], "reason": ours[0]["reason"], "values": [theirs[0]["value"], ours[0]["value"]],
        "sides": {who: {name: summary([r[name] for r in results]) for name in FIGURES}
                  for who, results in taken.items()},
        "ratios": {name: summary(values) for name, values in ratios.items()},
    }  # fmt: skip


def imports(rounds, folder):
    """Seconds of NumPy's import, of ours after it, and of the first use of `bpaccel.Network`: a dict of summaries."""
    taken = [call("import", "import", folder) for _ in range(rounds)]
    return {"numpy": summary([r["numpy"] for r in taken]), "bpaccel": summary([r["import"] for r in taken]),
            "bpaccel.Network": summary([r["call"] for r in taken])}  # fmt: skip


def size(n, words, rounds, folder):
    """100 steps of `auto` on n rows over the tutorial's code, as a first call and warm: a dict, ready for JSON."""
    first = compare(xor(n, 100, "float32", words), rounds, folder)
    return {"rows": n, "first": first, "warm": bench.measure(Case("numpy", "auto", "float32", n))}


def report(results, wrong, load):
    """Results with all that one needs to understand them later: a dict, ready for JSON."""
    described = machine.describe()
    described["versions"] |= {"scikit-learn": importlib.metadata.version("scikit-learn")}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"kind": KIND, "date": date, "machine": described | {"load_before": load}, **results, "wrong": wrong}


def markdown(content):
    """The tables of a report: lines of Markdown."""
    lines = machine_lines(content["machine"], content["date"])
    if content["calls"]:
        lines += ["### First calls", "", *_calls(content["calls"]), ""]
    for found in content["imports"]:
        rows = [[name, *_milliseconds(figures)] for name, figures in found.items()]
        said = "Milliseconds; ours after NumPy's, and of `bpaccel.Network` its first use after `import bpaccel`."
        lines += ["### Import", "", *table_lines(("peer", "median", "least", "greatest"), rows), "", said, ""]
    if content["sizes"]:
        lines += ["### 100 steps, float32, by rows", "", *_sizes(content["sizes"]), ""]
    return lines + [f"* Not reported: {message}" for message in content["wrong"]]


def _calls(results):
    headers = ("work", "peer", "first call", "least", "greatest", "ratio", "import", "whole process", "ratio",
               "peak MiB", "engine")  # fmt: skip
    rows = []
    for r in results:
        for who in (r["others"], r["ours"]):
            side, ours = r["sides"][who], who == r["ours"]
            ratios = [f"**{view.digits(r['ratios'][name]['median'])}x**" * ours for name in ("call", "process")]
            seconds = [_milliseconds(side[name])[0] for name in ("import", "process")]
            rows.append([r["words"], who, *_milliseconds(side["call"]), ratios[0], *seconds, ratios[1],
                         f"{side['peak']['median'] / 2**20:.0f}", r["engine"] * ours])  # fmt: skip
    reasons = dict.fromkeys(f"* `{r['engine']}`, {r['words']}: {r['reason']}." for r in results)
    return [*table_lines(headers, rows), "", *CALL_NOTES, "", *reasons]


CALL_NOTES = (
    "Milliseconds, medians of processes of their own with empty home and cache folders, in turns. First call: from "
    "after the import to the result, with all that the call itself loads; NumPy, its random numbers and the data are "
    "there before. Import: `from sklearn.neural_network import MLPClassifier`, `from bpaccel import MLPClassifier`, or "
    "`import bpaccel`; the tutorial's code needs NumPy alone. Whole process: from its start to its end, NumPy's import "
    "included. Ratio: the median of the rounds' own, above 1 where we are faster.",
    "",
    "Both classifiers have their default parameters, and end with the same loss to 0.1 %; the others end with the same "
    "error to 1e-4.",
)


def _sizes(results):
    headers = ("rows", "tutorial, first", "bpaccel, first", "ratio", "tutorial, warm", "bpaccel, warm", "ratio",
               "engine")  # fmt: skip
    rows, ratios = [], {"first": {}, "warm": {}}
    for r in results:
        first, warm, n = r["first"], r["warm"], r["rows"]
        ratios["first"][n], ratios["warm"][n] = first["ratios"]["call"]["median"], warm["ratio"]["median"]
        calls = [_milliseconds(first["sides"][who]["call"])[0] for who in ("tutorial", "bpaccel")]
        steps = [view.digits(1e5 * warm[name]["median"]) for name in ("tutorial_step_seconds", "step_seconds")]
        rows.append([f"{n:,}", *calls, f"{view.digits(ratios['first'][n])}x",
                     *steps, f"{view.digits(ratios['warm'][n])}x", warm["engine"]])  # fmt: skip
    least = [f"{view.digits(min(found.values()))}x {name} ({min(found, key=found.get):,} rows)"
             for name, found in ratios.items()]  # fmt: skip
    said = ("Milliseconds of 100 steps of the engine that `auto` chose, medians: as the first call of a process, and "
            f"warm, as `bpaccel bench` times it. The least ratios: {' and '.join(least)}.")  # fmt: skip
    return [*table_lines(headers, rows), "", said]


def _milliseconds(figures):
    return [view.digits(1e3 * max(figures[name], 1e-7)) for name in ("median", "min", "max")]


def main(arguments=None):
    """Measure everything, and write the JSON and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help=f"at most; {LEAST} where they take long")
    parser.add_argument("--only", default="", help="works whose description has this in it")
    parser.add_argument("--out", default="build", metavar="DIR", help="made where it is missing")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    check_place(out / "first.json")
    compileall.compile_dir(Path(bpaccel.__file__).parent, quiet=1)  # as an installation does
    load, wrong, results = machine.load(), [], {"imports": [], "calls": [], "sizes": []}

    def add(kind, words, measure, *arguments):
        if options.only in words:
            print(words, file=sys.stderr)
            try:
                results[kind].append(measure(*arguments, options.rounds, folder))
            except WrongResult as error:
                wrong.append(str(error))
                print(f"error: {error}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="bpaccel-") as folder:
        save_tables(Path(folder))
        add("imports", "import bpaccel", imports)
        for work in calls():
            add("calls", work.words, compare, work)
        for n in SIZES:
            words = f"100 steps on {n:,} rows"
            add("sizes", words, size, n, words)
    content = report(results, wrong, load)
    bench.write(out / "first.json", content)
    text = "\n".join(markdown(content))
    (out / "first.md").write_text(text)
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
