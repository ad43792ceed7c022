"""Pictures of plain numbers: the tutorial's, and the benchmark's lines.

matplotlib is imported when a picture is drawn, and only its objects are used: no windows, no state shared with the
caller's own plots. A file is written beside its place and then renamed, so that a picture which was there before
survives a failure.
"""

import math
from itertools import cycle
from pathlib import Path

import numpy as np

from bpaccel.files import check_place, replacing

# Okabe & Ito's colours, told apart by colour-blind readers too; yellow is left out, for it is lost on white.
# The purple is darker than theirs, to be read as text.
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#AA3377", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip
GREY = "#666666"
ARROW = "\N{RIGHTWARDS ARROW}"
FORMATS = ("png", "svg", "pdf", "jpg", "webp")
GAP = 0.9  # between the matrices of `chain`, in cells

# The article's three points on the sigmoid: flat, steepest, flat again.
POINTS = ((-1.0, PURPLE), (0.0, BLUE), (2.0, GREEN))


def check(path):
    """Find out before the work whether a picture can be written there.

    Parameters
    ----------
    path : str or Path
        Its ending says the format, one of `FORMATS`.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the ending is unknown, or the path is there and no file.
    FileNotFoundError, PermissionError
        If the file cannot be there.
    """
    _figure()
    path = Path(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"a picture's file name must end with .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}; "
                         f"got {str(path)!r}.")  # fmt: skip
    return check_place(path)


def tutorial(path, lessons):
    """The tutorial in one picture: the sigmoid, the error over the steps, and each network before and after.

    Parameters
    ----------
    path : str or Path
        Its ending says the format.
    lessons : sequence of Lesson
        What `bpaccel.tutorial.two_layer` and `three_layer` return; one or more.
    """
    path = check(path)
    # Two networks that are narrow stand side by side, wide ones below each other.
    moments = [_moments(lesson) for lesson in lessons]
    lines = [1 if 2 * max(map(_width, both.values())) < 20 else 2 for both in moments]
    heights = [4.0] + [0.8 + 1.9 * count for count in lines]
    figure = _figure(figsize=(10.5, sum(heights)), dpi=86)
    top, *parts = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.02, squeeze=False)[:, 0]
    left, right = top.subplots(1, 2)
    sigmoid(left)
    errors(right, {_title(lesson): (lesson.history.step, lesson.history.error) for lesson in lessons})
    for part, lesson, both, count in zip(parts, lessons, moments, lines):
        part.suptitle(_title(lesson), x=0.003, ha="left", weight="bold", fontsize=11)
        axes = part.subplots(count, 2 // count)
        for ax, (title, blocks) in zip(axes.ravel(), both.items()):
            chain(ax, blocks, width=19.2 / (2 // count))
            ax.set_title(title, fontsize=10, loc="left")
    key = f"@ matrix product, {ARROW} sigmoid; layers: 0 white, 1 dark; weights: purple negative, orange positive"
    parts[0].text(0.995, 0.98, key, ha="right", va="top", fontsize=9, color=GREY)
    _save(figure, path)


def sigmoid(axes, points=POINTS):
    """The sigmoid from -5 to 5, and its slope at some points: ``(x, colour)``."""
    x = np.linspace(-5, 5, 401)
    axes.plot(x, _sigmoid(x), color=BLACK, lw=1.8)
    for at, colour in points:
        out = _sigmoid(at)
        slope = out * (1 - out)
        run = 1.3 / math.hypot(1, 7 * slope)  # of one length on the page, where y is drawn about 7 times as large
        axes.plot([at - run, at + run], [out - slope * run, out + slope * run], color=colour, lw=3.5, alpha=0.85)
        axes.plot(at, out, "o", color=colour, ms=7, mec="white", zorder=3)
        axes.annotate(f"x = {at:g}: out {out:.3f}\nslope {slope:.3f}", (at, out), (14, -10), color=colour, va="top",
                      textcoords="offset points", linespacing=1.3)  # fmt: skip
    axes.set(xlabel="x, the sum that comes in", ylabel="out = 1 / (1 + exp(-x))", xlim=(-5, 5), ylim=(-0.02, 1.02))
    axes.set_title("The sigmoid, with its slope out (1 - out) at three points", loc="left", weight="bold", fontsize=11)
    _plain(axes)


def errors(axes, series):
    """The mean error over the steps, on logarithmic axes: ``{label: (steps, errors)}``."""
    for (label, (steps, values)), colour in zip(series.items(), cycle((BLUE, ORANGE, GREEN))):
        # A logarithmic axis has no 0: the article's step 0 is the first step.
        axes.plot(np.asarray(steps) + 1, values, color=colour, lw=2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="steps, the first being 1", ylabel="mean |y - output|")
    axes.set_title("The error over the steps", loc="left", weight="bold", fontsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis)
    axes.legend(loc="lower left", frameon=False)
    _plain(axes)


def chain(axes, blocks, *, width):
    """Matrices in a line, as they are multiplied: cells with their numbers, and a sign between the matrices.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    blocks : sequence of tuple (sign, title, matrix, colours, limits)
        The sign stands before the matrix, of shape (R, C); ``colours`` is a matplotlib colour map, and ``limits``
        are the values at its two ends.
    width : float
        Of the axes, in cells, so that the cells of several axes are alike.
    """
    from matplotlib import colormaps, colors, patches

    height = max(len(matrix) for _, _, matrix, _, _ in blocks)
    left = 0.0
    for sign, title, matrix, colours, limits in blocks:
        if sign:
            axes.text(left + GAP / 2, height / 2, sign, ha="center", va="center", color=GREY, fontsize=11)
            left += GAP
        matrix = np.asarray(matrix, dtype=float)
        above = (height - len(matrix)) / 2
        scale, fill = colors.Normalize(*limits), colormaps[colours]
        for (r, c), value in np.ndenumerate(matrix):
            colour = fill(scale(value))
            corner = (left + c, above + r)
            axes.add_patch(patches.Rectangle(corner, 1, 1, facecolor=colour, edgecolor="#bbbbbb", lw=0.7))
            dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
            axes.text(left + c + 0.5, above + r + 0.52, _short(value), ha="center", va="center", fontsize=9,
                      color="white" if dark else "black")  # fmt: skip
        axes.text(left + matrix.shape[1] / 2, above - 0.15, title, ha="center", va="bottom", fontsize=9, color=GREY)
        left += matrix.shape[1]
    axes.set(xlim=(-0.05, width), ylim=(height + 0.05, -0.8), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def scaling(path, series, *, title, ylabel, xlabel="rows"):
    """Lines on logarithmic axes, each with its label at its right end: time a row over rows, say.

    Parameters
    ----------
    path : str or Path
        Its ending says the format.
    series : dict of str to tuple (rows, values)
        One line for each label; values that are not finite and positive are left out.
    title, ylabel, xlabel : str

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    path = check(path)
    lines = {label: line for label, pair in series.items() if len(line := _drawable(*pair))}
    if not lines:
        raise ValueError(f"`series` must hold at least one positive number; got {len(series)} series without any.")
    figure = _figure(figsize=(9, 5.4), dpi=110)
    axes = figure.subplots()
    ends = []
    for number, (label, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        axes.plot(*line.T, style, color=colour, lw=1.8, marker="o", ms=4.5)
        ends.append((label, line[-1], colour))
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", weight="bold")
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis)
    _plain(axes)
    _label(axes, ends)
    _save(figure, path)


def _drawable(rows, values):
    """The points that can be drawn, in the order of their rows: an array of shape (P, 2)."""
    points = np.column_stack([np.asarray(rows, dtype=float), np.asarray(values, dtype=float)])
    points = points[np.all(np.isfinite(points) & (points > 0), axis=1)]
    return points[np.argsort(points[:, 0], kind="stable")]


def _label(axes, ends):
    """Labels right of the axes, in the order of the lines' ends, pushed apart where they would touch."""
    apart = 0.048  # of the height of the axes: a line of text
    low, high = np.log10(axes.get_ylim())
    ends = sorted(ends, key=lambda end: end[1][1])
    wanted = [(math.log10(y) - low) / (high - low) for _, (_, y), _ in ends]
    places = np.array(_spread(wanted, apart))
    places += max(0.0, -places[0]) - max(0.0, places[-1] - 1.0)  # none below the axes or above
    line = {"arrowstyle": "-", "lw": 0.7, "alpha": 0.6, "relpos": (0, 0.5), "shrinkB": 5}
    for (label, point, colour), place in zip(ends, places):
        axes.annotate(label, point, (1.04, place), textcoords="axes fraction", color=colour, va="center",
                      arrowprops=line | {"color": colour})  # fmt: skip


def _spread(wanted, apart):
    """The places nearest to those wanted (ascending) that are ``apart`` from each other: groups share their middle."""
    groups = []
    for place in wanted:
        groups.append([place, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < apart * (groups[-1][1] + groups[-2][1]) / 2:
            middle, count = groups.pop()
            other, more = groups[-1]
            groups[-1] = [(middle * count + other * more) / (count + more), count + more]
    return [middle + apart * (k - (count - 1) / 2) for middle, count in groups for k in range(count)]


def _moments(lesson):
    """The blocks of `chain` before the training and after: ``l0 @ syn0 -> l1 @ syn1 -> l2``, and the ``y`` wanted."""
    reach = max(float(np.max(np.abs(W))) for W in lesson.weights)
    moments = {}
    for look in (lesson.first, lesson.last):
        blocks: list[tuple] = []
        for k, l in enumerate(look.layers):
            blocks.append((ARROW if k else "", f"l{k}", l, "Greys", (0, 1.3)))
            if k < len(look.weights):
                blocks.append(("@", f"syn{k}", look.weights[k], "PuOr_r", (-reach, reach)))
        blocks.append(("vs", "y", lesson.y, "Greys", (0, 1.3)))
        updates = f"{look.step:,} updates" if look.step else "weights as drawn"
        moments[f"Step {look.step + 1:,}: {updates}"] = blocks
    return moments


def _width(blocks):
    return sum(np.shape(matrix)[1] + GAP * bool(sign) for sign, _, matrix, _, _ in blocks)


def _title(lesson):
    """``two_layer`` and its sizes as words: "Two-layer network 3-1"."""
    return f"{lesson.name.replace('_', '-').capitalize()} network {'-'.join(map(str, lesson.network.layer_sizes))}"


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _short(value):
    """A number for a cell: whole numbers without decimals."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def _ticks(axis):
    """Ticks in words that need no powers of ten: 100, 1k, 10k, 1M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = math.log10(high / low) < 1.5
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(FuncFormatter(_in_words))
    axis.set_minor_formatter(NullFormatter())


def _in_words(value, _=None):
    for size, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * (1 - 1e-9):
            return f"{value / size:g}{word}"
    return f"{value:g}"


def _plain(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)


def _figure(**options):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'bpaccel[plot]'.") from error
    return Figure(layout="constrained", **options)


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=figure.dpi, facecolor="white")
