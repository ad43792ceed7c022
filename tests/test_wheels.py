"""The wheels that `make wheels` has made: what their libraries need, whether they can be made again, whether one runs.

The variable BPACCEL_WHEELS names their folder. Libraries are read as the formats of three systems lay them out.
"""

import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from bpaccel import native
from bpaccel.native import build

ROOT = Path(__file__).parents[1]


@dataclass
class Symbols:
    """What a library asks of others: their names, and symbols; and the symbols that it gives."""

    needed: list = field(default_factory=list)
    undefined: set = field(default_factory=set)
    exported: set = field(default_factory=set)


def _text(data, at):
    return data[at : data.index(b"\0", at)].decode()


def read_elf(data):
    """A library of Linux: 64 bits, little-endian."""
    found = Symbols()
    (table,), (size, count) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 58)
    # type, offset, bytes, index of the section with its names
    sections = [struct.unpack_from("<4xI16xQQI", data, table + i * size) for i in range(count)]
    for kind, offset, length, link in sections:
        if kind == 11:  # SHT_DYNSYM
            for at in range(offset + 24, offset + length, 24):
                name, _, _, section = struct.unpack_from("<IBBH", data, at)
                chosen = found.exported if section else found.undefined
                chosen.add(_text(data, sections[link][1] + name))
        if kind == 6:  # SHT_DYNAMIC
            entries = [struct.unpack_from("<QQ", data, at) for at in range(offset, offset + length, 16)]
            found.needed += [_text(data, sections[link][1] + value) for tag, value in entries if tag == 1]
    return found


def read_macho(data):
    """A library of macOS: 64 bits."""
    found = Symbols()
    (count,), at = struct.unpack_from("<I", data, 16), 32
    for _ in range(count):
        command, length = struct.unpack_from("<II", data, at)
        if command & 0xFF == 0x0C:  # LC_LOAD_DYLIB
            found.needed.append(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        if command == 0x02:  # LC_SYMTAB
            table, symbols, names = struct.unpack_from("<III", data, at + 8)
            for i in range(symbols):
                name, kind = struct.unpack_from("<IB", data, table + 16 * i)
                word = _text(data, names + name).removeprefix("_")
                if kind & 0x01 and not word.startswith("_"):  # for others, and no name of the linker's own
                    (found.exported if kind & 0x0E else found.undefined).add(word)
        at += length
    return found


def read_pe(data):
    """A library of Windows: 64 bits."""
    found = Symbols()
    (head,) = struct.unpack_from("<I", data, 60)
    sections, size = struct.unpack_from("<H12xH", data, head + 6)
    optional = head + 24
    table = [struct.unpack_from("<8xIIII", data, optional + size + 40 * i) for i in range(sections)]

    def place(address):
        [at] = [
            offset + address - start for length, start, stored, offset in table if start <= address < start + stored
        ]
        return at

    def directory(number):
        return struct.unpack_from("<II", data, optional + 112 + 8 * number)

    exports, _ = directory(0)
    if exports:
        count, names = struct.unpack_from("<24xI4xI", data, place(exports))
        addresses = struct.unpack_from(f"<{count}I", data, place(names))
        found.exported |= {_text(data, place(address)) for address in addresses}
    for number, width in ((1, 20), (13, 32)):  # imports, and those that are first looked for when they are called
        start, _ = directory(number)
        while start and (name := struct.unpack_from("<I", data, place(start) + (12 if number == 1 else 4))[0]):
            found.needed.append(_text(data, place(name)))
            start += width
    return found


READERS = {"linux": read_elf, "macos": read_macho, "windows": read_pe}
# No library for macOS is linked without libSystem; the loader takes this one function from it, the kernels nothing.
NEEDED = {"linux": [], "macos": ["/usr/lib/libSystem.B.dylib"], "windows": []}
UNDEFINED = {"linux": set(), "macos": {"dyld_stub_binder"}, "windows": set()}


@pytest.mark.parametrize("name", build.TARGETS)
def test_the_readers_see_what_a_library_needs(name, tmp_path):
    """A library that calls a function from elsewhere, made so on purpose, is told from one that does not."""
    pytest.importorskip("ziglang")
    target = build.TARGETS[name]
    zig = [sys.executable, "-m", "ziglang"]
    public, entry, elsewhere = '__attribute__((visibility("default")))', [], []
    if target.system == "macos":
        elsewhere = ["-undefined", "dynamic_lookup"]
    if target.system == "windows":
        public, entry, elsewhere = "__declspec(dllexport)", ["-Wl,--no-entry"], ["libother.a"]
        (tmp_path / "other.def").write_text("LIBRARY other.dll\nEXPORTS\nstrange\n")
        machine = "i386:x86-64" if "x86_64" in target.zig else "arm64"
        subprocess.run([*zig, "dlltool", "-m", machine, "-d", "other.def", "-l", *elsewhere], cwd=tmp_path, check=True)

    def library(text, *options):
        (tmp_path / "own.cpp").write_text(text)
        flags = ["-target", target.zig, "-nostdlib", "-shared", "-s", *entry]
        subprocess.run([*zig, "c++", *flags, "own.cpp", *options, "-o", "own"], cwd=tmp_path, check=True)
        return READERS[target.system]((tmp_path / "own").read_bytes())

    own = f'extern "C" {public} int bp_own() {{ return 1; }}\n'
    taken = f'extern "C" int strange(); extern "C" {public} int bp_taken() {{ return strange(); }}\n'
    before, after = library(own), library(own + taken, *elsewhere)
    assert before.exported == {"bp_own"}
    assert after.exported == {"bp_own", "bp_taken"}
    assert before.needed == NEEDED[target.system]
    assert before.undefined == UNDEFINED[target.system]
    if target.system == "windows":
        assert after.needed == ["other.dll"]
    else:
        assert after.undefined - before.undefined == {"strange"}


# --- the wheels ---


@pytest.fixture(scope="session")
def wheels():
    """The paths of all wheels."""
    folder = os.environ.get("BPACCEL_WHEELS")
    if not folder:
        pytest.skip("wheels: `make wheels` makes them, and runs this")
    return sorted(Path(folder).resolve().glob("*.whl"))


@pytest.fixture(params=build.TARGETS)
def target(request):
    return request.param


@pytest.fixture
def wheel(wheels, target):
    """The path of one."""
    [path] = [path for path in wheels if path.name.endswith(f"-py3-none-{build.TARGETS[target].platforms}.whl")]
    return path


@pytest.fixture
def files(wheel):
    """What lies in its folder of libraries, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {Path(n).name: archive.read(n) for n in archive.namelist() if n.startswith("bpaccel/native/lib/")}


@pytest.fixture
def libraries(files):
    return {name: content for name, content in files.items() if name != native.SUMS}


def test_there_is_one_for_each_target(wheels):
    platforms = {path.name.partition("-py3-none-")[2].removesuffix(".whl") for path in wheels}
    assert platforms == {target.platforms for target in build.TARGETS.values()}


def test_it_is_below_a_megabyte_and_has_nothing_but_its_libraries(wheel, files, libraries, target):
    assert wheel.stat().st_size < 10**6
    kind = build.TARGETS[target]
    assert set(libraries) == {library.name + native.SUFFIXES[kind.system] for library in kind.libraries}
    sums = {line.split()[1]: line.split()[0] for line in files[native.SUMS].decode().splitlines()}
    assert sums == {name: sha256(content).hexdigest() for name, content in libraries.items()}


def test_its_libraries_are_of_its_sources_and_need_nothing(libraries, target):
    system = build.TARGETS[target].system
    for name, content in libraries.items():
        symbols = READERS[system](content)
        assert symbols.needed == NEEDED[system], name
        assert symbols.undefined <= UNDEFINED[system], name
        if name.startswith("level"):
            assert symbols.exported == {"bp_level"}
        else:
            assert {"bp_sources", "bp_table"} <= symbols.exported
            assert all(symbol.startswith("bp_") for symbol in symbols.exported), symbols.exported
            assert native.fingerprint().encode() in content


def test_it_names_no_path_of_the_machine_that_built_it(libraries):
    places = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
    for name, content in libraries.items():
        for place in places:
            assert place.encode() + os.sep.encode() not in content, f"{place} in {name}"
        assert not re.search(rb"kernels\.cpp|bpaccel-build|[\w.]+\.hpp|\.o(bj)?\0", content), name


def test_it_is_made_again_from_the_source_distribution(wheel, target, unpacked, tmp_path):
    """The same bytes: in another folder, of the files that were distributed."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=unpacked, env={**os.environ, "BPACCEL_TARGET": target}, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.fixture(scope="session")
def unpacked(wheels, tmp_path_factory):
    """The folder of the source distribution."""
    [path] = wheels[0].parent.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    [inside] = folder.iterdir()
    return inside


def test_the_one_for_this_machine_is_taken_by_pip_without_a_network(wheels, tmp_path):
    if build.host() is None:
        pytest.skip("no kernels are built for this processor and system")
    name = wheels[0].name.partition("-")[0]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*command, "--find-links", str(wheels[0].parent), name], check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, str(ROOT / "tests/trains.py")], cwd=tmp_path, env=env, check=True)
