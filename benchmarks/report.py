"""Turn saved figures into Markdown tables and pictures.

    python benchmarks/report.py FILE... --out DIR

A FILE is what `bpaccel bench --json FILE`, `pytest benchmarks --benchmark-json=FILE` or `benchmarks/compare.py --json
FILE` wrote. Each gives tables in DIR/report.md, and pictures beside it that are named after it.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from bpaccel import bench, plots
from bpaccel.bench import machine, view


def read(path):
    """The content of a file, with ``kind`` saying whose it is.

    Raises
    ------
    ValueError
        If it is neither.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} must be JSON that a benchmark wrote; it is not JSON ({error}).") from error
    if isinstance(content, dict) and content.get("kind") in OF:
        return content
    suite = content.get("benchmarks") if isinstance(content, dict) else None
    if isinstance(suite, list) and all("rows" in b.get("extra_info", {}) for b in suite):
        return content | {"kind": "suite"}
    raise ValueError(f"{str(path)!r} must be what `bpaccel bench --json`, `pytest benchmarks "
                     "--benchmark-json` or benchmarks/compare.py wrote; it is other JSON.")  # fmt: skip


def of_bench(content, name, out):
    """Table and picture of `bpaccel bench`: lines of Markdown."""
    headers, rows, notes = view.table(content)
    lines = machine_lines(content["machine"], content["date"])
    lines += [line for sentence in view.legend(content) for line in (sentence, "")]
    lines += [*table_lines(headers, rows), ""]
    lines += [line for note in notes for line in (note, "")]
    series = view.series(content)
    if series:
        view.draw(content, out / f"{name}.png")
        lines += [f"![time a row over rows]({name}.png)", ""]
    return lines


def of_suite(content, name, out):
    """Tables and pictures of the pytest-benchmark suites, one for each operation: lines of Markdown."""
    lines = machine_lines(content["machine_info"], content["datetime"][:19])
    headers = ("backend", "engine", "dtype", "rows", "us", "min", "max", "ns/row", "rounds")
    for operation in dict.fromkeys(b["extra_info"]["operation"] for b in content["benchmarks"]):
        rows, series = [], {}
        for b in content["benchmarks"]:
            info, stats = b["extra_info"], b["stats"]
            if info["operation"] != operation:
                continue
            times = [view.digits(1e6 * stats[key]) for key in ("median", "min", "max")]
            nanoseconds = 1e9 * stats["median"] / info["rows"]
            rows.append([info["backend"], info["engine"], info["dtype"], f"{info['rows']:,}", *times,
                         view.digits(nanoseconds), str(stats["rounds"])])  # fmt: skip
            xs, ys = series.setdefault(f"{info['backend']} {info['dtype']}", ([], []))
            xs.append(info["rows"])
            ys.append(nanoseconds)
        picture = f"{name}-{operation}.png"
        plots.scaling(out / picture, series, title=f"{operation}: time a row, median", ylabel="ns a row")
        lines += [f"### {operation}", "", *table_lines(headers, rows), "", f"![time a row over rows]({picture})", ""]
    return lines


def of_peers(content, name, out):
    """Tables and pictures of `benchmarks/compare.py`: lines of Markdown."""
    lines = machine_lines(content["machine"], content["date"])
    lines += [f"* floor, {dtype}: {1e9 * limits['logistic_seconds']:.2f} ns a logistic, "
              f"{1e-9 * limits['bytes_a_second']:.1f} GB/s read, all threads"
              for dtype, limits in content["floor"].items()]  # fmt: skip
    lines += ["", *PEER_NOTES, ""]
    shares: dict = {}
    for (sizes, dtype), results in itertools.groupby(content["results"], key=lambda r: (r["layer_sizes"], r["dtype"])):
        cells = list(results)
        net = "-".join(map(str, sizes))
        table, notes, series = _peer_times(cells)
        lines += [f"### {net}, {dtype}", "", *table, "", *(line for note in notes for line in (note, ""))]
        if series:
            picture = f"{name}-{net}-{dtype}.png"
            title = f"Training {net}, {dtype}: time a row and step"
            plots.scaling(out / picture, series, title=title, ylabel="ns a row")
            lines += [f"![time a row over rows, {net}]({picture})", ""]
        for n, best in _best_of_ours(cells).items():
            xs, ys = shares.setdefault(f"{net} {dtype}", ([], []))
            xs.append(n)
            ys.append(100 * best["share_of_floor"])
    if shares:
        plots.scaling(out / f"{name}-floor.png", shares, title="bpaccel: share of the floor", ylabel="percent")
        lines += ["### Share of the floor", "", f"![share of the floor over rows]({name}-floor.png)", ""]
    return [*lines, *_tutorial(content["tutorial"]), *_memory(content["memory"], name, out),
            *_growth(content["growth"], name, out)]  # fmt: skip


PEER_NOTES = (
    "All train sigmoid layers without bias on half the squared error, full batch, with one rate; scikit-learn's have "
    "biases and no sigmoid at the output. Samples are taken in turns, after an untimed step of each.",
    "",
    "Cells: nanoseconds a row and step, median, and the spread (interquartile range over median); the best of each "
    "column is bold. Ratios: the time of the tutorial's code, and the best of all others, over our best. Floor: the "
    "logistics of a row, or its bytes (X and y, read once), whichever takes longer on this machine; without products.",
)


def _peer_times(results):
    """The table of one network: its lines, notes on what was refused, and the lines of its picture."""
    names, counts = (list(dict.fromkeys(r[key] for r in results)) for key in ("peer", "rows"))
    cells = {(r["peer"], r["rows"]): r for r in results}
    notes, series, lines = [], {}, []
    least = {n: min((r["ns_a_row"] for r in results if r["rows"] == n and not r["refused"]), default=0) for n in counts}
    for peer in names:
        line = [peer]
        for n in counts:
            r = cells[peer, n]
            if r["refused"]:
                note = f"{peer}: {r['refused']}"
                notes += [note] * (note not in notes)
                line.append(f"[{notes.index(note) + 1}]")
                continue
            text = view.digits(r["ns_a_row"])
            text = f"**{text}**" if r["ns_a_row"] == least[n] else text
            line.append(f"{text} ({100 * r['step_seconds']['spread']:.0f}%)")
            xs, ys = series.setdefault(peer, ([], []))
            xs.append(n)
            ys.append(r["ns_a_row"])
        lines.append(line)
    ours = _best_of_ours(results)
    over, best, shares = ["over the tutorial's code"], ["over the best other"], ["share of the floor"]
    for n in counts:
        others = {r["peer"]: r["ns_a_row"] for r in results if r["rows"] == n and not _ours(r) and not r["refused"]}
        for ratios, theirs in (over, others.get("tutorial NumPy")), (best, min(others.values(), default=None)):
            ratios.append(view.digits(theirs / ours[n]["ns_a_row"]) if n in ours and theirs else "-")
        shares.append(f"{100 * ours[n]['share_of_floor']:.1f}%" if n in ours else "-")
    lines += [over, best, shares]
    headers = ("peer", *(f"{n:,} rows" for n in counts))
    return table_lines(headers, lines), [f"[{k}] {note}." for k, note in enumerate(notes, 1)], series


def _ours(result):
    return result["peer"].startswith("bpaccel")


def _best_of_ours(results):
    """``{rows: result}``: our fastest at each number of rows."""
    timed = [r for r in results if _ours(r) and not r["refused"]]
    return {n: min((r for r in timed if r["rows"] == n), key=lambda r: r["ns_a_row"])
            for n in dict.fromkeys(r["rows"] for r in timed)}  # fmt: skip


def _tutorial(whole):
    """The tutorial's whole training: lines of Markdown."""
    medians = {(r["peer"], r["dtype"]): r["step_seconds"]["median"] for r in whole if not r["refused"]}
    of_ours = {dtype: median for (peer, dtype), median in medians.items() if peer.startswith("bpaccel")}
    lines = []
    for r in whole:
        if r["refused"]:
            lines.append([r["peer"], r["dtype"], r["refused"], "-"])
            continue
        ours, theirs = of_ours.get(r["dtype"]), medians[r["peer"], r["dtype"]]
        text = f"{view.digits(1e6 * theirs)} ({100 * r['step_seconds']['spread']:.0f}%)"
        lines.append([r["peer"], r["dtype"], text, view.digits(theirs / ours) if ours else "-"])
    if not whole:
        return []
    said = (f"{whole[0]['steps']:,} steps on 4 rows, 3-4-1, from the first weights to the last, in turns; ours through "
            "`Network.train`, its history included.")  # fmt: skip
    table = table_lines(("peer", "dtype", "us a step", "over ours"), lines)
    return ["### The tutorial's training", "", said, "", *table, ""]


def _memory(memory, name, out):
    if not memory:
        return []
    names, counts = (list(dict.fromkeys(m[key] for m in memory)) for key in ("peer", "rows"))
    taken = {(m["peer"], m["rows"]): m["extra_bytes"] / 2**20 for m in memory}
    least = {n: min(taken[peer, n] for peer in names) for n in counts}

    def cell(peer, n):
        text = f"{taken[peer, n]:,.1f}"
        return f"**{text}**" if taken[peer, n] == least[n] else text

    lines = [[peer, *(cell(peer, n) for n in counts)] for peer in names]
    series = {peer: (counts, [taken[peer, n] for n in counts]) for peer in names}
    lines = ["### Memory", "", "MiB at most beside X and y, 3-4-1 in float32, each in a process of its own.", "",
             *table_lines(("peer", *(f"{n:,} rows" for n in counts)), lines), ""]  # fmt: skip
    if not any(taken.values()):  # of so few rows that none took a page: nothing to draw on a logarithmic scale
        return lines
    plots.scaling(out / f"{name}-memory.png", series, title="3-4-1, float32: memory beside X and y", ylabel="MiB")
    return [*lines, f"![memory over rows]({name}-memory.png)", ""]


def _growth(growth, name, out):
    if not growth:
        return []
    rows = [g["rows"] for g in growth]
    nanoseconds = [1e9 * g["step_seconds"]["median"] / g["rows"] for g in growth]
    mebibytes = [g["extra_bytes"] / 2**20 for g in growth]
    lines = [[f"{n:,}", f"{view.digits(t)} ({100 * g['step_seconds']['spread']:.0f}%)", f"{m:,.2f}",
              "yes" if g["read_in_place"] else "no"]
             for n, t, m, g in zip(rows, nanoseconds, mebibytes, growth)]  # fmt: skip
    series = {"ns a row": (rows, nanoseconds), "MiB extra": (rows, mebibytes)}
    plots.scaling(
        out / f"{name}-growth.png", series, title="bpaccel, 3-4-1, float32, rows in a file", ylabel="ns a row; MiB"
    )
    return ["### Growth", "", "The compiled engine, 3-4-1 in float32, on a memory map of a file, in the page cache as "
            "far as that reaches; each in a process of its own.", "",
            *table_lines(("rows", "ns a row", "MiB extra", "read in place"), lines), "",
            f"![time a row and memory over rows]({name}-growth.png)", ""]  # fmt: skip


OF = {bench.KIND: of_bench, "suite": of_suite, "bpaccel peers": of_peers}


def machine_lines(described, date):
    """When and where figures were measured: lines of Markdown."""
    return [
        f"Measured {date}:",
        "",
        *(f"* {line}" for line in machine.in_words(described)),
        "",
    ]


def table_lines(headers, rows):
    """A table: lines of Markdown."""
    left = ("work", "backend", "engine", "dtype", "peer")
    line = "| " + " | ".join(":--" if header in left else "--:" for header in headers) + " |"
    return ["| " + " | ".join(headers) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]


def main(arguments=None):
    """Read the files, then write the report: nothing is written if one of them is bad."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--out", required=True, metavar="DIR", help="made where it is missing")
    options = parser.parse_args(arguments)
    try:
        contents = {Path(path).stem: read(path) for path in options.files}
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        lines = []
        for name, content in contents.items():
            lines += [f"## {name}", "", *OF[content["kind"]](content, name, out)]
        (out / "report.md").write_text("\n".join(lines))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
