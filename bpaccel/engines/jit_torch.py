"""The core compiled by torch.compile: a step in one call, its element-wise work fused.

torch.compile needs a compiler for the device: of C++ on a processor, Triton on a GPU. Whether there is one is found out
by trying; without it, and for functions that torch cannot compile, the same blocks are computed eagerly.
"""

import functools
import logging
import threading
import warnings

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bpaccel.engines.blocked import core_sums
from bpaccel.engines.jit import Jit

log = logging.getLogger("bpaccel")


class TorchJit(Jit):
    """The core, compiled by torch.compile: a whole step where a batch fits one block, else block by block."""

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        trouble = _trouble(rows.backend.device.type)
        self.compiles = trouble is None
        self.note = "" if self.compiles else f"torch.compile does not work here ({trouble}), so it computes eagerly"

    def block(self, weights, X, y, w):
        if not self.compiles:
            return super().block(weights, X, y, w)
        return _sums(self.objective, len(X), self.rows.dtype, w is None)(weights, X, y, w)

    def run(self, weights, solver, state, batches, rates, step):
        # With many blocks a step, what is between them counts little. Only the last batch may be shorter.
        if not self.compiles or batches.stops[0] - batches.starts[0] > self.block_rows:
            return super().run(weights, solver, state, batches, rates, step)
        rows = []
        # As 0-D arrays, since numbers would be compiled in.
        numbers = torch.tensor([[*rates], range(step, step + len(rates))], dtype=torch.float64)
        for start, stop, rate, t in zip(batches.starts, batches.stops, *numbers):
            X, y, w = self.rows.read(start, stop, batches.order)
            one = _step(self.objective, solver, len(X), self.rows.dtype, w is None)
            weights, state, totals = one(weights, state, X, y, w, rate, t)
            rows.append(totals)
        return weights, state, torch.stack(rows)


# Cached by what is computed, not by the engine: a second training of the same net compiles nothing. Each size of a
# batch is compiled for itself, as JAX does it: there are few, and the weight of the rows is a number in the code.
@functools.lru_cache(maxsize=64)
def _sums(objective, size, dtype, unweighted):
    """A compiled `core_sums`."""
    return _Compiled(functools.partial(core_sums, objective))


@functools.lru_cache(maxsize=64)
def _step(objective, solver, size, dtype, unweighted):
    """A compiled step: ``(weights, state, X, y, w, rate, t) -> (weights, state, totals (4,))``."""

    def step(weights, state, X, y, w, rate, t):
        sums = core_sums(objective, weights, X, y, w)
        updates, penalty = objective.finish(weights, sums)
        weights, state = solver.step(weights, updates, state, rate, t)
        return weights, state, torch.cat([sums.totals, penalty[None]])

    return _Compiled(step)


class _Compiled:
    """A function, compiled for the shapes of its first call; the function itself where that fails."""

    def __init__(self, function):
        self._function, self._compiled, self._lock = function, None, threading.Lock()

    def __call__(self, *args):
        if self._compiled is None:
            with self._lock:
                return self._first(args) if self._compiled is None else self._compiled(*args)
        return self._compiled(*args)

    def _first(self, args):
        try:
            with _quietly():
                # Traced with arrays that have no values: what asks for one, as `if` does, fails here. torch.compile's
                # own way, from bytecode, is stopped by array-api-compat's promotion of numbers.
                graph = make_fx(self._function, tracing_mode="fake")(*args)
                compiled = torch.compile(graph, dynamic=False)
                result = compiled(*args)
        except Exception as error:  # compilers fail in many ways; what is wrong with the function itself is raised here
            compiled, result = self._function, self._function(*args)
            log.warning("engine jit: computed eagerly, for torch.compile failed: %s", _first_line(error))
        self._compiled = compiled
        return result


@functools.cache
def _trouble(device):
    """Why nothing can be compiled for a type of device, in the compiler's words; None if it can."""
    try:
        with _quietly():
            torch.compile(lambda x: x + 1.0)(torch.ones(2, device=device))
    except Exception as error:
        return _first_line(error)
    return None


class _quietly(warnings.catch_warnings):
    """Without warnings of how torch compiles; one thread at a time, since the filters are the process's."""

    _one = threading.Lock()

    def __enter__(self):
        self._one.acquire()
        super().__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error):
        super().__exit__(*error)
        self._one.release()


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__
