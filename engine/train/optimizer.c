/*
 * optimizer.c - see optimizer.h. Work is split into ranges of TASK floats of the flat parameter
 * array; a range may hold pieces of several tensors, with and without weight decay.
 */
#include "train/optimizer.h"

#include "base/memory.h"
#include "train/rows.h"

#include <math.h>

enum { TASK = 1 << 16 };

double xm_learning_rate(const xm_optimizer_rule *rule, int64_t step)
{
    if (step < rule->warmup_steps)
        return rule->peak_rate * (double)(step + 1) / (double)rule->warmup_steps;
    if (step >= rule->total_steps)
        return rule->final_rate;
    double progress =
        (double)(step - rule->warmup_steps) / (double)(rule->total_steps - rule->warmup_steps);
    return rule->final_rate +
           0.5 * (rule->peak_rate - rule->final_rate) * (1.0 + cos(M_PI * progress));
}

xmoe_status xm_optimizer_create(const xm_network *network, xm_workers *workers,
                                xm_optimizer *optimizer, xmoe_error *error)
{
    *optimizer = (xm_optimizer){.network = network,
                                .workers = workers,
                                .tasks = (int32_t)((network->total + TASK - 1) / TASK)};
    optimizer->first = xm_calloc_aligned(network->total, sizeof(float));
    optimizer->second = xm_calloc_aligned(network->total, sizeof(float));
    optimizer->partial = xm_calloc((size_t)optimizer->tasks, sizeof(double));
    if (optimizer->first == NULL || optimizer->second == NULL || optimizer->partial == NULL) {
        xm_optimizer_free(optimizer);
        return xm_fail_memory(error, "optimizer moments", 2 * network->total * sizeof(float));
    }
    return XMOE_OK;
}

void xm_optimizer_free(xm_optimizer *optimizer)
{
    xm_free(optimizer->first);
    xm_free(optimizer->second);
    xm_free(optimizer->partial);
    *optimizer = (xm_optimizer){0};
}

typedef struct {
    xm_optimizer *optimizer;
    float *const *groups; /* their gradients; the mean goes into the first */
    int32_t group_count;
    const float *gradients;
    float *parameters;
    xm_adam_step step;
} update_job;

static size_t range_end(const xm_optimizer *optimizer, int32_t task)
{
    size_t end = ((size_t)task + 1) * TASK;
    return end < optimizer->network->total ? end : optimizer->network->total;
}

static void mean_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const update_job *job = context;
    size_t begin = (size_t)task * TASK, count = range_end(job->optimizer, task) - begin;
    float *mean = job->groups[0] + begin;
    for (int32_t group = 1; group < job->group_count; group++)
        xm_row_add_scaled(mean, job->groups[group] + begin, 1.0f, count);
    if (job->group_count > 1)
        xm_row_scale(mean, mean, 1.0f / (float)job->group_count, count);
    job->optimizer->partial[task] = xm_row_square_sum(mean, count);
}

double xm_gradient_mean(xm_optimizer *optimizer, float *const *gradients, int32_t groups)
{
    update_job job = {.optimizer = optimizer, .groups = gradients, .group_count = groups};
    xm_workers_run(optimizer->workers, optimizer->tasks, mean_task, &job);
    double sum = 0;
    for (int32_t task = 0; task < optimizer->tasks; task++)
        sum += optimizer->partial[task];
    return sqrt(sum);
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
        if (first >= last)
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
}
