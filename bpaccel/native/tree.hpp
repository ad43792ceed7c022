// The tree of sums. The sum of the blocks in a node of the binary tree over block numbers is the sum of its left half plus
// the sum of its right half, in float64; a half that holds no block counts for nothing. So no bit depends on who summed
// what: the sum of an aligned power of two of blocks is a node, on any thread, in any piece of the rows, anywhere.
//
// While blocks come in their order, level l of `plan.tree` holds the sum of 2 ** l neighbouring blocks where bit l of the
// number of blocks so far is set. A block is added to what is whole with it, as one carries when one counts.
#pragma once
#include "plan.hpp"

namespace bp {
constexpr i64 NEARBY = 512;  // numbers that are added up in one go, so that they stay in the first cache

// Add the sums of some blocks, of which `seen` came before, to the tree: `count` numbers from p on. Those of the first
// block lie at `from`.
template <class T, class U>
static void fold_numbers(const Plan<T>& plan, double* tree, const U* from, i64 p, i64 count, i64 seen, i64 blocks) {
    i64 length = plan.count + TOTALS;
    for (i64 block = 0; block < blocks; block++) {
        const U* sums = (const U*)((const char*)from + block * plan.slot_bytes);
        double *lowest = tree + p, *to = lowest;
        i64 number = seen + block;
        if (number & 1) {
            to = lowest + __builtin_ctzll(~(unsigned long long)number) * length;
            for (i64 q = 0; q < count; q++) to[q] = lowest[q] + (double)sums[q];
            for (double* node = lowest + length; node < to; node += length)
                for (i64 q = 0; q < count; q++) to[q] = node[q] + to[q];
        } else
            for (i64 q = 0; q < count; q++) to[q] = (double)sums[q];
    }
}

// The same for all numbers, in slots from plan.block_sums on. Where a layer's sums are kept by units, they are numbers of the rows' dtype.
template <class T> static void fold(const Plan<T>& plan, double* tree, i64 seen, i64 blocks) {
    i64 p = 0;
    auto fold_doubles = [&](i64 count) {
        for (i64 q = 0; q < count; q += NEARBY)
            fold_numbers(plan, tree, (const double*)plan.block_sums + p + q, p + q, lesser(NEARBY, count - q), seen, blocks);
        p += count;
    };
    for (i64 layer = 0; layer < plan.depth; layer++) {
        i64 I = plan.sizes[layer] + plan.bias, O = plan.sizes[layer + 1];
        if (plan.parts[layer]) {
            const T* part = (const T*)(plan.block_sums + plan.parts[layer]);
            for (i64 i = 0; i < I; i++, p += O) fold_numbers(plan, tree, part + i * up(O, wide<T>), p, O, seen, blocks);
        } else
            fold_doubles(I * O);
    }
    fold_doubles(TOTALS);
}

// The sum of all blocks: the levels that hold one, from the lowest, whose blocks are the last.
template <class T> static void collapse(const Plan<T>& plan, i64 seen) {
    i64 length = plan.count + TOTALS, level = __builtin_ctzll((unsigned long long)seen);
    const double* node = plan.tree + level * length;
    for (i64 q = 0; q < length; q++) plan.sums[q] = node[q];
    while (seen >>= level + 1) {
        level = __builtin_ctzll((unsigned long long)seen);
        node += (level + 1) * length;
        for (i64 q = 0; q < length; q++) plan.sums[q] = node[q] + plan.sums[q];
    }
}
}  // namespace bp
