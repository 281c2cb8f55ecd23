/*
 * gate_recurrent.h - the recurrent router of RMoE (Qiu et al. 2024, arXiv 2408.06793) in training:
 * a GRU that carries a state from MoE layer to MoE layer, for each row by itself. It makes what a
 * layer's logits are products of; those, and what becomes of them, are gate.h and routes.h.
 *
 *     x = P h,   s = GRU(x, s of the MoE layer before),   logits = W s;   s is 0 before the first
 *
 * The cell is PyTorch's GRUCell, its matrices [3r][r] in the order reset, update, candidate:
 *     reset = sigmoid(W_ir x + b_ir + W_hr s + b_hr),   update likewise
 *     n = tanh(W_in x + b_in + reset * (W_hn s + b_hn)),   s' = (1 - update) * n + update * s
 * All is F32. Backward, layers are visited from the last to the first, and the state's gradient
 * goes the same way.
 */
#ifndef XM_TRAIN_GATE_RECURRENT_H
#define XM_TRAIN_GATE_RECURRENT_H

#include "base/pool.h"

/* Parameters: P is the layer's own, the cell that of all MoE layers. */
typedef struct {
    const float *projection;                /* [r][d] */
    const float *input_weight, *input_bias; /* [3r][r], [3r] */
    const float *state_weight, *state_bias; /* [3r][r], [3r] */
} xm_recurrent_weights;

typedef struct {
    float *projection, *input_weight, *input_bias, *state_weight, *state_bias; /* accumulated */
} xm_recurrent_gradients;

/* What the backward pass needs of one layer's forward pass. Layers that are run again before they
 * are differentiated may share all but the state. */
typedef struct {
    float *x;         /* [rows][r] */
    float *gates;     /* [rows][3r]: reset, update, n */
    float *candidate; /* [rows][r]: W_hn s + b_hn */
    float *state;     /* [rows][r]: s' */
} xm_recurrent_layer;

/* Shared by all layers. */
typedef struct {
    float *zero;       /* [rows][r]: the state before the first layer */
    float *from_state; /* [rows][3r]: W_h s + b_h, backward its gradient */
    float *dgates;     /* [rows][3r]; this and the rest in training only */
    float *dx;         /* [rows][r] */
    float *dstate;     /* [rows][r]: of the state, from the layers behind; 0 at the last */
} xm_recurrent_scratch;

/* One layer at work. */
typedef struct {
    int32_t rows, width, length; /* d, r */
    xm_recurrent_weights weights;
    xm_recurrent_gradients gradients; /* read by backward only */
    xm_recurrent_layer layer;
    const xm_recurrent_scratch *scratch;
    const float *before; /* [rows][r]: the state of the MoE layer before */
} xm_recurrent;

/* Rows h [rows][d] to layer.state. */
void xm_recurrent_forward(xm_pool *pool, const xm_recurrent *recurrent, const float *h);

/* From scratch->dstate, which holds the gradient of layer.state and becomes that of `before`;
 * dh += ... */
void xm_recurrent_backward(xm_pool *pool, const xm_recurrent *recurrent, const float *h, float *dh);

#endif
