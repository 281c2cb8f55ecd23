/*
 * moe.h - the experts of one MoE layer in training, forward and backward.
 *
 * Rows are gathered per expert, so that an expert is two products forward and four backward; an
 * expert is one task. Results return to their rows in order of rank, so that the sum does not
 * depend on which expert was done first.
 */
#ifndef XM_TRAIN_MOE_H
#define XM_TRAIN_MOE_H

#include "train/expert_dropout.h"
#include "train/gate.h"
#include "train/gemm.h"

typedef struct {
    int32_t width, hidden, experts;
    xm_train_gate gate; /* the router's */
    /* parameters: [E][hidden][d], [E][hidden][d], [E][hidden], [E][d][hidden], [E][d].
     * expert_gate NULL: GELU, else SwiGLU; biases NULL: none. */
    const float *expert_gate, *up, *up_bias, *down, *down_bias;
} xm_train_moe_weights;

typedef struct {
    xm_train_gate_gradients gate;
    float *expert_gate, *up, *up_bias, *down, *down_bias; /* same shapes, accumulated */
} xm_train_moe_gradients;

/* What the backward pass needs of the forward pass. Layers that are never differentiated may share
 * the slot arrays. */
typedef struct {
    xm_routes routes;
    xm_train_views views;
    float *gathered;  /* [slots][width] */
    float *gates;     /* [slots][hidden]: products with the gate matrix; NULL: GELU */
    float *before;    /* [slots][hidden]: products with the up matrix, with their bias */
    float *activated; /* [slots][hidden], after dropout */
    xm_expert_dropout dropout;
} xm_train_moe_layer;

/* Shared by all layers. */
typedef struct {
    float *out;     /* [slots][width] */
    float *dout;    /* [slots][width]; this and the rest NULL if never differentiated */
    float *dhidden; /* [slots][hidden] */
    float *dgates;  /* [slots][hidden]; NULL: GELU */
    float *dgate;   /* [slots] */
    float *dlogits; /* [rows][experts] */
    float *dviews;  /* [rows][views][experts]; NULL: one view */
} xm_train_moe_scratch;

/* y = residual + sum over kept experts of gate * expert(h); h, residual, y: [rows][width]; tokens:
 * [rows]. */
void xm_train_moe_forward(const xm_compute *compute, const xm_train_moe_weights *weights,
                          xm_train_moe_layer *layer, xm_train_moe_scratch *scratch, const float *h,
                          const int32_t *tokens, const float *residual, float *y);
/* dh is overwritten. */
void xm_train_moe_backward(const xm_compute *compute, const xm_train_moe_weights *weights,
                           xm_train_moe_gradients *gradients, const xm_train_moe_layer *layer,
                           xm_train_moe_scratch *scratch, const float *h, const float *dy,
                           float *dh);

#endif
