"""The launch of a run: a plan filled in, memory lent, threads asked for help."""

import ctypes
import functools
import os
from itertools import pairwise

import numpy as np

from bpaccel.engines.cpu.layout import layout
from bpaccel.engines.cpu.library import library
from bpaccel.engines.cpu.plan import BLOCK_ROWS, CONTROL, RATES, SOLVERS, TOTALS, WORD_BYTES, Plan

# Sums of blocks that are kept until they are added up; but those of four blocks a thread in any case.
SLOTS_BYTES = 2**20
# From so many multiplications a step on, rows times weights times the bytes of a number, another thread pays: on 4,000
# rows 3-4-1 took two threads 0.6 times as long as one in float64, and as long in float32 (two cores).
THREADED_WORK = 2**18
# From so many rows of a step on, it pays to put weights into tiles.
PACKED_ROWS = 256
END = CONTROL.index("end") * WORD_BYTES // 8


def network_plan(found, dtype, sizes, bias, names, at):
    """The part of a `Plan` that says what a network is: layers of ``sizes`` units, activations by name, a `Layout`.

    Returns
    -------
    plan : Plan
    kept : tuple of arrays
        They must live as long as the plan.
    """
    table, plan = found.tables[dtype], Plan()
    rows = [found.activations.index(name) for name in names]
    plain = found.activations.index("identity")  # a pass over it would change nothing
    kept = tuple(
        np.array(numbers, np.int64)
        for numbers in (sizes, at.parts, [0 if k == plain else table.activate[k] for k in rows],
                        [0 if k == plain else table.slopes[k] for k in rows[:-1]])
    )  # fmt: skip
    plan.sizes, plan.parts, plan.activate, plan.slopes = map(address, kept)
    plan.inputs.columns, plan.targets.columns, plan.row_weights.columns = sizes[0], sizes[-1], 1
    plan.targets.unit, plan.row_weights.unit = at.targets, at.row_weights
    plan.depth, plan.bias, plan.share = len(names), bias, 1.0
    plan.count = sum((i + bias) * o for i, o in pairwise(sizes))
    plan.transposed, plan.masks, plan.slot_bytes = at.transposed, at.masks, at.slot_bytes
    return plan, kept


class Program:
    """The kernels for an objective and a dtype, and the part of the plan that all runs have in common.

    Parameters
    ----------
    objective : Objective
    dtype : {"float32", "float64"}

    Attributes
    ----------
    count : int
        Numbers of all weight matrices.
    layout : Layout
    table : Table
    level : str
        Of the library.
    """

    def __init__(self, objective, dtype):
        found = library()
        self.objective, self.dtype, self.level = objective, np.dtype(dtype), found.level
        self.table = table = found.tables[dtype]
        sizes, names = objective.layer_sizes, [f.name for f in objective.activations]
        self._written = None if objective.dropout is not None else found.written(objective, dtype)
        self.layout = at = layout(sizes, objective.bias, self.dtype.itemsize, table, self._written is not None)
        self.plan, self._kept = network_plan(found, self.dtype.name, sizes, objective.bias, names, at)
        plan, self.count = self.plan, self.plan.count
        plan.output = table.outputs[found.activations.index(names[-1])][found.losses.index(found.loss_name(objective))]
        setattr(plan, "yield", _yield())
        plan.loss_number = float(objective.loss.name.partition(":")[2] or 0.0)
        plan.l1, plan.l2, plan.clip = objective.l1, objective.l2, objective.clip or 0.0
        plan.mean = objective.reduction == "mean"
        if objective.dropout is not None:
            plan.seed, plan.share = objective.dropout.seed, 1.0 - objective.dropout.rate
            plan.silent_below = objective.dropout.silent_below

    def pass_for(self, rows):
        """The pass for steps of at most so many rows, and what rows are filled up to a multiple of."""
        if self._written is None:
            return self.table.learn, self.table.lanes
        many, few = self._written
        return (few, self.table.few) if rows <= self.table.few else (many, 128 // self.dtype.itemsize)


class Launch:
    """One call of the kernels: its rows, and memory that no other call uses.

    Parameters
    ----------
    program : Program
    memory : Memory
    w : numpy.ndarray of shape (count,)
        All weights, moved in place.
    arrays : tuple (X, y, w) of NumPy arrays
    batches : Batches
        The rows of each step.
    threads : int
        The most that may work.
    first_place : int
        What dropout counts the places of the rows from.
    """

    def __init__(self, program, memory, w, arrays, batches, threads=1, first_place=0):
        self.program, self.memory, self.w = program, memory, w
        order = self.order = None if batches.order is None else np.ascontiguousarray(batches.order, np.int64)
        self.starts = np.ascontiguousarray(batches.starts, np.int64)
        self.stops = np.ascontiguousarray(batches.stops, np.int64)
        self.plan = plan = Plan.from_buffer_copy(program.plan)
        self.arrays = [x if x is None or readable(x) else _copied(x) for x in arrays]
        for field, x in zip((plan.inputs, plan.targets, plan.row_weights), self.arrays):
            if x is not None:
                field.at, field.row, field.column = address(x), x.strides[0] // x.itemsize, x.strides[-1] // x.itemsize
        rows = int((self.stops - self.starts).max())
        blocks, at = -(-rows // BLOCK_ROWS), program.layout
        shared = blocks > 1 and rows * program.count * program.dtype.itemsize >= THREADED_WORK
        self.threads = min(threads, blocks) if shared else 1
        plan.slots = max(1, min(blocks, max(SLOTS_BYTES // at.slot_bytes, 4 * self.threads)))
        self.packed = any(at.tiles) and rows >= PACKED_ROWS
        plan.learn, plan.filling = program.pass_for(rows)
        plan.rows, plan.first_place = len(self.arrays[0] if order is None else order), first_place
        plan.order, plan.starts, plan.stops = address(self.order), address(self.starts), address(self.stops)
        plan.weights, plan.threads = address(w), self.threads
        self.sums = np.zeros(program.count + TOTALS)
        self._kept = []
        plan.sums = address(self.sums)
        if blocks > 1 or any(at.parts):
            plan.block_sums = address(self._lend(plan.slots * at.slot_bytes))
        if blocks > 1:
            plan.tree = address(self._lend(8 * len(self.sums) * blocks.bit_length()))

    def _lend(self, size):
        self._kept.append(self.memory.lend(size))
        return self._kept[-1]

    def run(self, solver=None, state=(), rates=(0.0,), step=0):
        """Take a step for each rate, the first of them numbered ``step``; without a solver, sum the rows.

        Returns
        -------
        totals : numpy.ndarray of shape (k, 4)
            Of each step before its update: weight, loss, |error|, penalty. Without a solver, nothing is in it.
        """
        plan, program = self.plan, self.program
        table, at = program.table, program.layout
        totals = np.empty((len(rates), TOTALS + 1))
        self.rates = settle_by(plan, solver, state, rates, step, totals)
        if self.packed:
            width = program.dtype.itemsize
            tiles = self._lend(sum(at.tiles) * width)
            firsts = np.cumsum([0, *at.tiles[:-1]]) * width + address(tiles)
            self.tiles = np.where(np.array(at.tiles) > 0, firsts, 0)
            plan.tiles = address(self.tiles)
        control = aligned(WORD_BYTES * len(CONTROL))
        control[:] = 0
        plan.control = address(control)
        self.control = control.view(np.int64)
        plan_at = ctypes.addressof(plan)

        # A helper may come when the run is over, and still looks at the control block: its arguments hold the memory.
        def help_out(launch):
            if not launch.control[END]:
                scratch = launch.scratch()
                table.help(plan_at, address(scratch))
                launch.memory.take_back(scratch)

        scratch = self.scratch()
        try:
            if self.threads > 1:
                from bpaccel.engines.cpu.threads import helpers  # small work never asks for help

                for _ in range(self.threads - 1):
                    helpers().submit(help_out, self)
            table.lead(plan_at, address(scratch))
            for memory in (scratch, *self._kept):  # all blocks are done: nobody writes there any more
                self.memory.take_back(memory)
        finally:  # also when Ctrl-C came just before: helpers then find nothing more to do
            self.control[END] = 1
        return totals

    def scratch(self):
        """Memory of a thread."""
        program = self.program
        return self.memory.lend(program.layout.units * program.table.apart * program.dtype.itemsize)


def settle_by(plan, solver, state, rates, step, totals):
    """Fill in how the sums of steps become updates; returns an array that must live as long as the plan."""
    rates = np.asarray(rates, np.float64)
    table = np.empty((len(rates), RATES))
    if solver is not None:
        plan.solver, shares, rates_of = SOLVERS[type(solver)]
        table[:, 0], table[:, 1], table[:, 2] = rates_of(solver, rates, step + 1)
        numbers = [getattr(solver, name) for name in shares]
        plan.first, plan.second = (*numbers, 0.0, 0.0)[:2]
        plan.state, plan.second_state = (*map(address, state), 0, 0)[:2]
    plan.steps, plan.step, plan.rates, plan.totals = len(rates), step, address(table), address(totals)
    return table


class Memory:
    """Memory of earlier runs, lent again: the system takes a millisecond to give out some megabytes."""

    def __init__(self):
        self._spare = {}

    def lend(self, size):
        """At least so many bytes, from a line of the cache on; what is in them is left over."""
        size = 1 << (int(size) - 1).bit_length()  # so that there are few sizes
        try:
            return self._spare[size].pop()
        except (KeyError, IndexError):
            return aligned(size)

    def take_back(self, memory):
        self._spare.setdefault(len(memory), []).append(memory)


@functools.cache
def _yield():
    """The address of a C function that lets other threads run, or 0."""
    try:
        if os.name == "nt":  # noqa: SIM108
            function = ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined]
        else:
            function = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value


def readable(x):
    """Whether the kernels can read an array where it is; one with numbers at odd places is copied."""
    return x.flags.aligned and x.dtype.isnative and all(step % x.itemsize == 0 for step in x.strides)


def _copied(x):
    return np.array(x, x.dtype.newbyteorder("="), order="C")


def address(array):
    """Where an array's numbers begin; 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]


def aligned(size):
    """Memory that begins at a multiple of two lines of the cache: vectors that straddle lines take longer."""
    memory = np.empty(size + WORD_BYTES, np.uint8)
    skip = -address(memory) % WORD_BYTES
    return memory[skip : skip + size]
