/* engine_fixture.c - see engine_fixture.h. Callbacks run on the scheduler thread of an engine.
 */
#include "engine_fixture.h"

#include "base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

xmoe_model *engine_model;
pthread_mutex_t call_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t call_changed = PTHREAD_COND_INITIALIZER;

int engine_write_and_load(int32_t moe_every)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/xmoe-engine-%d.gguf", (int)getpid());
    xmoe_random_model shape = {.context_length = CONTEXT,
                               .embedding_length = 32,
                               .layer_count = 4,
                               .head_count = 2,
                               .feed_forward_length = 64,
                               .expert_count = EXPERTS,
                               .expert_feed_forward_length = 32,
                               .vocabulary_size = VOCABULARY,
                               .moe_every = moe_every,
                               .router = {.threshold = 0.8F, .min_experts = 1},
                               .router_spread = 2,
                               .tied_output = false,
                               .type = "Q8_0",
                               .seed = 11};
    bool loaded = xmoe_random_model_write(path, &shape, NULL, NULL, NULL) == XMOE_OK &&
                  xmoe_model_load(path, NULL, &engine_model, NULL) == XMOE_OK;
    unlink(path);
    return loaded ? 0 : -1;
}

int engine_load_model(void **state)
{
    (void)state;
    return engine_write_and_load(2);
}

int engine_free_model(void **state)
{
    (void)state;
    xmoe_model_free(engine_model);
    return 0;
}

static void keep_routed(told_choice *told, const xmoe_routed_experts *routed)
{
    size_t entries = (size_t)routed->position_count * MOE_LAYERS, pairs = 0;
    for (size_t i = 0; i < entries; i++)
        pairs += routed->counts[i] == XMOE_ROUTED_UNKNOWN ? 0 : routed->counts[i];
    memcpy(told->routed_counts, routed->counts, entries * sizeof *routed->counts);
    memcpy(told->routed_experts, routed->experts, pairs * sizeof *routed->experts);
    memcpy(told->routed_weights, routed->weights, pairs * sizeof *routed->weights);
    told->routed_positions = routed->position_count;
    told->routed_pairs = (int32_t)pairs;
}

static void keep_usage(call *c, const xmoe_usage *usage)
{
    c->usage_tokens = usage->tokens;
    for (int32_t i = 0; i < usage->layer_count; i++) {
        memcpy(c->usage_counts[i], usage->layers[i].counts, sizeof c->usage_counts[i]);
        memcpy(c->usage_weights[i], usage->layers[i].weights, sizeof c->usage_weights[i]);
    }
}

static void keep_event(call *c, const xmoe_event *event)
{
    told_choice *told = &c->choices[event->choice];
    if (event->kind == XMOE_EVENT_TOKEN || event->kind == XMOE_EVENT_CHOICE) {
        memcpy(told->text + told->text_length, event->text, event->text_length);
        told->text_length += event->text_length;
    }
    if (event->kind == XMOE_EVENT_TOKEN) {
        for (int32_t i = 0; i < event->top_count; i++)
            told->top[told->count][i] = event->top[i];
        told->logprobs[told->count] = event->logprob;
        told->tokens[told->count++] = event->token;
    } else if (event->kind == XMOE_EVENT_CHOICE) {
        told->finish = event->finish;
        if (event->routed != NULL)
            keep_routed(told, event->routed);
    } else if (event->kind == XMOE_EVENT_PROMPT) {
        size_t n = c->params.prompt_length;
        memcpy(c->prompt_logprobs, event->prompt_logprobs, n * sizeof(float));
        memcpy(c->prompt_top, event->prompt_top,
               n * (size_t)event->top_count * sizeof *event->prompt_top);
    } else if (event->kind == XMOE_EVENT_END) {
        c->summary = *event->summary;
        c->finish = event->finish;
        if (event->usage != NULL)
            keep_usage(c, event->usage);
        c->ends++;
    }
}

static void on_event(void *context, const xmoe_event *event)
{
    call *c = context;
    if (event->kind == XMOE_EVENT_TOKEN && c->cancel_at_token != NULL)
        xmoe_request_cancel(c->cancel_at_token, event->request);
    pthread_mutex_lock(&call_mutex);
    while (c->gate != NULL && !*c->gate)
        pthread_cond_wait(&call_changed, &call_mutex);
    keep_event(c, event);
    pthread_cond_broadcast(&call_changed);
    pthread_mutex_unlock(&call_mutex);
}

call *call_new(int32_t n)
{
    call *c = calloc(1, sizeof *c);
    uint64_t bits = xm_random_bits(77, 1, (uint64_t)n);
    xmoe_request_default_params(&c->params);
    c->params.prompt = c->prompt;
    c->params.prompt_length = 1 + bits % 60;
    for (size_t i = 0; i < c->params.prompt_length; i++)
        c->prompt[i] = (int32_t)(xm_random_bits((uint64_t)n, 2, i) % 256);
    c->params.max_tokens = 8 + n % 16;
    c->params.top_logprobs = TOP;
    c->params.sampling.temperature = n % 4 == 0 ? 0 : 0.9F;
    c->params.sampling.top_p = n % 3 == 0 ? 0.9F : 1;
    c->params.sampling.top_k = n % 5 == 0 ? 20 : 0;
    c->params.sampling.frequency_penalty = n % 2 == 0 ? 0.2F : 0;
    c->params.sampling.seed = (uint64_t)n;
    c->params.ignore_eos = true;
    c->params.expert_usage = true;
    c->params.routed_experts = true;
    xmoe_model_default_routing(engine_model, &c->routing);
    for (int32_t i = 0; i < c->routing.layer_count; i++)
        c->routing.layers[i].threshold = 0.3F + 0.2F * (float)(n % 4);
    c->params.routing = &c->routing;
    c->params.on_event = on_event;
    c->params.context = c;
    return c;
}

void call_submit(xmoe_engine *engine, call *c)
{
    xmoe_error error;
    if (xmoe_request_submit(engine, &c->params, &c->id, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

void call_wait(call *c)
{
    pthread_mutex_lock(&call_mutex);
    while (c->ends == 0)
        pthread_cond_wait(&call_changed, &call_mutex);
    pthread_mutex_unlock(&call_mutex);
    assert_int_equal(c->ends, 1);
}

void call_wait_for_tokens(call *c, int32_t count)
{
    pthread_mutex_lock(&call_mutex);
    while (c->choices[0].count < count && c->ends == 0)
        pthread_cond_wait(&call_changed, &call_mutex);
    pthread_mutex_unlock(&call_mutex);
}

void call_run(xmoe_engine *engine, call *c)
{
    call_submit(engine, c);
    call_wait(c);
}

xmoe_engine_options engine_small_options(void)
{
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.threads = 1;
    options.kv_bytes = 4 << 20;
    options.usage_window_bytes = 1 << 20;
    return options;
}

xmoe_engine *engine_create(const xmoe_engine_options *options)
{
    xmoe_engine *engine;
    xmoe_error error;
    if (xmoe_engine_create(engine_model, options, &engine, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return engine;
}

xmoe_engine *engine_create_small(void)
{
    xmoe_engine_options options = engine_small_options();
    return engine_create(&options);
}

xmoe_engine_stats engine_stats(xmoe_engine *engine)
{
    xmoe_engine_stats stats;
    xmoe_engine_get_stats(engine, &stats);
    return stats;
}

void call_assert_same_choice(const told_choice *a, const told_choice *b)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->finish, b->finish);
    assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
    assert_memory_equal(a->top, b->top, sizeof a->top);
    assert_int_equal(a->text_length, b->text_length);
    assert_memory_equal(a->text, b->text, sizeof a->text);
}
