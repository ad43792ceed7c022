"""The fused pass: forward, error, backward and the sums of the updates in one go over a few hundred rows.

The rows are taken in blocks, and a block in stretches that fit the first cache. In a stretch each unit owns ``R``
neighbouring numbers, one a row; the inputs come first, then each layer, the targets and the weights of the rows.
Every line of the arithmetic works on `lanes`. A layer's values are replaced by its deltas when they are known.

Shapes are those of `bpaccel.core`, given flat: ``w`` holds all matrices (I, O), or (I + 1, O) with a bias, layer by
layer. Rows of any strides are read where they are: ``Table`` says how.
"""

import math
from typing import NamedTuple

import numba

from bpaccel.engines.lanes import (
    acquire, add, apart, call, count_up, lane_count, load, muladd, number, picked, put, release, rounded, spread,
    store, swap, total,
)  # fmt: skip
from bpaccel.engines.vmath import (
    activate, cost_of, delta_of, exp_of_difference, greatest, is_softmax, miss_of, ratio, through_slope, weight_of,
)  # fmt: skip

OPTIONS = {"error_model": "numpy", "nogil": True}
compiled = numba.njit(**OPTIONS)

TOTALS = 3  # after the updates: weight, loss and |error| of the rows

# What is done with the updates: the solvers whose steps are compiled.
NOTHING, GRADIENT_DESCENT, MOMENTUM, NESTEROV, ADAM = range(5)

# The words of the control block that the threads of a run share, each on a cache line of its own. Blocks are numbered
# through the whole run: those below LIMIT may be worked on, NEXT is the first that nobody took, DONE counts those
# that are done. The blocks FROM ... LIMIT are those of rows FIRST ... STOP.
LINE = 16
LIMIT, NEXT, DONE, END, FROM, FIRST, STOP = (LINE * word for word in range(7))
WORDS = 7 * LINE
PATIENCE = 2000  # looks at a word before the processor is offered to others


class Table(NamedTuple):
    """Where the rows lie: addresses, and strides in numbers; address 0 where there are no weights."""

    X: int
    X_row: int
    X_column: int
    y: int
    y_row: int
    y_column: int
    weight: int
    weight_row: int


class Rules(NamedTuple):
    """What becomes of the sums: see `Objective.finish` and the solvers, whose numbers the last five are."""

    loss: float
    mean: int
    l1: float
    l2: float
    clip: float
    solver: int
    one: float
    two: float
    three: float


@compiled
def fetch(k, x, row, column, columns, order, first, m, end, a, at, R):
    """Rows first ... first + m, unit by unit, to a[at ...]; up to ``end``, the last of them is repeated."""
    V = lane_count(k)
    whole = 0
    if order.size == 0:
        whole = m // V * V
        start = first * row
        if row == 1:
            for d in range(columns):
                for r in range(0, whole, V):
                    store(k, a, at + d * R + r, load(k, x, start + r + d * column))
        elif row == 3 and columns == 3 and column == 1:
            for r in range(0, whole, V):
                where = start + 3 * r
                b, c, d = picked(k, x, where, 3, 0), picked(k, x, where, 3, 1), picked(k, x, where, 3, 2)
                store(k, a, at + r, b)
                store(k, a, at + R + r, c)
                store(k, a, at + 2 * R + r, d)
        else:
            for r in range(0, whole, V):
                for d in range(columns):
                    store(k, a, at + d * R + r, apart(k, x, start + r * row + d * column, row))
    for r in range(whole, end):
        n = first + min(r, m - 1)
        where = row * (order[n] if order.size else n)
        for d in range(columns):
            put(k, a, at + d * R + r, number(k, x, where + d * column))


@compiled
def soften(k, a, at, units, end, R):
    """Softmax over the units of each row, in place."""
    for r in range(0, end, lane_count(k)):
        top = load(k, a, at + r)
        for o in range(1, units):
            top = greatest(k, top, load(k, a, at + o * R + r))
        s = spread(k, 0.0)
        for o in range(units):
            e = exp_of_difference(k, load(k, a, at + o * R + r), top)
            store(k, a, at + o * R + r, e)
            s = add(k, s, e)
        for o in range(units):
            store(k, a, at + o * R + r, ratio(k, load(k, a, at + o * R + r), s))


@compiled
def learn(k, sizes, codes, bias, w, P, loss, a, end, R, g, base):
    """Add what a stretch of rows asks of the weights to g[base ...], and its totals after that."""
    V = lane_count(k)
    last = sizes.size - 1
    x = p = 0  # where a layer, and its weights, begin
    for layer in range(last):
        I, O, code = sizes[layer], sizes[layer + 1], codes[layer]
        out = x + I * R
        shift = p + I * O
        pairs = O // 2 * 2
        for o in range(0, pairs, 2):  # two units a pass: each row is read half as often
            for r in range(0, end, V):
                z = spread(k, number(k, w, shift + o) if bias else rounded(k, 0.0))
                u = spread(k, number(k, w, shift + o + 1) if bias else rounded(k, 0.0))
                for i in range(I):
                    l = load(k, a, x + i * R + r)
                    z = muladd(k, z, l, number(k, w, p + i * O + o))
                    u = muladd(k, u, l, number(k, w, p + i * O + o + 1))
                store(k, a, out + o * R + r, activate(k, code, z))
                store(k, a, out + o * R + R + r, activate(k, code, u))
        for o in range(pairs, O):
            for r in range(0, end, V):
                z = spread(k, number(k, w, shift + o) if bias else rounded(k, 0.0))
                for i in range(I):
                    z = muladd(k, z, load(k, a, x + i * R + r), number(k, w, p + i * O + o))
                store(k, a, out + o * R + r, activate(k, code, z))
        x = out
        p += (I + bias) * O

    O = sizes[last]
    if is_softmax(k):
        soften(k, a, x, O, end, R)
    weight = cost = miss = spread(k, 0.0)
    for r in range(0, end, V):
        c = load(k, a, x + 2 * O * R + r)
        weight = add(k, weight, weight_of(k, c))
        for o in range(O):
            l, y = load(k, a, x + o * R + r), load(k, a, x + (O + o) * R + r)
            cost = add(k, cost, cost_of(k, y, l, c, loss))
            miss = add(k, miss, miss_of(k, y, l, c))
            store(k, a, x + o * R + r, delta_of(k, y, l, c, loss))
    g[base + P] += total(k, weight)
    g[base + P + 1] += total(k, cost)
    g[base + P + 2] += total(k, miss) / O

    for layer in range(last - 1, -1, -1):
        I, O = sizes[layer], sizes[layer + 1]
        delta = x
        x -= I * R
        p -= (I + bias) * O
        pairs = I // 2 * 2
        for o in range(O):
            for i in range(0, pairs, 2):
                s = t = spread(k, 0.0)
                for r in range(0, end, V):
                    d = load(k, a, delta + o * R + r)
                    s = muladd(k, s, d, load(k, a, x + i * R + r))
                    t = muladd(k, t, d, load(k, a, x + i * R + R + r))
                g[base + p + i * O + o] += total(k, s)
                g[base + p + (i + 1) * O + o] += total(k, t)
            for i in range(pairs, I):
                s = spread(k, 0.0)
                for r in range(0, end, V):
                    s = muladd(k, s, load(k, a, delta + o * R + r), load(k, a, x + i * R + r))
                g[base + p + i * O + o] += total(k, s)
            if bias:
                s = spread(k, 0.0)
                for r in range(0, end, V):
                    s = add(k, s, load(k, a, delta + o * R + r))
                g[base + p + I * O + o] += total(k, s)
        if layer > 0:
            for i in range(I):
                for r in range(0, end, V):
                    s = spread(k, 0.0)
                    for o in range(O):
                        s = muladd(k, s, load(k, a, delta + o * R + r), number(k, w, p + i * O + o))
                    store(k, a, x + i * R + r, through_slope(k, codes[layer - 1], s, load(k, a, x + i * R + r)))


@compiled
def block_of_rows(k, table, order, sizes, codes, bias, units, w, P, loss, first, stop, a, S, R, stay, g, base):
    """The sums of rows first ... stop, to g[base ...]. With ``stay``, the rows are those of the call before."""
    V = lane_count(k)
    for p in range(base, base + P + TOTALS):
        g[p] = 0.0
    O = sizes[-1]
    target = (units - O - 1) * R
    weight = (units - 1) * R
    for start in range(first, stop, S):
        m = min(S, stop - start)
        end = (m + V - 1) // V * V
        if not stay:
            fetch(k, table.X, table.X_row, table.X_column, sizes[0], order, start, m, end, a, 0, R)
            fetch(k, table.y, table.y_row, table.y_column, O, order, start, m, end, a, target, R)
            if table.weight:
                fetch(k, table.weight, table.weight_row, 1, 1, order, start, m, end, a, weight, R)
            else:
                for r in range(0, end, V):
                    store(k, a, weight + r, spread(k, 1.0))
            for r in range(m, end):
                put(k, a, weight + r, rounded(k, -1.0))
        learn(k, sizes, codes, bias, w, P, loss, a, end, R, g, base)


@compiled
def finish(k, sizes, bias, w, P, rules, u, out, row):
    """Reduce, penalise and clip the updates u[: P] in place, as `Objective.finish` does; totals to out[row]."""
    penalty = 0.0
    if rules.l1 != 0.0 or rules.l2 != 0.0:
        p = 0
        for layer in range(sizes.size - 1):
            for q in range(p, p + sizes[layer] * sizes[layer + 1]):
                W = float(number(k, w, q))
                sign = 1.0 if W > 0.0 else (-1.0 if W < 0.0 else W)
                u[q] = u[q] - rules.l2 * W - rules.l1 * sign
                penalty += rules.l1 * abs(W) + 0.5 * rules.l2 * W * W
            p += (sizes[layer] + bias) * sizes[layer + 1]
    for total in range(TOTALS):
        out[row, total] = u[P + total]
    out[row, TOTALS] = penalty
    if rules.mean:
        weight = u[P] if u[P] > 0.0 else 1.0
        for p in range(P):
            u[p] /= weight
    if rules.clip > 0.0:
        squares = 0.0
        for p in range(P):
            squares += u[p] * u[p]
        length = math.sqrt(squares)
        if length > rules.clip:
            for p in range(P):
                u[p] *= rules.clip / length


@compiled
def advance(k, w, P, rules, s, t, rate, step, u):
    """One step of a solver: weights and state change in place. The formulas are those of `bpaccel.solvers`."""
    r, one, two = rounded(k, rate), rounded(k, rules.one), rounded(k, rules.two)
    if rules.solver == GRADIENT_DESCENT:
        for p in range(P):
            put(k, w, p, number(k, w, p) + r * rounded(k, u[p]))
    elif rules.solver == ADAM:
        rest, rest_two, epsilon = rounded(k, 1.0 - rules.one), rounded(k, 1.0 - rules.two), rounded(k, rules.three)
        r = rounded(k, rate * (1.0 - rules.two ** (step + 1)) ** 0.5 / (1.0 - rules.one ** (step + 1)))
        for p in range(P):
            v = rounded(k, u[p])
            mean = one * number(k, s, p) + rest * v
            square = two * number(k, t, p) + rest_two * (v * v)
            put(k, s, p, mean)
            put(k, t, p, square)
            put(k, w, p, number(k, w, p) + r * (mean / (math.sqrt(square) + epsilon)))
    else:
        for p in range(P):
            v = rounded(k, u[p])
            velocity = one * number(k, s, p) + r * v
            put(k, s, p, velocity)
            if rules.solver == NESTEROV:
                velocity = one * velocity + r * v
            put(k, w, p, number(k, w, p) + velocity)


def drive(k, shared, helper, alone, table, order, starts, stops, sizes, codes, bias, units, w, P, block, a, S, R, g,
          slots, u, onward, rules, s, t, rates, step, out, others):  # fmt: skip
    """Take a step for each of ``rates``, or help another thread that does.

    The rows of a step are cut into blocks of ``block`` rows. A thread takes the next block that nobody took, and puts
    its sums where that block's belong; when all are done the caller's thread, which nobody replaces, adds them to ``u``
    in the order of the blocks and takes the step. So no bit depends on the threads; a helper that comes late or never
    leaves the others more to do, and nothing is waited for but blocks that a running thread has begun.

    Parameters
    ----------
    k : Kind
    shared : int
        Address of the control block.
    helper, alone : int
        Whether this thread only helps; whether nobody does.
    table : Table
    order : array of int64
        Of the rows; empty for their own.
    starts, stops : arrays of int64
        The rows of each step.
    sizes, codes : arrays of int64
        Units of each layer; activations.
    bias, units : int
        Whether there is a bias; units of all layers, targets and weights of rows.
    w, P : int
        Address and number of the weights.
    a, S, R : int
        Address of this thread's memory for a stretch of S rows; R numbers lie between two units.
    g, slots
        Room for the sums of ``slots`` blocks.
    u : array of float64, shape (P + 3,)
        Gets the sums; with ``onward``, they are added to what is there.
    rules : Rules
    s, t : int
        Addresses of the solver's state.
    rates : array of float64
    step : int
        The number of the first step.
    out : array of float64, shape (k, 4)
        Gets the totals of each step.
    others : int
        Address of a C function that offers the processor to others; or 0.
    """
    length = P + TOTALS
    now, patience = 0, 0
    begun = stay = False
    while True:
        if not helper and not begun:  # the next rows to be worked on
            if now == starts.size:
                return
            first = starts[now]
            if not onward:
                for p in range(length):
                    u[p] = 0.0
            begun = True
            release(shared, FROM, acquire(shared, LIMIT))
            release(shared, STOP, first)
        ticket, limit = acquire(shared, NEXT), acquire(shared, LIMIT)
        if ticket < limit:
            if alone:
                release(shared, NEXT, ticket + 1)
            elif not swap(shared, NEXT, ticket, ticket + 1):
                continue
            mine = ticket - acquire(shared, FROM)
            first = acquire(shared, FIRST) + mine * block
            stop = min(first + block, acquire(shared, STOP))
            block_of_rows(k, table, order, sizes, codes, bias, units, w, P, rules.loss, first, stop, a, S, R, stay, g, mine * length)
            if alone:
                release(shared, DONE, ticket + 1)
            else:
                count_up(shared, DONE)
            patience = 0
        elif helper:
            if acquire(shared, END):
                return
            patience += 1
        elif acquire(shared, DONE) == limit:
            for mine in range(limit - acquire(shared, FROM)):
                for p in range(length):
                    u[p] += g[mine * length + p]
            first = acquire(shared, STOP)
            if first < stops[now]:
                stop = min(first + slots * block, stops[now])
                release(shared, FROM, limit)
                release(shared, FIRST, first)
                release(shared, STOP, stop)
                release(shared, LIMIT, limit + (stop - first + block - 1) // block)
            else:
                if rules.solver != NOTHING:
                    finish(k, sizes, bias, w, P, rules, u, out, now)
                    advance(k, w, P, rules, s, t, rates[now], step + now, u)
                now += 1
                begun = False
                # A step of one stretch, the same rows again: they lie where they were.
                if now < starts.size:
                    same = starts[now] == starts[now - 1] and stops[now] == stops[now - 1]
                    stay = alone and same and stops[now] - starts[now] <= min(S, block)
        else:
            patience += 1
        if patience > PATIENCE:
            call(others)
            patience = 0


try:
    drive = numba.njit(cache=True, **OPTIONS)(drive)
except RuntimeError:  # nowhere to keep the cache
    drive = numba.njit(**OPTIONS)(drive)
