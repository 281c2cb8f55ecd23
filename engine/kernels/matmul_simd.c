/*
 * matmul_simd.c - the panel kernels of plain types: 16 outputs side by side for each of a list of
 * rows. Those of block types: matmul_legacy_simd.c, matmul_k_simd.c, matmul_table_simd.c.
 *
 * Rows are taken in tiles that share the loads (and the unpacking) of weights; a panel is small
 * enough to stay in the cache while the tiles pass over it, so it comes from memory once. Each
 * row's arithmetic is that of kernels.h whatever tile it falls into. Entry: row_count >= 0, columns
 * >= 1, and whole blocks for block types. No state; any thread.
 */
#include "kernels/float_dots.h"
#include "kernels/panel_tiles.h"

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
        xm_write_outputs(job, first + i, dot[i]);
}

void XM_VARIANT(xm_panel_f32)(const xm_panel_job *job)
{
    xm_panel_tiles(job, XM_TYPE_F32, XM_FLOAT_TILE, float_tile);
}

void XM_VARIANT(xm_panel_f16)(const xm_panel_job *job)
{
    xm_panel_tiles(job, XM_TYPE_F16, XM_FLOAT_TILE, float_tile);
}

void XM_VARIANT(xm_panel_bf16)(const xm_panel_job *job)
{
    xm_panel_tiles(job, XM_TYPE_BF16, XM_FLOAT_TILE, float_tile);
}
