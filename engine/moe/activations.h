/*
 * activations.h - memory for rows of activations, their int16 form, and activation functions.
 */
#ifndef XM_MOE_ACTIVATIONS_H
#define XM_MOE_ACTIVATIONS_H

#include "kernels/kernels.h"

/* Both forms of rows * columns values, zeroed. False without memory (nothing is kept). */
bool xm_activations_create(size_t rows, size_t columns, xm_activations *activations);
void xm_activations_free(xm_activations *activations);

/* Makes the int16 form of columns [first, last) of a row; first is a multiple of 32, and whole
 * blocks of 32 are read. */
void xm_activations_quantize(const xm_kernels *kernels, const xm_activations *activations,
                             size_t row, size_t first, size_t last);

typedef enum {
    XM_ACTIVATION_GELU,
    XM_ACTIVATION_SWIGLU,
    XM_ACTIVATION_SWIGLU_CLAMPED /* GPT-OSS */
} xm_activation;

/* up = activation(gate, up) in place; gate is not read for XM_ACTIVATION_GELU. */
void xm_activate(const xm_kernels *kernels, xm_activation activation, const float *gate, float *up,
                 size_t count);

#endif
