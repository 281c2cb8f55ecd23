/*
 * test_importance.c - measuring how much inputs of matrices matter: the file's numbers against the
 * usage counters and the model's own arithmetic, whatever the steps; and that measuring changes
 * nothing and says when it cannot.
 */
#include "engine_fixture.h"

#include "base/memory.h"
#include "format/importance.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static xmoe_engine *create_measuring(int32_t step_tokens)
{
    xmoe_engine_options options = engine_small_options();
    options.measure_importance = true;
    options.step_tokens = step_tokens;
    options.prefix_cache = false;
    return engine_create(&options);
}

static xm_gguf *write_and_open(xmoe_engine *engine)
{
    xmoe_error error = {0};
    xm_gguf *file;
    if (xmoe_engine_write_importance(engine, path, "numbers", &error) != XMOE_OK ||
        xm_gguf_open(path, &file, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return file;
}

static const float *values_of(const xm_gguf *file, const char *matrix, const char *kind,
                              uint64_t columns, uint64_t experts)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", matrix, kind);
    const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->shape[0], columns);
    assert_int_equal(tensor->shape[1], experts);
    return tensor->data;
}

/* Experts' positions are the usage counters'; other matrices saw every position, the output matrix
 * those that sampled. */
static void check_counts(const xm_gguf *file, xmoe_engine *engine, float sampled)
{
    static const char *const parts[] = {"ffn_up_exps", "ffn_down_exps"};
    xmoe_usage *usage;
    char name[64];
    uint64_t hidden = (uint64_t)xmoe_model_get_info(engine_model)->expert_feed_forward_length;
    assert_int_equal(xmoe_usage_get(engine, -1, XMOE_PHASE_ALL, 0, &usage, NULL), XMOE_OK);
    assert_int_equal(usage->layer_count, MOE_LAYERS);
    for (int32_t i = 0; i < usage->layer_count; i++)
        for (size_t p = 0; p < 2; p++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", usage->layers[i].layer, parts[p]);
            const float *counts = values_of(file, name, "counts", 1, EXPERTS);
            uint64_t columns =
                p == 1 ? hidden : (uint64_t)xmoe_model_get_info(engine_model)->embedding_length;
            const float *sums = values_of(file, name, "in_sum2", columns, EXPERTS);
            for (size_t e = 0; e < EXPERTS; e++) {
                assert_true(counts[e] == (float)usage->layers[i].counts[e]);
                assert_int_equal(counts[e] > 0, sums[e * columns] > 0);
            }
        }
    snprintf(name, sizeof name, "%s",
             xm_gguf_find_tensor(engine_model->file, "output.weight") != NULL
                 ? "output.weight"
                 : "token_embd.weight");
    assert_true(values_of(file, "blk.0.attn_qkv.weight", "counts", 1, 1)[0] ==
                (float)usage->tokens);
    assert_true(values_of(file, name, "counts", 1, 1)[0] == sampled);
    xmoe_usage_free(usage);
}

static void test_counts(void **state)
{
    (void)state;
    static const int32_t step_tokens[] = {1, 7, 64};
    float *first = NULL;
    size_t columns = (size_t)xmoe_model_get_info(engine_model)->embedding_length;
    for (size_t i = 0; i < 3; i++) {
        xmoe_engine *engine = create_measuring(step_tokens[i]);
        float sampled = 0;
        for (int32_t n = 0; n < 4; n++) {
            call *c = call_new(n);
            call_run(engine, c);
            sampled += (float)c->choices[0].count;
            free(c);
        }
        xm_gguf *file = write_and_open(engine);
        check_counts(file, engine, sampled);
        const float *sums =
            values_of(file, "blk.1.ffn_up_exps.weight", "in_sum2", columns, EXPERTS);
        if (first == NULL) {
            first = malloc(columns * EXPERTS * sizeof *first);
            memcpy(first, sums, columns * EXPERTS * sizeof *first);
        }
        for (size_t j = 0; j < columns * EXPERTS; j++)
            assert_true(fabsf(sums[j] - first[j]) <= 1e-6f * first[j]);
        xm_gguf_close(file);
        xmoe_engine_free(engine);
    }
    free(first);
}

/* One token: the first matrix sees the norm of its embedding. */
static void test_sums(void **state)
{
    (void)state;
    xmoe_engine *engine = create_measuring(16);
    call *c = call_new(1);
    c->params.prompt_length = 1;
    c->params.max_tokens = 1;
    call_run(engine, c);
    xm_gguf *file = write_and_open(engine);
    int32_t d = xmoe_model_get_info(engine_model)->embedding_length;
    const float *sums = values_of(file, "blk.0.attn_qkv.weight", "in_sum2", (uint64_t)d, 1);
    float *x = malloc((size_t)d * sizeof *x), *normed = malloc((size_t)d * sizeof *normed);
    const xm_norm *norm = &engine_model->layers[0].attention_norm;
    xm_unpack_row(&engine_model->token_embedding, c->prompt[0], x);
    for (int32_t i = 0; i < d; i++)
        x[i] += engine_model->position_embedding[i];
    engine_model->kernels->layer_norm(x, norm->weight, norm->bias, engine_model->norm_epsilon,
                                      (size_t)d, normed);
    for (int32_t i = 0; i < d; i++)
        assert_true(sums[i] == normed[i] * normed[i]);
    free(x);
    free(normed);
    free(c);
    xm_gguf_close(file);
    xmoe_engine_free(engine);
}

/* What is written is what xmoe_quantize reads; the text comes out the same as without. */
static void test_read_back_and_harmless(void **state)
{
    (void)state;
    xmoe_engine *measuring = create_measuring(16), *plain = engine_create_small();
    call *a = call_new(3), *b = call_new(3);
    call_run(measuring, a);
    call_run(plain, b);
    call_assert_same_choice(&a->choices[0], &b->choices[0]);
    xm_gguf_close(write_and_open(measuring));
    xm_importance *importance;
    float *values;
    assert_int_equal(xm_importance_open(path, &importance, NULL), XMOE_OK);
    for (size_t i = 0; i < engine_model->named_count; i++) {
        const xm_gguf_tensor *tensor = engine_model->named[i].tensor;
        assert_int_equal(xm_importance_of(importance, tensor, &values, NULL), XMOE_OK);
        bool seen = strstr(tensor->name.data, "blk.") != NULL &&
                    strstr(tensor->name.data, "ffn_gate_inp") == NULL;
        assert_true(values != NULL || !seen);
        for (uint64_t j = 0; values != NULL && j < tensor->shape[0] * tensor->shape[2]; j++)
            assert_true(values[j] > 0 && isfinite(values[j]));
        xm_free(values);
    }
    xm_importance_close(importance);
    free(a);
    free(b);
    xmoe_engine_free(measuring);
    xmoe_engine_free(plain);
}

static void test_refusals(void **state)
{
    (void)state;
    xmoe_error error = {0};
    xmoe_engine *plain = engine_create_small(), *measuring = create_measuring(16);
    assert_int_equal(xmoe_engine_write_importance(plain, path, "", &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "measure_importance");
    assert_int_equal(
        xmoe_engine_write_importance(measuring, "/nonexistent/importance.gguf", "", &error),
        XMOE_ERROR_IO);
    xmoe_engine_free(plain);
    xmoe_engine_free(measuring);
}

static int set_up(void **state)
{
    snprintf(path, sizeof path, "/tmp/xmoe-test-importance-%ld.gguf", (long)getpid());
    return engine_load_model(state);
}

static int tear_down(void **state)
{
    unlink(path);
    return engine_free_model(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_read_back_and_harmless),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
