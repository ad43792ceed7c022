"""The compiled kernels: where the library lies, and which sources it must have been built from.

`kernels.cpp`, the headers beside it and the printed rows of activations and losses are one library, built once for each
level of instructions that processors have. `bpaccel.native.build` builds them when the package is installed.
"""

import os
import sys

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARIES = os.path.join(PACKAGE, "native", "lib")
SUMS = "sums.txt"  # of the libraries beside it, as the command sha256sum writes them

SUFFIXES = {"linux": ".so", "macos": ".dylib", "windows": ".dll"}
_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}


def system():
    """The name of this operating system in `SUFFIXES`, or None where the library is not built for it."""
    return _SYSTEMS.get(sys.platform)


def library(level):
    """The path of a library on this system, where there need not be a file; None on a system that has none.

    ``level`` is ``"v4"``, ``"v3"`` or ``"arm64"``; or ``"level"``, the library that says which of the first two an
    x86-64 processor runs.
    """
    return os.path.join(LIBRARIES, level + SUFFIXES[system()]) if system() else None


def reason():
    """The sentence that says why the installation built no library; empty where it built one, or says nothing."""
    try:
        with open(os.path.join(LIBRARIES, "reason.txt"), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def sums(folder):
    """The SHA-256 of each library that was built into a folder, by name; empty where none was."""
    try:
        with open(os.path.join(folder, SUMS), encoding="utf-8") as file:
            return {name: digits for digits, name in (line.split() for line in file)}
    except (OSError, ValueError):
        return {}


def digest(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    from hashlib import sha256  # NumPy's random numbers have loaded it already, where a network is

    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()


def is_whole(path):
    """Whether a library is the file that was built: to load one that was cut would end the process."""
    try:
        return sums(os.path.dirname(path)).get(os.path.basename(path)) == digest(path)
    except OSError:
        return False


def sources(package=PACKAGE):
    """The files that decide what the library computes: sorted paths, with ``/``, relative to the package's folder."""

    def listed(folder, *endings):
        return [f"{folder}/{name}" for name in os.listdir(os.path.join(package, folder)) if name.endswith(endings)]

    chosen = ["activations.py", "losses.py", "native/build.py"]
    return sorted([*chosen, *listed("native", ".hpp", ".cpp"), *listed("formulas", ".py")])


def fingerprint(package=PACKAGE):
    """16 hexadecimal digits of the SHA-256 over names and contents of `sources`, the same for both kinds of line ends.

    The library says by ``bp_sources()`` which ones it was built from. It takes less than a millisecond.
    """
    from hashlib import sha256

    hashed = sha256()
    for name in sources(package):
        with open(os.path.join(package, name), "rb") as file:
            text = file.read().replace(b"\r\n", b"\n")
        hashed.update(b"%s\0%d\0%s" % (name.encode(), len(text), text))
    return hashed.hexdigest()[:16]
