"""The run of a plan: blocks of rows shared by threads, their sums added up, and the steps of the solvers."""

import math

from bpaccel.engines.lanes import (
    lane_count,
    rounded,
)
from bpaccel.engines.memory import (
    acquire,
    add_lanes,
    call,
    count_up,
    flush_subnormals,
    load,
    number,
    offer,
    put,
    real,
    release,
    restore_subnormals,
    set_real,
    swap,
    word,
)
from bpaccel.engines.plan import (
    ADAM,
    ADAMW,
    BIAS,
    BLOCK,
    BLOCK_SUMS,
    CLIP,
    COUNT,
    DEPTH,
    FIRST,
    FOLD,
    FOURTH,
    GRADIENT_DESCENT,
    L1,
    L2,
    MEAN,
    NESTEROV,
    NOTHING,
    ONWARD,
    OTHERS,
    OUT,
    PACK,
    PARTS,
    RATES,
    READ,
    RMSPROP,
    RULES,
    SECOND,
    SECOND_STATE,
    SETTLE,
    SHARED,
    SIZES,
    SLOT_BYTES,
    SLOTS,
    SOLVER,
    STARTS,
    STATE,
    STEP,
    STEPS,
    STOPS,
    STRETCH,
    SUMS,
    THIRD,
    THREADS,
    TOTALS,
    WEIGHTS,
)
from bpaccel.engines.products import (
    filled,
)

# The words of the control block that the threads of a run share, each on a cache line of its own. Blocks are numbered
# through the whole run: those below LIMIT may be worked on, NEXT is the first that nobody took, DONE counts those
# that are done. The blocks FROM ... LIMIT are those of rows BEGIN ... STOP.
LIMIT, NEXT, DONE, END, FROM, BEGIN, STOP, SHARED_WORDS = range(0, 128, 16)
PATIENCE = 2000  # looks at a word before the processor is offered to others
MOST_BLOCKS = 16  # that a thread takes at once: some thousands of rows, which it reads one after the other
FOLDED = 1024  # sums that are added up in one go, so that they stay in the first cache


def fold(k, plan, blocks, onto):
    """Add the sums of some blocks in their order to those of the step, or set these to them if not ``onto``."""
    sums, size, u = word(plan, BLOCK_SUMS), word(plan, SLOT_BYTES), word(plan, SUMS)
    length = word(plan, COUNT) + TOTALS
    for some in range(0, length, FOLDED):  # so that what is added to stays in the cache
        for block in range(blocks):
            g = sums + block * size
            if block or onto:
                for q in range(some, min(some + FOLDED, length)):
                    set_real(u, q, real(u, q) + real(g, q))
            else:
                for q in range(some, min(some + FOLDED, length)):
                    set_real(u, q, real(g, q))


def fold_parts(k, plan, blocks, onto):
    """The same, where sums of some layers are kept by units, in the dtype of the rows."""
    V, bias, sizes, u, p = lane_count(k), word(plan, BIAS), word(plan, SIZES), word(plan, SUMS), 0
    sums, size = word(plan, BLOCK_SUMS), word(plan, SLOT_BYTES)
    for layer in range(word(plan, DEPTH) + 1):
        I, O, part = 1, TOTALS, 0  # the last are the totals
        if layer < word(plan, DEPTH):
            I, O = word(sizes, layer) + bias, word(sizes, layer + 1)
            part = word(word(plan, PARTS), layer)
        for i in range(I):
            if not onto:
                for q in range(p, p + O):
                    set_real(u, q, 0.0)
            for block in range(blocks):
                g, l = sums + block * size, part + i * filled(k, O)
                if part:
                    for o in range(0, O - V + 1, V):
                        add_lanes(k, u, p + o, load(k, g, l + o))
                    for o in range(O // V * V, O):
                        set_real(u, p + o, real(u, p + o) + number(k, g, l + o))
                else:
                    for q in range(p, p + O):
                        set_real(u, q, real(u, q) + real(g, q))
            p += O


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

    The rows of a step are cut into blocks. A thread takes the next blocks that nobody took, fewer as fewer are left,
    and puts the sums of each where they belong; when all are done, the thread that is no helper adds them in the order
    of the blocks and takes the step. So no bit depends on the threads; a helper that comes late or never leaves the
    others more to do, and nothing is waited for but blocks that a running thread has taken.
    """
    shared, starts, stops = word(plan, SHARED), word(plan, STARTS), word(plan, STOPS)
    alone, block, slots, kernel = word(plan, THREADS) == 1, word(plan, BLOCK), word(plan, SLOTS), word(plan, READ)
    now = patience = stay = onto = 0
    begun = False
    before = flush_subnormals()  # deltas of outputs that are all but sure: steps on float32 took ten times as long
    while True:
        if not helper and not begun:
            if now == word(plan, STEPS):
                break
            begun, onto = True, word(plan, ONWARD)
            if word(plan, PACK):
                call(word(plan, PACK), (plan,))
            release(shared, FROM, acquire(shared, LIMIT))
            release(shared, STOP, word(starts, now))
            if word(starts, now) == word(stops, now) and not onto:  # no rows, whose sums would take the place of these
                for q in range(word(plan, COUNT) + TOTALS):
                    set_real(word(plan, SUMS), q, 0.0)
        ticket, limit = acquire(shared, NEXT), acquire(shared, LIMIT)
        if ticket < limit:
            some = max(1, min(MOST_BLOCKS, (limit - ticket) // word(plan, THREADS)))
            if alone:
                release(shared, NEXT, ticket + some)
            elif not swap(shared, NEXT, ticket, ticket + some):
                continue
            for mine in range(ticket - acquire(shared, FROM), ticket - acquire(shared, FROM) + some):
                first = acquire(shared, BEGIN) + mine * block
                stop = min(first + block, acquire(shared, STOP))
                call(kernel, (plan, first, stop, a, stay, word(plan, BLOCK_SUMS) + mine * word(plan, SLOT_BYTES)))
            if alone:
                release(shared, DONE, ticket + some)
            else:
                count_up(shared, DONE, some)
            patience = 0
        elif helper:
            if acquire(shared, END):
                break
            patience += 1
        elif acquire(shared, DONE) == limit:
            blocks = limit - acquire(shared, FROM)
            if blocks and word(plan, FOLD):
                call(word(plan, FOLD), (plan, blocks, onto))
                onto = 1
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
