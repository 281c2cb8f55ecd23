/*
 * views.c - see views.h. A row is a task's whole work on it, so results do not depend on threads.
 */
#include "train/views.h"

#include "moe/views.h"

#include <math.h>

enum { ROW_TASK = 256 };

static const double first_temperature = 20.1;

float xm_view_temperature(uint64_t step, int64_t total_steps)
{
    const double last = (double)XM_VIEW_TEMPERATURE, fall = 0.1 * (double)total_steps;
    if ((double)step >= fall)
        return XM_VIEW_TEMPERATURE;
    double cosine = cos(M_PI * (double)step / fall);
    return (float)(last + 0.5 * (first_temperature - last) * (1.0 + cosine));
}

typedef struct {
    const xm_view_shape *shape;
    const float *z, *dlogits;
    float *logits, *dz;
} views_job;

static int32_t task_end(const xm_view_shape *shape, int32_t task)
{
    return xm_task_end(shape->rows, ROW_TASK, task);
}

static void run_tasks(xm_pool *pool, views_job *job, void (*run)(void *, int32_t, int32_t))
{
    xm_pool_run(pool, xm_task_count(job->shape->rows, ROW_TASK), run, job);
}

static void forward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const views_job *job = context;
    const xm_view_shape *s = job->shape;
    size_t experts = (size_t)s->experts, width = (size_t)s->views * experts;
    for (int32_t row = task * ROW_TASK; row < task_end(s, task); row++)
        xm_mix_views(job->z + (size_t)row * width, s->views, s->experts, s->temperature,
                     job->logits + (size_t)row * experts);
}

void xm_views_forward(xm_pool *pool, const xm_view_shape *shape, const float *z, float *logits)
{
    views_job job = {.shape = shape, .z = z, .logits = logits};
    run_tasks(pool, &job, forward_task);
}

/* One expert of one row; its views are s->experts apart in z and dz. */
static void expert_backward(const xm_view_shape *s, const float *z, float dlogit, float *dz)
{
    size_t stride = (size_t)s->experts;
    float logit = xm_mix_expert(z, s->views, stride, s->temperature, dz);
    for (int32_t v = 0; v < s->views; v++) {
        size_t at = (size_t)v * stride;
        dz[at] *= dlogit * (1.0f + (z[at] - logit) / s->temperature);
    }
}

static void backward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const views_job *job = context;
    const xm_view_shape *s = job->shape;
    size_t experts = (size_t)s->experts, width = (size_t)s->views * experts;
    for (int32_t row = task * ROW_TASK; row < task_end(s, task); row++)
        for (size_t e = 0; e < experts; e++)
            expert_backward(s, job->z + (size_t)row * width + e,
                            job->dlogits[(size_t)row * experts + e],
                            job->dz + (size_t)row * width + e);
}

void xm_views_backward(xm_pool *pool, const xm_view_shape *shape, const float *z,
                       const float *dlogits, float *dz)
{
    views_job job = {.shape = shape, .z = z, .dlogits = dlogits, .dz = dz};
    run_tasks(pool, &job, backward_task);
}
