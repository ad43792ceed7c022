// Rows of any strides and order, brought into a thread's memory: there each unit owns neighbouring numbers, one a row.
#pragma once
#include "plan.hpp"

namespace bp {

// Columns that lie together each.
template <class T> static i64 load_unit_rows(const T* x, const Field& f, i64 rows, T* unit) {
    typedef Wide<T> V;
    i64 whole = rows / wide<T> * wide<T>;
    for (i64 d = 0; d < f.columns; d++)
        for (i64 r = 0; r < whole; r += wide<T>) store(unit + d * apart<T> + r, load<V>(x + d * f.column + r));
    return whole;
}

// Rows of 2, 3 or 4 numbers that lie together, without gaps; `left` rows lie from x on. A load is of a power of two: of
// rows of 3, the last quarter is not used, but must be there.
template <int COLUMNS, class T> static i64 load_interleaved(const T* x, i64 rows, i64 left, T* unit) {
    constexpr int N = wide<T>, READ = COLUMNS == 2 ? 2 : 4;
    i64 whole = rows / N * N;
    if (whole && COLUMNS * (whole - N) + READ * N > COLUMNS * left) whole -= N;
    for (i64 r = 0; r < whole; r += N) {
        auto read = load<Vector<T, READ * N>>(x + COLUMNS * r);
        store(unit + r, deinterleave<COLUMNS, 0>(read, Count<N>()));
        store(unit + apart<T> + r, deinterleave<COLUMNS, 1>(read, Count<N>()));
        if constexpr (COLUMNS > 2) store(unit + 2 * apart<T> + r, deinterleave<COLUMNS, 2>(read, Count<N>()));
        if constexpr (COLUMNS > 3) store(unit + 3 * apart<T> + r, deinterleave<COLUMNS, 3>(read, Count<N>()));
    }
    return whole;
}

// Rows of at least C numbers that lie together, anywhere: tiles are transposed.
template <int C, class T> static i64 load_transposed(const T* const* starts, i64 columns, i64 rows, T* unit) {
    for (i64 r = 0; r < rows; r += TILE_ROWS) {
        i64 n = lesser(r, rows - TILE_ROWS);  // the last tile may transpose some rows and columns again
        const T* tile[TILE_ROWS];
        for (i64 d = 0; d < columns; d += C) {
            i64 c = lesser(d, columns - C);
            UNROLL for (int i = 0; i < TILE_ROWS; i++) tile[i] = starts[n + i] + c;
            transpose_rows<C>(tile, unit + c * apart<T> + n, apart<T>);
        }
    }
    return rows;
}

// Rows first ... first + rows of a field. Up to `end`, the last row is repeated.
template <class T>
static void read_field(const Plan<T>& plan, const Field& f, i64 first, i64 rows, i64 end, T* a) {
    constexpr i64 C = REGISTER / sizeof(T);
    T* unit = a + f.unit * apart<T>;
    const T* x = (const T*)f.at;
    const i64* order = plan.order;
    i64 whole = 0;
    if (!order && f.row == 1) whole = load_unit_rows(x + first, f, rows, unit);
    else if (!order && f.column == 1 && f.row == f.columns && f.row == 2)
        whole = load_interleaved<2>(x + 2 * first, rows, plan.rows - first, unit);
    else if (!order && f.column == 1 && f.row == f.columns && f.row == 3)
        whole = load_interleaved<3>(x + 3 * first, rows, plan.rows - first, unit);
    else if (!order && f.column == 1 && f.row == f.columns && f.row == 4)
        whole = load_interleaved<4>(x + 4 * first, rows, plan.rows - first, unit);
    else if (f.column == 1 && f.columns >= greater(C / 4, 2) && rows >= TILE_ROWS) {
        const T* starts[stretch_rows<T>];
        for (i64 r = 0; r < rows; r++) starts[r] = x + (order ? order[first + r] : first + r) * f.row;
        if (f.columns >= C) whole = load_transposed<C>(starts, f.columns, rows, unit);
        else if constexpr (C >= 4) {
            if (f.columns >= C / 2) whole = load_transposed<C / 2>(starts, f.columns, rows, unit);
            else if constexpr (C >= 8) whole = load_transposed<C / 4>(starts, f.columns, rows, unit);
        }
    }
    for (i64 r = whole; r < end; r++) {
        i64 n = first + lesser(r, rows - 1);
        const T* row = x + (order ? order[n] : n) * f.row;
        for (i64 d = 0; d < f.columns; d++) unit[d * apart<T> + r] = row[d * f.column];
    }
}

// Weights of rows: 1 where there are none. Rows that fill up count nothing: where nothing times a row is nan, so is the
// sum without that.
template <class T> static void read_weights(const Plan<T>& plan, i64 first, i64 rows, i64 end, T* a) {
    T* unit = a + plan.row_weights.unit * apart<T>;
    if (plan.row_weights.at) read_field(plan, plan.row_weights, first, rows, end, a);
    else for (i64 r = 0; r < rows; r++) unit[r] = 1;
    for (i64 r = rows; r < end; r++) unit[r] = 0;
}

// The address of the rows that this thread is likely to read next, if they lie together; else some of its own.
template <class T> static const char* rows_ahead(const Plan<T>& plan, const Field& f, i64 next, i64 rows, const T* a) {
    bool together = !plan.order && f.column == 1 && f.row == f.columns;
    return together && next + rows <= plan.rows ? (const char*)((const T*)f.at + next * f.row) : (const char*)a;
}

// The rows that come next lie anywhere: they come while those before them are learned from.
template <class T> static void fetch_rows(const Plan<T>& plan, const Field& f, i64 next, i64 stop) {
    if (!f.at || f.column != 1) return;
    for (i64 n = next; n < stop; n++) {
        const T* row = (const T*)f.at + plan.order[n] * f.row;
        for (i64 d = 0; d < f.columns; d += line<T>) prefetch(row + d);
    }
}
}  // namespace bp
