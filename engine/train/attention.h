/*
 * attention.h - causal multi-head attention of whole sequences, forward and backward.
 *
 * The probabilities are not stored: the forward pass keeps the logarithm of each row's normaliser,
 * from which the backward pass makes them again, one block of queries at a time. A task is one
 * block of queries (forward) or one head of one sequence (backward).
 */
#ifndef XM_TRAIN_ATTENTION_H
#define XM_TRAIN_ATTENTION_H

#include "train/gemm.h"

typedef struct {
    int32_t sequences, length; /* rows of qkv: sequences * length, sequence by sequence */
    int32_t width, heads;
} xm_attention_shape;

/* Floats of scratch that one thread needs. */
size_t xm_attention_scratch(const xm_attention_shape *shape);

/* qkv: [rows][3 * width], q, k, v. out: [rows][width]. log_sums: [rows][heads].
 * scratch: threads * xm_attention_scratch floats. */
void xm_attention_forward(const xm_compute *compute, const xm_attention_shape *shape,
                          const float *qkv, float *out, float *log_sums, float *scratch);
/* dqkv: [rows][3 * width], overwritten. */
void xm_attention_backward(const xm_compute *compute, const xm_attention_shape *shape,
                           const float *qkv, const float *out, const float *log_sums,
                           const float *dout, float *dqkv, float *scratch);

#endif
