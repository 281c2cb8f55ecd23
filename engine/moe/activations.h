/*
 * activations.h - memory for rows of activations, and their int16 form.
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

#endif
