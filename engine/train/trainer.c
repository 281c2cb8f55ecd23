/*
 * trainer.c - see trainer.h.
 */
#include "train/trainer.h"

#include "base/memory.h"
#include "base/random.h"
#include "train/checkpoint.h"
#include "train/gate_hash.h"
#include "train/gemm_peak.h"
#include "train/views.h"

#include <math.h>
#include <string.h>

enum { EVALUATION_SEQUENCES = 2 }; /* windows at a time; without capacity limit they cost memory */

/* Sets the draws of dropout apart from those of the weights and the data. */
static const uint64_t DROPOUT = UINT64_C(0x64726f706f7574);

struct xm_trainer {
    xm_trainer_options options;
    const xm_ranks *ranks;
    int32_t own_groups, first_group; /* of this rank */
    const xm_corpus *corpus;
    xm_workers *workers;
    const xm_gemm *gemm; /* of passes and optimiser; validation is F32, as serving is */
    xm_network *network;
    xm_pass **passes;        /* [own_groups] */
    float **gradients;       /* [own_groups][network->total]; the first becomes the mean */
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
    const xm_corpus *corpus = trainer->corpus;
    for (int32_t i = 0; i < corpus->domain_count; i++) {
        if (corpus->train[i].count <= (size_t)trainer->options.shape.context)
            return xm_fail_argument(
                error, "context", "the training text of %s has %zu tokens, a sequence %d",
                corpus->names[i], corpus->train[i].count, trainer->options.shape.context);
        if (corpus->valid[i].count < 2)
            return xm_fail_argument(error, "data", "the validation text of %s is empty",
                                    corpus->names[i]);
    }
    return XMOE_OK;
}

static xmoe_status allocate(xm_trainer *trainer, xmoe_error *error)
{
    size_t rows = (size_t)trainer->options.sequences * (size_t)trainer->network->shape.context;
    size_t total = trainer->network->total, groups = (size_t)trainer->own_groups;
    trainer->parameters = xm_calloc_aligned(total, sizeof(float));
    trainer->tokens = xm_calloc(rows, sizeof(int32_t));
    trainer->targets = xm_calloc(rows, sizeof(int32_t));
    trainer->passes = xm_calloc(groups, sizeof(void *));
    trainer->gradients = xm_calloc(groups, sizeof *trainer->gradients);
    trainer->results = xm_calloc((size_t)trainer->options.groups, sizeof *trainer->results);
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
                                  .z_weight = o->z_weight,
                                  .sparsity_weight = o->sparsity_weight,
                                  .expert_dropout = o->expert_dropout,
                                  .training = true,
                                  .recompute = o->recompute,
                                  .gemm = trainer->gemm};
    for (int32_t group = 0; group < trainer->own_groups; group++) {
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
    xm_network_init(trainer->network, trainer->options.seed, trainer->parameters);
    xmoe_status status =
        trainer->network->shape.gate == XM_GATE_HASH ? balance_hash(trainer, error) : XMOE_OK;
    if (status != XMOE_OK || trainer->options.init == NULL)
        return status;
    xm_gguf *file = NULL;
    status = xm_gguf_open(trainer->options.init, &file, error);
    if (status == XMOE_OK)
        status = xm_model_file_grow(file, &trainer->corpus->vocabulary, trainer->network,
                                    trainer->parameters, error);
    xm_gguf_close(file);
    return status;
}

/* What passes, validation and model files have until the next step begins; step: from 0. */
static void set_view_temperature(xm_trainer *trainer, uint64_t step)
{
    trainer->network->shape.view_temperature =
        xm_view_temperature(step, trainer->options.rule.total_steps);
}

/* What this rank does for itself; ranks agree on it afterwards. */
static xmoe_status build(xm_trainer *trainer, xmoe_error *error)
{
    const xm_trainer_options *o = &trainer->options;
    if (o->groups < 1 || o->sequences % o->groups != 0)
        return xm_fail_argument(error, "groups", "groups is %d, must divide sequences, %d",
                                o->groups, o->sequences);
    if (o->groups % trainer->ranks->count != 0)
        return xm_fail_argument(error, "groups",
                                "groups is %d, must be a multiple of the ranks, %d", o->groups,
                                trainer->ranks->count);
    trainer->own_groups = o->groups / trainer->ranks->count;
    trainer->first_group = trainer->own_groups * trainer->ranks->rank;
    xmoe_status status = xm_gemm_select(o->precision, &trainer->gemm, error);
    if (status == XMOE_OK)
        status = xm_network_create(&o->shape, &trainer->network, error);
    if (status == XMOE_OK)
        set_view_temperature(trainer, 0);
    if (status == XMOE_OK)
        status = check_lengths(trainer, error);
    if (status == XMOE_OK)
        status = xm_workers_create(o->threads, &trainer->workers, error);
    if (status == XMOE_OK)
        status = allocate(trainer, error);
    if (status == XMOE_OK)
        status = create_groups(trainer, error);
    if (status == XMOE_OK)
        status = xm_evaluator_create(trainer->network, trainer->corpus->tokenizer, NULL,
                                     EVALUATION_SEQUENCES, &trainer->evaluator, error);
    if (status == XMOE_OK)
        status = xm_optimizer_create(trainer->network, o->rule.kind, trainer->gemm,
                                     trainer->workers, trainer->ranks, &trainer->optimizer, error);
    return status == XMOE_OK ? initialise(trainer, error) : status;
}

static xm_checkpoint make_checkpoint(const xm_trainer *trainer)
{
    return (xm_checkpoint){
        .network = trainer->network,
        .identity = {.shape = trainer->network->shape,
                     .vocabulary = xm_vocabulary_hash(&trainer->corpus->vocabulary),
                     .seed = trainer->options.seed,
                     .sequences = trainer->options.sequences,
                     .groups = trainer->options.groups,
                     .optimizer = trainer->options.rule.kind,
                     .precision = trainer->gemm->precision},
        .step = trainer->step,
        .parameters = trainer->parameters,
        .first = trainer->optimizer.first,
        .second = trainer->optimizer.second};
}

/* Ranks that hold different parameters would go on as if nothing were wrong. */
static xmoe_status check_state(const xm_trainer *trainer, xmoe_error *error)
{
    if (trainer->ranks->count == 1)
        return XMOE_OK;
    const xm_checkpoint checkpoint = make_checkpoint(trainer);
    return xm_ranks_check_equal(trainer->ranks, "parameters, moments or step",
                                xm_checkpoint_sum(&checkpoint), error);
}

/* Machines of different kinds would choose differently. */
static xmoe_status check_precision(const xm_trainer *trainer, xmoe_error *error)
{
    return xm_ranks_check_equal(trainer->ranks, "precision (say --precision f32)",
                                (uint64_t)trainer->gemm->precision, error);
}

static xmoe_status check_corpus(const xm_trainer *trainer, xmoe_error *error)
{
    const xm_corpus *corpus = trainer->corpus;
    uint64_t sum = xm_vocabulary_hash(&corpus->vocabulary);
    for (int32_t i = 0; i < corpus->domain_count; i++)
        sum = xm_random_bits(sum, corpus->train[i].count, corpus->valid[i].count);
    return xm_ranks_check_equal(trainer->ranks, "vocabulary or text", sum, error);
}

xmoe_status xm_trainer_create(const xm_trainer_options *options, const xm_corpus *corpus,
                              xm_trainer **trainer_out, xmoe_error *error)
{
    static const xm_ranks alone = {.rank = 0, .count = 1};
    const xm_ranks *ranks = options->ranks != NULL ? options->ranks : &alone;
    *trainer_out = NULL;
    xm_trainer *trainer = xm_calloc(1, sizeof *trainer);
    xmoe_status status;
    if (trainer == NULL) {
        status = xm_fail_memory(error, "trainer", sizeof *trainer);
    } else {
        trainer->options = *options;
        trainer->options.shape.vocabulary = xm_vocabulary_size(&corpus->vocabulary);
        trainer->ranks = ranks;
        trainer->corpus = corpus;
        trainer->stream = (xm_token_stream){.domains = corpus->stream,
                                            .domain_count = corpus->domain_count,
                                            .seed = options->seed,
                                            .sequences = options->sequences,
                                            .length = options->shape.context};
        status = build(trainer, error);
    }
    status = xm_ranks_agree(ranks, status, error);
    if (trainer != NULL && status == XMOE_OK)
        status = check_precision(trainer, error);
    if (trainer != NULL && status == XMOE_OK)
        status = check_corpus(trainer, error);
    if (trainer != NULL && status == XMOE_OK)
        status = check_state(trainer, error);
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
    for (int32_t group = 0; group < trainer->own_groups; group++) {
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

const xm_ranks *xm_trainer_ranks(const xm_trainer *trainer)
{
    return trainer->ranks;
}

/* Names the first tensor whose gradient is not finite. */
static const char *nonfinite_gradient(const xm_trainer *trainer)
{
    for (size_t i = 0; i < trainer->network->total; i++)
        if (!isfinite(trainer->gradients[0][i]))
            return xm_network_parameter_at(trainer->network, i)->name;
    return "the sum of squares";
}

/* The rank whose pass met the first loss that is not finite tells the others where. */
static xmoe_status check_losses(const xm_trainer *trainer, xmoe_error *error)
{
    const xm_ranks *ranks = trainer->ranks;
    int32_t group = 0;
    while (group < trainer->options.groups && isfinite(trainer->results[group].loss))
        group++;
    if (group == trainer->options.groups)
        return XMOE_OK;
    char place[64] = "";
    int32_t owner = group / trainer->own_groups;
    if (owner == ranks->rank)
        xm_pass_name_nonfinite(trainer->passes[group - trainer->first_group], place, sizeof place);
    xmoe_status status = XMOE_OK;
    if (ranks->count > 1)
        status = ranks->broadcast(ranks->context, owner, place, sizeof place, error);
    if (status != XMOE_OK)
        return status;
    return xm_fail(error, XMOE_ERROR_INTERNAL,
                   "step %llu: the loss is not finite; the first such value is in %s",
                   (unsigned long long)trainer->step + 1, place);
}

static xmoe_status check_norm(const xm_trainer *trainer, double norm, xmoe_error *error)
{
    if (isfinite(norm))
        return XMOE_OK;
    return xm_fail(error, XMOE_ERROR_INTERNAL, "step %llu: the gradient of %s is not finite",
                   (unsigned long long)trainer->step + 1, nonfinite_gradient(trainer));
}

/* Forward and backward of one of this rank's groups, its data included. */
static void group_task(void *context, int32_t own, int32_t thread)
{
    (void)thread;
    xm_trainer *trainer = context;
    int32_t group = trainer->first_group + own;
    int32_t sequences = trainer->options.sequences / trainer->options.groups;
    size_t length = (size_t)trainer->network->shape.context;
    size_t first = (size_t)(group * sequences) * length;
    for (int32_t i = 0; i < sequences; i++)
        xm_token_stream_window(&trainer->stream, trainer->step, group * sequences + i,
                               trainer->tokens + first + (size_t)i * length,
                               trainer->targets + first + (size_t)i * length);
    memset(trainer->gradients[own], 0, trainer->network->total * sizeof(float));
    xm_pass_set_dropout_key(trainer->passes[own], xm_random_bits(trainer->options.seed ^ DROPOUT,
                                                                 trainer->step, (uint64_t)group));
    xm_pass_run(trainer->passes[own], trainer->parameters, trainer->tokens + first,
                trainer->targets + first, trainer->gradients[own], &trainer->results[group]);
}

/* Every group of the step, on whichever rank; each learns the results of all. */
static xmoe_status run_groups(xm_trainer *trainer, xmoe_error *error)
{
    const xm_ranks *ranks = trainer->ranks;
    xm_workers_run(trainer->workers, trainer->own_groups, group_task, trainer);
    if (ranks->count == 1)
        return XMOE_OK;
    return ranks->gather(ranks->context, trainer->results,
                         (size_t)trainer->own_groups * sizeof *trainer->results, error);
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
        total->z_loss += share * result->z_loss;
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
    set_view_temperature(trainer, trainer->step);
    xmoe_status status = run_groups(trainer, error);
    if (status == XMOE_OK)
        status = check_losses(trainer, error);
    if (status == XMOE_OK)
        status = xm_gradient_mean(&trainer->optimizer, trainer->gradients, trainer->own_groups,
                                  &report->norm, error);
    if (status == XMOE_OK)
        status = check_norm(trainer, report->norm, error);
    if (status != XMOE_OK)
        return status;
    combine_results(trainer, &report->result);
    xm_optimizer_step(&trainer->optimizer, rule, (int64_t)trainer->step, report->norm,
                      trainer->gradients[0], trainer->parameters);
    trainer->step++;
    return XMOE_OK;
}

const xm_gemm *xm_trainer_gemm(const xm_trainer *trainer)
{
    return trainer->gemm;
}

/* All ranks at once, as they train. */
xmoe_status xm_trainer_gemm_peak(const xm_trainer *trainer, double *flops, xmoe_error *error)
{
    *flops = 0;
    xmoe_status status = xm_gemm_peak(trainer->workers, trainer->gemm, flops, error);
    status = xm_ranks_agree(trainer->ranks, status, error);
    return status == XMOE_OK ? xm_ranks_sum(trainer->ranks, flops, error) : status;
}

/* Ranks take turns at the domains. */
xmoe_status xm_trainer_validate(xm_trainer *trainer, int32_t max_windows,
                                xm_evaluation *evaluations, xmoe_error *error)
{
    const xm_ranks *ranks = trainer->ranks;
    int32_t domains = trainer->corpus->domain_count;
    xmoe_status status = XMOE_OK;
    for (int32_t i = ranks->rank; i < domains && status == XMOE_OK; i += ranks->count)
        status = xm_evaluate(trainer->evaluator, trainer->parameters, &trainer->corpus->valid[i],
                             trainer->network->shape.context, max_windows, &evaluations[i], error);
    status = xm_ranks_agree(ranks, status, error);
    for (int32_t i = 0; i < domains && status == XMOE_OK && ranks->count > 1; i++)
        status = ranks->broadcast(ranks->context, i % ranks->count, &evaluations[i],
                                  sizeof evaluations[i], error);
    return status;
}

xmoe_status xm_trainer_save(const xm_trainer *trainer, const char *path, xmoe_error *error)
{
    xmoe_status status = check_state(trainer, error);
    if (status != XMOE_OK)
        return status;
    const xm_checkpoint checkpoint = make_checkpoint(trainer);
    if (trainer->ranks->rank == 0)
        status = xm_checkpoint_save(&checkpoint, path, error);
    return xm_ranks_agree(trainer->ranks, status, error);
}

xmoe_status xm_trainer_load(xm_trainer *trainer, const char *path, xmoe_error *error)
{
    xm_checkpoint checkpoint = make_checkpoint(trainer);
    xmoe_status status =
        xm_ranks_agree(trainer->ranks, xm_checkpoint_load(&checkpoint, path, error), error);
    if (status != XMOE_OK)
        return status;
    trainer->step = checkpoint.step;
    set_view_temperature(trainer, trainer->step > 0 ? trainer->step - 1 : 0);
    return check_state(trainer, error);
}
