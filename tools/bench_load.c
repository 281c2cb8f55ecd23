/*
 * bench_load.c - see bench_load.h. Token times are taken in the callback, on the scheduler's
 * thread; everything else happens on the caller's.
 */
#include "bench_load.h"

#include "cli.h"
#include "session.h"

#include <stdlib.h>

typedef struct load load;

typedef struct {
    load *owner;
    int32_t *prompt;
    double *times; /* [generate]: when each token came */
    int32_t count;
    uint64_t request; /* 0: not submitted */
    xmoe_request_summary summary;
} sequence;

struct load {
    const load_shape *shape;
    sequence *sequences;
    int32_t *prompts; /* of all sequences, one after the other */
    double *times;
    flight_gate gate;
    xmoe_error error; /* under the gate's lock */
    bool failed;
};

/* --- scheduler thread --------------------------------------------------------------------------
 */

static void take_end(sequence *self, const xmoe_event *event)
{
    load *owner = self->owner;
    self->summary = *event->summary;
    pthread_mutex_lock(&owner->gate.lock);
    if (event->error != NULL && !owner->failed) {
        owner->error = *event->error;
        owner->failed = true;
    }
    pthread_mutex_unlock(&owner->gate.lock);
    gate_leave(&owner->gate);
}

static void on_event(void *context, const xmoe_event *event)
{
    sequence *self = context;
    if (event->kind == XMOE_EVENT_TOKEN && self->count < self->owner->shape->generate) {
        self->times[self->count++] = cli_seconds();
    } else if (event->kind == XMOE_EVENT_END) {
        take_end(self, event);
    }
}

/* --- caller's thread ---------------------------------------------------------------------------
 */

/* Tokens that are no special ones, by a linear congruential generator (Knuth's constants). */
static void make_prompt(const xmoe_model *model, uint64_t seed, int32_t *tokens, int32_t count)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    uint64_t state = seed;
    for (int32_t i = 0; i < count; i++) {
        do {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            tokens[i] = (int32_t)((state >> 33) % (uint64_t)info->vocabulary_size);
        } while (xmoe_token_is_special(model, tokens[i]));
    }
}

static bool prepare(load *run, const xmoe_model *model)
{
    const load_shape *shape = run->shape;
    const size_t count = (size_t)shape->sequences;
    run->sequences = calloc(count, sizeof *run->sequences);
    run->prompts = calloc(count * (size_t)shape->prompt_tokens, sizeof *run->prompts);
    run->times = calloc(count * (size_t)shape->generate, sizeof *run->times);
    if (run->sequences == NULL || run->prompts == NULL || run->times == NULL) {
        cli_fail("out of memory");
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        run->sequences[i] = (sequence){.owner = run,
                                       .prompt = run->prompts + i * (size_t)shape->prompt_tokens,
                                       .times = run->times + i * (size_t)shape->generate};
        make_prompt(model, shape->seed + i, run->sequences[i].prompt, shape->prompt_tokens);
    }
    return true;
}

static bool submit(load *run, xmoe_engine *engine, int32_t index)
{
    const load_shape *shape = run->shape;
    xmoe_request_params params;
    xmoe_error error;
    xmoe_request_default_params(&params);
    params.prompt = run->sequences[index].prompt;
    params.prompt_length = (size_t)shape->prompt_tokens;
    params.max_tokens = shape->generate;
    params.sampling.temperature = 1;
    params.sampling.seed = shape->seed + (uint64_t)index;
    params.ignore_eos = true;
    params.cache_prompt = false;
    params.routing = shape->routing;
    params.on_event = on_event;
    params.context = &run->sequences[index];
    gate_enter(&run->gate);
    if (xmoe_request_submit(engine, &params, &run->sequences[index].request, &error) != XMOE_OK) {
        gate_leave(&run->gate);
        cli_fail("%s", error.message);
        return false;
    }
    return true;
}

/* Tokens of all sequences that came in (from, to]. */
static double tokens_between(const load *run, double from, double to)
{
    uint64_t tokens = 0;
    for (int32_t i = 0; i < run->shape->sequences; i++) {
        const sequence *item = &run->sequences[i];
        for (int32_t t = 0; t < item->count; t++) {
            tokens += item->times[t] > from && item->times[t] <= to;
        }
    }
    return (double)tokens;
}

/* Tokens per second between the moment when the last sequence had its first token and the moment
 * when the first one had its last. Where a tiny model is through with some before others have begun
 * there is no such time, and that from the very first to the very last token is taken. */
static double decode_rate(const load *run)
{
    double first = 0, from = 0, to = 0, last = 0;
    for (int32_t i = 0; i < run->shape->sequences; i++) {
        const sequence *item = &run->sequences[i];
        if (item->count < 2) {
            return 0;
        }
        double begin = item->times[0], end = item->times[item->count - 1];
        first = i == 0 || begin < first ? begin : first;
        from = i == 0 || begin > from ? begin : from;
        to = i == 0 || end < to ? end : to;
        last = i == 0 || end > last ? end : last;
    }
    if (to <= from) {
        from = first;
        to = last;
    }
    return to > from ? tokens_between(run, from, to) / (to - from) : 0;
}

static bool read_usage(xmoe_engine *engine, load_result *result)
{
    const xmoe_model_info *info = xmoe_model_get_info(xmoe_engine_model(engine));
    xmoe_usage *usage;
    xmoe_error error;
    if (info->moe_layer_count == 0) {
        return true;
    }
    if (xmoe_usage_get(engine, -1, XMOE_PHASE_DECODE, 0, &usage, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    for (int32_t i = 0; i < usage->layer_count; i++) {
        result->distinct += usage->layers[i].distinct_per_step;
    }
    result->expert_bytes = result->distinct * (double)info->expert_bytes;
    result->distinct /= (double)info->moe_layer_count;
    xmoe_usage_free(usage);
    return true;
}

static bool sum_up(const load *run, xmoe_engine *engine, load_result *result)
{
    const load_shape *shape = run->shape;
    for (int32_t i = 0; i < shape->sequences; i++) {
        result->mean_active += run->sequences[i].summary.mean_active_experts / shape->sequences;
    }
    const xmoe_request_summary *first = &run->sequences[0].summary;
    result->prompt_tokens_per_second =
        first->prompt_seconds > 0 ? (double)first->prompt_tokens / first->prompt_seconds : 0;
    result->tokens_per_second = decode_rate(run);
    result->mean_position = (double)shape->prompt_tokens + 0.5 * (double)shape->generate;
    return read_usage(engine, result);
}

/* What is in flight holds pointers into the run: it is waited for even after Ctrl-C. */
static void wait_for_end(load *run, xmoe_engine *engine)
{
    uint64_t seen = 0;
    bool cancelled = false;
    while (!gate_wait_news(&run->gate, &seen)) {
        if (cli_interrupted() && !cancelled) {
            for (int32_t i = 0; i < run->shape->sequences; i++) {
                xmoe_request_cancel(engine, run->sequences[i].request);
            }
            cancelled = true;
        }
    }
}

bool load_run(xmoe_engine *engine, const load_shape *shape, load_result *result)
{
    load run = {.shape = shape};
    xmoe_error error;
    *result = (load_result){0};
    gate_init(&run.gate);
    bool good = prepare(&run, xmoe_engine_model(engine));
    if (good && xmoe_usage_reset(engine, NULL, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        good = false;
    }
    for (int32_t i = 0; i < shape->sequences && good; i++) {
        good = submit(&run, engine, i);
    }
    wait_for_end(&run, engine);
    if (run.failed) {
        cli_fail("%s", run.error.message);
    }
    good = good && !run.failed && !cli_interrupted() && sum_up(&run, engine, result);
    free(run.sequences);
    free(run.prompts);
    free(run.times);
    gate_free(&run.gate);
    return good;
}
