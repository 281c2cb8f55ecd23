/*
 * test_scheduler.c - the scheduler's rules one by one, on a simulated clock over a fake model
 * (see scheduler_fixture.h): turns, shares, blocks, prefixes, phases, ends, slots, lack of memory.
 */
#include "scheduler_fixture.h"

#include "base/memory.h"

#include <string.h>

static void decoding_takes_turns_when_the_budget_is_short(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 8, 3, true);
    client *c = bench_client(b, 0, 1, 0);
    c->params.ignore_eos = true;
    c->params.max_tokens = 40;
    c->params.choices = MAX_CHOICES;
    bench_submit(b, c);
    bench_step(b);
    for (int32_t n = 0; n < 10; n++)
        bench_step(b);
    for (int32_t i = 0; i < MAX_CHOICES; i++) /* 1, and 10 steps of 3 tokens in turns */
        assert_int_equal(c->told[i].count, 7);
    bench_run(b);
    bench_free(b);
}

static void prompts_get_their_share_beside_much_decoding(void **state)
{
    (void)state;
    for (int32_t budget = 1; budget <= 4; budget++) {
        bench *b = bench_create(MAX_BLOCKS, 8, budget, true);
        client *busy = bench_client(b, 0, 1, 0), *late = bench_client(b, 1, 12, 1);
        busy->params.ignore_eos = true;
        busy->params.max_tokens = 90;
        busy->params.choices = MAX_CHOICES;
        bench_submit(b, busy);
        bench_step(b);
        bench_submit(b, late);
        for (int32_t n = 0; n < (budget == 1 ? 25 : 13) && late->told[0].count == 0; n++)
            bench_step(b);
        assert_int_equal(late->told[0].count, 1); /* at least one token of prompt per step */
        bench_run(b);
        bench_free(b);
    }
}

static void choices_share_the_blocks_of_their_prompt(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 8, 256, true);
    client *c = bench_client(b, 0, 40, 1);
    c->params.choices = 4;
    c->params.ignore_eos = true;
    bench_submit(b, c);
    bench_step(b);
    assert_int_equal(bench_stats(b).sequences_running, 4);
    assert_int_equal(bench_stats(b).kv_blocks_used, 2 + 4); /* two full ones, and a copy each */
    assert_int_equal(bench_stats(b).prompt_tokens, 40);
    assert_int_equal(b->fake.rows, 40);
    bench_run(b);
    assert_int_equal(b->fake.rows, 40 + 4 * 15);
    bench_free(b);
}

static void more_choices_than_sequences_run_in_turn(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 2, 16, true);
    client *c = bench_client(b, 0, 20, 1);
    c->params.choices = MAX_CHOICES;
    bench_submit(b, c);
    bench_run(b);
    bench_check_answer(c);
    bench_free(b);
}

static void a_prefix_is_computed_once(void **state)
{
    (void)state;
    static const int32_t lengths[] = {15, 16, 17, 32, 33, 64, 70};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bench *b = bench_create(MAX_BLOCKS, 4, 64, true);
        for (int32_t n = 0; n < 4; n++) {
            client *c = bench_client(b, n, lengths[i], 5);
            c->params.routing = &b->routing[n == 2]; /* the third has another routing */
            c->params.cache_prompt = n != 3;
            bench_submit(b, c);
            bench_run(b);
            bench_check_answer(c);
            int32_t hit = n == 1 ? (lengths[i] - 1) / 16 * 16 : 0;
            assert_int_equal(c->summary.cached_tokens, hit);
        }
        assert_int_equal(bench_stats(b).prefix_queries, 3 * lengths[i]);
        bench_free(b);
    }
}

/* Those that come while the first one's prompt is computed go on behind what is there. */
static void a_common_beginning_is_computed_once_for_all(void **state)
{
    (void)state;
    static const int32_t cached[] = {0, 32, 32, 48, 48, 48, 48, 48};
    bench *b = bench_create(MAX_BLOCKS, 8, 40, true);
    for (int32_t n = 0; n < 8; n++) {
        client *c = bench_client(b, n, 50, 5);
        c->prompt[49] = n; /* different ends */
        c->params.expert_usage = c->params.routed_experts = true;
        bench_submit(b, c);
    }
    bench_run(b);
    for (int32_t n = 0; n < 8; n++) {
        bench_check_answer(&bench_clients[n]);
        assert_int_equal(bench_clients[n].summary.cached_tokens, cached[n]);
    }
    assert_int_equal(bench_stats(b).prefix_hits, 2 * 32 + 5 * 48);
    assert_int_equal(bench_stats(b).prefix_queries, 8 * 50);
    bench_free(b);
}

/* What one choice made is a prefix for who goes on from there. */
static void outputs_feed_the_cache_too(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 4, 64, true);
    client *first = bench_client(b, 0, 20, 5);
    first->params.choices = 2;
    first->params.max_tokens = 45;
    first->params.ignore_eos = true;
    bench_submit(b, first);
    bench_run(b);
    for (int32_t i = 0; i < 2; i++) {
        client *next = bench_client(b, 1, 66, 5); /* 20 tokens of the prompt, 45 made, a new one */
        memcpy(next->prompt + 20, first->told[i].tokens, 45 * sizeof(int32_t));
        bench_submit(b, next);
        bench_run(b);
        assert_int_equal(next->summary.cached_tokens, 64);
        bench_check_answer(next);
    }
    bench_free(b);
}

/* A request preempted before its prompt was done may find more of it in the cache the second time:
 * the tokens that it never computed itself count as cached, each once. */
static void a_prefix_found_after_preemption_counts_once(void **state)
{
    (void)state;
    bench *b = bench_create(12, 4, 2, true);
    client *oldest = bench_client(b, 0, 14, 1), *same = bench_client(b, 1, 64, 2);
    oldest->params.max_tokens = 80;
    oldest->params.ignore_eos = true;
    bench_submit(b, oldest);
    bench_submit(b, same);
    while (oldest->told[0].count < 20) /* one token for it, one for the other's prompt */
        bench_step(b);
    client *late = bench_client(b, 2, 64, 2);
    late->params.expert_usage = late->params.routed_experts = true;
    bench_submit(b, late);
    bench_run(b);
    assert_true(bench_stats(b).preemptions > 0);
    assert_int_equal(bench_stats(b).prefix_hits, late->summary.cached_tokens);
    assert_in_range(late->summary.cached_tokens, 17, 48); /* less what it computed itself */
    bench_check_answer(late);
    bench_free(b);
}

/* A position's phase does not depend on how prompts are cut into chunks. */
static void phases_are_told_apart_in_any_chunks(void **state)
{
    (void)state;
    static const int32_t budgets[] = {1, 3, 64};
    for (size_t i = 0; i < 3; i++) {
        bench *b = bench_create(MAX_BLOCKS, 4, budgets[i], false);
        for (int32_t n = 0; n < 3; n++) {
            client *c = bench_client(b, n, 21, (uint64_t)n);
            c->params.ignore_eos = true;
            bench_submit(b, c);
        }
        bench_run(b);
        xmoe_usage *prefill, *decode;
        xm_usage_snapshot(b->usage, -1, XMOE_PHASE_PREFILL, 0, &prefill, NULL);
        xm_usage_snapshot(b->usage, -1, XMOE_PHASE_DECODE, 0, &decode, NULL);
        assert_int_equal(prefill->tokens, 3 * 21);
        assert_int_equal(decode->tokens, 3 * 15); /* the last token passes through no layer */
        xmoe_usage_free(prefill);
        xmoe_usage_free(decode);
        bench_free(b);
    }
}

static void a_score_without_tokens_ends_with_length(void **state)
{
    (void)state;
    for (int32_t logprobs = 0; logprobs < 2; logprobs++) {
        bench *b = bench_create(MAX_BLOCKS, 4, 16, true);
        client *c = bench_client(b, 0, 50, 1);
        c->params.max_tokens = 0;
        c->params.choices = 2;
        c->params.prompt_logprobs = logprobs;
        bench_submit(b, c);
        bench_run(b);
        assert_int_equal(c->ends, 1);
        assert_int_equal(c->finish, XMOE_FINISH_LENGTH);
        assert_int_equal(c->prompt_events, logprobs);
        assert_int_equal(c->told[0].count + c->told[1].count, 0);
        assert_int_equal(b->fake.rows, 50);
        bench_free(b);
    }
}

static void a_full_context_ends_with_length(void **state)
{
    (void)state;
    bench *b = bench_create(6, 4, 16, true); /* exactly one sequence of full context */
    for (int32_t i = 0; i < 3; i++) {
        client *c = bench_client(b, i, CONTEXT - 20 * i - 1, (uint64_t)i);
        c->params.max_tokens = 1000;
        c->params.ignore_eos = true;
        bench_submit(b, c);
    }
    bench_run(b);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(bench_clients[i].finish, XMOE_FINISH_LENGTH);
        assert_int_equal(bench_clients[i].told[0].count, 20 * i + 1);
    }
    bench_free(b);
}

static void deadlines_end_waiting_and_running_requests(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 1, 4, true);
    for (int32_t i = 0; i < 3; i++) {
        client *c = bench_client(b, i, 10, (uint64_t)i);
        c->params.max_tokens = 80;
        c->params.ignore_eos = true;
        c->params.deadline_seconds = i == 2 ? 0 : 0.02;
        bench_submit(b, c);
    }
    bench_run(b);
    assert_int_equal(bench_clients[0].finish, XMOE_FINISH_DEADLINE);
    assert_true(bench_clients[0].told[0].count > 0);
    assert_int_equal(bench_clients[1].finish, XMOE_FINISH_DEADLINE);
    assert_int_equal(bench_clients[1].told[0].count, 0);
    assert_int_equal(bench_clients[2].finish, XMOE_FINISH_LENGTH);
    assert_int_equal(bench_stats(b).requests_deadline, 2);
    bench_free(b);
}

static void cancelling_all_returns_all_blocks_in_one_step(void **state)
{
    (void)state;
    bench *b = bench_create(20, 8, 32, true);
    for (int32_t i = 0; i < 40; i++) {
        client *c = bench_client(b, i, 20 + i, (uint64_t)i);
        c->params.choices = 1 + i % 3;
        bench_submit(b, c);
    }
    for (int32_t i = 0; i < 10; i++)
        bench_step(b);
    assert_true(bench_stats(b).kv_blocks_used > 0);
    xm_scheduler_cancel_all(b->scheduler);
    bench_step(b);
    assert_false(xm_scheduler_has_work(b->scheduler));
    assert_int_equal(bench_stats(b).kv_blocks_used, 0);
    for (int32_t i = 0; i < 40; i++)
        assert_int_equal(bench_clients[i].ends, 1);
    bench_free(b);
}

static void nan_logits_end_the_request_with_an_error(void **state)
{
    (void)state;
    for (int32_t logprobs = 0; logprobs < 2; logprobs++) {
        bench *b = bench_create(MAX_BLOCKS, 8, 32, true);
        client *c = bench_client(b, 0, 40, 1);
        c->params.choices = 3;
        c->params.prompt_logprobs = logprobs;
        bench_submit(b, c);
        b->fake.broken = true;
        bench_run(b);
        assert_int_equal(c->finish, XMOE_FINISH_ERROR);
        assert_int_equal(bench_stats(b).requests_error, 1);
        bench_free(b);
    }
}

static void slots_show_who_runs_and_who_waits(void **state)
{
    (void)state;
    bench *b = bench_create(MAX_BLOCKS, 2, 8, true);
    for (int32_t i = 0; i < 4; i++) {
        client *c = bench_client(b, i, 20, (uint64_t)i);
        c->params.max_tokens = 9;
        bench_submit(b, c);
    }
    bench_step(b);
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
    assert_int_equal(bench_stats(b).requests_running, 2);
    assert_int_equal(bench_stats(b).requests_waiting, 2);
    bench_run(b);
    bench_free(b);
}

/* --- failure on purpose ----------------------------------------------------------------------- */

/* Lack of memory at any point ends the request with an error, or goes unnoticed; never a leak, a
 * crash or a lost END. */
static void any_failed_allocation_is_survived(void **state)
{
    (void)state;
    int32_t errors = 0;
    for (int64_t n = 0; n < 60; n++) {
        bench *b = bench_create(MAX_BLOCKS, 4, 8, true);
        client *c = bench_client(b, 0, 20, 1);
        c->params.choices = 2;
        c->params.expert_usage = c->params.routed_experts = true;
        c->params.max_tokens = 40;
        c->params.ignore_eos = true;
        xm_clock clock = bench_clock(b);
        xm_memory_fail_after(n);
        xmoe_status status =
            xm_request_create(bench_model, &c->params, &b->routing[0], &clock, &c->request, NULL);
        if (status == XMOE_OK) {
            c->request->id = 1;
            xm_scheduler_submit(b->scheduler, c->request);
            bench_run(b);
            assert_int_equal(c->ends, 1);
            errors += c->finish == XMOE_FINISH_ERROR;
        } else {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_null(c->request);
        }
        xm_memory_fail_after(-1);
        bench_free(b);
    }
    assert_true(errors > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_takes_turns_when_the_budget_is_short),
        cmocka_unit_test(prompts_get_their_share_beside_much_decoding),
        cmocka_unit_test(choices_share_the_blocks_of_their_prompt),
        cmocka_unit_test(more_choices_than_sequences_run_in_turn),
        cmocka_unit_test(a_prefix_is_computed_once),
        cmocka_unit_test(a_common_beginning_is_computed_once_for_all),
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
    return cmocka_run_group_tests(tests, bench_load_model, bench_free_model);
}
