/* activations.c - see activations.h. */
#include "moe/activations.h"

#include "base/memory.h"

enum { BLOCK = 32, HALF = BLOCK / 2 }; /* columns of a scale, and of a sum */

bool xm_activations_create(size_t rows, size_t columns, xm_activations *activations)
{
    size_t stride = (columns + BLOCK - 1) / BLOCK * BLOCK;
    size_t count;
    *activations = (xm_activations){0};
    if (!xm_multiply(rows, stride, &count))
        return false;
    activations->stride = stride;
    activations->f32 = xm_calloc_aligned(count, sizeof *activations->f32);
    activations->i16 = xm_calloc_aligned(count, sizeof *activations->i16);
    activations->scales = xm_calloc_aligned(count / BLOCK, sizeof *activations->scales);
    activations->sums = xm_calloc_aligned(count / HALF, sizeof *activations->sums);
    if (activations->f32 != NULL && activations->i16 != NULL && activations->scales != NULL &&
        activations->sums != NULL)
        return true;
    xm_activations_free(activations);
    return false;
}

void xm_activations_free(xm_activations *activations)
{
    xm_free(activations->f32);
    xm_free(activations->i16);
    xm_free(activations->scales);
    xm_free(activations->sums);
    *activations = (xm_activations){0};
}

void xm_activations_quantize(const xm_kernels *kernels, const xm_activations *activations,
                             size_t row, size_t first, size_t last)
{
    size_t start = row * activations->stride + first;
    size_t count = (last - first + BLOCK - 1) / BLOCK * BLOCK;
    kernels->quantize_i16(activations->f32 + start, count, activations->i16 + start,
                          activations->scales + start / BLOCK, activations->sums + start / HALF);
}

void xm_activate(const xm_kernels *kernels, xm_activation activation, const float *gate, float *up,
                 size_t count)
{
    switch (activation) {
    case XM_ACTIVATION_GELU:
        kernels->gelu(up, count);
        break;
    case XM_ACTIVATION_SWIGLU:
        kernels->swiglu(gate, up, count);
        break;
    case XM_ACTIVATION_SWIGLU_CLAMPED:
        kernels->swiglu_clamped(gate, up, count);
        break;
    }
}
