/*
 * gate.c - see gate.h.
 */
#include "train/gate.h"

#include "train/linear.h"

/* What the matrix of the logits is multiplied with. */
static const float *rated_rows(const xm_train_gate *gate, const float *h)
{
    return gate->recurrent != NULL ? gate->recurrent->layer.state : h;
}

void xm_train_gate_forward(xm_pool *pool, const xm_train_gate *gate, const float *h,
                           const int32_t *tokens, xm_routes *routes)
{
    if (routes->rule.gate == XM_GATE_HASH) {
        xm_routes_look_up(routes, gate->expert_of, tokens);
        return;
    }
    const xm_compute f32 = xm_compute_f32(pool); /* the router is F32 in any case */
    if (gate->recurrent != NULL)
        xm_recurrent_forward(pool, gate->recurrent, h);
    xm_linear_forward(&f32, rated_rows(gate, h), gate->weight, NULL, routes->probabilities,
                      routes->rows, gate->width, routes->experts);
    xm_routes_choose(routes, pool);
}

void xm_train_gate_backward(xm_pool *pool, const xm_train_gate *gate,
                            xm_train_gate_gradients *gradients, const float *h,
                            const xm_routes *routes, const float *dgate, float *dlogits, float *dh)
{
    if (routes->rule.gate == XM_GATE_HASH)
        return;
    const xm_compute f32 = xm_compute_f32(pool);
    xm_routes_backward(routes, pool, dgate, dlogits);
    xm_linear_backward_weight(&f32, dlogits, rated_rows(gate, h), gradients->weight, NULL,
                              routes->rows, gate->width, routes->experts);
    xm_linear_backward_input(&f32, dlogits, gate->weight,
                             gate->recurrent != NULL ? gate->recurrent->scratch->dstate : dh,
                             routes->rows, gate->width, routes->experts, true);
    if (gate->recurrent != NULL)
        xm_recurrent_backward(pool, gate->recurrent, h, dh);
}
