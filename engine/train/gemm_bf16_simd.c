/*
 * gemm_bf16_simd.c - matrix products of BF16 operands with F32 sums (contract: gemm.h), for CPUs
 * with vdpbf16ps: of 16 lanes, each adds the products of a pair of BF16 numbers to its sum.
 *
 * k is cut into blocks of at most MOST_K, rows and columns of c into blocks whose packed operands
 * stay in the L2 cache. Packing rounds to BF16 and pairs neighbours along k, a pair to 32 bits:
 *
 *   b   panels of 32 columns, [pairs][32]: two vectors for each pair of k
 *   a   k contiguous (nt, nn): rows, [row][ROW_PAIRS], as they lie in memory;
 *       m contiguous (tn): panels of 12 rows, [pairs][12]
 *
 * so that only b of nt has to be transposed, in registers. A tile is up to 12 rows x 32 columns of
 * c in 24 registers: for each pair of k it loads 2 vectors of b and broadcasts 12 pairs of a. The
 * sum of an element runs over a block of k in order, whatever tile it is in.
 */
#include "train/gemm.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define XM_INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    TILE_ROWS = 12,
    TILE_COLUMNS = 2 * LANES,
    MOST_K = 384,       /* a panel of b, 24 KiB, stays in the L1 cache */
    MOST_ROWS = 192,    /* whole tiles */
    MOST_COLUMNS = 512, /* packed, 384 KiB */
    /* Distances of an odd number of cache lines, or of two: rows must not share a few cache sets.
     */
    ROW_PAIRS = MOST_K / 2 + LANES,
    PANEL_PAIRS = MOST_K / 2 * TILE_COLUMNS + TILE_COLUMNS,
    A_PAIRS = MOST_ROWS * ROW_PAIRS,
    B_PAIRS = MOST_COLUMNS / TILE_COLUMNS * PANEL_PAIRS
};

typedef struct {
    const float *a, *b;
    size_t a_stride, b_stride, c_stride;
    float *c;
    float beta;
    int32_t m, n, k;
    bool a_by_k, b_by_k; /* stored as [k][m], [k][n] */
} product;

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* The first `count` of 16 lanes; all, none for counts beyond. */
XM_INLINE __mmask16 first_lanes(int32_t count)
{
    int32_t lanes = count < 0 ? 0 : count < LANES ? count : LANES;
    return (__mmask16)((1u << lanes) - 1u);
}

/* --- packing ---------------------------------------------------------------------------------- */

/* 32 floats of one row, along k: 16 pairs. */
XM_INLINE __m512i pack_along(const float *x, int32_t count)
{
    __m512 low, high;
    if (count >= 2 * LANES) {
        low = _mm512_loadu_ps(x);
        high = _mm512_loadu_ps(x + LANES);
    } else {
        low = _mm512_maskz_loadu_ps(first_lanes(count), x);
        high = _mm512_maskz_loadu_ps(first_lanes(count - LANES), x + LANES);
    }
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* Up to 16 floats of two neighbours along k, rows x and x + stride (if there is one): 16 pairs. */
XM_INLINE __m512i pack_across(const float *x, size_t stride, bool two, __mmask16 lanes)
{
    const __m512i interleave =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512 even = _mm512_maskz_loadu_ps(lanes, x);
    __m512 odd = _mm512_maskz_loadu_ps(two ? lanes : 0, two ? x + stride : x);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* 16 x 16 values of 32 bits: element i of vector j becomes element j of vector i. */
XM_INLINE void transpose(__m512i v[LANES])
{
    __m512i t[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES;
         i += 4) { /* v[i + j]: columns j of each quarter, of rows i to i + 3 */
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* rows x k of a[m][k] */
static void pack_a_rows(uint32_t *to, const float *a, size_t stride, int32_t rows, int32_t k)
{
    for (int32_t row = 0; row < rows; row++, a += stride, to += ROW_PAIRS)
        for (int32_t i = 0; i < k; i += 2 * LANES)
            _mm512_storeu_si512(to + i / 2, pack_along(a + i, k - i));
}

/* The same of a[k][m] */
static void pack_a_panels(uint32_t *to, const float *a, size_t stride, int32_t rows, int32_t k)
{
    for (int32_t i = 0; i < k; i += 2, a += 2 * stride, to += TILE_ROWS)
        for (int32_t row = 0; row < rows; row += TILE_ROWS) {
            __mmask16 lanes = first_lanes(least(rows - row, TILE_ROWS));
            _mm512_mask_storeu_epi32(to + (size_t)row * ROW_PAIRS, first_lanes(TILE_ROWS),
                                     pack_across(a + row, stride, i + 1 < k, lanes));
        }
}

/* k x columns of b[k][n] */
static void pack_b_across(uint32_t *to, const float *b, size_t stride, int32_t columns, int32_t k)
{
    for (int32_t i = 0; i < k; i += 2, b += 2 * stride, to += TILE_COLUMNS)
        for (int32_t column = 0; column < columns; column += LANES) {
            uint32_t *panel = to + (size_t)(column / TILE_COLUMNS) * PANEL_PAIRS;
            _mm512_storeu_si512(
                panel + column % TILE_COLUMNS,
                pack_across(b + column, stride, i + 1 < k, first_lanes(columns - column)));
        }
}

/* The same of b[n][k] */
static void pack_b_along(uint32_t *to, const float *b, size_t stride, int32_t columns, int32_t k)
{
    for (int32_t column = 0; column < columns; column += LANES, b += LANES * stride) {
        uint32_t *panel = to + (size_t)(column / TILE_COLUMNS) * PANEL_PAIRS;
        panel += column % TILE_COLUMNS;
        int32_t have = least(columns - column, LANES);
        for (int32_t i = 0; i < k; i += 2 * LANES) {
            __m512i v[LANES];
#pragma GCC unroll 16
            for (int32_t j = 0; j < LANES; j++)
                v[j] = j < have ? pack_along(b + (size_t)j * stride + i, k - i)
                                : _mm512_setzero_si512();
            transpose(v);
#pragma GCC unroll 16
            for (int32_t j = 0; j < LANES; j++)
                _mm512_storeu_si512(panel + (size_t)(i / 2 + j) * TILE_COLUMNS, v[j]);
        }
    }
}

/* --- tiles ------------------------------------------------------------------------------------ */

typedef struct {
    const uint32_t *a, *b; /* packed */
    int32_t pairs;
    int32_t rows, columns; /* to write, at most those of the tile */
    float *c;
    size_t c_stride;
    float beta;
} tile;

XM_INLINE void write_tile(const tile *t, __m512 sums[TILE_ROWS][2], const int rows,
                          const int vectors)
{
    const __mmask16 lanes[2] = {first_lanes(t->columns), first_lanes(t->columns - LANES)};
    const __m512 beta = _mm512_set1_ps(t->beta);
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        if (row >= t->rows)
            break;
        float *c = t->c + (size_t)row * t->c_stride;
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            __m512 sum = sums[row][v];
            if (t->beta != 0.0f)
                sum = _mm512_fmadd_ps(beta, _mm512_maskz_loadu_ps(lanes[v], c + v * LANES), sum);
            _mm512_mask_storeu_ps(c + v * LANES, lanes[v], sum);
        }
    }
}

/* rows (of a: by k, or ROW_PAIRS apart) and vectors are constants: each of their values is code of
 * its own, in which the sums are registers. */
XM_INLINE void compute_tile(const tile *t, const bool a_by_k, const int rows, const int vectors)
{
    const size_t row_step = a_by_k ? 1 : ROW_PAIRS, pair_step = a_by_k ? TILE_ROWS : 1;
    const uint32_t *a = t->a, *b = t->b;
    __m512 sums[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++)
        sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    for (int32_t pair = 0; pair < t->pairs; pair++, a += pair_step, b += TILE_COLUMNS) {
        __m512bh columns[2];
        columns[0] = (__m512bh)_mm512_loadu_si512(b);
        if (vectors > 1)
            columns[1] = (__m512bh)_mm512_loadu_si512(b + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            __m512bh one = (__m512bh)_mm512_set1_epi32((int32_t)a[(size_t)row * row_step]);
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], one, columns[0]);
            if (vectors > 1)
                sums[row][1] = _mm512_dpbf16_ps(sums[row][1], one, columns[1]);
        }
    }
    write_tile(t, sums, rows, vectors);
}

/* Rows that are missing in a tile of 4, 8 or 12 are computed from what lies there, not written. */
XM_INLINE void run_tile(const tile *t, const bool a_by_k, const int vectors)
{
    if (t->rows > 8)
        compute_tile(t, a_by_k, 12, vectors);
    else if (t->rows > 4)
        compute_tile(t, a_by_k, 8, vectors);
    else
        compute_tile(t, a_by_k, 4, vectors);
}

static void tile_by_row(const tile *t)
{
    if (t->columns > LANES)
        run_tile(t, false, 2);
    else
        run_tile(t, false, 1);
}

static void tile_by_k(const tile *t)
{
    if (t->columns > LANES)
        run_tile(t, true, 2);
    else
        run_tile(t, true, 1);
}

/* --- a product -------------------------------------------------------------------------------- */

/* A block of k, [k0, k0 + k), for rows and columns from (row, column) on. */
static void run_block(const product *p, const uint32_t *a, const uint32_t *b, int32_t row,
                      int32_t column, int32_t rows, int32_t columns, int32_t k, float beta)
{
    for (int32_t j = 0; j < columns; j += TILE_COLUMNS)
        for (int32_t i = 0; i < rows; i += TILE_ROWS) {
            const tile t = {.a = a + (size_t)i * ROW_PAIRS,
                            .b = b + (size_t)(j / TILE_COLUMNS) * PANEL_PAIRS,
                            .pairs = (k + 1) / 2,
                            .rows = least(rows - i, TILE_ROWS),
                            .columns = least(columns - j, TILE_COLUMNS),
                            .c = p->c + (size_t)(row + i) * p->c_stride + (column + j),
                            .c_stride = p->c_stride,
                            .beta = beta};
            if (p->a_by_k)
                tile_by_k(&t);
            else
                tile_by_row(&t);
        }
}

static void run_k(const product *p, uint32_t *scratch, int32_t k0, int32_t k, float beta)
{
    uint32_t *a = scratch, *b = scratch + A_PAIRS;
    for (int32_t column = 0; column < p->n; column += MOST_COLUMNS) {
        int32_t columns = least(p->n - column, MOST_COLUMNS);
        if (p->b_by_k)
            pack_b_across(b, p->b + (size_t)k0 * p->b_stride + column, p->b_stride, columns, k);
        else
            pack_b_along(b, p->b + (size_t)column * p->b_stride + k0, p->b_stride, columns, k);
        for (int32_t row = 0; row < p->m; row += MOST_ROWS) {
            int32_t rows = least(p->m - row, MOST_ROWS);
            if (p->a_by_k)
                pack_a_panels(a, p->a + (size_t)k0 * p->a_stride + row, p->a_stride, rows, k);
            else
                pack_a_rows(a, p->a + (size_t)row * p->a_stride + k0, p->a_stride, rows, k);
            run_block(p, a, b, row, column, rows, columns, k, beta);
        }
    }
}

/* k in equal blocks of whole vectors of pairs. */
static void run(const product *p, void *scratch)
{
    int32_t blocks = p->k <= MOST_K ? 1 : (p->k + MOST_K - 1) / MOST_K;
    int32_t block = ((p->k + blocks - 1) / blocks + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
    run_k(p, scratch, 0, least(p->k, block), p->beta);
    for (int32_t k0 = block; k0 < p->k; k0 += block)
        run_k(p, scratch, k0, least(p->k - k0, block), 1.0f);
}

static void bf16_nt(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    const product p = {
        a, b, (size_t)a_stride, (size_t)b_stride, (size_t)c_stride, c, beta, m, n, k, false, false};
    run(&p, scratch);
}

static void bf16_nn(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    const product p = {
        a, b, (size_t)a_stride, (size_t)b_stride, (size_t)c_stride, c, beta, m, n, k, false, true};
    run(&p, scratch);
}

static void bf16_tn(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    const product p = {
        a, b, (size_t)a_stride, (size_t)b_stride, (size_t)c_stride, c, beta, m, n, k, true, true};
    run(&p, scratch);
}

const xm_gemm xm_gemm_bf16 = {.precision = XM_PRECISION_BF16,
                              .scratch_bytes = (A_PAIRS + B_PAIRS) * sizeof(uint32_t),
                              .nt = bf16_nt,
                              .nn = bf16_nn,
                              .tn = bf16_tn};

#endif
