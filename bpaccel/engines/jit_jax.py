"""The core compiled by JAX: many steps in one call, without Python between them."""

import functools
from itertools import pairwise

import numpy as np

from bpaccel.backends import dtype_name
from bpaccel.engines import Sums, fold
from bpaccel.engines.blocked import core_sums
from bpaccel.engines.jit import Jit


class JaxJit(Jit):
    """The core, compiled by jax.jit with its steps in a fori_loop.

    Batches of more rows than a block are summed block by block: faster, and more accurate than one float32 product.
    """

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self._order = None, None

    def _on_device(self, order):
        """An epoch's order, moved there once."""
        if self._order[0] is not order:
            self._order = order, self.rows.backend.asarray(order, "int32")
        return self._order[1]

    def run(self, weights, solver, state, batches, rates, step):
        backend, dtype = self.rows.backend, dtype_name(weights[0])
        order = None if batches.order is None else self._on_device(batches.order)
        # Steps of equal batches go together: a compiled loop has one size (an epoch's last batch may be short).
        sizes = np.subtract(batches.stops, batches.starts)
        edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(rates)]
        parts = []
        for first, end in pairwise(edges):
            count = end - first
            padding = (0, (1 << (count - 1).bit_length()) - count)  # few lengths, so that few are compiled
            starts = backend.asarray(np.pad(batches.starts[first:end], padding), "int32")
            some = backend.asarray(np.pad(rates[first:end], padding), dtype)
            loop = _compiled(self.objective, solver, int(sizes[first]), self.block_rows, backend.widest)
            weights, state, totals = loop(self.rows.arrays, weights, state, order, starts, some, step + first, count)
            parts.append(totals[:count])
        return weights, state, parts[0] if len(parts) == 1 else backend.xp.concat(parts, axis=0)


@functools.lru_cache(maxsize=64)
def _compiled(objective, solver, size, block_rows, wide):
    """A compiled loop over the steps of batches of ``size`` rows, in blocks that are added in dtype ``wide``.

    Cached by what it computes, not by the engine: a second training of the same net compiles nothing.
    """
    import jax
    import jax.numpy as jnp

    def sums_of(arrays, weights, order, start, count):
        def some(a):
            if a is None or count == len(a):
                return a
            if order is None:
                return jax.lax.dynamic_slice_in_dim(a, start, count)
            return jnp.take(a, jax.lax.dynamic_slice_in_dim(order, start, count), axis=0)

        return core_sums(objective, weights, *map(some, arrays))

    def batch(arrays, weights, order, start):
        if size <= block_rows:
            return sums_of(arrays, weights, order, start, size)
        blocks, tail = divmod(size, block_rows)

        def add(k, total):
            return fold(total, sums_of(arrays, weights, order, start + k * block_rows, block_rows))

        total = Sums([jnp.zeros(W.shape, wide) for W in weights], jnp.zeros(3, wide))
        total = jax.lax.fori_loop(0, blocks, add, total)
        return fold(total, sums_of(arrays, weights, order, start + blocks * block_rows, tail)) if tail else total

    def loop(arrays, weights, state, order, starts, rates, step, count):
        def one(j, carry):
            weights, state, totals = carry
            sums = batch(arrays, weights, order, starts[j])
            updates, penalty = objective.finish(weights, sums)
            weights, state = solver.step(weights, updates, state, rates[j], step + j)
            return weights, state, totals.at[j].set(jnp.append(sums.totals, penalty))

        totals = jnp.zeros((len(rates), 4), wide if size > block_rows else arrays[1].dtype)
        return jax.lax.fori_loop(0, count, one, (weights, state, totals))

    return jax.jit(loop)
