/* scheduler_fixture.c - see scheduler_fixture.h. */
#include "scheduler_fixture.h"

#include "base/random.h"
#include "model/model.h"
#include "serve/sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

xmoe_model *bench_model;
client bench_clients[MAX_REQUESTS];

/* --- the fake model --------------------------------------------------------------------------- */

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
                              a.count, &params->sampling, choice,        NULL};
        int32_t next;
        assert_int_equal(xm_sample(bench_model->kernels, &scratch, &in, &next), XM_SAMPLE_OK);
        xm_logprobs(bench_model->kernels, logits, VOCABULARY, next, &a.logprobs[a.count], NULL, 0);
        a.tokens[a.count++] = next;
        if (next == 256) {
            a.finish = XMOE_FINISH_STOP;
            break;
        }
    }
    xm_sampler_scratch_free(&scratch);
    return a;
}

/* --- what it was told ------------------------------------------------------------------------- */

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
        assert_int_equal(event->usage != NULL, c->params.expert_usage);
        if (event->usage != NULL) {
            c->usage_tokens = event->usage->tokens;
            for (int32_t i = 0; i < event->usage->layer_count; i++)
                c->usage_activations += event->usage->layers[i].activations;
        }
    }
}

/* --- the bench -------------------------------------------------------------------------------- */

xm_clock bench_clock(bench *b)
{
    return (xm_clock){fake_now, fake_unix, &b->fake};
}

bench *bench_create(int32_t blocks, int32_t max_sequences, int32_t step_tokens, bool prefix_cache)
{
    bench *b = calloc(1, sizeof *b);
    b->fake.step_tokens = step_tokens;
    b->next_id = 1;
    for (int32_t i = 0; i < 2; i++) {
        xmoe_model_default_routing(bench_model, &b->routing[i]);
        b->routing[i].layers[1].threshold = i == 0 ? 0.8F : 0.5F;
    }
    xm_clock clock = bench_clock(b);
    xm_usage_options usage = {.layers = bench_model->moe_layers,
                              .layer_count = MOE_LAYERS,
                              .experts = EXPERTS,
                              .window_seconds = 60,
                              .window_bytes = 1 << 20,
                              .clock = clock};
    assert_int_equal(xm_usage_create(&usage, &b->usage, NULL), XMOE_OK);
    xm_scheduler_options options = {.model = bench_model,
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

void bench_free(bench *b)
{
    assert_int_equal(xm_block_pool_held(xm_scheduler_blocks(b->scheduler)), 0);
    xm_scheduler_free(b->scheduler);
    xm_usage_free(b->usage);
    free(b);
}

client *bench_client(bench *b, int32_t index, int32_t length, uint64_t family)
{
    client *c = &bench_clients[index];
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

void bench_submit(bench *b, client *c)
{
    xm_clock clock = bench_clock(b);
    xmoe_error error;
    assert_int_equal(
        xm_request_create(bench_model, &c->params, &b->routing[0], &clock, &c->request, &error),
        XMOE_OK);
    c->request->id = b->next_id++;
    c->submitted_ns = b->fake.now_ns;
    xm_scheduler_submit(b->scheduler, c->request);
}

void bench_step(bench *b)
{
    const char *what = "";
    xm_scheduler_step(b->scheduler);
    if (!xm_block_pool_check(xm_scheduler_blocks(b->scheduler), &what))
        fail_msg("%s", what);
}

void bench_run(bench *b)
{
    for (int32_t i = 0; xm_scheduler_has_work(b->scheduler); i++) {
        assert_true(i < 1000000);
        bench_step(b);
    }
}

xmoe_engine_stats bench_stats(const bench *b)
{
    xmoe_engine_stats stats;
    xm_scheduler_stats(b->scheduler, &stats);
    return stats;
}

void bench_check_answer(const client *c)
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

/* --- set-up ----------------------------------------------------------------------------------- */

int bench_load_model(void **state)
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
                  xmoe_model_load(path, NULL, &bench_model, NULL) == XMOE_OK;
    unlink(path);
    return loaded && bench_model->info.eos_token == 256 ? 0 : -1;
}

int bench_free_model(void **state)
{
    (void)state;
    xmoe_model_free(bench_model);
    return 0;
}
