"""Benchmarks: how long the steps of a training take, beside the tutorial's own NumPy code.

Each case is checked against the core, warmed up with the very arrays that are timed, and timed in turns with the
tutorial's code on the same rows, the device waited for. Times are in seconds where no other unit is named.
"""

import contextlib
import datetime
import itertools
import json
import math
import time

import numpy as np

from bpaccel.backends import LIBRARIES, backend, why_not
from bpaccel.bench import machine
from bpaccel.bench.workloads import STEPS, Case, Ours, Tutorial, WrongResult, workload
from bpaccel.engines import thread_count
from bpaccel.engines.choice import ENGINES, find
from bpaccel.files import replacing

SAME_ERROR = 1e-5  # how far the error after training may be from that of the table alone
VALUES = 2**26  # numbers in all layers together, at the most rows that are tried unasked
SLICE_SECONDS = 0.2  # a training that takes longer is timed in slices of steps
SAMPLE_SECONDS = 0.01  # a training that takes less is repeated, so that the clock itself does not count
CASE_SECONDS = 2.0  # a case is sampled for at least so long, the tutorial's code included
PEER_SECONDS = 4.0  # of the tutorial's code, where a training is slow
DTYPES = ("float32", "float64")
KIND = "bpaccel bench"  # what our JSON files say of themselves


class Timer:
    """Times a training in samples of equal length: repeated trainings, whole ones, or slices of one that is slow."""

    def __init__(self, training):
        self.training, self.repeats, self.steps = training, 1, 1
        self.sample()  # the first step pays for what is compiled or fetched
        seconds = self.sample()
        self.steps = max(k for k in range(1, STEPS + 1) if STEPS % k == 0 and (k == 1 or k * seconds <= SLICE_SECONDS))
        self.sample()  # runs of this length may be compiled anew
        self.training.restart()
        seconds = self.sample()
        if self.steps == STEPS:
            self.repeats = max(1, round(SAMPLE_SECONDS / (STEPS * seconds)))
        self.seconds = seconds * self.steps * self.repeats  # of a sample
        self.training.restart()

    def warm_up(self):
        """Take a step that is not timed: the first after another training finds the caches and BLAS's threads cold.

        On NumPy it took up to four times as long as the next, which in samples of one step would flatter our ratio. Our
        own samples are taken cold, as they come.
        """
        if self.training.step == STEPS:
            self.training.restart()
        self.training.advance(1)
        self.training.wait()

    def sample(self):
        """Seconds a step, the device waited for."""
        began = time.perf_counter()
        for _ in range(self.repeats):
            if self.training.step + self.steps > STEPS:
                self.training.restart()
            self.training.advance(self.steps)
        self.training.wait()
        return (time.perf_counter() - began) / (self.steps * self.repeats)


def measure(case, look=lambda share: None):
    """Check a case, then time it, in turns with the tutorial's code.

    Parameters
    ----------
    case : Case
    look : callable
        Called with the share of the training that is done, between 0 and 1.

    Returns
    -------
    dict
        One of the rows of `report`.

    Raises
    ------
    WrongResult
        If the engine computes something else than the core.
    ValueError
        If the engine or the backend refuses the case.
    """
    needed = 4 * case.rows * sum(case.layer_sizes) * np.dtype(case.dtype).itemsize
    if (memory := machine.memory()) and needed > 0.8 * memory:
        raise ValueError(f"{case.rows:,} rows need some {needed / 2**30:,.0f} GiB of memory, the tutorial's code "
                         f"included; this machine has {memory / 2**30:,.0f}.")  # fmt: skip
    ours = Ours(case)
    try:
        with machine.blas_threads(case.threads), ours.backend.active():
            ours.check()
            return _timed(ours, look)
    finally:
        ours.close()


def _timed(ours, look):
    case, work = ours.case, ours.work
    timer = Timer(ours)
    peer = Timer(Tutorial(work, *ours.host)) if len(case.layer_sizes) == 3 else None
    samples = STEPS // timer.steps  # of one training
    pause = max(1, math.ceil(samples * peer.seconds / PEER_SECONDS)) if peer else 1
    times: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    spent = 0.0
    while ours.reached is None or spent < CASE_SECONDS or len(times) < 5:
        times.append(timer.sample())
        spent += times[-1] * timer.steps * timer.repeats
        if peer and len(times) % pause == 1 % pause:
            if peer.steps < STEPS:
                peer.warm_up()
            theirs.append(peer.sample())
            spent += theirs[-1] * peer.steps * peer.repeats
            ratios.append(theirs[-1] / times[-1])
        look(min(1.0, len(times) * timer.steps / STEPS) if ours.reached is None else 1.0)
    error = work.error([ours.backend.to_numpy(W) for W in ours.reached])
    step = float(np.median(times))
    bytes_a_step = sum(x.nbytes for x in ours.host)  # X and y, read once
    return {
        "engine": ours.engine.name, "reason": ours.reason, "threads": ours.engine.threads,
        "device": machine.device(ours.backend),
        "step_seconds": summary(times) | {"steps_a_sample": timer.steps * timer.repeats},
        "ns_a_row": 1e9 * step / case.rows, "rows_a_second": case.rows / step,
        "bytes_a_step": bytes_a_step, "gb_a_second": 1e-9 * bytes_a_step / step,
        "tutorial_step_seconds": summary(theirs) | {"steps_a_sample": peer.steps * peer.repeats} if peer else None,
        "ratio": summary(ratios) if peer else None,
        "error": error, "same_error": abs(error - work.expected[1]) <= SAME_ERROR,
    }  # fmt: skip


def summary(values):
    """Median, least, greatest and spread (the interquartile range over the median) of some numbers: a dict."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "min": float(min(values)), "max": float(max(values)),
            "spread": float((high - low) / middle), "samples": len(values)}  # fmt: skip


def measure_all(cases, look=lambda done, text: None):
    """Measure cases, one after the other; what is refused is a result too.

    Parameters
    ----------
    cases : sequence of Case
    look : callable
        Called with the number of cases done, a fraction, and the name of the present one.

    Returns
    -------
    list of dict
        As `measure` has them, with the case. ``refused`` says why there are no times; else it is None.
    """
    results = []
    for done, case in enumerate(cases):
        result = {"backend": case.backend, "asked": case.engine_name, "engine": case.engine_name, "dtype": case.dtype,
                  "rows": case.rows, "refused": None, "wrong": False}  # fmt: skip
        try:
            result |= measure(case, lambda share: look(done + share, str(case)))  # noqa: B023 (called at once)
        # Libraries tell of missing memory and devices by RuntimeError, too.
        except (ValueError, ArithmeticError, ImportError, MemoryError, RuntimeError) as error:
            result |= {"refused": str(error) or "not enough memory", "wrong": isinstance(error, WrongResult)}
        results.append(result)
        look(done + 1, str(case))
    return results


def report(cases, results, load=None):
    """Results with all that one needs to understand them later: a dict, ready for JSON.

    ``load`` is the machine's load average before the run, that of other people's work.
    """
    work = workload(cases[0].layer_sizes)
    before, after = work.expected
    return {
        "kind": KIND,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(cases[0].threads) | {"load_before": load},
        "workload": {"words": str(work), "layer_sizes": list(work.layer_sizes), "table_rows": len(work.X),
                     "steps": STEPS, "learning_rate": work.rate, "error_before": before, "error_after": after},
        "results": results,
    }  # fmt: skip


def read_cases(rows=None, layer_sizes="3,4,1", backends="numpy", engines="auto", dtypes="float32", threads=None):
    """The cases that words on a command line ask for.

    Parameters
    ----------
    rows : str, optional
        ``lo:hi`` for lo, 10 lo, 100 lo, ... hi, or a comma list; by default from the table's rows to millions, fewer
        for wide networks.
    layer_sizes, backends, engines, dtypes : str
        Comma lists; ``all`` stands for all backends, or engines.
    threads : int, optional

    Returns
    -------
    list of Case

    Raises
    ------
    ValueError
        If a word is unknown, or no backend is usable.
    """
    sizes = _numbers("layer-sizes", layer_sizes.split(","))
    if len(sizes) < 2:
        raise ValueError(f"`--layer-sizes` must be at least two whole numbers, inputs first; got {layer_sizes!r}.")
    places = _words(backends, lambda: [name for name in LIBRARIES if why_not(name) is None])
    unusable = [trouble for name in places if (trouble := _trouble(name))]
    if len(unusable) == len(places):
        raise unusable[0]
    thread_count(threads)
    names = _words(engines, lambda: ENGINES)
    for name in names:
        if name != "auto":
            with contextlib.suppress(ImportError):  # an engine whose library is missing is refused in the table
                find(name)
    kinds = _words(dtypes, lambda: DTYPES)
    if wrong := [name for name in kinds if name not in DTYPES]:
        raise ValueError(f"`--dtype` must be of {', '.join(DTYPES)}; got {wrong[0]!r}.")
    counts = _counts(rows, sizes)
    return [Case(place, name, dtype, n, sizes, threads)
            for place, dtype, name, n in itertools.product(places, kinds, names, counts)]  # fmt: skip


def _words(text, everything):
    words = [word.strip() for word in text.split(",")]
    return list(dict.fromkeys(everything() if words == ["all"] else words))


def _trouble(name):
    """Why a backend cannot be used, as the error; an unknown library is raised at once."""
    try:
        backend(name)
    except ValueError as error:
        if name.partition(":")[0] not in (*LIBRARIES, "auto"):
            raise
        return error
    return None


def _counts(text, sizes):
    """The numbers of rows; each must be a multiple of the table's."""
    table_rows = len(workload(sizes).X)
    if text is None:
        most = VALUES / sum(sizes) / table_rows
        return [table_rows * 10**k for k in range(max(1, math.floor(math.log10(most)) + 1))]
    if ":" in text:
        ends = _numbers("rows", text.split(":"))
        if len(ends) != 2 or ends[0] > ends[1]:
            raise ValueError(f"`--rows` must be lo:hi with lo at most hi, or a comma list; got {text!r}.")
        low, high = ends
        counts = [low * 10**k for k in range(20) if low * 10**k < high] + [high]
    else:
        counts = _numbers("rows", text.split(","))
    for n in counts:
        workload(sizes).copies(n)
    return counts


def _numbers(option, words):
    try:
        numbers = tuple(map(int, words))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise ValueError(f"`--{option}` must be whole numbers of at least 1; got {':'.join(words)!r}.")
    return numbers


def write(path, report):
    """Write a report as JSON; a file that is there is replaced whole or not at all."""
    with replacing(path) as place:
        place.write_text(json.dumps(report, indent=1) + "\n")
