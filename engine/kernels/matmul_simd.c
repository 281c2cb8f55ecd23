/*
 * matmul_simd.c - the panel kernels: 16 outputs side by side for each of a list of rows.
 *
 * Rows are taken in tiles that share the loads (and the unpacking) of weights; a panel is small
 * enough to stay in the cache while the tiles pass over it, so it comes from memory once. Each
 * row's arithmetic is that of kernels.h whatever tile it falls into. Entry: row_count >= 0, columns
 * >= 1, and whole blocks of 32 for Q8_0 and Q4_0. No state; any thread.
 */
#include "kernels/float_dots.h"
#include "kernels/simd.h"

/* Writes outputs of row `row` of the job, bias added last. */
XM_INLINE void write_outputs(const xm_panel_job *job, int32_t row, xm_lanes dot)
{
    float *out = job->out + (size_t)row * job->out_stride;
    size_t lanes = (size_t)job->lanes;

    if (lanes == XM_PANEL) {
        if (job->bias)
            dot = xm_lanes_add(dot, xm_lanes_load(job->bias));
        xm_lanes_store(out, dot);
    } else {
        if (job->bias)
            dot = xm_lanes_add(dot, xm_lanes_load_first(job->bias, lanes, xm_lanes_set(0.0f)));
        xm_lanes_store_first(out, lanes, dot);
    }
}

XM_INLINE void float_tile(const xm_panel_job *job, xm_weight_type type, int rows, int32_t first)
{
    const float *x[XM_MOST_TILE];
    xm_lanes dot[XM_MOST_TILE];

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        x[i] = job->x->f32 + (size_t)job->rows[first + i] * job->x->stride;
    xm_float_dots(type, rows, rows > 1, job->panel, job->columns, x, dot);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        write_outputs(job, first + i, dot[i]);
}

/* The three functions here give w . x[i] over the 32 columns of a block, exactly; q: the block's
 * values, x[i] + column: the row's. One or two rows alone would wait for the previous product, so
 * their integer sums are split, which changes nothing. */

XM_INLINE void q8_dots(int rows, const uint8_t *q, const int16_t *const x[], size_t column,
                       xm_ints dot[])
{
    const size_t splits = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    xm_ints sum[4 * XM_MOST_TILE];

#pragma GCC unroll XM_UNROLL
    for (size_t j = 0; j < 16; j++) {
        xm_pairs w = xm_pairs_load_i8(q + j * 2 * XM_PANEL);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            xm_ints *s = &sum[(size_t)i * splits + j % splits];
            *s = xm_ints_dot(j < splits ? xm_ints_zero() : *s, w, x[i] + column + 2 * j);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        dot[i] = sum[(size_t)i * splits];
#pragma GCC unroll 4
        for (size_t j = 1; j < splits; j++)
            dot[i] = xm_ints_add(dot[i], sum[(size_t)i * splits + j]);
    }
}

XM_INLINE void q4_dots(int rows, const uint8_t *q, const int16_t *const x[], size_t column,
                       xm_ints dot[])
{
    const size_t splits = rows == 2 ? 2 : 1; /* low and high nibbles */
    xm_ints sum[2 * XM_MOST_TILE];

#pragma GCC unroll 16
    for (size_t i = 0; i < (size_t)rows * splits; i++)
        sum[i] = xm_ints_zero();
#pragma GCC unroll XM_UNROLL
    for (size_t j = 0; j < 8; j++) {
        xm_pairs low, high;

        xm_pairs_load_i4(q + j * 2 * XM_PANEL, &low, &high);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            xm_ints *s = &sum[(size_t)i * splits];
            s[0] = xm_ints_dot(s[0], low, x[i] + column + 2 * j);
            s[splits - 1] = xm_ints_dot(s[splits - 1], high, x[i] + column + 16 + 2 * j);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        const xm_ints *s = &sum[(size_t)i * splits];
        dot[i] = xm_ints_sixteenth(splits == 1 ? s[0] : xm_ints_add(s[0], s[1]));
    }
}

/* One row alone pays the whole unpacking: cheaper to take nibbles as they are and to subtract 8
 * times the sum of x. The same integer. */
XM_INLINE xm_ints q4_dot(const uint8_t *q, const int16_t *x, int32_t x_sum)
{
    xm_ints sum[4] = {xm_ints_set(-8 * x_sum), xm_ints_zero(), xm_ints_zero(), xm_ints_zero()};

#pragma GCC unroll XM_UNROLL
    for (size_t j = 0; j < 8; j++) {
        xm_ints *s = &sum[j % 2 * 2];
        xm_pairs low, high;

        xm_pairs_load_u4(q + j * 2 * XM_PANEL, &low, &high);
        s[0] = xm_ints_dot(s[0], low, x + 2 * j);
        s[1] = xm_ints_dot(s[1], high, x + 16 + 2 * j);
    }
    return xm_ints_add(xm_ints_add(sum[0], sum[1]), xm_ints_add(sum[2], sum[3]));
}

/* sums: of the blocks of the one row, or a constant NULL. */
XM_INLINE void block_tile(const xm_panel_job *job, xm_weight_type type, int rows, int32_t first,
                          const int32_t *sums)
{
    size_t block_bytes = (type == XM_TYPE_Q8_0 ? 34 : 18) * XM_PANEL;
    const uint8_t *block = job->panel;
    const int16_t *x[XM_MOST_TILE];
    const float *scales[XM_MOST_TILE];
    xm_lanes acc[XM_MOST_TILE];

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        size_t row = (size_t)job->rows[first + i];
        x[i] = job->x->i16 + row * job->x->stride;
        scales[i] = job->x->scales + row * (job->x->stride / 32);
        acc[i] = xm_lanes_set(0.0f);
    }
    for (size_t b = 0; b < job->columns / 32; b++, block += block_bytes) {
        xm_lanes w_scale = xm_lanes_load_f16((const uint16_t *)(const void *)block);
        const uint8_t *q = block + 2 * XM_PANEL;
        xm_ints dot[XM_MOST_TILE];

        if (rows > 1)
            xm_prefetch(block, block_bytes);
        if (type == XM_TYPE_Q8_0)
            q8_dots(rows, q, x, b * 32, dot);
        else if (sums)
            dot[0] = q4_dot(q, x[0] + b * 32, sums[b]);
        else
            q4_dots(rows, q, x, b * 32, dot);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            xm_lanes scale = xm_lanes_mul(w_scale, xm_lanes_set(scales[i][b]));
            acc[i] = xm_lanes_fma(xm_ints_to_lanes(dot[i]), scale, acc[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        write_outputs(job, first + i, acc[i]);
}

XM_INLINE void tile(const xm_panel_job *job, xm_weight_type type, int rows, int32_t first)
{
    if (type == XM_TYPE_Q4_0 && rows == 1 && job->row_count == 1 && job->block_sums)
        block_tile(job, type, 1, first, job->block_sums);
    else if (type == XM_TYPE_Q8_0 || type == XM_TYPE_Q4_0)
        block_tile(job, type, rows, first, NULL);
    else
        float_tile(job, type, rows, first);
}

/* All rows of a job in tiles of `most` (3, 4 or 8) and what is left in up to two smaller ones; each
 * size is code of its own, in which the sums are registers. type and most are constants. */
XM_INLINE void panel(const xm_panel_job *job, xm_weight_type type, int most)
{
    int32_t first = 0, left = job->row_count;

    for (; left >= most; first += most, left -= most)
        tile(job, type, most, first);
    if (most > 4 && left >= 4) {
        tile(job, type, 4, first);
        first += 4;
        left -= 4;
    }
    if (most > 3 && left == 3)
        tile(job, type, 3, first);
    else if (left == 2)
        tile(job, type, 2, first);
    else if (left == 1)
        tile(job, type, 1, first);
}

void XM_VARIANT(xm_panel_f32)(const xm_panel_job *job)
{
    panel(job, XM_TYPE_F32, XM_FLOAT_TILE);
}

void XM_VARIANT(xm_panel_f16)(const xm_panel_job *job)
{
    panel(job, XM_TYPE_F16, XM_FLOAT_TILE);
}

void XM_VARIANT(xm_panel_bf16)(const xm_panel_job *job)
{
    panel(job, XM_TYPE_BF16, XM_FLOAT_TILE);
}

void XM_VARIANT(xm_panel_q8_0)(const xm_panel_job *job)
{
    panel(job, XM_TYPE_Q8_0, XM_BLOCK_TILE);
}

void XM_VARIANT(xm_panel_q4_0)(const xm_panel_job *job)
{
    panel(job, XM_TYPE_Q4_0, XM_BLOCK_TILE);
}
