// Products of matrices, a tile at a time: what the pass spends its time with where layers are wide. A tile is some units
// of a layer times lanes; its sums stay in registers while it runs along what is summed over. Forward, backward and
// update are the same sums of other things: lanes times numbers.
//
// The layout of a tile follows K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM
// Transactions on Mathematical Software 34 (3), 2008.
#pragma once
#include "plan.hpp"

namespace bp {
// The most units of a tile: two registers of sums for each, and some for what is multiplied.
constexpr int TILE = REGISTERS == 32 ? (REGISTER == 64 ? 13 : 12) : 6;
constexpr i64 NEAR = 256;  // the most that is summed over at once: then the numbers of a tile stay in the first cache
enum How { SET, ADD, MULTIPLY };  // what becomes of what lies where the sums go

// Lanes that lie together: those of k begin at at + k * apart.
template <class T> struct Strips { T* at; i64 apart; };
// Numbers (c, u) at at + c * row + u * unit; or in tiles, a tile's numbers for one c together, as `pack` leaves them.
template <class T> struct Factors { const T* at; i64 row, unit, tile; };

template <int U, class V, class T>
static void tile(Strips<T> out, Strips<const T> in, const T* w, i64 row, i64 unit, i64 count, How how) {
    V sums[U] = {};
    if (how == ADD)
        UNROLL for (int u = 0; u < U; u++) {
            sums[u] = load<V>(out.at + u * out.apart);
            // What the next units are added to may be far away: it comes while these are computed.
            UNROLL for (int at = 0; at < (int)(sizeof(V) / sizeof(T)); at += line<T>)
                __builtin_prefetch(out.at + (U + u) * out.apart + at, 1, 3);
        }
    // Three numbers are found from one pointer, its unit and twice the unit, so few pointers are kept. The compiler is
    // told nothing of what the pointers have in common: else it finds each from the one before, a chain that takes
    // longer than the sums.
    const T* columns[(U + 2) / 3];
    UNROLL for (int k = 0; k < (U + 2) / 3; k++) columns[k] = w + 3 * k * unit;
    const T* l = in.at;
    for (i64 c = 0; c < count; c++, l += in.apart) {
        V value = load<V>(l);
        UNROLL for (int k = 0; k < (U + 2) / 3; k++) {
            const T* start = columns[k];
            __asm__("" : "+r"(start));
            UNROLL for (int u = 0; u < 3; u++)
                if (3 * k + u < U) sums[3 * k + u] = fma(value, all<V>(start[u * unit]), sums[3 * k + u]);
            columns[k] = start + row;
        }
    }
    if (how == MULTIPLY) UNROLL for (int u = 0; u < U; u++) sums[u] *= load<V>(out.at + u * out.apart);
    UNROLL for (int u = 0; u < U; u++) store(out.at + u * out.apart, sums[u]);
}

template <class T, int U = TILE>
static void tiled(i64 units, Strips<T> out, Strips<const T> in, i64 length, const T* w, i64 row, i64 unit, i64 count, How how) {
    if (units == U)
        over_rows<T>(length, [&](i64 v, auto vector) INLINED {
            tile<U, decltype(vector)>(Strips<T>{out.at + v, out.apart}, Strips<const T>{in.at + v, in.apart}, w, row, unit, count, how);
        });
    else if constexpr (U > 1) tiled<T, U - 1>(units, out, in, length, w, row, unit, count, how);
}

// Units of each tile but the last: about the same of all, for a small one costs as much to begin and to end.
FORMULA i64 tile_units(i64 units) {
    i64 tiles = (units + TILE - 1) / TILE;
    return (units + tiles - 1) / tiles;
}

// out[u] = sum of in[c] * w(c, u) over `count` of c, for `units` of u; strips of `length` numbers, a multiple
// of `lanes`.
template <class T>
static void products(Strips<T> out, i64 units, Strips<const T> in, i64 length, Factors<T> w, i64 count, How how) {
    i64 size = tile_units(units), parts = how == MULTIPLY ? 1 : (count + NEAR - 1) / NEAR;
    i64 near = (count + parts - 1) / parts;
    for (i64 c = 0; c < count; c += near)
        for (i64 u = 0; u < units; u += size) {
            const T* first = w.at + c * w.row + (w.tile ? u / size * w.tile : u * w.unit);
            tiled<T>(lesser(size, units - u), {out.at + u * out.apart, out.apart}, {in.at + c * in.apart, in.apart}, length,
                     first, w.row, w.unit, lesser(near, count - c), c ? ADD : how);
        }
}

// Put numbers (count, units) that lie row by row into tiles: those of a tile's units side by side, then the same of the
// next row. As they lie, a power of two apart, they would fall on the same lines of the cache.
template <class T> static void pack(const T* w, i64 count, i64 units, T* tiles) {
    i64 size = tile_units(units);
    for (i64 u = 0; u < units; u += size)
        for (i64 c = 0; c < count; c++)
            for (i64 k = 0; k < lesser(size, units - u); k++) tiles[(u / size * count + c) * TILE + k] = w[c * units + u + k];
}
template <class T> FORMULA Factors<T> packed(const T* tiles, i64 count) { return {tiles, TILE, 1, count * TILE}; }
}  // namespace bp
