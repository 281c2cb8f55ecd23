/*
 * test_scheduler.c - the scheduler on a simulated clock over a fake model.
 *
 * The fake model keeps one number per position in the blocks that it is told of, each depending on
 * the token, the routing and the number before it, and makes logits from all numbers of a
 * sequence. So a wrong block table, a block given to two, a lost copy or a stale prefix changes the
 * tokens, and what a request must answer can be computed from its prompt alone. The fake also
 * checks what it is asked to do: budget, ranges, and that a block is written by its only holder.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "model/model.h"
#include "serve/sampler.h"
#include "serve/scheduler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CONTEXT = 96,
    VOCABULARY = 300,
    EXPERTS = 6,
    MOE_LAYERS = 2,
    MAX_BLOCKS = 200,
    MAX_ROWS = 256,
    MAX_REQUESTS = 2000,
    MAX_CHOICES = 5
};

static xmoe_model *model;

/* --- the fake model --------------------------------------------------------------------------- */

typedef struct {
    const xm_scheduler *scheduler;
    int32_t step_tokens;
    int64_t now_ns; /* the simulated clock */
    uint64_t steps, rows, decode_rows;
    uint64_t numbers[MAX_BLOCKS][XM_KV_TOKENS];
    float logits[MAX_ROWS * VOCABULARY];
    bool broken; /* logits are NaN */
} fake_model;

static uint64_t number_of(int32_t token, const xmoe_routing *routing, uint64_t before)
{
    uint64_t threshold = (uint64_t)(routing->layers[1].threshold * 1000);
    return xm_random_bits((uint64_t)token, threshold, before);
}

/* Logits from the digest of all numbers up to a position. */
static void make_logits(uint64_t digest, float *logits)
{
    for (int32_t i = 0; i < VOCABULARY; i++)
        logits[i] = (float)(5 * xm_random_uniform(digest, 1, (uint64_t)i));
    logits[256] += 2; /* the end of text comes now and then */
}

/* The experts of a token; the same in the engine's eyes and in the test's. */
static int32_t choose_experts(int32_t token, int32_t position, int32_t layer, uint16_t *chosen,
                              float *weights)
{
    uint64_t bits = xm_random_bits((uint64_t)token, (uint64_t)position, (uint64_t)layer);
    int32_t count = 1 + (int32_t)(bits % EXPERTS);
    for (int32_t i = 0; i < count; i++) {
        chosen[i] = (uint16_t)((bits / 64 + (uint64_t)i) % EXPERTS);
        weights[i] = 1.0F / (float)(2 + i);
    }
    return count;
}

static void route_rows(const xm_segment *segments, int32_t segment_count, xm_routed_fn routed,
                       void *context)
{
    int32_t count[MAX_ROWS];
    uint16_t expert[MAX_ROWS * EXPERTS];
    float weight[MAX_ROWS * EXPERTS];
    for (int32_t layer = 0; layer < MOE_LAYERS; layer++) {
        int32_t row = 0;
        for (int32_t i = 0; i < segment_count; i++)
            for (int32_t j = 0; j < segments[i].token_count; j++, row++)
                count[row] = choose_experts(segments[i].tokens[j], segments[i].position + j, layer,
                                            expert + row * EXPERTS, weight + row * EXPERTS);
        xm_selection selection = {row, EXPERTS, count, expert, weight};
        routed(context, layer, &selection);
    }
}

static uint64_t *number_at(fake_model *fake, const xm_segment *segment, int32_t position)
{
    return &fake->numbers[segment->blocks[position / XM_KV_TOKENS]][position % XM_KV_TOKENS];
}

static void run_token(fake_model *fake, const xm_segment *segment, int32_t position)
{
    int32_t block = segment->blocks[position / XM_KV_TOKENS];
    int32_t token = segment->tokens[position - segment->position];
    assert_in_range(block, 0, xm_block_pool_total(xm_scheduler_blocks(fake->scheduler)) - 1);
    assert_in_range(token, 0, VOCABULARY - 1);
    assert_int_equal(xm_block_pool_references(xm_scheduler_blocks(fake->scheduler), block), 1);
    uint64_t before = position > 0 ? *number_at(fake, segment, position - 1) : 0;
    *number_at(fake, segment, position) = number_of(token, segment->routing, before);
}

static const float *fake_step(void *context, const xm_segment *segments, int32_t segment_count,
                              xm_routed_fn routed, void *routed_context)
{
    fake_model *fake = context;
    int32_t rows = 0, logit_rows = 0;
    for (int32_t i = 0; i < segment_count; i++) {
        const xm_segment *s = &segments[i];
        assert_true(s->token_count >= 1 && s->position >= 0 &&
                    s->position + s->token_count <= CONTEXT);
        for (int32_t j = 0; j < s->token_count; j++) {
            run_token(fake, s, s->position + j);
            if (j < s->logits_from)
                continue;
            uint64_t digest = 0;
            for (int32_t p = 0; p <= s->position + j; p++)
                digest = xm_random_mix(digest ^ *number_at(fake, s, p));
            float *logits = fake->logits + (size_t)logit_rows++ * VOCABULARY;
            make_logits(digest, logits);
            if (fake->broken)
                logits[7] = NAN;
        }
        rows += s->token_count;
    }
    assert_true(rows <= fake->step_tokens);
    route_rows(segments, segment_count, routed, routed_context);
    fake->rows += (uint64_t)rows;
    fake->steps++;
    fake->now_ns += 1000000 + (int64_t)(fake->steps % 5) * 300000;
    return fake->logits;
}

static void fake_copy(void *context, int32_t from, int32_t to)
{
    fake_model *fake = context;
    assert_int_not_equal(from, to);
    memcpy(fake->numbers[to], fake->numbers[from], sizeof fake->numbers[to]);
}

static int64_t fake_now(void *context)
{
    return ((fake_model *)context)->now_ns;
}

static int64_t fake_unix(void *context)
{
    return ((fake_model *)context)->now_ns / 1000000000;
}

/* --- what a request must answer --------------------------------------------------------------- */

typedef struct {
    int32_t tokens[CONTEXT];
    float logprobs[CONTEXT];
    int32_t count;
    xmoe_finish finish;
} answer;

/* Alone, naively, from the prompt. */
static answer expected_answer(const xmoe_request_params *params, int32_t choice)
{
    answer a = {.finish = XMOE_FINISH_LENGTH};
    xm_sampler_scratch scratch;
    assert_int_equal(xm_sampler_scratch_init(&scratch, VOCABULARY, NULL), XMOE_OK);
    float logits[VOCABULARY];
    int32_t prompt_length = (int32_t)params->prompt_length;
    uint64_t number = 0, digest = 0;
    for (int32_t p = 0; a.count < params->max_tokens && prompt_length + a.count < CONTEXT; p++) {
        int32_t token = p < prompt_length ? params->prompt[p] : a.tokens[p - prompt_length];
        number = number_of(token, params->routing, number);
        digest = xm_random_mix(digest ^ number);
        if (p < prompt_length - 1)
            continue;
        make_logits(digest, logits);
        xm_sample_input in = {logits,  params->prompt,    prompt_length, a.tokens,
                              a.count, &params->sampling, choice};
        int32_t next;
        assert_int_equal(xm_sample(model->kernels, &scratch, &in, &next), XM_SAMPLE_OK);
        xm_logprobs(model->kernels, logits, VOCABULARY, next, &a.logprobs[a.count], NULL, 0);
        a.tokens[a.count++] = next;
        if (next == 256) {
            a.finish = XMOE_FINISH_STOP;
            break;
        }
    }
    xm_sampler_scratch_free(&scratch);
    return a;
}

/* --- requests and what they were told --------------------------------------------------------- */

typedef struct {
    xmoe_request_params params;
    int32_t prompt[CONTEXT];
    xm_request *request; /* until END */
    int32_t ends, choice_ends, prompt_events;
    bool cancelled;
    answer told[MAX_CHOICES];
    int32_t progress;
    uint64_t unknown_entries, known_entries; /* of routed experts */
    xmoe_request_summary summary;
    xmoe_finish finish;
    uint64_t usage_tokens, usage_activations, expected_activations;
    int64_t submitted_ns;
} client;

static client clients[MAX_REQUESTS];

static int32_t told_token(const client *c, int32_t choice, int32_t position)
{
    int32_t prompt_length = (int32_t)c->params.prompt_length;
    return position < prompt_length ? c->prompt[position]
                                    : c->told[choice].tokens[position - prompt_length];
}

static void check_routed(client *c, const xmoe_event *event)
{
    const xmoe_routed_experts *r = event->routed;
    assert_int_equal(r->moe_layers, MOE_LAYERS);
    assert_int_equal(r->first_position, event->choice == 0 ? 0 : c->params.prompt_length);
    const uint16_t *experts = r->experts;
    const float *weights = r->weights;
    for (int32_t i = 0; i < r->position_count; i++)
        for (int32_t layer = 0; layer < MOE_LAYERS; layer++) {
            int32_t position = r->first_position + i, told = r->counts[i * MOE_LAYERS + layer];
            if (told == XMOE_ROUTED_UNKNOWN) {
                c->unknown_entries++;
                continue;
            }
            uint16_t expert[EXPERTS];
            float weight[EXPERTS];
            int32_t count = choose_experts(told_token(c, event->choice, position), position, layer,
                                           expert, weight);
            assert_int_equal(told, count);
            assert_memory_equal(experts, expert, (size_t)count * sizeof *expert);
            assert_memory_equal(weights, weight, (size_t)count * sizeof *weight);
            experts += count;
            weights += count;
            c->known_entries++;
            c->expected_activations += (uint64_t)count;
        }
    /* all positions but that of the last token, which passed through no layer */
    if (event->finish == XMOE_FINISH_STOP || event->finish == XMOE_FINISH_LENGTH) {
        int32_t generated = c->told[event->choice].count;
        int32_t prompt = event->choice == 0 ? (int32_t)c->params.prompt_length : 0;
        assert_int_equal(r->position_count, prompt + (generated > 0 ? generated - 1 : 0));
    }
}

static void on_event(void *context, const xmoe_event *event)
{
    client *c = context;
    assert_int_equal(c->ends, 0); /* END is the last event */
    answer *told = event->choice < MAX_CHOICES ? &c->told[event->choice] : NULL;
    switch (event->kind) {
    case XMOE_EVENT_PROGRESS:
        assert_true(event->prompt_done > c->progress && c->told[0].count == 0);
        c->progress = event->prompt_done;
        break;
    case XMOE_EVENT_PROMPT:
        assert_int_equal(c->told[0].count, 0);
        assert_true(isnan(event->prompt_logprobs[0]));
        c->prompt_events++;
        break;
    case XMOE_EVENT_TOKEN:
        assert_int_equal(told->finish, XMOE_FINISH_NONE);
        told->logprobs[told->count] = event->logprob;
        told->tokens[told->count++] = event->token;
        break;
    case XMOE_EVENT_CHOICE:
        assert_int_equal(told->finish, XMOE_FINISH_NONE);
        told->finish = event->finish;
        c->choice_ends++;
        if (event->routed != NULL)
            check_routed(c, event);
        break;
    case XMOE_EVENT_END:
        assert_int_equal(c->choice_ends, c->params.choices);
        c->ends++;
        c->request = NULL;
        c->summary = *event->summary;
        c->finish = event->finish;
        if (event->usage != NULL) {
            c->usage_tokens = event->usage->tokens;
            for (int32_t i = 0; i < event->usage->layer_count; i++)
                c->usage_activations += event->usage->layers[i].activations;
        }
    }
}

/* --- a bench of scheduler, usage and fake ----------------------------------------------------- */

typedef struct {
    fake_model fake;
    xm_usage *usage;
    xm_scheduler *scheduler;
    uint64_t next_id;
    xmoe_routing routing[2];
} bench;

static bench *create_bench(int32_t blocks, int32_t max_sequences, int32_t step_tokens,
                           bool prefix_cache)
{
    bench *b = calloc(1, sizeof *b);
    b->fake.step_tokens = step_tokens;
    b->next_id = 1;
    for (int32_t i = 0; i < 2; i++) {
        xmoe_model_default_routing(model, &b->routing[i]);
        b->routing[i].layers[1].threshold = i == 0 ? 0.8F : 0.5F;
    }
    xm_clock clock = {fake_now, fake_unix, &b->fake};
    xm_usage_options usage = {.layers = model->moe_layers,
                              .layer_count = MOE_LAYERS,
                              .experts = EXPERTS,
                              .window_seconds = 60,
                              .window_bytes = 1 << 20,
                              .clock = clock};
    assert_int_equal(xm_usage_create(&usage, &b->usage, NULL), XMOE_OK);
    xm_scheduler_options options = {.model = model,
                                    .backend = {fake_step, fake_copy, &b->fake},
                                    .usage = b->usage,
                                    .clock = clock,
                                    .block_count = blocks,
                                    .max_sequences = max_sequences,
                                    .step_tokens = step_tokens,
                                    .prefix_cache = prefix_cache,
                                    .secret = 42};
    assert_int_equal(xm_scheduler_create(&options, &b->scheduler, NULL), XMOE_OK);
    b->fake.scheduler = b->scheduler;
    return b;
}

static void free_bench(bench *b)
{
    assert_int_equal(xm_block_pool_held(xm_scheduler_blocks(b->scheduler)), 0);
    xm_scheduler_free(b->scheduler);
    xm_usage_free(b->usage);
    free(b);
}

/* A client whose prompt is `length` tokens from a family of prompts with a common beginning. */
static client *new_client(bench *b, int32_t index, int32_t length, uint64_t family)
{
    client *c = &clients[index];
    memset(c, 0, sizeof *c);
    for (int32_t i = 0; i < length; i++)
        c->prompt[i] = (int32_t)(xm_random_bits(family, 3, (uint64_t)i) % 256);
    xmoe_request_default_params(&c->params);
    c->params.prompt = c->prompt;
    c->params.prompt_length = (size_t)length;
    c->params.routing = &b->routing[0];
    c->params.sampling.seed = (uint64_t)index;
    c->params.on_event = on_event;
    c->params.context = c;
    return c;
}

static void submit(bench *b, client *c)
{
    xm_clock clock = {fake_now, fake_unix, &b->fake};
    xmoe_error error;
    assert_int_equal(
        xm_request_create(model, &c->params, &b->routing[0], &clock, &c->request, &error), XMOE_OK);
    c->request->id = b->next_id++;
    c->submitted_ns = b->fake.now_ns;
    xm_scheduler_submit(b->scheduler, c->request);
}

static void step(bench *b)
{
    const char *what = "";
    xm_scheduler_step(b->scheduler);
    if (!xm_block_pool_check(xm_scheduler_blocks(b->scheduler), &what))
        fail_msg("%s", what);
}

static void run_until_idle(bench *b)
{
    for (int32_t i = 0; xm_scheduler_has_work(b->scheduler); i++) {
        assert_true(i < 1000000);
        step(b);
    }
}

static xmoe_engine_stats stats_of(const bench *b)
{
    xmoe_engine_stats stats;
    xm_scheduler_stats(b->scheduler, &stats);
    return stats;
}

/* A client that ended of its own must have been told exactly what it would be told alone; one that
 * was cut short, the beginning of that. */
static void check_answer(const client *c)
{
    assert_int_equal(c->ends, 1);
    uint64_t total = 0, computed = 0;
    bool cut = false;
    for (int32_t i = 0; i < c->params.choices; i++) {
        answer expected = expected_answer(&c->params, i);
        const answer *told = &c->told[i];
        bool whole = told->finish == XMOE_FINISH_STOP || told->finish == XMOE_FINISH_LENGTH;
        assert_true(told->count <= expected.count);
        assert_memory_equal(told->tokens, expected.tokens, (size_t)told->count * sizeof(int32_t));
        assert_memory_equal(told->logprobs, expected.logprobs, (size_t)told->count * sizeof(float));
        if (whole) {
            assert_int_equal(told->count, expected.count);
            assert_int_equal(told->finish, expected.finish);
        }
        cut |= !whole;
        total += (uint64_t)told->count;
        computed += told->count > 0 ? (uint64_t)told->count - 1 : 0;
    }
    assert_int_equal(c->summary.completion_tokens, total);
    assert_int_equal(c->summary.prompt_tokens, c->params.prompt_length);
    computed += c->params.prompt_length - c->summary.cached_tokens;
    if (!cut && c->params.expert_usage)
        assert_int_equal(c->usage_tokens, computed);
    if (!cut && c->params.routed_experts) {
        assert_int_equal(c->known_entries, computed * MOE_LAYERS);
        assert_int_equal(c->unknown_entries, c->summary.cached_tokens * MOE_LAYERS);
    }
    if (c->params.expert_usage && c->params.routed_experts)
        assert_int_equal(c->usage_activations, c->expected_activations);
    if (!cut && c->params.prompt_logprobs)
        assert_int_equal(c->prompt_events, 1);
    if (!c->params.cache_prompt || c->params.prompt_logprobs)
        assert_int_equal(c->summary.cached_tokens, 0);
}

/* --- random load ------------------------------------------------------------------------------ */

static void random_client(bench *b, int32_t index, uint64_t seed)
{
    uint64_t bits = xm_random_bits(seed, 1, (uint64_t)index);
    uint64_t more = xm_random_bits(seed, 2, (uint64_t)index);
    client *c = new_client(b, index, 1 + (int32_t)(bits % 70), bits / 128 % 3);
    if (bits >> 20 & 1) /* a tail of its own */
        c->prompt[c->params.prompt_length - 1] = (int32_t)(more % 250);
    c->params.max_tokens = (int32_t)(more / 256 % 30);
    c->params.choices = more >> 20 & 3 ? 1 : 1 + (int32_t)(more >> 24 & 3);
    c->params.sampling.temperature = more >> 28 & 1 ? 1.0F : 0;
    c->params.sampling.repetition_penalty = more >> 29 & 1 ? 1.2F : 1;
    c->params.routing = &b->routing[more >> 30 & 1];
    c->params.cache_prompt = (more >> 31 & 7) != 0;
    c->params.prompt_logprobs = (more >> 34 & 7) == 0;
    c->params.top_logprobs = c->params.prompt_logprobs ? 2 : 0;
    c->params.expert_usage = more >> 38 & 1;
    c->params.routed_experts = more >> 39 & 1;
    c->params.return_progress = more >> 40 & 1;
    c->params.deadline_seconds = (more >> 41 & 15) == 0 ? 0.05 : 0;
    submit(b, c);
}

/* Cancels a random live client now and then; it must have ended one step later. */
static void random_cancel(bench *b, int32_t submitted, uint64_t seed)
{
    uint64_t bits = xm_random_bits(seed, 4, b->fake.steps + b->next_id);
    if (submitted == 0 || bits % 8 != 0)
        return;
    client *c = &clients[(bits >> 8) % (uint64_t)submitted];
    if (c->request == NULL)
        return;
    c->cancelled = true;
    atomic_store(&c->request->cancelled, true);
    step(b);
    assert_int_equal(c->ends, 1);
}

static void check_totals(const bench *b, int32_t requests)
{
    xmoe_engine_stats s = stats_of(b);
    assert_int_equal(s.requests_submitted, requests);
    assert_int_equal(s.requests_stop + s.requests_length + s.requests_cancelled +
                         s.requests_deadline + s.requests_error,
                     requests);
    assert_int_equal(s.requests_running + s.requests_waiting + s.sequences_running, 0);
    assert_int_equal(s.kv_blocks_used, 0);
    assert_int_equal(s.steps, b->fake.steps);
    assert_int_equal(xm_scheduler_unstarted(b->scheduler), 0);
    uint64_t tokens = 0;
    for (int32_t i = 0; i < requests; i++)
        tokens += clients[i].summary.completion_tokens;
    assert_int_equal(s.generation_tokens, tokens);
    xmoe_usage *usage;
    assert_int_equal(xm_usage_snapshot(b->usage, -1, XMOE_PHASE_ALL, 0, &usage, NULL), XMOE_OK);
    assert_int_equal(usage->tokens, b->fake.rows);
    xmoe_usage_free(usage);
}

/* Requests start in the order in which they came: none is ever overtaken. */
static void check_order(int32_t requests)
{
    int64_t latest = 0;
    for (int32_t i = 0; i < requests; i++) {
        if (clients[i].summary.prompt_seconds == 0)
            continue; /* never started */
        int64_t started =
            clients[i].submitted_ns + (int64_t)(clients[i].summary.queue_seconds * 1e9 + 0.5);
        assert_true(started + 10 >= latest);
        latest = started > latest ? started : latest;
    }
}

static void run_load(int32_t requests, int32_t blocks, int32_t max_sequences, int32_t step_tokens,
                     bool prefix_cache, uint64_t seed)
{
    bench *b = create_bench(blocks, max_sequences, step_tokens, prefix_cache);
    int32_t submitted = 0;
    while (submitted < requests || xm_scheduler_has_work(b->scheduler)) {
        uint64_t bits = xm_random_bits(seed, 9, b->fake.steps);
        for (uint64_t n = bits % 4 == 0 ? bits / 4 % 6 : 0; n > 0 && submitted < requests; n--)
            random_client(b, submitted++, seed);
        if (!xm_scheduler_has_work(b->scheduler)) {
            if (submitted < requests)
                random_client(b, submitted++, seed);
        }
        random_cancel(b, submitted, seed);
        step(b);
    }
    for (int32_t i = 0; i < requests; i++)
        check_answer(&clients[i]);
    check_totals(b, requests);
    check_order(requests);
    if (blocks < 10 && max_sequences > 3 && step_tokens > 8)
        assert_true(stats_of(b).preemptions > 0);
    if (prefix_cache)
        assert_true(stats_of(b).prefix_hits > 0);
    else
        assert_true(stats_of(b).prefix_hits == 0 && stats_of(b).kv_blocks_cached == 0);
    free_bench(b);
}

static void thousands_of_requests_in_block_famine(void **state)
{
    (void)state;
    run_load(2000, 8, 6, 32, true, 1);
}

static void every_shape_of_scheduler_serves_its_load(void **state)
{
    (void)state;
    static const int32_t blocks[] = {6, 7, 9, 20, 200}, budgets[] = {1, 7, 64, 256};
    uint64_t seed = 10;
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 4; j++, seed++)
            run_load(150, blocks[i], 1 + (int32_t)(seed % 16), budgets[j], seed % 3 != 0, seed);
}

/* --- single properties ------------------------------------------------------------------------ */

static void decoding_takes_turns_when_the_budget_is_short(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 8, 3, true);
    client *c = new_client(b, 0, 1, 0);
    c->params.ignore_eos = true;
    c->params.max_tokens = 40;
    c->params.choices = MAX_CHOICES;
    submit(b, c);
    step(b);
    for (int32_t n = 0; n < 10; n++)
        step(b);
    for (int32_t i = 0; i < MAX_CHOICES; i++) /* 1, and 10 steps of 3 tokens in turns */
        assert_int_equal(c->told[i].count, 7);
    run_until_idle(b);
    free_bench(b);
}

static void prompts_get_their_share_beside_much_decoding(void **state)
{
    (void)state;
    for (int32_t budget = 1; budget <= 4; budget++) {
        bench *b = create_bench(MAX_BLOCKS, 8, budget, true);
        client *busy = new_client(b, 0, 1, 0), *late = new_client(b, 1, 12, 1);
        busy->params.ignore_eos = true;
        busy->params.max_tokens = 90;
        busy->params.choices = MAX_CHOICES;
        submit(b, busy);
        step(b);
        submit(b, late);
        for (int32_t n = 0; n < (budget == 1 ? 25 : 13) && late->told[0].count == 0; n++)
            step(b);
        assert_int_equal(late->told[0].count, 1); /* at least one token of prompt per step */
        run_until_idle(b);
        free_bench(b);
    }
}

static void choices_share_the_blocks_of_their_prompt(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 8, 256, true);
    client *c = new_client(b, 0, 40, 1);
    c->params.choices = 4;
    c->params.ignore_eos = true;
    submit(b, c);
    step(b);
    assert_int_equal(stats_of(b).sequences_running, 4);
    assert_int_equal(stats_of(b).kv_blocks_used, 2 + 4); /* two full ones, and a copy each */
    assert_int_equal(stats_of(b).prompt_tokens, 40);
    assert_int_equal(b->fake.rows, 40);
    run_until_idle(b);
    assert_int_equal(b->fake.rows, 40 + 4 * 15);
    free_bench(b);
}

static void more_choices_than_sequences_run_in_turn(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 2, 16, true);
    client *c = new_client(b, 0, 20, 1);
    c->params.choices = MAX_CHOICES;
    submit(b, c);
    run_until_idle(b);
    check_answer(c);
    free_bench(b);
}

static void a_prefix_is_computed_once(void **state)
{
    (void)state;
    static const int32_t lengths[] = {15, 16, 17, 32, 33, 64, 70};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bench *b = create_bench(MAX_BLOCKS, 4, 64, true);
        for (int32_t n = 0; n < 4; n++) {
            client *c = new_client(b, n, lengths[i], 5);
            c->params.routing = &b->routing[n == 2]; /* the third has another routing */
            c->params.cache_prompt = n != 3;
            submit(b, c);
            run_until_idle(b);
            check_answer(c);
            int32_t hit = n == 1 ? (lengths[i] - 1) / 16 * 16 : 0;
            assert_int_equal(c->summary.cached_tokens, hit);
        }
        assert_int_equal(stats_of(b).prefix_queries, 3 * lengths[i]);
        free_bench(b);
    }
}

/* What one choice made is a prefix for who goes on from there. */
static void outputs_feed_the_cache_too(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 4, 64, true);
    client *first = new_client(b, 0, 20, 5);
    first->params.choices = 2;
    first->params.max_tokens = 45;
    first->params.ignore_eos = true;
    submit(b, first);
    run_until_idle(b);
    for (int32_t i = 0; i < 2; i++) {
        client *next = new_client(b, 1, 66, 5); /* 20 tokens of the prompt, 45 made, a new one */
        memcpy(next->prompt + 20, first->told[i].tokens, 45 * sizeof(int32_t));
        submit(b, next);
        run_until_idle(b);
        assert_int_equal(next->summary.cached_tokens, 64);
        check_answer(next);
    }
    free_bench(b);
}

/* A request preempted before its prompt was done may find more of it in the cache the second time:
 * the tokens that it never computed itself count as cached, each once. */
static void a_prefix_found_after_preemption_counts_once(void **state)
{
    (void)state;
    bench *b = create_bench(12, 4, 2, true);
    client *oldest = new_client(b, 0, 14, 1), *same = new_client(b, 1, 64, 2);
    oldest->params.max_tokens = 80;
    oldest->params.ignore_eos = true;
    submit(b, oldest);
    submit(b, same);
    while (oldest->told[0].count < 20) /* one token for it, one for the other's prompt */
        step(b);
    client *late = new_client(b, 2, 64, 2);
    late->params.expert_usage = late->params.routed_experts = true;
    submit(b, late);
    run_until_idle(b);
    assert_true(stats_of(b).preemptions > 0);
    assert_int_equal(stats_of(b).prefix_hits, 16);        /* at its first start */
    assert_in_range(late->summary.cached_tokens, 17, 48); /* less what it computed itself */
    check_answer(late);
    free_bench(b);
}

/* A position's phase does not depend on how prompts are cut into chunks. */
static void phases_are_told_apart_in_any_chunks(void **state)
{
    (void)state;
    static const int32_t budgets[] = {1, 3, 64};
    for (size_t i = 0; i < 3; i++) {
        bench *b = create_bench(MAX_BLOCKS, 4, budgets[i], false);
        for (int32_t n = 0; n < 3; n++) {
            client *c = new_client(b, n, 21, (uint64_t)n);
            c->params.ignore_eos = true;
            submit(b, c);
        }
        run_until_idle(b);
        xmoe_usage *prefill, *decode;
        xm_usage_snapshot(b->usage, -1, XMOE_PHASE_PREFILL, 0, &prefill, NULL);
        xm_usage_snapshot(b->usage, -1, XMOE_PHASE_DECODE, 0, &decode, NULL);
        assert_int_equal(prefill->tokens, 3 * 21);
        assert_int_equal(decode->tokens, 3 * 15); /* the last token passes through no layer */
        xmoe_usage_free(prefill);
        xmoe_usage_free(decode);
        free_bench(b);
    }
}

static void a_score_without_tokens_ends_with_length(void **state)
{
    (void)state;
    for (int32_t logprobs = 0; logprobs < 2; logprobs++) {
        bench *b = create_bench(MAX_BLOCKS, 4, 16, true);
        client *c = new_client(b, 0, 50, 1);
        c->params.max_tokens = 0;
        c->params.choices = 2;
        c->params.prompt_logprobs = logprobs;
        submit(b, c);
        run_until_idle(b);
        assert_int_equal(c->ends, 1);
        assert_int_equal(c->finish, XMOE_FINISH_LENGTH);
        assert_int_equal(c->prompt_events, logprobs);
        assert_int_equal(c->told[0].count + c->told[1].count, 0);
        assert_int_equal(b->fake.rows, 50);
        free_bench(b);
    }
}

static void a_full_context_ends_with_length(void **state)
{
    (void)state;
    bench *b = create_bench(6, 4, 16, true); /* exactly one sequence of full context */
    for (int32_t i = 0; i < 3; i++) {
        client *c = new_client(b, i, CONTEXT - 20 * i - 1, (uint64_t)i);
        c->params.max_tokens = 1000;
        c->params.ignore_eos = true;
        submit(b, c);
    }
    run_until_idle(b);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(clients[i].finish, XMOE_FINISH_LENGTH);
        assert_int_equal(clients[i].told[0].count, 20 * i + 1);
    }
    free_bench(b);
}

static void deadlines_end_waiting_and_running_requests(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 1, 4, true);
    for (int32_t i = 0; i < 3; i++) {
        client *c = new_client(b, i, 10, (uint64_t)i);
        c->params.max_tokens = 80;
        c->params.ignore_eos = true;
        c->params.deadline_seconds = i == 2 ? 0 : 0.02;
        submit(b, c);
    }
    run_until_idle(b);
    assert_int_equal(clients[0].finish, XMOE_FINISH_DEADLINE);
    assert_true(clients[0].told[0].count > 0);
    assert_int_equal(clients[1].finish, XMOE_FINISH_DEADLINE);
    assert_int_equal(clients[1].told[0].count, 0);
    assert_int_equal(clients[2].finish, XMOE_FINISH_LENGTH);
    assert_int_equal(stats_of(b).requests_deadline, 2);
    free_bench(b);
}

static void cancelling_all_returns_all_blocks_in_one_step(void **state)
{
    (void)state;
    bench *b = create_bench(20, 8, 32, true);
    for (int32_t i = 0; i < 40; i++) {
        client *c = new_client(b, i, 20 + i, (uint64_t)i);
        c->params.choices = 1 + i % 3;
        submit(b, c);
    }
    for (int32_t i = 0; i < 10; i++)
        step(b);
    assert_true(stats_of(b).kv_blocks_used > 0);
    xm_scheduler_cancel_all(b->scheduler);
    step(b);
    assert_false(xm_scheduler_has_work(b->scheduler));
    assert_int_equal(stats_of(b).kv_blocks_used, 0);
    for (int32_t i = 0; i < 40; i++)
        assert_int_equal(clients[i].ends, 1);
    free_bench(b);
}

static void nan_logits_end_the_request_with_an_error(void **state)
{
    (void)state;
    for (int32_t logprobs = 0; logprobs < 2; logprobs++) {
        bench *b = create_bench(MAX_BLOCKS, 8, 32, true);
        client *c = new_client(b, 0, 40, 1);
        c->params.choices = 3;
        c->params.prompt_logprobs = logprobs;
        submit(b, c);
        b->fake.broken = true;
        run_until_idle(b);
        assert_int_equal(c->finish, XMOE_FINISH_ERROR);
        assert_int_equal(stats_of(b).requests_error, 1);
        free_bench(b);
    }
}

static void slots_show_who_runs_and_who_waits(void **state)
{
    (void)state;
    bench *b = create_bench(MAX_BLOCKS, 2, 8, true);
    for (int32_t i = 0; i < 4; i++) {
        client *c = new_client(b, i, 20, (uint64_t)i);
        c->params.max_tokens = 9;
        submit(b, c);
    }
    step(b);
    xmoe_slot slots[8];
    assert_int_equal(xm_scheduler_slots(b->scheduler, slots, 8), 4);
    assert_int_equal(xm_scheduler_slots(b->scheduler, slots, 3), 3);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(slots[i].request, i + 1);
        assert_int_equal(slots[i].processing, i < 2);
        assert_int_equal(slots[i].prompt_tokens, 20);
        assert_int_equal(slots[i].prompt_done, i == 0 ? 8 : 0);
        assert_int_equal(slots[i].max_tokens, 9);
    }
    assert_int_equal(stats_of(b).requests_running, 2);
    assert_int_equal(stats_of(b).requests_waiting, 2);
    run_until_idle(b);
    free_bench(b);
}

/* --- failure on purpose ----------------------------------------------------------------------- */

/* Lack of memory at any point ends the request with an error, or goes unnoticed; never a leak, a
 * crash or a lost END. */
static void any_failed_allocation_is_survived(void **state)
{
    (void)state;
    int32_t errors = 0;
    for (int64_t n = 0; n < 60; n++) {
        bench *b = create_bench(MAX_BLOCKS, 4, 8, true);
        client *c = new_client(b, 0, 20, 1);
        c->params.choices = 2;
        c->params.expert_usage = c->params.routed_experts = true;
        c->params.max_tokens = 40;
        c->params.ignore_eos = true;
        xm_clock clock = {fake_now, fake_unix, &b->fake};
        xm_memory_fail_after(n);
        xmoe_status status =
            xm_request_create(model, &c->params, &b->routing[0], &clock, &c->request, NULL);
        if (status == XMOE_OK) {
            c->request->id = 1;
            xm_scheduler_submit(b->scheduler, c->request);
            run_until_idle(b);
            assert_int_equal(c->ends, 1);
            errors += c->finish == XMOE_FINISH_ERROR;
        } else {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_null(c->request);
        }
        xm_memory_fail_after(-1);
        free_bench(b);
    }
    assert_true(errors > 3);
}

/* --- set-up ----------------------------------------------------------------------------------- */

/* Only the figures, layers, tokens and kernels of this model are used. */
static int load_model(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "/tmp/xmoe-scheduler-%d.gguf", (int)getpid());
    xmoe_random_model shape = {.context_length = CONTEXT,
                               .embedding_length = 32,
                               .layer_count = 4,
                               .head_count = 2,
                               .feed_forward_length = 32,
                               .expert_count = EXPERTS,
                               .expert_feed_forward_length = 32,
                               .vocabulary_size = VOCABULARY,
                               .moe_every = 2,
                               .router = {.threshold = 0.8F, .min_experts = 1},
                               .router_spread = 2,
                               .tied_output = true,
                               .type = "F32",
                               .seed = 3};
    bool loaded = xmoe_random_model_write(path, &shape, NULL, NULL, NULL) == XMOE_OK &&
                  xmoe_model_load(path, NULL, &model, NULL) == XMOE_OK;
    unlink(path);
    return loaded && model->info.eos_token == 256 ? 0 : -1;
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
        cmocka_unit_test(thousands_of_requests_in_block_famine),
        cmocka_unit_test(every_shape_of_scheduler_serves_its_load),
        cmocka_unit_test(decoding_takes_turns_when_the_budget_is_short),
        cmocka_unit_test(prompts_get_their_share_beside_much_decoding),
        cmocka_unit_test(choices_share_the_blocks_of_their_prompt),
        cmocka_unit_test(more_choices_than_sequences_run_in_turn),
        cmocka_unit_test(a_prefix_is_computed_once),
        cmocka_unit_test(outputs_feed_the_cache_too),
        cmocka_unit_test(a_prefix_found_after_preemption_counts_once),
        cmocka_unit_test(phases_are_told_apart_in_any_chunks),
        cmocka_unit_test(a_score_without_tokens_ends_with_length),
        cmocka_unit_test(a_full_context_ends_with_length),
        cmocka_unit_test(deadlines_end_waiting_and_running_requests),
        cmocka_unit_test(cancelling_all_returns_all_blocks_in_one_step),
        cmocka_unit_test(nan_logits_end_the_request_with_an_error),
        cmocka_unit_test(slots_show_who_runs_and_who_waits),
        cmocka_unit_test(any_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, load_model, free_model);
}
