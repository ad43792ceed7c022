"""The table of engines, and which of them computes what."""

import importlib

from bpaccel.engines import Engine
from bpaccel.solvers import Solver

# Each row is where an engine lives: a module is imported when its engine is asked for.
ENGINES = {
    "array": "bpaccel.engines.blocked:Array",
    "blocked": "bpaccel.engines.blocked:Blocked",
    "jit": "bpaccel.engines.jit:Jit",
    "fused": "bpaccel.engines.cpu.fused:Fused",
    "cuda": "bpaccel.engines.cuda:Cuda",
    "wide": "bpaccel.engines.wide:Wide",
}

# Engines of earlier versions, and what goes on with their histories.
FORMER = {"numba": "fused", "blas": "fused"}


def successor(name):
    """The engine that goes on with a training of an engine, which an earlier version may have had."""
    return FORMER.get(name, name)


def find(name):
    """The engine class of a name; a class of your own is returned as it is."""
    if isinstance(name, type) and issubclass(name, Engine):
        return name
    if isinstance(name, str) and name in FORMER:
        raise ValueError(f"engine {name!r} is gone: use engine={FORMER[name]!r}, which takes its place.")
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


def choose(name, objective, rows, solver, *, batch_rows, steps, threads=None, prefer=None):
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
    prefer : str, optional
        The engine of the training that goes on: "auto" keeps it where it can, for the number of further steps must not
        change the bits.

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
        if prefer and (prefer := successor(prefer)) != name:
            why_not = _why_not(prefer, objective, rows, solver)
            kept = why_not is None
            name, reason = (prefer, "it began this training") if kept else (name, f"{reason}; engine {prefer!r}, which "
                            f"began this training, cannot go on with it: {why_not}")  # fmt: skip
    else:
        reason = "asked for"
    kind = find(name)
    if reason_not := refusal(kind, objective, rows, solver):
        raise ValueError(f"engine {kind.name!r} cannot do this: {reason_not}")
    engine = kind(objective, rows, threads)
    return engine, f"{reason}; {engine.note}" if engine.note else reason


def _why_not(name, objective, rows, solver):
    """Why the engine of an earlier training cannot do the work, in words; None if it can."""
    if name not in ENGINES:
        return "it is none of this version"
    try:
        return refusal(find(name), objective, rows, solver)
    except ImportError as error:
        return str(error)


# torch.compile takes three to five seconds for each size of a batch, in a fresh process with nothing kept on the disk
# up to twenty, and then saves 0.2 ms a step and 5 to 9 ns for each unit of each row (3-4-1, 64-32-10, 28-300-1 and
# 784-128-10 on two cores). In units and rows, with what a step costs as so many more: the work that is brought from a
# minute to half of one.
TORCH_STEP_COST = 2**15
TORCH_WORK = 2**32


# Looks at the work alone, never at clocks or caches: the second run of a script gives the bits of the first.
def _automatic(objective, rows, solver, batch_rows, steps):
    if rows.backend.library.name == "numpy":
        why_not = refusal(find("fused"), objective, rows, solver)
        if why_not is None:
            return "fused", "the rows are NumPy's, and the kernels know each activation and the loss"
        name, reason = _plain(objective, rows, solver, batch_rows, steps)
        return name, f"{reason}; engine 'fused' cannot do this: {why_not}"
    if refusal(find("cuda"), objective, rows, solver) is None:
        return "cuda", f"the network fits in the registers of {rows.backend.name}, and each row is read once"
    if refusal(find("wide"), objective, rows, solver) is None:
        return "wide", "cuBLAS and fused kernels pass over each layer once where the core makes a dozen arrays"
    return _plain(objective, rows, solver, batch_rows, steps)


def _plain(objective, rows, solver, batch_rows, steps):
    """The best of the engines that run the core's own functions, and why."""
    library, compilable = rows.backend.library.name, objective.known and objective.dropout is None
    if rows.arrays is None:
        return "blocked", "the rows are not all in memory on this backend, and are read block by block"
    if library == "jax" and steps > 1 and compilable and isinstance(solver, Solver):
        return "jit", f"JAX compiles the {steps:,} steps into one loop"
    if rows.backend.name == "torch" and compilable and isinstance(solver, Solver):  # on its CPU
        work = steps * (batch_rows * sum(objective.layer_sizes[1:]) + TORCH_STEP_COST)
        if work >= TORCH_WORK:
            return "jit", f"{steps:,} steps of {batch_rows:,} rows are worth compiling with torch.compile"
    block = find("blocked").rows_of_a_block(objective, rows)
    if batch_rows <= block:
        return "array", f"a step's {batch_rows:,} rows fit one block of {block:,}"
    if rows.backend.name in ("numpy", "torch", "jax"):  # on their CPU
        return "blocked", f"a step's {batch_rows:,} rows are more than one block of {block:,}, which stays in the cache"
    return "array", f"{rows.backend.name} computes {batch_rows:,} rows best in whole passes"
