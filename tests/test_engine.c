/*
 * test_engine.c - the engine end to end over a tiny random model: the same answer to the bit in any
 * company and configuration, text and stop strings, scores, choices, cancellation, exact usage
 * under load, refusals, shutdown.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "xmoe.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONTEXT = 128, VOCABULARY = 300, EXPERTS = 12, MOE_LAYERS = 2, MAX_CHOICES = 5, TOP = 3 };

static xmoe_model *model;

/* Writes a random model and loads it into `model`; 0 or -1. */
static int write_and_load(int32_t moe_every)
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
                  xmoe_model_load(path, NULL, &model, NULL) == XMOE_OK;
    unlink(path);
    return loaded ? 0 : -1;
}

static int load_model(void **state)
{
    (void)state;
    return write_and_load(2);
}

/* --- a call: a request and all it was told ---------------------------------------------------- */

typedef struct {
    int32_t tokens[CONTEXT];
    float logprobs[CONTEXT];
    xmoe_token_logprob top[CONTEXT][TOP];
    int32_t count;
    char text[16 * CONTEXT];
    size_t text_length;
    xmoe_finish finish;
    uint16_t routed_counts[CONTEXT * MOE_LAYERS];
    uint16_t routed_experts[CONTEXT * MOE_LAYERS * EXPERTS];
    float routed_weights[CONTEXT * MOE_LAYERS * EXPERTS];
    int32_t routed_positions, routed_pairs;
} told_choice;

typedef struct {
    xmoe_request_params params;
    int32_t prompt[CONTEXT];
    xmoe_routing routing;
    uint64_t id;
    told_choice choices[MAX_CHOICES];
    float prompt_logprobs[CONTEXT];
    xmoe_token_logprob prompt_top[CONTEXT * TOP];
    xmoe_request_summary summary;
    xmoe_finish finish;
    uint64_t usage_counts[MOE_LAYERS][EXPERTS], usage_tokens;
    double usage_weights[MOE_LAYERS][EXPERTS];
    int32_t ends;
    xmoe_engine *cancel_at_token; /* cancels itself from its callback */
    bool *gate;                   /* the first token waits for this */
} call;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

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
    pthread_mutex_lock(&mutex);
    while (c->gate != NULL && !*c->gate)
        pthread_cond_wait(&changed, &mutex);
    keep_event(c, event);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* A call number n: prompt, sampling and routing depend on n alone. */
static call *new_call(int32_t n)
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
    xmoe_model_default_routing(model, &c->routing);
    for (int32_t i = 0; i < c->routing.layer_count; i++)
        c->routing.layers[i].threshold = 0.3F + 0.2F * (float)(n % 4);
    c->params.routing = &c->routing;
    c->params.on_event = on_event;
    c->params.context = c;
    return c;
}

static void submit(xmoe_engine *engine, call *c)
{
    xmoe_error error;
    if (xmoe_request_submit(engine, &c->params, &c->id, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void wait_for_end(call *c)
{
    pthread_mutex_lock(&mutex);
    while (c->ends == 0)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(c->ends, 1);
}

/* Waits until so many tokens of choice 0 have come. */
static void wait_for_tokens(call *c, int32_t count)
{
    pthread_mutex_lock(&mutex);
    while (c->choices[0].count < count && c->ends == 0)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void run(xmoe_engine *engine, call *c)
{
    submit(engine, c);
    wait_for_end(c);
}

/* Small, one thread; tests change what they are about. */
static xmoe_engine_options small_options(void)
{
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.threads = 1;
    options.kv_bytes = 4 << 20;
    options.usage_window_bytes = 1 << 20;
    return options;
}

static xmoe_engine *create(const xmoe_engine_options *options)
{
    xmoe_engine *engine;
    xmoe_error error;
    if (xmoe_engine_create(model, options, &engine, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return engine;
}

static xmoe_engine *create_small(void)
{
    xmoe_engine_options options = small_options();
    return create(&options);
}

static xmoe_engine_stats stats_of(xmoe_engine *engine)
{
    xmoe_engine_stats stats;
    xmoe_engine_get_stats(engine, &stats);
    return stats;
}

/* --- same answer in any company --------------------------------------------------------------- */

static void assert_same_choice(const told_choice *a, const told_choice *b)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->finish, b->finish);
    assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
    assert_memory_equal(a->top, b->top, sizeof a->top);
    assert_int_equal(a->text_length, b->text_length);
    assert_memory_equal(a->text, b->text, sizeof a->text);
}

/* Where neither took its prompt from the cache, experts must be equal too. */
static void assert_same(const call *a, const call *b)
{
    bool computed = a->summary.cached_tokens + b->summary.cached_tokens == 0;
    for (int32_t i = 0; i < a->params.choices; i++) {
        const told_choice *x = &a->choices[i], *y = &b->choices[i];
        assert_same_choice(x, y);
        assert_int_equal(x->routed_positions, y->routed_positions);
        if (!computed)
            continue;
        assert_memory_equal(x->routed_counts, y->routed_counts, sizeof x->routed_counts);
        assert_memory_equal(x->routed_experts, y->routed_experts, sizeof x->routed_experts);
        assert_memory_equal(x->routed_weights, y->routed_weights, sizeof x->routed_weights);
    }
    assert_memory_equal(&a->prompt_logprobs[1], &b->prompt_logprobs[1],
                        sizeof a->prompt_logprobs - sizeof(float));
    assert_memory_equal(a->prompt_top + TOP, b->prompt_top + TOP,
                        sizeof a->prompt_top - TOP * sizeof *a->prompt_top);
    if (!computed)
        return;
    assert_int_equal(a->usage_tokens, b->usage_tokens);
    assert_memory_equal(a->usage_counts, b->usage_counts, sizeof a->usage_counts);
    assert_memory_equal(a->usage_weights, b->usage_weights, sizeof a->usage_weights);
    assert_true(a->summary.mean_active_experts == b->summary.mean_active_experts);
    assert_true(a->summary.expert_bytes_per_token == b->summary.expert_bytes_per_token);
}

enum { COMPANY = 32 };
static call *alone[COMPANY]; /* what each call is told when it runs alone */

static call *company_call(int32_t n)
{
    call *c = new_call(n);
    c->params.choices = n % 6 == 0 ? 3 : 1;
    c->params.prompt_logprobs = n % 5 == 2;
    return c;
}

static void run_each_alone(void)
{
    xmoe_engine_options options = small_options();
    options.prefix_cache = false;
    xmoe_engine *engine = create(&options);
    for (int32_t i = 0; i < COMPANY; i++) {
        alone[i] = company_call(i);
        run(engine, alone[i]);
    }
    xmoe_engine_free(engine);
}

/* All calls at once in one engine, twice, so that the second round finds prefixes. */
static xmoe_engine_stats run_in_company(const xmoe_engine_options *options)
{
    xmoe_engine *engine = create(options);
    for (int32_t round = 0; round < 2; round++) {
        call *calls[COMPANY];
        for (int32_t i = 0; i < COMPANY; i++)
            submit(engine, calls[i] = company_call(i));
        for (int32_t i = 0; i < COMPANY; i++) {
            wait_for_end(calls[i]);
            assert_same(alone[i], calls[i]);
            free(calls[i]);
        }
    }
    xmoe_engine_stats stats = stats_of(engine);
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.requests_length, 2 * COMPANY);
    xmoe_engine_free(engine);
    return stats;
}

static void answers_are_the_same_in_any_company(void **state)
{
    (void)state;
    static const int32_t budgets[] = {1, 7, 64, 256};
    run_each_alone();
    for (int32_t i = 0; i < 4; i++) {
        xmoe_engine_options options = small_options();
        options.step_tokens = budgets[i];
        options.threads = 1 + i % 2;
        options.prefix_cache = i >= 2;
        xmoe_engine_stats stats = run_in_company(&options);
        assert_int_equal(stats.prefix_hits > 0, options.prefix_cache);
    }
}

static void answers_are_the_same_in_famine(void **state)
{
    (void)state;
    for (int32_t i = 0; i < 2; i++) {
        xmoe_engine_options options = small_options();
        options.kv_bytes = 0; /* one sequence of full context */
        options.step_tokens = i == 0 ? 64 : 9;
        options.prefix_cache = i == 0;
        options.threads = 2 - i;
        xmoe_engine_stats stats = run_in_company(&options);
        assert_int_equal(stats.kv_blocks_total, CONTEXT / 16);
        assert_true(stats.preemptions > 0);
    }
    for (int32_t i = 0; i < COMPANY; i++)
        free(alone[i]);
}

static void a_choice_does_not_depend_on_their_number(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    call *five = new_call(3), *two = new_call(3);
    five->params.choices = 5;
    two->params.choices = 2;
    run(engine, five);
    run(engine, two);
    int32_t differ = 0;
    for (int32_t i = 0; i < 2; i++)
        assert_same_choice(&five->choices[i], &two->choices[i]);
    for (int32_t i = 1; i < 5; i++)
        differ += memcmp(five->choices[0].tokens, five->choices[i].tokens,
                         sizeof five->choices[0].tokens) != 0;
    assert_true(differ > 0);
    assert_int_equal(five->summary.completion_tokens, 5 * five->choices[0].count);
    free(five);
    free(two);
    xmoe_engine_free(engine);
}

/* --- scores ----------------------------------------------------------------------------------- */

/* The logprobs that a generation reported are those that a scoring of prompt and output gives. */
static void scores_equal_what_generation_said(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    for (int32_t n = 0; n < 6; n++) {
        call *made = new_call(n), *scored = new_call(n);
        run(engine, made);
        int32_t length = (int32_t)made->params.prompt_length, count = made->choices[0].count;
        memcpy(scored->prompt + length, made->choices[0].tokens, (size_t)count * sizeof(int32_t));
        scored->params.prompt_length += (size_t)count;
        scored->params.max_tokens = 0;
        scored->params.prompt_logprobs = true;
        run(engine, scored);
        assert_int_equal(scored->finish, XMOE_FINISH_LENGTH);
        assert_int_equal(scored->choices[0].count, 0);
        assert_int_equal(scored->summary.cached_tokens, 0);
        assert_true(isnan(scored->prompt_logprobs[0]));
        assert_memory_equal(scored->prompt_logprobs + length, made->choices[0].logprobs,
                            (size_t)count * sizeof(float));
        assert_memory_equal(scored->prompt_top + length * TOP, made->choices[0].top,
                            (size_t)(count * TOP) * sizeof(xmoe_token_logprob));
        free(made);
        free(scored);
    }
    xmoe_engine_free(engine);
}

/* --- text ------------------------------------------------------------------------------------- */

static void greedy_ascii(call *c)
{
    static xmoe_logit_bias bans[VOCABULARY]; /* all but printable ASCII */
    size_t count = 0;
    for (int32_t t = 0; t < VOCABULARY; t++) {
        size_t length;
        const char *bytes = xmoe_token_bytes(model, t, &length);
        if (length == 0 || bytes[0] < ' ' || bytes[0] > '~')
            bans[count++] = (xmoe_logit_bias){t, -100};
    }
    c->params.sampling.logit_bias = bans;
    c->params.sampling.logit_bias_count = count;
    c->params.sampling.temperature = 1;
    c->params.max_tokens = 24;
}

static void a_stop_string_is_found_over_token_boundaries(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    for (int32_t n = 1; n < 6; n++) {
        call *whole = new_call(n);
        greedy_ascii(whole);
        run(engine, whole);
        const told_choice *w = &whole->choices[0];
        assert_int_equal(w->finish, XMOE_FINISH_LENGTH);
        assert_true(w->text_length >= 20);
        for (size_t at = 3; at < 12; at += 2)
            for (size_t length = 1; length < 7; length++) {
                char stop[8] = {0};
                memcpy(stop, w->text + at, length);
                const char *stops[] = {"never to be seen in it", stop};
                call *c = new_call(n);
                greedy_ascii(c);
                c->params.stop = stops;
                c->params.stop_count = 2;
                run(engine, c);
                const told_choice *told = &c->choices[0];
                size_t first = (size_t)(strstr(w->text, stop) - w->text);
                assert_int_equal(told->finish, XMOE_FINISH_STOP);
                assert_int_equal(told->text_length, first);
                assert_memory_equal(told->text, w->text, first);
                free(c);
            }
        free(whole);
    }
    xmoe_engine_free(engine);
}

/* A beginning of a stop string at the end of the output is text after all. */
static void held_back_text_is_released_at_the_end(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    call *whole = new_call(2), *c = new_call(2);
    greedy_ascii(whole);
    greedy_ascii(c);
    run(engine, whole);
    char stop[8] = {0};
    memcpy(stop, whole->choices[0].text + whole->choices[0].text_length - 3, 3);
    strcat(stop, "\n\n");
    const char *stops[] = {stop};
    c->params.stop = stops;
    c->params.stop_count = 1;
    run(engine, c);
    assert_same_choice(&whole->choices[0], &c->choices[0]);
    free(whole);
    free(c);
    xmoe_engine_free(engine);
}

static void the_end_of_text_token_stops_without_its_text(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    xmoe_logit_bias bias = {256, 50}; /* <|endoftext|> */
    for (int32_t ignore = 0; ignore < 2; ignore++) {
        call *c = new_call(1);
        c->params.sampling.logit_bias = &bias;
        c->params.sampling.logit_bias_count = 1;
        c->params.ignore_eos = ignore;
        run(engine, c);
        assert_int_equal(c->finish, ignore ? XMOE_FINISH_LENGTH : XMOE_FINISH_STOP);
        assert_int_equal(c->choices[0].count, ignore ? c->params.max_tokens : 1);
        assert_int_equal(c->choices[0].tokens[0], 256);
        assert_int_equal(c->choices[0].text_length, 0);
        free(c);
    }
    xmoe_engine_free(engine);
}

/* --- cancellation ----------------------------------------------------------------------------- */

static void a_cancelled_request_gives_everything_back(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    call *c = new_call(1);
    c->params.max_tokens = CONTEXT;
    c->params.choices = 3;
    c->cancel_at_token = engine; /* from inside its callback */
    run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_CANCELLED);
    assert_true(c->choices[0].count <= 1);
    for (int32_t i = 0; i < 3; i++)
        assert_int_equal(c->choices[i].finish, XMOE_FINISH_CANCELLED);
    xmoe_engine_stats stats = stats_of(engine); /* END comes after the figures */
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.requests_cancelled, 1);
    xmoe_request_cancel(engine, c->id); /* ended and unknown ids are ignored */
    xmoe_request_cancel(engine, 987654321);
    free(c);
    xmoe_engine_free(engine);
}

/* --- usage under load ------------------------------------------------------------------------- */

static void assert_identities(const xmoe_usage *usage)
{
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *l = &usage->layers[i];
        uint64_t counts = 0, weighted = 0, tokens = 0;
        for (int32_t e = 0; e < l->experts; e++)
            counts += l->counts[e];
        for (int32_t n = 0; n <= l->experts; n++) {
            weighted += (uint64_t)n * l->active_histogram[n];
            tokens += l->active_histogram[n];
        }
        assert_int_equal(counts, l->activations);
        assert_int_equal(weighted, l->activations);
        assert_int_equal(tokens, l->tokens);
    }
}

static xmoe_usage *usage_of(xmoe_engine *engine, xmoe_phase phase)
{
    xmoe_usage *usage;
    assert_int_equal(xmoe_usage_get(engine, -1, phase, 0, &usage, NULL), XMOE_OK);
    assert_identities(usage);
    return usage;
}

/* Without preemption, the engine's usage is the sum of its requests' own, cancelled ones too. */
static void usage_is_exact_under_load_with_cancellations(void **state)
{
    (void)state;
    enum { CALLS = 64 };
    xmoe_engine_options options = small_options();
    options.threads = 2;
    options.step_tokens = 48;
    options.max_sequences = 256; /* no choice has to wait and be computed again */
    options.kv_bytes = 64 << 20;
    xmoe_engine *engine = create(&options);
    call *calls[CALLS];
    for (int32_t i = 0; i < CALLS; i++) {
        calls[i] = new_call(i % 40); /* some share their prompts */
        calls[i]->params.choices = 1 + i % 3;
        calls[i]->params.max_tokens = 40;
        submit(engine, calls[i]);
        if (i % 5 == 0) {
            wait_for_tokens(calls[i / 2], 3);
            xmoe_request_cancel(engine, calls[i / 2]->id);
        }
        xmoe_usage_free(usage_of(engine, (xmoe_phase)(i % 3)));
    }
    uint64_t counts[MOE_LAYERS][EXPERTS] = {0}, tokens = 0, cancelled = 0;
    double weights = 0;
    for (int32_t i = 0; i < CALLS; i++) {
        wait_for_end(calls[i]);
        cancelled += calls[i]->finish == XMOE_FINISH_CANCELLED;
        tokens += calls[i]->usage_tokens;
        for (int32_t l = 0; l < MOE_LAYERS; l++)
            for (int32_t e = 0; e < EXPERTS; e++) {
                counts[l][e] += calls[i]->usage_counts[l][e];
                weights += calls[i]->usage_weights[l][e];
            }
        free(calls[i]);
    }
    xmoe_engine_stats stats = stats_of(engine);
    assert_int_equal(stats.preemptions, 0);
    assert_int_equal(stats.requests_cancelled, cancelled);
    assert_int_equal(stats.requests_length, CALLS - cancelled);
    assert_true(cancelled > 0);
    xmoe_usage *all = usage_of(engine, XMOE_PHASE_ALL);
    xmoe_usage *prefill = usage_of(engine, XMOE_PHASE_PREFILL);
    xmoe_usage *decode = usage_of(engine, XMOE_PHASE_DECODE);
    assert_int_equal(all->tokens, tokens);
    assert_int_equal(prefill->tokens + decode->tokens, tokens);
    for (int32_t l = 0; l < MOE_LAYERS; l++) {
        assert_memory_equal(all->layers[l].counts, counts[l], sizeof counts[l]);
        for (int32_t e = 0; e < EXPERTS; e++)
            weights -= all->layers[l].weights[e];
    }
    assert_true(fabs(weights) < 1e-9);
    xmoe_usage_free(all);
    xmoe_usage_free(prefill);
    xmoe_usage_free(decode);
    xmoe_engine_free(engine);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void assert_refused(xmoe_engine *engine, const call *c, xmoe_status status,
                           const char *parameter)
{
    xmoe_error error = {0};
    uint64_t id;
    assert_int_equal(xmoe_request_submit(engine, &c->params, &id, &error), status);
    assert_int_equal(error.status, status);
    assert_string_equal(error.parameter, parameter);
    assert_true(error.message[0] != '\0');
}

#define REFUSED(field, value, status, parameter)                                                   \
    do {                                                                                           \
        call *refused = new_call(1);                                                               \
        refused->field = value;                                                                    \
        assert_refused(engine, refused, status, parameter);                                        \
        free(refused);                                                                             \
    } while (0)

static void wrong_parameters_are_named(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    const char *empty[] = {"a", ""};
    xmoe_logit_bias outside = {VOCABULARY, 1};
    REFUSED(params.prompt_length, 0, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(prompt[0], VOCABULARY, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(prompt[0], -1, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(params.prompt_length, CONTEXT, XMOE_ERROR_TOO_LONG, "");
    REFUSED(params.max_tokens, -1, XMOE_ERROR_ARGUMENT, "max_tokens");
    REFUSED(params.choices, 0, XMOE_ERROR_ARGUMENT, "choices");
    REFUSED(params.choices, 129, XMOE_ERROR_ARGUMENT, "choices");
    REFUSED(params.sampling.temperature, -1, XMOE_ERROR_ARGUMENT, "temperature");
    REFUSED(params.sampling.temperature, NAN, XMOE_ERROR_ARGUMENT, "temperature");
    REFUSED(params.sampling.top_p, 0, XMOE_ERROR_ARGUMENT, "top_p");
    REFUSED(params.sampling.top_p, 1.5F, XMOE_ERROR_ARGUMENT, "top_p");
    REFUSED(params.sampling.top_k, -1, XMOE_ERROR_ARGUMENT, "top_k");
    REFUSED(params.sampling.min_p, 1, XMOE_ERROR_ARGUMENT, "min_p");
    REFUSED(params.sampling.presence_penalty, NAN, XMOE_ERROR_ARGUMENT, "presence_penalty");
    REFUSED(params.sampling.frequency_penalty, INFINITY, XMOE_ERROR_ARGUMENT, "frequency_penalty");
    REFUSED(params.sampling.repetition_penalty, 0, XMOE_ERROR_ARGUMENT, "repetition_penalty");
    REFUSED(params.top_logprobs, 21, XMOE_ERROR_ARGUMENT, "top_logprobs");
    REFUSED(params.deadline_seconds, -1, XMOE_ERROR_ARGUMENT, "deadline_seconds");
    REFUSED(params.on_event, NULL, XMOE_ERROR_ARGUMENT, "on_event");
    REFUSED(routing.layers[1].threshold, 2, XMOE_ERROR_ARGUMENT, "threshold");
    REFUSED(routing.layers[3].min_experts, 0, XMOE_ERROR_ARGUMENT, "min_experts");
    call *c = new_call(1);
    c->params.stop = empty;
    c->params.stop_count = 2;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "stop");
    c->params.stop_count = 17;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "stop");
    c->params.stop_count = 0;
    c->params.sampling.logit_bias = &outside;
    c->params.sampling.logit_bias_count = 1;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "logit_bias");
    free(c);
    assert_int_equal(stats_of(engine).requests_submitted, 0);
    xmoe_engine_free(engine);
}

static void engine_options_are_checked(void **state)
{
    (void)state;
    xmoe_engine_options options = small_options();
    xmoe_engine *engine;
    xmoe_error error;
    options.step_tokens = 0;
    assert_int_equal(xmoe_engine_create(model, &options, &engine, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "step_tokens");
    assert_null(engine);
    options = small_options();
    options.max_sequences = 0;
    assert_int_equal(xmoe_engine_create(model, &options, &engine, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "max_sequences");
}

static void open_gate(bool *gate)
{
    pthread_mutex_lock(&mutex);
    *gate = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void a_full_queue_and_a_draining_engine_refuse(void **state)
{
    (void)state;
    xmoe_engine_options options = small_options();
    options.max_sequences = 1;
    options.queue_length = 3;
    xmoe_engine *engine = create(&options);
    bool gate = false;
    call *calls[8], *more = new_call(9);
    for (int32_t i = 0; i < 8; i++)
        calls[i] = new_call(i);
    calls[0]->gate = &gate; /* holds the scheduler in its first event */
    submit(engine, calls[0]);
    int32_t queued = 0;
    xmoe_error error;
    while (queued < 7 && xmoe_request_submit(engine, &calls[queued + 1]->params,
                                             &calls[queued + 1]->id, &error) == XMOE_OK)
        queued++;
    assert_in_range(queued, 2, 6); /* 3 wait, and some were taken before the gate was reached */
    assert_int_equal(error.status, XMOE_ERROR_BUSY);
    xmoe_engine_drain(engine);
    assert_refused(engine, more, XMOE_ERROR_DRAINING, "");
    open_gate(&gate);
    for (int32_t i = 0; i <= queued; i++) { /* those submitted go on */
        wait_for_end(calls[i]);
        assert_int_equal(calls[i]->finish, XMOE_FINISH_LENGTH);
    }
    for (int32_t i = 0; i < 8; i++)
        free(calls[i]);
    free(more);
    xmoe_engine_free(engine);
}

static void freeing_ends_all_requests(void **state)
{
    (void)state;
    enum { CALLS = 20 };
    xmoe_engine_options options = small_options();
    options.max_sequences = 4;
    options.step_tokens = 4;
    xmoe_engine *engine = create(&options);
    call *calls[CALLS];
    for (int32_t i = 0; i < CALLS; i++) {
        calls[i] = new_call(i);
        calls[i]->params.max_tokens = CONTEXT;
        submit(engine, calls[i]);
    }
    xmoe_engine_free(engine);
    for (int32_t i = 0; i < CALLS; i++) {
        assert_int_equal(calls[i]->ends, 1);
        free(calls[i]);
    }
}

/* --- routing and slots ------------------------------------------------------------------------ */

static void the_default_routing_is_taken_at_submission(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    xmoe_routing routing;
    xmoe_engine_get_routing(engine, &routing);
    for (int32_t n = 1; n <= EXPERTS; n += 4) {
        for (int32_t i = 0; i < routing.layer_count; i++)
            routing.layers[i] =
                (xmoe_router){.type = XMOE_ROUTER_TOP_K, .top_k = n, .min_experts = 1};
        assert_int_equal(xmoe_engine_set_routing(engine, &routing, NULL), XMOE_OK);
        call *c = new_call(1);
        c->params.routing = NULL;
        run(engine, c);
        assert_true(c->summary.mean_active_experts == n);
        assert_int_equal(c->summary.cached_tokens, 0); /* another routing's prefix is not its own */
        xmoe_model_info info = *xmoe_model_get_info(model);
        assert_true(c->summary.expert_bytes_per_token ==
                    (double)n * MOE_LAYERS * (double)info.expert_bytes);
        free(c);
    }
    routing.layers[1].top_k = 0;
    xmoe_error error;
    assert_int_equal(xmoe_engine_set_routing(engine, &routing, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "top_k");
    assert_ptr_equal(xmoe_engine_model(engine), model);
    xmoe_engine_free(engine);
}

static void slots_and_figures_can_be_read_while_it_runs(void **state)
{
    (void)state;
    xmoe_engine *engine = create_small();
    call *c = new_call(1);
    bool gate = false;
    c->params.max_tokens = CONTEXT;
    submit(engine, c);
    wait_for_tokens(c, 2);
    pthread_mutex_lock(&mutex);
    c->gate = &gate; /* stop it between two tokens */
    pthread_mutex_unlock(&mutex);
    xmoe_slot slots[4];
    int32_t count = xmoe_engine_get_slots(engine, slots, 4);
    xmoe_engine_stats stats = stats_of(engine);
    if (c->ends == 0 && count == 1) {
        assert_int_equal(slots[0].request, c->id);
        assert_int_equal(slots[0].prompt_tokens, c->params.prompt_length);
        assert_true(stats.sequences_running <= 1 && stats.steps > 0);
    }
    assert_int_equal(xmoe_engine_get_slots(engine, slots, 0), 0);
    open_gate(&gate);
    wait_for_end(c);
    free(c);
    xmoe_engine_free(engine);
}

static void a_model_without_experts_serves_too(void **state)
{
    (void)state;
    xmoe_model *with_experts = model;
    assert_int_equal(write_and_load(0), 0);
    xmoe_engine *engine = create_small();
    call *c = new_call(1);
    run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_LENGTH);
    assert_true(c->summary.mean_active_experts == 0);
    assert_int_equal(c->choices[0].routed_pairs, 0);
    xmoe_usage *usage = usage_of(engine, XMOE_PHASE_ALL);
    assert_int_equal(usage->layer_count, 0);
    assert_int_equal(usage->tokens, 0);
    xmoe_usage_free(usage);
    free(c);
    xmoe_engine_free(engine);
    xmoe_model_free(model);
    model = with_experts;
}

/* --- set-up ----------------------------------------------------------------------------------- */

static void failed_allocations_at_creation_leave_nothing(void **state)
{
    (void)state;
    xmoe_engine_options options = small_options();
    options.kv_bytes = 0;
    xmoe_engine *engine = NULL;
    int64_t n = 0;
    for (;; n++) {
        xmoe_error error;
        xm_memory_fail_after(n);
        xmoe_status status = xmoe_engine_create(model, &options, &engine, &error);
        xm_memory_fail_after(-1);
        if (status == XMOE_OK)
            break;
        assert_int_equal(status, XMOE_ERROR_MEMORY);
        assert_null(engine);
    }
    assert_true(n > 15);
    xmoe_engine_free(engine);
}

static int free_model(void **state)
{
    (void)state;
    xmoe_model_free(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_the_same_in_any_company),
        cmocka_unit_test(answers_are_the_same_in_famine),
        cmocka_unit_test(a_choice_does_not_depend_on_their_number),
        cmocka_unit_test(scores_equal_what_generation_said),
        cmocka_unit_test(a_stop_string_is_found_over_token_boundaries),
        cmocka_unit_test(held_back_text_is_released_at_the_end),
        cmocka_unit_test(the_end_of_text_token_stops_without_its_text),
        cmocka_unit_test(a_cancelled_request_gives_everything_back),
        cmocka_unit_test(usage_is_exact_under_load_with_cancellations),
        cmocka_unit_test(wrong_parameters_are_named),
        cmocka_unit_test(engine_options_are_checked),
        cmocka_unit_test(a_full_queue_and_a_draining_engine_refuse),
        cmocka_unit_test(freeing_ends_all_requests),
        cmocka_unit_test(the_default_routing_is_taken_at_submission),
        cmocka_unit_test(slots_and_figures_can_be_read_while_it_runs),
        cmocka_unit_test(a_model_without_experts_serves_too),
        cmocka_unit_test(failed_allocations_at_creation_leave_nothing),
    };
    return cmocka_run_group_tests(tests, load_model, free_model);
}
