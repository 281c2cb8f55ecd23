/*
 * importance.h - how much the columns of matrices matter: the mean square of what each column was
 * multiplied with, over the positions of a text; for experts, over the positions routed to each.
 *
 * A file of these is a GGUF file as llama.cpp's llama-imatrix writes it: general.type is "imatrix",
 * and for a matrix NAME of `columns` columns there are F32 tensors NAME.in_sum2 [columns, experts],
 * the sums of squares, and NAME.counts [1, experts], the positions (experts 1 for plain matrices).
 */
#ifndef XM_FORMAT_IMPORTANCE_H
#define XM_FORMAT_IMPORTANCE_H

#include "format/gguf.h"

typedef struct xm_importance xm_importance;

xmoe_status xm_importance_open(const char *path, xm_importance **importance, xmoe_error *error);
void xm_importance_close(xm_importance *importance);

/* *values: a new array (xm_free) [experts][columns] for a matrix of a model, > 0 and finite; an
 * expert that saw no position has the same everywhere. NULL where the file does not have the
 * matrix. Refuses entries that are not of the matrix's shape, and numbers that are no sums of
 * squares. */
xmoe_status xm_importance_of(const xm_importance *importance, const xm_gguf_tensor *matrix,
                             float **values, xmoe_error *error);

#endif
