"""A copy of the package and its tests with kernels of its own: compiled by another compiler, or broken on purpose."""

import os
import platform
import shutil
import sys
from pathlib import Path

from bpaccel import native
from bpaccel.formulas import rows
from bpaccel.native import build

ROOT = Path(__file__).parents[2]


class Checkout:
    """A copy in a folder. Its kernels are of the lowest level of this processor: others are not there.

    Parameters
    ----------
    folder : pathlib.Path
    """

    def __init__(self, folder):
        self.folder = folder
        for part in ("bpaccel", "tests"):
            unwanted = shutil.ignore_patterns("__pycache__", "lib")
            shutil.copytree(ROOT / part, folder / part, ignore=unwanted, dirs_exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.target = build.TARGETS[build.host()]
        self.library = next(one for one in reversed(self.target.libraries) if one is not build.LEVEL)

    def replace(self, file, old, new):
        """Replace a text that a file of the package must have once.

        Raises
        ------
        ValueError
            If it has it not, or several times.
        """
        path = self.folder / "bpaccel" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} must have a text once to be replaced; it has it {text.count(old)} times: {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")

    def build(self, compile):
        """Build the kernels; ``compile`` takes the folder of their sources and the fingerprint, and returns a path."""
        package = self.folder / "bpaccel"
        sources, libraries = self.folder / "sources", package / "native" / "lib"
        sources.mkdir(exist_ok=True)
        for path in (*package.glob("native/*.hpp"), *package.glob("native/*.cpp")):
            shutil.copy(path, sources)
        (sources / "rows.hpp").write_text(rows.header(), encoding="utf-8")
        built = compile(str(sources), native.fingerprint(str(package)))
        libraries.mkdir(exist_ok=True)
        shutil.copy(built, libraries / Path(native.library(self.library.name)).name)
        if build.LEVEL in self.target.libraries:
            shutil.copy(native.library("level"), libraries)
        digests = [f"{native.digest(path)}  {path.name}\n" for path in libraries.iterdir() if path.name != native.SUMS]
        (libraries / native.SUMS).write_text("".join(digests), encoding="utf-8")

    def environment(self, **more):
        """What its processes get: this package in place of the installed one, and its only level."""
        paths = os.pathsep.join(map(str, (self.folder, self.folder / "tests/native")))
        return {**os.environ, "PYTHONPATH": paths, "BPACCEL_LEVEL": self.library.name, **more}


def described():
    """The processor, Python and compilers of this machine, in words."""
    return f"{platform.machine()}, Python {platform.python_version()}, {sys.platform}"
