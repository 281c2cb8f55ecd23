/*
 * test_usage_numbers.c - usages made of numbers: there and back again to the bit, what is refused,
 * sums, what restoring does to counters, windows and differences, and the divergence of two.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "serve/usage.h"

#include <math.h>
#include <string.h>

enum { EXPERTS = 10, LAYERS = 3, ROWS = 3 };
static const int32_t layer_numbers[LAYERS] = {1, 3, 4};

static int64_t test_seconds; /* the simulated clock */

static int64_t test_monotonic(void *context)
{
    (void)context;
    return test_seconds * 1000000000;
}

static int64_t test_unix(void *context)
{
    (void)context;
    return 1000000 + test_seconds;
}

static xm_usage *create_counters(const int32_t *layers, int32_t layer_count, int32_t experts)
{
    xm_usage_options options = {.layers = layers,
                                .layer_count = layer_count,
                                .experts = experts,
                                .window_seconds = 60,
                                .window_bytes = 1 << 20,
                                .clock = {test_monotonic, test_unix, NULL}};
    xm_usage *usage;
    assert_int_equal(xm_usage_create(&options, &usage, NULL), XMOE_OK);
    return usage;
}

static xm_usage *create(void)
{
    return create_counters(layer_numbers, LAYERS, EXPERTS);
}

/* Steps of random rows of both phases, numbered [from, to). */
static void count_steps(xm_usage *usage, uint64_t from, uint64_t to)
{
    for (uint64_t step = from; step < to; step++) {
        for (int32_t layer = 0; layer < LAYERS; layer++) {
            int32_t count[ROWS];
            uint16_t expert[ROWS * EXPERTS];
            float weight[ROWS * EXPERTS];
            uint8_t is_decode[ROWS];
            for (int32_t r = 0; r < ROWS; r++) {
                uint64_t bits = xm_random_bits(step, (uint64_t)layer, (uint64_t)r);
                is_decode[r] = xm_random_bits(step, 9, (uint64_t)r) % 3 == 0;
                count[r] = 1 + (int32_t)(bits % 4);
                for (int32_t i = 0; i < count[r]; i++) {
                    expert[r * EXPERTS + i] = (uint16_t)((bits / 8 + (uint64_t)i) % EXPERTS);
                    weight[r * EXPERTS + i] = (float)(bits >> 40) * 0x1p-24F / (float)(i + 1);
                }
            }
            xm_selection selection = {ROWS, EXPERTS, count, expert, weight};
            xm_usage_route(usage, layer, &selection, is_decode);
        }
        xm_usage_commit(usage);
    }
}

static xmoe_usage *get(xm_usage *usage, xmoe_phase phase, int32_t window)
{
    xmoe_usage *snapshot;
    assert_int_equal(xm_usage_snapshot(usage, -1, phase, window, &snapshot, NULL), XMOE_OK);
    return snapshot;
}

static void get_phases(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES])
{
    assert_int_equal(xm_usage_snapshot_phases(usage, phases, NULL), XMOE_OK);
}

static void free_phases(xmoe_usage *phases[XMOE_PHASES])
{
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        xmoe_usage_free(phases[phase]);
}

static xmoe_status restore(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES], xmoe_error *error)
{
    const xmoe_usage *given[XMOE_PHASES] = {phases[0], phases[1], phases[2]};
    return xm_usage_restore(usage, given, error);
}

/* A usage made of nothing but what another one gives. */
static xmoe_usage *made_of(const xmoe_usage *from)
{
    xmoe_usage *usage;
    xmoe_error error;
    if (xmoe_usage_create(from->phase, from->since, from->layers, from->layer_count, &usage,
                          &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return usage;
}

/* Bit for bit, derived values included. */
static void assert_same(const xmoe_usage *a, const xmoe_usage *b)
{
    assert_int_equal(a->phase, b->phase);
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->dead_experts, b->dead_experts);
    assert_true(a->load_balance == b->load_balance && a->mean_active == b->mean_active);
    assert_int_equal(a->layer_count, b->layer_count);
    for (int32_t i = 0; i < a->layer_count; i++) {
        const xmoe_layer_usage *x = &a->layers[i], *y = &b->layers[i];
        size_t experts = (size_t)x->experts;
        assert_int_equal(x->layer, y->layer);
        assert_int_equal(x->experts, y->experts);
        assert_int_equal(x->tokens, y->tokens);
        assert_int_equal(x->activations, y->activations);
        assert_int_equal(x->steps, y->steps);
        assert_int_equal(x->distinct, y->distinct);
        assert_true(x->entropy == y->entropy && x->cv == y->cv);
        assert_memory_equal(x->active_histogram, y->active_histogram,
                            (experts + 1) * sizeof(uint64_t));
        assert_memory_equal(x->counts, y->counts, experts * sizeof(uint64_t));
        assert_memory_equal(x->weights, y->weights, experts * sizeof(double));
    }
}

static void assert_same_phases(xmoe_usage *a[XMOE_PHASES], xmoe_usage *b[XMOE_PHASES])
{
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        assert_same(a[phase], b[phase]);
}

/* --- there and back --------------------------------------------------------------------------- */

static void phases_are_of_one_moment_and_add_up(void **state)
{
    (void)state;
    xm_usage *usage = create();
    count_steps(usage, 0, 50);
    xmoe_usage *phases[XMOE_PHASES];
    get_phases(usage, phases);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        xmoe_usage *alone = get(usage, (xmoe_phase)phase, 0);
        assert_same(alone, phases[phase]);
        xmoe_usage_free(alone);
    }
    for (int32_t i = 0; i < LAYERS; i++) {
        const xmoe_layer_usage *all = &phases[XMOE_PHASE_ALL]->layers[i];
        const xmoe_layer_usage *prefill = &phases[XMOE_PHASE_PREFILL]->layers[i];
        const xmoe_layer_usage *decode = &phases[XMOE_PHASE_DECODE]->layers[i];
        assert_int_equal(all->tokens, 50 * ROWS);
        assert_int_equal(all->tokens, prefill->tokens + decode->tokens);
        for (int32_t e = 0; e < EXPERTS; e++) {
            assert_int_equal(all->counts[e], prefill->counts[e] + decode->counts[e]);
            assert_true(all->weights[e] == prefill->weights[e] + decode->weights[e]);
        }
        assert_int_equal(all->steps, 50);
        assert_true(all->distinct < prefill->distinct + decode->distinct);
    }
    free_phases(phases);
    xm_usage_free(usage);
}

static void numbers_come_back_to_the_bit(void **state)
{
    (void)state;
    xm_usage *usage = create(), *fresh = create();
    count_steps(usage, 0, 100);
    xmoe_usage *before[XMOE_PHASES], *made[XMOE_PHASES], *after[XMOE_PHASES];
    get_phases(usage, before);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        made[phase] = made_of(before[phase]);
    assert_same_phases(before, made);
    xmoe_error error;
    assert_int_equal(restore(fresh, made, &error), XMOE_OK);
    get_phases(fresh, after);
    assert_same_phases(before, after);
    free_phases(after);

    count_steps(usage, 100, 130); /* and what is counted on top is what it would have been */
    count_steps(fresh, 100, 130);
    free_phases(before);
    get_phases(usage, before);
    get_phases(fresh, after);
    assert_same_phases(before, after);
    free_phases(before);
    free_phases(made);
    free_phases(after);
    xm_usage_free(usage);
    xm_usage_free(fresh);
}

static void a_usage_of_no_layers_comes_back_too(void **state)
{
    (void)state;
    xm_usage *usage = create_counters(NULL, 0, 0), *other = create();
    xmoe_usage *phases[XMOE_PHASES], *made[XMOE_PHASES];
    get_phases(usage, phases);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        made[phase] = made_of(phases[phase]);
    xmoe_error error;
    assert_int_equal(restore(usage, made, &error), XMOE_OK);
    assert_int_equal(restore(other, made, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.message, "usage is of 0 layers, the model has 3");
    free_phases(phases);
    free_phases(made);
    xm_usage_free(usage);
    xm_usage_free(other);
}

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
    xm_usage *first = create(), *second, *both = create();
    test_seconds = 9;
    second = create();
    count_steps(first, 0, 30);
    count_steps(second, 30, 70);
    count_steps(both, 0, 70);
    for (xmoe_phase phase = XMOE_PHASE_ALL; phase <= XMOE_PHASE_DECODE; phase++) {
        xmoe_usage *a = get(first, phase, 0), *b = get(second, phase, 0), *sum, *again;
        xmoe_usage *expected = get(both, phase, 0), *made = made_of(b);
        assert_int_equal(xmoe_usage_merge(a, b, &sum, NULL), XMOE_OK);
        assert_int_equal(xmoe_usage_merge(made, a, &again, NULL), XMOE_OK);
        assert_same(sum, expected);
        assert_same(again, expected);
        assert_int_equal(sum->since, 1000000);
        assert_int_equal(again->since, 1000000);
        xmoe_usage *usages[] = {a, b, sum, again, expected, made};
        for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
            xmoe_usage_free(usages[i]);
    }
    xm_usage_free(first);
    xm_usage_free(second);
    xm_usage_free(both);
    test_seconds = 0;
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
    xm_usage *usage = create();
    count_steps(usage, 0, 3);
    xmoe_usage *all = get(usage, XMOE_PHASE_ALL, 0), *decode = get(usage, XMOE_PHASE_DECODE, 0);
    xmoe_usage *window = get(usage, XMOE_PHASE_ALL, 5), *large, *other;
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

/* --- restore ---------------------------------------------------------------------------------- */

static void restored_numbers_join_the_counters_but_no_window(void **state)
{
    (void)state;
    test_seconds = 5;
    xm_usage *old = create();
    count_steps(old, 0, 20);
    test_seconds = 50;
    xm_usage *usage = create(), *expected = create();
    count_steps(usage, 20, 25);
    count_steps(expected, 0, 25);
    xmoe_usage *saved[XMOE_PHASES], *now[XMOE_PHASES], *wanted[XMOE_PHASES];
    xmoe_usage *window = get(usage, XMOE_PHASE_ALL, 30), *same_window;
    get_phases(old, saved);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    get_phases(usage, now);
    get_phases(expected, wanted);
    assert_same_phases(now, wanted);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        assert_int_equal(now[phase]->since, 1000005);
    same_window = get(usage, XMOE_PHASE_ALL, 30);
    assert_same(window, same_window);

    xmoe_usage *handed_over, *after;
    assert_int_equal(xm_usage_reset(usage, &handed_over, NULL), XMOE_OK);
    assert_same(handed_over, now[XMOE_PHASE_ALL]);
    after = get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(after->tokens, 0);
    assert_int_equal(after->since, 1000050);
    xmoe_usage *usages[] = {window, same_window, handed_over, after};
    for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
        xmoe_usage_free(usages[i]);
    free_phases(saved);
    free_phases(now);
    free_phases(wanted);
    xm_usage_free(old);
    xm_usage_free(usage);
    xm_usage_free(expected);
    test_seconds = 0;
}

/* Refused with this message, and nothing is added. */
static void assert_not_restored(xm_usage *usage, const xmoe_usage *const phases[XMOE_PHASES],
                                const char *message)
{
    xmoe_usage *before[XMOE_PHASES], *after[XMOE_PHASES];
    xmoe_error error;
    get_phases(usage, before);
    assert_int_equal(xm_usage_restore(usage, phases, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "phases");
    assert_string_equal(error.message, message);
    get_phases(usage, after);
    assert_same_phases(before, after);
    free_phases(before);
    free_phases(after);
}

static void restore_refuses_other_phases_and_models(void **state)
{
    (void)state;
    static const int32_t fewer[] = {1, 3}, others[] = {1, 2, 4};
    xm_usage *usage = create();
    count_steps(usage, 0, 4);
    xmoe_usage *p[XMOE_PHASES], *window = get(usage, XMOE_PHASE_ALL, 3);
    get_phases(usage, p);
    const char *order = "usage must be of phases all, prefill and decode, in this order and "
                        "without window";
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], p[2], p[1]}, order);
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], p[1], NULL}, order);
    assert_not_restored(usage, (const xmoe_usage *[]){window, p[1], p[2]}, order);
    xmoe_usage_free(window);
    xm_usage *models[] = {create_counters(fewer, 2, EXPERTS),
                          create_counters(others, LAYERS, EXPERTS),
                          create_counters(layer_numbers, LAYERS, EXPERTS + 1)};
    const char *messages[] = {"usage is of 3 layers, the model has 2",
                              "layer 3 of the usage has no experts",
                              "usage is of 10 experts, the model has 11"};
    for (size_t i = 0; i < 3; i++) {
        assert_not_restored(models[i], (const xmoe_usage *[]){p[0], p[1], p[2]}, messages[i]);
        xm_usage_free(models[i]);
    }
    free_phases(p);
    xm_usage_free(usage);
}

/* The usage with one step and distinct more or less in its last layer, or an own weight. */
static xmoe_usage *altered(const xmoe_usage *from, int64_t steps, int64_t distinct, double weight)
{
    xmoe_layer_usage layers[LAYERS];
    double weights[EXPERTS];
    memcpy(layers, from->layers, sizeof layers);
    memcpy(weights, layers[2].weights, sizeof weights);
    weights[4] += weight;
    layers[2].weights = weights;
    layers[2].steps += (uint64_t)steps;
    layers[2].distinct += (uint64_t)distinct;
    xmoe_usage *usage;
    assert_int_equal(xmoe_usage_create(from->phase, 0, layers, LAYERS, &usage, NULL), XMOE_OK);
    return usage;
}

static void restore_refuses_phases_that_do_not_add_up(void **state)
{
    (void)state;
    xm_usage *usage = create();
    count_steps(usage, 0, 20);
    xmoe_usage *p[XMOE_PHASES], *later[XMOE_PHASES];
    get_phases(usage, p);
    count_steps(usage, 20, 24);
    get_phases(usage, later);
    const char *sum = "layer 1: all is not the sum of prefill and decode";
    assert_not_restored(usage, (const xmoe_usage *[]){later[0], p[1], p[2]}, sum);
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], later[1], p[2]}, sum);
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], p[1], later[2]}, sum);

    const xmoe_layer_usage *prefill = &p[1]->layers[2], *decode = &p[2]->layers[2];
    const xmoe_layer_usage *all = &p[0]->layers[2];
    int64_t most = (int64_t)(prefill->steps > decode->steps ? prefill->steps : decode->steps);
    int64_t distinct_most =
        (int64_t)(prefill->distinct > decode->distinct ? prefill->distinct : decode->distinct);
    int64_t steps = (int64_t)all->steps, distinct = (int64_t)all->distinct;
    int64_t steps_sum = (int64_t)(prefill->steps + decode->steps);
    int64_t distinct_sum = (int64_t)(prefill->distinct + decode->distinct);
    const struct {
        int64_t steps, distinct;
        double weight;
        bool good;
    } cases[] = {
        {0, 0, 0, true},
        {most - steps, 0, 0, true},
        {steps_sum - steps, 0, 0, true},
        {0, distinct_most - distinct, 0, true},
        {most - steps - 1, 0, 0, false},
        {steps_sum - steps + 1, 0, 0, false},
        {0, distinct_most - distinct - 1, 0, false},
        {steps_sum - steps, distinct_sum - distinct, 0, true},
        {steps_sum - steps, distinct_sum - distinct + 1, 0, false},
        {0, 0, 0x1p-28, false},
        {0, 0, -0x1p-28, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xmoe_usage *a = altered(p[0], cases[i].steps, cases[i].distinct, cases[i].weight);
        const xmoe_usage *given[] = {a, p[1], p[2]};
        if (cases[i].good) {
            xm_usage *fresh = create();
            assert_int_equal(xm_usage_restore(fresh, given, NULL), XMOE_OK);
            xmoe_usage *restored = get(fresh, XMOE_PHASE_ALL, 0);
            assert_same(restored, a);
            xmoe_usage_free(restored);
            xm_usage_free(fresh);
        } else {
            assert_not_restored(usage, given, "layer 4: all is not the sum of prefill and decode");
        }
        xmoe_usage_free(a);
    }
    free_phases(p);
    free_phases(later);
    xm_usage_free(usage);
}

/* All prefill, in one layer: tokens and weight of expert 0, and its weight in ALL. */
static void single_expert(uint64_t tokens, double weight, double weight_in_all,
                          xmoe_usage *phases[XMOE_PHASES])
{
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        bool used = phase != XMOE_PHASE_DECODE;
        uint64_t histogram[EXPERTS + 1] = {0, used ? tokens : 0};
        uint64_t counts[EXPERTS] = {used ? tokens : 0};
        double of_phase = phase == XMOE_PHASE_ALL ? weight_in_all : weight;
        double weights[EXPERTS] = {used ? of_phase : 0};
        xmoe_layer_usage layer = {.layer = 1,
                                  .experts = EXPERTS,
                                  .active_histogram = histogram,
                                  .counts = counts,
                                  .weights = weights,
                                  .steps = used,
                                  .distinct = used};
        assert_int_equal(xmoe_usage_create((xmoe_phase)phase, 0, &layer, 1, &phases[phase], NULL),
                         XMOE_OK);
    }
}

static void restore_never_wraps_around(void **state)
{
    (void)state;
    const struct {
        uint64_t tokens;
        double weight;
    } halves[] = {{UINT64_C(1) << 52, 1}, {1, 0x1p34}};
    for (size_t i = 0; i < 2; i++) {
        xm_usage *usage = create_counters(layer_numbers, 1, EXPERTS);
        xmoe_usage *phases[XMOE_PHASES];
        single_expert(halves[i].tokens, halves[i].weight, halves[i].weight, phases);
        assert_int_equal(restore(usage, phases, NULL), XMOE_OK);
        assert_not_restored(usage, (const xmoe_usage *[]){phases[0], phases[1], phases[2]},
                            "usage is too large to be added to what was counted");
        free_phases(phases);
        xm_usage_free(usage);
    }
}

/* Below 2^25 a double has every bit of a weight; above, sums of rounded ones may be apart. */
static void only_large_weights_may_be_rounded(void **state)
{
    (void)state;
    const struct {
        double weight, weight_in_all;
        bool good;
    } cases[] = {{0x1p22, 0x1p22 + 0x1p-28, false},
                 {0x1p26, 0x1p26 + 0x1p-26, true},
                 {0x1p26, 0x1p26 + 0x1p-22, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xm_usage *usage = create_counters(layer_numbers, 1, EXPERTS);
        xmoe_usage *phases[XMOE_PHASES];
        single_expert(1, cases[i].weight, cases[i].weight_in_all, phases);
        assert_true(phases[XMOE_PHASE_ALL]->layers[0].weights[0] == cases[i].weight_in_all);
        assert_int_equal(restore(usage, phases, NULL),
                         cases[i].good ? XMOE_OK : XMOE_ERROR_ARGUMENT);
        free_phases(phases);
        xm_usage_free(usage);
    }
}

/* --- difference ------------------------------------------------------------------------------- */

static xmoe_usage *difference(const xmoe_usage *later, const xmoe_usage *earlier)
{
    xmoe_usage *usage;
    xmoe_error error;
    if (xmoe_usage_difference(later, earlier, &usage, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return usage;
}

static void what_was_restored_between_is_not_counted(void **state)
{
    (void)state;
    xm_usage *old = create(), *usage = create(), *expected = create();
    count_steps(old, 0, 20);
    xmoe_usage *saved[XMOE_PHASES];
    get_phases(old, saved);
    count_steps(usage, 50, 60);
    xmoe_usage *earlier = get(usage, XMOE_PHASE_DECODE, 0);
    count_steps(usage, 60, 63);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    count_steps(usage, 63, 70);
    xmoe_usage *later = get(usage, XMOE_PHASE_DECODE, 0);
    count_steps(expected, 60, 70);
    xmoe_usage *wanted = get(expected, XMOE_PHASE_DECODE, 0);
    xmoe_usage *between = difference(later, earlier);
    assert_same(between, wanted);
    xmoe_usage_free(between);

    /* from the file, as numbers: what has been counted in this run */
    xmoe_usage *file = made_of(saved[XMOE_PHASE_DECODE]);
    between = difference(later, file);
    count_steps(expected, 50, 60);
    xmoe_usage *run = get(expected, XMOE_PHASE_DECODE, 0);
    assert_same(between, run);
    xmoe_usage_free(between);
    between = difference(later, saved[XMOE_PHASE_DECODE]); /* and of another run's counters */
    assert_same(between, run);
    xmoe_usage_free(between);
    xmoe_usage_free(later);

    /* with a reset between, it is what was counted after that */
    assert_int_equal(xm_usage_reset(usage, NULL, NULL), XMOE_OK);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    count_steps(usage, 0, 5);
    assert_int_equal(xm_usage_reset(expected, NULL, NULL), XMOE_OK);
    count_steps(expected, 0, 5);
    xmoe_usage_free(wanted);
    wanted = get(expected, XMOE_PHASE_DECODE, 0);
    later = get(usage, XMOE_PHASE_DECODE, 0);
    between = difference(later, earlier);
    assert_same(between, wanted);
    xmoe_usage *usages[] = {earlier, later, wanted, between, file, run};
    for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
        xmoe_usage_free(usages[i]);
    free_phases(saved);
    xm_usage_free(old);
    xm_usage_free(usage);
    xm_usage_free(expected);
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

/* --- memory ----------------------------------------------------------------------------------- */

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    xm_usage *usage = create();
    count_steps(usage, 0, 5);
    for (int64_t n = 0;; n++) {
        xmoe_usage *phases[XMOE_PHASES], *made = NULL, *sum = NULL, *rest = NULL;
        xm_memory_fail_after(n);
        xmoe_status status = xm_usage_snapshot_phases(usage, phases, NULL);
        if (status != XMOE_OK) {
            for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
                assert_null(phases[phase]);
        } else {
            status = xmoe_usage_create(XMOE_PHASE_ALL, 0, phases[0]->layers, LAYERS, &made, NULL);
            if (status == XMOE_OK)
                status = xmoe_usage_merge(made, phases[0], &sum, NULL);
            if (status == XMOE_OK)
                status = xmoe_usage_difference(sum, made, &rest, NULL);
            if (status == XMOE_OK)
                status = restore(usage, phases, NULL);
        }
        xm_memory_fail_after(-1);
        free_phases(phases);
        xmoe_usage_free(made);
        xmoe_usage_free(sum);
        xmoe_usage_free(rest);
        if (status == XMOE_OK) {
            assert_true(n >= 30);
            break;
        }
        assert_int_equal(status, XMOE_ERROR_MEMORY);
    }
    xmoe_usage *all = get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(all->tokens, 2 * 5 * ROWS); /* restored once */
    xmoe_usage_free(all);
    xm_usage_free(usage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(phases_are_of_one_moment_and_add_up),
        cmocka_unit_test(numbers_come_back_to_the_bit),
        cmocka_unit_test(a_usage_of_no_layers_comes_back_too),
        cmocka_unit_test(what_create_derives_is_right),
        cmocka_unit_test(create_refuses_broken_identities),
        cmocka_unit_test(create_refuses_numbers_out_of_range),
        cmocka_unit_test(create_refuses_wrong_layers),
        cmocka_unit_test(create_refuses_wrong_arguments),
        cmocka_unit_test(merged_usages_are_what_was_counted_in_both),
        cmocka_unit_test(merge_refuses_what_does_not_belong_together),
        cmocka_unit_test(restored_numbers_join_the_counters_but_no_window),
        cmocka_unit_test(restore_refuses_other_phases_and_models),
        cmocka_unit_test(restore_refuses_phases_that_do_not_add_up),
        cmocka_unit_test(restore_never_wraps_around),
        cmocka_unit_test(only_large_weights_may_be_rounded),
        cmocka_unit_test(what_was_restored_between_is_not_counted),
        cmocka_unit_test(divergence_is_that_of_jensen_and_shannon),
        cmocka_unit_test(divergence_stays_within_its_bounds),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
