/*
 * test_scheduler_load.c - the scheduler under thousands of random requests of every kind, with
 * cancellations, deadlines and too few blocks: each ends once, with the answer it would get alone;
 * none is overtaken, nothing is lost. See scheduler_fixture.h for the fake model below it.
 */
#include "scheduler_fixture.h"

#include "base/random.h"

static void random_client(bench *b, int32_t index, uint64_t seed)
{
    uint64_t bits = xm_random_bits(seed, 1, (uint64_t)index);
    uint64_t more = xm_random_bits(seed, 2, (uint64_t)index);
    client *c = bench_client(b, index, 1 + (int32_t)(bits % 70), bits / 128 % 3);
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
    bench_submit(b, c);
}

/* Cancels a random live client now and then; it must have ended one step later. */
static void random_cancel(bench *b, int32_t submitted, uint64_t seed)
{
    uint64_t bits = xm_random_bits(seed, 4, b->fake.steps + b->next_id);
    if (submitted == 0 || bits % 8 != 0)
        return;
    client *c = &bench_clients[(bits >> 8) % (uint64_t)submitted];
    if (c->request == NULL)
        return;
    atomic_store(&c->request->cancelled, true);
    bench_step(b);
    assert_int_equal(c->ends, 1);
}

static void check_totals(const bench *b, int32_t requests)
{
    xmoe_engine_stats s = bench_stats(b);
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
        tokens += bench_clients[i].summary.completion_tokens;
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
        if (bench_clients[i].summary.prompt_seconds == 0)
            continue; /* never started */
        int64_t started = bench_clients[i].submitted_ns +
                          (int64_t)(bench_clients[i].summary.queue_seconds * 1e9 + 0.5);
        assert_true(started + 10 >= latest);
        latest = started > latest ? started : latest;
    }
}

static void run_load(int32_t requests, int32_t blocks, int32_t max_sequences, int32_t step_tokens,
                     bool prefix_cache, uint64_t seed)
{
    bench *b = bench_create(blocks, max_sequences, step_tokens, prefix_cache);
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
        bench_step(b);
    }
    for (int32_t i = 0; i < requests; i++)
        bench_check_answer(&bench_clients[i]);
    check_totals(b, requests);
    check_order(requests);
    if (blocks < 10 && max_sequences > 3 && step_tokens > 8)
        assert_true(bench_stats(b).preemptions > 0);
    if (prefix_cache)
        assert_true(bench_stats(b).prefix_hits > 0);
    else
        assert_true(bench_stats(b).prefix_hits == 0 && bench_stats(b).kv_blocks_cached == 0);
    bench_free(b);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousands_of_requests_in_block_famine),
        cmocka_unit_test(every_shape_of_scheduler_serves_its_load),
    };
    return cmocka_run_group_tests(tests, bench_load_model, bench_free_model);
}
