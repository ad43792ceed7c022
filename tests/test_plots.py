"""Pictures: they are drawn, whole or not at all, and say what is wrong with a file name before the work."""

import subprocess
import sys

import numpy as np
import pytest

from bpaccel import plots, tutorial

pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")

SERIES = {"numpy": ([4, 40, 400], [5000.0, 500.0, 60.0]), "torch": ([4, 40], [9000.0, 950.0])}
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8", "webp": b"RIFF"}


@pytest.fixture(scope="module")
def lessons():
    return tutorial.two_layer("numpy", steps=200), tutorial.three_layer("numpy", steps=200)


def draw(path, series=SERIES):
    plots.scaling(path, series, title="Time a row", ylabel="ns a row")


@pytest.mark.parametrize("ending", plots.FORMATS)
def test_every_format(tmp_path, ending):
    draw(tmp_path / f"picture.{ending}")
    assert (tmp_path / f"picture.{ending}").read_bytes().startswith(MAGIC[ending])
    assert [path.name for path in tmp_path.iterdir()] == [f"picture.{ending}"]


def test_tutorial_picture(tmp_path, lessons):
    plots.tutorial(tmp_path / "both.PNG", lessons)
    plots.tutorial(str(tmp_path / "one.png"), lessons[1:])
    for name in ("both.PNG", "one.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(MAGIC["png"])
        assert 30_000 < len(content) < 200_000


def test_tutorial_picture_says_the_numbers(tmp_path, lessons, monkeypatch):
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    plots.tutorial(tmp_path / "tutorial.svg", lessons)
    text = (tmp_path / "tutorial.svg").read_text()
    shown = [W for look in (lessons[0].first, lessons[1].last) for W in look.weights]
    assert all(f">{w:.2f}<" in text for W in shown for w in W.ravel())
    words = "Two-layer network 3-1", "Three-layer network 3-4-1", "syn1", "l2", "slope 0.250", "mean |y - output|"
    assert [word for word in words if word not in text] == []


def test_an_existing_picture_is_replaced(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    draw(path)
    assert path.read_bytes().startswith(MAGIC["png"])


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        draw(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.", ".png", "png"])
def test_unknown_ending(tmp_path, name):
    with pytest.raises(ValueError, match=r"must end with \.png, \.svg, \.pdf, \.jpg or \.webp; got '.*" + name):
        plots.check(tmp_path / name)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        plots.check(tmp_path / "nowhere" / "picture.png")


def test_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is not a file: give another name"):
        plots.check(tmp_path / "folder.png")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one positive number; got 2 series"):
        draw(tmp_path / "picture.png", {"a": ([], []), "b": ([4, 40], [np.nan, 0.0])})
    assert list(tmp_path.iterdir()) == []


def test_odd_series(tmp_path):
    many = {f"series {k}": ([1, 10], [1.0 + k / 100, 1.0]) for k in range(30)}
    draw(tmp_path / "many.png", many)
    draw(tmp_path / "point.png", {"one $point_": ([4], [3.0])})
    draw(tmp_path / "gaps.png", {"gaps": ([40, 4, 400], [np.inf, 5.0, 1.0]), "empty": ([], [])})
    assert len(list(tmp_path.iterdir())) == 3


def test_drawable_points_are_positive_finite_and_sorted():
    points = plots._drawable([40, 4, 400, 4000, 8], [1.0, 5.0, np.nan, -1.0, np.inf])
    np.testing.assert_array_equal(points, [[4, 5.0], [40, 1.0]])


@pytest.mark.parametrize("wanted", [[0.1, 0.5, 0.9], [0.5] * 4, [0.1, 0.11, 0.5, 0.52, 0.54], [0.0, 0.0, 0.01, 1.0]])
def test_labels_keep_their_order_and_do_not_touch(wanted):
    places = plots._spread(wanted, 0.05)
    assert len(places) == len(wanted)
    assert np.min(np.diff(places)) > 0.05 - 1e-12
    assert np.mean(places) == pytest.approx(np.mean(wanted))


def test_labels_that_have_room_stay():
    assert plots._spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "0.5"), (4, "4"), (1000, "1k"), (20_000, "20k"), (1e6, "1M"), (1e9, "1G"), (999, "999")]
)
def test_ticks_in_words(value, words):
    assert plots._in_words(value) == words


def test_no_state_of_the_caller_is_touched(tmp_path):
    code = f"""
import sys
from bpaccel import plots
assert "matplotlib" not in sys.modules
plots.scaling({str(tmp_path / "p.png")!r}, {{"a": ([1, 2], [3, 4])}}, title="", ylabel="")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'bpaccel\[plot\]'"):
        plots.check(tmp_path / "picture.png")
