/*
 * test_model.c - what a loaded model says about itself: figures, routing, tokens, progress; and the
 * random models that tests and benchmarks load.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model_fixture.h"

#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- figures, routing, tokens ----------------------------------------------------------------- */

static void info_describes_the_file(void **state)
{
    (void)state;
    xmoe_model *model = model_load_good();
    const xmoe_model_info *info = xmoe_model_get_info(model);
    const uint64_t d = 64, ff = 96, eff = 32, experts = 6, vocabulary = 290, context = 48;
    const uint64_t attention = 4 * d * d + 4 * d + 4 * d, dense = 2 * d * ff + ff + d;
    const uint64_t expert = 2 * d * eff + eff + d;
    const uint64_t all = 2 * vocabulary * d + context * d + 2 * d + 4 * attention + 2 * dense +
                         2 * (experts * expert + experts * d);
    const uint64_t expert_bytes = 2 * d * eff / 32 * 34 + 4 * (eff + d);
    assert_string_equal(info->architecture, "xmoe");
    assert_string_equal(info->name, "random");
    assert_string_equal(info->license, "");
    assert_string_equal(info->quantization, "Q8_0");
    assert_null(info->chat_template);
    assert_int_equal(info->context_length, context);
    assert_int_equal(info->head_length, 16);
    assert_int_equal(info->moe_layer_count, 2);
    assert_int_equal(info->vocabulary_size, vocabulary);
    assert_int_equal(info->eos_token, 256);
    assert_int_equal(info->parameter_count, all);
    assert_int_equal(info->expert_bytes, expert_bytes);
    assert_int_equal(info->expert_multiply_adds, 2 * d * eff);
    uint64_t tables = vocabulary * d / 32 * 34 + context * d * 4;
    uint64_t looked_up = d / 32 * 34 + d * 4;
    assert_int_equal(info->shared_bytes,
                     info->weight_bytes - 2 * experts * expert_bytes - tables + looked_up);
    assert_false(xmoe_model_layer_is_moe(model, 0));
    assert_true(xmoe_model_layer_is_moe(model, 3));
    assert_false(xmoe_model_layer_is_moe(model, 4));
    assert_false(xmoe_model_layer_is_moe(model, -1));
    xmoe_model_free(model);
}

static void embeddings_are_those_of_the_file(void **state)
{
    (void)state;
    xmoe_model *model = model_load_good();
    xm_gguf *file;
    assert_int_equal(xm_gguf_open(model_good, &file, NULL), XMOE_OK);
    const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, "token_embd.weight");
    const uint8_t *rows = tensor->data;
    for (int32_t row = 0; row < 290; row += 17) {
        float expected[64], found[64];
        xm_weights_to_f32(tensor->traits, rows + (size_t)row * 68, expected, 64);
        xm_unpack_row(&model->token_embedding, row, found);
        assert_memory_equal(found, expected, sizeof found);
    }
    xm_gguf_close(file);
    xmoe_model_free(model);
}

static void routing_is_checked(void **state)
{
    (void)state;
    xmoe_model *model = model_load_good();
    const struct {
        xmoe_router router;
        const char *parameter; /* NULL: fine */
    } cases[] = {
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f, .min_experts = 1}, NULL},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.0f, .min_experts = 1}, "threshold"},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.1f, .min_experts = 1}, "threshold"},
        {{.type = XMOE_ROUTER_THRESHOLD, .threshold = NAN, .min_experts = 1}, "threshold"},
        {{.type = XMOE_ROUTER_TOP_K, .top_k = 99, .min_experts = 1}, NULL},
        {{.type = XMOE_ROUTER_TOP_K, .top_k = 0, .min_experts = 1}, "top_k"},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 0}, "min_experts"},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 7}, "min_experts"},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 2, .max_experts = 1}, "max_experts"},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 2, .max_experts = -1}, "max_experts"},
        {{.type = XMOE_ROUTER_DENSE, .min_experts = 2, .max_experts = 99}, NULL},
        {{.type = (xmoe_router_type)9, .min_experts = 1}, "layers"},
        {{.type = XMOE_ROUTER_SIGMOID, .threshold = 0.5f, .min_experts = 1}, "type"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xmoe_routing routing;
        xmoe_error error = {0};
        xmoe_model_default_routing(model, &routing);
        assert_int_equal(routing.layer_count, 4);
        assert_int_equal(xmoe_routing_check(model, &routing, &error), XMOE_OK);
        routing.layers[0] = cases[i].router; /* not a MoE layer: not looked at */
        assert_int_equal(xmoe_routing_check(model, &routing, &error), XMOE_OK);
        routing.layers[3] = cases[i].router;
        xmoe_status status = xmoe_routing_check(model, &routing, &error);
        assert_int_equal(status, cases[i].parameter == NULL ? XMOE_OK : XMOE_ERROR_ARGUMENT);
        if (cases[i].parameter != NULL)
            assert_string_equal(error.parameter, cases[i].parameter);
    }
    xmoe_routing routing;
    xmoe_error error;
    xmoe_model_default_routing(model, &routing);
    routing.layer_count = 3;
    assert_int_equal(xmoe_routing_check(model, &routing, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "layers");
    xmoe_model_free(model);
}

static void router_types_have_names(void **state)
{
    (void)state;
    for (int i = XMOE_ROUTER_THRESHOLD; i <= XMOE_ROUTER_SIGMOID; i++) {
        xmoe_router_type type;
        assert_true(xmoe_router_type_parse(xmoe_router_type_name((xmoe_router_type)i), &type));
        assert_int_equal(type, i);
    }
    xmoe_router_type type = XMOE_ROUTER_DENSE;
    assert_null(xmoe_router_type_name((xmoe_router_type)4));
    assert_false(xmoe_router_type_parse("softmax", &type));
    assert_int_equal(type, XMOE_ROUTER_DENSE);
    assert_string_equal(xmoe_version(), "0.1.0");
}

static void any_text_becomes_tokens_and_back(void **state)
{
    (void)state;
    xmoe_model *model = model_load_good();
    const char text[] = "the cab \xff\x01 \xe4\xbd\xa0<|endoftext|>";
    int32_t *tokens;
    size_t count, length = 0;
    char back[64];
    assert_int_equal(
        xmoe_tokenize(model, text, sizeof text - 1, false, true, &tokens, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        size_t piece;
        const char *bytes = xmoe_token_bytes(model, tokens[i], &piece);
        memcpy(back + length, bytes, piece);
        length += piece;
    }
    assert_int_equal(length, sizeof text - 1);
    assert_memory_equal(back, text, length);
    assert_int_equal(tokens[count - 1], 256);
    assert_true(xmoe_token_is_special(model, 256));
    assert_false(xmoe_token_is_special(model, 97));
    assert_true(count < length - 13); /* merges were used */
    free(tokens);
    xmoe_model_free(model);
}

/* --- options -------------------------------------------------------------------------------- */

typedef struct {
    uint64_t last, total;
    int calls, stop_at;
} progress_log;

static bool log_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    progress_log *log = context;
    assert_non_null(what);
    assert_true(done >= log->last && done <= total);
    log->last = done;
    log->total = total;
    return ++log->calls != log->stop_at;
}

static void progress_is_told_and_obeyed(void **state)
{
    (void)state;
    progress_log log = {0};
    xmoe_model *model;
    xmoe_error error;
    xmoe_model_options options = {.progress = log_progress, .progress_context = &log};
    assert_int_equal(xmoe_model_load(model_good, &options, &model, NULL), XMOE_OK);
    assert_int_equal(log.last, log.total);
    assert_int_equal(log.total, model->info.weight_bytes);
    xmoe_model_free(model);
    log = (progress_log){.stop_at = 1};
    assert_int_equal(xmoe_model_load(model_good, &options, &model, &error), XMOE_ERROR_ARGUMENT);
    assert_null(model);
}

static void options_are_checked(void **state)
{
    (void)state;
    xmoe_model *model;
    xmoe_error error;
    const xmoe_model_options options = {.isa = "mmx"};
    assert_int_equal(xmoe_model_load(model_good, &options, &model, &error), XMOE_ERROR_ARGUMENT);
    const xmoe_model_options crowded = {.threads = 1000000000};
    assert_int_equal(xmoe_model_load(model_good, &crowded, &model, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "threads");
    assert_int_equal(model_load("/nowhere/model.gguf", &model, &error), XMOE_ERROR_IO);
    assert_non_null(strstr(error.message, "/nowhere/model.gguf"));
}

/* --- random models ---------------------------------------------------------------------------- */

static void random_models_are_reproducible(void **state)
{
    (void)state;
    size_t size, other_size;
    uint8_t *bytes = model_read_file(model_good, &size);
    assert_int_equal(xmoe_random_model_write(model_bad, &model_shape, NULL, NULL, NULL), XMOE_OK);
    uint8_t *other = model_read_file(model_bad, &other_size);
    assert_int_equal(size, other_size);
    assert_memory_equal(bytes, other, size);
    free(other);
    xmoe_random_model seeded = model_shape;
    seeded.seed++;
    assert_int_equal(xmoe_random_model_write(model_bad, &seeded, NULL, NULL, NULL), XMOE_OK);
    other = model_read_file(model_bad, &other_size);
    assert_int_equal(size, other_size);
    assert_memory_not_equal(bytes, other, size);
    free(other);
    free(bytes);
}

static void random_model_shapes_are_checked(void **state)
{
    (void)state;
    xmoe_error error;
    xmoe_random_model wrong;
#define ASSERT_WRONG(field, value, name)                                                           \
    wrong = model_shape;                                                                           \
    wrong.field = value;                                                                           \
    unlink(model_bad);                                                                             \
    assert_int_equal(xmoe_random_model_write(model_bad, &wrong, NULL, NULL, &error),               \
                     XMOE_ERROR_ARGUMENT);                                                         \
    assert_string_equal(error.parameter, name);                                                    \
    assert_int_equal(access(model_bad, F_OK), -1)
    ASSERT_WRONG(context_length, 0, "context_length");
    ASSERT_WRONG(embedding_length, 48, "embedding_length");
    ASSERT_WRONG(embedding_length, -64, "embedding_length");
    ASSERT_WRONG(embedding_length, 1 << 17, "embedding_length");
    ASSERT_WRONG(layer_count, 257, "layer_count");
    ASSERT_WRONG(head_count, 3, "head_count");
    ASSERT_WRONG(head_count, 0, "head_count");
    ASSERT_WRONG(feed_forward_length, 33, "feed_forward_length");
    ASSERT_WRONG(expert_count, 1025, "expert_count");
    ASSERT_WRONG(expert_feed_forward_length, 8, "expert_feed_forward_length");
    ASSERT_WRONG(vocabulary_size, 256, "vocabulary_size");
    ASSERT_WRONG(moe_every, -1, "moe_every");
    ASSERT_WRONG(router.threshold, 0.0f, "threshold");
    ASSERT_WRONG(router.type, (xmoe_router_type)7, "router");
    ASSERT_WRONG(router_spread, NAN, "router_spread");
    ASSERT_WRONG(type, "Q4_2", "type");
    ASSERT_WRONG(type, NULL, "type");
#undef ASSERT_WRONG
    progress_log log = {.stop_at = 2};
    assert_int_equal(xmoe_random_model_write(model_bad, &model_shape, log_progress, &log, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_int_equal(access(model_bad, F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(info_describes_the_file),
        cmocka_unit_test(embeddings_are_those_of_the_file),
        cmocka_unit_test(routing_is_checked),
        cmocka_unit_test(router_types_have_names),
        cmocka_unit_test(any_text_becomes_tokens_and_back),
        cmocka_unit_test(progress_is_told_and_obeyed),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(random_models_are_reproducible),
        cmocka_unit_test(random_model_shapes_are_checked),
    };
    return cmocka_run_group_tests(tests, model_write_good, model_remove_files);
}
