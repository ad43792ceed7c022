"""Kills and interrupts at random moments of trainings that are then gone on with: the bytes must be the unbroken ones'.

    python tests/torture.py --kills 200 --interrupts 200 --seed 0 --out build/torture.md

Each training is a process of its own. A kill is SIGKILL, so that only the checkpoint is left; the same call is repeated
with it until one comes to its end. An interrupt is SIGINT, after which the process itself goes on, from the History or
from the checkpoint. `tests/test_torture.py` runs a few of each.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

import bpaccel as bp
from bpaccel import MLPClassifier, MLPRegressor  # here, and not in each process
from bpaccel.callbacks import Checkpoint, Cosine, EarlyStopping, Schedule
from bpaccel.engines.cpu import library
from bpaccel.solvers import SOLVERS

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((120, 4)), RANDOM.standard_normal(120)
X_VAL, Y_VAL = RANDOM.standard_normal((40, 4)), RANDOM.standard_normal(40)
TABLE = {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "kind": np.where(Y > 0.3, "high", np.where(Y < -0.3, "low", "mid"))}
STEPS = 150


class Wrong(AssertionError):
    """A training that did not go on to the same bytes."""


def _network(path, resume, **options):
    callbacks = [*options.pop("callbacks", list)(), Checkpoint(path)]
    net = bp.Network([4, 8, 1], activation=["tanh", "identity"], seed=1)
    options = {"steps": STEPS, "learning_rate": 0.02, "record_every": 1, "seed": 2, **options}
    history = net.train(X, Y, callbacks=callbacks, resume=resume, **options)
    if history.stopped == "interrupted" and callbacks[0].__class__ is Checkpoint:
        # In memory: the same callbacks go on.
        rest = options | {"steps": STEPS - history.state.step}
        if rest["steps"]:
            history = net.train(X, Y, callbacks=callbacks, resume=history, **rest)
    return net.weights, history


def _stopping():
    return [EarlyStopping(X_VAL, Y_VAL, patience=60), Schedule(Cosine(0.05, STEPS))]


def _estimator(kind, y, **options):
    def train(path, resume):
        model = kind(hidden_layer_sizes=(8,), max_iter=40, random_state=3, batch_size=20, tol=0.0, n_iter_no_change=100,
                                  callbacks=[Checkpoint(path)], **options)  # fmt: skip
        model.fit(X, y, resume=resume)
        return [*model.coefs_, *model.intercepts_, *model._best_weights, np.array(model.loss_curve_)], model.history_

    return train


def _table(path, resume):
    model = bp.TableModel(seed=4)
    history = model.fit(TABLE, "kind", epochs=30, batch_size=20, record_every=1, callbacks=[Checkpoint(path)],
                        resume=resume)  # fmt: skip
    return model.network.weights, history


def _by(**options):
    return lambda path, resume: _network(path, resume, **options)


TRAININGS = {
    **{f"all rows, {name}": _by(solver=name) for name in SOLVERS},
    **{f"mini-batches, {name}": _by(solver=name, batch_size=16) for name in SOLVERS},
    "dropout": _by(solver="adam", batch_size=16, dropout=0.3),
    "early stopping, a schedule": _by(solver="adam", batch_size=40, callbacks=_stopping),
    "plain engine": _by(solver="adam", engine="array", batch_size=40),
    "MLPClassifier": _estimator(MLPClassifier, TABLE["kind"]),
    "MLPClassifier, early stopping": _estimator(MLPClassifier, TABLE["kind"], early_stopping=True),
    "MLPRegressor, dropout": _estimator(MLPRegressor, Y, dropout=0.2, solver="sgd"),
    "TableModel": _table,
}


def result_of(weights, history):
    """What is compared: all bytes of the weights, and the history without its times."""
    columns = {name: values for name, values in history.to_dict().items() if name != "seconds"}
    return {"weights": [np.asarray(W).tobytes().hex() for W in weights], "history": columns, "stopped": history.stopped}


def child(name, folder):
    """Train in this process, on from the checkpoint if there is one; write the result."""
    path, out = folder / "run.bp", folder / "result.json"
    resume = path if path.exists() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, history = TRAININGS[name](path, resume)
        if history.stopped == "interrupted":  # on from the file that the interrupt left
            columns = {len(values) for values in history.to_dict().values()}
            if len(columns) != 1:
                raise Wrong(f"the columns of the history are of lengths {columns}")
            weights, history = TRAININGS[name](path, path)
    out.write_text(json.dumps(result_of(weights, history)))


def start(name, folder):
    """A forked process that runs `child`: its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        (folder / "ready").touch()
        child(name, folder)
        code = 0
    except KeyboardInterrupt:  # before the training began, or after it had ended
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def unbroken(name):
    """The result of a training that nobody disturbs, and the seconds that it takes with its checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if _wait(start(name, Path(folder))) != 0:
            raise Wrong(f"{name}: it fails undisturbed")
        return json.loads((Path(folder) / "result.json").read_text()), time.perf_counter() - began


def _wait(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _compare(name, folder, want, what):
    got = json.loads((folder / "result.json").read_text())
    for key in want:
        if got[key] != want[key]:
            raise Wrong(f"{name}: after {what} its {key} are other ones")
    bp.load(folder / "run.bp")
    if left := {p.name for p in folder.iterdir()} - {"run.bp", "result.json", "ready"}:
        raise Wrong(f"{name}: {what} left {left} behind")


def killed(name, want, seconds, chance):
    """Kill a training until it comes to its end between two kills; returns how many kills it took."""
    with tempfile.TemporaryDirectory() as place:
        folder, kills = Path(place), 0
        while True:
            number = start(name, folder)
            time.sleep(chance.uniform(0, 0.5 * seconds))
            os.kill(number, signal.SIGKILL)
            if _wait(number) == 0:
                break
            kills += 1
            if (folder / "run.bp").exists():
                bp.load(folder / "run.bp")
            if kills % 10 == 0 and _wait(start(name, folder)) == 0:  # often killed before it came further
                break
        _compare(name, folder, want, f"{kills} kills")
    return kills


def interrupted(name, want, seconds, chance):
    """Interrupt a training once; returns whether it was within the training."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        number = start(name, folder)
        while not (folder / "ready").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.9 * seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGINT)
        code = _wait(number)
        if code == 1:
            raise Wrong(f"{name}: an interrupt ended in an error")
        if code == 2 and _wait(start(name, folder)) != 0:
            raise Wrong(f"{name}: it cannot go on after an interrupt")
        _compare(name, folder, want, "an interrupt")
        return code == 0


def command_line(kills, chance):
    """Kill ``bpaccel train --checkpoint`` and repeat it; the models must be the same file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.savez(folder / "table.npz", a=X[:, 0], b=X[:, 1], y=Y)

        def command(name):
            words = [sys.executable, "-m", "bpaccel", "train", "table.npz", "--target", "y", "--out", f"{name}.model",
                     "--checkpoint", f"{name}.run", "--epochs", "400", "--batch-size", "8"]  # fmt: skip
            return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

        began = time.perf_counter()
        if command("whole").wait():
            raise Wrong("the command line fails undisturbed")
        seconds, done = time.perf_counter() - began, 0
        while done < kills:
            for file in folder.glob("broken.*"):
                file.unlink()
            for _ in range(3):
                process = command("broken")
                time.sleep(chance.uniform(0.3, 1.0) * seconds)
                process.kill()
                done += process.wait() != 0
            process = command("broken")
            if process.wait():
                raise Wrong(f"the command line cannot go on: {process.stderr.read()}")
            if (folder / "broken.model").read_bytes() != (folder / "whole.model").read_bytes():
                raise Wrong("the command line: the model is another one after kills")
    return done


def torture(kills, interrupts, names, seed=0, say=print):
    """Kill and interrupt; returns a row (training, kills, interrupts within, interrupts) for each training."""
    chance, rows = random.Random(seed), []
    for name in names:
        want, seconds = unbroken(name)
        done = within = 0
        while done < kills / len(names):
            done += max(1, killed(name, want, seconds, chance))
        count = -(-interrupts // len(names))
        for _ in range(count):
            within += interrupted(name, want, seconds, chance)
        rows.append((name, done, within, count))
        say(f"{name}: {done} kills, {count} interrupts ({within} of them within the training): all to the same bytes")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--interrupts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(TRAININGS), help="a training; repeatable")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    lines = command_line(max(1, arguments.kills // 10), random.Random(arguments.seed))
    rows = torture(arguments.kills, arguments.interrupts, arguments.only or list(TRAININGS), arguments.seed)
    rows.append(("bpaccel train --checkpoint", lines, 0, 0))
    kernels = library.why_not() or f"kernels of level {library.library().level}"
    text = [
        "# Kills and interrupts at random moments",
        "",
        f"`python tests/torture.py --kills {arguments.kills} --interrupts {arguments.interrupts} --seed "
        f"{arguments.seed}`, {time.strftime('%Y-%m-%d')}, commit {_commit()}, {platform.system()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, {kernels}, {time.perf_counter() - began:.0f} s.",
        "",
        f"{sum(row[1] for row in rows)} kills (SIGKILL) and {sum(row[3] for row in rows)} interrupts (SIGINT); "
        f"{sum(row[2] for row in rows)} came within a training. Each went on to the bytes of the unbroken "
        "one (weights, and the history but for its times), each file loaded after each kill, and nothing was left "
        "behind.",
        "",
        "| training | kills | interrupts within | interrupts |",
        "| :-- | --: | --: | --: |",
        *(f"| {name} | {done} | {within} | {count} |" for name, done, within, count in rows),
        "",
    ]
    print("\n".join(text))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(text))


def _commit():
    git = shutil.which("git")
    found = git and subprocess.run(
        [git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found and found.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
