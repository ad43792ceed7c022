"""The core, compiled by JAX: many steps in one call, without Python between them."""

import functools

from bpaccel.engines import blocked


class Jit(blocked.Array):
    """The core in one pass, compiled by jax.jit with its steps in a fori_loop; for JAX arrays.

    The solver's own `step` is compiled with it, so that a solver must be pure, as its contract says.
    """

    name = "jit"

    @classmethod
    def refuses(cls, objective, rows, solver):
        if rows.backend.library.name != "jax":
            return f"it compiles JAX arrays, and these are on {rows.backend.name}. Use backend='jax', or engine='auto'."
        if rows.arrays is None:
            return "the rows are not all in memory on JAX. Use engine='blocked'."
        return None

    def run(self, weights, solver, state, batches, rates, step):
        import jax.numpy as jnp

        xp, dtype = self.rows.backend.xp, weights[0].dtype
        order = None if batches.order is None else xp.asarray(batches.order, dtype=jnp.int32)
        parts, j = [], 0
        while j < len(rates):
            # Steps of equal batches go together: a compiled loop has one size (an epoch's last batch may be short).
            size = batches.stops[j] - batches.starts[j]
            end = j
            while end < len(rates) and batches.stops[end] - batches.starts[end] == size:
                end += 1
            room = 1 << (end - j - 1).bit_length()  # few sizes, so that few are compiled
            starts = xp.asarray([*batches.starts[j:end], *[0] * (room - (end - j))], dtype=jnp.int32)
            some = xp.asarray([*rates[j:end], *[0.0] * (room - (end - j))], dtype=dtype)
            loop = _compiled(self.objective, solver, size, size == self.rows.n and order is None)
            weights, state, totals = loop(self.rows.arrays, weights, state, order, starts, some, step + j, end - j)
            parts.append(totals[: end - j])
            j = end
        return weights, state, parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


@functools.lru_cache(maxsize=64)
def _compiled(objective, solver, size, whole):
    """A compiled loop over the steps of batches of one size; ``whole`` if a batch is all rows as they lie.

    Cached by what it computes, not by the engine: a second training of the same net compiles nothing.
    """
    import jax
    import jax.numpy as jnp

    def rows_of(arrays, order, start):
        if whole:
            return arrays
        if order is None:
            return [None if a is None else jax.lax.dynamic_slice_in_dim(a, start, size) for a in arrays]
        index = jax.lax.dynamic_slice_in_dim(order, start, size)
        return [None if a is None else jnp.take(a, index, axis=0) for a in arrays]

    def loop(arrays, weights, state, order, starts, rates, step, count):
        def one(j, carry):
            weights, state, totals = carry
            sums = blocked.core_sums(objective, weights, *rows_of(arrays, order, starts[j]))
            updates, penalty = objective.finish(weights, sums)
            weights, state = solver.step(weights, updates, state, rates[j], step + j)
            return weights, state, totals.at[j].set(jnp.append(sums.totals, penalty))

        totals = jnp.zeros((len(rates), 4), arrays[1].dtype)
        return jax.lax.fori_loop(0, count, one, (weights, state, totals))

    return jax.jit(loop)
