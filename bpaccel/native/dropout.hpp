// Dropout: which hidden units are silent for which rows, the same as bpaccel/dropout.py draws them with NumPy.
//
// The numbers are those of Philox4x64-10 (J. Salmon, M. Moraes, R. Dror and D. Shaw, Parallel random numbers: as easy as
// 1, 2, 3, SC 2011), a function of a key (seed, step) and a counter. Each row has counters of its own, by its place in
// the order of the rows; each counter gives four numbers of 64 bits, eight draws.
#pragma once
#include "plan.hpp"

namespace bp {
typedef unsigned long long u64;
struct Draws { u64 of[4]; };

FORMULA u64 high(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }

FORMULA Draws philox(u64 counter, u64 seed, u64 step) {
    Draws x = {{counter, 0, 0, 0}};
    for (int round = 0; round < 10; round++) {
        constexpr u64 A = 0xD2E7470EE14C6C93, B = 0xCA5A826395121157;
        x = {{high(B, x.of[2]) ^ x.of[1] ^ seed, B * x.of[2], high(A, x.of[0]) ^ x.of[3] ^ step, A * x.of[0]}};
        seed += 0x9E3779B97F4A7C15;
        step += 0xBB67AE8584CAA73B;
    }
    return x;
}

// Set the masks of all hidden units for a stretch of rows: 1, or 0 for a silent unit.
template <class T> static void draw_masks(const Plan<T>& plan, const Stretch& s, T* a) {
    T* masks = a + plan.masks * apart<T>;
    i64 units = 0;
    for (i64 layer = 1; layer < plan.depth; layer++) units += plan.sizes[layer];
    i64 counters = (units + 7) / 8;
    for (i64 r = 0; r < s.rows; r++) {
        u64 counter = (u64)((s.place + r) * counters);
        for (i64 first = 0; first < units; first += 8) {
            Draws draws = philox(++counter, plan.seed, (u64)s.step);  // NumPy counts before it draws
            for (i64 u = first; u < lesser(first + 8, units); u++) {
                u64 two = draws.of[(u - first) / 2], draw = u & 1 ? two >> 32 : two & 0xffffffff;
                masks[u * apart<T> + r] = draw >= plan.silent_below;
            }
        }
    }
    for (i64 u = 0; u < units; u++)
        for (i64 r = s.rows; r < s.end; r++) masks[u * apart<T> + r] = 0;
}

// x / share where a mask is 1, else 0: outputs, or slopes, of the units that are left.
template <class T> static void drop(T* x, const T* masks, i64 units, i64 end, T share) {
    for (i64 u = 0; u < units; u++)
        over_rows<T>(end, [&](i64 r, auto vector) INLINED {
            typedef decltype(vector) V;
            T* at = x + u * apart<T> + r;
            store(at, select(load<V>(masks + u * apart<T> + r) > T(0), load<V>(at) / share, V{}));
        });
}
// x * share: what the units that are left said before `drop` made them louder.
template <class T> static void quieten(T* x, i64 units, i64 end, T share) {
    each<T>(x, units, end, [&](auto a) INLINED { return a * share; });
}
}  // namespace bp
