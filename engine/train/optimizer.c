/*
 * optimizer.c - see optimizer.h. Work is split into ranges of TASK floats of the flat parameter
 * array; a range may hold pieces of several tensors, with and without weight decay.
 *
 * The sum over groups that several ranks hold goes from rank to rank: each adds its groups to what
 * the rank before has summed, stretch by stretch, so that all are at work at once; the last rank
 * tells all the whole sum. Each link carries the gradient once in and once out.
 */
#include "train/optimizer.h"

#include "base/memory.h"
#include "train/rows.h"

#include <math.h>

enum { TASK = 1 << 16, STRETCH = 16 }; /* floats of a task, tasks of a stretch */

double xm_learning_rate(const xm_optimizer_rule *rule, int64_t step)
{
    if (step < rule->warmup_steps)
        return rule->peak_rate * (double)(step + 1) / (double)rule->warmup_steps;
    if (step >= rule->total_steps)
        return rule->final_rate;
    int64_t fall = rule->total_steps - rule->warmup_steps;
    if (rule->decay_steps > 0 && rule->decay_steps < fall)
        fall = rule->decay_steps;
    int64_t left = rule->total_steps - step;
    if (left >= fall)
        return rule->peak_rate;
    double progress = (double)(fall - left) / (double)fall;
    return rule->final_rate +
           0.5 * (rule->peak_rate - rule->final_rate) * (1.0 + cos(M_PI * progress));
}

xmoe_status xm_optimizer_create(const xm_network *network, xm_optimizer_kind kind,
                                const xm_gemm *gemm, xm_workers *workers, const xm_ranks *ranks,
                                xm_optimizer *optimizer, xmoe_error *error)
{
    *optimizer = (xm_optimizer){.network = network,
                                .workers = workers,
                                .ranks = ranks,
                                .tasks = (int32_t)((network->total + TASK - 1) / TASK)};
    optimizer->first = xm_calloc_aligned(network->total, sizeof(float));
    optimizer->second = xm_calloc_aligned(network->total, sizeof(float));
    optimizer->partial = xm_calloc((size_t)optimizer->tasks, sizeof(double));
    if (ranks->rank > 0)
        optimizer->received = xm_calloc_aligned((size_t)STRETCH * TASK, sizeof(float));
    if (optimizer->first == NULL || optimizer->second == NULL || optimizer->partial == NULL ||
        (ranks->rank > 0 && optimizer->received == NULL)) {
        xm_optimizer_free(optimizer);
        return xm_fail_memory(error, "optimizer moments", 2 * network->total * sizeof(float));
    }
    xmoe_status status = XMOE_OK;
    if (kind == XM_OPTIMIZER_MUON)
        status = xm_muon_create(network, workers, gemm, &optimizer->muon, error);
    if (status != XMOE_OK)
        xm_optimizer_free(optimizer);
    return status;
}

void xm_optimizer_free(xm_optimizer *optimizer)
{
    xm_free(optimizer->first);
    xm_free(optimizer->second);
    xm_free(optimizer->partial);
    xm_free(optimizer->received);
    xm_muon_free(&optimizer->muon);
    *optimizer = (xm_optimizer){0};
}

typedef struct {
    xm_optimizer *optimizer;
    float *const *groups; /* their gradients; the mean goes into the first */
    int32_t group_count;
    int32_t first_task; /* of the stretch */
    const float *gradients;
    float *parameters;
    xm_adam_step step;
} update_job;

static size_t range_end(const xm_optimizer *optimizer, int32_t task)
{
    size_t end = ((size_t)task + 1) * TASK;
    return end < optimizer->network->total ? end : optimizer->network->total;
}

/* Adds this rank's groups, in order, to what came from the rank before. */
static void sum_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const update_job *job = context;
    const xm_optimizer *optimizer = job->optimizer;
    int32_t at = job->first_task + task;
    size_t begin = (size_t)at * TASK, count = range_end(optimizer, at) - begin;
    float *sum = job->groups[0] + begin;
    if (optimizer->received != NULL) /* a + b = b + a, so the sum may stay where it is */
        xm_row_add_scaled(sum, optimizer->received + (size_t)task * TASK, 1.0f, count);
    for (int32_t group = 1; group < job->group_count; group++)
        xm_row_add_scaled(sum, job->groups[group] + begin, 1.0f, count);
}

static void mean_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const update_job *job = context;
    const xm_optimizer *optimizer = job->optimizer;
    int32_t groups = job->group_count * optimizer->ranks->count;
    size_t begin = (size_t)task * TASK, count = range_end(optimizer, task) - begin;
    float *mean = job->groups[0] + begin;
    if (groups > 1)
        xm_row_scale(mean, mean, 1.0f / (float)groups, count);
    optimizer->partial[task] = xm_row_square_sum(mean, count);
}

/* gradients[0] becomes the sum over this rank's groups and those of all ranks before; on every rank
 * over all, once the last has told. */
static xmoe_status sum_groups(const update_job *whole, xmoe_error *error)
{
    const xm_optimizer *optimizer = whole->optimizer;
    const xm_ranks *ranks = optimizer->ranks;
    int32_t stretch = ranks->count > 1 ? STRETCH : optimizer->tasks;
    xmoe_status status = XMOE_OK;
    for (int32_t first = 0; first < optimizer->tasks && status == XMOE_OK; first += stretch) {
        int32_t tasks = optimizer->tasks - first < stretch ? optimizer->tasks - first : stretch;
        size_t begin = (size_t)first * TASK;
        size_t count = range_end(optimizer, first + tasks - 1) - begin;
        update_job job = *whole;
        job.first_task = first;
        if (ranks->rank > 0)
            status = ranks->receive(ranks->context, optimizer->received, count, error);
        if (status == XMOE_OK)
            xm_workers_run(optimizer->workers, tasks, sum_task, &job);
        if (status == XMOE_OK && ranks->rank + 1 < ranks->count)
            status = ranks->send(ranks->context, whole->groups[0] + begin, count, error);
    }
    if (status == XMOE_OK && ranks->count > 1)
        status = ranks->broadcast(ranks->context, ranks->count - 1, whole->groups[0],
                                  optimizer->network->total * sizeof(float), error);
    return status;
}

xmoe_status xm_gradient_mean(xm_optimizer *optimizer, float *const *gradients, int32_t groups,
                             double *norm, xmoe_error *error)
{
    update_job job = {.optimizer = optimizer, .groups = gradients, .group_count = groups};
    *norm = 0;
    xmoe_status status = sum_groups(&job, error);
    if (status != XMOE_OK)
        return status;
    xm_workers_run(optimizer->workers, optimizer->tasks, mean_task, &job);
    double sum = 0;
    for (int32_t task = 0; task < optimizer->tasks; task++)
        sum += optimizer->partial[task];
    *norm = sqrt(sum);
    return XMOE_OK;
}

static void update_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const update_job *job = context;
    const xm_network *network = job->optimizer->network;
    size_t begin = (size_t)task * TASK, end = range_end(job->optimizer, task);
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        size_t first = p->offset > begin ? p->offset : begin;
        size_t last = p->offset + p->count < end ? p->offset + p->count : end;
        if (first >= last || (p->map_rows > 0 && job->optimizer->muon.count > 0))
            continue;
        xm_adam_step step = job->step;
        step.decay = p->decay ? step.decay : 0.0f;
        xm_row_adam(job->parameters + first, job->gradients + first, job->optimizer->first + first,
                    job->optimizer->second + first, &step, last - first);
    }
}

void xm_optimizer_step(xm_optimizer *optimizer, const xm_optimizer_rule *rule, int64_t step,
                       double norm, const float *gradients, float *parameters)
{
    double rate = xm_learning_rate(rule, step), count = (double)step + 1.0;
    double clip = rule->clip > 0 && norm > rule->clip ? rule->clip / norm : 1.0;
    update_job job = {.optimizer = optimizer,
                      .gradients = gradients,
                      .parameters = parameters,
                      .step = {.beta1 = (float)rule->beta1,
                               .beta2 = (float)rule->beta2,
                               .rate = (float)(rate / (1.0 - pow(rule->beta1, count))),
                               .second_scale = (float)(1.0 / (1.0 - pow(rule->beta2, count))),
                               .epsilon = 1e-8f,
                               .decay = (float)(rate * rule->weight_decay),
                               .gradient_scale = (float)clip}};
    xm_workers_run(optimizer->workers, optimizer->tasks, update_task, &job);
    const xm_muon_step muon = {.beta = (float)rule->momentum,
                               .rate = (float)rate,
                               .decay = job.step.decay,
                               .gradient_scale = (float)clip};
    if (optimizer->muon.count > 0)
        xm_muon_update(&optimizer->muon, &muon, gradients, optimizer->first, parameters);
}
