/*
 * gate.c - see gate.h.
 */
#include "train/gate.h"

#include "train/linear.h"
#include "train/views.h"

static xm_view_shape view_shape(const xm_train_gate *gate, const xm_routes *routes)
{
    return (xm_view_shape){.rows = routes->rows,
                           .views = gate->views,
                           .experts = routes->experts,
                           .temperature = gate->view_temperature};
}

/* What the matrix of the logits is multiplied with. */
static const float *rated_rows(const xm_train_gate *gate, const float *h)
{
    return gate->recurrent != NULL ? gate->recurrent->layer.state : h;
}

void xm_train_gate_forward(xm_pool *pool, const xm_train_gate *gate, const float *h,
                           const int32_t *tokens, const xm_train_views *views, xm_routes *routes)
{
    if (routes->rule.gate == XM_GATE_HASH) {
        xm_routes_look_up(routes, gate->expert_of, tokens);
        return;
    }
    const xm_compute f32 = xm_compute_f32(pool); /* the router is F32 in any case */
    if (gate->recurrent != NULL)
        xm_recurrent_forward(pool, gate->recurrent, h);
    float *products = views->logits != NULL ? views->logits : routes->probabilities;
    xm_linear_forward(&f32, rated_rows(gate, h), gate->weight, NULL, products, routes->rows,
                      gate->width, gate->views * routes->experts);
    if (views->logits != NULL) {
        const xm_view_shape shape = view_shape(gate, routes);
        xm_views_forward(pool, &shape, views->logits, routes->probabilities);
    }
    xm_routes_choose(routes, pool);
}

void xm_train_gate_backward(xm_pool *pool, const xm_train_gate *gate,
                            xm_train_gate_gradients *gradients, const float *h,
                            const xm_train_views *views, const xm_routes *routes,
                            const float *dgate, float *dlogits, float *dh)
{
    if (routes->rule.gate == XM_GATE_HASH)
        return;
    const xm_compute f32 = xm_compute_f32(pool);
    xm_routes_backward(routes, pool, dgate, dlogits);
    const float *dproducts = dlogits;
    if (views->logits != NULL) {
        const xm_view_shape shape = view_shape(gate, routes);
        xm_views_backward(pool, &shape, views->logits, dlogits, views->gradients);
        dproducts = views->gradients;
    }
    int32_t products = gate->views * routes->experts;
    xm_linear_backward_weight(&f32, dproducts, rated_rows(gate, h), gradients->weight, NULL,
                              routes->rows, gate->width, products);
    xm_linear_backward_input(&f32, dproducts, gate->weight,
                             gate->recurrent != NULL ? gate->recurrent->scratch->dstate : dh,
                             routes->rows, gate->width, products, true);
    if (gate->recurrent != NULL)
        xm_recurrent_backward(pool, gate->recurrent, h, dh);
}
