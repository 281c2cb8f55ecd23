/*
 * products.c - norms and matrix products over the rows of a step, cut into the tasks of a parallel
 * region. See forward_state.h. Each output is one dot product whoever computes it.
 */
#include "model/forward_state.h"

/* --- work that goes row by row ---------------------------------------------------------------- */

int32_t xm_row_tasks(int32_t rows)
{
    return xm_task_count(rows, XM_ROWS_PER_TASK);
}

int32_t xm_task_rows(int32_t rows, int32_t task, int32_t *first)
{
    *first = task * XM_ROWS_PER_TASK;
    return xm_task_end(rows, XM_ROWS_PER_TASK, task);
}

typedef struct {
    const xm_forward *forward;
    const xm_norm *norm;
    const int32_t *from;
    int32_t rows;
    bool quantize;
} norm_call;

static void run_norm(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_call *call = context;
    const xm_forward *forward = call->forward;
    const xmoe_model *model = forward->model;
    const xm_activations *normed = &forward->normed;
    size_t d = (size_t)model->info.embedding_length;
    int32_t row, last = xm_task_rows(call->rows, task, &row);
    for (; row < last; row++) {
        const float *x = forward->x + (size_t)call->from[row] * forward->x_stride;
        float *out = normed->f32 + (size_t)row * normed->stride;
        if (model->norm_kind == XM_NORM_RMS)
            forward->kernels->rms_norm(x, call->norm->weight, model->norm_epsilon, d, out);
        else
            forward->kernels->layer_norm(x, call->norm->weight, call->norm->bias,
                                         model->norm_epsilon, d, out);
        if (call->quantize)
            xm_activations_quantize(forward->kernels, normed, (size_t)row, 0, d);
    }
}

void xm_normalize(const xm_forward *forward, const xm_norm *norm, const int32_t *from, int32_t rows,
                  bool quantize)
{
    norm_call call = {
        .forward = forward, .norm = norm, .from = from, .rows = rows, .quantize = quantize};
    xm_pool_run(forward->pool, xm_row_tasks(rows), run_norm, &call);
}

/* --- products --------------------------------------------------------------------------------- */

static void run_tile(const xm_product *product, xm_tile tile)
{
    const xm_forward *forward = product->forward;
    const xm_matrix *weight = &product->linear->weight;
    const int32_t *rows = forward->ordinal + tile.first_row;
    int32_t count = tile.last_row - tile.first_row;
    size_t start = (size_t)tile.first_row * product->out_stride;
    size_t first = (size_t)tile.first_panel * XM_PANEL, last = (size_t)tile.last_panel * XM_PANEL;
    if (last > (size_t)weight->rows)
        last = (size_t)weight->rows;
    if (product->gate != NULL)
        xm_matrix_panels(forward->kernels, &product->gate->weight, product->gate->bias, product->in,
                         rows, count, tile.first_panel, tile.last_panel, product->gate_out + start,
                         product->out_stride);
    xm_matrix_panels(forward->kernels, weight, product->linear->bias, product->in, rows, count,
                     tile.first_panel, tile.last_panel, product->out + start, product->out_stride);
    for (int32_t row = tile.first_row; product->finish != NULL && row < tile.last_row; row++)
        product->finish(product, row, first, last);
}

typedef struct {
    const xm_product *products;
    int32_t count;
} products_call;

static void run_product(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const products_call *call = context;
    const xm_product *product = call->products;
    while (task >= product->tiles.tasks)
        task -= product++->tiles.tasks;
    run_tile(product, xm_tiles_at(&product->tiles, task));
}

void xm_products_run(const xm_forward *forward, xm_product *products, int32_t count, int32_t rows)
{
    products_call call = {.products = products, .count = count};
    size_t work = 0;
    int32_t tasks = 0;
    for (int32_t i = 0; i < count; i++) {
        const xm_matrix *weight = &products[i].linear->weight;
        products[i].forward = forward;
        xm_observe(forward->observer, weight, products[i].in, forward->ordinal, rows);
        if (products[i].gate != NULL)
            xm_observe(forward->observer, &products[i].gate->weight, products[i].in,
                       forward->ordinal, rows);
        products[i].tiles = xm_tiles_plan(rows, weight->panels, xm_pool_threads(forward->pool));
        work += (size_t)rows * (size_t)weight->rows * (size_t)weight->columns;
        tasks += products[i].tiles.tasks;
    }
    xm_pool_run(xm_pool_for(forward->pool, work), tasks, run_product, &call);
}

void xm_finish_residual(const xm_product *product, int32_t row, size_t first, size_t last)
{
    const xm_forward *forward = product->forward;
    size_t start = (size_t)row * product->out_stride + first;
    forward->kernels->scaled_add(forward->x + start, forward->model->residual_scale,
                                 product->out + start, last - first);
}
