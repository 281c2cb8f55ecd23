/*
 * test_router_views.c - a router with several views per expert in the engine: the mix against
 * double precision and at its limits, the same bits in any company, on any number of threads and in
 * any chunks, and files whose views are not what they should be. Logits of such models are compared
 * with the double-precision reference in test_train_served.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "forward_runner.h"
#include "gradient_check.h"
#include "moe/views.h"
#include "trained_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { VOCABULARY = TRAINED_VOCABULARY, LENGTH = 20, EXPERTS = 7, VIEWS = 3 };

static char good_path[64], bad_path[64];

/* Two of four blocks are MoE, threshold 0.75. */
static int write_good_model(void **state)
{
    (void)state;
    xm_network_shape shape = trained_file_shape(LENGTH, 4, EXPERTS);
    shape.router_views = VIEWS;
    snprintf(good_path, sizeof good_path, "/tmp/xmoe-views-%d.gguf", (int)getpid());
    snprintf(bad_path, sizeof bad_path, "/tmp/xmoe-views-%d-bad.gguf", (int)getpid());
    xm_network *network = gradient_network(&shape);
    float *parameters = gradient_parameters(network);
    xmoe_error error;
    xmoe_status status = trained_file_write(good_path, network, parameters, &error);
    if (status != XMOE_OK)
        fprintf(stderr, "%s\n", error.message);
    xm_network_free(network);
    xm_free(parameters);
    return status == XMOE_OK ? 0 : -1;
}

static int remove_models(void **state)
{
    (void)state;
    unlink(good_path);
    unlink(bad_path);
    return 0;
}

/* --- the mix ---------------------------------------------------------------------------------- */

static double mix_in_double(const float *z, int32_t views, int32_t experts, double temperature)
{
    double largest = -INFINITY, weights = 0, sum = 0;
    for (int32_t v = 0; v < views; v++)
        largest = fmax(largest, (double)z[v * experts]);
    for (int32_t v = 0; v < views; v++) {
        double weight = exp(((double)z[v * experts] - largest) / temperature);
        weights += weight;
        sum += weight * (double)z[v * experts];
    }
    return sum / weights;
}

static void mix_equals_double_precision(void **state)
{
    (void)state;
    static const float temperatures[] = {1e-30f, 0.01f, 0.1f, 1.0f, 20.1f, 1e6f};
    enum { MOST = 64 };
    float z[MOST * EXPERTS], logits[EXPERTS];
    for (int32_t views = 1; views <= MOST; views = views < 8 ? views + 1 : 2 * views)
        for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
            for (int32_t i = 0; i < views * EXPERTS; i++)
                z[i] = 3.0f * (float)xm_random_normal(4, (uint64_t)views, (uint64_t)i);
            xm_mix_views(z, views, EXPERTS, temperatures[t], logits);
            for (int32_t e = 0; e < EXPERTS; e++) {
                double expected = mix_in_double(z + e, views, EXPERTS, (double)temperatures[t]);
                assert_float_equal(logits[e], expected, 2e-5);
                if (views == 1)
                    assert_true(logits[e] == z[e]);
            }
        }
}

static void mix_at_its_limits(void **state)
{
    (void)state;
    const float equal[] = {0.3f, 0.3f, 0.3f}, huge[] = {1e30f, -1e30f}, far[] = {1000.0f, 999.0f};
    float shares[3];
    assert_true(xm_mix_expert(equal, 3, 1, 0.1f, shares) == 0.3f);
    assert_float_equal(shares[0] + shares[1] + shares[2], 1.0, 1e-6);
    assert_true(xm_mix_expert(huge, 2, 1, 0.1f, shares) == 1e30f);
    assert_true(shares[0] == 1.0f && shares[1] == 0.0f);
    assert_float_equal(xm_mix_expert(far, 2, 1, 1.0f, NULL), 999.73106, 1e-4);
    static const float broken[] = {NAN, INFINITY, -INFINITY};
    for (int32_t i = 0; i < 3; i++)
        for (int32_t place = 0; place < 3; place++) {
            float z[] = {0.1f, 0.2f, 0.3f};
            z[place] = broken[i];
            assert_true(isnan(xm_mix_expert(z, 3, 1, 0.1f, NULL)));
        }
}

/* --- the same bits ---------------------------------------------------------------------------- */

/* Logits of two sequences that go through the engine `chunk` tokens at a time. */
static void run_two(const xmoe_model *model, int32_t threads, int32_t chunk,
                    float (*logits)[LENGTH][VOCABULARY])
{
    runner run = runner_start(model, threads, true);
    const sequence sequences[2] = {runner_sequence(&run, LENGTH, 1),
                                   runner_sequence(&run, LENGTH, 2)};
    for (int32_t done = 0; done < LENGTH; done += chunk) {
        const xm_segment segments[2] = {segment_of(&sequences[0], done, chunk, 0),
                                        segment_of(&sequences[1], done, chunk, 0)};
        const float *rows = xm_forward_step(run.forward, segments, 2, NULL, NULL);
        for (int32_t s = 0; s < 2; s++)
            memcpy(logits[s][done], rows + s * chunk * VOCABULARY,
                   (size_t)(chunk * VOCABULARY) * sizeof(float));
    }
    runner_stop(&run);
}

static void chunks_and_threads_change_nothing(void **state)
{
    (void)state;
    static const char *const variants[] = {"scalar", NULL};
    static float expected[2][LENGTH][VOCABULARY], found[2][LENGTH][VOCABULARY];
    static const int32_t chunks[] = {LENGTH, 5, 1};
    for (int32_t run = 0; run < 6; run++) {
        xmoe_model *model = runner_load(good_path, variants[run / 3], 1);
        run_two(model, 1 + run % 3, chunks[run % 3], run == 0 ? expected : found);
        if (run > 0)
            assert_memory_equal(found, expected, sizeof expected);
        xmoe_model_free(model);
    }
}

/* --- files ------------------------------------------------------------------------------------ */

/* The good file with these keys in place of its own; views 0: without that key. */
static void write_bad_model(const char *type, uint32_t views)
{
    static const char *const skip[] = {"xmoe.router.type", "xmoe.router.views", NULL};
    xm_gguf *from = NULL;
    xm_gguf_writer *writer = NULL;
    assert_int_equal(xm_gguf_open(good_path, &from, NULL), XMOE_OK);
    assert_int_equal(xm_gguf_writer_create(bad_path, &writer, NULL), XMOE_OK);
    xm_gguf_writer_copy_keys(writer, from, skip);
    xm_gguf_writer_string(writer, "xmoe.router.type", type);
    if (views > 0)
        xm_gguf_writer_u32(writer, "xmoe.router.views", views);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(from); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(from, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name.length, tensor->name.data);
        xm_gguf_writer_tensor(writer, name, XM_TYPE_F32, tensor->dimensions, tensor->shape);
    }
    xm_gguf_writer_begin(writer);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(from); i++)
        xm_gguf_writer_data(writer, xm_gguf_tensor_at(from, i)->data,
                            xm_gguf_tensor_at(from, i)->bytes);
    assert_int_equal(xm_gguf_writer_finish(writer, NULL), XMOE_OK);
    xm_gguf_close(from);
}

static void wrong_views_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        uint32_t views;
        const char *expected;
    } cases[] = {
        {"threshold", 2, "'blk.1.ffn_gate_inp.weight' has shape [32, 21], expected [32, 14]"},
        {"threshold", 64, "'blk.1.ffn_gate_inp.weight' has shape [32, 21], expected [32, 448]"},
        {"dense", 0, "'blk.1.ffn_gate_inp.weight' has shape [32, 21], expected [32, 7]"},
        {"threshold", 613566757, "'xmoe.router.views' is 613566757, expected 1 to 64"},
        {"sigmoid", 3, "'xmoe.router.views' is 3, but a router of type sigmoid has no views"},
        {"hash", 3, "'xmoe.router.views' is 3, but a router of type hash has no views"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xmoe_model *model = NULL;
        xmoe_error error;
        write_bad_model(cases[i].type, cases[i].views);
        assert_int_equal(xmoe_model_load(bad_path, NULL, &model, &error), XMOE_ERROR_FORMAT);
        if (strstr(error.message, cases[i].expected) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", error.message, cases[i].expected);
    }
    xmoe_model *model = NULL;
    write_bad_model("dense", VIEWS); /* nothing wrong with it */
    assert_int_equal(xmoe_model_load(bad_path, NULL, &model, NULL), XMOE_OK);
    xmoe_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mix_equals_double_precision),
        cmocka_unit_test(mix_at_its_limits),
        cmocka_unit_test(chunks_and_threads_change_nothing),
        cmocka_unit_test(wrong_views_are_named),
    };
    return cmocka_run_group_tests(tests, write_good_model, remove_models);
}
