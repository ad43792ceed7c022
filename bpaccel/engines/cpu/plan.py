"""The structs that Python and the kernels share: `bpaccel/native/plan.hpp` and the tables of `kernels.cpp`, mirrored.

Addresses are whole numbers here. A test compares offsets and sizes with those of the C++ compiler.
"""

import ctypes

import numpy as np

from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop

I64, Address, Real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
U64 = ctypes.c_uint64

BLOCK_ROWS = 1024  # the leaves of the tree of sums, and what threads share
STRETCH_BYTES = 1024  # of rows of one unit: what a pass keeps in the caches
TOTALS = 3  # after the sums of the updates: weight, loss and |error| of the rows
WORD_BYTES = 128  # of the control block: each word has lines of the cache of its own
CONTROL = "limit", "next", "done", "end", "from", "begin", "stop", "step"
RATES = 3  # of a step: rate, what remains of the weights, epsilon


class Field(ctypes.Structure):
    """An array of the caller's: strides in numbers; ``unit`` is where its columns go in a thread's memory, in units."""

    _fields_ = (("at", Address), ("row", I64), ("column", I64), ("columns", I64), ("unit", I64))


class Plan(ctypes.Structure):
    """What the kernels need to know of a run: see plan.hpp, which says what each member is."""

    _fields_ = (
        ("inputs", Field), ("targets", Field), ("row_weights", Field), ("order", Address), ("rows", I64),
        ("first_place", I64), ("depth", I64), ("sizes", Address), ("bias", I64), ("weights", Address), ("count", I64),
        ("transposed", I64), ("masks", I64), ("slots", I64), ("block_sums", Address), ("slot_bytes", I64),
        ("parts", Address), ("tiles", Address), ("tree", Address), ("filling", I64), ("learn", Address),
        ("activate", Address), ("slopes", Address), ("output", Address), ("yield", Address), ("steps", I64),
        ("step", I64), ("starts", Address), ("stops", Address), ("rates", Address), ("sums", Address),
        ("totals", Address), ("control", Address), ("threads", I64), ("loss_number", Real), ("l1", Real), ("l2", Real),
        ("clip", Real), ("mean", I64), ("solver", I64), ("first", Real), ("second", Real), ("state", Address),
        ("second_state", Address), ("seed", U64), ("silent_below", U64), ("share", Real), ("outputs", Address),
    )  # fmt: skip


class WrittenNetwork(ctypes.Structure):
    """A network whose pass is written out; activations and loss are places in the library's lists."""

    _fields_ = (
        ("depth", I64), ("sizes", ctypes.POINTER(I64)), ("bias", I64), ("hidden", I64), ("output", I64), ("loss", I64),
        ("many", Address), ("few", Address),
    )  # fmt: skip


class Table(ctypes.Structure):
    """What the library has for a dtype."""

    _fields_ = (
        ("plan_bytes", I64), ("register_bytes", I64), ("tile", I64), ("wide", I64), ("lanes", I64), ("few", I64),
        ("apart", I64), ("losses", I64), ("networks", I64),
        ("lead", ctypes.CFUNCTYPE(None, Address, Address)), ("help", ctypes.CFUNCTYPE(None, Address, Address)),
        ("step", ctypes.CFUNCTYPE(None, Address, I64)), ("pack_weights", ctypes.CFUNCTYPE(None, Address)),
        ("predict", ctypes.CFUNCTYPE(None, Address, I64, I64, Address)), ("learn", Address),
        ("activate", ctypes.POINTER(Address)), ("slopes", ctypes.POINTER(Address)),
        ("outputs", ctypes.POINTER(ctypes.POINTER(Address))), ("written", ctypes.POINTER(WrittenNetwork)),
    )  # fmt: skip


def _plain(solver, rates, first):
    return rates, 1.0, 0.0


def _adam(solver, rates, first):
    steps = np.arange(first, first + len(rates), dtype=np.float64)
    correction = (1.0 - solver.beta_2**steps) ** 0.5
    return rates * correction / (1.0 - solver.beta_1**steps), 1.0, solver.epsilon


def _adamw(solver, rates, first):
    corrected, _, epsilon = _adam(solver, rates, first)
    steps = np.arange(first, first + len(rates), dtype=np.float64)
    # Its epsilon is added to the corrected root.
    return corrected, 1.0 - rates * solver.weight_decay, epsilon * (1.0 - solver.beta_2**steps) ** 0.5


def _rmsprop(solver, rates, first):
    return rates, 1.0, solver.epsilon


# The solvers whose steps the kernels take, by exact type: a subclass may do something else. Each has its number in
# plan.hpp, the shares that its state keeps of itself, and ``(solver, rates, first) -> rate, remains, epsilon``. Steps
# are counted from 1 there; ``first`` is the first of them.
SOLVERS = {
    GradientDescent: (1, (), _plain),
    Momentum: (2, ("momentum",), _plain),
    Nesterov: (3, ("momentum",), _plain),
    Adam: (4, ("beta_1", "beta_2"), _adam),
    AdamW: (4, ("beta_1", "beta_2"), _adamw),
    RMSprop: (5, ("alpha", "momentum"), _rmsprop),
}
