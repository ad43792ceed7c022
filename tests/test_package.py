"""The package as a whole: imports that go one way, a light import, exact public names, a README that runs."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bpaccel

ROOT = Path(__file__).parents[1]
HEAVY = ("cupy", "torch", "jax", "matplotlib", "typer", "rich", "safetensors", "pyarrow", "pandas", "sklearn",
         "scipy", "threadpoolctl", "array_api_compat", "array_api_strict")  # fmt: skip
# What a network on arrays has no use for until it is saved, logged or shown.
LATER = ("json", "logging", "pathlib", "tempfile", "bpaccel.callbacks", "bpaccel.columns", "bpaccel.estimators",
         "bpaccel.plots", "bpaccel.readers", "bpaccel.storage", "bpaccel.tables", "bpaccel.tutorial")  # fmt: skip


def house():
    """The modules in the order of the picture in docs/design.md."""
    picture = (ROOT / "docs/design.md").read_text().partition("bpaccel/\n")[2].partition("```")[0]
    return [name.removesuffix(".py").removesuffix("/") for name in re.findall(r"^  (\w+(?:\.py|/))  ", picture, re.M)]


def modules():
    """``{place in the house: [files]}``: a package counts as one place."""
    found = {}
    for path in sorted((ROOT / "bpaccel").rglob("*.py")):
        found.setdefault(path.relative_to(ROOT / "bpaccel").parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(path):
    """The places of this package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bpaccel":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_the_picture_shows_the_whole_house():
    assert set(house()) == set(modules()) - {"__init__", "__main__"}


@pytest.mark.parametrize("place", house())
def test_imports_go_one_way(place):
    order = house()
    for path in modules()[place]:
        for target in imports(path):
            assert target == place or order.index(target) < order.index(place), f"{path.name} imports {target}"


def test_the_core_knows_no_library():
    source = (ROOT / "bpaccel/core.py").read_text()
    assert not re.search(r"import (cupy|torch|jax)", source)


def test_all_is_sorted_and_exact():
    public = list(bpaccel.__all__)
    assert public == sorted(public)
    code = """
import bpaccel, types
from bpaccel import *
for name, value in sorted(vars(bpaccel).items()):
    if name[0] != "_" and (name in bpaccel.__all__ or not isinstance(value, types.ModuleType)):
        print(name)
"""
    assert _python(code).split() == public
    for name in public:
        assert getattr(bpaccel, name).__doc__


def test_every_module_says_what_it_is_for():
    for files in modules().values():
        for path in files:
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_public_names_are_what_their_modules_hold():
    for name, module in {
        "Network": "network",
        "load": "tables",
        "one_hot": "data",
        "History": "training.history",
    }.items():
        assert getattr(bpaccel, name) is getattr(importlib.import_module(f"bpaccel.{module}"), name)
    assert set(bpaccel.__all__) < set(dir(bpaccel))
    assert {"MLPClassifier", "MLPRegressor"} == set(dir(bpaccel)) - set(bpaccel.__all__)


def test_the_package_is_a_plain_module():
    """Workers of joblib and Dask get functions that hold it by value, and can rebuild nothing else."""
    assert type(bpaccel) is type(os)
    assert type(bpaccel.backends) is type(os)


def test_modules_are_there_without_an_import_of_their_own():
    code = "import bpaccel as bp; print(bp.activations.__name__, bp.engines.__name__, bp.callbacks.__name__)"
    assert _python(code).split() == ["bpaccel.activations", "bpaccel.engines", "bpaccel.callbacks"]


@pytest.mark.parametrize("name", ["nothing_of_that_name", "__nothing__", "_HOMES_"])
def test_a_name_that_is_not_there(name):
    assert not hasattr(bpaccel, name)
    with pytest.raises(AttributeError, match=f"module 'bpaccel' has no attribute '{name}'"):
        getattr(bpaccel, name)


def test_a_module_that_lacks_a_library_says_so():
    """It is not taken for a module that is not there."""
    code = """
import sys, bpaccel
sys.modules["typer"] = None
try:
    bpaccel.cli
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert _python(code).strip() == "typer"


def test_importing_us_loads_nothing_but_python():
    loaded = _loaded("import bpaccel")
    assert {name for name in loaded if name.startswith("bpaccel")} == {"bpaccel"}
    assert _foreign(loaded) == set()


@pytest.mark.parametrize("module", ["bpaccel.activations", "bpaccel.losses", "bpaccel.formulas.printer"])
def test_the_formulas_need_nothing_but_python(module):
    """They are read where the kernels are built: no NumPy is there."""
    assert _foreign(_loaded(f"import {module}")) == set()


def test_a_network_loads_only_what_it_needs():
    """The time of the first call is that of its imports."""
    loaded = _loaded("import bpaccel as bp; bp.Network([1, 1])", before="import numpy, numpy.random")
    assert "bpaccel.network" in loaded
    assert not loaded & set(LATER)
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_numpy_alone_trains_without_loading_anything_heavy():
    """threadpoolctl is looked for where rows are many: not here."""
    code = "import sys, bpaccel as bp; bp.Network([1, 1]).train([[1.0]], [1.0], steps=1); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in _python(code).split()}
    assert not loaded & (set(HEAVY) - {"array_api_compat"})


def test_the_command_without_its_extra_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer')\n")
    done = subprocess.run([sys.executable, "-m", "bpaccel", "info"], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "The bpaccel command needs typer and rich: pip install 'bpaccel[cli]'"


def test_info_shows_backends_engines_and_threads():
    pytest.importorskip("typer")
    done = subprocess.run([sys.executable, "-m", "bpaccel", "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for part in ("numpy", "cupy", "array_api_strict", "Engines", "blocked", "threads: ", "Python "):
        assert part in done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md", "docs/estimators.md", "docs/resume.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """All its Python blocks, in order, in one namespace, after the scripts that its ``sh`` blocks run; blocks that need
    a GPU say so and are skipped."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for library in ("sklearn", "matplotlib", "pandas"):
        if re.search(rf"^(import|from) {library}\b", "".join(blocks), re.M):
            pytest.importorskip(library)
    for script, *arguments in (line.split()[1:] for line in re.findall(r"```sh\n(python .*?)\n```", text)):
        subprocess.run([sys.executable, ROOT / script, *arguments], check=True)
    names = {}
    for block in blocks:
        if "cupy" not in block or bpaccel.available_backends()["cupy"] == "usable":
            exec(compile(block, page, "exec"), names)
    assert blocks


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_within_the_repository_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_engines_are_where_the_table_says():
    from bpaccel.engines import Engine
    from bpaccel.engines.choice import ENGINES, find

    for name, place in ENGINES.items():
        module = place.partition(":")[0]
        assert issubclass(find(name), Engine)
        assert importlib.import_module(module)
        assert find(name).name == name


def _loaded(code, before="pass"):
    """The modules that code loads in a fresh process, beside those that are there without it."""
    report = f"import sys; {before}; known = set(sys.modules); {code}; print(*sorted(set(sys.modules) - known))"
    return set(_python(report).split())


def _foreign(modules):
    return {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"bpaccel"}


def _python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
