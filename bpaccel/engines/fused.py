"""The fused pass: forward, error, backward and the sums of the updates in one go over a few hundred rows.

The rows are taken in blocks, and a block in stretches that fit the first cache. In a stretch each unit owns ``R``
neighbouring numbers, one a row; the inputs come first, then each layer, the targets and the weights of the rows.
Every line of the arithmetic works on `lanes`. A layer's values are replaced by its deltas when they are known.

Shapes are those of `bpaccel.core`, given flat: ``w`` holds all matrices (I, O), or (I + 1, O) with a bias, layer by
layer. Rows of any strides are read where they are.

Each kernel is compiled and cached alone, calls others by address, and finds what it needs in the plan of a run: an
array of whole numbers, at the places named here. So a new activation compiles only what is new, and one signature
serves all arrays.
"""

import math

import numba
from numba import types

from bpaccel.engines.lanes import (
    KindType,
    acquire,
    add,
    add_totals,
    call,
    count_up,
    eight,
    fetch,
    flush_subnormals,
    lane_count,
    line_numbers,
    load,
    mul,
    muladd,
    number,
    offer,
    picked,
    put,
    real,
    release,
    restore_subnormals,
    rounded,
    set_real,
    spread,
    store,
    swap,
    tile_columns,
    total,
    turn,
    word,
)
from bpaccel.engines.unrolled import lesson
from bpaccel.engines.vmath import (
    activate,
    cost_of,
    delta_of,
    exp_of_difference,
    greatest,
    miss_of,
    ratio,
    through_slope,
)

# Inputs, targets and weights of rows, FIELDS words each: the address (0 for no weights), the strides of rows and
# columns in numbers, how many columns, and the unit that they go to. Then the order of the rows, or 0.
INPUTS, TARGETS, ROW_WEIGHTS, FIELDS, ORDER = 0, 5, 10, 5, 15
# The network: its number of matrices, units of each layer, whether there is a bias; weights, and how many they are.
DEPTH, SIZES, BIAS, WEIGHTS, COUNT = range(16, 21)
# Memory: rows of a stretch, numbers from one unit to the next, rows of a block, sums of how many blocks.
STRETCH, APART, BLOCK, BLOCK_SUMS, SLOTS = range(21, 26)
# Other kernels, by address; those of activations and slopes, one a layer, are in tables.
READ, LEARN, ACTIVATE, SLOPES, OUTPUT, SETTLE, OTHERS = range(26, 33)
# The run: how many steps, their rows and rates, the number of the first; sums, totals, and the control block.
STEPS, STARTS, STOPS, RATES, STEP, SUMS, ONWARD, OUT, SHARED, ALONE = range(33, 43)
# What becomes of the sums: the solver, the two groups of numbers that are its state, whether the mean is taken, and
# the address of the other rules, numbers of float64.
SOLVER, STATE, SECOND_STATE, MEAN, RULES = range(43, 48)
ORDERED, PLAN_WORDS = 48, 49  # how many rows the order has

LOSS, L1, L2, CLIP, FIRST, SECOND, THIRD, FOURTH, RULE_NUMBERS = range(9)  # the loss's number; the solver's four

TOTALS = 3  # after the updates: weight, loss and |error| of the rows

# What is done with the updates: the solvers whose steps are compiled.
NOTHING, GRADIENT_DESCENT, MOMENTUM, NESTEROV, ADAM, ADAMW, RMSPROP = range(7)

# The words of the control block that the threads of a run share, each on a cache line of its own. Blocks are numbered
# through the whole run: those below LIMIT may be worked on, NEXT is the first that nobody took, DONE counts those
# that are done. The blocks FROM ... LIMIT are those of rows BEGIN ... STOP.
LIMIT, NEXT, DONE, END, FROM, BEGIN, STOP, SHARED_WORDS = range(0, 128, 16)
PATIENCE = 2000  # looks at a word before the processor is offered to others


def read(k, plan, first, stop, a, stay, g):
    """The sums of rows first ... stop, to g. With ``stay``, the rows are those of the call before."""
    V, R, S = lane_count(k), word(plan, APART), word(plan, STRETCH)
    order, tile = word(plan, ORDER), tile_columns(k)
    for p in range(word(plan, COUNT) + TOTALS):
        set_real(g, p, 0.0)
    for start in range(first, stop, S):
        m = min(S, stop - start)
        end = (m + V - 1) // V * V
        for field in range(0 if not stay else 3 * FIELDS, 3 * FIELDS, FIELDS):
            x, row, column = word(plan, field), word(plan, field + 1), word(plan, field + 2)
            columns, at = word(plan, field + 3), word(plan, field + 4) * R
            whole = 0
            if x == 0:
                for r in range(0, end, V):
                    store(k, a, at + r, spread(k, 1.0))
                whole = end
            elif order == 0 and row == 1:
                whole = m // V * V
                for d in range(columns):
                    for r in range(0, whole, V):
                        store(k, a, at + d * R + r, load(k, x, start + r + d * column))
            elif order == 0 and row == 3 and columns == 3 and column == 1:
                whole = m // V * V
                for r in range(0, whole, V):
                    where = 3 * (start + r)
                    b, c, d = picked(k, x, where, 3, 0), picked(k, x, where, 3, 1), picked(k, x, where, 3, 2)
                    store(k, a, at + r, b)
                    store(k, a, at + R + r, c)
                    store(k, a, at + 2 * R + r, d)
            elif column == 1 and columns >= tile:
                whole = m // 8 * 8
                for r in range(0, whole, 8):
                    rows = eight(order, row, start + r)
                    for d in range(0, columns, tile):
                        c = min(d, columns - tile)  # the last tile may turn some columns again
                        turn(k, x, rows, c, a, at + c * R + r, R)
            # Past the rows, the last of them is repeated, and counts nothing: where nothing times it is nan, so is
            # the sum without it.
            for r in range(whole, end):
                n = start + min(r, m - 1)
                where = row * (word(order, n) if order else n)
                for d in range(columns):
                    put(k, a, at + d * R + r, number(k, x, where + d * column))
            if field == ROW_WEIGHTS:
                for r in range(m, end):
                    put(k, a, at + r, rounded(k, 0.0))
        if order:  # the rows that come next lie anywhere: they are on their way while these are learned from
            for n in range(start + m, min(start + 2 * m, word(plan, ORDERED))):
                for field in range(0, 3 * FIELDS, FIELDS):
                    x, at = word(plan, field), word(plan, field + 1) * word(order, n)
                    if x and word(plan, field + 2) == 1:
                        for d in range(0, word(plan, field + 3), line_numbers(k)):
                            fetch(k, x, at + d)
        call(word(plan, LEARN), (plan, a, end, g))


def learn(k, plan, a, end, g):
    """Add what a stretch of rows asks of the weights to g, and its totals after that.

    Four units are computed a pass where there are four left: each row is then read a quarter as often.
    """
    V, R, w, bias = lane_count(k), word(plan, APART), word(plan, WEIGHTS), word(plan, BIAS)
    sizes, last = word(plan, SIZES), word(plan, DEPTH)
    nothing = spread(k, 0.0)
    x = p = 0  # where a layer, and its weights, begin
    for layer in range(last):
        I, O = word(sizes, layer), word(sizes, layer + 1)
        out, fours = x + I * R, O // 4 * 4
        for r in range(0, end, V):
            for o in range(0, fours, 4):
                s = t = u = v = nothing
                if bias:
                    q = p + I * O + o
                    s, t = spread(k, number(k, w, q)), spread(k, number(k, w, q + 1))
                    u, v = spread(k, number(k, w, q + 2)), spread(k, number(k, w, q + 3))
                for i in range(I):
                    l, q = load(k, a, x + i * R + r), p + i * O + o
                    s = muladd(k, s, l, number(k, w, q))
                    t = muladd(k, t, l, number(k, w, q + 1))
                    u = muladd(k, u, l, number(k, w, q + 2))
                    v = muladd(k, v, l, number(k, w, q + 3))
                q = out + o * R + r
                store(k, a, q, s)
                store(k, a, q + R, t)
                store(k, a, q + 2 * R, u)
                store(k, a, q + 3 * R, v)
            for o in range(fours, O):
                s = spread(k, number(k, w, p + I * O + o)) if bias else nothing
                for i in range(I):
                    s = muladd(k, s, load(k, a, x + i * R + r), number(k, w, p + i * O + o))
                store(k, a, out + o * R + r, s)
        function = word(word(plan, ACTIVATE), layer)
        if function:
            call(function, (plan, a, out, O, end))
        x = out
        p += (I + bias) * O

    call(word(plan, OUTPUT), (plan, a, x, end, g))

    for layer in range(last - 1, -1, -1):
        I, O = word(sizes, layer), word(sizes, layer + 1)
        delta = x
        x -= I * R
        p -= (I + bias) * O
        fours = O // 4 * 4
        for o in range(0, fours, 4):
            for i in range(I):
                s = t = u = v = nothing
                for r in range(0, end, V):
                    l, q = load(k, a, x + i * R + r), delta + o * R + r
                    s = muladd(k, s, l, load(k, a, q))
                    t = muladd(k, t, l, load(k, a, q + R))
                    u = muladd(k, u, l, load(k, a, q + 2 * R))
                    v = muladd(k, v, l, load(k, a, q + 3 * R))
                add_totals(k, g, p + i * O + o, 1, s, t, u, v)
        for o in range(fours, O):
            for i in range(0, I // 4 * 4, 4):
                s = t = u = v = nothing
                for r in range(0, end, V):
                    d, q = load(k, a, delta + o * R + r), x + i * R + r
                    s = muladd(k, s, d, load(k, a, q))
                    t = muladd(k, t, d, load(k, a, q + R))
                    u = muladd(k, u, d, load(k, a, q + 2 * R))
                    v = muladd(k, v, d, load(k, a, q + 3 * R))
                add_totals(k, g, p + i * O + o, O, s, t, u, v)
            for i in range(I // 4 * 4, I):
                s = nothing
                for r in range(0, end, V):
                    s = muladd(k, s, load(k, a, delta + o * R + r), load(k, a, x + i * R + r))
                set_real(g, p + i * O + o, real(g, p + i * O + o) + total(k, s))
        for o in range(O if bias else 0):
            s = nothing
            for r in range(0, end, V):
                s = add(k, s, load(k, a, delta + o * R + r))
            set_real(g, p + I * O + o, real(g, p + I * O + o) + total(k, s))
        if layer > 0:
            slope = word(word(plan, SLOPES), layer - 1)
            if slope:
                call(slope, (plan, a, x, I, end))
            for r in range(0, end, V):
                for i in range(0, I // 4 * 4, 4):
                    s = t = u = v = nothing
                    for o in range(O):
                        d, q = load(k, a, delta + o * R + r), p + i * O + o
                        s = muladd(k, s, d, number(k, w, q))
                        t = muladd(k, t, d, number(k, w, q + O))
                        u = muladd(k, u, d, number(k, w, q + 2 * O))
                        v = muladd(k, v, d, number(k, w, q + 3 * O))
                    q = x + i * R + r
                    if slope:
                        s, t = mul(k, s, load(k, a, q)), mul(k, t, load(k, a, q + R))
                        u, v = mul(k, u, load(k, a, q + 2 * R)), mul(k, v, load(k, a, q + 3 * R))
                    store(k, a, q, s)
                    store(k, a, q + R, t)
                    store(k, a, q + 2 * R, u)
                    store(k, a, q + 3 * R, v)
                for i in range(I // 4 * 4, I):
                    s = nothing
                    for o in range(O):
                        s = muladd(k, s, load(k, a, delta + o * R + r), number(k, w, p + i * O + o))
                    if slope:
                        s = mul(k, s, load(k, a, x + i * R + r))
                    store(k, a, x + i * R + r, s)


def learn_unrolled(k, plan, a, end, g):
    """`learn` for a network of few weights, whose shape is known to the compiler."""
    lesson(k, word(plan, WEIGHTS), real(word(plan, RULES), LOSS), a, end, word(plan, APART), g)


def activations(k, plan, a, at, units, end):
    """Outputs in place of the sums of a layer."""
    R = word(plan, APART)
    for o in range(units):
        for r in range(at + o * R, at + o * R + end, lane_count(k)):
            store(k, a, r, activate(k, load(k, a, r)))


def slopes(k, plan, a, at, units, end):
    """Slopes in place of the outputs of a layer."""
    R = word(plan, APART)
    for o in range(units):
        for r in range(at + o * R, at + o * R + end, lane_count(k)):
            store(k, a, r, through_slope(k, spread(k, 1.0), load(k, a, r)))


def through_slopes(k, plan, a, at, errors, units, end):
    """Errors times slopes, in place of the outputs of a layer."""
    R = word(plan, APART)
    for o in range(units):
        for r in range(o * R, o * R + end, lane_count(k)):
            store(k, a, at + r, through_slope(k, load(k, errors, r), load(k, a, at + r)))


def softmax(k, plan, a, at, units, end):
    """Softmax over the units of each row, in place."""
    R = word(plan, APART)
    for r in range(at, at + end, lane_count(k)):
        top = load(k, a, r)
        for o in range(1, units):
            top = greatest(k, top, load(k, a, o * R + r))
        s = spread(k, 0.0)
        for o in range(units):
            e = exp_of_difference(k, load(k, a, o * R + r), top)
            store(k, a, o * R + r, e)
            s = add(k, s, e)
        for o in range(units):
            store(k, a, o * R + r, ratio(k, load(k, a, o * R + r), s))


def output(k, plan, a, x, end, g):
    """Deltas in place of the outputs, and the totals of the rows."""
    V, R, P = lane_count(k), word(plan, APART), word(plan, COUNT)
    O, loss = word(word(plan, SIZES), word(plan, DEPTH)), real(word(plan, RULES), LOSS)
    weight = cost = miss = spread(k, 0.0)
    for r in range(0, end, V):
        c = load(k, a, x + 2 * O * R + r)
        weight = add(k, weight, c)
        for o in range(O):
            l, y = load(k, a, x + o * R + r), load(k, a, x + (O + o) * R + r)
            cost = add(k, cost, cost_of(k, y, l, c, loss))
            miss = add(k, miss, miss_of(k, y, l, c))
            store(k, a, x + o * R + r, delta_of(k, y, l, c, loss))
    set_real(g, P, real(g, P) + total(k, weight))
    set_real(g, P + 1, real(g, P + 1) + total(k, cost))
    set_real(g, P + 2, real(g, P + 2) + total(k, miss) / O)


def settle(k, plan, now):
    """Reduce, penalise and clip the sums as `Objective.finish` does, then take the solver's step, in place."""
    w, P, u, rules, bias = word(plan, WEIGHTS), word(plan, COUNT), word(plan, SUMS), word(plan, RULES), word(plan, BIAS)
    sizes, out = word(plan, SIZES), word(plan, OUT)
    penalty, scale = 0.0, 1.0
    if real(rules, L1) != 0.0 or real(rules, L2) != 0.0:
        p = 0
        for layer in range(word(plan, DEPTH)):
            for q in range(p, p + word(sizes, layer) * word(sizes, layer + 1)):
                W = float(number(k, w, q))
                sign = 1.0 if W > 0.0 else (-1.0 if W < 0.0 else W)
                set_real(u, q, real(u, q) - real(rules, L2) * W - real(rules, L1) * sign)
                penalty += real(rules, L1) * abs(W) + 0.5 * real(rules, L2) * W * W
            p += (word(sizes, layer) + bias) * word(sizes, layer + 1)
    for place in range(TOTALS):
        set_real(out, 4 * now + place, real(u, P + place))
    set_real(out, 4 * now + TOTALS, penalty)
    share = 1.0
    if word(plan, MEAN):  # rows that count nothing ask for nothing, also of the penalty
        share = 1.0 / real(u, P) if real(u, P) > 0.0 else 0.0
    if real(rules, CLIP) > 0.0:
        squares = 0.0
        for p in range(P):
            squares += (real(u, p) * share) * (real(u, p) * share)
        length = math.sqrt(squares)
        if length > real(rules, CLIP):
            scale = real(rules, CLIP) / length
    scale *= share

    s, t, solver = word(plan, STATE), word(plan, SECOND_STATE), word(plan, SOLVER)
    rate, first, second = real(word(plan, RATES), now), real(rules, FIRST), real(rules, SECOND)
    third, decay, steps = real(rules, THIRD), 1.0, word(plan, STEP) + now + 1
    if solver in (ADAM, ADAMW):
        if solver == ADAMW:  # its epsilon is added to the corrected root
            decay -= rate * real(rules, FOURTH)
            third *= (1.0 - second**steps) ** 0.5
        rate = rate * (1.0 - second**steps) ** 0.5 / (1.0 - first**steps)
    r, one, two, epsilon = rounded(k, rate), rounded(k, first), rounded(k, second), rounded(k, third)
    kept, rest, rest_two = rounded(k, decay), rounded(k, 1.0 - first), rounded(k, 1.0 - second)
    for p in range(P):
        v = rounded(k, real(u, p) * scale)
        if solver == GRADIENT_DESCENT:
            change = r * v
        elif solver in (ADAM, ADAMW):
            mean = one * number(k, s, p) + rest * v
            square = two * number(k, t, p) + rest_two * (v * v)
            put(k, s, p, mean)
            put(k, t, p, square)
            change = r * (mean / (math.sqrt(square) + epsilon))
        elif solver == RMSPROP:
            square = one * number(k, s, p) + rest * (v * v)
            change = two * number(k, t, p) + v / (math.sqrt(square) + epsilon)
            put(k, s, p, square)
            put(k, t, p, change)
            change = r * change
        else:
            change = one * number(k, s, p) + r * v
            put(k, s, p, change)
            if solver == NESTEROV:
                change = one * change + r * v
        put(k, w, p, kept * number(k, w, p) + change)


def drive(k, plan, helper, a):
    """Take the steps of a plan, or help another thread that does; ``a`` is memory of this thread alone.

    The rows of a step are cut into blocks. A thread takes the next block that nobody took, and puts its sums where
    that block's belong; when all are done, the thread that is no helper adds them in the order of the blocks and takes
    the step. So no bit depends on the threads; a helper that comes late or never leaves the others more to do, and
    nothing is waited for but blocks that a running thread has begun.
    """
    shared, length, u = word(plan, SHARED), word(plan, COUNT) + TOTALS, word(plan, SUMS)
    starts, stops = word(plan, STARTS), word(plan, STOPS)
    alone, block, slots, kernel = word(plan, ALONE), word(plan, BLOCK), word(plan, SLOTS), word(plan, READ)
    now = patience = stay = 0
    begun = False
    before = flush_subnormals()  # deltas of outputs that are all but sure: steps on float32 took ten times as long
    while True:
        if not helper and not begun:
            if now == word(plan, STEPS):
                break
            if not word(plan, ONWARD):
                for p in range(length):
                    set_real(u, p, 0.0)
            begun = True
            release(shared, FROM, acquire(shared, LIMIT))
            release(shared, STOP, word(starts, now))
        ticket, limit = acquire(shared, NEXT), acquire(shared, LIMIT)
        if ticket < limit:
            if alone:
                release(shared, NEXT, ticket + 1)
            elif not swap(shared, NEXT, ticket, ticket + 1):
                continue
            mine = ticket - acquire(shared, FROM)
            first = acquire(shared, BEGIN) + mine * block
            stop = min(first + block, acquire(shared, STOP))
            call(kernel, (plan, first, stop, a, stay, word(plan, BLOCK_SUMS) + 8 * mine * length))
            if alone:
                release(shared, DONE, ticket + 1)
            else:
                count_up(shared, DONE)
            patience = 0
        elif helper:
            if acquire(shared, END):
                break
            patience += 1
        elif acquire(shared, DONE) == limit:
            for mine in range(limit - acquire(shared, FROM)):
                g = word(plan, BLOCK_SUMS) + 8 * mine * length
                for p in range(length):
                    set_real(u, p, real(u, p) + real(g, p))
            first = acquire(shared, STOP)
            if first < word(stops, now):  # more rows of this step
                stop = min(first + slots * block, word(stops, now))
                release(shared, FROM, limit)
                release(shared, BEGIN, first)
                release(shared, STOP, stop)
                release(shared, LIMIT, limit + (stop - first + block - 1) // block)
            else:
                if word(plan, SOLVER) != NOTHING:
                    call(word(plan, SETTLE), (plan, now))
                now += 1
                begun = False
                if alone and now < word(plan, STEPS):  # the same rows again, if one stretch holds them, lie there still
                    first, stop = word(starts, now), word(stops, now)
                    same = first == word(starts, now - 1) and stop == word(stops, now - 1)
                    stay = int(same and stop - first <= min(block, word(plan, STRETCH)))
        else:
            patience += 1
        if patience > PATIENCE:
            offer(word(plan, OTHERS))
            patience = 0
    restore_subnormals(before)


def kernel(function, kind, numbers):
    """A function of this module, compiled for a kind: an object with its address.

    Kept on the disk, if there is a place that may be written to.
    """
    signature = types.void(KindType(kind), *[types.int64] * numbers)
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.cfunc(signature, error_model="numpy")(function)
