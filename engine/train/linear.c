/*
 * linear.c - see linear.h.
 */
#include "train/linear.h"

#include "train/rows.h"

#include <string.h>

enum {
    ROW_TASK = 256,   /* rows of activations per task */
    OUT_TASK = 128,   /* rows of a weight gradient per task */
    FLAT_TASK = 65536 /* floats per task of elementwise loops */
};

typedef struct {
    const xm_compute *compute;
    const float *x, *weight, *bias, *residual, *dy;
    float *y, *dx, *dweight, *dbias;
    int32_t rows, in, out;
    bool accumulate;
} linear_job;

static int32_t task_size(int32_t total, int32_t per_task, int32_t task)
{
    return xm_task_end(total, per_task, task) - task * per_task;
}

static void forward_task(void *context, int32_t task, int32_t thread)
{
    const linear_job *job = context;
    size_t first = (size_t)task * ROW_TASK;
    size_t out = (size_t)job->out;
    int32_t rows = task_size(job->rows, ROW_TASK, task);
    float *y = job->y + first * out;
    if (job->residual != NULL)
        memcpy(y, job->residual + first * out, (size_t)rows * out * sizeof *y);
    job->compute->gemm->nt(xm_compute_scratch(job->compute, thread), rows, job->out, job->in,
                           job->x + first * (size_t)job->in, job->in, job->weight, job->in,
                           job->residual != NULL ? 1.0f : 0.0f, y, job->out);
    if (job->bias != NULL)
        xm_rows_add_bias(y, job->bias, (size_t)rows, out, out);
}

void xm_linear_forward(const xm_compute *compute, const float *x, const float *weight,
                       const float *bias, float *y, int32_t rows, int32_t in, int32_t out)
{
    xm_linear_forward_residual(compute, x, weight, bias, NULL, y, rows, in, out);
}

void xm_linear_forward_residual(const xm_compute *compute, const float *x, const float *weight,
                                const float *bias, const float *residual, float *y, int32_t rows,
                                int32_t in, int32_t out)
{
    linear_job job = {.compute = compute,
                      .x = x,
                      .weight = weight,
                      .bias = bias,
                      .residual = residual,
                      .y = y,
                      .rows = rows,
                      .in = in,
                      .out = out};
    xm_pool_run(compute->pool, xm_task_count(rows, ROW_TASK), forward_task, &job);
}

static void backward_input_task(void *context, int32_t task, int32_t thread)
{
    const linear_job *job = context;
    size_t first = (size_t)task * ROW_TASK;
    job->compute->gemm->nn(
        xm_compute_scratch(job->compute, thread), task_size(job->rows, ROW_TASK, task), job->in,
        job->out, job->dy + first * (size_t)job->out, job->out, job->weight, job->in,
        job->accumulate ? 1.0f : 0.0f, job->dx + first * (size_t)job->in, job->in);
}

void xm_linear_backward_input(const xm_compute *compute, const float *dy, const float *weight,
                              float *dx, int32_t rows, int32_t in, int32_t out, bool accumulate)
{
    linear_job job = {.compute = compute,
                      .dy = dy,
                      .weight = weight,
                      .dx = dx,
                      .rows = rows,
                      .in = in,
                      .out = out,
                      .accumulate = accumulate};
    xm_pool_run(compute->pool, xm_task_count(rows, ROW_TASK), backward_input_task, &job);
}

static void backward_weight_task(void *context, int32_t task, int32_t thread)
{
    const linear_job *job = context;
    size_t first = (size_t)task * OUT_TASK;
    int32_t outs = task_size(job->out, OUT_TASK, task);
    job->compute->gemm->tn(xm_compute_scratch(job->compute, thread), outs, job->in, job->rows,
                           job->dy + first, job->out, job->x, job->in, 1.0f,
                           job->dweight + first * (size_t)job->in, job->in);
    if (job->dbias != NULL)
        xm_rows_column_sums(job->dbias + first, job->dy + first, (size_t)job->rows, (size_t)outs,
                            (size_t)job->out);
}

void xm_linear_backward_weight(const xm_compute *compute, const float *dy, const float *x,
                               float *dweight, float *dbias, int32_t rows, int32_t in, int32_t out)
{
    linear_job job = {.compute = compute,
                      .dy = dy,
                      .x = x,
                      .dweight = dweight,
                      .dbias = dbias,
                      .rows = rows,
                      .in = in,
                      .out = out};
    xm_pool_run(compute->pool, xm_task_count(out, OUT_TASK), backward_weight_task, &job);
}

/* Elementwise work is cut into tasks of FLAT_TASK floats. */
static int32_t flat_tasks(size_t count)
{
    return (int32_t)((count + FLAT_TASK - 1) / FLAT_TASK);
}

static size_t flat_task_size(size_t count, size_t first)
{
    return count - first < FLAT_TASK ? count - first : FLAT_TASK;
}

typedef struct {
    const float *x, *dy;
    float *y;
    size_t count;
} flat_job;

static void gelu_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const flat_job *job = context;
    size_t first = (size_t)task * FLAT_TASK;
    size_t count = flat_task_size(job->count, first);
    if (job->dy == NULL)
        xm_row_gelu(job->y + first, job->x + first, count);
    else
        xm_row_gelu_backward(job->y + first, job->dy + first, job->x + first, 1.0f, count);
}

void xm_gelu_forward(xm_pool *pool, const float *x, float *y, size_t count)
{
    flat_job job = {.x = x, .y = y, .count = count};
    xm_pool_run(pool, flat_tasks(count), gelu_task, &job);
}

void xm_gelu_backward(xm_pool *pool, const float *x, const float *dy, float *dx, size_t count)
{
    flat_job job = {.x = x, .dy = dy, .y = dx, .count = count};
    xm_pool_run(pool, flat_tasks(count), gelu_task, &job);
}

typedef struct {
    const float *gate, *up, *dy;
    float *y, *dgate, *dup;
    size_t count;
} swiglu_job;

static void swiglu_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const swiglu_job *job = context;
    size_t first = (size_t)task * FLAT_TASK;
    size_t count = flat_task_size(job->count, first);
    if (job->dy == NULL)
        xm_row_swiglu(job->y + first, job->gate + first, job->up + first, count);
    else
        xm_row_swiglu_backward(job->dgate + first, job->dup + first, job->dy + first,
                               job->gate + first, job->up + first, 1.0f, count);
}

void xm_swiglu_forward(xm_pool *pool, const float *gate, const float *up, float *y, size_t count)
{
    swiglu_job job = {.gate = gate, .up = up, .y = y, .count = count};
    xm_pool_run(pool, flat_tasks(count), swiglu_task, &job);
}

void xm_swiglu_backward(xm_pool *pool, const float *gate, const float *up, const float *dy,
                        float *dgate, float *dup, size_t count)
{
    swiglu_job job = {.gate = gate, .up = up, .dy = dy, .dgate = dgate, .dup = dup, .count = count};
    xm_pool_run(pool, flat_tasks(count), swiglu_task, &job);
}

typedef struct {
    const float *x, *dy, *weight, *bias;
    float *y, *dx, *statistics_out, *partial;
    const float *statistics;
    float epsilon;
    int32_t rows, width;
    bool rms; /* backward */
} norm_job;

static void norm_range(const norm_job *job, int32_t task, size_t *first, size_t *end)
{
    *first = (size_t)job->rows * (size_t)task / XM_NORM_CHUNKS;
    *end = (size_t)job->rows * (size_t)(task + 1) / XM_NORM_CHUNKS;
}

static void norm_forward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_job *job = context;
    size_t width = (size_t)job->width, row, end;
    for (norm_range(job, task, &row, &end); row < end; row++) {
        const float *x = job->x + row * width;
        float *y = job->y + row * width, *statistics = job->statistics_out + 2 * row;
        if (job->bias == NULL)
            xm_row_rms_norm(y, x, job->weight, job->epsilon, &statistics[1], width);
        else
            xm_row_layer_norm(y, x, job->weight, job->bias, job->epsilon, &statistics[0],
                              &statistics[1], width);
    }
}

void xm_norm_forward(xm_pool *pool, const float *x, const float *weight, const float *bias,
                     float epsilon, float *y, float *statistics, int32_t rows, int32_t width)
{
    norm_job job = {.x = x,
                    .weight = weight,
                    .bias = bias,
                    .epsilon = epsilon,
                    .y = y,
                    .statistics_out = statistics,
                    .rows = rows,
                    .width = width};
    xm_pool_run(pool, XM_NORM_CHUNKS, norm_forward_task, &job);
}

static void norm_backward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_job *job = context;
    size_t width = (size_t)job->width, row, end;
    float *dweight = job->partial + 2 * (size_t)task * width;
    memset(dweight, 0, 2 * width * sizeof *dweight);
    for (norm_range(job, task, &row, &end); row < end; row++) {
        float *dx = job->dx + row * width;
        const float *dy = job->dy + row * width, *x = job->x + row * width;
        const float *statistics = job->statistics + 2 * row;
        if (job->rms)
            xm_row_rms_norm_backward(dx, dweight, dy, x, job->weight, statistics[1], width);
        else
            xm_row_layer_norm_backward(dx, dweight, dweight + width, dy, x, job->weight,
                                       statistics[0], statistics[1], width);
    }
}

void xm_norm_backward(xm_pool *pool, const float *dy, const float *x, const float *weight,
                      const float *statistics, float *dx, float *dweight, float *dbias,
                      float *partial, int32_t rows, int32_t width)
{
    norm_job job = {.dy = dy,
                    .x = x,
                    .weight = weight,
                    .statistics = statistics,
                    .dx = dx,
                    .partial = partial,
                    .rows = rows,
                    .width = width,
                    .rms = dbias == NULL};
    xm_pool_run(pool, XM_NORM_CHUNKS, norm_backward_task, &job);
    for (size_t chunk = 0; chunk < XM_NORM_CHUNKS; chunk++) {
        const float *part = partial + 2 * chunk * (size_t)width;
        xm_row_add_scaled(dweight, part, 1.0f, (size_t)width);
        if (dbias != NULL)
            xm_row_add_scaled(dbias, part + width, 1.0f, (size_t)width);
    }
}
