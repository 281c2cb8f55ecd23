/*
 * moe.h - the experts of one MoE layer in training, forward and backward.
 *
 * Rows are gathered per expert, so that an expert is two products forward and four backward; an
 * expert is one task. Results return to their rows in order of rank, so that the sum does not
 * depend on which expert was done first.
 */
#ifndef XM_TRAIN_MOE_H
#define XM_TRAIN_MOE_H

#include "train/gate.h"

typedef struct {
    int32_t width, hidden, experts;
    xm_train_gate gate;
    /* parameters: [E][hidden][d], [E][hidden], [E][d][hidden], [E][d] */
    const float *up, *up_bias, *down, *down_bias;
} xm_train_moe_weights;

typedef struct {
    xm_train_gate_gradients gate;
    float *up, *up_bias, *down, *down_bias; /* same shapes, accumulated */
} xm_train_moe_gradients;

/* What the backward pass needs of the forward pass. Layers that are never differentiated may share
 * the three slot arrays. */
typedef struct {
    xm_routes routes;
    float *gathered;  /* [slots][width] */
    float *before;    /* [slots][hidden], before GELU */
    float *activated; /* [slots][hidden] */
} xm_train_moe_layer;

/* Shared by all layers. */
typedef struct {
    float *out;     /* [slots][width] */
    float *dout;    /* [slots][width]; this and the rest NULL if never differentiated */
    float *dhidden; /* [slots][hidden] */
    float *dgate;   /* [slots] */
    float *dlogits; /* [rows][experts] */
} xm_train_moe_scratch;

/* y = residual + sum over kept experts of gate * expert(h); h, residual, y: [rows][width]; tokens:
 * [rows]. */
void xm_train_moe_forward(xm_pool *pool, const xm_train_moe_weights *weights,
                          xm_train_moe_layer *layer, xm_train_moe_scratch *scratch, const float *h,
                          const int32_t *tokens, const float *residual, float *y);
/* dh is overwritten. */
void xm_train_moe_backward(xm_pool *pool, const xm_train_moe_weights *weights,
                           xm_train_moe_gradients *gradients, const xm_train_moe_layer *layer,
                           xm_train_moe_scratch *scratch, const float *h, const float *dy,
                           float *dh);

#endif
