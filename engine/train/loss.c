/*
 * loss.c - see loss.h.
 */
#include "train/loss.h"

#include "train/rows.h"

#include <math.h>
#include <string.h>

enum { ROW_TASK = 128, VOCABULARY_TASK = 1024 };

typedef struct {
    const xm_compute *compute;
    const xm_loss_job *job;
    int32_t first, rows; /* of the part in work */
    float share;         /* 1 / rows that count */
} loss_part;

/* logits -> loss and, in place, (softmax - one-hot) * share */
static void row_loss(const loss_part *part, int32_t row, float *logits)
{
    const xm_loss_job *job = part->job;
    size_t vocabulary = (size_t)job->vocabulary;
    int32_t target = job->targets[row];
    job->losses[row] = 0.0f;
    if (target < 0) {
        memset(logits, 0, vocabulary * sizeof *logits);
        return;
    }
    float wanted = logits[target];
    job->losses[row] = xm_row_softmax(logits, 1.0f, vocabulary) - wanted;
    if (job->dh == NULL)
        return;
    xm_row_scale(logits, logits, part->share, vocabulary);
    logits[target] -= part->share;
}

static void rows_task(void *context, int32_t task, int32_t thread)
{
    const loss_part *part = context;
    const xm_gemm *gemm = part->compute->gemm;
    void *scratch = xm_compute_scratch(part->compute, thread);
    const xm_loss_job *job = part->job;
    int32_t begin = task * ROW_TASK;
    int32_t rows = xm_task_end(part->rows, ROW_TASK, task) - begin;
    size_t first = (size_t)part->first + (size_t)begin;
    float *logits = job->logits + (size_t)begin * (size_t)job->vocabulary;
    gemm->nt(scratch, rows, job->vocabulary, job->width, job->h + first * (size_t)job->width,
             job->width, job->weight, job->width, 0.0f, logits, job->vocabulary);
    for (int32_t i = 0; i < rows; i++)
        row_loss(part, part->first + begin + i, logits + (size_t)i * (size_t)job->vocabulary);
    if (job->dh != NULL)
        gemm->nn(scratch, rows, job->width, job->vocabulary, logits, job->vocabulary, job->weight,
                 job->width, 0.0f, job->dh + first * (size_t)job->width, job->width);
}

static void weight_task(void *context, int32_t task, int32_t thread)
{
    const loss_part *part = context;
    const xm_gemm *gemm = part->compute->gemm;
    void *scratch = xm_compute_scratch(part->compute, thread);
    const xm_loss_job *job = part->job;
    int32_t begin = task * VOCABULARY_TASK;
    int32_t tokens = xm_task_end(job->vocabulary, VOCABULARY_TASK, task) - begin;
    gemm->tn(scratch, tokens, job->width, part->rows, job->logits + begin, job->vocabulary,
             job->h + (size_t)part->first * (size_t)job->width, job->width, 1.0f,
             job->dweight + (size_t)begin * (size_t)job->width, job->width);
}

int32_t xm_loss_run(const xm_compute *compute, const xm_loss_job *job)
{
    int32_t counted = 0;
    for (int32_t row = 0; row < job->rows; row++)
        counted += job->targets[row] >= 0;
    loss_part part = {
        .compute = compute, .job = job, .share = counted > 0 ? 1.0f / (float)counted : 0.0f};
    for (part.first = 0; part.first < job->rows; part.first += XM_LOSS_ROWS) {
        part.rows = job->rows - part.first < XM_LOSS_ROWS ? job->rows - part.first : XM_LOSS_ROWS;
        xm_pool_run(compute->pool, xm_task_count(part.rows, ROW_TASK), rows_task, &part);
        if (job->dh != NULL)
            xm_pool_run(compute->pool, xm_task_count(job->vocabulary, VOCABULARY_TASK), weight_task,
                        &part);
    }
    return counted;
}
