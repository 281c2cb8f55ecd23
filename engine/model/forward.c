/*
 * forward.c - the forward pass over a batch of segments:
 *
 *     x = token_embedding[token] + position_embedding[position]
 *     for each layer:
 *         x = x + attention_output . attention(qkv . layer_norm(x; attention_norm))
 *         x = x + ffn(layer_norm(x; ffn_norm))             dense FFN or experts
 *     logits = output . layer_norm(x; output_norm)         only rows that want them
 *
 * Runs on the scheduler's thread, which opens the parallel regions; what follows a product element
 * by element (storing keys and values, adding to the residual, gelu) runs in the task that made the
 * elements, so that a dense layer needs few regions. One row and many rows take the same way: every
 * element is computed by the same operations in the same order. Attention is in attention.c, the
 * MoE layer in moe/moe.c.
 */
#include "model/forward.h"

#include "base/memory.h"
#include "model/attention.h"
#include "moe/activations.h"
#include "moe/tiles.h"

enum { ROWS_PER_TASK = 8 }; /* of work that goes row by row: embedding, norms */

struct xm_forward {
    const xmoe_model *model;
    const xm_kernels *kernels;
    xm_pool *pool;
    xm_kv_cache *cache;
    int32_t max_rows;
    xm_moe_scratch *moe; /* NULL without MoE layers */
    xm_attention attention;

    /* Rows of the step. */
    int32_t rows;
    int32_t *ordinal;            /* [max_rows]: 0, 1, 2, ... */
    int32_t *token;              /* [max_rows] */
    int32_t *position;           /* [max_rows] */
    const xm_segment **segment;  /* [max_rows] */
    const xmoe_router **routers; /* [max_rows]: of the layer at work */
    int32_t logit_rows;
    int32_t *logit_row; /* [max_rows]: rows that give logits */

    /* Activations; d is the width of the residual stream. */
    float *x; /* [max_rows][x_stride]: the residual stream */
    size_t x_stride;
    xm_activations normed; /* [max_rows][d]: layer_norm(x) */
    float *qkv;            /* [max_rows][qkv_stride] */
    size_t qkv_stride;
    xm_activations attended; /* [max_rows][d] */
    xm_activations hidden;   /* [max_rows][ff]: of dense FFNs */
    float *update;           /* [max_rows][x_stride]: what is added to x */
    float *logits;           /* [max_rows][vocabulary] */
};

/* --- creation --------------------------------------------------------------------------------- */

static size_t rounded_up(size_t count)
{
    return (count + XM_PANEL - 1) / XM_PANEL * XM_PANEL;
}

static bool allocate_rows(xm_forward *forward)
{
    size_t rows = (size_t)forward->max_rows;
    forward->ordinal = xm_calloc(rows, sizeof *forward->ordinal);
    forward->token = xm_calloc(rows, sizeof *forward->token);
    forward->position = xm_calloc(rows, sizeof *forward->position);
    forward->segment = xm_calloc(rows, sizeof(const xm_segment *));
    forward->routers = xm_calloc(rows, sizeof(const xmoe_router *));
    forward->logit_row = xm_calloc(rows, sizeof *forward->logit_row);
    return forward->ordinal != NULL && forward->token != NULL && forward->position != NULL &&
           forward->segment != NULL && forward->routers != NULL && forward->logit_row != NULL;
}

static bool allocate_activations(xm_forward *forward)
{
    const xmoe_model_info *info = &forward->model->info;
    size_t rows = (size_t)forward->max_rows;
    size_t d = (size_t)info->embedding_length;
    bool any_dense = info->moe_layer_count < info->layer_count;
    forward->x_stride = rounded_up(d);
    forward->qkv_stride = rounded_up(3 * d);
    forward->x = xm_calloc_aligned(rows, forward->x_stride * sizeof(float));
    forward->qkv = xm_calloc_aligned(rows, forward->qkv_stride * sizeof(float));
    forward->update = xm_calloc_aligned(rows, forward->x_stride * sizeof(float));
    /* Not aligned: its pages then are touched only as far as steps want logits. */
    forward->logits = xm_calloc(rows * (size_t)info->vocabulary_size, sizeof(float));
    return forward->x != NULL && forward->qkv != NULL && forward->update != NULL &&
           forward->logits != NULL && xm_activations_create(rows, d, &forward->normed) &&
           xm_activations_create(rows, d, &forward->attended) &&
           (!any_dense ||
            xm_activations_create(rows, (size_t)info->feed_forward_length, &forward->hidden));
}

static xmoe_status allocate_forward(xm_forward *forward, xmoe_error *error)
{
    const xmoe_model_info *info = &forward->model->info;
    if (!allocate_rows(forward) || !allocate_activations(forward))
        return xm_fail_memory(error, "activations",
                              (size_t)forward->max_rows * (size_t)info->vocabulary_size);
    for (int32_t i = 0; i < forward->max_rows; i++)
        forward->ordinal[i] = i;
    xmoe_status status = xm_attention_create(info, xm_pool_threads(forward->pool),
                                             forward->max_rows, &forward->attention, error);
    if (status != XMOE_OK || info->moe_layer_count == 0)
        return status;
    return xm_moe_scratch_create(forward->max_rows, info->expert_count,
                                 info->expert_feed_forward_length, info->embedding_length,
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
    xm_attention_free(&forward->attention);
    xm_free(forward->ordinal);
    xm_free(forward->token);
    xm_free(forward->position);
    xm_free(forward->segment);
    xm_free(forward->routers);
    xm_free(forward->logit_row);
    xm_free(forward->x);
    xm_free(forward->qkv);
    xm_free(forward->update);
    xm_free(forward->logits);
    xm_activations_free(&forward->normed);
    xm_activations_free(&forward->attended);
    xm_activations_free(&forward->hidden);
    xm_free(forward);
}

/* --- work that goes row by row ---------------------------------------------------------------- */

/* The rows of task `task`: [*first, returned). */
static int32_t task_rows(int32_t rows, int32_t task, int32_t *first)
{
    *first = task * ROWS_PER_TASK;
    return *first + ROWS_PER_TASK < rows ? *first + ROWS_PER_TASK : rows;
}

static int32_t row_tasks(int32_t rows)
{
    return (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
}

static void run_embed(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const xm_forward *forward = context;
    const xmoe_model *model = forward->model;
    size_t d = (size_t)model->info.embedding_length;
    int32_t row, last = task_rows(forward->rows, task, &row);
    for (; row < last; row++) {
        float *x = forward->x + (size_t)row * forward->x_stride;
        xm_unpack_row(&model->token_embedding, forward->token[row], x);
        forward->kernels->add(x, model->position_embedding + (size_t)forward->position[row] * d, d);
    }
}

typedef struct {
    const xm_forward *forward;
    const xm_norm *norm;
    const int32_t *from; /* row i of the result is the norm of x's row from[i] */
    int32_t rows;
    bool quantize;
} norm_call;

static void run_norm(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_call *call = context;
    const xm_forward *forward = call->forward;
    const xm_activations *normed = &forward->normed;
    size_t d = (size_t)forward->model->info.embedding_length;
    int32_t row, last = task_rows(call->rows, task, &row);
    for (; row < last; row++) {
        forward->kernels->layer_norm(forward->x + (size_t)call->from[row] * forward->x_stride,
                                     call->norm->weight, call->norm->bias,
                                     forward->model->norm_epsilon, d,
                                     normed->f32 + (size_t)row * normed->stride);
        if (call->quantize)
            xm_activations_quantize(forward->kernels, normed, (size_t)row, 0, d);
    }
}

/* normed[i] = layer_norm(x[from[i]]), in the forms that weights of type `consumer` (and F32) take.
 */
static void normalize(const xm_forward *forward, const xm_norm *norm, const int32_t *from,
                      int32_t rows, xm_weight_type consumer)
{
    norm_call call = {.forward = forward,
                      .norm = norm,
                      .from = from,
                      .rows = rows,
                      .quantize = xm_type_takes_i16(consumer)};
    xm_pool_run(forward->pool, row_tasks(rows), run_norm, &call);
}

/* --- products --------------------------------------------------------------------------------- */

typedef struct product product;

/* out = linear(in), cut into tiles; then finish (may be NULL) over each tile's rows and columns
 * [first, last). */
struct product {
    const xm_forward *forward;
    const xm_linear *linear;
    const xm_activations *in;
    float *out;
    size_t out_stride;
    void (*finish)(const product *call, int32_t row, size_t first, size_t last);
    int32_t layer;
    bool quantize; /* for finish_hidden */
    xm_tiles tiles;
};

static void run_product(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const product *call = context;
    const xm_matrix *weight = &call->linear->weight;
    xm_tile tile = xm_tiles_at(&call->tiles, task);
    size_t first = (size_t)tile.first_panel * XM_PANEL, last = (size_t)tile.last_panel * XM_PANEL;
    if (last > (size_t)weight->rows)
        last = (size_t)weight->rows;
    xm_matrix_panels(call->forward->kernels, weight, call->linear->bias, call->in,
                     call->forward->ordinal + tile.first_row, tile.last_row - tile.first_row,
                     tile.first_panel, tile.last_panel,
                     call->out + (size_t)tile.first_row * call->out_stride, call->out_stride);
    for (int32_t row = tile.first_row; call->finish != NULL && row < tile.last_row; row++)
        call->finish(call, row, first, last);
}

static void multiply(product *call, int32_t rows)
{
    const xm_matrix *weight = &call->linear->weight;
    xm_pool *pool = call->forward->pool;
    size_t work = (size_t)rows * (size_t)weight->rows * (size_t)weight->columns;
    call->tiles = xm_tiles_plan(rows, weight->panels, xm_pool_threads(pool));
    xm_pool_run(xm_pool_for(pool, work), call->tiles.tasks, run_product, call);
}

static void finish_qkv(const product *call, int32_t row, size_t first, size_t last)
{
    const xm_forward *forward = call->forward;
    xm_attention_store(forward->cache, call->layer, forward->segment[row], forward->position[row],
                       call->out + (size_t)row * call->out_stride, first, last);
}

static void finish_update(const product *call, int32_t row, size_t first, size_t last)
{
    size_t start = (size_t)row * call->out_stride + first;
    call->forward->kernels->add(call->forward->x + start, call->out + start, last - first);
}

static void finish_hidden(const product *call, int32_t row, size_t first, size_t last)
{
    const xm_forward *forward = call->forward;
    forward->kernels->gelu(call->out + (size_t)row * call->out_stride + first, last - first);
    if (call->quantize)
        xm_activations_quantize(forward->kernels, &forward->hidden, (size_t)row, first, last);
}

/* --- layers ----------------------------------------------------------------------------------- */

static void attend(xm_forward *forward, int32_t index)
{
    const xm_layer *layer = &forward->model->layers[index];
    normalize(forward, &layer->attention_norm, forward->ordinal, forward->rows,
              layer->qkv.weight.type);
    multiply(&(product){.forward = forward,
                        .linear = &layer->qkv,
                        .in = &forward->normed,
                        .out = forward->qkv,
                        .out_stride = forward->qkv_stride,
                        .finish = finish_qkv,
                        .layer = index},
             forward->rows);
    xm_attention_run(&forward->attention, forward->kernels, forward->pool, forward->cache, index,
                     forward->qkv, forward->qkv_stride, &forward->attended,
                     xm_type_takes_i16(layer->attention_output.weight.type));
    multiply(&(product){.forward = forward,
                        .linear = &layer->attention_output,
                        .in = &forward->attended,
                        .out = forward->update,
                        .out_stride = forward->x_stride,
                        .finish = finish_update},
             forward->rows);
}

static void feed_forward(xm_forward *forward, const xm_layer *layer)
{
    normalize(forward, &layer->ffn_norm, forward->ordinal, forward->rows, layer->up.weight.type);
    multiply(&(product){.forward = forward,
                        .linear = &layer->up,
                        .in = &forward->normed,
                        .out = forward->hidden.f32,
                        .out_stride = forward->hidden.stride,
                        .finish = finish_hidden,
                        .quantize = xm_type_takes_i16(layer->down.weight.type)},
             forward->rows);
    multiply(&(product){.forward = forward,
                        .linear = &layer->down,
                        .in = &forward->hidden,
                        .out = forward->update,
                        .out_stride = forward->x_stride,
                        .finish = finish_update},
             forward->rows);
}

static void mix_experts(xm_forward *forward, int32_t index, xm_routed_fn routed,
                        void *routed_context)
{
    const xm_layer *layer = &forward->model->layers[index];
    xm_selection selection;
    normalize(forward, &layer->ffn_norm, forward->ordinal, forward->rows, layer->moe.up[0].type);
    for (int32_t row = 0; row < forward->rows; row++)
        forward->routers[row] = &forward->segment[row]->routing->layers[index];
    xm_moe_forward(forward->kernels, forward->pool, forward->moe, &layer->moe, &forward->normed,
                   forward->rows, forward->routers, forward->x, forward->x_stride, &selection);
    if (routed != NULL)
        routed(routed_context, layer->moe_index, &selection);
}

/* --- the step --------------------------------------------------------------------------------- */

static void begin_step(xm_forward *forward, const xm_segment *segments, int32_t segment_count)
{
    forward->rows = 0;
    forward->logit_rows = 0;
    for (int32_t s = 0; s < segment_count; s++) {
        const xm_segment *segment = &segments[s];
        for (int32_t i = 0; i < segment->token_count; i++, forward->rows++) {
            forward->token[forward->rows] = segment->tokens[i];
            forward->position[forward->rows] = segment->position + i;
            forward->segment[forward->rows] = segment;
            if (i >= segment->logits_from)
                forward->logit_row[forward->logit_rows++] = forward->rows;
        }
    }
    xm_attention_begin(&forward->attention, segments, segment_count);
}

static void compute_logits(xm_forward *forward)
{
    const xmoe_model *model = forward->model;
    const xm_linear output = {.weight = model->output};
    if (forward->logit_rows == 0)
        return;
    normalize(forward, &model->output_norm, forward->logit_row, forward->logit_rows,
              model->output.type);
    multiply(&(product){.forward = forward,
                        .linear = &output,
                        .in = &forward->normed,
                        .out = forward->logits,
                        .out_stride = (size_t)model->info.vocabulary_size},
             forward->logit_rows);
}

const float *xm_forward_step(xm_forward *forward, const xm_segment *segments, int32_t segment_count,
                             xm_routed_fn routed, void *routed_context)
{
    const xmoe_model *model = forward->model;
    begin_step(forward, segments, segment_count);
    xm_pool_run(forward->pool, row_tasks(forward->rows), run_embed, forward);
    for (int32_t i = 0; i < model->info.layer_count; i++) {
        attend(forward, i);
        if (model->layers[i].is_moe)
            mix_experts(forward, i, routed, routed_context);
        else
            feed_forward(forward, &model->layers[i]);
    }
    compute_logits(forward);
    return forward->logits;
}
