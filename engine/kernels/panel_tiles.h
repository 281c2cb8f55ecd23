/*
 * panel_tiles.h - what panel kernels of all types share: how rows are cut into tiles, and how
 * outputs are written (SIMD only; included by *_simd.c).
 */
#ifndef XM_KERNELS_PANEL_TILES_H
#define XM_KERNELS_PANEL_TILES_H

#include "kernels/simd.h"

/* Writes outputs of row `row` of the job, bias added last. */
XM_INLINE void xm_write_outputs(const xm_panel_job *job, int32_t row, xm_lanes dot)
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

/* Rows first to first + rows - 1 of the job's list, rows <= XM_MOST_TILE. */
typedef void xm_tile_fn(const xm_panel_job *job, xm_weight_type type, int rows, int32_t first);

/* All rows of a job in tiles of `most` (2, 3, 4 or 8) and what is left in up to two smaller ones;
 * each size is code of its own, in which the sums are registers. All but job are constants. */
XM_INLINE void xm_panel_tiles(const xm_panel_job *job, xm_weight_type type, int most,
                              xm_tile_fn *tile)
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
    else if (most > 2 && left == 2)
        tile(job, type, 2, first);
    else if (left == 1)
        tile(job, type, 1, first);
}

#endif
