"""The fused engine for NumPy arrays: one compiled pass over the rows, many steps in one call, on all cores.

The kernels are C++, in `bpaccel/native`. They are built with the package: nothing is compiled at run time.
"""

import ctypes
from itertools import pairwise

import numpy as np

from bpaccel.engines import Batches, Engine, Sums, tree
from bpaccel.engines.cpu.launch import Launch, Memory, Program, address, settle_by
from bpaccel.engines.cpu.library import LEVELS, Missing, library
from bpaccel.engines.cpu.plan import BLOCK_ROWS, SOLVERS, TOTALS, Plan

# Rows read from files and other arrays at once: a power of two of blocks, and so a node of the tree of sums. Where rows
# are long, fewer are read.
READ_BLOCKS = 64
READ_BYTES = 2**26


class Fused(Engine):
    """One compiled pass over the rows, many steps in one call, on all cores.

    The solvers of `bpaccel.engines.cpu.plan` take their steps inside.
    """

    name = "fused"
    same_bits = True
    threaded = True
    joins_epochs = True

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self._program = Program(objective, rows.dtype)
        level = self._program.level
        self.note = f"its kernels are of level {level} ({LEVELS[level]})"
        shapes = [(i + objective.bias, o) for i, o in pairwise(objective.layer_sizes)]
        ends = np.cumsum([0, *(i * o for i, o in shapes)]).tolist()
        self._places = [(slice(*place), shape) for place, shape in zip(pairwise(ends), shapes)]
        self._memory = Memory()

    @classmethod
    def refuses(cls, objective, rows, solver):
        if rows.backend.library.name != "numpy":
            return f"it computes on NumPy arrays, and these are {rows.backend.library.name}'s. Use engine='blocked'."
        try:
            found = library()
        except Missing as error:
            return f"{error} engine='blocked' does without."
        if not found.knows(objective):
            return "it was not built with activations or losses of your own. Use engine='blocked'."
        return None

    @classmethod
    def rows_of_a_block(cls, objective, rows):
        return BLOCK_ROWS

    def block(self, weights, X, y, w):
        return self._split(self._sum(self._flat(weights), (X, y, w), None, 0, len(X)))

    def dropped_block(self, weights, X, y, w, step, first):
        return self._split(self._sum(self._flat(weights), (X, y, w), None, 0, len(X), step, first))

    def sums(self, weights, order, start, stop):
        return self.dropped_sums(weights, order, start, stop, 0)

    def dropped_sums(self, weights, order, start, stop, step):
        return self._split(self._sum_rows(self._flat(weights), order, start, stop, step))

    def run(self, weights, solver, state, batches, rates, step):
        if type(solver) not in SOLVERS:
            return super().run(weights, solver, state, batches, rates, step)
        w, state = self._flat(weights), [self._flat(group) for group in state]
        if self.rows.arrays is not None:
            launch = self._launch(w, self.rows.arrays, batches)
            totals = launch.run(solver, state, rates, step)
        else:  # the sums of what is read, then the step, by the same code
            totals = np.empty((len(rates), TOTALS + 1))
            for j in range(len(rates)):
                sums = self._sum_rows(w, batches.order, batches.starts[j], batches.stops[j], step + j)
                self._apply(w, sums, solver, state, rates[j : j + 1], step + j, totals[j : j + 1])
        return self._matrices(w), tuple(self._matrices(group) for group in state), totals

    def _launch(self, w, arrays, batches, first_place=0):
        return Launch(self._program, self._memory, w, arrays, batches, self.threads, first_place)

    def _sum(self, w, arrays, order, start, stop, step=0, first_place=0):
        launch = self._launch(w, arrays, Batches(order, [start], [stop]), first_place)
        launch.run(step=step)
        return launch.sums

    def _sum_rows(self, w, order, start, stop, step):
        """The sums (count + TOTALS,) of rows ``order[start:stop]``, wherever the rows are."""
        if self.rows.arrays is not None:
            return self._sum(w, self.rows.arrays, order, start, stop, step)
        row_bytes = 8 * (self.objective.layer_sizes[0] + self.objective.layer_sizes[-1])
        blocks = READ_BLOCKS
        while blocks > 1 and blocks * BLOCK_ROWS * row_bytes > READ_BYTES:
            blocks //= 2
        firsts = range(start, max(stop, start + 1), blocks * BLOCK_ROWS)  # no rows are a piece, too: their sums are 0

        def piece(first):
            then = min(first + blocks * BLOCK_ROWS, stop)
            sums = self._sum(w, self.rows.read(first, then, order), None, 0, then - first, step, first)
            return self._split(sums)

        total = tree(map(piece, firsts), self.rows.backend)
        return np.concatenate([*(u.ravel() for u in total.updates), total.totals])

    def _apply(self, w, sums, solver, state, rates, step, totals):
        plan = Plan.from_buffer_copy(self._program.plan)
        plan.weights, plan.sums = address(w), address(sums)
        _table = settle_by(plan, solver, state, rates, step, totals)
        self._program.table.step(ctypes.addressof(plan), 0)

    def _flat(self, matrices):
        """A copy of all matrices, one after the other, in the dtype of the rows."""
        flat = np.empty(self._program.count, self._program.dtype)
        return np.concatenate([np.asarray(W).ravel() for W in matrices], out=flat, casting="same_kind")

    def _matrices(self, flat):
        return [flat[place].reshape(shape) for place, shape in self._places]

    def _split(self, sums):
        return Sums(self._matrices(sums[: self._program.count]), sums[self._program.count :])
