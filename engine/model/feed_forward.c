/*
 * feed_forward.c - the second half of a layer: a dense FFN, or routed experts and, in some
 * families, experts that all tokens share, which are a dense FFN beside them. See forward_state.h.
 */
#include "model/forward_state.h"

#include <math.h>

/* Activation of columns [first, last) of a hidden row; in int16 too where the down weight wants it.
 */
static void finish_hidden(const xm_product *product, int32_t row, size_t first, size_t last)
{
    const xm_forward *forward = product->forward;
    const xm_feed_forward *ffn = product->finish_context;
    size_t start = (size_t)row * product->out_stride + first;
    const float *gate = product->gate != NULL ? product->gate_out + start : NULL;
    xm_activate(forward->kernels, ffn->activation, gate, product->out + start, last - first);
    if (xm_takes_i16(&ffn->down))
        xm_activations_quantize(forward->kernels, &forward->hidden, (size_t)row, first, last);
}

/* Adds to the residual stream with the row's weight of the shared experts. */
static void finish_shared(const xm_product *product, int32_t row, size_t first, size_t last)
{
    const xm_forward *forward = product->forward;
    size_t start = (size_t)row * product->out_stride + first;
    float scale = forward->model->residual_scale * forward->shared_weight[row];
    forward->kernels->scaled_add(forward->x + start, scale, product->out + start, last - first);
}

/* x += ffn(normed) */
static void feed_forward(xm_forward *forward, const xm_feed_forward *ffn, xm_finish_fn finish)
{
    xm_product up = {
        .linear = &ffn->up,
        .in = &forward->normed,
        .out = forward->hidden.f32,
        .out_stride = forward->hidden.stride,
        .gate = ffn->gate.weight.rows > 0 ? &ffn->gate : NULL,
        .gate_out = forward->gate,
        .finish = finish_hidden,
        .finish_context = ffn,
    };
    xm_product down = {
        .linear = &ffn->down,
        .in = &forward->hidden,
        .out = forward->update,
        .out_stride = forward->x_stride,
        .finish = finish,
    };
    xm_products_run(forward, &up, 1, forward->rows);
    xm_products_run(forward, &down, 1, forward->rows);
}

static bool wants_i16(const xm_feed_forward *ffn)
{
    return xm_takes_i16(&ffn->up) || xm_takes_i16(&ffn->gate);
}

void xm_dense_feed_forward(xm_forward *forward, const xm_layer *layer)
{
    xm_normalize(forward, &layer->ffn_norm, forward->ordinal, forward->rows,
                 wants_i16(&layer->ffn));
    feed_forward(forward, &layer->ffn, xm_finish_residual);
}

/* --- experts ---------------------------------------------------------------------------------- */

static void finish_sigmoid(const xm_product *product, int32_t row, size_t first, size_t last)
{
    (void)first;
    (void)last;
    double logit = (double)product->out[row];
    product->out[row] = (float)(1.0 / (1.0 + exp(-logit)));
}

static void share_experts(xm_forward *forward, const xm_layer *layer)
{
    const xm_linear gate = {.weight = layer->ffn_gate};
    xm_product weigh = {
        .linear = &gate,
        .in = &forward->normed,
        .out = forward->shared_weight,
        .out_stride = 1,
        .finish = finish_sigmoid,
    };
    if (gate.weight.rows == 0) {
        feed_forward(forward, &layer->ffn, xm_finish_residual);
        return;
    }
    xm_products_run(forward, &weigh, 1, forward->rows);
    feed_forward(forward, &layer->ffn, finish_shared);
}

void xm_expert_feed_forward(xm_forward *forward, int32_t index, xm_selection *selection)
{
    const xm_layer *layer = &forward->model->layers[index];
    const xm_moe_layer *moe = &layer->moe;
    bool quantize = xm_type_takes_i16(moe->up[0].type) || xm_type_takes_i16(moe->router.type) ||
                    (moe->gate != NULL && xm_type_takes_i16(moe->gate[0].type)) ||
                    wants_i16(&layer->ffn) ||
                    (layer->ffn_gate.rows > 0 && xm_type_takes_i16(layer->ffn_gate.type));
    xm_normalize(forward, &layer->ffn_norm, forward->ordinal, forward->rows, quantize);
    for (int32_t row = 0; row < forward->rows; row++)
        forward->routers[row] = &forward->segment[row]->routing->layers[index];
    xm_moe_rows rows = {
        .count = forward->rows, .routers = forward->routers, .tokens = forward->token};
    if (moe->gru != NULL)
        rows.states =
            xm_router_states_advance(forward->states, forward->kernels, forward->pool, moe->gru,
                                     &moe->projection, &forward->normed, forward->rows);
    xm_moe_forward(forward->kernels, forward->pool, forward->moe, moe, &forward->normed, &rows,
                   forward->x, forward->x_stride, selection);
    if (layer->ffn.up.weight.rows > 0)
        share_experts(forward, layer);
}
