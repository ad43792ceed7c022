"""The build of the kernels: fingerprints, compilers, and a hook that never fails an installation."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bpaccel import native
from bpaccel.native import build

ROOT = Path(__file__).parents[1]

# Stands for all kernels where a test is about the way to a library, not about what it computes.
SMALL = """
#include "rows.hpp"
#ifdef _WIN32
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif
PUBLIC const char* bp_sources() { return BPACCEL_SOURCES; }
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources, with kernels that are soon compiled."""
    return _tree(tmp_path / "tree")


def _tree(folder):
    shutil.copytree(ROOT / "bpaccel", folder / "bpaccel", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "bpaccel/native/kernels.cpp").write_text(SMALL)
    return folder


def run(tree, *arguments, hidden=(), **env):
    """Run a module of Python in a tree, whose package is the one found; ``hidden`` packages are not."""
    pytest.importorskip("hatchling")
    hide = f"sys.modules.update(dict.fromkeys({list(hidden)!r})); " if hidden else ""
    code = (
        f"import runpy, sys; sys.argv[:] = {list(arguments)!r}; {hide}runpy.run_module(sys.argv[0], None, '__main__')"
    )
    env = {**os.environ, "PYTHONPATH": str(tree), "BPACCEL_PURE": "", "BPACCEL_TARGET": "", "BPACCEL_CXX": "", **env}
    return subprocess.run([sys.executable, "-c", code], cwd=tree, env=env, capture_output=True, text=True, check=False)


def wheel(tree, **how):
    """Build a wheel: its tag, and what lies in its folder of libraries, by name."""
    shutil.rmtree(tree / "dist", ignore_errors=True)
    done = run(tree, "hatchling", "build", "-t", "wheel", "-d", str(tree / "dist"), **how)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tree / "dist").glob("*-py3-*.whl")
    with zipfile.ZipFile(path) as archive:
        libraries = {Path(n).name: archive.read(n) for n in archive.namelist() if n.startswith("bpaccel/native/lib/")}
    return path.stem.partition("-py3-none-")[2], libraries


def _editable(tree, **how):
    done = run(tree, "hatchling", "build", "-t", "wheel:editable", HATCH_BUILD_HOOKS_ONLY="true", **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def editable(tree, **how):
    """Do what an editable installation does: what lies in the folder of libraries then, by name."""
    _editable(tree, **how)
    return {path.name: path.read_bytes() for path in (tree / "bpaccel/native/lib").iterdir()}


def requires(tree, **how):
    """What pip is told to install before the build, as text."""
    (tree / "asks.py").write_text("from hatchling.build import *; print(get_requires_for_build_wheel())")
    done = run(tree, "asks", **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def reason(tree, **how):
    """Why a wheel got no kernels; it is one for any platform then, and the reason is all that lies there."""
    tag, libraries = wheel(tree, **how)
    assert tag == "any"
    assert list(libraries) == ["reason.txt"]
    [sentence] = libraries["reason.txt"].decode().splitlines()
    return sentence


def files(target):
    """The names of the files that a build for a target leaves."""
    return {library.name + native.SUFFIXES[target.system] for library in target.libraries} | {native.SUMS}


def _ziglang():
    pytest.importorskip("ziglang", reason="the compiler of the package ziglang")
    if build.host() is None:
        pytest.skip("no kernels are built for this processor and system")


# --- which sources a library is of ---


def test_the_fingerprint_changes_with_each_source(tree):
    package = tree / "bpaccel"
    seen = {native.fingerprint(package)}
    for name in native.sources(package):
        path = package / name
        text = path.read_bytes()
        path.write_bytes(text + b" ")
        seen.add(native.fingerprint(package))
        path.write_bytes(text)
    path.rename(path.with_name("other.hpp"))
    seen.add(native.fingerprint(package))
    assert len(seen) == len(native.sources(package)) + 2
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in seen)


def test_the_fingerprint_is_that_of_the_sources_alone(tree):
    package = tree / "bpaccel"
    before = native.fingerprint(package)
    for name in native.sources(package):
        text = (package / name).read_bytes()
        assert b"\r" not in text
        (package / name).write_bytes(text.replace(b"\n", b"\r\n"))
    for name in ("network.py", "native/__init__.py", "native/notes.txt"):
        (package / name).write_text("# new\n")
    assert native.fingerprint(package) == before


def test_every_header_that_is_included_is_a_source():
    names = native.sources()
    included = {
        (Path(name).parent / header).as_posix()
        for name in names
        if name.endswith((".hpp", ".cpp"))
        for header in re.findall(r'#include "(.*?)"', (ROOT / "bpaccel" / name).read_text())
    }
    assert included - {"native/rows.hpp"} <= set(names)
    assert {"activations.py", "losses.py", "formulas/rows.py", "native/build.py", "native/level.cpp"} <= set(names)


def test_make_builds_anew_for_the_same_sources():
    if shutil.which("make") is None:
        pytest.skip("make: not in PATH")
    told = ["make", "-s", "-C", str(ROOT), "--eval=kernels: ; @echo $(KERNELS)", "kernels"]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(f"bpaccel/{name}" for name in native.sources())


def test_the_trial_has_each_builtin_of_the_kernels():
    """A compiler that passes the trial must not fail on the kernels, for nothing else is asked for then."""
    used = {
        builtin
        for name in native.sources()
        if name.endswith((".hpp", ".cpp"))
        for builtin in re.findall(r"__builtin_\w+", (ROOT / "bpaccel" / name).read_text())
    }
    assert "__builtin_elementwise_fma" in used
    assert used - {"__builtin_cpu_supports"} <= set(re.findall(r"__builtin_\w+", build.TRIAL))  # that is in a comment


# --- a library, built ---


def test_a_build_gives_libraries_that_say_their_sources(tree):
    _ziglang()
    done = run(tree, "bpaccel.native.build")
    assert done.returncode == 0, done.stderr
    target, folder = build.TARGETS[build.host()], tree / "bpaccel/native/lib"
    assert {path.name for path in folder.iterdir()} == files(target)
    assert {Path(line).name for line in done.stdout.split()} == files(target) - {native.SUMS}
    assert native.sums(folder) == {name: native.digest(folder / name) for name in files(target) - {native.SUMS}}
    for library in target.libraries:
        loaded = ctypes.CDLL(str(folder / Path(native.library(library.name)).name))
        if library is build.LEVEL:
            assert loaded.bp_level() in (0, 3, 4)
        else:
            loaded.bp_sources.restype = ctypes.c_char_p
            assert loaded.bp_sources().decode() == native.fingerprint(tree / "bpaccel")


def test_two_builds_in_two_places_give_the_same_bytes(tree, tmp_path):
    _ziglang()
    other = _tree(tmp_path / "a folder with another name")
    first, second = wheel(tree), wheel(other)
    assert first == second
    assert "reason.txt" not in first[1]
    for content in first[1].values():
        for path in (str(tmp_path), str(Path.home()) + os.sep, "bpaccel-build-", "kernels.cpp"):
            assert path.encode() not in content


def test_a_build_replaces_a_library_that_is_in_use(tree):
    """The old file lives on under no name; a file that was written into would change, or crash, its user."""
    _ziglang()
    if sys.platform == "win32":
        pytest.skip("Windows lets nobody replace a library that is in use")
    folder = tree / "bpaccel/native/lib"
    file = folder / Path(native.library(build.TARGETS[build.host()].libraries[0].name)).name
    run(tree, "bpaccel.native.build")
    with open(file, "rb") as user:
        before = user.read()
        with open(tree / "bpaccel/native/kernels.cpp", "a") as source:
            source.write("PUBLIC int bp_new() { return 1; }\n")
        run(tree, "bpaccel.native.build")
        user.seek(0)
        assert user.read() == before != file.read_bytes()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_builds_for_two_systems_share_a_folder(tree):
    _ziglang()
    folder, names = tree / "shared", ["linux-x86_64", "macos-arm64"]
    for name in names:
        done = run(tree, "bpaccel.native.build", "--target", name, "--out", str(folder))
        assert done.returncode == 0, done.stderr
    expected = files(build.TARGETS[names[0]]) | files(build.TARGETS[names[1]])
    assert {path.name for path in folder.iterdir()} == expected
    assert native.sums(folder) == {name: native.digest(folder / name) for name in expected - {native.SUMS}}


def test_a_build_that_fails_leaves_what_was_there(tree):
    _ziglang()
    run(tree, "bpaccel.native.build")
    before = {path.name: path.read_bytes() for path in (tree / "bpaccel/native/lib").iterdir()}
    with open(tree / "bpaccel/native/kernels.cpp", "a") as source:
        source.write("int broken(;\n")
    done = run(tree, "bpaccel.native.build")
    assert done.returncode == 1
    assert re.search(r"^The kernels were not built\. .*kernels\.cpp:\d+:\d+: error: .*\.$", done.stderr, re.M)
    assert before == {path.name: path.read_bytes() for path in (tree / "bpaccel/native/lib").iterdir()}


def test_a_symbol_from_elsewhere_is_an_error(tree):
    _ziglang()
    with open(tree / "bpaccel/native/kernels.cpp", "a") as source:
        source.write('extern "C" int elsewhere();\nPUBLIC int bp_here() { return elsewhere(); }\n')
    for target in build.TARGETS:
        assert "undefined symbol" in reason(tree, BPACCEL_TARGET=target)


# --- which compiler ---


@pytest.fixture
def clang(tmp_path, monkeypatch):
    """A function that puts a clang++ into an otherwise empty PATH: a program that runs ``line`` of the shell."""
    if os.name != "posix" or build.host() is None:
        pytest.skip("a clang++ of the system is looked for on Linux and macOS")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("BPACCEL_CXX", raising=False)
    (tmp_path / "bin").mkdir()

    def put(line, name="clang++"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    return put


ALL_TAGS = [tag for target in build.TARGETS.values() for tag in target.ziglang.split(".")]
# It writes what -o names.
PASSES = 'while [ "$1" != -o ]; do shift; done; : > "$2"'
LACKS = "echo 'trial.cpp:6:71: error: no __builtin_elementwise_fma.' >&2; exit 1"


@pytest.fixture
def _no_ziglang(monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)


def test_a_clang_that_passes_the_trial_is_taken(clang):
    clang(LACKS)
    clang(PASSES, "clang++-19")
    found = build.find_compiler()
    assert (found.name, found.zig) == ("clang++-19", False)
    assert build.requirements(tags=ALL_TAGS) == []


@pytest.mark.usefixtures("_no_ziglang")
def test_ziglang_is_asked_for_where_no_clang_passes(clang):
    assert build.requirements(tags=ALL_TAGS) == [build.ZIGLANG]
    clang(LACKS)
    assert build.requirements(tags=ALL_TAGS) == [build.ZIGLANG]
    with pytest.raises(build.BuildError, match=r"neither .* nor .*ziglang.*no __builtin_elementwise_fma\..* Install"):
        build.find_compiler()


@pytest.mark.usefixtures("_no_ziglang")
def test_ziglang_is_not_asked_for_where_pip_would_find_none(clang):
    """pip ends an installation whose build asks for what there is not."""
    assert build.requirements(tags=["linux_riscv64"]) == []


def test_a_named_target_is_built_by_ziglang(clang):
    _ziglang()
    clang(PASSES)
    assert build.find_compiler("linux-aarch64").zig
    assert build.requirements("linux-aarch64", ALL_TAGS) == [build.ZIGLANG]


def test_the_compiler_that_a_person_names_is_the_one(clang, monkeypatch):
    clang(PASSES)
    mine = clang(LACKS, "mine")
    monkeypatch.setenv("BPACCEL_CXX", f"{mine} -v")
    assert build.requirements(tags=ALL_TAGS) == []
    with pytest.raises(
        build.BuildError, match=r"BPACCEL_CXX must name .*mine -v could not compile .*elementwise_fma\.$"
    ):
        build.find_compiler()
    clang(PASSES, "mine")
    assert build.find_compiler().command == (str(mine), "-v")


def test_a_compiler_that_does_not_run_is_a_sentence(clang, monkeypatch):
    monkeypatch.setenv("BPACCEL_CXX", "/no/such/clang++")
    with pytest.raises(build.BuildError, match=r"/no/such/clang\+\+ could not be run for level .*: .*No such file"):
        build.find_compiler()


def test_clang_proper_builds_what_ziglang_builds(tree):
    """The clang in ziglang, called as one of the system: other flags, the same names."""
    _ziglang()
    if sys.platform != "linux" or shutil.which("ld") is None:
        pytest.skip("a linker ld of Linux: not in PATH")
    done = run(tree, "bpaccel.native.build", BPACCEL_CXX=f"{sys.executable} -m ziglang clang --driver-mode=g++")
    assert done.returncode == 0, done.stderr
    for path in done.stdout.split():
        assert ctypes.CDLL(path).bp_level if Path(path).stem == "level" else ctypes.CDLL(path).bp_sources


def test_a_machine_without_a_target_is_told_which_there_are(monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: "linux-riscv64")
    assert build.host() is None
    assert build.requirements(tags=ALL_TAGS) == []
    with pytest.raises(build.BuildError, match=r"no kernels for linux-riscv64.*linux-x86_64"):
        build.build()
    with pytest.raises(build.BuildError, match=r"must be one of linux-x86_64, .*; it was 'amiga'"):
        build.build("amiga")


# --- the hook ---


def test_a_wheel_has_the_libraries_of_its_target_and_no_stale_one(tree):
    _ziglang()
    stale = tree / "bpaccel/native/lib"
    stale.mkdir()
    for name in ("v4.so", "v3.dll", "arm64.dylib", "reason.txt"):
        (stale / name).write_text("stale")
    for name, target in build.TARGETS.items():
        tag, libraries = wheel(tree, BPACCEL_TARGET=name)
        assert tag == target.platforms
        assert set(libraries) == files(target)
        assert b"stale" not in libraries.values()


def test_a_wheel_for_this_machine_says_so(tree):
    _ziglang()
    tag, libraries = wheel(tree)
    assert libraries
    if sys.platform == "linux":
        assert re.fullmatch(r"linux_\w+", tag)
    assert not (tree / "bpaccel/native/lib").exists()


def test_an_editable_installation_builds_in_place(tree):
    _ziglang()
    assert set(editable(tree)) == set(wheel(tree)[1])


def test_an_editable_installation_forgets_an_old_reason(tree):
    _ziglang()
    assert list(editable(tree, BPACCEL_PURE="1")) == ["reason.txt"]
    assert "reason.txt" not in editable(tree)


def test_without_a_compiler_the_reason_is_kept(tree):
    how = {"hidden": ["ziglang"], "PATH": ""}
    assert reason(tree, **how).startswith("There was no compiler: neither a clang++ of version 18 or later, nor")
    assert editable(tree, **how)["reason.txt"].startswith(b"There was no compiler")
    done = run(tree, "bpaccel.native.build", **how)
    assert (done.returncode, done.stdout) == (1, "")


def test_pure_builds_nothing_and_asks_for_nothing(tree):
    assert reason(tree, BPACCEL_PURE="1").startswith("BPACCEL_PURE was set at the installation; ")
    assert requires(tree, BPACCEL_PURE="1") == "[]"
    assert requires(tree, hidden=["ziglang"], PATH="", BPACCEL_PURE="0") in ("[]", f"['{build.ZIGLANG}']")


def test_a_target_that_is_none_is_a_reason(tree):
    assert reason(tree, BPACCEL_TARGET="amiga").startswith("The target must be one of linux-x86_64, ")


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        (
            "native/kernels.cpp",
            "int broken(;",
            r"could not compile kernels\.cpp for level \w+: kernels\.cpp:1:\d+: error: .*\.",
        ),
        ("native/kernels.cpp", None, r"could not compile kernels\.cpp .*"),
        ("native/build.py", "def broken(:", "The build failed with SyntaxError: .*"),
        ("native/build.py", "import no_such_module", "The build failed with ModuleNotFoundError: .*"),
        ("native/__init__.py", "1 / 0", "The build failed with ZeroDivisionError: division by zero."),
        ("__init__.py", "__version__ = '1'\nimport no_such_module", "The build failed with ModuleNotFoundError: .*"),
        ("formulas/rows.py", None, "The build failed with ImportError: .*rows.*"),
        ("formulas/rows.py", "def header():\n    raise ValueError('two\\nlines')", ".* with ValueError: two lines."),
        ("activations.py", "raise SystemError", "The build failed with SystemError: ."),
    ],
    ids=["kernels", "no-kernels", "build", "build-import", "native", "package", "no-rows", "rows", "activations"],
)
def test_broken_sources_are_a_reason_and_no_failure(tree, file, text, why):
    _ziglang()
    (tree / "bpaccel" / file).unlink()
    if text is not None:
        (tree / "bpaccel" / file).write_text(text)
    assert re.search(why + "$", reason(tree))
    assert re.search(why + "$", editable(tree)["reason.txt"].decode().strip())
    if file.startswith("native"):
        assert requires(tree)[0] == "["


def test_a_folder_that_cannot_be_written_is_no_failure(tree):
    (tree / "bpaccel/native/lib").write_text("a file")
    done = _editable(tree)
    assert "The kernels were not built, and the package cannot keep the reason" in done.stdout + done.stderr


def test_a_wheel_from_the_source_distribution_has_the_kernels(tree, tmp_path):
    _ziglang()
    run(tree, "bpaccel.native.build")
    done = run(tree, "hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    assert not (unpacked / "bpaccel/native/lib").exists()
    assert native.fingerprint(unpacked / "bpaccel") == native.fingerprint(tree / "bpaccel")
    assert wheel(unpacked) == wheel(tree)
