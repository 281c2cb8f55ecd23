/*
 * test_train_dropout.c - which hidden units dropout leaves out of the experts: as many as asked
 * for, others for every row, expert, block and key, the same whenever they are asked for again.
 * Whole runs: dropout is in training only, and neither threads, recomputation nor a stop change
 * what it leaves out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train/expert_dropout.h"
#include "train_fixture.h"

#include <math.h>
#include <string.h>

enum { UNITS = 40000 };

static void draw(float rate, uint64_t key, int32_t block, int32_t row, int32_t expert, float *units)
{
    const xm_expert_dropout dropout = {.rate = rate, .key = key, .block = block};
    for (int i = 0; i < UNITS; i++)
        units[i] = 1;
    xm_expert_dropout_apply(&dropout, row, expert, units, UNITS);
}

static int left_out(const float *units)
{
    int count = 0;
    for (int i = 0; i < UNITS; i++)
        count += units[i] == 0.0f;
    return count;
}

static void test_rate(void **state)
{
    (void)state;
    static float units[UNITS];
    static const float rates[] = {0.0f, 0.1f, 0.5f, 0.9f};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        draw(rates[i], 5, 1, 2, 3, units);
        double expected = (double)rates[i] * UNITS, spread = sqrt(expected * (1 - rates[i]));
        if (fabs(left_out(units) - expected) > 4 * spread + 2)
            fail_msg("rate %g left out %d of %d", (double)rates[i], left_out(units), UNITS);
        for (int unit = 0; unit < UNITS; unit++)
            if (units[unit] != 0.0f)
                assert_true(fabs((double)units[unit] - 1 / (1 - (double)rates[i])) < 1e-3);
    }
}

/* Draws that share a part of what they depend on agree no more often than chance. */
static void test_draws_differ(void **state)
{
    (void)state;
    static float first[UNITS], other[UNITS];
    draw(0.5f, 5, 1, 2, 3, first);
    draw(0.5f, 5, 1, 2, 3, other);
    assert_memory_equal(first, other, sizeof first);
    const struct {
        uint64_t key;
        int32_t block, row, expert;
    } others[] = {{6, 1, 2, 3}, {5, 2, 2, 3}, {5, 1, 3, 3}, {5, 1, 2, 4}, {5, 2, 1, 3}};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        draw(0.5f, others[i].key, others[i].block, others[i].row, others[i].expert, other);
        int same = 0;
        for (int unit = 0; unit < UNITS; unit++)
            same += first[unit] == other[unit];
        if (fabs(same - UNITS / 2.0) > 4 * sqrt(UNITS / 4.0))
            fail_msg("draw %zu agrees in %d of %d", i, same, UNITS);
    }
}

/* Parameters after six steps, into `parameters`; stop_at: saves and goes on in another trainer. */
static void train(float rate, int32_t threads, bool recompute, int stop_at, float *parameters)
{
    xm_trainer_options options = train_toy_options();
    options.expert_dropout = rate;
    options.recompute = recompute;
    char path[TRAIN_PATH_SIZE];
    train_path(path, "dropout");
    train_run r;
    train_start(&r, &options, threads);
    for (int i = 0; i < 6; i++) {
        xm_step_report report;
        if (i == stop_at) {
            assert_int_equal(xm_trainer_save(r.trainer, path, NULL), XMOE_OK);
            train_finish(&r);
            train_start(&r, &options, threads);
            assert_int_equal(xm_trainer_load(r.trainer, path, NULL), XMOE_OK);
        }
        assert_int_equal(xm_trainer_step(r.trainer, &report, NULL), XMOE_OK);
    }
    memcpy(parameters, xm_trainer_parameters(r.trainer),
           xm_trainer_network(r.trainer)->total * sizeof(float));
    train_finish(&r);
}

static size_t parameter_count(void)
{
    const xm_trainer_options options = train_toy_options();
    train_run r;
    train_start(&r, &options, 1);
    size_t total = xm_trainer_network(r.trainer)->total;
    train_finish(&r);
    return total;
}

static void test_runs(void **state)
{
    (void)state;
    size_t total = parameter_count(), size = total * sizeof(float);
    float *first = test_malloc(size), *other = test_malloc(size);
    train(0.3f, 1, false, -1, first);
    train(0.3f, 3, false, -1, other);
    assert_memory_equal(first, other, size);
    train(0.3f, 2, true, -1, other);
    assert_memory_equal(first, other, size);
    train(0.3f, 2, false, 3, other);
    assert_memory_equal(first, other, size);
    train(0.0f, 1, false, -1, other);
    assert_memory_not_equal(first, other, size);
    test_free(first);
    test_free(other);
}

static void test_validation_has_none(void **state)
{
    (void)state;
    xm_evaluation with[2], without[2];
    for (int i = 0; i < 2; i++) {
        xm_trainer_options options = train_toy_options();
        options.expert_dropout = i == 0 ? 0.5f : 0.0f;
        train_run r;
        train_start(&r, &options, 1);
        assert_int_equal(xm_trainer_validate(r.trainer, 0, i == 0 ? with : without, NULL), XMOE_OK);
        train_finish(&r);
    }
    assert_true(with[0].nats == without[0].nats && with[1].nats == without[1].nats);
}

static void test_bad_rates(void **state)
{
    (void)state;
    static const float rates[] = {-0.1f, 1.0f, NAN};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        xm_trainer_options options = train_toy_options();
        options.expert_dropout = rates[i];
        train_run r;
        xmoe_error error;
        assert_int_equal(train_open(&r, 1, &error), XMOE_OK);
        assert_int_equal(xm_trainer_create(&options, &r.corpus, &r.trainer, &error),
                         XMOE_ERROR_ARGUMENT);
        assert_string_equal(error.parameter, "expert_dropout");
        train_finish(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rate),      cmocka_unit_test(test_draws_differ),
        cmocka_unit_test(test_runs),      cmocka_unit_test(test_validation_has_none),
        cmocka_unit_test(test_bad_rates),
    };
    return cmocka_run_group_tests(tests, train_set_up, train_tear_down);
}
