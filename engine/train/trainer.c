/*
 * trainer.c - see trainer.h.
 */
#include "train/trainer.h"

#include "base/memory.h"
#include "train/checkpoint.h"
#include "train/gate_hash.h"

#include <math.h>
#include <string.h>

enum { EVALUATION_SEQUENCES = 2 }; /* windows at a time; without capacity limit they cost memory */

struct xm_trainer {
    xm_trainer_options options;
    const xm_corpus *corpus;
    xm_workers *workers;
    xm_network *network;
    xm_pass **passes;        /* [groups] */
    float **gradients;       /* [groups][network->total]; the first becomes the mean */
    xm_pass_result *results; /* [groups] */
    xm_evaluator *evaluator;
    xm_optimizer optimizer;
    xm_token_stream stream;
    float *parameters;
    int32_t *tokens, *targets; /* [sequences * context] */
    uint64_t step;             /* steps done */
};

static xmoe_status check_lengths(const xm_trainer *trainer, xmoe_error *error)
{
    for (int32_t i = 0; i < trainer->corpus->domain_count; i++)
        if (trainer->corpus->train[i].count <= (size_t)trainer->options.shape.context)
            return xm_fail_argument(error, "context",
                                    "the training text of %s has %zu tokens, a sequence %d",
                                    trainer->corpus->names[i], trainer->corpus->train[i].count,
                                    trainer->options.shape.context);
    return XMOE_OK;
}

static xmoe_status allocate(xm_trainer *trainer, xmoe_error *error)
{
    size_t rows = (size_t)trainer->options.sequences * (size_t)trainer->network->shape.context;
    size_t total = trainer->network->total, groups = (size_t)trainer->options.groups;
    trainer->parameters = xm_calloc_aligned(total, sizeof(float));
    trainer->tokens = xm_calloc(rows, sizeof(int32_t));
    trainer->targets = xm_calloc(rows, sizeof(int32_t));
    trainer->passes = xm_calloc(groups, sizeof(void *));
    trainer->gradients = xm_calloc(groups, sizeof *trainer->gradients);
    trainer->results = xm_calloc(groups, sizeof *trainer->results);
    if (trainer->parameters == NULL || trainer->tokens == NULL || trainer->targets == NULL ||
        trainer->passes == NULL || trainer->gradients == NULL || trainer->results == NULL)
        return xm_fail_memory(error, "parameters", total * sizeof(float));
    return XMOE_OK;
}

static xmoe_status create_groups(xm_trainer *trainer, xmoe_error *error)
{
    const xm_trainer_options *o = &trainer->options;
    const xm_pass_options pass = {.sequences = o->sequences / o->groups,
                                  .length = o->shape.context,
                                  .capacity_factor = o->capacity_factor,
                                  .min_capacity = o->min_capacity,
                                  .balance_weight = o->balance_weight,
                                  .entropy_weight = o->entropy_weight,
                                  .sparsity_weight = o->sparsity_weight,
                                  .training = true};
    for (int32_t group = 0; group < o->groups; group++) {
        trainer->gradients[group] = xm_calloc_aligned(trainer->network->total, sizeof(float));
        if (trainer->gradients[group] == NULL)
            return xm_fail_memory(error, "gradients", trainer->network->total * sizeof(float));
        xmoe_status status =
            xm_pass_create(trainer->network, NULL, &pass, &trainer->passes[group], error);
        if (status != XMOE_OK)
            return status;
    }
    return XMOE_OK;
}

/* Tables of hash layers from how often each token occurs in the training texts. */
static xmoe_status balance_hash(xm_trainer *trainer, xmoe_error *error)
{
    size_t vocabulary = (size_t)trainer->network->shape.vocabulary;
    uint64_t *counts = xm_calloc(vocabulary, sizeof *counts);
    if (counts == NULL)
        return xm_fail_memory(error, "token counts", vocabulary * sizeof *counts);
    for (int32_t i = 0; i < trainer->corpus->domain_count; i++)
        for (size_t j = 0; j < trainer->corpus->train[i].count; j++)
            counts[trainer->corpus->train[i].tokens[j]]++;
    xmoe_status status = xm_hash_balance(trainer->network, trainer->options.seed, counts,
                                         trainer->parameters, error);
    xm_free(counts);
    return status;
}

static xmoe_status initialise(xm_trainer *trainer, xmoe_error *error)
{
    if (trainer->options.init == NULL) {
        xm_network_init(trainer->network, trainer->options.seed, trainer->parameters);
        return trainer->network->shape.gate == XM_GATE_HASH ? balance_hash(trainer, error)
                                                            : XMOE_OK;
    }
    xm_gguf *file = NULL;
    xmoe_status status = xm_gguf_open(trainer->options.init, &file, error);
    if (status == XMOE_OK)
        status = xm_model_file_read(file, trainer->network, trainer->parameters, error);
    xm_gguf_close(file);
    return status;
}

xmoe_status xm_trainer_create(const xm_trainer_options *options, const xm_corpus *corpus,
                              xm_trainer **trainer_out, xmoe_error *error)
{
    *trainer_out = NULL;
    if (options->groups < 1 || options->sequences % options->groups != 0)
        return xm_fail_argument(error, "groups", "groups is %d, must divide sequences, %d",
                                options->groups, options->sequences);
    xm_trainer *trainer = xm_calloc(1, sizeof *trainer);
    if (trainer == NULL)
        return xm_fail_memory(error, "trainer", sizeof *trainer);
    trainer->options = *options;
    trainer->options.shape.vocabulary = xm_vocabulary_size(&corpus->vocabulary);
    trainer->corpus = corpus;
    trainer->stream = (xm_token_stream){.domains = corpus->stream,
                                        .domain_count = corpus->domain_count,
                                        .seed = options->seed,
                                        .sequences = options->sequences,
                                        .length = options->shape.context};
    xmoe_status status = xm_network_create(&trainer->options.shape, &trainer->network, error);
    if (status == XMOE_OK)
        status = check_lengths(trainer, error);
    if (status == XMOE_OK)
        status = xm_workers_create(options->threads, &trainer->workers, error);
    if (status == XMOE_OK)
        status = allocate(trainer, error);
    if (status == XMOE_OK)
        status = create_groups(trainer, error);
    if (status == XMOE_OK)
        status = xm_evaluator_create(trainer->network, corpus->tokenizer, NULL,
                                     EVALUATION_SEQUENCES, &trainer->evaluator, error);
    if (status == XMOE_OK)
        status =
            xm_optimizer_create(trainer->network, trainer->workers, &trainer->optimizer, error);
    if (status == XMOE_OK)
        status = initialise(trainer, error);
    if (status != XMOE_OK) {
        xm_trainer_free(trainer);
        return status;
    }
    *trainer_out = trainer;
    return XMOE_OK;
}

void xm_trainer_free(xm_trainer *trainer)
{
    if (trainer == NULL)
        return;
    for (int32_t group = 0; group < trainer->options.groups; group++) {
        if (trainer->passes != NULL)
            xm_pass_free(trainer->passes[group]);
        if (trainer->gradients != NULL)
            xm_free(trainer->gradients[group]);
    }
    xm_evaluator_free(trainer->evaluator);
    xm_optimizer_free(&trainer->optimizer);
    xm_workers_free(trainer->workers);
    xm_network_free(trainer->network);
    xm_free(trainer->passes);
    xm_free(trainer->gradients);
    xm_free(trainer->results);
    xm_free(trainer->parameters);
    xm_free(trainer->tokens);
    xm_free(trainer->targets);
    xm_free(trainer);
}

const xm_network *xm_trainer_network(const xm_trainer *trainer)
{
    return trainer->network;
}

const float *xm_trainer_parameters(const xm_trainer *trainer)
{
    return trainer->parameters;
}

uint64_t xm_trainer_steps_done(const xm_trainer *trainer)
{
    return trainer->step;
}

/* Names the first tensor whose gradient is not finite. */
static const char *nonfinite_gradient(const xm_trainer *trainer)
{
    for (size_t i = 0; i < trainer->network->total; i++)
        if (!isfinite(trainer->gradients[0][i]))
            return xm_network_parameter_at(trainer->network, i)->name;
    return "the sum of squares";
}

static xmoe_status check_finite(const xm_trainer *trainer, const xm_step_report *report,
                                xmoe_error *error)
{
    char place[64];
    for (int32_t group = 0; group < trainer->options.groups; group++) {
        if (isfinite(trainer->results[group].loss))
            continue;
        xm_pass_name_nonfinite(trainer->passes[group], place, sizeof place);
        return xm_fail(error, XMOE_ERROR_INTERNAL,
                       "step %llu: the loss is not finite; the first such value is in %s",
                       (unsigned long long)report->step, place);
    }
    if (!isfinite(report->norm))
        return xm_fail(error, XMOE_ERROR_INTERNAL, "step %llu: the gradient of %s is not finite",
                       (unsigned long long)report->step, nonfinite_gradient(trainer));
    return XMOE_OK;
}

/* Forward and backward of one group, its data included. */
static void group_task(void *context, int32_t group, int32_t thread)
{
    (void)thread;
    xm_trainer *trainer = context;
    int32_t sequences = trainer->options.sequences / trainer->options.groups;
    size_t length = (size_t)trainer->network->shape.context;
    size_t first = (size_t)(group * sequences) * length;
    for (int32_t i = 0; i < sequences; i++)
        xm_token_stream_window(&trainer->stream, trainer->step, group * sequences + i,
                               trainer->tokens + first + (size_t)i * length,
                               trainer->targets + first + (size_t)i * length);
    memset(trainer->gradients[group], 0, trainer->network->total * sizeof(float));
    xm_pass_run(trainer->passes[group], trainer->parameters, trainer->tokens + first,
                trainer->targets + first, trainer->gradients[group], &trainer->results[group]);
}

/* Losses are means over the groups, which have equally many tokens; counts are sums. */
static void combine_results(const xm_trainer *trainer, xm_pass_result *total)
{
    double share = 1.0 / trainer->options.groups;
    *total = (xm_pass_result){0};
    for (int32_t group = 0; group < trainer->options.groups; group++) {
        const xm_pass_result *result = &trainer->results[group];
        total->loss += share * result->loss;
        total->balance_loss += share * result->balance_loss;
        total->entropy += share * result->entropy;
        total->sparsity += share * result->sparsity;
        total->dropped += share * result->dropped;
        total->tokens += result->tokens;
        for (int32_t block = 0; block < trainer->network->shape.blocks; block++)
            total->active[block] += result->active[block];
    }
}

xmoe_status xm_trainer_step(xm_trainer *trainer, xm_step_report *report, xmoe_error *error)
{
    const xm_optimizer_rule *rule = &trainer->options.rule;
    *report = (xm_step_report){.step = trainer->step + 1,
                               .rate = xm_learning_rate(rule, (int64_t)trainer->step)};
    xm_workers_run(trainer->workers, trainer->options.groups, group_task, trainer);
    combine_results(trainer, &report->result);
    report->norm =
        xm_gradient_mean(&trainer->optimizer, trainer->gradients, trainer->options.groups);
    xmoe_status status = check_finite(trainer, report, error);
    if (status != XMOE_OK)
        return status;
    xm_optimizer_step(&trainer->optimizer, rule, (int64_t)trainer->step, report->norm,
                      trainer->gradients[0], trainer->parameters);
    trainer->step++;
    return XMOE_OK;
}

xmoe_status xm_trainer_validate(xm_trainer *trainer, int32_t domain, int32_t max_windows,
                                xm_evaluation *evaluation, xmoe_error *error)
{
    return xm_evaluate(trainer->evaluator, trainer->parameters, &trainer->corpus->valid[domain],
                       trainer->network->shape.context, max_windows, evaluation, error);
}

static xm_checkpoint make_checkpoint(const xm_trainer *trainer)
{
    return (xm_checkpoint){
        .network = trainer->network,
        .identity = {.shape = trainer->network->shape,
                     .vocabulary = xm_vocabulary_hash(&trainer->corpus->vocabulary),
                     .seed = trainer->options.seed,
                     .sequences = trainer->options.sequences},
        .step = trainer->step,
        .parameters = trainer->parameters,
        .first = trainer->optimizer.first,
        .second = trainer->optimizer.second};
}

xmoe_status xm_trainer_save(const xm_trainer *trainer, const char *path, xmoe_error *error)
{
    const xm_checkpoint checkpoint = make_checkpoint(trainer);
    return xm_checkpoint_save(&checkpoint, path, error);
}

xmoe_status xm_trainer_load(xm_trainer *trainer, const char *path, xmoe_error *error)
{
    xm_checkpoint checkpoint = make_checkpoint(trainer);
    xmoe_status status = xm_checkpoint_load(&checkpoint, path, error);
    if (status == XMOE_OK)
        trainer->step = checkpoint.step;
    return status;
}
