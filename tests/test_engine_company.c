/*
 * test_engine_company.c - the same answer to the bit in any company and configuration: batch,
 * budget, threads, prefix cache, famine, number of choices, generation or score.
 */
#include "engine_fixture.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where neither took its prompt from the cache, experts must be equal too. */
static void assert_same(const call *a, const call *b)
{
    bool computed = a->summary.cached_tokens + b->summary.cached_tokens == 0;
    for (int32_t i = 0; i < a->params.choices; i++) {
        const told_choice *x = &a->choices[i], *y = &b->choices[i];
        call_assert_same_choice(x, y);
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
    call *c = call_new(n);
    c->params.choices = n % 6 == 0 ? 3 : 1;
    c->params.prompt_logprobs = n % 5 == 2;
    return c;
}

static void run_each_alone(void)
{
    xmoe_engine_options options = engine_small_options();
    options.prefix_cache = false;
    xmoe_engine *engine = engine_create(&options);
    for (int32_t i = 0; i < COMPANY; i++) {
        alone[i] = company_call(i);
        call_run(engine, alone[i]);
    }
    xmoe_engine_free(engine);
}

/* All calls at once in one engine, twice, so that the second round finds prefixes. */
static xmoe_engine_stats run_in_company(const xmoe_engine_options *options)
{
    xmoe_engine *engine = engine_create(options);
    for (int32_t round = 0; round < 2; round++) {
        call *calls[COMPANY];
        for (int32_t i = 0; i < COMPANY; i++)
            call_submit(engine, calls[i] = company_call(i));
        for (int32_t i = 0; i < COMPANY; i++) {
            call_wait(calls[i]);
            assert_same(alone[i], calls[i]);
            free(calls[i]);
        }
    }
    xmoe_engine_stats stats = engine_stats(engine);
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
        xmoe_engine_options options = engine_small_options();
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
        xmoe_engine_options options = engine_small_options();
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
    xmoe_engine *engine = engine_create_small();
    call *five = call_new(3), *two = call_new(3);
    five->params.choices = 5;
    two->params.choices = 2;
    call_run(engine, five);
    call_run(engine, two);
    int32_t differ = 0;
    for (int32_t i = 0; i < 2; i++)
        call_assert_same_choice(&five->choices[i], &two->choices[i]);
    for (int32_t i = 1; i < 5; i++)
        differ += memcmp(five->choices[0].tokens, five->choices[i].tokens,
                         sizeof five->choices[0].tokens) != 0;
    assert_true(differ > 0);
    assert_int_equal(five->summary.completion_tokens, 5 * five->choices[0].count);
    free(five);
    free(two);
    xmoe_engine_free(engine);
}

/* The logprobs that a generation reported are those that a scoring of prompt and output gives. */
static void scores_equal_what_generation_said(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    for (int32_t n = 0; n < 6; n++) {
        call *made = call_new(n), *scored = call_new(n);
        call_run(engine, made);
        int32_t length = (int32_t)made->params.prompt_length, count = made->choices[0].count;
        memcpy(scored->prompt + length, made->choices[0].tokens, (size_t)count * sizeof(int32_t));
        scored->params.prompt_length += (size_t)count;
        scored->params.max_tokens = 0;
        scored->params.prompt_logprobs = true;
        call_run(engine, scored);
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

static call *routed_call(xmoe_router_type type)
{
    call *c = call_new(1);
    c->params.prompt_length = 50;
    for (int32_t i = 0; i < c->routing.layer_count; i++)
        c->routing.layers[i] = (xmoe_router){.type = type, .threshold = 1, .min_experts = 1};
    return c;
}

/* A threshold of 1 is all experts, but for models trained with top-k it is their k: the prefix of
 * one is none of the other's, also where the file makes a threshold the default. */
static void prefixes_are_of_one_routing(void **state)
{
    (void)state;
    int32_t kept[MOE_LAYERS];
    for (int32_t i = 0; i < MOE_LAYERS; i++) {
        xm_gate_rules *rules = &engine_model->layers[engine_model->moe_layers[i]].moe.rules;
        kept[i] = rules->trained_top_k;
        rules->trained_top_k = 2;
    }
    xmoe_engine *engine = engine_create_small();
    call *first = routed_call(XMOE_ROUTER_THRESHOLD), *second = routed_call(XMOE_ROUTER_DENSE),
         *third = routed_call(XMOE_ROUTER_THRESHOLD);
    call_run(engine, first);
    call_run(engine, second);
    call_run(engine, third);
    assert_true(first->summary.mean_active_experts == 2);
    assert_true(second->summary.mean_active_experts == EXPERTS);
    assert_int_equal(second->summary.cached_tokens, 0);
    assert_true(third->summary.cached_tokens > 0);
    call_assert_same_choice(&first->choices[0], &third->choices[0]);
    free(first);
    free(second);
    free(third);
    xmoe_engine_free(engine);
    for (int32_t i = 0; i < MOE_LAYERS; i++)
        engine_model->layers[engine_model->moe_layers[i]].moe.rules.trained_top_k = kept[i];
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_the_same_in_any_company),
        cmocka_unit_test(answers_are_the_same_in_famine),
        cmocka_unit_test(a_choice_does_not_depend_on_their_number),
        cmocka_unit_test(scores_equal_what_generation_said),
        cmocka_unit_test(prefixes_are_of_one_routing),
    };
    return cmocka_run_group_tests(tests, engine_load_model, engine_free_model);
}
