/*
 * attention.c - see attention.h.
 *
 * For the queries [first, first + count) of a head, keys [0, first + count) are visible. With
 * s = scale * q k^T (masked), p = softmax(s), o = p v, the gradients are
 *     dv = p^T do;  dp = do v^T;  ds = p * (dp - rowsum(do * o)) * scale;  dq = ds k;  dk = ds^T q.
 */
#include "train/attention.h"

#include "train/rows.h"

#include <math.h>
#include <string.h>

enum { QUERIES = 128 }; /* per block: 128 x 512 floats of scores stay in a core's own cache */

typedef struct {
    const xm_compute *compute;
    xm_attention_shape shape;
    const float *qkv, *out_in, *log_sums_in, *dout;
    float *out, *log_sums, *dqkv, *scratch;
    int32_t blocks; /* of queries per sequence */
    int32_t head_size;
    float scale;
} attention_job;

static attention_job make_job(const xm_compute *compute, const xm_attention_shape *shape,
                              const float *qkv, float *scratch)
{
    int32_t head_size = shape->width / shape->heads;
    return (attention_job){.compute = compute,
                           .shape = *shape,
                           .qkv = qkv,
                           .scratch = scratch,
                           .blocks = xm_task_count(shape->length, QUERIES),
                           .head_size = head_size,
                           .scale = 1.0f / sqrtf((float)head_size)};
}

static int32_t block_queries(const attention_job *job, int32_t block)
{
    return xm_task_end(job->shape.length, QUERIES, block) - block * QUERIES;
}

size_t xm_attention_scratch(const xm_attention_shape *shape)
{
    return 2 * (size_t)QUERIES * (size_t)shape->length;
}

static void forward_task(void *context, int32_t task, int32_t thread)
{
    const attention_job *job = context;
    const xm_attention_shape *s = &job->shape;
    const xm_gemm *gemm = job->compute->gemm;
    void *scratch = xm_compute_scratch(job->compute, thread);
    int32_t block = task % job->blocks, head = task / job->blocks % s->heads;
    int32_t sequence = task / job->blocks / s->heads;
    int32_t first = block * QUERIES, count = block_queries(job, block), keys = first + count;
    int32_t stride = 3 * s->width, size = job->head_size;
    size_t base = (size_t)sequence * (size_t)s->length;
    const float *q = job->qkv + base * (size_t)stride + (size_t)(head * size);
    const float *k = q + s->width, *v = k + s->width;
    float *p = job->scratch + (size_t)thread * xm_attention_scratch(s);

    gemm->nt(scratch, count, keys, size, q + (size_t)first * (size_t)stride, stride, k, stride,
             0.0f, p, keys);
    for (int32_t i = 0; i < count; i++) {
        float *row = p + (size_t)i * (size_t)keys;
        size_t position = (size_t)first + (size_t)i, visible = position + 1;
        job->log_sums[(base + position) * (size_t)s->heads + (size_t)head] =
            xm_row_softmax(row, job->scale, visible);
        memset(row + visible, 0, ((size_t)keys - visible) * sizeof *row);
    }
    gemm->nn(scratch, count, size, keys, p, keys, v, stride, 0.0f,
             job->out + (base + (size_t)first) * (size_t)s->width + head * size, s->width);
}

void xm_attention_forward(const xm_compute *compute, const xm_attention_shape *shape,
                          const float *qkv, float *out, float *log_sums, float *scratch)
{
    attention_job job = make_job(compute, shape, qkv, scratch);
    job.out = out;
    job.log_sums = log_sums;
    xm_pool_run(compute->pool, shape->sequences * shape->heads * job.blocks, forward_task, &job);
}

/* Gradients of one block of queries. The last block sees all keys and runs first: it overwrites dk
 * and dv, those after it add. */
static void backward_block(const attention_job *job, int32_t block, size_t base, int32_t head,
                           float *p, float *dp, void *scratch)
{
    const xm_attention_shape *s = &job->shape;
    const xm_gemm *gemm = job->compute->gemm;
    int32_t first = block * QUERIES, count = block_queries(job, block), keys = first + count;
    int32_t stride = 3 * s->width, size = job->head_size;
    size_t width = (size_t)s->width, column = (size_t)head * (size_t)size;
    const float *q = job->qkv + base * 3 * width + column, *k = q + width, *v = k + width;
    float *dq = job->dqkv + base * 3 * width + column, *dk = dq + width, *dv = dk + width;
    const float *q_block = q + (size_t)first * 3 * width;
    const float *out = job->out_in + (base + (size_t)first) * width + column;
    const float *dout = job->dout + (base + (size_t)first) * width + column;
    float beta = block == job->blocks - 1 ? 0.0f : 1.0f;

    gemm->nt(scratch, count, keys, size, q_block, stride, k, stride, 0.0f, p, keys);
    gemm->nt(scratch, count, keys, size, dout, s->width, v, stride, 0.0f, dp, keys);
    for (int32_t i = 0; i < count; i++) {
        float *p_row = p + (size_t)i * (size_t)keys, *dp_row = dp + (size_t)i * (size_t)keys;
        size_t row = base + (size_t)first + (size_t)i, visible = row - base + 1;
        xm_row_exp(p_row, job->scale, job->log_sums_in[row * (size_t)s->heads + (size_t)head],
                   visible);
        float mean = xm_row_dot(dout + (size_t)i * width, out + (size_t)i * width, (size_t)size);
        xm_row_softmax_backward(dp_row, p_row, mean, job->scale, visible);
        memset(p_row + visible, 0, ((size_t)keys - visible) * sizeof *p_row);
        memset(dp_row + visible, 0, ((size_t)keys - visible) * sizeof *dp_row);
    }
    gemm->tn(scratch, keys, size, count, p, keys, dout, s->width, beta, dv, stride);
    gemm->nn(scratch, count, size, keys, dp, keys, k, stride, 0.0f, dq + (size_t)first * 3 * width,
             stride);
    gemm->tn(scratch, keys, size, count, dp, keys, q_block, stride, beta, dk, stride);
}

static void backward_task(void *context, int32_t task, int32_t thread)
{
    const attention_job *job = context;
    const xm_attention_shape *s = &job->shape;
    float *p = job->scratch + (size_t)thread * xm_attention_scratch(s);
    float *dp = p + (size_t)QUERIES * (size_t)s->length;
    size_t base = (size_t)(task / s->heads) * (size_t)s->length;
    for (int32_t block = job->blocks - 1; block >= 0; block--)
        backward_block(job, block, base, task % s->heads, p, dp,
                       xm_compute_scratch(job->compute, thread));
}

void xm_attention_backward(const xm_compute *compute, const xm_attention_shape *shape,
                           const float *qkv, const float *out, const float *log_sums,
                           const float *dout, float *dqkv, float *scratch)
{
    attention_job job = make_job(compute, shape, qkv, scratch);
    job.out_in = out;
    job.log_sums_in = log_sums;
    job.dout = dout;
    job.dqkv = dqkv;
    xm_pool_run(compute->pool, shape->sequences * shape->heads, backward_task, &job);
}
