"""Faults to be put into our kernels, and into the code that plans and launches them, one at a time (`mutants.py`)."""

# What is broken: (the file's text, what stands there instead), or several of them.
READING = {
    "columns at the wrong stride": (
        "unit[d * apart<T> + r] = row[d * f.column];",
        "unit[d * apart<T> + r] = row[d];",
    ),
    "rows at the wrong stride": (
        "const T* row = x + (order ? order[n] : n) * f.row;",
        "const T* row = x + (order ? order[n] : n) * f.columns;",
    ),
    "the order is ignored, a number at a time": ("(order ? order[n] : n)", "n"),
    "the order is ignored, a tile at a time": ("(order ? order[first + r] : first + r)", "(first + r)"),
    "the last rows of tiles are lost": (
        "for (i64 r = 0; r < rows; r += TILE_ROWS) {\n        i64 n = lesser",
        "for (i64 r = 0; r + TILE_ROWS <= rows; r += TILE_ROWS) {\n        i64 n = lesser",
    ),
    "the last columns of tiles are lost": (
        "for (i64 d = 0; d < columns; d += C)",
        "for (i64 d = 0; d + C <= columns; d += C)",
    ),
    "interleaved rows are read past the end": (
        "if (whole && COLUMNS * (whole - N) + READ * N > COLUMNS * left) whole -= N;",
        "",
    ),
    "columns are read past the end": (
        "i64 whole = rows / wide<T> * wide<T>;",
        "i64 whole = up(rows, wide<T>);",
    ),
    "rows that fill up count": ("for (i64 r = rows; r < end; r++) unit[r] = 0;", ""),
    "rows that fill up are read past the end": ("i64 n = first + lesser(r, rows - 1);", "i64 n = first + r;"),
    "columns of interleaved rows change places": (
        "store(unit + apart<T> + r, deinterleave<COLUMNS, 1>",
        "store(unit + apart<T> + r, deinterleave<COLUMNS, 0>",
    ),
}
FUSED = {
    "the bias's unit is 0": ("out[r - apart<T>] = 1;", "out[r - apart<T>] = 0;"),
    "a softmax without its greatest number": ("- top);", ");"),
    "a row's weight does not weigh its error": ("(y, l, T(number)) * c);", "(y, l, T(number)));"),
    "the error is summed, not averaged over outputs": (
        "(double)reduce_add<T, lanes<T>>(error) / units;",
        "(double)reduce_add<T, lanes<T>>(error);",
    ),
    "the last units of a layer are lost": ("for (i64 o = 0; o < O;) {", "for (i64 o = 0; o + 4 <= O;) {"),
    "sums do not begin at 0": ("if (!onto) for (i64 q = 0; q < I * O; q++) g[q] = 0;", ""),
    "sums by units keep the last stretch only": ("end, onto ? ADD : SET);", "end, SET);"),
    "the last units are not transposed": (
        "for (i64 o = 0; o < O; o += TILE_ROWS)",
        "for (i64 o = 0; o + TILE_ROWS <= O; o += TILE_ROWS)",
    ),
    "a hidden layer's slope is forgotten": ("} else if (slope)\n            slope(x, inputs, s.end);", "}"),
    "slopes are lost below a layer": (
        "How how = slope || plan.share != 1 ? MULTIPLY : SET;",
        "How how = SET;",
    ),
    "the error goes back by the wrong stride": ("{plan.weights + p, 1, O, 0}", "{plan.weights + p, 1, inputs, 0}"),
    "the tail of a block is lost": (
        "for (i64 start = first; start < stop; start += stretch_rows<T>) {\n        i64 rows = "
        "lesser(stretch_rows<T>, stop - start), end = up(rows, plan.filling)",
        "for (i64 start = first; start == first || start + stretch_rows<T> <= stop; start += stretch_rows<T>) {\n"
        "        i64 rows = lesser(stretch_rows<T>, stop - start), end = up(rows, plan.filling)",
    ),
    "each stretch takes the place of the one before": ("step, start > first,", "step, false,"),
    "a mask of the wrong layer, forward": ("masks += O * apart<T>;", ""),
    "a mask of the wrong layer, back": ("silent -= inputs;", ""),
    "slopes are taken of what dropout made louder": ("quieten(x, inputs, s.end, T(plan.share));", ""),
    "dropout counts the places of rows from 0": ("{plan.first_place + start,", "{start - plan.starts[0],"),
    "an order's rows are fetched from behind its end": (
        "i64 then = lesser(next + rows, plan.rows);",
        "i64 then = next + 2 * rows;",
    ),
    "predictions at the wrong stride": ("to[r * O + o]", "to[r * plan.sizes[0] + o]"),
    "each stretch of predictions takes the place of the first": (
        "plan.outputs + start * O",
        "plan.outputs + first * O",
    ),
}
DROPOUT = {
    "the counter is one off": ("philox(++counter,", "philox(counter++,"),
    "halves of a number change places": (
        "u & 1 ? two >> 32 : two & 0xffffffff",
        "u & 1 ? two & 0xffffffff : two >> 32",
    ),
    "nine rounds": ("round < 10", "round < 9"),
    "the step is left out of the key": ("plan.seed, (u64)s.step)", "plan.seed, 0)"),
    "a row has too few counters": ("(units + 7) / 8", "units / 8 + (units < 8)"),
    "what is left is not louder": ("load<V>(at) / share, V{}", "load<V>(at), V{}"),
}
PRODUCTS = {
    "the last tile is not cut": ("lesser(size, units - u), {out.at", "size, {out.at"),
    "sums of many inputs begin anew": ("c ? ADD : how", "how"),
    "the last inputs are not cut": ("lesser(near, count - c)", "near"),
    "a slope is added to the second part of a sum": (
        "how == MULTIPLY ? 1 : (count",
        "how == MULTIPLY + 1 ? 1 : (count",
    ),
    "tiles at the wrong stride": ("{tiles, TILE, 1, count * TILE}", "{tiles, TILE, 1, (count - 1) * TILE}"),
    "weights are put into the wrong tile": ("tiles[(u / size * count + c)", "tiles[(u / size * count + c / 2 * 2)"),
}
SUMS = {
    "lanes fold onto themselves": ("(I / H * RUN + I % H + H)...", "(I / H * RUN + I % H)..."),
    "the last sums of a layer are lost": (
        "for (int k = K / 4 * 4; k < K; k++) g[k] +=",
        "for (int k = K / 4 * 4; k < K - 1; k++) g[k] +=",
    ),
    "lanes are added in another order, four at a time": (
        "auto ab = half_runs<N>(a, b, Count<N>())",
        "Vector<T, 4> four = {};\n    for (int k = 0; k < N; k++) four += Vector<T, 4>{a[k], b[k], c[k], d[k]};\n"
        "    if (four[0] == four[0] || true) return four;\n    auto ab = half_runs<N>(a, b, Count<N>())",
    ),
}
LANES = {
    "half of the lanes": ("reduce_add<T, N / 2>(halves.low + halves.high)", "reduce_add<T, N / 2>(halves.low)"),
    "lanes are added in another order, one vector at a time": (
        "if constexpr (N == 2) return value[0] + value[1];",
        "if constexpr (N == 4) return ((value[0] + value[1]) + value[2]) + value[3];\n"
        "    else if constexpr (N == 2) return value[0] + value[1];",
    ),
}
TREE = {
    "from left to right": [
        ("if (number & 1) {", "if (number) {"),
        ("to = lowest + __builtin_ctzll(~(unsigned long long)number) * length;", "to = lowest;"),
        ("level = __builtin_ctzll((unsigned long long)seen);\n    const double", "level = 0;\n    const double"),
        ("while (seen >>= level + 1)", "while ((seen = 0))"),
    ],
    "a carry goes one level": ("__builtin_ctzll(~(unsigned long long)number) * length", "length"),
    "a carry loses a level": ("node < to; node += length)", "node + length < to; node += length)"),
    "nodes at the wrong level": ("node += (level + 1) * length;", "node += length;"),
    "the last block alone": ("while (seen >>= level + 1) {", "while ((seen = 0)) {"),
    "a layer's sums at the wrong stride": ("part + i * up(O, wide<T>)", "part + i * O"),
}
STEPS = {
    "the first block is dropped": ("for (i64 k = 0; k < blocks; k++) {", "for (i64 k = blocks > 1; k < blocks; k++) {"),
    "a block of those claimed at once is dropped": (
        "mine < ticket - from + some; mine++",
        "mine < ticket - from + some - (some > 1); mine++",
    ),
    "the last block is not cut": (
        "learn_block(plan, first, lesser(first + BLOCK_ROWS, stop), step, a",
        "learn_block(plan, first, first + BLOCK_ROWS, step, a",
    ),
    "more blocks are claimed than there are": ("greater(1, lesser(MOST_BLOCKS, (limit - ticket) / plan.threads))", "2"),
    "race: blocks are counted before they are done": [
        (
            "    i64 from = acquire(control.from), begin",
            "    __atomic_fetch_add(&control.done.value, some, __ATOMIC_ACQ_REL);\n"
            "    i64 from = acquire(control.from), begin",
        ),
        ("    __atomic_fetch_add(&control.done.value, some, __ATOMIC_ACQ_REL);\n    return true;", "    return true;"),
    ],
    "race: blocks are claimed by a plain store": (
        "if (!__atomic_compare_exchange_n(&control.next.value, &ticket, ticket + some, false, __ATOMIC_ACQ_REL, "
        "__ATOMIC_RELAXED))\n        return true;",
        "release(control.next, ticket + some);",
    ),
    "race: what was done is read before it is there": (
        "return __atomic_load_n(&w.value, __ATOMIC_ACQUIRE)",
        "return __atomic_load_n(&w.value, __ATOMIC_RELAXED)",
    ),
    "race: what is announced is not there yet": (
        "__atomic_store_n(&w.value, value, __ATOMIC_RELEASE)",
        "__atomic_store_n(&w.value, value, __ATOMIC_RELAXED)",
    ),
    "race: done blocks are not published": (
        "__atomic_fetch_add(&control.done.value, some, __ATOMIC_ACQ_REL)",
        "__atomic_fetch_add(&control.done.value, some, __ATOMIC_RELAXED)",
    ),
    "race: the leader does not wait": ("return acquire(control.done) == from + blocks;", "return true;"),
    "rows of another batch stay": (
        "bool stay = now && start == plan.starts[now - 1] && stop",
        "bool stay = now && stop",
    ),
    "rows of another stretch stay": ("&& stop - start <= stretch_rows<T>;", "&& stop - start <= BLOCK_ROWS;"),
    "every step has the number of the first": ("plan.step + now, a, stay", "plan.step, a, stay"),
    "weights are put into tiles once": (
        "        pack_weights(plan);\n        sum_rows",
        "        if (!now) pack_weights(plan);\n        sum_rows",
    ),
    "subnormal numbers are kept in the pass": ("ldmxcsr(before | 0x8040)", "ldmxcsr(before)"),
    "subnormal numbers are nothing for the caller too": ("~FlushSubnormals() { __builtin_ia32_ldmxcsr(before); }", ""),
    "subnormal numbers are kept in a step of rows in chunks": (
        "    FlushSubnormals flushed;\n    apply_step(*plan, now);",
        "    apply_step(*plan, now);",
    ),
    "nodes of a later round begin the tree anew": (
        "fold(plan, plan.tree, seen, blocks);",
        "fold(plan, plan.tree, 0, blocks);",
    ),
    "a step of no rows keeps the sums before": (
        "else for (i64 q = 0; q < plan.count + TOTALS; q++) plan.sums[q] = 0;\n        return;",
        "return;",
    ),
}
SOLVERS = {
    "the penalty pulls the other way": ("- plan.l2 * W", "+ plan.l2 * W"),
    "the bias is penalised": ("p + inputs * O,", "p + (inputs + plan.bias) * O,"),
    "the last weights are not penalised": ("for (; q < stop; q++) sums[(q - first) & 7] += term(q);", ""),
    "the length is that of the sums, not of the means": (
        "(plan.sums[q] * share) * (plan.sums[q] * share)",
        "plan.sums[q] * plan.sums[q]",
    ),
    "Nesterov's step is momentum's": ("w[q] += fma(first, s[q], rate * u);", "w[q] += s[q];"),
    "epsilon under the root": ("square_root(t[q]) + epsilon", "square_root(t[q] + epsilon)"),
    "weights do not decay": ("w[q] * remains)", "w[q] * (remains > 0 ? T(1) : remains))"),
    "rows that count nothing divide by 0": ("weight > 0 ? 1 / weight : 0", "1 / weight"),
    "every step has the first rate": ("plan.rates[now]", "plan.rates[0]"),
    "totals of all steps in one place": ("plan.totals[4 * now + k]", "plan.totals[k]"),
}
WRITTEN = {
    "written out: no bias": ("if (Net::bias) z = z + w[p + I * O + o];", ""),
    "written out: a slope is forgotten": ("error * Net::F::slope(l)", "error"),
    "written out: the bias asks for nothing": ("o < (Net::bias ? O : 0)", "o < 0"),
    "written out: sums do not begin at 0": ("if (!s.onto) for (int k = 0;", "if (false) for (int k = 0;"),
    "written out: sums in another order": (
        "Many z = l[0] * w[p + o];\n                UNROLL for (int i = 1; i < I; i++) z =",
        "Many z = l[I - 1] * w[p + (I - 1) * O + o];\n                UNROLL for (int i = I - 2; i >= 0; i--) z =",
    ),
}
LAUNCH_PY = {
    "the tree is a level too low": ("blocks.bit_length()", "(blocks - 1).bit_length()"),
    "threads share their memory": (
        "                scratch = launch.scratch()\n",
        "                scratch = launch.scratch()\n                launch.memory.take_back(scratch)\n                "
        "scratch = launch.scratch()\n                launch.memory.take_back(scratch)\n",
    ),
    "slots for one block": ("plan.slots * at.slot_bytes", "at.slot_bytes"),
    "steps are counted from 2": ("rates_of(solver, rates, step + 1)", "rates_of(solver, rates, step + 2)"),
}
LAYOUT_PY = {
    "transposed deltas have too little memory": ("(deltas + 64 // width)", "(deltas // 2)"),
    "the targets lie on the last layer": ("targets = sum(sizes) +", "targets = sum(sizes[:-1]) +"),
    "tiles have too little memory": ("-(-o // table.tile) * i * table.tile if", "o // table.tile * i * table.tile if"),
}
PLAN_PY = {
    "AdamW's epsilon is Adam's": ("epsilon * (1.0 - solver.beta_2**steps) ** 0.5", "epsilon"),
    "Adam's means are not corrected": ("rates * correction / (1.0 - solver.beta_1**steps)", "rates * correction"),
}
FORWARD_PY = {
    "the last share of the rows is not predicted": (
        "for at in range(share, n, share)",
        "for at in range(share, n - share, share)",
    ),
    "memory for one unit less": ("self.layout.units * self.table", "(self.layout.targets - 1) * self.table"),
}
FUSED_PY = {
    "dropout counts from 0 in each chunk": ("then - first, step, first)", "then - first, step, 0)"),
    "every step of rows in chunks has the number of the first": (
        "batches.stops[j], step + j)",
        "batches.stops[j], step)",
    ),
}
FAULTS = {
    "native/reading.hpp": READING, "native/fused.hpp": FUSED, "native/dropout.hpp": DROPOUT,
    "native/products.hpp": PRODUCTS, "native/sums.hpp": SUMS, "native/lanes.hpp": LANES, "native/tree.hpp": TREE,
    "native/steps.hpp": STEPS, "native/solvers.hpp": SOLVERS, "native/written.hpp": WRITTEN,
    "engines/cpu/launch.py": LAUNCH_PY, "engines/cpu/layout.py": LAYOUT_PY, "engines/cpu/plan.py": PLAN_PY,
    "engines/cpu/forward.py": FORWARD_PY, "engines/cpu/fused.py": FUSED_PY,
}  # fmt: skip
