/*
 * latent_attention.c - multi-head latent attention (DeepSeek-V2, section 2.1): x += output .
 * attention(...), where keys and values of all heads are made from one latent vector per position.
 * See forward_state.h.
 *
 * The cache holds the latent vector c and the part of the key that turns, r, once for all heads. A
 * head's key is (key_up^T . c, r), so q . k = (key_up . q_plain) . c + q_turning . r: queries are
 * brought into the latent space, and attention runs over one head of keys (c, r) and values c that
 * all query heads share. What it gives, a mean of latents, value_up makes a mean of the head's
 * values.
 *
 *   project   q (through a lower rank in larger models) and c, r of all rows
 *   place     row by row: norm of c, turning of r and of the queries' part, c and r into the cache
 *   raise     head by head: key_up . q_plain
 *   attend    attention.c
 *   raise     head by head: value_up . (mean of latents)
 *   output    added to the residual stream
 */
#include "model/forward_state.h"

#include "base/memory.h"

#include <string.h>

struct xm_latent_rows {
    int32_t *head_rows; /* [heads][max_rows]: row * heads + head, a row of `plain` and `means` */
    int32_t max_rows;
    xm_activations ranked; /* [max_rows][rank]: the queries' lower rank; empty without */
    float *query;          /* [max_rows][heads][plain + turning] */
    size_t query_length;   /* of a row */
    float *latent;         /* [max_rows][latent + turning] */
    xm_activations plain;  /* [max_rows * heads][plain] */
    xm_activations means;  /* [max_rows * heads][latent] */
};

/* --- scratch ---------------------------------------------------------------------------------- */

/* The queries' rank in a layer, 0 without. */
static size_t rank_of(const xmoe_model *model, int32_t layer)
{
    return (size_t)model->layers[layer].attention.latent->query_down.weight.rows;
}

xmoe_status xm_latent_rows_create(const xmoe_model *model, int32_t max_rows,
                                  xm_latent_rows **rows_out, xmoe_error *error)
{
    const xm_attention_shape *shape = &model->attention;
    size_t count = (size_t)max_rows, heads = (size_t)shape->heads, rank = rank_of(model, 0);
    *rows_out = NULL;
    xm_latent_rows *rows = xm_calloc(1, sizeof *rows);
    if (rows == NULL)
        return xm_fail_memory(error, "latent attention", sizeof *rows);
    rows->max_rows = max_rows;
    rows->query_length = heads * (size_t)(shape->plain_length + shape->turning_length);
    rows->head_rows = xm_calloc(count * heads, sizeof *rows->head_rows);
    rows->query = xm_calloc_aligned(count, rows->query_length * sizeof(float));
    rows->latent = xm_calloc_aligned(count, (size_t)shape->key_length * sizeof(float));
    if (rows->head_rows == NULL || rows->query == NULL || rows->latent == NULL ||
        !xm_activations_create(count * heads, (size_t)shape->plain_length, &rows->plain) ||
        !xm_activations_create(count * heads, (size_t)shape->latent_length, &rows->means) ||
        (rank > 0 && !xm_activations_create(count, rank, &rows->ranked))) {
        xm_latent_rows_free(rows);
        return xm_fail_memory(error, "latent attention", count * rows->query_length);
    }
    for (int32_t head = 0; head < shape->heads; head++)
        for (int32_t row = 0; row < max_rows; row++)
            rows->head_rows[head * max_rows + row] = row * shape->heads + head;
    *rows_out = rows;
    return XMOE_OK;
}

void xm_latent_rows_free(xm_latent_rows *rows)
{
    if (rows == NULL)
        return;
    xm_free(rows->head_rows);
    xm_free(rows->query);
    xm_free(rows->latent);
    xm_activations_free(&rows->ranked);
    xm_activations_free(&rows->plain);
    xm_activations_free(&rows->means);
    xm_free(rows);
}

/* --- row by row ------------------------------------------------------------------------------- */

typedef struct {
    const xm_forward *forward;
    const xm_latent_weights *weights;
    int32_t layer;
} row_call;

static void norm_rank(const row_call *call, int32_t row)
{
    const xm_forward *forward = call->forward;
    const xm_activations *ranked = &forward->latent->ranked;
    size_t rank = (size_t)call->weights->query_down.weight.rows;
    float *x = ranked->f32 + (size_t)row * ranked->stride;
    forward->kernels->rms_norm(x, call->weights->query_norm, forward->model->norm_epsilon, rank, x);
    if (xm_takes_i16(&call->weights->query))
        xm_activations_quantize(forward->kernels, ranked, (size_t)row, 0, rank);
}

/* A head's query: the part that turns goes behind the place of its latent part, the plain part to
 * the rows that key_up takes. */
static void place_query(const row_call *call, int32_t row, int32_t head)
{
    const xm_forward *forward = call->forward;
    const xm_attention_shape *shape = &forward->model->attention;
    const xm_latent_rows *rows = forward->latent;
    size_t plain = (size_t)shape->plain_length, turning = (size_t)shape->turning_length;
    const float *query =
        rows->query + (size_t)row * rows->query_length + (size_t)head * (plain + turning);
    float *turned = forward->qkv + (size_t)row * forward->qkv_stride +
                    (size_t)head * (size_t)shape->key_length + (size_t)shape->latent_length;
    size_t head_row = (size_t)row * (size_t)shape->heads + (size_t)head;
    memcpy(turned, query + plain, turning * sizeof *turned);
    xm_rope_apply(&shape->rope, forward->turns + row * shape->rope.dimensions, turned);
    memcpy(rows->plain.f32 + head_row * rows->plain.stride, query, plain * sizeof *query);
    if (xm_type_takes_i16(call->weights->key_up[0].type))
        xm_activations_quantize(forward->kernels, &rows->plain, head_row, 0, plain);
}

static void place_row(const row_call *call, int32_t row)
{
    const xm_forward *forward = call->forward;
    const xm_attention_shape *shape = &forward->model->attention;
    float *latent = forward->latent->latent + row * shape->key_length;
    forward->kernels->rms_norm(latent, call->weights->latent_norm, forward->model->norm_epsilon,
                               (size_t)shape->latent_length, latent);
    xm_rope_apply(&shape->rope, forward->turns + row * shape->rope.dimensions,
                  latent + shape->latent_length);
    xm_attention_store(forward->cache, call->layer, forward->segment[row], forward->position[row],
                       latent, latent);
    for (int32_t head = 0; head < shape->heads; head++)
        place_query(call, row, head);
}

static void quantize_attended(const row_call *call, int32_t row)
{
    const xm_forward *forward = call->forward;
    const xm_attention_shape *shape = &forward->model->attention;
    xm_activations_quantize(forward->kernels, &forward->attended, (size_t)row, 0,
                            (size_t)shape->heads * (size_t)shape->head_value_length);
}

typedef struct {
    const row_call *call;
    void (*each)(const row_call *call, int32_t row);
} rows_region;

static void run_rows(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const rows_region *region = context;
    int32_t row, last = xm_task_rows(region->call->forward->rows, task, &row);
    for (; row < last; row++)
        region->each(region->call, row);
}

static void for_each_row(const row_call *call, void (*each)(const row_call *call, int32_t row))
{
    const xm_forward *forward = call->forward;
    rows_region region = {.call = call, .each = each};
    size_t work = (size_t)forward->rows * forward->latent->query_length;
    xm_pool_run(xm_pool_for(forward->pool, work), xm_row_tasks(forward->rows), run_rows, &region);
}

/* --- head by head ----------------------------------------------------------------------------- */

/* out[row, head] = matrices[head] . in[row, head] */
typedef struct {
    const xm_forward *forward;
    const xm_matrix *matrices; /* [heads] */
    const xm_activations *in;  /* [rows * heads] */
    float *out;                /* row r, head h at r * out_stride + h * out_length */
    size_t out_stride, out_length;
    int32_t row_tiles;
} raise_call;

static void run_raise(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const raise_call *call = context;
    const xm_latent_rows *rows = call->forward->latent;
    int32_t head = task / call->row_tiles, first = task % call->row_tiles * XM_ROW_TILE;
    int32_t left = call->forward->rows - first;
    const xm_matrix *matrix = &call->matrices[head];
    xm_matrix_panels(call->forward->kernels, matrix, NULL, call->in,
                     rows->head_rows + head * rows->max_rows + first,
                     left < XM_ROW_TILE ? left : XM_ROW_TILE, 0, matrix->panels,
                     call->out + (size_t)first * call->out_stride + (size_t)head * call->out_length,
                     call->out_stride);
}

static void raise_heads(raise_call *call)
{
    const xm_forward *forward = call->forward;
    int32_t heads = forward->model->attention.heads;
    size_t work = (size_t)forward->rows * (size_t)heads * (size_t)call->matrices[0].rows *
                  (size_t)call->matrices[0].columns;
    for (int32_t head = 0; head < heads; head++)
        xm_observe(forward->observer, &call->matrices[head], call->in,
                   forward->latent->head_rows + head * forward->latent->max_rows, forward->rows);
    call->row_tiles = (forward->rows + XM_ROW_TILE - 1) / XM_ROW_TILE;
    xm_pool_run(xm_pool_for(forward->pool, work), heads * call->row_tiles, run_raise, call);
}

/* --- the layer -------------------------------------------------------------------------------- */

static void project(xm_forward *forward, const row_call *call)
{
    const xm_latent_weights *weights = call->weights;
    xm_latent_rows *rows = forward->latent;
    bool ranked = weights->query_down.weight.rows > 0;
    xm_product products[2] = {
        {.linear = &weights->latent,
         .in = &forward->normed,
         .out = rows->latent,
         .out_stride = (size_t)forward->model->attention.key_length},
        {.linear = ranked ? &weights->query_down : &weights->query,
         .in = &forward->normed,
         .out = ranked ? rows->ranked.f32 : rows->query,
         .out_stride = ranked ? rows->ranked.stride : rows->query_length},
    };
    xm_products_run(forward, products, 2, forward->rows);
    if (!ranked)
        return;
    for_each_row(call, norm_rank);
    xm_product query = {.linear = &weights->query,
                        .in = &rows->ranked,
                        .out = rows->query,
                        .out_stride = rows->query_length};
    xm_products_run(forward, &query, 1, forward->rows);
}

static void attend(xm_forward *forward, int32_t index)
{
    const xm_attention_shape *shape = &forward->model->attention;
    const xm_latent_weights *weights = forward->model->layers[index].attention.latent;
    xm_latent_rows *rows = forward->latent;
    /* The rows of all heads side by side are rows of the step. */
    xm_activations means = rows->means;
    means.stride *= (size_t)shape->heads;
    xm_attention_call call = {
        .attention = &forward->attention,
        .kernels = forward->kernels,
        .cache = forward->cache,
        .layer = index,
        .queries = forward->qkv,
        .query_stride = forward->qkv_stride,
        .out = &means,
        .quantize = xm_type_takes_i16(weights->value_up[0].type),
    };
    xm_attention_run(&call, forward->pool);
}

void xm_latent_attention(xm_forward *forward, int32_t index)
{
    const xm_layer *layer = &forward->model->layers[index];
    const xm_attention_shape *shape = &forward->model->attention;
    const xm_latent_weights *weights = layer->attention.latent;
    row_call call = {.forward = forward, .weights = weights, .layer = index};
    xm_normalize(forward, &layer->attention_norm, forward->ordinal, forward->rows,
                 xm_takes_i16(&weights->latent) || xm_takes_i16(&weights->query_down) ||
                     xm_takes_i16(&weights->query));
    project(forward, &call);
    for_each_row(&call, place_row);
    raise_heads(&(raise_call){.forward = forward,
                              .matrices = weights->key_up,
                              .in = &forward->latent->plain,
                              .out = forward->qkv,
                              .out_stride = forward->qkv_stride,
                              .out_length = (size_t)shape->key_length});
    attend(forward, index);
    raise_heads(&(raise_call){.forward = forward,
                              .matrices = weights->value_up,
                              .in = &forward->latent->means,
                              .out = forward->attended.f32,
                              .out_stride = forward->attended.stride,
                              .out_length = (size_t)shape->head_value_length});
    if (xm_takes_i16(&layer->attention.output))
        for_each_row(&call, quantize_attended);
    xm_product output = {
        .linear = &layer->attention.output,
        .in = &forward->attended,
        .out = forward->update,
        .out_stride = forward->x_stride,
        .finish = xm_finish_residual,
    };
    xm_products_run(forward, &output, 1, forward->rows);
}
