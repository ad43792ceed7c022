"""Turn saved figures into Markdown tables and pictures.

    python benchmarks/report.py FILE... --out DIR

A FILE is what `bpaccel bench --json FILE` or `pytest benchmarks --benchmark-json=FILE` wrote. Each gives a table in
DIR/report.md, and pictures beside it that are named after it.
"""

import argparse
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
    if isinstance(content, dict) and content.get("kind") == bench.KIND:
        return content
    suite = content.get("benchmarks") if isinstance(content, dict) else None
    if isinstance(suite, list) and all("rows" in b.get("extra_info", {}) for b in suite):
        return content | {"kind": "suite"}
    raise ValueError(f"{str(path)!r} must be what `bpaccel bench --json` or `pytest benchmarks "
                     "--benchmark-json` wrote; it is other JSON.")  # fmt: skip


def of_bench(content, name, out):
    """Table and picture of `bpaccel bench`: lines of Markdown."""
    headers, rows, notes = view.table(content)
    lines = [*_machine(content["machine"], content["date"]), *_table(headers, rows), ""]
    lines += [line for note in notes for line in (note, "")]
    series = view.series(content)
    if series:
        view.draw(content, out / f"{name}.png")
        lines += [f"![time a row over rows]({name}.png)", ""]
    return lines


def of_suite(content, name, out):
    """Tables and pictures of the pytest-benchmark suites, one for each operation: lines of Markdown."""
    lines = _machine(content["machine_info"], content["datetime"][:19])
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
        lines += [f"### {operation}", "", *_table(headers, rows), "", f"![time a row over rows]({picture})", ""]
    return lines


def _machine(described, date):
    return [
        f"Measured {date}:",
        "",
        *(f"* {line}" for line in machine.in_words(described)),
        "",
    ]


def _table(headers, rows):
    left = ("backend", "engine", "dtype")
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
            of = of_suite if content["kind"] == "suite" else of_bench
            lines += [f"## {name}", "", *of(content, name, out)]
        (out / "report.md").write_text("\n".join(lines))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
