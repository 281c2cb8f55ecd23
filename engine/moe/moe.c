/*
 * moe.c - one MoE layer, in three or four parallel regions (see moe.h):
 *
 *   route  router logits of all rows; per row their mix (views.h), scores, choice of experts
 *   up     per (expert, panels): hidden = activation(gate . h, up . h) of the expert's rows,
 *          also as int16 where the down weights want it
 *   down   per range of output columns: for each touched expert in ascending order,
 *          down . hidden + bias, added with the routing weight to the residual rows
 *
 * The down region is cut by columns alone: its tasks are equal in size and write disjoint columns,
 * so outputs are added where they are made and a row's sum has the order of its experts. Runs on
 * the thread that opens the regions; regions too small to be worth waking others run on it alone.
 */
#include "moe/moe.h"

#include "base/memory.h"
#include "moe/activations.h"
#include "moe/dispatch.h"
#include "moe/tiles.h"
#include "moe/views.h"

enum {
    HIDDEN_BYTES = 8 << 20, /* scratch for hidden rows: about what the caches hold */
    ROUTE_ROWS = 8,         /* rows of one task of the router */
};

struct xm_moe_scratch {
    const xm_input_observer *observer; /* or NULL */
    int32_t max_rows, experts, views;
    int32_t capacity; /* pairs of one wave */
    float *score;     /* [max_rows][experts]: router logits, then scores */
    float *view;      /* [max_rows][views][experts]: logits before they are mixed; NULL: one view */
    int32_t *count;   /* the selection's arrays */
    uint16_t *expert; /* [max_rows][experts] */
    float *weight;    /* [max_rows][experts] */
    xm_dispatch dispatch;
    xm_expert_task *tasks; /* [xm_dispatch_max_tasks] */
    int32_t *ordinal;      /* [max(capacity, max_rows)]: 0, 1, 2, ... */
    xm_activations hidden; /* [capacity][hidden] */
    float *gate;           /* [capacity][hidden.stride]; NULL where experts have no gates */
    float *out;            /* [XM_ROW_TILE][out_stride]: expert outputs before they are added */
    size_t out_stride;
};

/* What the tasks of one call see. */
typedef struct {
    const xm_kernels *kernels;
    xm_moe_scratch *scratch;
    const xm_moe_layer *layer;
    const xm_activations *h;
    const xm_moe_rows *rows;
    float *residual;
    size_t residual_stride;
    xm_tiles tiles;                   /* of router and down */
    int32_t first_expert, end_expert; /* of the wave */
} moe_call;

/* --- scratch ---------------------------------------------------------------------------------- */

static int32_t wave_capacity(int32_t max_rows, int32_t experts, int32_t hidden)
{
    size_t row_bytes = (size_t)hidden * (sizeof(float) + sizeof(int16_t)) + 1;
    size_t pairs = HIDDEN_BYTES / row_bytes;
    size_t all = (size_t)max_rows * (size_t)experts;
    if (pairs > all)
        pairs = all;
    return pairs < (size_t)max_rows ? max_rows : (int32_t)pairs;
}

static bool allocate_scratch(xm_moe_scratch *scratch, size_t hidden, size_t width, bool gated)
{
    size_t rows = (size_t)scratch->max_rows, experts = (size_t)scratch->experts;
    size_t tasks = (size_t)xm_dispatch_max_tasks(scratch->experts);
    scratch->out_stride = (width + XM_PANEL - 1) / XM_PANEL * XM_PANEL;
    scratch->score = xm_calloc_aligned(rows * experts, sizeof *scratch->score);
    if (scratch->views > 1)
        scratch->view = xm_calloc_aligned(rows * experts * (size_t)scratch->views, sizeof(float));
    scratch->count = xm_calloc(rows, sizeof *scratch->count);
    scratch->expert = xm_calloc(rows * experts, sizeof *scratch->expert);
    scratch->weight = xm_calloc(rows * experts, sizeof *scratch->weight);
    scratch->tasks = xm_calloc(tasks, sizeof *scratch->tasks);
    scratch->ordinal = xm_calloc((size_t)scratch->capacity, sizeof *scratch->ordinal);
    scratch->out = xm_calloc_aligned(XM_ROW_TILE * scratch->out_stride, sizeof *scratch->out);
    if (scratch->score == NULL || (scratch->views > 1 && scratch->view == NULL) ||
        scratch->count == NULL || scratch->expert == NULL || scratch->weight == NULL ||
        scratch->tasks == NULL || scratch->ordinal == NULL || scratch->out == NULL ||
        !xm_dispatch_create(scratch->max_rows, scratch->experts, &scratch->dispatch) ||
        !xm_activations_create((size_t)scratch->capacity, hidden, &scratch->hidden))
        return false;
    if (gated)
        scratch->gate = xm_calloc_aligned((size_t)scratch->capacity,
                                          scratch->hidden.stride * sizeof *scratch->gate);
    return !gated || scratch->gate != NULL;
}

xmoe_status xm_moe_scratch_create(int32_t max_rows, int32_t experts, int32_t views, int32_t hidden,
                                  int32_t width, bool gated, xm_moe_scratch **scratch_out,
                                  xmoe_error *error)
{
    *scratch_out = NULL;
    xm_moe_scratch *scratch = xm_calloc(1, sizeof *scratch);
    if (scratch == NULL)
        return xm_fail_memory(error, "MoE scratch", sizeof *scratch);
    scratch->max_rows = max_rows;
    scratch->experts = experts;
    scratch->views = views;
    scratch->capacity = wave_capacity(max_rows, experts, hidden);
    if (!allocate_scratch(scratch, (size_t)hidden, (size_t)width, gated)) {
        xm_moe_scratch_free(scratch);
        return xm_fail_memory(error, "MoE scratch", HIDDEN_BYTES);
    }
    for (int32_t i = 0; i < scratch->capacity; i++)
        scratch->ordinal[i] = i;
    *scratch_out = scratch;
    return XMOE_OK;
}

void xm_moe_scratch_free(xm_moe_scratch *scratch)
{
    if (scratch == NULL)
        return;
    xm_free(scratch->score);
    xm_free(scratch->view);
    xm_free(scratch->count);
    xm_free(scratch->expert);
    xm_free(scratch->weight);
    xm_dispatch_free(&scratch->dispatch);
    xm_free(scratch->tasks);
    xm_free(scratch->ordinal);
    xm_activations_free(&scratch->hidden);
    xm_free(scratch->gate);
    xm_free(scratch->out);
    xm_free(scratch);
}

void xm_moe_scratch_observe(xm_moe_scratch *scratch, const xm_input_observer *observer)
{
    scratch->observer = observer;
}

/* --- route ------------------------------------------------------------------------------------ */

static bool has_views(const xm_moe_layer *layer)
{
    return layer->rules.views > 1;
}

/* Logits of the router's own rows: one of each expert, or one of each view of each expert. */
static void run_router(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const moe_call *call = context;
    size_t stride = (size_t)call->layer->router.rows;
    float *logits = has_views(call->layer) ? call->scratch->view : call->scratch->score;
    xm_tile tile = xm_tiles_at(&call->tiles, task);
    const xm_activations *in = call->layer->gru != NULL ? call->rows->states : call->h;
    xm_matrix_panels(call->kernels, &call->layer->router, call->layer->router_bias, in,
                     call->scratch->ordinal + tile.first_row, tile.last_row - tile.first_row,
                     tile.first_panel, tile.last_panel, logits + (size_t)tile.first_row * stride,
                     stride);
}

static void run_route(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const moe_call *call = context;
    xm_moe_scratch *scratch = call->scratch;
    const xm_gate_rules *rules = &call->layer->rules;
    int32_t experts = call->layer->experts;
    int32_t rows = call->rows->count;
    int32_t last = xm_task_end(rows, ROUTE_ROWS, task);
    for (int32_t row = task * ROUTE_ROWS; row < last; row++) {
        size_t start = (size_t)row * (size_t)experts;
        if (has_views(call->layer))
            xm_mix_views(scratch->view + start * (size_t)rules->views, rules->views, experts,
                         rules->view_temperature, scratch->score + start);
        xm_score_experts(call->kernels, rules, scratch->score + start, experts);
        scratch->count[row] = xm_route(call->rows->routers[row], rules, scratch->score + start,
                                       experts, scratch->expert + start, scratch->weight + start);
    }
}

/* Each row's expert by its token id. */
static void look_up_experts(const moe_call *call)
{
    const xm_moe_scratch *scratch = call->scratch;
    for (int32_t row = 0; row < call->rows->count; row++) {
        size_t start = (size_t)row * (size_t)call->layer->experts;
        scratch->count[row] = 1;
        scratch->expert[start] = call->layer->expert_of[call->rows->tokens[row]];
        scratch->weight[start] = 1.0f;
    }
}

static void choose_experts(moe_call *call, xm_pool *pool)
{
    const xm_moe_layer *layer = call->layer;
    int32_t rows = call->rows->count;
    size_t work = (size_t)rows * (size_t)layer->router.rows * (size_t)layer->router.columns;
    call->tiles = xm_tiles_plan(rows, layer->router.panels, xm_pool_threads(pool));
    xm_pool_run(xm_pool_for(pool, work), call->tiles.tasks, run_router, call);
    xm_pool_run(pool, xm_task_count(rows, ROUTE_ROWS), run_route, call);
}

static void route_rows(moe_call *call, xm_pool *pool, xm_selection *selection)
{
    const xm_moe_layer *layer = call->layer;
    const xm_moe_scratch *scratch = call->scratch;
    if (layer->expert_of != NULL)
        look_up_experts(call);
    else
        choose_experts(call, pool);
    *selection = (xm_selection){.rows = call->rows->count,
                                .experts = layer->experts,
                                .count = scratch->count,
                                .expert = scratch->expert,
                                .weight = scratch->weight};
}

/* --- experts ---------------------------------------------------------------------------------- */

/* Pairs of one expert, at most XM_ROW_TILE: their rows of h and of the residual are dispatch.row[
 * first], ..., their hidden rows are `hidden`, hidden + 1, ... */
typedef struct {
    int32_t first, count, hidden;
} pair_tile;

/* The tile after `tile` of an expert whose pairs end at `end`; false if there is none. Start with a
 * count of 0. */
static bool next_tile(pair_tile *tile, int32_t end)
{
    tile->first += tile->count;
    tile->hidden += tile->count;
    tile->count = end - tile->first < XM_ROW_TILE ? end - tile->first : XM_ROW_TILE;
    return tile->count > 0;
}

static pair_tile tiles_of(const moe_call *call, int32_t expert)
{
    const int32_t *offset = call->scratch->dispatch.offset;
    return (pair_tile){.first = offset[expert],
                       .hidden = offset[expert] - offset[call->first_expert]};
}

/* The activation, and the int16 form if the down weights take it, of columns [first, last) of
 * hidden rows. */
static void finish_hidden(const moe_call *call, const pair_tile *tile, size_t first, size_t last)
{
    const xm_activations *hidden = &call->scratch->hidden;
    bool quantize = xm_type_takes_i16(call->layer->down[0].type);
    for (int32_t i = 0; i < tile->count; i++) {
        size_t row = (size_t)tile->hidden + (size_t)i;
        size_t start = row * hidden->stride + first;
        const float *gate = call->layer->gate != NULL ? call->scratch->gate + start : NULL;
        xm_activate(call->kernels, call->layer->activation, gate, hidden->f32 + start,
                    last - first);
        if (quantize)
            xm_activations_quantize(call->kernels, hidden, row, first, last);
    }
}

/* out = matrix . h, plus bias, over the rows of a tile and the panels of a task. */
static void run_hidden(const moe_call *call, const xm_expert_task *task, const pair_tile *tile,
                       const xm_matrix *matrices, const float *biases, float *out)
{
    const xm_moe_scratch *scratch = call->scratch;
    size_t start = (size_t)task->expert * (size_t)call->layer->hidden;
    xm_matrix_panels(call->kernels, &matrices[task->expert], biases != NULL ? biases + start : NULL,
                     call->h, scratch->dispatch.row + tile->first, tile->count, task->first,
                     task->last, out + (size_t)tile->hidden * scratch->hidden.stride,
                     scratch->hidden.stride);
}

static void run_up(void *context, int32_t index, int32_t thread)
{
    (void)thread;
    const moe_call *call = context;
    const xm_moe_layer *layer = call->layer;
    const xm_moe_scratch *scratch = call->scratch;
    const xm_expert_task *task = &scratch->tasks[index];
    size_t hidden = (size_t)layer->hidden;
    size_t first = (size_t)task->first * XM_PANEL, last = (size_t)task->last * XM_PANEL;
    pair_tile tile = tiles_of(call, task->expert);
    while (next_tile(&tile, scratch->dispatch.offset[task->expert + 1])) {
        if (layer->gate != NULL)
            run_hidden(call, task, &tile, layer->gate, layer->gate_bias, scratch->gate);
        run_hidden(call, task, &tile, layer->up, layer->up_bias, scratch->hidden.f32);
        finish_hidden(call, &tile, first, last < hidden ? last : hidden);
    }
}

/* Adds columns [first, last) of the tile's outputs, weighted, to their residual rows. */
static void add_outputs(const moe_call *call, const pair_tile *tile, size_t first, size_t last)
{
    const xm_moe_scratch *scratch = call->scratch;
    for (int32_t i = 0; i < tile->count; i++) {
        int32_t pair = tile->first + i;
        size_t row = (size_t)scratch->dispatch.row[pair];
        call->kernels->scaled_add(call->residual + row * call->residual_stride + first,
                                  scratch->dispatch.weight[pair] * call->layer->output_scale,
                                  scratch->out + (size_t)i * scratch->out_stride + first,
                                  last - first);
    }
}

static void run_down(void *context, int32_t index, int32_t thread)
{
    (void)thread;
    const moe_call *call = context;
    const xm_moe_layer *layer = call->layer;
    const xm_moe_scratch *scratch = call->scratch;
    xm_tile panels = xm_tiles_at(&call->tiles, index);
    size_t width = (size_t)layer->width;
    size_t first = (size_t)panels.first_panel * XM_PANEL;
    size_t last = (size_t)panels.last_panel * XM_PANEL;
    for (int32_t e = call->first_expert; e < call->end_expert; e++) {
        const float *bias = layer->down_bias != NULL ? layer->down_bias + (size_t)e * width : NULL;
        pair_tile tile = tiles_of(call, e);
        while (next_tile(&tile, scratch->dispatch.offset[e + 1])) {
            xm_matrix_panels(call->kernels, &layer->down[e], bias, &scratch->hidden,
                             scratch->ordinal + tile.hidden, tile.count, panels.first_panel,
                             panels.last_panel, scratch->out, scratch->out_stride);
            add_outputs(call, &tile, first, last < width ? last : width);
        }
    }
}

/* After run_up: the inputs of the wave's experts. */
static void tell_inputs(const moe_call *call)
{
    const xm_moe_layer *layer = call->layer;
    const xm_moe_scratch *scratch = call->scratch;
    const int32_t *offset = scratch->dispatch.offset;
    for (int32_t e = call->first_expert; scratch->observer != NULL && e < call->end_expert; e++) {
        const int32_t *rows = scratch->dispatch.row + offset[e];
        int32_t count = offset[e + 1] - offset[e];
        if (layer->gate != NULL)
            xm_observe(scratch->observer, &layer->gate[e], call->h, rows, count);
        xm_observe(scratch->observer, &layer->up[e], call->h, rows, count);
        xm_observe(scratch->observer, &layer->down[e], &scratch->hidden,
                   scratch->ordinal + offset[e] - offset[call->first_expert], count);
    }
}

/* Experts [first_expert, end_expert), whose pairs fit in the scratch. */
static void run_wave(moe_call *call, xm_pool *pool)
{
    const xm_moe_layer *layer = call->layer;
    xm_moe_scratch *scratch = call->scratch;
    const int32_t *offset = scratch->dispatch.offset;
    int32_t threads = xm_pool_threads(pool);
    size_t pairs = (size_t)(offset[call->end_expert] - offset[call->first_expert]);
    xm_pool *workers = xm_pool_for(pool, pairs * (size_t)layer->hidden * (size_t)layer->width);
    int32_t tasks = xm_dispatch_plan(&scratch->dispatch, call->first_expert, call->end_expert,
                                     layer->up[0].panels, threads, scratch->tasks);
    xm_pool_run(workers, tasks, run_up, call);
    tell_inputs(call);
    /* One row tile: the tasks go over the experts' own tiles. */
    call->tiles = xm_tiles_plan(1, layer->down[0].panels, threads);
    xm_pool_run(workers, call->tiles.tasks, run_down, call);
}

void xm_moe_forward(const xm_kernels *kernels, xm_pool *pool, xm_moe_scratch *scratch,
                    const xm_moe_layer *layer, const xm_activations *h, const xm_moe_rows *rows,
                    float *residual, size_t residual_stride, xm_selection *selection)
{
    moe_call call = {.kernels = kernels,
                     .scratch = scratch,
                     .layer = layer,
                     .h = h,
                     .rows = rows,
                     .residual = residual,
                     .residual_stride = residual_stride};
    route_rows(&call, pool, selection);
    xm_dispatch_group(&scratch->dispatch, selection);
    while (call.end_expert < layer->experts) {
        call.first_expert = call.end_expert;
        call.end_expert = xm_dispatch_wave(&scratch->dispatch, call.first_expert, layer->experts,
                                           scratch->capacity);
        run_wave(&call, pool);
    }
}
