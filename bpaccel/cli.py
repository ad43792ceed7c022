"""The command line: `bpaccel info | tutorial | bench | train | predict`.

Bad input ends with one sentence on standard error and exit code 2. The work is done elsewhere: a command here reads
its options, calls the module that knows, and prints.
"""

import os
import platform
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import bpaccel
from bpaccel.backends import available_backends, backend
from bpaccel.engines import thread_count
from bpaccel.engines.choice import ENGINES, find
from bpaccel.files import check_place
from bpaccel.libraries import LIBRARIES

app = typer.Typer(help=bpaccel.__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)


def run():
    """Run the command, and turn what the user can mend into one sentence and exit code 2."""
    try:
        app()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        _fail(_sentence(error))
    except MemoryError:
        _fail("not enough memory: use fewer rows, or smaller batches.")


def _fail(sentence):
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {sentence}")
    sys.exit(2)


def _sentence(error):
    from rich.markup import escape

    if isinstance(error, OSError) and error.strerror:
        return escape(f"{error.strerror}: {error.filename}")
    return escape(str(error))


@app.command()
def info():
    """Versions, backends with the reason why not, devices, engines, BLAS, threads."""
    _say(f"bpaccel {bpaccel.__version__}, Python {platform.python_version()}, {platform.platform()}")
    table = Table("backend", "version", "state", "devices", title="Backends", title_justify="left")
    for name, state in available_backends().items():
        version = getattr(sys.modules.get(LIBRARIES[name].package), "__version__", "")
        devices = ", ".join(LIBRARIES[name].devices(backend(name).xp)) if state == "usable" else ""
        table.add_row(name, version, state, devices)
    console.print(table)
    table = Table("engine", "what it is", title="Engines", title_justify="left")
    for name in ENGINES:
        try:
            table.add_row(name, find(name).__doc__.splitlines()[0])
        except ImportError as error:
            table.add_row(name, f"not usable: {error}")
    console.print(table)
    _say(f"kernels: {_kernels()}")
    _say(f"threads: {thread_count()}")
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        _say("BLAS: unknown, threadpoolctl is not installed: pip install 'bpaccel[threads]'")
    else:
        for pool in threadpool_info():
            kernel = f", {pool['architecture']} kernels" if "architecture" in pool else ""
            version = f" {pool['version']}" if pool["version"] else ""
            _say(f"{pool['user_api']}: {pool['internal_api']}{version}{kernel}, {pool['num_threads']} threads")


def _kernels():
    """Which kernels the engine fused has here, or why it has none."""
    from bpaccel.engines.cpu import library

    try:
        level = library.library().level
    except library.Missing as error:
        return f"none: {error}"
    others = [f"{other} ({library.LEVELS[other]})" for other in library.processor_levels() if other != level]
    more = f"; this processor runs {' and '.join(others)} too: set BPACCEL_LEVEL" if others else ""
    return f"level {level} ({library.LEVELS[level]}){more}"


@app.command()
def tutorial(
    backend: Annotated[str | None, typer.Option(help="Where to compute: library[:device].")] = None,
    engine: Annotated[str, typer.Option(help="How to compute.")] = "auto",
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg, .pdf, .jpg or .webp.")] = None,
):
    """Train the tutorial's two networks, and look at them step by step as it does."""
    from bpaccel import plots, story
    from bpaccel.tutorial import three_layer, two_layer

    if plot is not None:
        plots.check(plot)
    lessons = []
    for teach in (two_layer, three_layer):
        with console.status("training"):
            lessons.append(teach(backend, engine=engine))
        story.tell(console, lessons[-1])
    if plot is not None:
        plots.tutorial(plot, lessons)
        console.print(f"picture: {plot}", markup=False, soft_wrap=True)


@app.command()
def bench(
    rows: Annotated[str | None, typer.Option(metavar="LO:HI", help="LO, 10 LO, ... HI, or a comma list.")] = None,
    layer_sizes: Annotated[str, typer.Option(help="Units of each layer, inputs first.")] = "3,4,1",
    backend: Annotated[str, typer.Option(help="A comma list of library[:device], or all.")] = "numpy",
    engine: Annotated[str, typer.Option(help="auto, all, or a comma list.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64, or both with a comma.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="Of engines and BLAS; else all processors.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write all figures there.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg, .pdf, .jpg or .webp.")] = None,
):
    """Time training from 4 rows to millions, beside the tutorial's own NumPy code. Every size learns."""
    from bpaccel import bench as benchmark
    from bpaccel import plots
    from bpaccel.bench import view

    cases = benchmark.read_cases(rows, layer_sizes, backend, engine, dtype, threads)
    if json is not None:
        check_place(json)
    if plot is not None:
        plots.check(plot)
    report = view.watch(cases, Console(stderr=True, highlight=False))
    view.show(report, console)
    if json is not None:
        benchmark.write(json, report)
        _say(f"figures: {json}")
    if plot is not None:
        view.draw(report, plot)
        _say(f"picture: {plot}")
    if any(result["wrong"] for result in report["results"]):
        raise typer.Exit(1)


@app.command()
def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table: .csv, .npy, .npz or .parquet.")],
    target: Annotated[str, typer.Option(help="The column to learn.")],
    out: Annotated[str | None, typer.Option(metavar="MODEL", help="Where to write the model.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression; else inferred.")] = None,
    hidden: Annotated[str, typer.Option(help="Units of the hidden layers, such as 32,16; '' for none.")] = "32",
    epochs: Annotated[int, typer.Option(help="How often over all rows.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="How far a step goes.")] = 0.003,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step; else 32, or more for long tables.")] = None,
    l2: Annotated[float, typer.Option(help="Penalty on the squares of the weights.")] = 0.01,
    solver: Annotated[
        str, typer.Option(help="gradient_descent, momentum, nesterov, adam, adamw, rmsprop or lbfgs.")
    ] = "adam",
    activation: Annotated[str, typer.Option(help="Of the hidden layers.")] = "relu",
    standardise: Annotated[bool, typer.Option(help="Bring each column to mean 0 and deviation 1.")] = True,
    holdout: Annotated[float, typer.Option(help="The share of the rows that is kept to score the model.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of rows and the share.")] = 0,
    backend: Annotated[str | None, typer.Option(help="Where to compute: library[:device].")] = None,
    engine: Annotated[str, typer.Option(help="How to compute.")] = "auto",
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A column to leave out; repeatable.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save the training there; go on with it if FILE is there.")
    ] = None,
):
    """Learn a column of a table from the others, and say how well on rows that were held out."""
    from pathlib import Path

    from bpaccel import readers, tables
    from bpaccel.callbacks import Checkpoint
    from bpaccel.columns import listed

    warnings.simplefilter("ignore", RuntimeWarning)  # a loss that overflows ends in one sentence, not after NumPy's
    if out is not None:
        check_place(out, data)
    if checkpoint is not None:
        check_place(checkpoint, data)
        if out is not None and Path(out).resolve() == Path(checkpoint).resolve():
            message = f"--out and --checkpoint are both {out!r}: the model would take the place of the training."
            raise ValueError(message)
    resume = checkpoint if checkpoint is not None and Path(checkpoint).exists() else None
    table = readers.read_table(data)
    table.require([target])
    table = table.drop(drop or [])
    labels = table.labels(target)
    task, reason = tables.infer_task(labels, task)
    rows, held = tables.hold_out(table, target, holdout, seed)
    model = tables.TableModel(hidden=_hidden(hidden), task=task, activation=activation, standardise=standardise,
                              seed=seed, backend=backend)  # fmt: skip
    _say(f"task: {task} of {target!r} ({reason})")
    _say(f"columns: {len(table.names) - 1}: {listed(name for name in table.names if name != target)}")
    if task == "classification":
        classes = sorted(set(labels.tolist()))
        _say(f"classes: {len(classes)}: {listed(classes)}")
    _say(f"rows: {rows.rows:,} to learn from, {held.rows if held else 0:,} held out")
    if resume is not None:
        _say(f"going on with the training in {checkpoint}")
    history = model.fit(rows, target, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, l2=l2,
                        solver=solver, engine=engine, progress=True, resume=resume,
                        callbacks=[] if checkpoint is None else [Checkpoint(checkpoint)])  # fmt: skip
    if history.stopped == "interrupted":
        again = f"; the same command goes on from {checkpoint}" if checkpoint is not None else ""
        _say(f"interrupted after step {history.state.step:,}: this is the model so far{again}")
    share = "held-out" if held else "training (nothing was held out)"
    _say(f"{share} {_score(model, held or rows)}")
    if out is None:
        _say("the model is not kept: --out MODEL would write it")
    else:
        model.save(out)
        _say(f"model written to {out}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What train wrote.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with the model's columns, in any order.")],
    out: Annotated[str | None, typer.Option(metavar="FILE.csv", help="Where to write; else to the output.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where to compute: library[:device].")] = None,
):
    """Predict each row of a table, as CSV; where the table has the target too, score the predictions."""
    from bpaccel import readers, tables

    warnings.simplefilter("ignore", RuntimeWarning)
    if out is not None:
        check_place(out, model, data)
    loaded = tables.load(model, backend)
    if not isinstance(loaded, tables.TableModel):
        message = f"{model!r} is a bare network, which knows no columns: give a model that `bpaccel train` wrote."
        raise ValueError(message)
    table = readers.read_table(data)
    predicted = loaded.predict(table)
    if out is None:
        readers.write_column(sys.stdout, loaded.target, predicted)
    else:
        readers.save_column(out, loaded.target, predicted)
    if loaded.target in table.names:
        try:
            score = _score(loaded, table)
        except ValueError as error:  # a target that is there but not yet known is no reason to fail
            score = f"no score: {error}"
        print(score, file=sys.stderr)


def _score(model, table):
    what = "accuracy" if model.task == "classification" else "R^2"
    return f"{what}: {model.score(table):.4f} on {table.rows:,} rows"


def _hidden(text):
    try:
        return tuple(int(size) for size in text.split(",") if text.strip())
    except ValueError:
        message = f"`hidden` must be whole numbers with commas between them, such as 32,16; got {text!r}."
        raise ValueError(message) from None


def _say(text):
    # Names from the user's files may look like Rich's markup.
    console.print(text, markup=False, soft_wrap=True)
