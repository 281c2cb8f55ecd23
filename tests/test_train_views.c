/*
 * test_train_views.c - training with several views per expert: the course of the temperature, that
 * validation and model files have the one of the step, and that such a run goes on bit for bit.
 * Gradients are compared in test_train_gradients.c, serving in test_train_served.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train/views.h"
#include "train_fixture.h"

#include <string.h>

/* Of 40 steps the first four have falling temperatures. */
static xm_trainer_options view_options(void)
{
    xm_trainer_options options = train_toy_options();
    options.shape.router_views = 3;
    return options;
}

static void step(train_run *r, int count)
{
    xm_step_report report = {0};
    xmoe_error error;
    for (int i = 0; i < count; i++)
        if (xm_trainer_step(r->trainer, &report, &error) != XMOE_OK)
            fail_msg("%s", error.message);
}

static float temperature_of(const train_run *r)
{
    return xm_trainer_network(r->trainer)->shape.view_temperature;
}

static void temperature_falls_by_a_cosine(void **state)
{
    (void)state;
    assert_float_equal(xm_view_temperature(0, 1000), 20.1, 1e-5);
    assert_float_equal(xm_view_temperature(25, 1000), 17.171068, 1e-5);
    assert_float_equal(xm_view_temperature(50, 1000), 10.1, 1e-5);
    assert_true(xm_view_temperature(99, 1000) > 0.1f);
    for (uint64_t step_index = 1; step_index < 100; step_index++)
        assert_true(xm_view_temperature(step_index, 1000) <
                    xm_view_temperature(step_index - 1, 1000));
    assert_true(xm_view_temperature(100, 1000) == 0.1f);
    assert_true(xm_view_temperature(UINT64_MAX, 1000) == 0.1f);
    assert_float_equal(xm_view_temperature(0, 5), 20.1, 1e-5); /* half a step */
    assert_true(xm_view_temperature(1, 5) == 0.1f);
    assert_true(xm_view_temperature(0, 0) == 0.1f); /* nothing is trained */
}

static void steps_have_their_temperature(void **state)
{
    (void)state;
    const xm_trainer_options options = view_options();
    train_run r;
    train_start(&r, &options, 1);
    assert_float_equal(temperature_of(&r), 20.1, 1e-5);
    for (uint64_t done = 1; done <= 5; done++) {
        step(&r, 1);
        assert_true(temperature_of(&r) == xm_view_temperature(done - 1, 40));
    }
    assert_true(temperature_of(&r) == 0.1f);
    train_finish(&r);
}

/* Equal parameters, another temperature: another loss. */
static void validation_has_the_temperature_of_the_step(void **state)
{
    (void)state;
    const xm_trainer_options options = view_options();
    xm_trainer_options other = options;
    other.rule.total_steps = 0; /* cold from the start */
    xm_evaluation warm[2], cold[2];
    train_run r;
    train_start(&r, &options, 1);
    assert_int_equal(xm_trainer_validate(r.trainer, 2, warm, NULL), XMOE_OK);
    train_finish(&r);
    train_start(&r, &other, 1); /* the same parameters */
    assert_int_equal(xm_trainer_validate(r.trainer, 2, cold, NULL), XMOE_OK);
    train_finish(&r);
    assert_true(warm[0].nats != cold[0].nats);
}

/* Saved and loaded while the temperature falls. */
static void resumes_to_the_bit(void **state)
{
    (void)state;
    xm_trainer_options options = view_options();
    char path[TRAIN_PATH_SIZE];
    xm_evaluation expected[2], found[2];
    train_path(path, "views");
    train_run whole, part;
    train_start(&whole, &options, 1);
    step(&whole, 2);
    assert_int_equal(xm_trainer_save(whole.trainer, path, NULL), XMOE_OK);
    assert_int_equal(xm_trainer_validate(whole.trainer, 2, expected, NULL), XMOE_OK);
    step(&whole, 4);
    options.recompute = true; /* which changes no bit either */
    train_start(&part, &options, 3);
    assert_int_equal(xm_trainer_load(part.trainer, path, NULL), XMOE_OK);
    assert_true(temperature_of(&part) == xm_view_temperature(1, 40));
    assert_int_equal(xm_trainer_validate(part.trainer, 2, found, NULL), XMOE_OK);
    assert_true(found[0].nats == expected[0].nats && found[1].nats == expected[1].nats);
    step(&part, 4);
    assert_memory_equal(xm_trainer_parameters(whole.trainer), xm_trainer_parameters(part.trainer),
                        xm_trainer_network(whole.trainer)->total * sizeof(float));
    train_finish(&whole);
    train_finish(&part);

    options.shape.router_views = 2;
    xmoe_error error;
    train_start(&part, &options, 1);
    assert_int_equal(xm_trainer_load(part.trainer, path, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "router_views 3, this run has 2"));
    train_finish(&part);
}

/* As of a run that was stopped after `steps`; the shape that its file gives. */
static xm_network_shape shape_of_file(const xm_trainer_options *options, int steps, bool *has_keys)
{
    char path[TRAIN_PATH_SIZE];
    const xm_model_labels labels = {0};
    xm_network_shape shape;
    xmoe_error error;
    xm_gguf *file = NULL;
    uint32_t views;
    train_path(path, "views.gguf");
    train_run r;
    train_start(&r, options, 1);
    step(&r, steps);
    assert_int_equal(xm_model_file_write(path, xm_trainer_network(r.trainer), &r.corpus.vocabulary,
                                         &labels, xm_trainer_parameters(r.trainer), NULL),
                     XMOE_OK);
    train_finish(&r);
    assert_int_equal(xm_gguf_open(path, &file, NULL), XMOE_OK);
    if (xm_model_file_shape(file, &shape, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    assert_int_equal(xm_gguf_get_u32(file, "xmoe.router.views", &views, has_keys, NULL), XMOE_OK);
    xm_gguf_close(file);
    return shape;
}

static void files_have_the_temperature_of_the_step(void **state)
{
    (void)state;
    xm_trainer_options options = view_options();
    bool has_keys;
    xm_network_shape shape = shape_of_file(&options, 2, &has_keys);
    assert_true(has_keys);
    assert_int_equal(shape.router_views, 3);
    assert_true(shape.view_temperature == xm_view_temperature(1, 40));
    shape = shape_of_file(&options, 5, &has_keys);
    assert_true(shape.view_temperature == 0.1f);
    options.shape.router_views = 1;
    shape = shape_of_file(&options, 2, &has_keys);
    assert_false(has_keys);
    assert_int_equal(shape.router_views, 1);
}

/* Two more views are two more products with E rows in the one MoE block. */
static void operations_are_counted(void **state)
{
    (void)state;
    xm_network_shape shape = train_toy_options().shape;
    double flops[2];
    shape.vocabulary = 300;
    for (int i = 0; i < 2; i++) {
        xm_network *network = NULL;
        shape.router_views = i == 0 ? 1 : 3;
        assert_int_equal(xm_network_create(&shape, &network, NULL), XMOE_OK);
        flops[i] = xm_network_forward_flops(network, 2.0);
        xm_network_free(network);
    }
    assert_true(flops[1] - flops[0] == 2.0 * 2.0 * shape.width * shape.experts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_falls_by_a_cosine),
        cmocka_unit_test(steps_have_their_temperature),
        cmocka_unit_test(validation_has_the_temperature_of_the_step),
        cmocka_unit_test(resumes_to_the_bit),
        cmocka_unit_test(files_have_the_temperature_of_the_step),
        cmocka_unit_test(operations_are_counted),
    };
    return cmocka_run_group_tests(tests, train_set_up, train_tear_down);
}
