/*
 * moe.c - see moe.h.
 *
 * With u = W_up h + b_up, a = gelu(u), o = W_down a + b_down and y += gate * o, the gradients for a
 * row of dy that this expert gets are
 *     c = W_down^T dy;            dgate = c . a + dy . b_down
 *     dW_down += dy (gate a)^T;   db_down += gate dy
 *     du = gate * c * gelu'(u);   dW_up += du h^T;   db_up += du;   dh += W_up^T du
 * With SwiGLU, a = silu(v) * u, v = W_gate h: c splits into dv and du, and both go back to h.
 * Dropout multiplies a by a mask, and c by the same one on its way to u and v.
 */
#include "train/moe.h"

#include "train/rows.h"

#include <string.h>

enum { ROW_TASK = 256 };

typedef struct {
    const xm_compute *compute;
    const xm_train_moe_weights *weights;
    xm_train_moe_gradients *gradients;
    const xm_train_moe_layer *layer;
    xm_train_moe_scratch *scratch;
    const float *h, *residual, *dy;
    float *y, *dh;
} moe_job;

static void gather(float *to, const float *from, const int32_t *slot_row, size_t rows, size_t width)
{
    for (size_t i = 0; i < rows; i++)
        memcpy(to + i * width, from + (size_t)slot_row[i] * width, width * sizeof *to);
}

/* Leaves out hidden units of the slots [first, first + rows) of an expert; values: [rows][hidden].
 */
static void drop_units(const moe_job *job, int32_t expert, size_t first, size_t rows, float *values)
{
    size_t hidden = (size_t)job->weights->hidden;
    if (job->layer->dropout.rate > 0.0f)
        for (size_t i = 0; i < rows; i++)
            xm_expert_dropout_apply(&job->layer->dropout, job->layer->routes.slot_row[first + i],
                                    expert, values + i * hidden, hidden);
}

static void expert_forward_task(void *context, int32_t task, int32_t thread)
{
    const moe_job *job = context;
    const xm_gemm *gemm = job->compute->gemm;
    void *scratch = xm_compute_scratch(job->compute, thread);
    const xm_train_moe_weights *w = job->weights;
    const xm_routes *routes = &job->layer->routes;
    int32_t expert = routes->order[task];
    size_t e = (size_t)expert, width = (size_t)w->width, hidden = (size_t)w->hidden;
    size_t first = (size_t)routes->expert_begin[expert];
    int32_t rows = routes->expert_begin[expert + 1] - routes->expert_begin[expert];
    if (rows == 0)
        return;
    float *h = job->layer->gathered + first * width, *u = job->layer->before + first * hidden;
    float *a = job->layer->activated + first * hidden, *out = job->scratch->out + first * width;

    gather(h, job->h, routes->slot_row + first, (size_t)rows, width);
    gemm->nt(scratch, rows, w->hidden, w->width, h, w->width, w->up + e * hidden * width, w->width,
             0.0f, u, w->hidden);
    if (w->up_bias != NULL)
        xm_rows_add_bias(u, w->up_bias + e * hidden, (size_t)rows, hidden, hidden);
    if (w->expert_gate != NULL) {
        float *v = job->layer->gates + first * hidden;
        gemm->nt(scratch, rows, w->hidden, w->width, h, w->width,
                 w->expert_gate + e * hidden * width, w->width, 0.0f, v, w->hidden);
        xm_row_swiglu(a, v, u, (size_t)rows * hidden);
    } else {
        xm_row_gelu(a, u, (size_t)rows * hidden);
    }
    drop_units(job, expert, first, (size_t)rows, a);
    gemm->nt(scratch, rows, w->width, w->hidden, a, w->hidden, w->down + e * width * hidden,
             w->hidden, 0.0f, out, w->width);
    if (w->down_bias != NULL)
        xm_rows_add_bias(out, w->down_bias + e * width, (size_t)rows, width, width);
}

static void combine_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const moe_job *job = context;
    const xm_routes *routes = &job->layer->routes;
    size_t width = (size_t)job->weights->width;
    int32_t end = xm_task_end(routes->rows, ROW_TASK, task);
    for (int32_t row = task * ROW_TASK; row < end; row++) {
        float *y = job->y + (size_t)row * width;
        memcpy(y, job->residual + (size_t)row * width, width * sizeof *y);
        for (int32_t pair = routes->row_begin[row]; pair < routes->row_begin[row + 1]; pair++) {
            size_t slot = (size_t)routes->row_slots[pair];
            xm_row_add_scaled(y, job->scratch->out + slot * width, routes->slot_gate[slot], width);
        }
    }
}

void xm_train_moe_forward(const xm_compute *compute, const xm_train_moe_weights *weights,
                          xm_train_moe_layer *layer, xm_train_moe_scratch *scratch, const float *h,
                          const int32_t *tokens, const float *residual, float *y)
{
    moe_job job = {.compute = compute,
                   .weights = weights,
                   .layer = layer,
                   .scratch = scratch,
                   .h = h,
                   .residual = residual,
                   .y = y};
    int32_t rows = layer->routes.rows;
    xm_train_gate_forward(compute->pool, &weights->gate, h, tokens, &layer->views, &layer->routes);
    xm_pool_run(compute->pool, weights->experts, expert_forward_task, &job);
    xm_pool_run(compute->pool, xm_task_count(rows, ROW_TASK), combine_task, &job);
}

/* The rows of one expert, slots [first, first + rows): from dout and c = W_down^T dout to the
 * gradients of their gates, and of what goes into the activation: c becomes du, dgates dv. */
static void differentiate_activation(const moe_job *job, size_t expert, size_t first, size_t rows,
                                     const float *dout, float *c)
{
    const xm_train_moe_weights *w = job->weights;
    const xm_train_moe_layer *layer = job->layer;
    size_t width = (size_t)w->width, hidden = (size_t)w->hidden;
    for (size_t i = 0; i < rows; i++) {
        size_t at = (first + i) * hidden;
        float gate = layer->routes.slot_gate[first + i];
        float *c_row = c + i * hidden, *a_row = layer->activated + at;
        const float *dout_row = dout + i * width;
        float *dgate = &job->scratch->dgate[first + i];
        *dgate = xm_row_dot(c_row, a_row, hidden);
        drop_units(job, (int32_t)expert, first + i, 1, c_row);
        xm_row_scale(a_row, a_row, gate, hidden);
        if (w->expert_gate != NULL) {
            float *dv = job->scratch->dgates + at;
            memcpy(dv, c_row, hidden * sizeof *dv);
            xm_row_swiglu_backward(dv, c_row, dv, layer->gates + at, layer->before + at, gate,
                                   hidden);
        } else {
            xm_row_gelu_backward(c_row, c_row, layer->before + at, gate, hidden);
        }
        if (w->down_bias != NULL) {
            *dgate += xm_row_dot(dout_row, w->down_bias + expert * width, width);
            xm_row_add_scaled(job->gradients->down_bias + expert * width, dout_row, gate, width);
        }
    }
}

static void expert_backward_task(void *context, int32_t task, int32_t thread)
{
    const moe_job *job = context;
    const xm_gemm *gemm = job->compute->gemm;
    void *scratch = xm_compute_scratch(job->compute, thread);
    const xm_train_moe_weights *w = job->weights;
    const xm_train_moe_gradients *g = job->gradients;
    const xm_routes *routes = &job->layer->routes;
    int32_t expert = routes->order[task];
    size_t e = (size_t)expert, width = (size_t)w->width, hidden = (size_t)w->hidden;
    size_t first = (size_t)routes->expert_begin[expert], matrix = e * hidden * width;
    int32_t rows = routes->expert_begin[expert + 1] - routes->expert_begin[expert];
    if (rows == 0)
        return;
    const float *h = job->layer->gathered + first * width;
    float *dout = job->scratch->dout + first * width, *dh = job->scratch->out + first * width;
    float *c = job->scratch->dhidden + first * hidden;

    gather(dout, job->dy, routes->slot_row + first, (size_t)rows, width);
    gemm->nn(scratch, rows, w->hidden, w->width, dout, w->width, w->down + matrix, w->hidden, 0.0f,
             c, w->hidden);
    differentiate_activation(job, e, first, (size_t)rows, dout, c);
    gemm->tn(scratch, w->width, w->hidden, rows, dout, w->width,
             job->layer->activated + first * hidden, w->hidden, 1.0f, g->down + matrix, w->hidden);
    gemm->tn(scratch, w->hidden, w->width, rows, c, w->hidden, h, w->width, 1.0f, g->up + matrix,
             w->width);
    if (w->up_bias != NULL)
        xm_rows_column_sums(g->up_bias + e * hidden, c, (size_t)rows, hidden, hidden);
    gemm->nn(scratch, rows, w->width, w->hidden, c, w->hidden, w->up + matrix, w->width, 0.0f, dh,
             w->width);
    if (w->expert_gate == NULL)
        return;
    const float *dv = job->scratch->dgates + first * hidden;
    gemm->tn(scratch, w->hidden, w->width, rows, dv, w->hidden, h, w->width, 1.0f,
             g->expert_gate + matrix, w->width);
    gemm->nn(scratch, rows, w->width, w->hidden, dv, w->hidden, w->expert_gate + matrix, w->width,
             1.0f, dh, w->width);
}

static void collect_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const moe_job *job = context;
    const xm_routes *routes = &job->layer->routes;
    size_t width = (size_t)job->weights->width;
    int32_t end = xm_task_end(routes->rows, ROW_TASK, task);
    for (int32_t row = task * ROW_TASK; row < end; row++) {
        float *dh = job->dh + (size_t)row * width;
        memset(dh, 0, width * sizeof *dh);
        for (int32_t pair = routes->row_begin[row]; pair < routes->row_begin[row + 1]; pair++)
            xm_row_add_scaled(dh, job->scratch->out + (size_t)routes->row_slots[pair] * width, 1.0f,
                              width);
    }
}

void xm_train_moe_backward(const xm_compute *compute, const xm_train_moe_weights *weights,
                           xm_train_moe_gradients *gradients, const xm_train_moe_layer *layer,
                           xm_train_moe_scratch *scratch, const float *h, const float *dy,
                           float *dh)
{
    moe_job job = {.compute = compute,
                   .weights = weights,
                   .gradients = gradients,
                   .layer = layer,
                   .scratch = scratch,
                   .h = h,
                   .dy = dy,
                   .dh = dh};
    int32_t rows = layer->routes.rows;
    xm_pool_run(compute->pool, weights->experts, expert_backward_task, &job);
    xm_pool_run(compute->pool, xm_task_count(rows, ROW_TASK), collect_task, &job);
    xm_train_gate_backward(compute->pool, &weights->gate, &gradients->gate, h, &layer->views,
                           &layer->routes, scratch->dgate, scratch->dlogits, dh);
}
