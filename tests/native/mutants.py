"""Do the tests see a bug? Breaks our kernels in one place at a time, and runs the fuzz and some of the tests each time.

    python tests/native/mutants.py [--fuzz] [--only WORDS] [--out FILE]

The kernels, and the Python code that plans and launches them. What neither the fuzz nor the tests see, the fuzz under
sanitizers may: ThreadSanitizer knows what an atomic operation orders on processors that order less than this one. It
takes a quarter of an hour; the suite tries a few by the fuzz.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sanitize
from checkout import ROOT, Checkout, described
from faults import FAULTS

from bpaccel.native import build

PATIENCE = 5  # a broken one may take so many times as long as the right one


class Tests(NamedTuple):
    """A column of the table: its name, and commands of Python that fail where a bug is seen."""

    name: str
    commands: tuple


# What the suite runs: see tests/test_native_fuzz.py and those that are named here.
FUZZ = Tests("fuzz", (
    ("tests/native/fuzz.py", "--cases", "150"),
    ("tests/native/fuzz.py", "--cases", "30", "--shared", "--seed", "1000000"),
))  # fmt: skip
SUITE = Tests("tests", ((
    "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "tests/test_engines_fused.py",
    "tests/test_engines_fused_wide.py", "tests/test_native_faults.py",
    # Without what takes long, or needs the libraries of other levels.
    "-k", "not (damaged or v4 or joblib or forked or refuses or plan_is_that or the_level or a_level or _fault_)",
),))  # fmt: skip


def compile(folder, fingerprint):
    """As the kernels of this machine are compiled."""
    target = build.TARGETS[build.host()]
    library = next(one for one in reversed(target.libraries) if one is not build.LEVEL)
    return build.find_compiler().compile(target, library, folder, "kernels.cpp", fingerprint)


def broken(folder, file, texts):
    """A `Checkout` with a file broken, and built."""
    checkout = Checkout(Path(folder))
    for old, new in texts if isinstance(texts, list) else [texts]:
        checkout.replace(file, old, new)
    checkout.build(compile)
    return checkout


def failure(run, tests, limit=None):
    """How tests fail in a checkout: a sentence, or None where they pass.

    Parameters
    ----------
    run : callable
        Runs Python with arguments and a time limit.
    tests : Tests
    limit : float, optional
        Seconds for all.
    """
    for command in tests.commands:
        try:
            done = run(*command, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"it did not end in {limit:.0f} s"
        if done.returncode == 0:
            continue
        text = done.stdout
        if found := re.search(
            r"(?:SUMMARY: |ERROR: )?(?:Thread|Address)Sanitizer:? ([\w-]+(?: race)?)|runtime error: (.*)", text
        ):
            return found[1] or found[2]
        if done.returncode < 0 or done.returncode > 128:
            return f"ends with signal {abs(done.returncode) % 128}"
        if found := re.search(r"^FAILED \S*::(\S+)", text, re.MULTILINE):
            why = re.search(r"^E +(.*)", text, re.MULTILINE)
            return f"{found[1]}: {why[1] if why else ''}"
        if command[0].endswith("fuzz.py"):
            said = text.strip().splitlines()
            return said[-2] if said[-1].startswith("Again") else said[-1]
        raise RuntimeError(f"the tests did not run:\n{text}")
    return None


def plain(checkout):
    """Runs Python in a checkout."""

    def run(*arguments, timeout):
        return subprocess.run(
            [sys.executable, *arguments], cwd=checkout.folder, env=checkout.environment(), text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    return run


def sanitized(checkout):
    """What the sanitizers report of a checkout, or None."""
    sanitize.fewer_networks(checkout)
    for one in (sanitize.ADDRESS, sanitize.THREAD):
        checkout.build(one.compile)
        tests = Tests(one.name, (("tests/native/fuzz.py", *one.fuzz),))
        if found := failure(lambda *arguments, timeout, one=one: one.run(checkout, *arguments), tests):
            return found
    return None


def judged(mutant, limits, deep=True):
    """A row of the table: what saw a mutant, and how it showed; the second value is whether anything did."""
    file, name, texts = mutant
    with tempfile.TemporaryDirectory(prefix="bpaccel-mutant-") as folder:
        checkout = broken(folder, file, texts)
        found = [failure(plain(checkout), tests, limits[tests]) for tests in limits]
        by = ["yes" if one else "no" for one in found]
        if deep:
            found.append(None if any(found) else sanitized(checkout))
            by.append("yes" if found[-1] else "" if any(found[:-1]) else "no")
    how = next((one for one in found if one), "**not seen**")
    how = re.sub("0x[0-9a-f]+", "...", " ".join(how.replace("|", "/").split()))[:110]
    row = f"| {Path(file).name} | {name} | {' | '.join(by)} | {how} |"
    print(row, flush=True)
    return row, any(found)


def limits_of(columns):
    """Seconds that a broken one may take in each column: the right one is timed, and must pass."""
    limits = {}
    with tempfile.TemporaryDirectory(prefix="bpaccel-mutant-") as folder:
        checkout = broken(folder, "native/steps.hpp", [])
        for tests in columns:
            began = time.monotonic()
            if reason := failure(plain(checkout), tests):
                sys.exit(f"the kernels as they are fail: {reason}")
            limits[tests] = 5 + PATIENCE * (time.monotonic() - began)
    return limits


def table(rows, limits):
    """The page with all rows."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    seen = sum(found for _, found in rows)
    used = [f"* {tests.name}: `{'`, `'.join(' '.join(command) for command in tests.commands)}`" for tests in limits]
    return f"""# Bugs put into our kernels, one at a time

`python tests/native/mutants.py`, {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, {described()}. The \
kernels as they are pass all of this; of {len(rows)} broken ones, {seen} were seen. What neither the fuzz nor the \
tests saw was run under the sanitizers.

{chr(10).join(used)}

| file | broken | fuzz | tests | sanitizers | how it showed |
| :-- | :-- | :-- | :-- | :-- | :-- |
""" + "".join(f"{row}\n" for row, _ in rows)


def misplaced():
    """A sentence for each text that is not once where a mutant looks for it."""
    with tempfile.TemporaryDirectory(prefix="bpaccel-mutant-") as folder:
        checkout = Checkout(Path(folder))
        for file, found in FAULTS.items():
            for name, texts in found.items():
                for old, _ in texts if isinstance(texts, list) else [texts]:
                    try:
                        checkout.replace(file, old, old)
                    except ValueError as error:
                        yield f"{name}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="break nothing; print their names")
    parser.add_argument("--fuzz", action="store_true", help="by the fuzz alone")
    parser.add_argument("--only", default="", metavar="WORDS", help="those whose file and name have these words")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to it")
    chosen = parser.parse_args()
    if found := list(misplaced()):
        sys.exit("\n".join(found))
    if chosen.list:
        print("\n".join(name for found in FAULTS.values() for name in found))
        return 0
    mutants = [(file, name, texts) for file, found in FAULTS.items() for name, texts in found.items()]
    mutants = [mutant for mutant in mutants if chosen.only in f"{mutant[0]}: {mutant[1]}"]
    limits = {FUZZ: 300.0} if chosen.fuzz else limits_of([FUZZ, SUITE])
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda mutant: judged(mutant, limits, deep=not chosen.fuzz), mutants))
    if chosen.out:
        chosen.out.write_text(table(rows, limits), encoding="utf-8")
    return int(not all(found for _, found in rows))


if __name__ == "__main__":
    sys.exit(main())
