/*
 * self_attention.c - the first half of a layer, for attention over heads of keys and values that
 * one or several query heads share (multi-head, grouped-query): x += output . attention(q, k, v).
 * See forward_state.h; latent attention is in latent_attention.c.
 *
 *   project   q, k and v of all rows
 *   place     row by row: norm of q and k, turning by position, k and v into the cache
 *   attend    attention.c
 *   output    added to the residual stream
 */
#include "model/forward_state.h"

/* RMS norm of `heads` heads one after the other, each over `length`, or of all as one row. */
static void norm_heads(const xm_forward *forward, const float *weight, int32_t heads, float *x)
{
    const xmoe_model *model = forward->model;
    size_t length = (size_t)model->attention.key_length;
    if (model->attention.norm_whole_rows) {
        length *= (size_t)heads;
        heads = 1;
    }
    for (int32_t head = 0; head < heads; head++, x += length)
        forward->kernels->rms_norm(x, weight, model->norm_epsilon, length, x);
}

typedef struct {
    const xm_forward *forward;
    int32_t layer;
} place_call;

static void place_row(const xm_forward *forward, int32_t layer, int32_t row)
{
    const xm_attention_shape *shape = &forward->model->attention;
    const xm_attention_weights *weights = &forward->model->layers[layer].attention;
    const float *turns = forward->turns + row * shape->rope.dimensions;
    float *q = forward->qkv + (size_t)row * forward->qkv_stride;
    float *k = q + shape->heads * shape->key_length;
    float *v = k + shape->kv_heads * shape->key_length;
    if (weights->query_norm != NULL)
        norm_heads(forward, weights->query_norm, shape->heads, q);
    if (weights->key_norm != NULL)
        norm_heads(forward, weights->key_norm, shape->kv_heads, k);
    /* q and k lie one after the other, in heads of the same length. */
    for (int32_t head = 0; head < shape->heads + shape->kv_heads; head++)
        xm_rope_apply(&shape->rope, turns, q + head * shape->key_length);
    xm_attention_store(forward->cache, layer, forward->segment[row], forward->position[row], k, v);
}

static void run_place(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const place_call *call = context;
    int32_t row, last = xm_task_rows(call->forward->rows, task, &row);
    for (; row < last; row++)
        place_row(call->forward, call->layer, row);
}

static void project(xm_forward *forward, const xm_attention_weights *weights)
{
    xm_product products[3];
    float *out = forward->qkv;
    for (int32_t i = 0; i < weights->project_count; i++) {
        products[i] = (xm_product){.linear = &weights->project[i],
                                   .in = &forward->normed,
                                   .out = out,
                                   .out_stride = forward->qkv_stride};
        out += weights->project[i].weight.rows;
    }
    xm_products_run(forward, products, weights->project_count, forward->rows);
}

void xm_self_attention(xm_forward *forward, int32_t index)
{
    const xm_layer *layer = &forward->model->layers[index];
    const xm_attention_weights *weights = &layer->attention;
    bool quantize = false;
    for (int32_t i = 0; i < weights->project_count; i++)
        quantize = quantize || xm_takes_i16(&weights->project[i]);
    xm_normalize(forward, &layer->attention_norm, forward->ordinal, forward->rows, quantize);
    project(forward, weights);
    place_call place = {.forward = forward, .layer = index};
    size_t work = (size_t)forward->rows * forward->qkv_stride;
    xm_pool_run(xm_pool_for(forward->pool, work), xm_row_tasks(forward->rows), run_place, &place);
    xm_attention_call attend = {
        .attention = &forward->attention,
        .kernels = forward->kernels,
        .cache = forward->cache,
        .layer = index,
        .window = weights->window,
        .sinks = weights->sinks,
        .queries = forward->qkv,
        .query_stride = forward->qkv_stride,
        .out = &forward->attended,
        .quantize = xm_takes_i16(&weights->output),
    };
    xm_attention_run(&attend, forward->pool);
    xm_product output = {
        .linear = &weights->output,
        .in = &forward->attended,
        .out = forward->update,
        .out_stride = forward->x_stride,
        .finish = xm_finish_residual,
    };
    xm_products_run(forward, &output, 1, forward->rows);
}
