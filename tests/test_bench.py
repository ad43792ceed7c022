"""The benchmarks measure what they say: never how fast, but that it is the right work, checked, and told in full."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bpaccel import bench, core
from bpaccel.bench import machine, view, workloads
from bpaccel.bench.workloads import Case, Ours, Tutorial, WrongResult, workload
from bpaccel.engines.blocked import Array, Blocked

XOR = (3, 4, 1)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Little time a case: what is tested does not depend on it."""
    monkeypatch.setattr(bench, "CASE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0)


class TestWorkload:
    def test_xor_is_the_golden_benchmark(self):
        before, after = workload(XOR).expected
        assert before == pytest.approx(0.4964, abs=5e-5)
        assert after == pytest.approx(0.1486, abs=5e-5)

    @pytest.mark.parametrize("sizes", [(3, 1), (1, 1), (5, 8, 8, 2), (32, 16, 1), (64, 32, 10), (28, 300, 1)], ids=str)
    def test_every_network_learns(self, sizes):
        before, after = workload(sizes).expected
        assert after < 0.6 * before

    @pytest.mark.parametrize("sizes", [XOR, (5, 8, 2)], ids=str)
    def test_the_table_is_the_same_in_float32(self, sizes):
        work = workload(sizes)
        for part in (work.X, work.y):
            np.testing.assert_array_equal(part.astype(np.float32), part)

    def test_rows_are_copies_of_the_table(self):
        X, y = workload(XOR).rows(12, "float32")
        assert X.shape == (12, 3)
        assert y.shape == (12, 1)
        assert X.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(X[4:8], workload(XOR).X)

    def test_rows_must_be_whole_tables(self):
        with pytest.raises(ValueError, match="multiple of the 4 rows"):
            workload(XOR).rows(6, "float32")


class TestTutorial:
    @pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-12), ("float32", 1e-5)])
    def test_takes_the_same_steps_as_we_do(self, dtype, near):
        work = workload(XOR)
        peer, ours = Tutorial(work, *work.rows(40, dtype)), Ours(Case("numpy", "array", dtype, 40))
        peer.advance(100)
        ours.advance(100)
        for is_, should in zip(peer.weights, ours.weights, strict=True):
            assert is_.dtype == dtype
            np.testing.assert_allclose(is_, should, rtol=0, atol=near)
        assert work.error(peer.weights) == pytest.approx(work.expected[1], abs=near)

    def test_restart_begins_with_the_first_weights(self):
        work = workload(XOR)
        peer = Tutorial(work, *work.rows(4, "float64"))
        peer.advance(3)
        peer.restart()
        for is_, should in zip(peer.weights, work.weights(), strict=True):
            np.testing.assert_array_equal(is_, should)


class Dropping(Blocked):
    """Forgets its last block."""

    name = "dropping"

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return 1000

    def sums(self, weights, order, start, stop):
        return super().sums(weights, order, start, stop - self.block_rows)


class Scaled(Array):
    """Is off by a thousandth."""

    name = "scaled"

    def block(self, weights, X, y, w):
        sums = super().block(weights, X, y, w)
        return sums._replace(updates=[sums.updates[0], 1.001 * sums.updates[1]])


class Forgetful(Array):
    """Forgets the last row."""

    name = "forgetful"

    def block(self, weights, X, y, w):
        return super().block(weights, X[:-1], y[:-1], w)


class Lagging(Array):
    """Right at the first step, but takes no further ones."""

    name = "lagging"

    def run(self, weights, solver, state, batches, rates, step):
        _, state, totals = super().run(weights, solver, state, batches, rates, step)
        return weights, state, totals


class TestGate:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("engine", ["array", "blocked"])
    @pytest.mark.parametrize("rows", [4, 400_000])
    def test_lets_right_engines_through(self, engine, dtype, rows):
        Ours(Case("numpy", engine, dtype, rows)).check()

    def test_lets_every_backend_through(self, backend):
        training = Ours(Case(backend, "auto", "float32", 4000))
        with training.backend.active():
            training.check()

    def test_refuses_to_time_a_dropped_block(self):
        with pytest.raises(WrongResult, match="totals of engine 'dropping'|updates"):
            bench.measure(Case("numpy", Dropping, "float32", 400_000))

    def test_one_small_block_of_many_is_missed(self):
        class Little(Dropping):
            @classmethod
            def rows_of_a_block(cls, objective, rows):
                return 4

        with pytest.raises(WrongResult):
            bench.measure(Case("numpy", Little, "float32", 40_000))

    def test_one_row_of_many_is_missed(self):
        with pytest.raises(WrongResult, match="totals"):
            bench.measure(Case("numpy", Forgetful, "float32", 400_000))

    def test_refuses_to_time_a_small_mistake(self):
        with pytest.raises(WrongResult, match=r"updates\[1\] of engine 'scaled'"):
            bench.measure(Case("numpy", Scaled, "float64", 400))

    def test_a_wrong_engine_is_a_line_of_the_table(self):
        (result,) = bench.measure_all([Case("numpy", Scaled, "float64", 400)])
        assert result["wrong"]
        assert "step_seconds" not in result

    def test_training_that_goes_elsewhere_is_marked(self):
        case = Case("numpy", Lagging, "float64", 40)
        report = bench.report([case], bench.measure_all([case]))
        assert report["results"][0]["same_error"] is False
        _, rows, notes = view.table(report)
        assert rows[0][-1] == "0.496410!"
        assert "marked !" in notes[0]


class TestMeasure:
    @pytest.mark.parametrize("rows", [4, 400])
    def test_learns_to_the_same_error(self, backend, rows):
        result = bench.measure(Case(backend, "auto", "float32", rows))
        assert result["same_error"]
        assert result["error"] == pytest.approx(0.1486, abs=1e-4)
        assert result["bytes_a_step"] == rows * 16

    def test_slices_and_whole_trainings_reach_the_same_weights(self, monkeypatch):
        reached = []
        for seconds in (0.0, 1e9):  # slices of one step; whole trainings
            monkeypatch.setattr(bench, "SLICE_SECONDS", seconds)
            result = bench.measure(Case("numpy", "array", "float64", 40))
            assert result["step_seconds"]["steps_a_sample"] == (1 if seconds == 0 else 100)
            reached.append(result["error"])
        assert reached[0] == reached[1]

    def test_summaries_hold_together(self):
        result = bench.measure(Case("numpy", "array", "float32", 4))
        for name in ("step_seconds", "tutorial_step_seconds", "ratio"):
            summary = result[name]
            assert 0 < summary["min"] <= summary["median"] <= summary["max"]
            assert summary["samples"] >= 5
        assert result["ns_a_row"] == pytest.approx(1e9 / result["rows_a_second"])

    def test_only_three_layers_have_the_tutorials_code(self):
        result = bench.measure(Case("numpy", "auto", "float32", 64, (5, 8, 8, 2)))
        assert result["ratio"] is None
        assert result["same_error"]

    def test_says_how_far_it_is(self):
        seen = []
        bench.measure_all([Case("numpy", "auto", "float32", 4)] * 2, lambda done, text: seen.append(done))
        assert seen == sorted(seen)
        assert seen[-1] == 2

    def test_too_many_rows_are_refused(self, monkeypatch):
        monkeypatch.setattr(machine, "memory", lambda: 2**20)
        (result,) = bench.measure_all([Case("numpy", "auto", "float32", 4_000_000)])
        assert "GiB of memory" in result["refused"]

    def test_a_backend_that_is_not_there_is_a_line_of_the_table(self):
        case = Case("numpy:gpu", "auto", "float32", 4)
        _, rows, notes = view.table(bench.report([case], bench.measure_all([case] * 2)))
        assert [row[-1] for row in rows] == ["[1]", "[1]"]
        assert "NumPy has no device" in notes[-1]


class TestReadCases:
    def test_default_is_four_rows_to_millions(self):
        assert [case.rows for case in bench.read_cases()] == [4 * 10**k for k in range(7)]

    @pytest.mark.parametrize("sizes", ["784,128,10", "28,300,1", "3,1"])
    def test_wide_networks_get_fewer_rows(self, sizes):
        widths = sum(map(int, sizes.split(",")))
        rows = [case.rows for case in bench.read_cases(layer_sizes=sizes)]
        assert rows[0] == 64
        assert max(rows) * widths <= bench.VALUES < 10 * max(rows) * widths

    @pytest.mark.parametrize(
        ("text", "rows"),
        [("4:400", [4, 40, 400]), ("4:100", [4, 40, 100]), ("8", [8]), ("4_000,8", [4000, 8]), ("4:4", [4])],
    )
    def test_rows(self, text, rows):
        assert [case.rows for case in bench.read_cases(text)] == rows

    def test_every_combination(self):
        cases = bench.read_cases("4", engines="all", dtypes="float32,float64")
        assert len(cases) == 2 * len(bench.ENGINES)
        assert {case.dtype for case in cases} == {"float32", "float64"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"rows": "ten"}, "--rows"),
            ({"rows": "4:"}, "--rows"),
            ({"rows": "400:4"}, "lo at most hi"),
            ({"rows": "4:40:400"}, "lo:hi"),
            ({"rows": "-4"}, "at least 1"),
            ({"rows": "6"}, "multiple of the 4 rows"),
            ({"layer_sizes": "3"}, "--layer-sizes"),
            ({"layer_sizes": "3,x"}, "--layer-sizes"),
            ({"backends": "fortran"}, "fortran"),
            ({"backends": "numpy,fortran"}, "fortran"),
            ({"backends": "numpy:gpu"}, "no device"),
            ({"engines": "steam"}, "steam"),
            ({"dtypes": "int8"}, "--dtype"),
            ({"threads": 0}, "threads"),
        ],
    )
    def test_bad_words(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            bench.read_cases(**arguments)


def a_report(**words):
    cases = bench.read_cases("4,40", **words)
    return bench.report(cases, bench.measure_all(cases))


class TestReport:
    def test_json_round_trip(self, tmp_path):
        report = a_report(dtypes="float32,float64")
        bench.write(tmp_path / "bench.json", report)
        assert json.loads((tmp_path / "bench.json").read_text()) == report
        assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
        assert report["workload"]["layer_sizes"] == [3, 4, 1]
        assert report["machine"]["versions"]["numpy"] == np.__version__

    def test_a_failed_write_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "bench.json"
        path.write_text("before")
        with pytest.raises(TypeError):
            bench.write(path, {"kind": object()})
        assert path.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]

    def test_names_no_host_and_no_user(self):
        words = " ".join(machine.in_words(machine.describe()))
        assert str(workloads.__file__) not in words
        assert "threads" in words

    @pytest.mark.parametrize("width", [80, 120])
    def test_fits_the_terminal(self, width):
        rich = pytest.importorskip("rich.console")
        console = rich.Console(width=width, record=True, quiet=True, file=None)
        report = a_report()
        for r, name in zip(report["results"], ("array_api_strict", "torch:cuda:0"), strict=True):
            r |= {"backend": name, "rows": 400_000_000, "ns_a_row": 12_345.0}
        with console.capture() as captured:
            console.quiet = False
            view.show(report, console)
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in captured.get()
        assert sum("400,000,000" in line and "0.148637" in line for line in lines) == 2

    def test_the_tutorials_code_stands_beside_the_default_engine(self):
        report = a_report()
        headers, rows, _ = view.table(report)
        for row, r in zip(rows, report["results"], strict=True):
            line = dict(zip(headers, row, strict=True))
            assert line["engine"] == r["engine"]
            assert line["tutorial"] == view.digits(1e6 * r["tutorial_step_seconds"]["median"])
            assert line["ratio"] == view.digits(r["ratio"]["median"])

    def test_what_ratio_means_is_said_above_the_table(self):
        rich = pytest.importorskip("rich.console")
        console = rich.Console(width=200)
        with console.capture() as captured:
            view.show(a_report(), console)
        above, _, table = captured.get().partition("us/step  ")
        assert "ratio: the time of the tutorial's own NumPy code over the engine's" in above
        assert "the one that auto, the default, chose" in above
        assert "ratio" in table

    def test_the_legend_says_only_what_the_table_has(self):
        asked = a_report(engines="array")
        assert "auto" not in " ".join(view.legend(asked))
        deep = [Case("numpy", "auto", "float32", 64, (5, 8, 8, 2))]
        report = bench.report(deep, bench.measure_all(deep))
        assert view.legend(report)[0].startswith("ratio: none")
        headers, rows, _ = view.table(report)
        assert dict(zip(headers, rows[0]))["tutorial"] == "-"

    def test_series_has_a_line_for_the_tutorial(self):
        lines = view.series(a_report())
        assert set(lines) == {"numpy auto float32", "tutorial's NumPy float32"}
        assert lines["numpy auto float32"][0] == [4, 40]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.31415, "0.314"), (29.31, "29.3"), (203_120, "203,120"), (0.00004, "0.000"), (1e3, "1,000")],
)
def test_digits(number, text):
    assert view.digits(number) == text


@pytest.mark.parametrize(("load", "warned"), [(5.0, True), (0.1, False), (None, False)])
def test_a_busy_machine_is_told(monkeypatch, load, warned):
    rich = pytest.importorskip("rich.console")
    monkeypatch.setattr(machine, "load", lambda: load)
    monkeypatch.setattr(view, "processors", lambda: 2)
    console = rich.Console(width=120)
    with console.capture() as captured:
        report = view.watch([Case("numpy", "auto", "float32", 4)], console)
    assert ("the machine is busy" in captured.get()) == warned
    assert report["machine"]["load_before"] == load
    assert ("load average" in machine.in_words(report["machine"])[0]) == (load is not None)


@pytest.mark.parametrize("level", ["v3", None])
def test_the_level_of_the_kernels_is_told(monkeypatch, level):
    def library():
        if level is None:
            raise machine.Missing("there is none")
        return SimpleNamespace(level=level)

    monkeypatch.setattr(machine, "library", library)
    described = machine.describe()
    assert described["level"] == level
    assert ("kernels of level v3" in " ".join(machine.in_words(described))) == (level is not None)


def test_settings_are_told(monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    assert "CUPY_TF32=1" in machine.in_words(machine.describe())[-1]


def test_the_core_agrees_with_the_error(monkeypatch):
    work = workload(XOR)
    X, y = work.rows(400, "float64")
    output = core.forward(work.weights(), X, work.activations)[-1]
    assert work.error(work.weights()) == pytest.approx(np.mean(np.abs(y - output)), abs=1e-12)
