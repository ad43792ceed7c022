"""Builds the library of compiled kernels: ``python -m bpaccel.native.build``, which is ``make native``.

Two compilers serve: a clang of the system, or the one in the package `ziglang`. Neither a C library nor Python is
linked, so one file serves every Python on every distribution. This module needs the standard library alone, for it runs
where the package is installed from its sources (`hatch_build.py`).
"""

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bpaccel import native

# The version that was tried: a later one may lack Clang.
ZIGLANG = "ziglang==0.17.1"
SECONDS = 900  # after which a compiler counts as hung

# Every compiler gives the same numbers, for no multiplication and addition are fused but the written ones; and the file
# loads everywhere, for it needs no symbol from elsewhere.
FLAGS = [
    "-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector",
    "-fvisibility=hidden", "-nostdlib", "-nostdinc", "-shared", "-s", "-g0",
    "-Wall", "-Wno-psabi", "-Wno-unused-local-typedef",
]  # fmt: skip
SYSTEM_FLAGS = {
    "linux": ["-fPIC", "-Wl,-z,defs", "-Wl,--build-id=none"],
    "macos": ["-fPIC", "-fno-builtin"],  # or loops that fill memory become calls of libSystem
    "windows": ["-Wl,--no-entry"],
}
ZIG_FLAGS = ["-fno-sanitize=all"]  # Zig's own default checks for undefined behaviour
# Apple's linker makes no library without libSystem.
CLANG_FLAGS = {"linux": [], "macos": ["-lSystem"], "windows": []}


@dataclass(frozen=True)
class Library:
    """One file to be built: its name without the ending, its source, and the flags of the processors that run it."""

    name: str
    source: str
    zig: tuple[str, ...] = ()
    clang: tuple[str, ...] = ()


# Clang prefers 256 bits on some processors that have 512.
_WIDE = "-mprefer-vector-width=512"
V4 = Library("v4", "kernels.cpp", ("-mcpu=x86_64_v4", _WIDE), ("-march=x86-64-v4", _WIDE))
V3 = Library("v3", "kernels.cpp", ("-mcpu=x86_64_v3",), ("-march=x86-64-v3",))
LEVEL = Library("level", "level.cpp", ("-mcpu=x86_64",), ("-march=x86-64",))
# Atomic operations are written out: calls of them would need the compiler's own library.
ARM64 = Library("arm64", "kernels.cpp", ("-mno-outline-atomics",), ("-march=armv8-a", "-mno-outline-atomics"))


@dataclass(frozen=True)
class Target:
    """A system and a processor that libraries are built for.

    `zig` is Zig's name of the target, `platforms` are the tags of its wheel, and `ziglang` is a tag of the wheel that
    the compiler itself comes in.
    """

    system: str
    zig: str
    libraries: tuple[Library, ...]
    platforms: str
    ziglang: str


TARGETS = {
    "linux-x86_64": Target(
        "linux", "x86_64-linux-none", (V4, V3, LEVEL),
        "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64", "manylinux_2_12_x86_64.musllinux_1_1_x86_64",
    ),
    "linux-aarch64": Target(
        "linux", "aarch64-linux-none", (ARM64,),
        "manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
        "manylinux_2_17_aarch64.musllinux_1_1_aarch64",
    ),
    # No v4: see level.cpp.
    "macos-x86_64": Target(
        "macos", "x86_64-macos.10.9", (V3, LEVEL), "macosx_10_9_x86_64", "macosx_13_0_x86_64",
    ),
    "macos-arm64": Target("macos", "aarch64-macos.11.0", (ARM64,), "macosx_11_0_arm64", "macosx_13_0_arm64"),
    "windows-amd64": Target("windows", "x86_64-windows-gnu", (V4, V3, LEVEL), "win_amd64", "win_amd64"),
    "windows-arm64": Target("windows", "aarch64-windows-gnu", (ARM64,), "win_arm64", "win_arm64"),
}  # fmt: skip

# What kernels ask of a compiler beyond C++17: each builtin of theirs, in vectors of the widest size, and a link.
TRIAL = """
typedef float Floats __attribute__((ext_vector_type(32)));
typedef double Doubles __attribute__((ext_vector_type(16)));
typedef double Half __attribute__((ext_vector_type(8)));
template <class V> static inline V root(V v) {
    if constexpr (sizeof(V) == 128) return __builtin_elementwise_sqrt(__builtin_elementwise_fma(v, v, v));
    else return v;
}
extern "C" __attribute__((visibility("default"))) void trial(const Floats* x, const Doubles* y, Half* out) {
    __builtin_prefetch(y);
    Floats a = root(*x);
    Doubles b = root(*y) + __builtin_convertvector(__builtin_shufflevector(a, a, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20,
                                                                         22, 24, 26, 28, 30), Doubles);
    *out = __builtin_shufflevector(b, b, 0, 1, 2, 3, 4, 5, 6, 7)
           + (double)__builtin_bit_cast(long long, __builtin_sqrt(__builtin_fma(b[0], b[1], b[2])))
           + __builtin_bit_cast(int, __builtin_sqrtf(__builtin_fmaf(a[0], a[1], a[2])))
           + __builtin_ctzll((unsigned long long)a[3]);
#ifdef __x86_64__
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040u);
#endif
}
"""


class BuildError(Exception):
    """The library could not be built; the message is one sentence."""


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C++; `zig` says whether it is Zig's, which takes other names of processors."""

    name: str
    command: tuple[str, ...]
    zig: bool = False

    def compile(self, target, library, folder, source, sources=""):
        """Compile the file ``source`` in ``folder`` to ``library`` of a `Target`; returns the path of the result.

        ``sources`` is the fingerprint that the library is to say.
        """
        file = library.name + native.SUFFIXES[target.system]
        own = [*ZIG_FLAGS, "-target", target.zig, *library.zig] if self.zig else [*library.clang]
        after = [] if self.zig else CLANG_FLAGS[target.system]
        flags = [*FLAGS, *SYSTEM_FLAGS[target.system], *own, f'-DBPACCEL_SOURCES="{sources}"']
        # Names without folders: no path of this machine gets into the file.
        command = [*self.command, *flags, source, "-o", file, *after]
        cache = os.path.join(folder, "cache")
        env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache, "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise BuildError(f"{self.name} could not be run for level {library.name}: {failure}.") from failure
        path = os.path.join(folder, file)
        if done.returncode or not os.path.exists(path):
            said = _first_error(done.stderr + done.stdout) or f"exit status {done.returncode}"
            raise BuildError(f"{self.name} could not compile {source} for level {library.name}: {said}.")
        if done.stderr:
            print(done.stderr, file=sys.stderr)  # warnings
        return path


def host():
    """The name in `TARGETS` of this Python's system and processor, or None where there is none."""
    if sys.maxsize < 2**32:
        return None
    # On Windows the processor's own name is not that of a Python that it emulates.
    machine = sysconfig.get_platform().partition("-")[2] if sys.platform == "win32" else platform.machine()
    name = f"{native.system()}-{machine.lower()}"
    return name if name in TARGETS else None


def find_compiler(name=None):
    """The compiler for a target: a clang of the system that passes a trial, or else Zig's.

    A target that is ``name``d is always built by Zig's, which builds for all of them, and the same bytes everywhere.
    """
    rejected = []
    if name is None:
        target, asked = TARGETS[host()], os.environ.get("BPACCEL_CXX", "").strip()
        for compiler in _asked(asked) if asked else _clangs():
            try:
                _try(compiler, target)
            except BuildError as failure:
                rejected.append(str(failure))
            else:
                return compiler
        if asked:
            raise BuildError(
                f"BPACCEL_CXX must name a clang++ that compiles the kernels, as version 18 does: {rejected[0]}"
            )
    if importlib.util.find_spec("ziglang"):
        return Compiler("ziglang", (sys.executable, "-m", "ziglang", "c++"), zig=True)
    found = rejected[0] if rejected else "No clang++ is in PATH."
    raise BuildError(
        f"There was no compiler: neither a clang++ of version 18 or later, nor the package {ZIGLANG}. {found} "
        f"Install {ZIGLANG} with pip, then run: python -m bpaccel.native.build"
    )


def requirements(name=None, tags=()):
    """What the build needs to have installed: a list of at most one requirement, for a target or for this machine.

    ``tags`` are the platforms whose wheels this Python takes.
    """
    if host() is None or not set(TARGETS[host()].ziglang.split(".")) & set(tags):
        return []
    try:
        compiler = find_compiler(name)
    except BuildError:
        return [] if name is None and os.environ.get("BPACCEL_CXX") else [ZIGLANG]
    return [ZIGLANG] if compiler.zig else []


def build(name=None, out=native.LIBRARIES):
    """Build the libraries of a target, or of this machine, into the folder ``out``.

    Each file is replaced at once and whole: a process that has loaded the old one keeps it.

    Returns
    -------
    list of str
        The paths of the files.

    Raises
    ------
    BuildError
        For a machine without a target, without a compiler, or sources that cannot be compiled.
    OSError
        Where ``out`` cannot be written.
    """
    if name is None and host() is None:
        raise BuildError(
            f"There are no kernels for {sysconfig.get_platform()}: they are built for {', '.join(TARGETS)}."
        )
    if name is not None and name not in TARGETS:
        raise BuildError(f"The target must be one of {', '.join(TARGETS)}; it was {name!r}.")
    target, compiler = TARGETS[name or host()], find_compiler(name)
    sources = native.fingerprint()  # before they are read: what changes meanwhile makes the library a stale one
    with tempfile.TemporaryDirectory(prefix="bpaccel-build-", ignore_cleanup_errors=True) as folder:
        copy_sources(folder)
        built = _at_once(lambda it: compiler.compile(target, it, folder, it.source, sources), target.libraries)
        os.makedirs(out, exist_ok=True)
        paths = [_replace(path, out) for path in built]
        _replace(_sums(paths, out, folder), out)
    Path(out, "reason.txt").unlink(missing_ok=True)
    return paths


def _sums(paths, out, folder):
    """Write the digests of libraries beside those that ``out`` has of other targets; returns the path of the file."""
    sums = native.sums(out) | {os.path.basename(path): native.digest(path) for path in paths}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    Path(folder, native.SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
    return os.path.join(folder, native.SUMS)


def copy_sources(folder):
    """What is compiled: the files as they are, and the rows of activations and losses as they print themselves."""
    from bpaccel.formulas import rows

    for name in native.sources():
        if name.endswith((".hpp", ".cpp")):
            shutil.copy(os.path.join(native.PACKAGE, name), folder)
    Path(folder, "rows.hpp").write_text(rows.header(), encoding="utf-8", newline="\n")


def _replace(new, out):
    """Put a file into the folder ``out``, at once and whole; returns its path there."""
    path = os.path.join(out, os.path.basename(new))
    # Copied first, for only within one file system is a file replaced at once.
    with tempfile.NamedTemporaryFile(dir=out, prefix=".", delete=False) as copy:
        pass
    try:
        shutil.copyfile(new, copy.name)
        os.chmod(copy.name, 0o644)
        os.replace(copy.name, path)
    except BaseException:
        os.unlink(copy.name)
        raise
    return path


def _at_once(function, items):
    """The results in order; several compilers run at a time, one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, len(items))) as pool:
        return list(pool.map(function, items))


def _asked(command):
    return [Compiler(command, tuple(shlex.split(command, posix=os.name == "posix")))]


def _clangs():
    """Each clang++ in PATH. On Windows none is looked for: there they link with a C library only."""
    if sys.platform == "win32":
        return
    tools = ["/usr/bin/xcode-select", "-p"]
    if sys.platform == "darwin" and subprocess.run(tools, capture_output=True, check=False).returncode:
        return  # the clang++ of macOS without its tools is a window that offers them
    for name in ["clang++", *(f"clang++-{version}" for version in range(40, 17, -1))]:
        if path := shutil.which(name):
            yield Compiler(name, (path,))


def _try(compiler, target):
    """Compile and link a small text with all that the kernels need, for each level."""
    kernels = [library for library in target.libraries if library is not LEVEL]
    with tempfile.TemporaryDirectory(prefix="bpaccel-build-", ignore_cleanup_errors=True) as folder:
        Path(folder, "trial.cpp").write_text(TRIAL, encoding="utf-8")
        _at_once(lambda library: compiler.compile(target, library, folder, "trial.cpp"), kernels)


def _first_error(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines or [""])[0].rstrip(".")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bpaccel.native.build", description="Build the compiled kernels.")
    parser.add_argument("--target", choices=list(TARGETS), help="a system and processor, if not this one")
    parser.add_argument("--out", default=native.LIBRARIES, metavar="DIR", help="where they go, if not into the package")
    parser.add_argument("--targets", action="store_true", help="print the names of all targets, and build nothing")
    chosen = parser.parse_args(arguments)
    if chosen.targets:
        print(*TARGETS)
        return 0
    try:
        for path in build(chosen.target, chosen.out):
            print(path)
    except (BuildError, OSError) as failure:
        print(f"The kernels were not built. {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
