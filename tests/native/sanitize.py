"""Our kernels under sanitizers: out of bounds and undefined behaviour, and races.

    python tests/native/sanitize.py [--cases N]

g++ compiles a copy of the kernels for each sanitizer. First, faults that are planted must be reported: an overrun of a
NumPy array and of the kernels' own memory by one number, an overflow, a race. Then some cases of the fuzz and some
tests must pass.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkout import Checkout

from bpaccel.native import build

# As the kernels are compiled elsewhere, but for speed. Of undefined behaviour g++ does not look for what the processor
# itself reports, or what is meant: numbers at any address.
FLAGS = [
    "-std=c++17", "-O1", "-g1", *(["-march=x86-64-v3"] if build.host() == "linux-x86_64" else []), "-ffp-contract=off",
    "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fPIC", "-shared", "-DHOSTED", "-Wall",
    "-Wno-psabi",
]  # fmt: skip
# The networks that are written out take half of the time to compile. These have all that others have.
NETWORKS = """using Networks = List<
    Network<S, S, loss::squared_error, false, 3, 1>, Network<S, S, loss::squared_error, false, 3, 4, 1>,
    Network<activation::tanh, S, loss::log_loss, true, 2, 4, 1>>;
"""
SECONDS = 900  # after which a process counts as hung
PLANTED_SOURCE = """
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC double beyond(const double* x, long long n) { return x[n]; }
PUBLIC int overflow(int x) { return x + 1; }
static int come;
PUBLIC void race(volatile long long* x) {
    __atomic_fetch_add(&come, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&come, __ATOMIC_RELAXED) < 2) {}  // both are there, and nothing is ordered
    for (int k = 0; k < 1000; k++) *x = *x + 1;
}
"""
# By sanitizer: the name of the report, and what is done for it.
PLANTED = {
    "address": [
        ("heap-buffer-overflow", "loaded.beyond(at(np.zeros(3)), 3)"),
        ("heap-buffer-overflow", "loaded.beyond(at(np.zeros(3000)), 3000)"),
        ("heap-buffer-overflow", "loaded.beyond(at(memory.exact(800)), 100)"),
        ("heap-buffer-overflow", "loaded.beyond(at(memory.exact(800)), -1)"),
        ("signed integer overflow", "loaded.overflow(2**31 - 1)"),
    ],
    "thread": [
        ("data race", """
x = np.zeros(1, np.int64)
threads = [threading.Thread(target=loaded.race, args=(at(x),)) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Sanitizer:
    """Flags of g++, the library that must be in the process from its start, and what is run."""

    name: str
    flags: tuple[str, ...]
    library: str
    options: dict[str, str]
    fuzz: tuple[str, ...]
    tests: str

    def compile(self, folder, fingerprint, source="kernels.cpp"):
        """Compile a source in a folder; returns the path of the library."""
        path = Path(folder, f"{self.name}.so")
        command = ["g++", *FLAGS, *self.flags, f'-DBPACCEL_SOURCES="{fingerprint}"', source, "-o", str(path)]
        subprocess.run(command, cwd=folder, check=True, timeout=SECONDS)
        return path

    def run(self, checkout, *arguments, **kwargs):
        """Run Python in a `Checkout` whose kernels this one watches."""
        preload = subprocess.run(
            ["g++", f"-print-file-name={self.library}"], capture_output=True, text=True, check=True
        )
        environment = checkout.environment(
            LD_PRELOAD=preload.stdout.strip(), OPENBLAS_NUM_THREADS="1", BPACCEL_REQUIRE="fused", **self.options
        )
        # With gcc 12, that of threads needs addresses that are little randomised.
        return subprocess.run(
            [*_same_addresses(), sys.executable, *arguments], cwd=checkout.folder, env=environment, text=True,
            timeout=SECONDS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **kwargs,
        )  # fmt: skip


ADDRESS = Sanitizer(
    "address",
    ("-fsanitize=address,undefined", "-fno-sanitize=null,alignment,object-size,vptr,nonnull-attribute",
     "-fno-sanitize-recover=undefined"),
    "libasan.so",
    {"ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255",
     "UBSAN_OPTIONS": "print_stacktrace=1"},
    ("--cases", "500"),
    "any_number_of_columns or rows_are_read or products_of or (pass_the_conformance and float32) or no_rows",
)  # fmt: skip
THREAD = Sanitizer(
    "thread",
    ("-fsanitize=thread",),
    "libtsan.so",
    {"TSAN_OPTIONS": "exitcode=66 report_signal_unsafe=0"},
    ("--cases", "60", "--shared"),
    "mini_batches_have or many_blocks or (same_bits_for_any_threads and narrow)",
)


def _same_addresses():
    works = shutil.which("setarch") and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    return ["setarch", "-R"] if works else []


def fewer_networks(checkout):
    """Write out only NETWORKS."""
    path = checkout.folder / "bpaccel/native/kernels.cpp"
    text = path.read_text()
    first = text.index("using Networks = List<")
    last = text.index(">>;\n", first) + len(">>;\n")
    path.write_text(text[:first] + NETWORKS + text[last:])


def planted(sanitizer, checkout):
    """Exit unless each planted fault is reported."""
    (checkout.folder / "planted.cpp").write_text(PLANTED_SOURCE)
    path = sanitizer.compile(checkout.folder, "", "planted.cpp")
    for report, fault in PLANTED[sanitizer.name]:
        code = f"""
import ctypes, threading
import memory
import numpy as np
loaded = ctypes.CDLL({str(path)!r})
def at(array):
    return ctypes.c_void_p(array.ctypes.data)
loaded.beyond.restype, loaded.beyond.argtypes = ctypes.c_double, (ctypes.c_void_p, ctypes.c_int64)
{fault}
"""
        done = sanitizer.run(checkout, "-c", code)
        if done.returncode == 0 or report not in done.stdout:
            sys.exit(f"{sanitizer.name}: a planted fault was not reported: {report}, of {fault}\n{done.stdout}")


def checked(sanitizer, cases=None):
    """Build, and run all; returns what went wrong, or a line on how it went."""
    with tempfile.TemporaryDirectory(prefix="bpaccel-sanitize-") as folder:
        began = time.monotonic()
        checkout = Checkout(Path(folder))
        fewer_networks(checkout)
        checkout.build(sanitizer.compile)
        built = time.monotonic() - began
        planted(sanitizer, checkout)
        fuzz = sanitizer.fuzz if cases is None else ("--cases", str(cases), *sanitizer.fuzz[2:])
        tests = ("-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "memory",
                 "tests/test_engines_fused.py", "tests/test_engines_fused_wide.py", "-k", sanitizer.tests)  # fmt: skip
        said = []
        for command in (("tests/native/fuzz.py", *fuzz), tests):
            done = sanitizer.run(checkout, *command)
            if done.returncode or "Sanitizer" in done.stdout:
                return False, f"{sanitizer.name}: {' '.join(command)}\n{done.stdout[-20_000:]}"
            said.append(done.stdout.strip().splitlines()[-1])
        took = time.monotonic() - began
    return True, f"{sanitizer.name}: {'; '.join(said)} ({took:.0f} s, {built:.0f} of them to build)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, metavar="N", help="of the fuzz (default: 500, and 60 that threads share)")
    chosen = parser.parse_args()
    if shutil.which("g++") is None:
        sys.exit("The sanitizers of our kernels need g++, and it is not in PATH.")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda one: checked(one, chosen.cases), (ADDRESS, THREAD)))
    for _, said in results:
        print(said)
    return int(not all(right for right, _ in results))


if __name__ == "__main__":
    sys.exit(main())
