"""The fused pass: forward, error, backward and the sums of the updates in one go over a few hundred rows.

The rows are taken in blocks, which threads share, and a block in stretches that fit the caches. In a stretch each unit
owns ``R`` neighbouring numbers, one a row; the inputs come first, then each layer, the targets and the weights of the
rows. With a bias, a unit that is always 1 follows the inputs and each hidden layer, save where the lesson is written
out. Every line of the arithmetic works on `lanes`. A layer's values are replaced by its deltas when they are known.

Shapes are those of `bpaccel.core`, given flat: ``w`` holds all matrices (I, O), or (I + 1, O) with a bias, layer by
layer. Rows of any strides are read where they are.

Each kernel is compiled and cached alone, calls others by address, and finds what it needs in the plan of a run: an
array of whole numbers, at the places named in `plan`. So a new activation compiles only what is new, and one signature
serves all arrays.
"""

import numba

from bpaccel.engines.lanes import (
    TURNED_ROWS,
    add,
    lane_count,
    muladd,
    rounded,
    spread,
    total,
)
from bpaccel.engines.memory import (
    LINE_BYTES,
    add_totals,
    call,
    fetch,
    line_numbers,
    load,
    number,
    picked,
    put,
    real,
    row_starts,
    set_real,
    store,
    turn,
    turned_columns,
    word,
)
from bpaccel.engines.plan import (
    ACTIVATE,
    APART,
    BIAS,
    COUNT,
    DEPTH,
    FIELDS,
    INPUTS,
    LEARN,
    LOSS,
    ORDER,
    OUTPUT,
    PACKED,
    PARTS,
    PRODUCTS,
    ROW_WEIGHTS,
    ROWS,
    RULES,
    SIZES,
    SLOPES,
    STRETCH,
    TARGETS,
    TOTALS,
    TURNED,
    UPDATE_UNITS,
    WEIGHTS,
)
from bpaccel.engines.products import (
    ADD,
    MULTIPLY,
    SET,
    TILE,
    filled,
    pack_tiles,
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


def read(k, plan, first, stop, a, stay, g):
    """The sums of rows first ... stop, to g. With ``stay``, the rows are those of the call before."""
    V, R, S = lane_count(k), word(plan, APART), word(plan, STRETCH)
    order, tile = word(plan, ORDER), turned_columns(k)
    for start in range(first, stop, S):
        m = min(S, stop - start)
        end = (m + V - 1) // V * V
        for field in range(0 if not stay else 3 * FIELDS, 3 * FIELDS, FIELDS):
            x, row, column = word(plan, field), word(plan, field + 1), word(plan, field + 2)
            columns, unit = word(plan, field + 3), word(plan, field + 4)
            whole = 0
            if x == 0:
                for r in range(0, end, V):
                    store(k, a, unit + r, spread(k, 1.0))
                whole = end
            elif order == 0 and row == 1:
                whole = m // V * V
                for d in range(columns):
                    for r in range(0, whole, V):
                        store(k, a, unit + d * R + r, load(k, x, start + r + d * column))
            elif order == 0 and row == 3 and columns == 3 and column == 1:
                whole = m // V * V
                for r in range(0, whole, V):
                    where = 3 * (start + r)
                    b, c, d = picked(k, x, where, 3, 0), picked(k, x, where, 3, 1), picked(k, x, where, 3, 2)
                    store(k, a, unit + r, b)
                    store(k, a, unit + R + r, c)
                    store(k, a, unit + 2 * R + r, d)
            elif column == 1 and columns >= tile // 4 and m >= TURNED_ROWS:
                whole, part = m, 1 if columns >= tile else (2 if columns >= tile // 2 else 4)
                for r in range(0, m, TURNED_ROWS):
                    n = min(r, m - TURNED_ROWS)  # the last tile may turn some rows and columns again
                    starts = row_starts(order, row, start + n)
                    for d in range(0, columns, tile // part):
                        c = min(d, columns - tile // part)
                        if part == 1:
                            turn(k, 1, x, starts, c, a, unit + c * R + n, R)
                        elif part == 2:
                            turn(k, 2, x, starts, c, a, unit + c * R + n, R)
                        else:
                            turn(k, 4, x, starts, c, a, unit + c * R + n, R)
            # Past the rows, the last of them is repeated, and counts nothing: where nothing times it is nan, so is
            # the sum without it.
            for r in range(whole, end):
                n = start + min(r, m - 1)
                where = row * (word(order, n) if order else n)
                for d in range(columns):
                    put(k, a, unit + d * R + r, number(k, x, where + d * column))
            if field == ROW_WEIGHTS:
                for r in range(m, end):
                    put(k, a, unit + r, rounded(k, 0.0))
        if order:  # the rows that come next lie anywhere: they are on their way while these are learned from
            for n in range(start + m, min(start + 2 * m, word(plan, ROWS))):
                for field in range(0, 3 * FIELDS, FIELDS):
                    x, where = word(plan, field), word(plan, field + 1) * word(order, n)
                    if x and word(plan, field + 2) == 1:
                        for d in range(0, word(plan, field + 3), line_numbers(k)):
                            fetch(k, x, where + d)
        x, y = rows_ahead(k, plan, INPUTS, start, m, a), rows_ahead(k, plan, TARGETS, start, m, a)
        call(word(plan, LEARN), (plan, a, end, g, start - first, x, y))


@numba.njit
def rows_ahead(k, plan, field, start, m, a):
    """The address of the rows that this thread is likely to read next, if they lie together; else some of its own."""
    n, row = start + m, word(plan, field + 1)
    together = word(plan, ORDER) == 0 and word(plan, field + 2) == 1 and row == word(plan, field + 3)
    if together and n + m <= word(plan, ROWS):
        return word(plan, field) + n * row * (LINE_BYTES // line_numbers(k))
    return a


def learn(k, plan, a, end, g, onto, x_ahead, y_ahead):
    """Set g to what a stretch of rows asks of the weights, or add that if ``onto``; and so its totals, after that.

    Where the next rows lie matters only where there is little to do for each: see `learn_unrolled`.
    """
    V, R, w, bias = lane_count(k), word(plan, APART), word(plan, WEIGHTS), word(plan, BIAS)
    sizes, last, products = word(plan, SIZES), word(plan, DEPTH), word(plan, PRODUCTS)
    x = p = 0  # where a layer, and its weights, begin
    for layer in range(last):
        I, O = word(sizes, layer) + bias, word(sizes, layer + 1)
        out = x + I * R
        if bias:  # a unit that is always 1
            for r in range(0, end, V):
                store(k, a, out - R + r, spread(k, 1.0))
        packed = word(word(plan, PACKED), layer)
        if packed:
            call(products, (a, out, R, O, a, x, R, end, packed, 0, TILE, 1, I * TILE, I, SET))
        else:
            call(products, (a, out, R, O, a, x, R, end, w, p, O, 1, 0, I, SET))
        function = word(word(plan, ACTIVATE), layer)
        if function:
            call(function, (plan, a, out, O, end))
        x = out
        p += I * O

    if not onto:
        for q in range(word(plan, COUNT), word(plan, COUNT) + TOTALS):
            set_real(g, q, 0.0)
    call(word(plan, OUTPUT), (plan, a, x, end, g))

    for layer in range(last - 1, -1, -1):
        I, O = word(sizes, layer) + bias, word(sizes, layer + 1)
        delta = x
        x -= I * R
        p -= I * O
        if word(word(plan, PARTS), layer):
            call(word(plan, UPDATE_UNITS), (plan, layer, a, x, delta, end, g, onto))
        else:
            update(k, plan, I, O, a, x, delta, end, g, onto, p)
        if layer > 0:
            slope = word(word(plan, SLOPES), layer - 1)
            if slope:
                call(slope, (plan, a, x, I - bias, end))
            how = MULTIPLY if slope else SET
            call(products, (a, x, R, I - bias, a, delta, R, end, w, p, 1, O, 0, O, how))


@numba.njit
def update(k, plan, I, O, a, x, delta, end, g, onto, p):
    """Sums of a layer's updates, of which lanes hold rows: those of all lanes are folded together in the end."""
    V, R = lane_count(k), word(plan, APART)
    fours, nothing = O // 4 * 4, spread(k, 0.0)
    if not onto:
        for q in range(p, p + I * O):
            set_real(g, q, 0.0)
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


def pack(k, plan):
    """Put weights together in tiles, as the way forward through wide layers takes them."""
    sizes, bias, p = word(plan, SIZES), word(plan, BIAS), 0
    for layer in range(word(plan, DEPTH)):
        I, O = word(sizes, layer) + bias, word(sizes, layer + 1)
        if word(word(plan, PACKED), layer):
            pack_tiles(k, word(plan, WEIGHTS), p, I, O, word(word(plan, PACKED), layer))
        p += I * O


def update_units(k, plan, layer, a, x, delta, end, g, onto):
    """Sums of a layer's updates, of which lanes hold units of a delta, so that a sum is over in one number.

    For that, the deltas are turned, to lie row by row.
    """
    V, R = lane_count(k), word(plan, APART)
    I, O = word(word(plan, SIZES), layer) + word(plan, BIAS), word(word(plan, SIZES), layer + 1)
    turned, D = word(plan, TURNED), filled(k, O) + line_numbers(k)
    for o in range(0, O, TURNED_ROWS):
        c = min(o, O - TURNED_ROWS)  # the last units may be turned again
        units = row_starts(0, R, c)
        for r in range(0, end, turned_columns(k)):
            turn(k, 1, a, units, delta + r, a, turned + r * D + c, D)
    part, W, how = word(word(plan, PARTS), layer), filled(k, O), ADD if onto else SET
    for o in range(0, W, V):
        call(word(plan, PRODUCTS), (g, part + o, W, I, a, turned + o, D, V, a, x, 1, R, 0, end, how))


def learn_unrolled(k, plan, a, end, g, onto, x_ahead, y_ahead):
    """`learn` for a network of few weights, whose shape is known to the compiler; meanwhile, the next rows arrive."""
    lesson(k, word(plan, WEIGHTS), real(word(plan, RULES), LOSS), a, end, word(plan, APART), g, onto, x_ahead, y_ahead)


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
