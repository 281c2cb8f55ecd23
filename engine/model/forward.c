/*
 * forward.c - the forward pass over a batch of segments:
 *
 *     x = embedding_scale * token_embedding[token] (+ position_embedding[position])
 *     for each layer:
 *         x = x + residual_scale * attention(norm(x))     self_attention.c, latent_attention.c
 *         x = x + residual_scale * ffn(norm(x))           feed_forward.c: dense or experts
 *     logits = logit_scale * output . norm(x)             only rows that want them
 *
 * Runs on the scheduler's thread, which opens the parallel regions. One row and many rows take the
 * same way: every element is computed by the same operations in the same order.
 */
#include "model/forward.h"

#include "base/memory.h"
#include "model/forward_state.h"

/* --- creation --------------------------------------------------------------------------------- */

static size_t rounded_up(size_t count)
{
    return (count + XM_PANEL - 1) / XM_PANEL * XM_PANEL;
}

static bool allocate_rows(xm_forward *forward)
{
    size_t rows = (size_t)forward->max_rows;
    size_t turns = (size_t)forward->model->attention.rope.dimensions;
    forward->ordinal = xm_calloc(rows, sizeof *forward->ordinal);
    forward->token = xm_calloc(rows, sizeof *forward->token);
    forward->position = xm_calloc(rows, sizeof *forward->position);
    forward->segment = xm_calloc(rows, sizeof(const xm_segment *));
    forward->routers = xm_calloc(rows, sizeof(const xmoe_router *));
    forward->turns = xm_calloc(rows, turns * sizeof *forward->turns);
    forward->logit_row = xm_calloc(rows, sizeof *forward->logit_row);
    forward->pooled_row = xm_calloc(rows, sizeof *forward->pooled_row);
    return forward->ordinal != NULL && forward->token != NULL && forward->position != NULL &&
           forward->segment != NULL && forward->routers != NULL && forward->turns != NULL &&
           forward->logit_row != NULL && forward->pooled_row != NULL;
}

/* Elements of a row of q, k and v. */
static size_t qkv_length(const xm_attention_shape *shape)
{
    size_t queries = (size_t)shape->heads * (size_t)shape->key_length;
    if (shape->latent_length > 0)
        return queries;
    return queries + (size_t)shape->kv_heads * (size_t)(shape->key_length + shape->value_length);
}

static bool allocate_activations(xm_forward *forward)
{
    const xmoe_model *model = forward->model;
    const xmoe_model_info *info = &model->info;
    const xm_attention_shape *shape = &model->attention;
    size_t rows = (size_t)forward->max_rows, d = (size_t)info->embedding_length;
    size_t attended =
        (size_t)shape->heads *
        (size_t)(shape->latent_length > 0 ? shape->head_value_length : shape->value_length);
    int32_t hidden = info->moe_layer_count < info->layer_count ? info->feed_forward_length : 0;
    if (hidden < model->shared_hidden)
        hidden = model->shared_hidden;
    forward->x_stride = rounded_up(d);
    forward->qkv_stride = rounded_up(qkv_length(shape));
    forward->x = xm_calloc_aligned(rows, forward->x_stride * sizeof(float));
    forward->qkv = xm_calloc_aligned(rows, forward->qkv_stride * sizeof(float));
    forward->update = xm_calloc_aligned(rows, forward->x_stride * sizeof(float));
    forward->shared_weight = xm_calloc(rows, sizeof(float));
    /* Not aligned: its pages then are touched only as far as steps want logits. */
    forward->logits = xm_calloc(rows * (size_t)info->vocabulary_size, sizeof(float));
    if (forward->x == NULL || forward->qkv == NULL || forward->update == NULL ||
        forward->shared_weight == NULL || forward->logits == NULL ||
        !xm_activations_create(rows, d, &forward->normed) ||
        !xm_activations_create(rows, attended, &forward->attended) ||
        !xm_activations_create(rows, (size_t)hidden, &forward->hidden))
        return false;
    forward->gate = xm_calloc_aligned(rows, forward->hidden.stride * sizeof(float));
    return forward->gate != NULL;
}

static xmoe_status allocate_forward(xm_forward *forward, xmoe_error *error)
{
    const xmoe_model *model = forward->model;
    const xmoe_model_info *info = &model->info;
    if (!allocate_rows(forward) || !allocate_activations(forward))
        return xm_fail_memory(error, "activations",
                              (size_t)forward->max_rows * (size_t)info->vocabulary_size);
    for (int32_t i = 0; i < forward->max_rows; i++)
        forward->ordinal[i] = i;
    xmoe_status status = xm_attention_create(model, xm_pool_threads(forward->pool),
                                             forward->max_rows, &forward->attention, error);
    if (status == XMOE_OK && model->attention.latent_length > 0)
        status = xm_latent_rows_create(model, forward->max_rows, &forward->latent, error);
    if (status != XMOE_OK || info->moe_layer_count == 0)
        return status;
    const xm_moe_layer *moe = &model->layers[model->moe_layers[0]].moe;
    bool gated = moe->gate != NULL;
    if (moe->gru != NULL)
        status =
            xm_router_states_create(forward->max_rows, moe->gru->length, &forward->states, error);
    if (status != XMOE_OK)
        return status;
    return xm_moe_scratch_create(forward->max_rows, info->expert_count, moe->rules.views,
                                 info->expert_feed_forward_length, info->embedding_length, gated,
                                 &forward->moe, error);
}

xmoe_status xm_forward_create(const xmoe_model *model, xm_pool *pool, xm_kv_cache *cache,
                              int32_t max_rows, xm_forward **forward_out, xmoe_error *error)
{
    *forward_out = NULL;
    xm_forward *forward = xm_calloc(1, sizeof *forward);
    if (forward == NULL)
        return xm_fail_memory(error, "forward pass", sizeof *forward);
    forward->model = model;
    forward->kernels = model->kernels;
    forward->pool = pool;
    forward->cache = cache;
    forward->max_rows = max_rows;
    xmoe_status status = allocate_forward(forward, error);
    if (status != XMOE_OK) {
        xm_forward_free(forward);
        return status;
    }
    *forward_out = forward;
    return XMOE_OK;
}

void xm_forward_free(xm_forward *forward)
{
    if (forward == NULL)
        return;
    xm_moe_scratch_free(forward->moe);
    xm_router_states_free(forward->states);
    xm_attention_free(&forward->attention);
    xm_latent_rows_free(forward->latent);
    xm_free(forward->ordinal);
    xm_free(forward->token);
    xm_free(forward->position);
    xm_free(forward->segment);
    xm_free(forward->routers);
    xm_free(forward->turns);
    xm_free(forward->logit_row);
    xm_free(forward->pooled_row);
    xm_free(forward->x);
    xm_free(forward->qkv);
    xm_free(forward->update);
    xm_free(forward->gate);
    xm_free(forward->shared_weight);
    xm_free(forward->logits);
    xm_activations_free(&forward->normed);
    xm_activations_free(&forward->attended);
    xm_activations_free(&forward->hidden);
    xm_free(forward);
}

void xm_forward_observe(xm_forward *forward, const xm_input_observer *observer)
{
    forward->observer = observer;
    if (forward->moe != NULL)
        xm_moe_scratch_observe(forward->moe, observer);
}

/* --- the step --------------------------------------------------------------------------------- */

static void run_embed(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const xm_forward *forward = context;
    const xmoe_model *model = forward->model;
    const xm_rope *rope = &model->attention.rope;
    size_t d = (size_t)model->info.embedding_length;
    int32_t row, last = xm_task_rows(forward->rows, task, &row);
    for (; row < last; row++) {
        float *x = forward->x + (size_t)row * forward->x_stride;
        size_t position = (size_t)forward->position[row];
        xm_unpack_row(&model->token_embedding, forward->token[row], x);
        for (size_t i = 0; model->embedding_scale != 1.0f && i < d; i++)
            x[i] *= model->embedding_scale;
        if (model->position_embedding != NULL)
            forward->kernels->add(x, model->position_embedding + position * d, d);
        xm_rope_turns(rope, forward->position[row], forward->turns + row * rope->dimensions);
    }
}

static void begin_step(xm_forward *forward, const xm_segment *segments, int32_t segment_count)
{
    forward->rows = 0;
    forward->logit_rows = 0;
    forward->pooled_rows = 0;
    for (int32_t s = 0; s < segment_count; s++) {
        const xm_segment *segment = &segments[s];
        for (int32_t i = 0; i < segment->token_count; i++, forward->rows++) {
            forward->token[forward->rows] = segment->tokens[i];
            forward->position[forward->rows] = segment->position + i;
            forward->segment[forward->rows] = segment;
            if (i >= segment->logits_from)
                forward->logit_row[forward->logit_rows++] = forward->rows;
            if (segment->pooled != NULL)
                forward->pooled_row[forward->pooled_rows++] = forward->rows;
        }
    }
    xm_attention_begin(&forward->attention, segments, segment_count);
    if (forward->states != NULL)
        xm_router_states_begin(forward->states, forward->rows);
}

static void finish_logits(const xm_product *product, int32_t row, size_t first, size_t last)
{
    float scale = product->forward->model->logit_scale;
    float *logits = product->out + (size_t)row * product->out_stride;
    for (size_t i = first; scale != 1.0f && i < last; i++)
        logits[i] *= scale;
}

static void compute_logits(xm_forward *forward)
{
    const xmoe_model *model = forward->model;
    if (forward->logit_rows == 0)
        return;
    xm_normalize(forward, &model->output_norm, forward->logit_row, forward->logit_rows,
                 xm_takes_i16(&model->output));
    xm_product output = {
        .linear = &model->output,
        .in = &forward->normed,
        .out = forward->logits,
        .out_stride = (size_t)model->info.vocabulary_size,
        .finish = finish_logits,
    };
    xm_products_run(forward, &output, 1, forward->logit_rows);
}

/* Hands final states to those that pool them. */
static void pool_states(xm_forward *forward)
{
    const xmoe_model *model = forward->model;
    const xm_activations *normed = &forward->normed;
    if (forward->pooled_rows == 0)
        return;
    xm_normalize(forward, &model->output_norm, forward->pooled_row, forward->pooled_rows, false);
    for (int32_t i = 0; i < forward->pooled_rows; i++) {
        int32_t row = forward->pooled_row[i];
        xm_pooled_take(forward->segment[row]->pooled, forward->position[row],
                       normed->f32 + (size_t)i * normed->stride,
                       (size_t)model->info.embedding_length);
    }
}

static void run_layer(xm_forward *forward, int32_t index, xm_routed_fn routed, void *routed_context)
{
    const xm_layer *layer = &forward->model->layers[index];
    xm_selection selection;
    if (layer->attention.latent != NULL)
        xm_latent_attention(forward, index);
    else
        xm_self_attention(forward, index);
    if (!layer->is_moe) {
        xm_dense_feed_forward(forward, layer);
        return;
    }
    xm_expert_feed_forward(forward, index, &selection);
    if (routed != NULL)
        routed(routed_context, layer->moe_index, &selection);
}

const float *xm_forward_step(xm_forward *forward, const xm_segment *segments, int32_t segment_count,
                             xm_routed_fn routed, void *routed_context)
{
    begin_step(forward, segments, segment_count);
    xm_pool_run(forward->pool, xm_row_tasks(forward->rows), run_embed, forward);
    for (int32_t i = 0; i < forward->model->info.layer_count; i++)
        run_layer(forward, i, routed, routed_context);
    pool_states(forward);
    compute_logits(forward);
    return forward->logits;
}
