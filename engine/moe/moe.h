/*
 * moe.h - one MoE layer over the rows of a step: route, group rows by expert, run each touched
 * expert once over its rows, add up.
 *
 * Work buffers belong to an xm_moe_scratch that is sized once; nothing is allocated in a step. When
 * (row, expert) pairs exceed what the scratch holds, experts run in waves, in ascending order; each
 * expert's rows stay together, so its weights are still read once. A row's outputs are added in
 * ascending order of expert, so the sum does not depend on waves, threads or other rows.
 */
#ifndef XM_MOE_MOE_H
#define XM_MOE_MOE_H

#include "base/pool.h"
#include "kernels/kernels.h"
#include "moe/activations.h"
#include "moe/observer.h"
#include "moe/recurrent.h"
#include "moe/router.h"

/* One layer's weights. Expert e is down[e] . activation(gate[e] . x, up[e] . x), each product with
 * its bias. */
typedef struct {
    int32_t experts, hidden, width; /* E, eff, d */
    const uint16_t *expert_of;      /* [vocabulary]: the one expert of each token id, with weight 1,
                                       whatever a request asks for; NULL: the router chooses */
    const xm_gru *gru;              /* of a recurrent router, whose logits are products with its
                                       state instead of h; NULL: of others */
    xm_matrix projection;           /* [r x d]: from h to what the GRU takes in; with gru */
    xm_matrix router;               /* [E x d]; with V views [V E x d], row v E + e; gru [E x r] */
    const float *router_bias;       /* of each row, or NULL */
    xm_gate_rules rules;
    xm_activation activation;
    xm_matrix *gate;                  /* [E][hidden x d]; NULL for GELU */
    xm_matrix *up;                    /* [E][hidden x d] */
    xm_matrix *down;                  /* [E][d x hidden] */
    const float *gate_bias, *up_bias; /* [E][hidden] or NULL */
    const float *down_bias;           /* [E][d] or NULL */
    float output_scale;               /* of what is added to the residual stream */
} xm_moe_layer;

/* The rows of a step as a router sees them. */
typedef struct {
    int32_t count;
    const xmoe_router *const *routers; /* [count]: of this layer */
    const int32_t *tokens;             /* [count]; read where token ids choose */
    const xm_activations *states; /* [count][r]: of a recurrent router, after this layer's GRU */
} xm_moe_rows;

typedef struct xm_moe_scratch xm_moe_scratch;

/* For layers of at most these sizes and steps of at most max_rows rows; views: of the router, 0 or
 * 1 where it has only one; gated: experts have gates. */
xmoe_status xm_moe_scratch_create(int32_t max_rows, int32_t experts, int32_t views, int32_t hidden,
                                  int32_t width, bool gated, xm_moe_scratch **scratch,
                                  xmoe_error *error);
/* Tells from now on of what experts' matrices are multiplied with, the router's not; NULL: no more.
 */
void xm_moe_scratch_observe(xm_moe_scratch *scratch, const xm_input_observer *observer);
void xm_moe_scratch_free(xm_moe_scratch *scratch);

/* residual[row * residual_stride + ...] += output_scale * sum over the row's chosen experts e of
 * weight_e * expert_e(h[row]). h holds F32 and, where a router, gate or up matrix wants it, int16
 * rows. The selection is valid until the next call with this scratch. */
void xm_moe_forward(const xm_kernels *kernels, xm_pool *pool, xm_moe_scratch *scratch,
                    const xm_moe_layer *layer, const xm_activations *h, const xm_moe_rows *rows,
                    float *residual, size_t residual_stride, xm_selection *selection);

#endif
