/*
 * test_router.c - the choice of experts: the rules on rows worked out by hand, all rules against a
 * plain sort on random rows, and rows with ties, zeros and NaN.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "moe/router.h"

#include <math.h>
#include <string.h>

static const xm_gate_rules plain_rules = {.weight_scale = 1.0f};

static const float by_hand[5] = {0.125f, 0.5f, 0.0625f, 0.25f, 0.0625f};

/* Asserts that by_hand gives exactly these experts, in this order. */
static void assert_chosen(const xmoe_router *router, int32_t count, const uint16_t *expected)
{
    uint16_t chosen[5];
    float weights[5];
    assert_int_equal(xm_route(router, &plain_rules, by_hand, 5, chosen, weights), count);
    assert_memory_equal(chosen, expected, (size_t)count * sizeof *chosen);
    for (int32_t i = 0; i < count; i++)
        assert_float_equal(weights[i], by_hand[chosen[i]], 0.0);
}

static const uint16_t in_order[5] = {1, 3, 0, 2, 4}; /* by_hand descending, 2 before 4 */

static void threshold_takes_until_reached(void **state)
{
    (void)state;
    static const struct {
        float threshold;
        int32_t count;
    } cases[] = {{0.001f, 1}, {0.5f, 1},   {0.5000001f, 2}, {0.75f, 2},  {0.8f, 3},
                 {0.875f, 3}, {0.876f, 4}, {0.9375f, 4},    {0.938f, 5}, {0.9999f, 5},
                 {1.0f, 5},   {1.5f, 5},   {INFINITY, 5},   {0.0f, 1},   {-1.0f, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const xmoe_router router = {
            .type = XMOE_ROUTER_THRESHOLD, .threshold = cases[i].threshold, .min_experts = 1};
        assert_chosen(&router, cases[i].count, in_order);
    }
}

static void top_k_takes_k(void **state)
{
    (void)state;
    for (int32_t k = 1; k <= 8; k++) {
        const xmoe_router router = {.type = XMOE_ROUTER_TOP_K, .top_k = k, .min_experts = 1};
        assert_chosen(&router, k < 5 ? k : 5, in_order);
    }
}

static void dense_takes_all_in_order(void **state)
{
    (void)state;
    const xmoe_router router = {.type = XMOE_ROUTER_DENSE, .min_experts = 1};
    assert_chosen(&router, 5, in_order);
}

static void floor_then_cap_apply_to_every_type(void **state)
{
    (void)state;
    static const struct {
        xmoe_router router;
        int32_t count;
    } cases[] = {
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.1f, .min_experts = 3}, 3},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.8f, .min_experts = 2}, 3},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.9f, .min_experts = 1, .max_experts = 2}, 2},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f, .min_experts = 1, .max_experts = 4}, 4},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.1f, .min_experts = 4, .max_experts = 2}, 2},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.1f, .min_experts = 99}, 5},
        {{.type = XMOE_ROUTER_TOP_K, .top_k = 1, .min_experts = 2}, 2},
        {{.type = XMOE_ROUTER_TOP_K, .top_k = 4, .min_experts = 1, .max_experts = 3}, 3},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 1, .max_experts = 1}, 1},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 1, .max_experts = 9}, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_chosen(&cases[i].router, cases[i].count, in_order);
}

static void weights_are_normalised_on_request(void **state)
{
    (void)state;
    const xmoe_router router = {
        .type = XMOE_ROUTER_TOP_K, .top_k = 2, .min_experts = 1, .normalize = true};
    uint16_t chosen[5];
    float weights[5];
    assert_int_equal(xm_route(&router, &plain_rules, by_hand, 5, chosen, weights), 2);
    assert_float_equal(weights[0], 0.5f / 0.75f, 0.0);
    assert_float_equal(weights[1], 0.25f / 0.75f, 0.0);
}

static void one_expert_is_enough(void **state)
{
    (void)state;
    const float p = 1.0f;
    for (int type = XMOE_ROUTER_THRESHOLD; type <= XMOE_ROUTER_SIGMOID; type++) {
        const xmoe_router router = {
            .type = (xmoe_router_type)type, .threshold = 0.5f, .top_k = 1, .min_experts = 1};
        uint16_t chosen = 9;
        float weight = 0.0f;
        assert_int_equal(xm_route(&router, &plain_rules, &p, 1, &chosen, &weight), 1);
        assert_int_equal(chosen, 0);
        assert_float_equal(weight, 1.0, 0.0);
    }
}

static void sigmoid_takes_what_is_above(void **state)
{
    (void)state;
    static const struct {
        xmoe_router router;
        int32_t count;
    } cases[] = {
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.06f, .min_experts = 1}, 5},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.0625f, .min_experts = 1}, 3}, /* strict */
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.2f, .min_experts = 1}, 2},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.5f, .min_experts = 1}, 1},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 1.0f, .min_experts = 1}, 1},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.5f, .min_experts = 3}, 3},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.01f, .min_experts = 1, .max_experts = 4}, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_chosen(&cases[i].router, cases[i].count, in_order);
}

/* Scores 0.9, 0.6, 0.3, 0.2: a threshold sees 0.45, 0.3, 0.15, 0.1, and all are "all". */
static void thresholds_divide_sigmoids_by_their_sum(void **state)
{
    (void)state;
    static const float scores[4] = {0.3f, 0.9f, 0.2f, 0.6f};
    static const uint16_t order[4] = {1, 3, 0, 2};
    static const float thresholds[] = {0.44f, 0.46f, 0.74f, 0.76f, 0.89f, 0.91f, 1.0f};
    static const int32_t counts[] = {1, 2, 2, 3, 3, 4, 4};
    const xm_gate_rules rules = {.score = XM_SCORE_SIGMOID, .weight_scale = 1.0f};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const xmoe_router router = {
            .type = XMOE_ROUTER_THRESHOLD, .threshold = thresholds[i], .min_experts = 1};
        uint16_t chosen[4];
        float weights[4];
        assert_int_equal(xm_route(&router, &rules, scores, 4, chosen, weights), counts[i]);
        assert_memory_equal(chosen, order, (size_t)counts[i] * sizeof *chosen);
        for (int32_t r = 0; r < counts[i]; r++)
            assert_float_equal(weights[r], scores[order[r]], 0.0);
    }
}

/* Zeros of either sign are equal, so lower experts go first; NaN goes last. */
static void odd_values_have_their_place(void **state)
{
    (void)state;
    const float p[7] = {NAN, -0.0f, 0.0f, 1.0f, -NAN, -0.0f, 1e-45f};
    const uint16_t expected[7] = {3, 6, 1, 2, 5, 0, 4};
    const xmoe_router dense = {.type = XMOE_ROUTER_DENSE, .min_experts = 1};
    uint16_t chosen[7];
    float weights[7];
    assert_int_equal(xm_route(&dense, &plain_rules, p, 7, chosen, weights), 7);
    assert_memory_equal(chosen, expected, sizeof expected);
}

static void a_row_of_nan_still_gets_an_expert(void **state)
{
    (void)state;
    const float p[3] = {NAN, NAN, NAN};
    const xmoe_router router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.9f, .min_experts = 1};
    uint16_t chosen[3];
    float weights[3];
    assert_int_equal(xm_route(&router, &plain_rules, p, 3, chosen, weights), 1);
    assert_int_equal(chosen[0], 0);
}

/* --- against a plain sort --------------------------------------------------------------------- */

/* What ranks an expert. */
static float key_of(const xm_gate_rules *rules, const float *p, int32_t e)
{
    return rules->selection_bias != NULL ? p[e] + rules->selection_bias[e] : p[e];
}

/* What a group is worth: its best key, or the sum of its two best. */
static float worth_of(const xm_gate_rules *rules, const float *p, int32_t first, int32_t size)
{
    float best = -INFINITY, sum = -INFINITY;
    for (int32_t i = first; i < first + size; i++) {
        float key = key_of(rules, p, i);
        best = key > best ? key : best;
        for (int32_t j = i + 1; j < first + size; j++)
            sum = key + key_of(rules, p, j) > sum ? key + key_of(rules, p, j) : sum;
    }
    return rules->group_by_top_two ? sum : best;
}

/* True if fewer than groups_used groups are better: of equal worth, the one before is. */
static bool is_allowed(const xm_gate_rules *rules, const float *p, int32_t experts, int32_t e)
{
    if (rules->groups == 0)
        return true;
    int32_t size = experts / rules->groups, own = e / size, better = 0;
    float worth = worth_of(rules, p, own * size, size);
    for (int32_t g = 0; g < rules->groups; g++) {
        float other = worth_of(rules, p, g * size, size);
        better += other > worth || (other == worth && g < own);
    }
    return better < rules->groups_used;
}

static int32_t sort_allowed(const xm_gate_rules *rules, const float *p, int32_t experts,
                            uint16_t *order)
{
    int32_t count = 0;
    for (int32_t i = 0; i < experts; i++) { /* insertion sort: stable */
        if (!is_allowed(rules, p, experts, i))
            continue;
        int32_t at = count++;
        for (; at > 0 && key_of(rules, p, order[at - 1]) < key_of(rules, p, i); at--)
            order[at] = order[at - 1];
        order[at] = (uint16_t)i;
    }
    return count;
}

static int32_t count_by_threshold(float threshold, int32_t ranks, float total, const float *p,
                                  const uint16_t *order)
{
    float before = 0.0f;
    int32_t count = 0;
    if (threshold >= 1.0f)
        return ranks;
    for (; count < ranks && before < threshold; count++)
        before += total == 0.0f ? p[order[count]] : p[order[count]] / total;
    return count;
}

static int32_t route_by_sorting(const xmoe_router *router, const xm_gate_rules *rules,
                                const float *p, int32_t experts, uint16_t *order, float *weights)
{
    int32_t allowed = sort_allowed(rules, p, experts, order), count = allowed;
    if (router->type == XMOE_ROUTER_TOP_K)
        count = router->top_k < allowed ? router->top_k : allowed;
    if (router->type == XMOE_ROUTER_SIGMOID)
        for (count = 1; count < allowed && p[order[count]] > router->threshold;)
            count++;
    bool sigmoid = rules->score == XM_SCORE_SIGMOID;
    if (router->type == XMOE_ROUTER_THRESHOLD && rules->trained_top_k == 0 && !sigmoid)
        count = count_by_threshold(router->threshold, allowed, 0.0f, p, order);
    if (router->type == XMOE_ROUTER_THRESHOLD && (rules->trained_top_k > 0 || sigmoid)) {
        int32_t ranks = rules->trained_top_k > 0 ? rules->trained_top_k : allowed;
        float total = 0.0f;
        if (router->max_experts > ranks)
            ranks = router->max_experts;
        if (ranks > allowed)
            ranks = allowed;
        for (int32_t i = 0; i < ranks; i++)
            total += p[order[i]];
        count = count_by_threshold(router->threshold, ranks, total, p, order);
    }
    int32_t floor = router->min_experts < allowed ? router->min_experts : allowed;
    if (count < floor)
        count = floor;
    if (router->max_experts > 0 && count > router->max_experts)
        count = router->max_experts;
    float sum = 0.0f;
    for (int32_t i = 0; i < count; i++)
        sum += p[order[i]];
    sum += rules->normalize_epsilon;
    for (int32_t i = 0; i < count; i++)
        weights[i] = (router->normalize ? p[order[i]] / sum : p[order[i]]) * rules->weight_scale;
    return count;
}

/* Softmax of random logits; few distinct values where `ties` is set. */
static void random_row(uint64_t seed, int32_t experts, bool ties, float *p)
{
    float sum = 0.0f;
    for (int32_t e = 0; e < experts; e++) {
        double z = 2.0 * xm_random_normal(seed, 1, (uint64_t)e);
        p[e] = (float)exp(ties ? floor(z) : z);
        sum += p[e];
    }
    for (int32_t e = 0; e < experts; e++)
        p[e] /= sum;
}

static xmoe_router random_router(uint64_t seed, int32_t experts)
{
    uint64_t bits = xm_random_bits(seed, 2, 0);
    uint64_t most = (uint64_t)experts;
    xmoe_router router = {
        .type = (xmoe_router_type)(bits % 4),
        .threshold = (float)xm_random_uniform(seed, 2, 1),
        .top_k = 1 + (int32_t)((bits >> 8) % most),
        .min_experts = 1,
        .normalize = (bits >> 24) % 2 != 0,
    };
    if ((bits >> 25) % 4 == 0)
        router.min_experts = 1 + (int32_t)((bits >> 32) % most);
    if ((bits >> 27) % 4 == 0)
        router.max_experts = 1 + (int32_t)((bits >> 40) % most);
    if (router.threshold == 0.0f || (bits >> 29) % 8 == 0)
        router.threshold = 1.0f;
    return router;
}

/* bias: room for the selection bias. */
static xm_gate_rules random_rules(uint64_t seed, int32_t experts, float *bias)
{
    uint64_t bits = xm_random_bits(seed, 3, 0);
    xm_gate_rules rules = {.weight_scale = bits % 2 != 0 ? 2.5f : 1.0f};
    if ((bits >> 1) % 2 != 0)
        rules.trained_top_k = 1 + (int32_t)((bits >> 8) % (uint64_t)experts);
    if ((bits >> 6) % 2 != 0)
        rules.score = XM_SCORE_SIGMOID;
    if ((bits >> 2) % 2 != 0)
        rules.normalize_epsilon = 1e-20f;
    for (int32_t e = 0; e < experts; e++)
        bias[e] = 0.2f * (float)xm_random_normal(seed, 4, (uint64_t)e);
    if ((bits >> 3) % 2 != 0)
        rules.selection_bias = bias;
    if ((bits >> 4) % 2 != 0 && experts % 8 == 0) {
        rules.groups = 4;
        rules.groups_used = 1 + (int32_t)((bits >> 32) % 4);
        rules.group_by_top_two = (bits >> 5) % 2 != 0;
    }
    return rules;
}

static void equals_a_plain_sort(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 2, 3, 7, 8, 64, 100, 255, 1024};
    static float p[XM_MAX_EXPERTS], weights[XM_MAX_EXPERTS], expected_weights[XM_MAX_EXPERTS];
    static float bias[XM_MAX_EXPERTS];
    static uint16_t chosen[XM_MAX_EXPERTS], expected[XM_MAX_EXPERTS];
    for (uint64_t seed = 0; seed < 6000; seed++) {
        int32_t experts = sizes[seed % 9];
        xmoe_router router = random_router(seed, experts);
        xm_gate_rules rules = seed % 3 == 0 ? plain_rules : random_rules(seed, experts, bias);
        if (router.type == XMOE_ROUTER_SIGMOID)
            rules.selection_bias = NULL;    /* ranks and scores have one order */
        if (experts > 200 && seed % 4 != 0) /* the plain sort is slow */
            continue;
        if (experts == 1024)
            rules.groups = 0; /* and plain groups slower */
        random_row(seed, experts, seed % 5 == 0, p);
        int32_t count = route_by_sorting(&router, &rules, p, experts, expected, expected_weights);
        assert_int_equal(xm_route(&router, &rules, p, experts, chosen, weights), count);
        assert_memory_equal(chosen, expected, (size_t)count * sizeof *chosen);
        assert_memory_equal(weights, expected_weights, (size_t)count * sizeof *weights);
    }
}

/* Scores of by_hand in order: 0.5, 0.25, 0.125, 0.0625, 0.0625. */
static void dial_starts_from_trained_top_k(void **state)
{
    (void)state;
    static const struct {
        int32_t trained, most;
        float threshold;
        int32_t count;
    } cases[] = {
        {2, 0, 1.0f, 2},  {2, 0, 0.6f, 1},  {2, 0, 0.7f, 2},  /* 0.667, 0.333 */
        {3, 0, 1.0f, 3},  {3, 0, 0.57f, 1}, {3, 0, 0.58f, 2}, /* 0.571, 0.286, 0.143 */
        {3, 0, 0.86f, 3}, {3, 2, 1.0f, 2},  {3, 4, 1.0f, 4},  {3, 4, 0.94f, 4},
        {3, 4, 0.93f, 3}, {3, 9, 1.0f, 5},  {1, 0, 0.01f, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xmoe_router router = {.type = XMOE_ROUTER_THRESHOLD,
                              .threshold = cases[i].threshold,
                              .min_experts = 1,
                              .max_experts = cases[i].most};
        xm_gate_rules rules = {.weight_scale = 1.0f, .trained_top_k = cases[i].trained};
        uint16_t chosen[5];
        float weights[5];
        assert_int_equal(xm_route(&router, &rules, by_hand, 5, chosen, weights), cases[i].count);
        assert_memory_equal(chosen, in_order, (size_t)cases[i].count * sizeof *chosen);
    }
}

/* Phi-3.5-MoE: an expert's weight counts only those whose logit is within 2 % of its own. */
static void sparse_mixer_by_hand(void **state)
{
    (void)state;
    const xm_gate_rules rules = {
        .score = XM_SCORE_SPARSE_MIXER, .trained_top_k = 2, .weight_scale = 1.0f};
    const xmoe_router router = {.type = XMOE_ROUTER_TOP_K, .top_k = 2, .min_experts = 1};
    const float apart[4] = {1.0f, 3.0f, 2.0f, -5.0f};
    const float close[4] = {2.98f, 3.0f, 2.97f, 0.0f};
    uint16_t chosen[4];
    float weights[4];
    assert_int_equal(xm_route(&router, &rules, apart, 4, chosen, weights), 2);
    assert_int_equal(chosen[0], 1);
    assert_int_equal(chosen[1], 2);
    assert_float_equal(weights[0], 1.0f, 0.0f);
    assert_float_equal(weights[1], 1.0f, 0.0f);
    assert_int_equal(xm_route(&router, &rules, close, 4, chosen, weights), 2);
    assert_int_equal(chosen[0], 1);
    assert_int_equal(chosen[1], 0);
    assert_float_equal(weights[0], (float)(1.0 / (1.0 + exp(-0.02) + exp(-0.03))), 1e-6);
    assert_float_equal(weights[1], (float)(1.0 / (1.0 + exp(-0.01))), 1e-6); /* the first is out */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threshold_takes_until_reached),
        cmocka_unit_test(top_k_takes_k),
        cmocka_unit_test(dense_takes_all_in_order),
        cmocka_unit_test(floor_then_cap_apply_to_every_type),
        cmocka_unit_test(weights_are_normalised_on_request),
        cmocka_unit_test(one_expert_is_enough),
        cmocka_unit_test(sigmoid_takes_what_is_above),
        cmocka_unit_test(thresholds_divide_sigmoids_by_their_sum),
        cmocka_unit_test(odd_values_have_their_place),
        cmocka_unit_test(a_row_of_nan_still_gets_an_expert),
        cmocka_unit_test(equals_a_plain_sort),
        cmocka_unit_test(dial_starts_from_trained_top_k),
        cmocka_unit_test(sparse_mixer_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
