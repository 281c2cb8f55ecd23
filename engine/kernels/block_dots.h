/*
 * block_dots.h - the panel kernel of block types, written once for all of them: which loads and
 * which sums a type needs follows from its coding, a constant (SIMD only; included by *_simd.c).
 *
 * Integer sums are exact, so their order is free: they are split where one chain of additions would
 * have to wait for itself, and a code's zero is taken off by the sum of x, before the products.
 */
#ifndef XM_KERNELS_BLOCK_DOTS_H
#define XM_KERNELS_BLOCK_DOTS_H

#include "kernels/layout.h"
#include "kernels/panel_tiles.h"

/* Integer sums of a row at once: 4 (halves of the part, even and odd pairs), 2 (halves) or 1. */
XM_INLINE size_t xm_chain_count(size_t groups, int rows)
{
    return rows == 1 ? 4 : rows == 2 || groups == 2 ? 2 : 1;
}

/* Pairs j (columns 2j and 2j + 1, low) and j + 8 (high) of a part, as values or as codes that are
 * `zero` too high. */
XM_INLINE void xm_load_pairs(xm_weight_coding coding, const uint8_t *codes,
                             const uint8_t *high_bits, size_t j, xm_pairs *low, xm_pairs *high)
{
    if (coding.bits == 8) {
        *low = xm_pairs_load_i8(codes + j * 2 * XM_PANEL);
        *high = xm_pairs_load_i8(codes + (j + 8) * 2 * XM_PANEL);
    } else if (coding.values) {
        xm_pairs_load_table(codes + j * 2 * XM_PANEL, coding.values, low, high);
    } else {
        xm_pairs_load_u4(codes + j * 2 * XM_PANEL, low, high);
    }
    if (coding.bits == 5 || coding.bits == 6) {
        int width = coding.bits - 4, fields = 8 / width;
        const uint8_t *plane = high_bits + j / (size_t)fields * 2 * XM_PANEL;
        int up = 4 - (int)j % fields * width; /* from its field to above the nibble */
        int mask = ((1 << width) - 1) << 4;

        *low = xm_pairs_or_bits(*low, xm_pairs_load_u8(plane), up, mask);
        plane += (size_t)width * 2 * XM_PANEL;
        *high = xm_pairs_or_bits(*high, xm_pairs_load_u8(plane), up, mask);
    }
}

/* dot[i * groups + g] = values of group g of a part . x[i], exactly; x_sums[i]: of the part's two
 * halves. */
XM_INLINE void xm_part_dots(xm_weight_coding coding, xm_panel_layout at, int rows,
                            const uint8_t *part, const int16_t *const x[],
                            const int32_t *const x_sums[], xm_ints dot[])
{
    const size_t chains = xm_chain_count(at.groups, rows);
    xm_ints sum[4 * XM_MOST_TILE];

#pragma GCC unroll 8
    for (size_t i = 0; i < (size_t)rows; i++) {
        xm_ints *s = &sum[i * chains];
        int32_t zero = -coding.zero;

        for (size_t c = 0; c < chains; c++)
            s[c] = xm_ints_zero();
        if (coding.zero != 0 && chains == 1)
            s[0] = xm_ints_set(zero * (x_sums[i][0] + x_sums[i][1]));
        if (coding.zero != 0 && chains > 1) {
            s[0] = xm_ints_set(zero * x_sums[i][0]);
            s[chains / 2] = xm_ints_set(zero * x_sums[i][1]);
        }
    }
#pragma GCC unroll XM_UNROLL
    for (size_t j = 0; j < 8; j++) {
        xm_pairs low, high;

        xm_load_pairs(coding, part + at.codes, part + at.high, j, &low, &high);
#pragma GCC unroll 8
        for (size_t i = 0; i < (size_t)rows; i++) {
            xm_ints *s = &sum[i * chains + (chains == 4 ? j % 2 : 0)];

            s[0] = xm_ints_dot(s[0], low, x[i] + 2 * j);
            s[chains / 2] = xm_ints_dot(s[chains / 2], high, x[i] + 16 + 2 * j);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < (size_t)rows; i++) {
        xm_ints *s = &sum[i * chains];

        if (chains == 4) {
            s[0] = xm_ints_add(s[0], s[1]);
            s[2] = xm_ints_add(s[2], s[3]);
        }
        dot[i * at.groups] =
            at.groups == 2 || chains == 1 ? s[0] : xm_ints_add(s[0], s[chains / 2]);
        if (at.groups == 2)
            dot[i * 2 + 1] = s[chains / 2];
    }
}

/* A row of a tile. */
typedef struct {
    const int16_t *x;
    const float *scales;
    const int32_t *sums;
} xm_block_row;

/* The part at `part`, columns from `column` on, for all rows of a tile; scale, minimum: the
 * block's. */
XM_INLINE void xm_part_tile(xm_weight_coding coding, xm_panel_layout at, int rows,
                            const uint8_t *part, size_t column, xm_lanes scale, xm_lanes minimum,
                            const xm_block_row row[], xm_lanes acc[])
{
    const int16_t *x[XM_MOST_TILE];
    const int32_t *sums[XM_MOST_TILE];
    xm_ints dot[2 * XM_MOST_TILE];

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        x[i] = row[i].x + column;
        sums[i] = row[i].sums + column / 16;
    }
    xm_part_dots(coding, at, rows, part, x, sums, dot);

#pragma GCC unroll 2
    for (size_t g = 0; g < at.groups; g++) {
        xm_lanes w_scale = scale, w_minimum = minimum;

        if (coding.group_scales)
            w_scale = xm_lanes_mul(scale, xm_lanes_load_i8(part + g * XM_PANEL));
        if (coding.group_scales && coding.minimum)
            w_minimum = xm_lanes_mul(minimum, xm_lanes_load_i8(part + at.minima + g * XM_PANEL));
#pragma GCC unroll 8
        for (size_t i = 0; i < (size_t)rows; i++) {
            float x_scale = row[i].scales[column / 32];
            xm_lanes both = xm_lanes_mul(w_scale, xm_lanes_set(x_scale));

            acc[i] = xm_lanes_fma(xm_ints_to_lanes(dot[i * at.groups + g]), both, acc[i]);
            if (coding.minimum) {
                int32_t x_sum = at.groups == 2 ? sums[i][g] : sums[i][0] + sums[i][1];

                acc[i] = xm_lanes_fma(w_minimum, xm_lanes_set((float)x_sum * x_scale), acc[i]);
            }
        }
    }
}

XM_INLINE void xm_block_tile(const xm_panel_job *job, xm_weight_type type, int rows, int32_t first)
{
    const xm_weight_coding coding = xm_weight_coding_of(type);
    const xm_panel_layout at = xm_panel_layout_of(coding);
    const uint8_t *block = job->panel;
    xm_block_row row[XM_MOST_TILE];
    xm_lanes acc[XM_MOST_TILE];

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        size_t r = (size_t)job->rows[first + i];

        row[i] = (xm_block_row){.x = job->x->i16 + r * job->x->stride,
                                .scales = job->x->scales + r * (job->x->stride / 32),
                                .sums = job->x->sums + r * (job->x->stride / 16)};
        acc[i] = xm_lanes_set(0.0f);
    }
    for (size_t column = 0; column < job->columns; block += at.block_bytes) {
        const uint8_t *part = block + at.head_bytes;
        xm_lanes scale = coding.power_of_two
                             ? xm_lanes_load_e8m0(block)
                             : xm_lanes_load_f16((const uint16_t *)(const void *)block);
        xm_lanes minimum = xm_lanes_set(0.0f);

        if (coding.minimum)
            minimum = xm_lanes_load_f16((const uint16_t *)(const void *)(block + at.head_minima));
#pragma GCC unroll 1
        for (size_t p = 0; p < at.parts; p++, part += at.part_bytes, column += XM_PART) {
            if (rows > 1)
                xm_prefetch(part, at.part_bytes);
            xm_part_tile(coding, at, rows, part, column, scale, minimum, row, acc);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        xm_write_outputs(job, first + i, acc[i]);
}

/* A tile of types with two groups a part has twice the integer sums. */
XM_INLINE void xm_block_panel(const xm_panel_job *job, xm_weight_type type)
{
    const xm_panel_layout at = xm_panel_layout_of(xm_weight_coding_of(type));

    xm_panel_tiles(job, type, at.groups == 2 ? XM_BLOCK_TILE / 2 : XM_BLOCK_TILE, xm_block_tile);
}

#endif
