/*
 * recurrent.h - the state that a recurrent router carries from MoE layer to MoE layer (RMoE, Qiu et
 * al. 2024, arXiv 2408.06793): a GRU over the depth of the model, for each token by itself.
 *
 *     x = P h,   state = GRU(x, state),   logits = W state        state is 0 before the first layer
 *
 * Nothing of it outlives a step, and no row sees another's. Scratch is sized once; a step allocates
 * nothing. Runs on the thread that opens the regions.
 */
#ifndef XM_MOE_RECURRENT_H
#define XM_MOE_RECURRENT_H

#include "base/pool.h"
#include "kernels/kernels.h"

/* Weights of the cell, which all MoE layers share, as PyTorch's GRUCell has them: with r its length
 * and | between blocks of r rows,
 *     (a | b | c) = input . x + input_bias,   (a' | b' | c') = state . s + state_bias
 *     reset = sigmoid(a + a'),   update = sigmoid(b + b'),   n = tanh(c + reset * c')
 *     s = (1 - update) * n + update * s */
typedef struct {
    int32_t length;                       /* r */
    xm_matrix input, state;               /* [3r x r] */
    const float *input_bias, *state_bias; /* [3r] */
} xm_gru;

typedef struct xm_router_states xm_router_states;

/* For steps of at most max_rows rows. */
xmoe_status xm_router_states_create(int32_t max_rows, int32_t length, xm_router_states **states,
                                    xmoe_error *error);
void xm_router_states_free(xm_router_states *states);

/* Before the first MoE layer of a step of so many rows: their states become 0. */
void xm_router_states_begin(xm_router_states *states, int32_t rows);

/* Takes the rows on by one MoE layer, whose inputs are the first `rows` rows of h and whose P is
 * projection [r x d]. Returns the new states, [rows][r], valid until the next call. */
const xm_activations *xm_router_states_advance(xm_router_states *states, const xm_kernels *kernels,
                                               xm_pool *pool, const xm_gru *gru,
                                               const xm_matrix *projection, const xm_activations *h,
                                               int32_t rows);

#endif
