/*
 * test_usage_numbers.c - usages made of numbers: what is derived and what is refused, sums of two,
 * and how differently two use their experts.
 */
#include "usage_fixture.h"

#include "base/random.h"

#include <math.h>
#include <string.h>

/* --- what create refuses ---------------------------------------------------------------------- */

typedef struct {
    xmoe_layer_usage layers[2];
    uint64_t histogram[2][EXPERTS + 1], counts[2][EXPERTS];
    double weights[2][EXPERTS];
} numbers;

/* Two layers; in each 4 tokens take 2 experts of 0, 1 and 2 and 1 token takes expert 0. */
static void good_numbers(numbers *n)
{
    *n = (numbers){0};
    for (int32_t i = 0; i < 2; i++) {
        n->histogram[i][2] = 4;
        n->histogram[i][1] = 1;
        n->counts[i][0] = 5;
        n->counts[i][1] = n->counts[i][2] = 2;
        n->weights[i][0] = 3.5;
        n->weights[i][1] = n->weights[i][2] = 0.75;
        n->layers[i] = (xmoe_layer_usage){.layer = 1 + 2 * i,
                                          .experts = EXPERTS,
                                          .active_histogram = n->histogram[i],
                                          .counts = n->counts[i],
                                          .weights = n->weights[i],
                                          .steps = 3,
                                          .distinct = 7};
    }
}

static xmoe_status create_of(const numbers *n, xmoe_usage **usage, xmoe_error *error)
{
    return xmoe_usage_create(XMOE_PHASE_DECODE, 77, n->layers, 2, usage, error);
}

/* n has one fault, in its second layer. */
static void assert_refused(const numbers *n, const char *message)
{
    xmoe_error error;
    xmoe_usage *usage;
    if (create_of(n, &usage, &error) != XMOE_ERROR_FORMAT)
        fail_msg("not refused, should be for: %s", message);
    assert_null(usage);
    assert_string_equal(error.message, message);
}

#define REFUSED(change, message)                                                                   \
    do {                                                                                           \
        numbers n;                                                                                 \
        good_numbers(&n);                                                                          \
        change;                                                                                    \
        assert_refused(&n, message);                                                               \
    } while (0)

static void what_create_derives_is_right(void **state)
{
    (void)state;
    numbers n;
    good_numbers(&n);
    xmoe_usage *usage;
    assert_int_equal(create_of(&n, &usage, NULL), XMOE_OK);
    assert_int_equal(usage->phase, XMOE_PHASE_DECODE);
    assert_int_equal(usage->since, 77);
    assert_int_equal(usage->window_seconds, 0);
    assert_int_equal(usage->tokens, 5);
    const xmoe_layer_usage *l = &usage->layers[1];
    assert_int_equal(l->layer, 3);
    assert_int_equal(l->activations, 9);
    assert_int_equal(l->max_active, 2);
    assert_int_equal(l->dead_count, EXPERTS - 3);
    assert_int_equal(l->steps, 3);
    assert_int_equal(l->distinct, 7);
    assert_true(l->distinct_per_step == 7.0 / 3);
    assert_true(l->weights[0] == 3.5 && l->weights[1] == 0.75);
    assert_ptr_not_equal(l->counts, n.counts[1]); /* copies */
    xmoe_usage_free(usage);
}

static void create_refuses_broken_identities(void **state)
{
    (void)state;
    REFUSED(n.counts[1][2]++, "layer 3: active_histogram has fewer activations than counts");
    REFUSED(n.counts[1][2]--, "layer 3: active_histogram has more activations than counts");
    REFUSED(n.histogram[1][EXPERTS]++,
            "layer 3: active_histogram has more activations than counts");
    REFUSED((n.counts[1][0] += 2, n.counts[1][1]--, n.counts[1][2]--),
            "layer 3: an expert has more tokens than the layer");
    REFUSED(n.weights[1][9] = 0.5, "layer 3: an expert without tokens has a weight");
    REFUSED(n.layers[1].steps = 6,
            "layer 3: steps must be 1 to the number of tokens, or 0 without tokens");
    REFUSED(n.layers[1].steps = 0,
            "layer 3: steps must be 1 to the number of tokens, or 0 without tokens");
    REFUSED(n.layers[1].distinct = 2, "layer 3: distinct does not fit counts and steps");
    REFUSED(n.layers[1].distinct = 10, "layer 3: distinct does not fit counts and steps");
    REFUSED((memset(n.histogram[1], 0, sizeof n.histogram[1]),
             memset(n.counts[1], 0, sizeof n.counts[1]),
             memset(n.weights[1], 0, sizeof n.weights[1]), n.layers[1].steps = 0),
            "layer 3: distinct does not fit counts and steps");
}

static void create_refuses_numbers_out_of_range(void **state)
{
    (void)state;
    const char *weight = "layer 3: a weight is not a number from 0 to below 2^35";
    REFUSED(n.weights[1][0] = NAN, weight);
    REFUSED(n.weights[1][0] = -0x1p-28, weight);
    REFUSED(n.weights[1][0] = INFINITY, weight);
    REFUSED(n.weights[1][0] = 0x1p35, weight);
    const uint64_t huge[] = {UINT64_C(1) << 53, UINT64_C(1) << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        const char *count = "layer 3: a count is 2^53 or more";
        REFUSED(n.counts[1][1] = huge[i], count);
        REFUSED(n.histogram[1][0] = huge[i], count);
        REFUSED(n.histogram[1][EXPERTS] = huge[i], count);
        REFUSED(n.layers[1].steps = huge[i], count);
        REFUSED(n.layers[1].distinct = huge[i], count);
    }
    const char *sum = "layer 3: the sum of its counts is 2^53 or more";
    REFUSED((n.counts[1][1] = n.counts[1][2] = UINT64_C(1) << 52), sum);
    REFUSED((n.histogram[1][0] = n.histogram[1][1] = UINT64_C(1) << 52), sum);
    numbers n;
    good_numbers(&n);
    const double kept[] = {nextafter(0x1p35, 0), 0x1p24 + 0x1p-28, 0x1p-28, 0};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        xmoe_usage *usage;
        n.weights[1][0] = kept[i];
        assert_int_equal(create_of(&n, &usage, NULL), XMOE_OK);
        assert_true(usage->layers[1].weights[0] == kept[i]);
        xmoe_usage_free(usage);
    }
}

static void create_refuses_wrong_layers(void **state)
{
    (void)state;
    REFUSED(n.layers[1].layer = 1, "layer 1: comes after layer 1, must ascend");
    REFUSED(n.layers[1].layer = 0, "layer 0: comes after layer 1, must ascend");
    REFUSED(n.layers[1].layer = -1, "layer -1: layers are 0 to 255");
    REFUSED(n.layers[1].layer = 256, "layer 256: layers are 0 to 255");
    REFUSED(n.layers[1].experts = EXPERTS - 1, "layer 3: has 9 experts, layer 1 has 10");
    REFUSED(n.layers[1].experts = 0, "layer 3: has 0 experts, must be 1 to 1024");
    REFUSED(n.layers[1].experts = INT32_MIN, "layer 3: has -2147483648 experts, must be 1 to 1024");
    REFUSED((n.layers[0].experts = n.layers[1].experts = 2000000000),
            "layer 1: has 2000000000 experts, must be 1 to 1024");
    const char *missing = "layer 3: active_histogram, counts or weights are missing";
    REFUSED(n.layers[1].counts = NULL, missing);
    REFUSED(n.layers[1].weights = NULL, missing);
    REFUSED(n.layers[1].active_histogram = NULL, missing);
}

static void create_refuses_wrong_arguments(void **state)
{
    (void)state;
    numbers n;
    good_numbers(&n);
    xmoe_error error;
    xmoe_usage *usage;
    const int32_t counts[] = {-1, XMOE_MAX_LAYERS + 1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        assert_int_equal(xmoe_usage_create(XMOE_PHASE_ALL, 0, n.layers, counts[i], &usage, &error),
                         XMOE_ERROR_ARGUMENT);
        assert_string_equal(error.parameter, "layers");
        assert_null(usage);
    }
    assert_int_equal(xmoe_usage_create(XMOE_PHASE_ALL, 0, NULL, 2, &usage, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "layers");
    assert_int_equal(xmoe_usage_create((xmoe_phase)3, 0, n.layers, 2, &usage, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "phase");
    assert_int_equal(xmoe_usage_create(XMOE_PHASE_ALL, -1, n.layers, 2, &usage, &error),
                     XMOE_ERROR_FORMAT);
    assert_null(usage);
}

/* --- merge ------------------------------------------------------------------------------------ */

static void merged_usages_are_what_was_counted_in_both(void **state)
{
    (void)state;
    xm_usage *first = usage_counters(), *second, *both = usage_counters();
    usage_seconds = 9;
    second = usage_counters();
    usage_count_steps(first, 0, 30);
    usage_count_steps(second, 30, 70);
    usage_count_steps(both, 0, 70);
    for (xmoe_phase phase = XMOE_PHASE_ALL; phase <= XMOE_PHASE_DECODE; phase++) {
        xmoe_usage *a = usage_get(first, phase, 0), *b = usage_get(second, phase, 0), *sum, *again;
        xmoe_usage *expected = usage_get(both, phase, 0), *made = usage_made_of(b);
        assert_int_equal(xmoe_usage_merge(a, b, &sum, NULL), XMOE_OK);
        assert_int_equal(xmoe_usage_merge(made, a, &again, NULL), XMOE_OK);
        usage_assert_same(sum, expected);
        usage_assert_same(again, expected);
        assert_int_equal(sum->since, 1000000);
        assert_int_equal(again->since, 1000000);
        xmoe_usage *usages[] = {a, b, sum, again, expected, made};
        for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
            xmoe_usage_free(usages[i]);
    }
    xm_usage_free(first);
    xm_usage_free(second);
    xm_usage_free(both);
    usage_seconds = 0;
}

static void assert_not_merged(const xmoe_usage *a, const xmoe_usage *b, const char *message)
{
    xmoe_error error;
    xmoe_usage *usage;
    assert_int_equal(xmoe_usage_merge(a, b, &usage, &error), XMOE_ERROR_ARGUMENT);
    assert_null(usage);
    assert_string_equal(error.message, message);
}

static void merge_refuses_what_does_not_belong_together(void **state)
{
    (void)state;
    xm_usage *usage = usage_counters();
    usage_count_steps(usage, 0, 3);
    xmoe_usage *all = usage_get(usage, XMOE_PHASE_ALL, 0),
               *decode = usage_get(usage, XMOE_PHASE_DECODE, 0);
    xmoe_usage *window = usage_get(usage, XMOE_PHASE_ALL, 5), *large, *other;
    assert_not_merged(all, decode, "usages cannot be merged: they are of different phases");
    assert_not_merged(all, window, "usages cannot be merged: one is of a window");
    numbers n;
    good_numbers(&n);
    assert_int_equal(create_of(&n, &other, NULL), XMOE_OK);
    assert_not_merged(decode, other,
                      "usages cannot be merged: they are of different models or layers");
    n.layers[1].layer = 2;
    n.histogram[0][0] = UINT64_C(1) << 52;
    assert_int_equal(create_of(&n, &large, NULL), XMOE_OK);
    assert_not_merged(large, other, "usages cannot be merged: they are of different layers");
    assert_not_merged(large, large, "usages cannot be merged: layer 1: a count is 2^53 or more");
    xmoe_usage_free(all);
    xmoe_usage_free(decode);
    xmoe_usage_free(window);
    xmoe_usage_free(large);
    xmoe_usage_free(other);
    xm_usage_free(usage);
}

/* --- divergence ------------------------------------------------------------------------------- */

static double divergence(const uint64_t *a, int32_t experts_of_a, const uint64_t *b,
                         int32_t experts_of_b)
{
    xmoe_layer_usage layers[2] = {{.experts = experts_of_a, .counts = a},
                                  {.experts = experts_of_b, .counts = b}};
    for (int32_t i = 0; i < 2; i++)
        for (int32_t e = 0; e < layers[i].experts; e++)
            layers[i].activations += layers[i].counts[e];
    double value = xmoe_usage_divergence(&layers[0], &layers[1]);
    double swapped = xmoe_usage_divergence(&layers[1], &layers[0]);
    assert_true(memcmp(&value, &swapped, sizeof value) == 0 || (isnan(value) && isnan(swapped)));
    return value;
}

static void divergence_is_that_of_jensen_and_shannon(void **state)
{
    (void)state;
    const uint64_t a[] = {1, 1, 0}, b[] = {0, 1, 1}, none[] = {0, 0, 0};
    const uint64_t p[] = {3, 1, 4}, thrice[] = {9, 3, 12}, q[] = {0, 0, 7}, r[] = {2, 5, 0};
    assert_true(fabs(divergence(a, 3, b, 3) - 0.5) < 1e-15);
    /* half of: 1/2 log2((1/2)/(1/4)) + 1/2 log2((1/2)/(3/4)) + 1 log2(1/(3/4)) */
    const uint64_t half[] = {1, 1}, one[] = {0, 5};
    double expected = (0.5 + 0.5 * log2(2.0 / 3) + log2(4.0 / 3)) / 2;
    assert_true(fabs(divergence(half, 2, one, 2) - expected) < 1e-15);
    assert_true(divergence(p, 3, p, 3) == 0);
    assert_true(divergence(p, 3, thrice, 3) == 0);
    double apart = divergence(q, 3, r, 3); /* no expert in common */
    assert_true(apart > 1 - 1e-15 && apart <= 1);
    assert_true(isnan(divergence(a, 3, none, 3)));
    assert_true(isnan(divergence(none, 3, none, 3)));
    assert_true(isnan(divergence(a, 3, half, 2)));
}

static void divergence_stays_within_its_bounds(void **state)
{
    (void)state;
    enum { MANY = 200 };
    for (uint64_t seed = 0; seed < 500; seed++) {
        uint64_t a[MANY], b[MANY];
        for (uint64_t e = 0; e < MANY; e++) {
            uint64_t bits = xm_random_bits(seed, 1, e);
            a[e] = e % 2 == 0 ? bits >> (seed % 48 + 16) : 0; /* of every scale */
            b[e] = seed % 3 == 0 ? a[e] + (bits & 1) : seed % 3 == 1 ? 0 : bits >> 40;
            if (e % 2 == 1)
                b[e] = bits >> 30;
        }
        double value = divergence(a, MANY, b, MANY);
        assert_true(isnan(value) || (value >= 0 && value <= 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_create_derives_is_right),
        cmocka_unit_test(create_refuses_broken_identities),
        cmocka_unit_test(create_refuses_numbers_out_of_range),
        cmocka_unit_test(create_refuses_wrong_layers),
        cmocka_unit_test(create_refuses_wrong_arguments),
        cmocka_unit_test(merged_usages_are_what_was_counted_in_both),
        cmocka_unit_test(merge_refuses_what_does_not_belong_together),
        cmocka_unit_test(divergence_is_that_of_jensen_and_shannon),
        cmocka_unit_test(divergence_stays_within_its_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
