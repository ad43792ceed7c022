"""The benchmark's face: its progress, its table, its picture."""

import itertools
import math
import os

import numpy as np

from bpaccel import bench, plots
from bpaccel.bench import machine
from bpaccel.engines import processors

GROUP = ("backend", "dtype")  # the columns that the printed table says above its lines


def watch(cases, console):
    """Measure cases, with a progress bar on a terminal, and return the report.

    Parameters
    ----------
    cases : sequence of Case
        All of the same network.
    console : rich.console.Console
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if kernel := os.environ.get("OPENBLAS_CORETYPE"):
        console.print(f"[yellow]warning:[/] OPENBLAS_CORETYPE={kernel} is set, which can slow NumPy and so "
                      "flatter every ratio: unset it before the run.")  # fmt: skip
    load, cores = machine.load(), processors()
    if load is not None and load > cores / 2:
        console.print(f"[yellow]warning:[/] the machine is busy (load average {load:.1f} on {cores} cores): no figure "
                      "can be trusted, and ratios flatter us, for waiting BLAS threads slow NumPy most.")  # fmt: skip
    columns = (
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=len(cases))
        results = bench.measure_all(cases, lambda done, text: bars.update(task, completed=done, description=text))
    return bench.report(cases, results, load)


def show(report, console):
    """Print a report: the machine, what the columns mean, the table."""
    from rich.table import Table
    from rich.text import Text

    for line in machine.in_words(report["machine"]):
        console.print(line, markup=False)
    console.print()
    for line in legend(report):
        console.print(line, markup=False)
    headers, rows, notes = table(report)
    widths = [max(map(len, column)) for column in zip(headers, *rows)]
    # What lines have in common is said above them, so that 80 columns are enough.
    for (backend, dtype), lines in itertools.groupby(rows, key=lambda row: (row[0], row[2])):
        drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for header, width in zip(headers, widths):
            if header not in GROUP:
                drawn.add_column(
                    header, justify="left" if header == "engine" else "right", no_wrap=True, min_width=width
                )
        for _, group in itertools.groupby(lines, key=lambda row: (row[1], row[-1] if _refused(row) else id(row))):
            alike = list(group)
            if len(alike) > 1:  # the same reason for many sizes
                alike = [[*alike[0][:3], f"{len(alike)} sizes", *alike[0][4:]]]
            for row in alike:
                drawn.add_row(*(Text(cell) for header, cell in zip(headers, row) if header not in GROUP))
        console.print()
        console.print(f"[bold]{backend}, {dtype}[/]")
        console.print(drawn)
    console.print()
    for note in notes:
        console.print(note, markup=False)


def _refused(row):
    return row[-1].startswith("[")


def draw(report, path):
    """Draw nanoseconds a row over rows."""
    sizes = "-".join(map(str, report["workload"]["layer_sizes"]))
    plots.scaling(path, series(report), title=f"Training {sizes}: time a row and step", ylabel="ns a row")


def legend(report):
    """What the columns of `table` mean: a list of sentences, to be read first."""
    if any(r.get("ratio") for r in report["results"]):
        ratio = ("ratio: the time of the tutorial's own NumPy code over the engine's, both run in turns on the same "
                 "rows; above 1 the engine is faster.")  # fmt: skip
    else:
        ratio = "ratio: none, for the tutorial's code knows networks of three layers only."
    chosen = " engine: the one that auto, the default, chose." * any(r["asked"] == "auto" for r in report["results"])
    return [ratio, "us/step, tutorial: microseconds that a training step takes the engine, and the tutorial's code; "
                   f"medians. GB/s: X and y, read once a step.{chosen}"]  # fmt: skip


def table(report):
    """A report as text.

    Returns
    -------
    headers : tuple of str
    rows : list of list of str
    notes : list of str
        What was learned, and why a case was refused.
    """
    headers = ("backend", "engine", "dtype", "rows", "us/step", "tutorial", "ns/row", "GB/s", "ratio", "error")
    rows, reasons = [], []
    for r in report["results"]:
        row = [r["backend"], r["engine"], r["dtype"], f"{r['rows']:,}"]
        if r["refused"]:
            if r["refused"] not in reasons:
                reasons.append(r["refused"])
            rows.append([*row, *["-"] * 5, f"[{reasons.index(r['refused']) + 1}]"])
            continue
        ratio = digits(r["ratio"]["median"]) if r["ratio"] else "-"
        tutorial = digits(1e6 * r["tutorial_step_seconds"]["median"]) if r["tutorial_step_seconds"] else "-"
        error = f"{r['error']:.6f}" + "!" * (not r["same_error"])
        rows.append([*row, digits(1e6 * r["step_seconds"]["median"]), tutorial, digits(r["ns_a_row"]),
                     digits(r["gb_a_second"]), ratio, error])  # fmt: skip
    work, timed = report["workload"], [r for r in report["results"] if not r["refused"]]
    learned = f"Work: {work['words']}; mean |error| falls from {work['error_before']:.6f} to {work['error_after']:.6f}"
    if all(r["same_error"] for r in timed):
        learned += ", the same to 1e-5 in every line." if timed else "."
    else:
        learned += ". Lines marked ! end more than 1e-5 away from that: their sums are careless."
    return headers, rows, [learned, *(f"[{k}] {reason}" for k, reason in enumerate(reasons, 1))]


def digits(x):
    """A positive number in about three digits."""
    return f"{x:,.{min(3, max(0, 2 - math.floor(math.log10(x))))}f}"


def series(report):
    """Nanoseconds a row over rows, as `bpaccel.plots.scaling` takes them; the tutorial's code is a line, too."""
    lines: dict[str, dict[int, list]] = {}

    def add(label, rows, value):
        lines.setdefault(label, {}).setdefault(rows, []).append(value)

    for r in report["results"]:
        if not r["refused"]:
            add(f"{r['backend']} {r['asked']} {r['dtype']}", r["rows"], r["ns_a_row"])
            if peer := r["tutorial_step_seconds"]:
                add(f"tutorial's NumPy {r['dtype']}", r["rows"], 1e9 * peer["median"] / r["rows"])
    return {label: (list(points), [float(np.median(v)) for v in points.values()]) for label, points in lines.items()}
