"""Counts that hold the shape of the code: who reaches into whom, how much a function is given, what is asked twice."""

import ast
import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import bpaccel as bp
from bpaccel import libraries

PACKAGE = Path(bp.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Functions that people call with keywords: the public classes and functions, and the commands of the command line.
PUBLIC = {"Network", "TableModel", "MLPClassifier", "MLPRegressor", "BaseMLP"}


def _private_reaches(path):
    """Attributes with a leading underscore of other objects than ``self`` and ``cls``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
            own = own or node.attr in ("_replace", "_asdict", "_fields")  # the public ones of a NamedTuple
            own = own or (isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super")
            if not own:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"


def test_estimators_hardly_reach_into_other_objects():
    """23 at bc13972. `convert` reads and writes scikit-learn's own privates: that is its work."""
    files = [path for path in (PACKAGE / "estimators").glob("*.py") if path.name != "convert.py"]
    found = [reach for path in files for reach in _private_reaches(path)]
    assert len(found) <= 8, "\n".join(found)


def test_training_reaches_into_nobody():
    found = [reach for path in (PACKAGE / "training").glob("*.py") for reach in _private_reaches(path)]
    assert found == []


def _functions(tree, owner=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield owner, node
        name = node.name if isinstance(node, ast.ClassDef) else owner
        yield from _functions(node, name)


def test_no_function_below_the_public_classes_takes_more_than_eight_arguments():
    found = []
    for path in MODULES:
        if path.name == "cli.py":
            continue
        for owner, function in _functions(ast.parse(path.read_text())):
            every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            count = len([a for a in every if a.arg not in ("self", "cls")])
            if count > 8 and owner not in PUBLIC:
                found.append(f"{path.relative_to(PACKAGE)}:{function.lineno}: {owner}.{function.name} takes {count}")
    assert found == []


@pytest.fixture
def asked(monkeypatch):
    """How often each array was asked which library it is of, by its identity."""
    counts, kept = {}, []
    row = libraries.LIBRARIES["numpy"]

    def owns(x):
        if isinstance(x, np.ndarray):
            kept.append(x)  # so that no other array gets its number
            counts[id(x)] = counts.get(id(x), 0) + 1
        return row.owns(x)

    monkeypatch.setitem(libraries.LIBRARIES, "numpy", row._replace(owns=owns))
    return counts


def _most(counts):
    return max(counts.values())


def test_each_array_is_asked_what_it_is_once_a_train(asked):
    X, y, w = np.random.default_rng(0).random((20, 3)), np.ones((20, 1)), np.ones(20)
    network = bp.Network([3, 4, 1], seed=0, dtype="float64")
    asked.clear()
    network.train(X, y, sample_weight=w, steps=30, solver="adam", batch_size=7)
    assert [asked[id(x)] for x in (X, y, w)] == [1, 1, 1]
    assert _most(asked) == 1


def test_each_array_is_asked_what_it_is_once_a_fit(asked):
    pytest.importorskip("sklearn")
    X, y, w = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2, np.ones(20)
    model = bp.MLPClassifier((4,), max_iter=3, random_state=0, tol=0.0, n_iter_no_change=10**6)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, y, sample_weight=w)
    assert [asked.get(id(x), 0) for x in (X, y, w)] == [1, 1, 1]
    assert _most(asked) == 1


@pytest.mark.parametrize("path", [path for path in MODULES if ">>> " in path.read_text()], ids=lambda path: path.name)
def test_examples_in_docstrings_run(path):
    name = ".".join(("bpaccel", *path.relative_to(PACKAGE).with_suffix("").parts))
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
