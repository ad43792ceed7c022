"""The table of engines, and which of them computes what."""

import importlib
import importlib.util
from itertools import pairwise

from bpaccel.engines import Engine
from bpaccel.solvers import Solver

# Each row is where an engine lives: a module is imported when its engine is asked for.
ENGINES = {
    "array": "bpaccel.engines.blocked:Array",
    "blocked": "bpaccel.engines.blocked:Blocked",
    "jit": "bpaccel.engines.jit:Jit",
    "numba": "bpaccel.engines.numba:Numba",
    "blas": "bpaccel.engines.blas:Blas",
    "cuda": "bpaccel.engines.cuda:Cuda",
    "wide": "bpaccel.engines.wide:Wide",
}


def find(name):
    """The engine class of a name; a class of your own is returned as it is."""
    if isinstance(name, type) and issubclass(name, Engine):
        return name
    if not isinstance(name, str) or name not in ENGINES:
        raise ValueError(f"`engine` must be auto, one of {', '.join(ENGINES)}, or a subclass of Engine; got {name!r}.")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(f"engine {name!r} needs {error.name}: pip install 'bpaccel[{error.name}]'.") from error


def refusal(kind, objective, rows, solver):
    """Why an engine class cannot do the work, with the remedy; None if it can."""
    if objective.dropout is not None and kind.dropped_block is None:
        return "it knows no dropout. Use engine='blocked'."
    return kind.refuses(objective, rows, solver)


def choose(name, objective, rows, solver, *, batch_rows, steps, threads=None):
    """An engine for the work, and why this one.

    Parameters
    ----------
    name : str or type
        ``"auto"``, a name of `ENGINES`, or a subclass of `Engine`.
    objective : Objective
    rows : Rows
    solver : Solver
    batch_rows : int
        Rows of a step.
    steps : int
        How many steps are to be taken.
    threads : int, optional

    Returns
    -------
    engine : Engine
    reason : str

    Raises
    ------
    ValueError
        If the engine does not exist, or refuses the work.
    """
    if name == "auto":
        name, reason = _automatic(objective, rows, solver, batch_rows, steps)
    else:
        reason = "asked for"
    kind = find(name)
    if reason_not := refusal(kind, objective, rows, solver):
        raise ValueError(f"engine {kind.name!r} cannot do this: {reason_not}")
    engine = kind(objective, rows, threads)
    return engine, f"{reason}; {engine.note}" if engine.note else reason


# What the calls of a step of NumPy's cost (37 us, 3-4-1), as multiplications of rows by weights that take as long (0.6
# ns, 64-32-10 with batches of 200); and the work, in the same unit, that NumPy needs 0.3 to 0.6 seconds for, and the
# compiled engine as long in a fresh process that finds its kernels on the disk. Below it, auto does not compile: that
# takes two to four seconds, once a machine.
STEP_COST = 2**15
COMPILED_WORK = 2**29
# torch.compile takes three to five seconds for each size of a batch, in a fresh process with nothing kept on the disk
# up to twenty, and then saves 0.2 ms a step and 5 to 9 ns for each unit of each row (3-4-1, 64-32-10, 28-300-1 and
# 784-128-10 on two cores). In units and rows, with what a step costs as so many more: the work that is brought from a
# minute to half of one.
TORCH_STEP_COST = 2**15
TORCH_WORK = 2**32
# From this many bytes of weights between two layers on, `blas` is as fast as `numba` or faster. It took 1.4 times as
# long for 784-128-10 in float32, 1.2 times for 784-512-10, 1.0 for 1024-1024-10 and 0.86 for 1500-1500-10; in float64
# 1.04 and 0.91 for 784-512-10 and 1024-1024-10 (two cores, AVX-512, 4,000 to 60,000 rows; with AVX2 alone 1.15, 1.04,
# 0.97, 0.82, 0.98 and 0.92).
BLAS_BYTES = 2**22


# Looks at the work alone, never at clocks or caches: the second run of a script gives the bits of the first.
def _automatic(objective, rows, solver, batch_rows, steps):
    library = rows.backend.library.name
    compilable = objective.known and objective.dropout is None
    block = find("blocked").rows_of_a_block(objective, rows)
    if compilable and find("cuda").refuses(objective, rows, solver) is None:
        return "cuda", f"the network fits in the registers of {rows.backend.name}, and each row is read once"
    if compilable and find("wide").refuses(objective, rows, solver) is None:
        return "wide", "cuBLAS and fused kernels pass over each layer once where the core makes a dozen arrays"
    if library == "numpy" and compilable and importlib.util.find_spec("numba"):
        sizes = [i * o for i, o in pairwise(objective.layer_sizes)]
        work = steps * (batch_rows * sum(sizes) + STEP_COST)
        if work >= COMPILED_WORK:
            worth = f"{steps:,} steps of {batch_rows:,} rows are worth compiling"
            if max(sizes) * (4 if rows.dtype == "float32" else 8) < BLAS_BYTES:
                return "numba", f"{worth}, and no layer is wide enough for BLAS"
            return "blas", f"{worth}, and a layer of {max(sizes):,} weights is wide enough for BLAS"
    if rows.arrays is None:
        return "blocked", "the rows are not all in memory on this backend, and are read block by block"
    if library == "jax" and steps > 1 and compilable and isinstance(solver, Solver):
        return "jit", f"JAX compiles the {steps:,} steps into one loop"
    if rows.backend.name == "torch" and compilable and isinstance(solver, Solver):  # on its CPU
        work = steps * (batch_rows * sum(objective.layer_sizes[1:]) + TORCH_STEP_COST)
        if work >= TORCH_WORK:
            return "jit", f"{steps:,} steps of {batch_rows:,} rows are worth compiling with torch.compile"
    if batch_rows <= block:
        return "array", f"a step's {batch_rows:,} rows fit one block of {block:,}"
    if rows.backend.name in ("numpy", "torch", "jax"):  # on their CPU
        return "blocked", f"a step's {batch_rows:,} rows are more than one block of {block:,}, which stays in the cache"
    return "array", f"{rows.backend.name} computes {batch_rows:,} rows best in whole passes"
