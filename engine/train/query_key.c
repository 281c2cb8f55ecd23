/*
 * query_key.c - see query_key.h. Work is split into a fixed number of chunks of rows, so that sums
 * over rows do not depend on the number of threads.
 */
#include "train/query_key.h"

#include "train/rows.h"

#include <string.h>

typedef struct {
    xm_query_key_shape shape;
    const float *q_norm, *k_norm;
    float *qkv, *raw, *inverses;
    const xm_query_key_gradients *gradients; /* NULL: forward */
} query_key_job;

/* All heads of one row of q or k, in place; turn: there or back. */
static void turn_row(const xm_query_key_shape *s, float *x, int32_t position,
                     void (*turn)(const xm_rope *rope, const float *turns, float *x))
{
    const float *turns = s->turns + (size_t)position * (size_t)s->rope.dimensions;
    for (int32_t head = 0; head < s->heads; head++)
        turn(&s->rope, turns, x + head * (s->width / s->heads));
}

static void forward_row(const query_key_job *job, size_t row)
{
    size_t width = (size_t)job->shape.width;
    int32_t position = (int32_t)row % job->shape.length;
    float *q = job->qkv + row * 3 * width, *k = q + width;
    if (job->q_norm != NULL) {
        float *raw = job->raw + row * 2 * width, *inverses = job->inverses + row * 2;
        memcpy(raw, q, 2 * width * sizeof *raw);
        xm_row_rms_norm(q, raw, job->q_norm, job->shape.epsilon, &inverses[0], width);
        xm_row_rms_norm(k, raw + width, job->k_norm, job->shape.epsilon, &inverses[1], width);
    }
    turn_row(&job->shape, q, position, xm_rope_apply);
    turn_row(&job->shape, k, position, xm_rope_apply);
}

/* partial: [3][width]: sums for q_norm and k_norm, and a row of scratch; NULL: no norm. */
static void backward_row(const query_key_job *job, size_t row, float *partial)
{
    const xm_query_key_gradients *g = job->gradients;
    size_t width = (size_t)job->shape.width;
    int32_t position = (int32_t)row % job->shape.length;
    float *dq = g->dqkv + row * 3 * width;
    for (size_t part = 0; part < 2; part++) { /* q, k */
        float *d = dq + part * width;
        turn_row(&job->shape, d, position, xm_rope_transpose);
        if (partial == NULL)
            continue;
        float *dy = partial + 2 * width;
        memcpy(dy, d, width * sizeof *dy);
        memset(d, 0, width * sizeof *d);
        xm_row_rms_norm_backward(
            d, partial + part * width, dy, g->raw + row * 2 * width + part * width,
            part == 0 ? g->q_norm : g->k_norm, g->inverses[row * 2 + part], width);
    }
}

static void chunk_task(void *context, int32_t chunk, int32_t thread)
{
    (void)thread;
    const query_key_job *job = context;
    size_t rows = (size_t)job->shape.rows, width = (size_t)job->shape.width;
    size_t row = rows * (size_t)chunk / XM_QUERY_KEY_CHUNKS;
    size_t end = rows * ((size_t)chunk + 1) / XM_QUERY_KEY_CHUNKS;
    float *partial = NULL;
    if (job->gradients != NULL && job->gradients->q_norm != NULL) {
        partial = job->gradients->partial + (size_t)chunk * 3 * width;
        memset(partial, 0, 2 * width * sizeof *partial);
    }
    for (; row < end; row++)
        if (job->gradients != NULL)
            backward_row(job, row, partial);
        else
            forward_row(job, row);
}

void xm_query_key_forward(xm_pool *pool, const xm_query_key_shape *shape, const float *q_norm,
                          const float *k_norm, float *qkv, float *raw, float *inverses)
{
    query_key_job job = {.shape = *shape,
                         .q_norm = q_norm,
                         .k_norm = k_norm,
                         .qkv = qkv,
                         .raw = raw,
                         .inverses = inverses};
    xm_pool_run(pool, XM_QUERY_KEY_CHUNKS, chunk_task, &job);
}

void xm_query_key_backward(xm_pool *pool, const xm_query_key_shape *shape,
                           const xm_query_key_gradients *gradients)
{
    query_key_job job = {.shape = *shape, .gradients = gradients};
    size_t width = (size_t)shape->width;
    xm_pool_run(pool, XM_QUERY_KEY_CHUNKS, chunk_task, &job);
    for (size_t chunk = 0; chunk < XM_QUERY_KEY_CHUNKS && gradients->q_norm != NULL; chunk++) {
        const float *partial = gradients->partial + chunk * 3 * width;
        xm_row_add_scaled(gradients->dq_norm, partial, 1.0f, width);
        xm_row_add_scaled(gradients->dk_norm, partial + width, 1.0f, width);
    }
}
