/*
 * float_dots.h - the dot product over a float panel that matrices and attention keys share (SIMD
 * only; included by *_simd.c).
 *
 * Per row and lane two sums, over even and over odd columns, each acc = fma(w, x, acc) in order of
 * columns from +0; the result is even + odd. Rows of a tile share the loads of weights and nothing
 * else, so a row's result does not depend on the tile.
 */
#ifndef XM_KERNELS_FLOAT_DOTS_H
#define XM_KERNELS_FLOAT_DOTS_H

#include "kernels/lanes.h"

/* The 16 weights at element `index` of weights of this type, as F32. */
XM_INLINE xm_lanes xm_weights_load(xm_weight_type type, const void *weights, size_t index)
{
    switch (type) {
    case XM_TYPE_F16:
        return xm_lanes_load_f16((const uint16_t *)weights + index);
    case XM_TYPE_BF16:
        return xm_lanes_load_bf16((const uint16_t *)weights + index);
    default:
        return xm_lanes_load((const float *)weights + index);
    }
}

/* dot[i] = x[i] . panel for `rows` rows; type, rows and stream are constants at every call.
 * columns >= 1; 16 lanes of the panel are read for each column. stream: what follows the panel in
 * memory comes next. */
XM_INLINE void xm_float_dots(xm_weight_type type, int rows, bool stream, const void *panel,
                             size_t columns, const float *const x[], xm_lanes dot[])
{
    xm_lanes even[XM_MOST_TILE], odd[XM_MOST_TILE];
    size_t c = 0;

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        even[i] = odd[i] = xm_lanes_set(0.0f);
    for (; c + 2 <= columns; c += 2) {
        size_t bytes = type == XM_TYPE_F32 ? 4 : 2;
        xm_lanes w = xm_lanes_hold(xm_weights_load(type, panel, c * XM_PANEL));

        if (stream)
            xm_prefetch((const char *)panel + c * XM_PANEL * bytes, 2 * XM_PANEL * bytes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            even[i] = xm_lanes_fma(w, xm_lanes_set(x[i][c]), even[i]);
        w = xm_lanes_hold(xm_weights_load(type, panel, (c + 1) * XM_PANEL));
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            odd[i] = xm_lanes_fma(w, xm_lanes_set(x[i][c + 1]), odd[i]);
    }
    if (c < columns) {
        xm_lanes w0 = xm_weights_load(type, panel, c * XM_PANEL);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            even[i] = xm_lanes_fma(w0, xm_lanes_set(x[i][c]), even[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        dot[i] = xm_lanes_add(even[i], odd[i]);
}

#endif
