/*
 * test_usage.c - expert usage against a naive count: identities in every snapshot, phases, windows
 * on a simulated clock, reset, difference, and snapshots taken while another thread counts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "usage_identities.h"

#include "base/memory.h"
#include "base/random.h"
#include "serve/usage.h"
#include "serve/usage_view.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { EXPERTS = 12, LAYERS = 3, MAX_ROWS = 20 };
static const int32_t layer_numbers[LAYERS] = {1, 3, 4};

static int64_t test_time_ns; /* the simulated clock */

static int64_t test_monotonic(void *context)
{
    (void)context;
    return test_time_ns;
}

static int64_t test_unix(void *context)
{
    (void)context;
    return 1000000 + test_time_ns / 1000000000;
}

static xm_usage *create(int32_t window_seconds, uint64_t window_bytes)
{
    xm_usage_options options = {.layers = layer_numbers,
                                .layer_count = LAYERS,
                                .experts = EXPERTS,
                                .window_seconds = window_seconds,
                                .window_bytes = window_bytes,
                                .clock = {test_monotonic, test_unix, NULL}};
    xm_usage *usage;
    assert_int_equal(xm_usage_create(&options, &usage, NULL), XMOE_OK);
    return usage;
}

static void assert_close(double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%.12g is not %.12g", value, expected);
}

/* --- a naive count beside it ------------------------------------------------------------------ */

typedef struct {
    uint64_t tokens, activations, steps, distinct;
    uint64_t counts[EXPERTS], histogram[EXPERTS + 1];
    double weights[EXPERTS];
} naive_layer;

/* Phase all, prefill, decode, as in xmoe_phase. */
typedef struct {
    naive_layer layers[3][LAYERS];
} naive_usage;

static void naive_row(naive_layer *n, int32_t count, const uint16_t *chosen, const float *weights,
                      bool *touched)
{
    n->tokens++;
    n->activations += (uint64_t)count;
    n->histogram[count]++;
    for (int32_t i = 0; i < count; i++) {
        n->counts[chosen[i]]++;
        n->weights[chosen[i]] += weights[i];
        touched[chosen[i]] = true;
    }
}

static void naive_layer_step(naive_usage *naive, int32_t layer, const xm_selection *selection,
                             const uint8_t *is_decode)
{
    for (int32_t phase = 0; phase < 3; phase++) {
        naive_layer *n = &naive->layers[phase][layer];
        bool touched[EXPERTS] = {false}, used = false;
        for (int32_t r = 0; r < selection->rows; r++) {
            if (phase != XMOE_PHASE_ALL && (phase == XMOE_PHASE_DECODE) != is_decode[r])
                continue;
            naive_row(n, selection->count[r], selection->expert + r * EXPERTS,
                      selection->weight + r * EXPERTS, touched);
            used = true;
        }
        n->steps += used;
        for (int32_t e = 0; e < EXPERTS; e++)
            n->distinct += touched[e];
    }
}

/* One step of random rows into usage and, if given, the naive count. */
static void random_step(xm_usage *usage, uint64_t seed, naive_usage *naive)
{
    int32_t rows = 1 + (int32_t)(xm_random_bits(seed, 0, 0) % MAX_ROWS);
    uint8_t is_decode[MAX_ROWS];
    for (int32_t r = 0; r < rows; r++)
        is_decode[r] = xm_random_bits(seed, 1, (uint64_t)r) % 3 == 0;
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        int32_t count[MAX_ROWS];
        uint16_t expert[MAX_ROWS * EXPERTS];
        float weight[MAX_ROWS * EXPERTS];
        for (int32_t r = 0; r < rows; r++) {
            uint64_t bits = xm_random_bits(seed, 2 + (uint64_t)layer, (uint64_t)r);
            count[r] = 1 + (int32_t)(bits % 5);
            for (int32_t i = 0; i < count[r]; i++) {
                expert[r * EXPERTS + i] = (uint16_t)((bits / 7 + (uint64_t)i * 2) % (EXPERTS - 1));
                weight[r * EXPERTS + i] = 0.8F / (float)(i + 1);
            }
        }
        xm_selection selection = {rows, EXPERTS, count, expert, weight};
        xm_usage_route(usage, layer, &selection, is_decode);
        if (naive != NULL)
            naive_layer_step(naive, layer, &selection, is_decode);
    }
    xm_usage_commit(usage);
}

/* --- checks ----------------------------------------------------------------------------------- */

static void assert_matches(const xmoe_usage *usage, const naive_usage *naive)
{
    assert_int_equal(usage->layer_count, LAYERS);
    usage_assert_identities(usage);
    for (int32_t i = 0; i < LAYERS; i++) {
        const xmoe_layer_usage *l = &usage->layers[i];
        const naive_layer *n = &naive->layers[usage->phase][i];
        assert_int_equal(l->layer, layer_numbers[i]);
        assert_int_equal(l->tokens, n->tokens);
        assert_int_equal(l->activations, n->activations);
        assert_memory_equal(l->counts, n->counts, sizeof n->counts);
        assert_memory_equal(l->active_histogram, n->histogram, sizeof n->histogram);
        for (int32_t e = 0; e < EXPERTS; e++)
            assert_close(l->weights[e], n->weights[e], 1e-4);
        assert_int_equal(l->steps, n->steps);
        assert_int_equal(l->distinct, n->distinct);
        double distinct = n->steps > 0 ? (double)n->distinct / (double)n->steps : 0;
        assert_close(l->distinct_per_step, distinct, 1e-9);
    }
}

static xmoe_usage *get(xm_usage *usage, xmoe_phase phase, int32_t window)
{
    xmoe_usage *snapshot;
    assert_int_equal(xm_usage_snapshot(usage, -1, phase, window, &snapshot, NULL), XMOE_OK);
    return snapshot;
}

static void assert_all_phases_match(xm_usage *usage, int32_t window, const naive_usage *naive)
{
    for (xmoe_phase phase = XMOE_PHASE_ALL; phase <= XMOE_PHASE_DECODE; phase++) {
        xmoe_usage *snapshot = get(usage, phase, window);
        assert_matches(snapshot, naive);
        xmoe_usage_free(snapshot);
    }
}

/* --- tests ------------------------------------------------------------------------------------ */

static void counts_equal_the_naive_ones_in_every_phase(void **state)
{
    (void)state;
    xm_usage *usage = create(100, 1 << 20);
    naive_usage naive = {0};
    assert_all_phases_match(usage, 0, &naive);
    for (uint64_t seed = 0; seed < 200; seed++) {
        random_step(usage, seed, &naive);
        if (seed % 20 == 0)
            assert_all_phases_match(usage, 0, &naive);
    }
    assert_all_phases_match(usage, 0, &naive);
    xm_usage_free(usage);
}

static void commit_returns_the_distinct_experts(void **state)
{
    (void)state;
    xm_usage *usage = create(0, 0);
    int32_t count[] = {2, 2};
    uint16_t expert[2 * EXPERTS] = {3, 5, [EXPERTS] = 5, 7};
    float weight[2 * EXPERTS] = {0};
    uint8_t is_decode[] = {0, 1};
    xm_selection selection = {2, EXPERTS, count, expert, weight};
    xm_usage_route(usage, 0, &selection, is_decode);
    xm_usage_route(usage, 2, &selection, is_decode);
    assert_int_equal(xm_usage_commit(usage), 6); /* 3, 5, 7 in two layers */
    assert_int_equal(xm_usage_commit(usage), 0);
    xm_usage_free(usage);
}

static void derived_values_are_those_of_their_definitions(void **state)
{
    (void)state;
    xm_usage *usage = create(0, 0);
    int32_t count[] = {3, 1};
    uint16_t expert[2 * EXPERTS] = {0, 1, 2, [EXPERTS] = 0};
    float weight[2 * EXPERTS] = {0.5F, 0.25F, 0.125F, [EXPERTS] = 0.75F};
    uint8_t is_decode[] = {0, 0};
    xm_selection selection = {2, EXPERTS, count, expert, weight};
    for (int32_t layer = 0; layer < LAYERS; layer++)
        xm_usage_route(usage, layer, &selection, is_decode);
    xm_usage_commit(usage);
    xmoe_usage *all = get(usage, XMOE_PHASE_ALL, 0);
    const xmoe_layer_usage *l = &all->layers[1];
    double mean = 4.0 / EXPERTS, variance = 6.0 / EXPERTS - mean * mean;
    assert_close(l->mean_active, 2, 1e-12);
    assert_int_equal(l->max_active, 3);
    assert_close(l->entropy, -(0.5 * log(0.5) + 0.5 * log(0.25)) / log(EXPERTS), 1e-12);
    assert_close(l->load_balance, 16.0 / (EXPERTS * 6.0), 1e-12);
    assert_close(l->cv, sqrt(variance) / mean, 1e-12);
    assert_close(l->weights[0], 1.25, 1e-7);
    assert_close(l->distinct_per_step, 3, 1e-12);
    assert_int_equal(l->dead_count, EXPERTS - 3);
    assert_int_equal(l->dead[0], 3);
    assert_int_equal(all->dead_experts, LAYERS * (EXPERTS - 3));
    assert_int_equal(all->tokens, 2);
    assert_close(all->mean_active, 2, 1e-12);
    assert_close(all->active_fraction, 2.0 / EXPERTS, 1e-12);
    xmoe_usage_free(all);
    xm_usage_free(usage);
}

static void one_layer_can_be_asked_for(void **state)
{
    (void)state;
    xm_usage *usage = create(10, 1 << 20);
    random_step(usage, 1, NULL);
    xmoe_usage *one, *all = get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(xm_usage_snapshot(usage, 3, XMOE_PHASE_ALL, 0, &one, NULL), XMOE_OK);
    assert_int_equal(one->layer_count, 1);
    assert_int_equal(one->layers[0].layer, 3);
    assert_int_equal(one->layers[0].activations, all->layers[1].activations);
    xmoe_usage_free(one);
    xmoe_usage_free(all);
    xmoe_error error;
    assert_int_equal(xm_usage_snapshot(usage, 2, XMOE_PHASE_ALL, 0, &one, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "layer");
    assert_null(one);
    assert_int_equal(xm_usage_snapshot(usage, -1, XMOE_PHASE_ALL, 3601, &one, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "window_seconds");
    assert_int_equal(xm_usage_snapshot(usage, -1, (xmoe_phase)9, 0, &one, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "phase");
    xm_usage_free(usage);
}

/* Steps at seconds 0..29, two each; windows of every length must sum exactly the last ones. */
static void windows_sum_exactly_their_seconds(void **state)
{
    (void)state;
    enum { SECONDS = 30 };
    test_time_ns = INT64_C(500000000);
    xm_usage *usage = create(3600, 1 << 20);
    for (uint64_t second = 0; second < SECONDS; second++) {
        if (second % 7 == 3)
            continue; /* idle */
        test_time_ns = (int64_t)second * 1000000000 + 5;
        random_step(usage, 2 * second, NULL);
        test_time_ns += 900000000;
        random_step(usage, 2 * second + 1, NULL);
    }
    test_time_ns = INT64_C(29999999999);
    for (int32_t window = 1; window <= 40; window++) {
        xm_usage *again = create(0, 0);
        naive_usage naive = {0};
        for (uint64_t second = 0; second < SECONDS; second++)
            if (second % 7 != 3 && (int32_t)second > 29 - window)
                for (uint64_t i = 0; i < 2; i++)
                    random_step(again, 2 * second + i, &naive);
        assert_all_phases_match(usage, window, &naive);
        xmoe_usage *snapshot = get(usage, XMOE_PHASE_ALL, window);
        assert_int_equal(snapshot->window_seconds, window < SECONDS ? window : SECONDS);
        assert_int_equal(snapshot->since, 1000029 - (snapshot->window_seconds - 1));
        xmoe_usage_free(snapshot);
        xm_usage_free(again);
    }
    test_time_ns += INT64_C(100000000000); /* long idle: the window is empty, but was covered */
    naive_usage nothing = {0};
    assert_all_phases_match(usage, 60, &nothing);
    xm_usage_free(usage);
    test_time_ns = 0;
}

/* With memory for 4 buckets, the answer says how much of the window was covered. */
static void bounded_memory_shortens_the_window(void **state)
{
    (void)state;
    uint64_t bucket = LAYERS * (2 * xm_usage_record_size(EXPERTS) + 2) * 8 + 8;
    test_time_ns = 0;
    xm_usage *usage = create(3600, 4 * bucket + 3);
    for (uint64_t second = 0; second < 10; second++) {
        test_time_ns = (int64_t)second * 1000000000;
        random_step(usage, second, NULL);
    }
    naive_usage naive = {0};
    xm_usage *again = create(0, 0);
    for (uint64_t second = 6; second < 10; second++)
        random_step(again, second, &naive);
    assert_all_phases_match(usage, 100, &naive);
    xmoe_usage *snapshot = get(usage, XMOE_PHASE_DECODE, 100);
    assert_int_equal(snapshot->window_seconds, 4);
    xmoe_usage_free(snapshot);
    xm_usage_free(again);
    xm_usage_free(usage);
    usage = create(3600, bucket - 1); /* not even one */
    xmoe_error error;
    assert_int_equal(xm_usage_snapshot(usage, -1, XMOE_PHASE_ALL, 5, &snapshot, &error),
                     XMOE_ERROR_UNSUPPORTED);
    xm_usage_free(usage);
    test_time_ns = 0;
}

static void reset_hands_over_and_zeroes(void **state)
{
    (void)state;
    xm_usage *usage = create(100, 1 << 20);
    naive_usage naive = {0}, nothing = {0};
    random_step(usage, 1, &naive);
    test_time_ns = INT64_C(7000000000);
    xmoe_usage *before;
    assert_int_equal(xm_usage_reset(usage, &before, NULL), XMOE_OK);
    assert_matches(before, &naive);
    assert_int_equal(before->since, 1000000);
    xmoe_usage_free(before);
    assert_all_phases_match(usage, 0, &nothing);
    assert_all_phases_match(usage, 50, &nothing);
    xmoe_usage *after = get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(after->since, 1000007);
    xmoe_usage_free(after);
    assert_int_equal(xm_usage_reset(usage, NULL, NULL), XMOE_OK);
    xm_usage_free(usage);
    test_time_ns = 0;
}

static void difference_is_what_happened_between(void **state)
{
    (void)state;
    xm_usage *usage = create(100, 1 << 20);
    naive_usage naive = {0};
    xmoe_error error;
    for (uint64_t seed = 0; seed < 5; seed++)
        random_step(usage, seed, NULL);
    xmoe_usage *earlier = get(usage, XMOE_PHASE_DECODE, 0), *difference;
    for (uint64_t seed = 5; seed < 12; seed++)
        random_step(usage, seed, &naive);
    xmoe_usage *later = get(usage, XMOE_PHASE_DECODE, 0);
    assert_int_equal(xmoe_usage_difference(later, earlier, &difference, &error), XMOE_OK);
    assert_matches(difference, &naive);
    xmoe_usage_free(difference);
    assert_int_equal(xmoe_usage_difference(earlier, later, &difference, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_null(difference);
    xmoe_usage *all = get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(xmoe_usage_difference(all, earlier, &difference, &error), XMOE_ERROR_ARGUMENT);
    xmoe_usage_free(all);
    xmoe_usage_free(later);

    assert_int_equal(xm_usage_reset(usage, NULL, NULL), XMOE_OK);
    naive_usage after_reset = {0};
    random_step(usage, 50, &after_reset);
    later = get(usage, XMOE_PHASE_DECODE, 0);
    assert_int_equal(xmoe_usage_difference(later, earlier, &difference, &error), XMOE_OK);
    assert_matches(difference, &after_reset); /* a reset lies between: it is the later one */
    xmoe_usage_free(difference);
    xmoe_usage_free(later);
    xmoe_usage_free(earlier);
    xm_usage_free(usage);
}

/* --- snapshots while another thread counts ---------------------------------------------------- */

typedef struct {
    xm_usage *usage;
    atomic_bool done;
} reader_context;

static void *read_snapshots(void *argument)
{
    reader_context *context = argument;
    uint64_t broken = 0;
    for (uint64_t n = 0; !atomic_load(&context->done); n++) {
        xmoe_usage *snapshot;
        if (xm_usage_snapshot(context->usage, -1, (xmoe_phase)(n % 3), n % 2 ? 20 : 0, &snapshot,
                              NULL) != XMOE_OK)
            continue;
        for (int32_t i = 0; i < snapshot->layer_count; i++) {
            const xmoe_layer_usage *l = &snapshot->layers[i];
            uint64_t weighted = 0;
            for (int32_t k = 0; k <= l->experts; k++)
                weighted += (uint64_t)k * l->active_histogram[k];
            broken += weighted != l->activations;
            broken += l->tokens != snapshot->layers[0].tokens; /* every step uses all layers */
        }
        xmoe_usage_free(snapshot);
    }
    return (void *)(uintptr_t)broken;
}

static int64_t racing_monotonic(void *context)
{
    static atomic_llong now;
    (void)context;
    return atomic_fetch_add(&now, 30000000); /* a new second every 33 looks */
}

static void snapshots_are_consistent_under_load(void **state)
{
    (void)state;
    reader_context context = {0};
    xm_usage_options options = {.layers = layer_numbers,
                                .layer_count = LAYERS,
                                .experts = EXPERTS,
                                .window_seconds = 30,
                                .window_bytes = 1 << 20,
                                .clock = {racing_monotonic, test_unix, NULL}};
    assert_int_equal(xm_usage_create(&options, &context.usage, NULL), XMOE_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_snapshots, &context), 0);
    for (uint64_t seed = 0; seed < 3000; seed++) {
        random_step(context.usage, seed, NULL);
        if (seed % 500 == 499)
            xm_usage_reset(context.usage, NULL, NULL);
    }
    atomic_store(&context.done, true);
    void *broken;
    pthread_join(thread, &broken);
    assert_int_equal((uintptr_t)broken, 0);
    xm_usage_free(context.usage);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    xm_usage_options options = {.layers = layer_numbers,
                                .layer_count = LAYERS,
                                .experts = EXPERTS,
                                .window_seconds = 5,
                                .window_bytes = 1 << 20,
                                .clock = {test_monotonic, test_unix, NULL}};
    xm_usage *usage = NULL;
    xmoe_usage *snapshot = NULL;
    int64_t n = 0;
    for (;; n++) {
        xm_memory_fail_after(n);
        xmoe_status status = xm_usage_create(&options, &usage, NULL);
        if (status == XMOE_OK)
            status = xm_usage_snapshot(usage, -1, XMOE_PHASE_ALL, 0, &snapshot, NULL);
        xm_memory_fail_after(-1);
        if (status == XMOE_OK)
            break;
        assert_int_equal(status, XMOE_ERROR_MEMORY);
        assert_null(snapshot);
        xm_usage_free(usage);
        usage = NULL;
    }
    assert_true(n >= 10);
    xmoe_usage_free(snapshot);
    xm_usage_free(usage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_equal_the_naive_ones_in_every_phase),
        cmocka_unit_test(commit_returns_the_distinct_experts),
        cmocka_unit_test(derived_values_are_those_of_their_definitions),
        cmocka_unit_test(one_layer_can_be_asked_for),
        cmocka_unit_test(windows_sum_exactly_their_seconds),
        cmocka_unit_test(bounded_memory_shortens_the_window),
        cmocka_unit_test(reset_hands_over_and_zeroes),
        cmocka_unit_test(difference_is_what_happened_between),
        cmocka_unit_test(snapshots_are_consistent_under_load),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
