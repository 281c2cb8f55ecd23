/*
 * test_train_model.c - what leaves and what moves a network: GGUF files out and back in, evaluation
 * over windows, the optimiser against AdamW in double, the learning rate's course.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "train/evaluate.h"
#include "train/model_file.h"
#include "train/optimizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char directory[] = "/tmp/xmoe-test-model-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static void path_of(char path[256], const char *name)
{
    snprintf(path, 256, "%s/%s", directory, name);
}

static const xm_merge merges[] = {{'t', 'h'}, {' ', 257}, {258, 'e'}};
static const xm_vocabulary vocabulary = {(xm_merge *)(uintptr_t)merges, 3};

static xm_network *make_network(int32_t width)
{
    const xm_network_shape shape = {.vocabulary = 260,
                                    .context = 12,
                                    .width = width,
                                    .blocks = 4,
                                    .heads = 2,
                                    .feed_forward = 64,
                                    .experts = 5,
                                    .expert_feed_forward = 32,
                                    .moe_every = 2,
                                    .epsilon = 1e-5f,
                                    .router = XMOE_ROUTER_TOP_K,
                                    .threshold = 0.75f,
                                    .top_k = 3,
                                    .init_std = 0.1f,
                                    .router_std = 1.0f};
    xm_network *network = NULL;
    assert_int_equal(xm_network_create(&shape, &network, NULL), XMOE_OK);
    return network;
}

static float *make_parameters(const xm_network *network)
{
    float *parameters = xm_calloc_aligned(network->total, sizeof(float));
    assert_non_null(parameters);
    for (size_t i = 0; i < network->total; i++)
        parameters[i] = 0.1f * (float)xm_random_normal(2, 3, i);
    return parameters;
}

/* --- files ------------------------------------------------------------------------------------ */

static void test_round_trip(void **state)
{
    (void)state;
    char path[256];
    path_of(path, "model.gguf");
    xm_network *network = make_network(32), *copy = NULL;
    float *parameters = make_parameters(network);
    const xm_model_labels labels = {"toy", "none", NULL};
    assert_int_equal(xm_model_file_write(path, network, &vocabulary, &labels, parameters, NULL),
                     XMOE_OK);
    xm_gguf *file = NULL;
    xm_network_shape shape;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_open(path, &file, NULL), XMOE_OK);
    if (xm_model_file_shape(file, &shape, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    assert_int_equal(xm_network_create(&shape, &copy, NULL), XMOE_OK);
    assert_int_equal(copy->total, network->total);
    assert_int_equal(shape.router, XMOE_ROUTER_TOP_K);
    assert_int_equal(shape.top_k, 3);
    assert_true(shape.threshold == 0.75f && shape.epsilon == 1e-5f);
    assert_int_equal(shape.moe_every, 2);
    float *read = xm_calloc_aligned(copy->total, sizeof(float));
    assert_int_equal(xm_model_file_read(file, copy, read, NULL), XMOE_OK);
    assert_memory_equal(read, parameters, network->total * sizeof(float));
    /* The file's tensors by name are the network's. */
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, p->name);
        assert_non_null(tensor);
        assert_memory_equal(tensor->data, parameters + p->offset, p->count * sizeof(float));
    }
    xm_tokenizer *tokenizer = NULL;
    assert_int_equal(xm_tokenizer_from_gguf(file, &tokenizer, NULL), XMOE_OK);
    size_t length = 0;
    assert_memory_equal(xm_tokenizer_bytes(tokenizer, 259, &length), " the", 4);
    assert_int_equal(length, 4);
    assert_int_equal(xm_tokenizer_eos(tokenizer), XM_END_OF_TEXT);
    xm_tokenizer_free(tokenizer);
    xm_gguf_close(file);
    xm_network_free(network);
    xm_network_free(copy);
    xm_free(parameters);
    xm_free(read);
}

static void test_quantized_file_reads(void **state)
{
    (void)state;
    char plain[256], small[256];
    path_of(plain, "plain.gguf");
    path_of(small, "small.gguf");
    xm_network *network = make_network(32);
    float *parameters = make_parameters(network);
    float *read = xm_calloc_aligned(network->total, sizeof(float));
    const xm_model_labels labels = {0};
    xm_gguf *file = NULL;
    assert_int_equal(xm_model_file_write(plain, network, &vocabulary, &labels, parameters, NULL),
                     XMOE_OK);
    assert_int_equal(xmoe_quantize(plain, small, &(xmoe_quantize_options){.type = "Q8_0"}, NULL),
                     XMOE_OK);
    assert_int_equal(xm_gguf_open(small, &file, NULL), XMOE_OK);
    assert_int_equal(xm_model_file_read(file, network, read, NULL), XMOE_OK);
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, p->name);
        assert_int_equal(tensor->type_number, p->matrix ? XM_TYPE_Q8_0 : XM_TYPE_F32);
        for (size_t j = p->offset; j < p->offset + p->count; j++)
            assert_true(fabsf(read[j] - parameters[j]) < (p->matrix ? 0.003f : 1e-30f));
    }
    xm_gguf_close(file);
    xm_network_free(network);
    xm_free(parameters);
    xm_free(read);
}

static void test_wrong_files(void **state)
{
    (void)state;
    char path[256];
    path_of(path, "narrow.gguf");
    xm_network *narrow = make_network(32), *wide = make_network(64);
    float *parameters = make_parameters(wide);
    const xm_model_labels labels = {0};
    xm_gguf *file = NULL;
    xmoe_error error;
    assert_int_equal(xm_model_file_write(path, narrow, &vocabulary, &labels, parameters, NULL),
                     XMOE_OK);
    assert_int_equal(xm_gguf_open(path, &file, NULL), XMOE_OK);
    assert_int_equal(xm_model_file_read(file, wide, parameters, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "token_embd.weight: dimension 0 is 32"));
    xm_gguf_close(file);
    xm_network_free(narrow);
    xm_network_free(wide);
    xm_free(parameters);
}

/* --- evaluation ------------------------------------------------------------------------------- */

/* Every token but the first is counted once at any stride, and with stride 1 the loss of a token
 * is that of its window's last position. */
static void test_windows(void **state)
{
    (void)state;
    xm_network *network = make_network(32);
    float *parameters = make_parameters(network);
    xm_tokenizer *tokenizer = NULL;
    xm_evaluator *evaluator = NULL;
    assert_int_equal(xm_vocabulary_tokenizer(&vocabulary, &tokenizer, NULL), XMOE_OK);
    assert_int_equal(xm_evaluator_create(network, tokenizer, NULL, 3, &evaluator, NULL), XMOE_OK);
    enum { COUNT = 41, LENGTH = 12 };
    uint16_t tokens[COUNT];
    for (uint64_t i = 0; i < COUNT; i++)
        tokens[i] = (uint16_t)(xm_random_bits(8, 8, i) % 260);
    const xm_token_file text = {.tokens = tokens, .count = COUNT};
    xm_evaluation e;
    for (int32_t stride = 1; stride <= LENGTH; stride++) {
        assert_int_equal(xm_evaluate(evaluator, parameters, &text, stride, 0, &e, NULL), XMOE_OK);
        assert_int_equal(e.tokens, COUNT - 1);
        assert_true(e.active[1] == 3.0 * (COUNT - 1) && e.active[0] == 0);
    }
    assert_int_equal(xm_evaluate(evaluator, parameters, &text, LENGTH, 2, &e, NULL), XMOE_OK);
    assert_int_equal(e.tokens, 2 * LENGTH);
    assert_int_equal(xm_evaluate(evaluator, parameters, &text, 0, 0, &e, NULL),
                     XMOE_ERROR_ARGUMENT);

    double sum = 0;
    assert_int_equal(xm_evaluate(evaluator, parameters, &text, 1, 0, &e, NULL), XMOE_OK);
    for (int32_t target = 1; target < COUNT; target++) {
        int32_t begin = target <= LENGTH ? 0 : target - LENGTH, length = target - begin;
        int32_t window[LENGTH], targets[LENGTH];
        for (int32_t i = 0; i < length; i++) {
            window[i] = tokens[begin + i];
            targets[i] = i + 1 == length ? tokens[target] : -1;
        }
        const xm_pass_options options = {.sequences = 1, .length = length};
        xm_pass *pass = NULL;
        xm_pass_result result;
        assert_int_equal(xm_pass_create(network, NULL, &options, &pass, NULL), XMOE_OK);
        xm_pass_run(pass, parameters, window, targets, NULL, &result);
        sum += result.loss;
        xm_pass_free(pass);
    }
    assert_true(fabs(sum - e.nats) < 1e-5 * sum);
    xm_evaluator_free(evaluator);
    xm_tokenizer_free(tokenizer);
    xm_network_free(network);
    xm_free(parameters);
}

/* --- optimiser -------------------------------------------------------------------------------- */

static const xm_optimizer_rule rule = {.peak_rate = 0.01,
                                       .final_rate = 0.001,
                                       .warmup_steps = 2,
                                       .total_steps = 6,
                                       .beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .weight_decay = 0.1,
                                       .clip = 1.0};

static void test_learning_rate(void **state)
{
    (void)state;
    const double expected[] = {0.005,  0.01,
                               0.01,   0.001 + 0.0045 * (1 + M_SQRT1_2),
                               0.0055, 0.001 + 0.0045 * (1 - M_SQRT1_2),
                               0.001,  0.001};
    for (int64_t step = 0; step < 8; step++)
        assert_true(fabs(xm_learning_rate(&rule, step) - expected[step]) < 1e-12);
}

/* The peak is held until the fall begins; a fall longer than the run begins after the warm-up. */
static void test_learning_rate_held(void **state)
{
    (void)state;
    const double expected[] = {0.005, 0.01, 0.01, 0.01, 0.01, 0.0055, 0.001};
    xm_optimizer_rule held = rule;
    held.decay_steps = 2;
    for (int64_t step = 0; step < 7; step++)
        assert_true(fabs(xm_learning_rate(&held, step) - expected[step]) < 1e-12);
    held.decay_steps = 100;
    for (int64_t step = 0; step < 7; step++)
        assert_true(xm_learning_rate(&held, step) == xm_learning_rate(&rule, step));
}

static void test_adamw(void **state)
{
    (void)state;
    xm_network *network = make_network(32);
    size_t total = network->total;
    float *parameters = make_parameters(network);
    float *gradients = xm_calloc_aligned(total, sizeof(float));
    float *group = xm_calloc_aligned(total, sizeof(float));
    float *other = xm_calloc_aligned(total, sizeof(float));
    double *w = calloc(total, sizeof *w), *m = calloc(total, sizeof *m),
           *v = calloc(total, sizeof *v);
    xm_workers *workers = NULL;
    xm_optimizer optimizer;
    assert_int_equal(xm_workers_create(2, &workers, NULL), XMOE_OK);
    const xm_ranks alone = {.rank = 0, .count = 1};
    assert_int_equal(xm_optimizer_create(network, XM_OPTIMIZER_ADAMW, &xm_gemm_f32, workers, &alone,
                                         &optimizer, NULL),
                     XMOE_OK);
    for (size_t i = 0; i < total; i++)
        w[i] = (double)parameters[i];
    for (int64_t step = 0; step < 3; step++) {
        double squares = 0;
        for (size_t i = 0; i < total; i++) {
            gradients[i] = 0.02f * (float)xm_random_normal(6, (uint64_t)step, i);
            squares += (double)gradients[i] * (double)gradients[i];
        }
        /* Groups whose mean it is. */
        for (size_t i = 0; i < total; i++) {
            other[i] = 1.5f * gradients[i];
            group[i] = 0.5f * gradients[i];
        }
        double norm = 0;
        assert_int_equal(
            xm_gradient_mean(&optimizer, (float *const[]){group, other}, 2, &norm, NULL), XMOE_OK);
        assert_true(fabs(norm - sqrt(squares)) < 1e-6 * norm);
        assert_true(norm > rule.clip);
        xm_optimizer_step(&optimizer, &rule, step, norm, group, parameters);
        double rate = xm_learning_rate(&rule, step);
        for (int32_t p = 0; p < network->parameter_count; p++) {
            const xm_parameter *tensor = &network->parameters[p];
            double decay = tensor->dimensions > 1 && strstr(tensor->name, "bias") == NULL ? 0.1 : 0;
            for (size_t i = tensor->offset; i < tensor->offset + tensor->count; i++) {
                double g = (double)gradients[i] / norm;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                double first = m[i] / (1 - pow(0.9, (double)step + 1));
                double second = v[i] / (1 - pow(0.95, (double)step + 1));
                w[i] -= rate * (first / (sqrt(second) + 1e-8) + decay * w[i]);
            }
        }
    }
    for (size_t i = 0; i < total; i++)
        if (fabs(w[i] - (double)parameters[i]) > 1e-6)
            fail_msg("%s: %.9g, in double %.9g", xm_network_parameter_at(network, i)->name,
                     (double)parameters[i], w[i]);
    xm_optimizer_free(&optimizer);
    xm_workers_free(workers);
    xm_network_free(network);
    xm_free(parameters);
    xm_free(gradients);
    xm_free(group);
    xm_free(other);
    free(w);
    free(m);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_quantized_file_reads),
        cmocka_unit_test(test_wrong_files),   cmocka_unit_test(test_windows),
        cmocka_unit_test(test_learning_rate), cmocka_unit_test(test_learning_rate_held),
        cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
