"""The tutorial, told in the terminal: the same stops as the article, with the numbers of a training just done.

Everything fits 80 columns, and reads the same when it is piped into a file.
"""

import numpy as np
from rich import box
from rich.table import Table

from bpaccel.tutorial import correlations

WIDTH = 80

INTRODUCTION = {
    "two_layer": """\
Four rows of three inputs X, and the output y that is wanted for each. The first column of X is the answer, but the \
network is not told: it has one matrix of weights, syn0 of shape (3, 1), drawn at random between -1 and 1, and each of \
its 10,000 steps is this:""",
    "three_layer": """\
The same X, but now y is 1 where exactly one of the first two inputs is 1. No column alone says anything about y; \
only the first two together do. So there are 4 hidden units in between, which may combine columns, and two matrices: \
syn0 of shape (3, 4) and syn1 of shape (4, 1). Each of the 60,000 steps does what part 1 did, once for each matrix. \
The one new line is the error of the hidden layer, l1_error: each hidden unit gets its share of l2_delta, by its \
weight.""",
}

STEP = {
    "two_layer": """\
    l1 = sigmoid(l0 @ syn0)             # forward; l0 is X
    l1_error = y - l1                   # how far off
    l1_delta = l1_error * l1 * (1 - l1) # error times the sigmoid's slope
    syn0 += l0.T @ l1_delta             # summed over the rows""",
    "three_layer": """\
    l1 = sigmoid(l0 @ syn0)
    l2 = sigmoid(l1 @ syn1)
    l2_error = y - l2
    l2_delta = l2_error * l2 * (1 - l2)
    l1_error = l2_delta @ syn1.T
    l1_delta = l1_error * l1 * (1 - l1)
    syn1 += l1.T @ l2_delta
    syn0 += l0.T @ l1_delta""",
}


def tell(console, lesson):
    """Print one part.

    Parameters
    ----------
    console : rich.console.Console
    lesson : Lesson
        What `bpaccel.tutorial.two_layer` or `three_layer` returned.
    """
    two = lesson.name == "two_layer"
    title = "Part 1: two layers, one matrix of weights" if two else "Part 2: three layers, with a hidden one"
    console.print(f"[bold]{title}[/]\n{'=' * len(title)}")
    _say(console, INTRODUCTION[lesson.name])
    _code(console, STEP[lesson.name])
    _inputs(console, lesson)
    _trained(console, lesson)
    _say(console, "Output after training:")
    # The article's own way to print, whatever the reader has set.
    _code(console, np.array2string(lesson.output, precision=8, suppress_small=False, floatmode="maxprec"))
    (_rows_of_one_layer if two else _rows_of_two_layers)(console, lesson)
    _errors(console, lesson)
    if not two:
        _correlations(console, lesson)
    _weights(console, lesson)


def _inputs(console, lesson):
    table = _table("l0 = X", "y")
    for x, y in zip(lesson.X, lesson.y):
        table.add_row(" ".join(map(str, x)), str(y[0]))
    _show(console, "The data", table)
    found = correlations(lesson.X, lesson.y)
    words = ", ".join("none (it never changes)" if np.isnan(r) else f"{r:.2f}" for r in found)
    _say(console, f"Correlation of the three columns with y: {words}.")


def _trained(console, lesson):
    history = lesson.history
    _say(console, f"Trained on {lesson.backend} in {lesson.dtype}, engine {history.engine} ({history.reason}): "
                  f"{lesson.last.step + 1:,} steps in {history.seconds[-1]:.1f} s.")  # fmt: skip
    if lesson.dtype != "float64":
        _say(console, "This backend has no float64 here, so the digits beyond the fifth are not the article's.")


def _rows_of_one_layer(console, lesson):
    for look, when in ((lesson.first, "first"), (lesson.last, "last")):
        table = _table("l0", "y", "l1", "l1_error", "slope", "l1_delta")
        columns = (look.layers[1], look.errors[0], look.slopes[0], look.deltas[0])
        for x, y, *cells in zip(lesson.X, lesson.y, *columns):
            table.add_row(" ".join(map(str, x)), str(y[0]), *map(_numbers, cells))
        _show(console, f"The {when} iteration", table)
    _say(console, "At first every answer is unsure: its slope is not far from the steepest there is, 0.25, and its "
                  "error moves the weights. At last the answers are sure, the slopes are nearly 0, and what is right "
                  "is left alone: l1_delta is about a hundredth of l1_error.")  # fmt: skip


def _rows_of_two_layers(console, lesson):
    for look, when in ((lesson.first, "first"), (lesson.last, "last")):
        table = _table("l0", "l1", "l2", "y")
        for x, l1, l2, y in zip(lesson.X, *look.layers[1:], lesson.y):
            table.add_row(" ".join(map(str, x)), _numbers(l1), _numbers(l2), str(y[0]))
        _show(console, f"The {when} iteration, forward", table)
        table = _table("l2_error", "l2_delta", "l1_error")
        for cells in zip(look.errors[1], look.deltas[1], look.errors[0]):
            table.add_row(*map(_numbers, cells))
        _show(console, f"The {when} iteration, backward", table)


def _errors(console, lesson):
    errors = lesson.error_every()
    errors[lesson.last.step] = float(np.mean(np.abs(lesson.last.errors[-1])))
    table = _table("step", "mean |y - output|")
    for step, error in errors.items():
        table.add_row(f"{step:,}", f"{error:.10f}")
    _show(console, "The error", table)


def _correlations(console, lesson):
    table = _table("column of l1", "before", "after")
    before, after = (correlations(look.layers[1], lesson.y) for look in (lesson.first, lesson.last))
    for unit, pair in enumerate(zip(before, after), 1):
        table.add_row(str(unit), *(f"{r:+.4f}" for r in pair))
    _show(console, "Correlation of each hidden unit with y", table)
    most, least, top = np.max(np.abs(before)), np.min(np.abs(after)), np.max(np.abs(after))
    _say(console, f"As drawn, no hidden unit goes with y, or against it, by more than {most:.2f}. After the training "
                  f"each does by {least:.2f} to {top:.2f}, and syn1 weighs them into one answer. That is what a hidden "
                  "layer is for: new columns that say more about y than the old ones did.")  # fmt: skip


def _weights(console, lesson):
    table = _table("", "before", "after")
    for k, (before, after) in enumerate(zip(lesson.first.weights, lesson.weights)):
        if k:
            table.add_section()
        table.add_row(f"syn{k}", *("\n".join(" ".join(f"{w:8.4f}" for w in row) for row in W) for W in (before, after)))
    _show(console, "The weights", table)
    if lesson.name == "two_layer":
        _say(console, "The first weight has grown: where the first input is 1, so is y. The second, of a column that "
                      "says nothing, stays near 0. The third belongs to the column of ones, and pulls all rows down, "
                      "so that those whose first input is 0 end near 0.")  # fmt: skip


def _table(*columns):
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _show(console, title, table):
    console.print(f"[bold]{title}[/]", table, "", sep="\n")


def _numbers(values):
    return " ".join(f"{value:9.6f}" for value in values)


def _say(console, text):
    console.print(text + "\n", width=min(WIDTH, console.width), markup=False)


def _code(console, text):
    console.print(text + "\n", markup=False, soft_wrap=True)
