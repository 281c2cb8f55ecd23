/*
 * test_usage_restore.c - counters that go on from what was counted before: there and back again to
 * the bit, what is refused, and what windows, resets and differences make of it.
 */
#include "usage_fixture.h"

#include "base/memory.h"

#include <string.h>

static xmoe_status restore(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES], xmoe_error *error)
{
    const xmoe_usage *given[XMOE_PHASES] = {phases[0], phases[1], phases[2]};
    return xm_usage_restore(usage, given, error);
}

/* --- there and back --------------------------------------------------------------------------- */

static void phases_are_of_one_moment_and_add_up(void **state)
{
    (void)state;
    xm_usage *usage = usage_counters();
    usage_count_steps(usage, 0, 50);
    xmoe_usage *phases[XMOE_PHASES];
    usage_get_phases(usage, phases);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        xmoe_usage *alone = usage_get(usage, (xmoe_phase)phase, 0);
        usage_assert_same(alone, phases[phase]);
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
    usage_free_phases(phases);
    xm_usage_free(usage);
}

static void numbers_come_back_to_the_bit(void **state)
{
    (void)state;
    xm_usage *usage = usage_counters(), *fresh = usage_counters();
    usage_count_steps(usage, 0, 100);
    xmoe_usage *before[XMOE_PHASES], *made[XMOE_PHASES], *after[XMOE_PHASES];
    usage_get_phases(usage, before);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        made[phase] = usage_made_of(before[phase]);
    usage_assert_same_phases(before, made);
    xmoe_error error;
    assert_int_equal(restore(fresh, made, &error), XMOE_OK);
    usage_get_phases(fresh, after);
    usage_assert_same_phases(before, after);
    usage_free_phases(after);

    usage_count_steps(usage, 100, 130); /* and what is counted on top is what it would have been */
    usage_count_steps(fresh, 100, 130);
    usage_free_phases(before);
    usage_get_phases(usage, before);
    usage_get_phases(fresh, after);
    usage_assert_same_phases(before, after);
    usage_free_phases(before);
    usage_free_phases(made);
    usage_free_phases(after);
    xm_usage_free(usage);
    xm_usage_free(fresh);
}

static void a_usage_of_no_layers_comes_back_too(void **state)
{
    (void)state;
    xm_usage *usage = usage_counters_of(NULL, 0, 0), *other = usage_counters();
    xmoe_usage *phases[XMOE_PHASES], *made[XMOE_PHASES];
    usage_get_phases(usage, phases);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        made[phase] = usage_made_of(phases[phase]);
    xmoe_error error;
    assert_int_equal(restore(usage, made, &error), XMOE_OK);
    assert_int_equal(restore(other, made, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.message, "usage is of 0 layers, the model has 3");
    usage_free_phases(phases);
    usage_free_phases(made);
    xm_usage_free(usage);
    xm_usage_free(other);
}

/* --- restore ---------------------------------------------------------------------------------- */

static void restored_numbers_join_the_counters_but_no_window(void **state)
{
    (void)state;
    usage_seconds = 5;
    xm_usage *old = usage_counters();
    usage_count_steps(old, 0, 20);
    usage_seconds = 50;
    xm_usage *usage = usage_counters(), *expected = usage_counters();
    usage_count_steps(usage, 20, 25);
    usage_count_steps(expected, 0, 25);
    xmoe_usage *saved[XMOE_PHASES], *now[XMOE_PHASES], *wanted[XMOE_PHASES];
    xmoe_usage *window = usage_get(usage, XMOE_PHASE_ALL, 30), *same_window;
    usage_get_phases(old, saved);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    usage_get_phases(usage, now);
    usage_get_phases(expected, wanted);
    usage_assert_same_phases(now, wanted);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        assert_int_equal(now[phase]->since, 1000005);
    same_window = usage_get(usage, XMOE_PHASE_ALL, 30);
    usage_assert_same(window, same_window);

    xmoe_usage *handed_over, *after;
    assert_int_equal(xm_usage_reset(usage, &handed_over, NULL), XMOE_OK);
    usage_assert_same(handed_over, now[XMOE_PHASE_ALL]);
    after = usage_get(usage, XMOE_PHASE_ALL, 0);
    assert_int_equal(after->tokens, 0);
    assert_int_equal(after->since, 1000050);
    xmoe_usage *usages[] = {window, same_window, handed_over, after};
    for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
        xmoe_usage_free(usages[i]);
    usage_free_phases(saved);
    usage_free_phases(now);
    usage_free_phases(wanted);
    xm_usage_free(old);
    xm_usage_free(usage);
    xm_usage_free(expected);
    usage_seconds = 0;
}

/* Refused with this message, and nothing is added. */
static void assert_not_restored(xm_usage *usage, const xmoe_usage *const phases[XMOE_PHASES],
                                const char *message)
{
    xmoe_usage *before[XMOE_PHASES], *after[XMOE_PHASES];
    xmoe_error error;
    usage_get_phases(usage, before);
    assert_int_equal(xm_usage_restore(usage, phases, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "phases");
    assert_string_equal(error.message, message);
    usage_get_phases(usage, after);
    usage_assert_same_phases(before, after);
    usage_free_phases(before);
    usage_free_phases(after);
}

static void restore_refuses_other_phases_and_models(void **state)
{
    (void)state;
    static const int32_t fewer[] = {1, 3}, others[] = {1, 2, 4};
    xm_usage *usage = usage_counters();
    usage_count_steps(usage, 0, 4);
    xmoe_usage *p[XMOE_PHASES], *window = usage_get(usage, XMOE_PHASE_ALL, 3);
    usage_get_phases(usage, p);
    const char *order = "usage must be of phases all, prefill and decode, in this order and "
                        "without window";
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], p[2], p[1]}, order);
    assert_not_restored(usage, (const xmoe_usage *[]){p[0], p[1], NULL}, order);
    assert_not_restored(usage, (const xmoe_usage *[]){window, p[1], p[2]}, order);
    xmoe_usage_free(window);
    xm_usage *models[] = {usage_counters_of(fewer, 2, EXPERTS),
                          usage_counters_of(others, LAYERS, EXPERTS),
                          usage_counters_of(usage_layer_numbers, LAYERS, EXPERTS + 1)};
    const char *messages[] = {"usage is of 3 layers, the model has 2",
                              "layer 3 of the usage has no experts",
                              "usage is of 10 experts, the model has 11"};
    for (size_t i = 0; i < 3; i++) {
        assert_not_restored(models[i], (const xmoe_usage *[]){p[0], p[1], p[2]}, messages[i]);
        xm_usage_free(models[i]);
    }
    usage_free_phases(p);
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
    xm_usage *usage = usage_counters();
    usage_count_steps(usage, 0, 20);
    xmoe_usage *p[XMOE_PHASES], *later[XMOE_PHASES];
    usage_get_phases(usage, p);
    usage_count_steps(usage, 20, 24);
    usage_get_phases(usage, later);
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
            xm_usage *fresh = usage_counters();
            assert_int_equal(xm_usage_restore(fresh, given, NULL), XMOE_OK);
            xmoe_usage *restored = usage_get(fresh, XMOE_PHASE_ALL, 0);
            usage_assert_same(restored, a);
            xmoe_usage_free(restored);
            xm_usage_free(fresh);
        } else {
            assert_not_restored(usage, given, "layer 4: all is not the sum of prefill and decode");
        }
        xmoe_usage_free(a);
    }
    usage_free_phases(p);
    usage_free_phases(later);
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
        xm_usage *usage = usage_counters_of(usage_layer_numbers, 1, EXPERTS);
        xmoe_usage *phases[XMOE_PHASES];
        single_expert(halves[i].tokens, halves[i].weight, halves[i].weight, phases);
        assert_int_equal(restore(usage, phases, NULL), XMOE_OK);
        assert_not_restored(usage, (const xmoe_usage *[]){phases[0], phases[1], phases[2]},
                            "usage is too large to be added to what was counted");
        usage_free_phases(phases);
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
        xm_usage *usage = usage_counters_of(usage_layer_numbers, 1, EXPERTS);
        xmoe_usage *phases[XMOE_PHASES];
        single_expert(1, cases[i].weight, cases[i].weight_in_all, phases);
        assert_true(phases[XMOE_PHASE_ALL]->layers[0].weights[0] == cases[i].weight_in_all);
        assert_int_equal(restore(usage, phases, NULL),
                         cases[i].good ? XMOE_OK : XMOE_ERROR_ARGUMENT);
        usage_free_phases(phases);
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
    xm_usage *old = usage_counters(), *usage = usage_counters(), *expected = usage_counters();
    usage_count_steps(old, 0, 20);
    xmoe_usage *saved[XMOE_PHASES];
    usage_get_phases(old, saved);
    usage_count_steps(usage, 50, 60);
    xmoe_usage *earlier = usage_get(usage, XMOE_PHASE_DECODE, 0);
    usage_count_steps(usage, 60, 63);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    usage_count_steps(usage, 63, 70);
    xmoe_usage *later = usage_get(usage, XMOE_PHASE_DECODE, 0);
    usage_count_steps(expected, 60, 70);
    xmoe_usage *wanted = usage_get(expected, XMOE_PHASE_DECODE, 0);
    xmoe_usage *between = difference(later, earlier);
    usage_assert_same(between, wanted);
    xmoe_usage_free(between);

    /* from the file, as numbers: what has been counted in this run */
    xmoe_usage *file = usage_made_of(saved[XMOE_PHASE_DECODE]);
    between = difference(later, file);
    usage_count_steps(expected, 50, 60);
    xmoe_usage *run = usage_get(expected, XMOE_PHASE_DECODE, 0);
    usage_assert_same(between, run);
    xmoe_usage_free(between);
    between = difference(later, saved[XMOE_PHASE_DECODE]); /* and of another run's counters */
    usage_assert_same(between, run);
    xmoe_usage_free(between);
    xmoe_usage_free(later);

    /* with a reset between, it is what was counted after that */
    assert_int_equal(xm_usage_reset(usage, NULL, NULL), XMOE_OK);
    assert_int_equal(restore(usage, saved, NULL), XMOE_OK);
    usage_count_steps(usage, 0, 5);
    assert_int_equal(xm_usage_reset(expected, NULL, NULL), XMOE_OK);
    usage_count_steps(expected, 0, 5);
    xmoe_usage_free(wanted);
    wanted = usage_get(expected, XMOE_PHASE_DECODE, 0);
    later = usage_get(usage, XMOE_PHASE_DECODE, 0);
    between = difference(later, earlier);
    usage_assert_same(between, wanted);
    xmoe_usage *usages[] = {earlier, later, wanted, between, file, run};
    for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
        xmoe_usage_free(usages[i]);
    usage_free_phases(saved);
    xm_usage_free(old);
    xm_usage_free(usage);
    xm_usage_free(expected);
}

/* --- memory ----------------------------------------------------------------------------------- */

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    xm_usage *usage = usage_counters();
    usage_count_steps(usage, 0, 5);
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
        usage_free_phases(phases);
        xmoe_usage_free(made);
        xmoe_usage_free(sum);
        xmoe_usage_free(rest);
        if (status == XMOE_OK) {
            assert_true(n >= 30);
            break;
        }
        assert_int_equal(status, XMOE_ERROR_MEMORY);
    }
    xmoe_usage *all = usage_get(usage, XMOE_PHASE_ALL, 0);
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
        cmocka_unit_test(restored_numbers_join_the_counters_but_no_window),
        cmocka_unit_test(restore_refuses_other_phases_and_models),
        cmocka_unit_test(restore_refuses_phases_that_do_not_add_up),
        cmocka_unit_test(restore_never_wraps_around),
        cmocka_unit_test(only_large_weights_may_be_rounded),
        cmocka_unit_test(what_was_restored_between_is_not_counted),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
