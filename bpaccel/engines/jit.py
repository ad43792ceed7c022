"""The core, compiled by the library that the arrays belong to."""

import importlib

from bpaccel.engines import Engine
from bpaccel.engines.blocked import Blocked, core_sums

# Array library -> who calls its compiler: a module that is imported when its library is met.
COMPILERS = {"jax": "bpaccel.engines.jit_jax:JaxJit", "torch": "bpaccel.engines.jit_torch:TorchJit"}


class Jit(Engine):
    """The core, compiled by the arrays' own library: jax.jit or torch.compile.

    The solver's own `step` is compiled with it, so that a solver must be pure, as its contract says.
    """

    name = "jit"

    def __new__(cls, objective, rows, threads=None):
        if cls is Jit:
            module, _, attribute = COMPILERS[rows.backend.library.name].partition(":")
            cls = getattr(importlib.import_module(module), attribute)
        return super().__new__(cls)

    @classmethod
    def refuses(cls, objective, rows, solver):
        if rows.backend.library.name not in COMPILERS:
            return (f"it compiles arrays of {' and '.join(COMPILERS)}, and these are on {rows.backend.name}. "
                    "Use backend='jax', or engine='auto'.")  # fmt: skip
        if rows.arrays is None:
            return f"the rows are not all in memory on {rows.backend.name}. Use engine='blocked'."
        return None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return Blocked.rows_of_a_block(objective, rows)

    def block(self, weights, X, y, w):
        return core_sums(self.objective, weights, X, y, w)
