/*
 * test_quantize.c - changing the weight types of a model: which tensor gets which type, mixes,
 * patterns, files of importance, and that nothing depends on threads.
 */
#include "gguf_bytes.h"

#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- a model of a few tensors --- */

typedef struct {
    const char *name;
    uint64_t shape[3];
    bool is_matrix;
} row;

static const row rows[] = {
    {"token_embd.weight", {256, 6, 1}, true},
    {"position_embd.weight", {64, 4, 1}, false},
    {"output_norm.weight", {64, 1, 1}, false},
    {"blk.0.attn_qkv.weight", {256, 3, 1}, true},
    {"blk.0.attn_q_norm.weight", {64, 2, 1}, false},
    {"blk.0.ffn_down.weight", {96, 2, 1}, true},
    {"blk.0.odd.weight", {24, 3, 1}, true},
    {"blk.1.ffn_gate_inp.weight", {32, 2, 1}, false},
    {"blk.1.ffn_up_exps.weight", {256, 5, 2}, true},
    {"blk.1.ffn_up_exps.bias", {32, 2, 1}, false},
    {"blk.1.ffn_down_exps.weight", {256, 2, 2}, true},
    {"blk.2.ffn_down_exps.weight", {512, 100, 3}, true}, /* more than one batch of pieces */
};

enum { ROWS = sizeof rows / sizeof *rows, MOST = 512 * 100 * 3 };

static uint64_t elements_of(const row *r)
{
    return r->shape[0] * r->shape[1] * r->shape[2];
}

static uint64_t total_elements(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < ROWS; i++)
        sum += elements_of(&rows[i]);
    return sum;
}

static const float *values_of(const row *r)
{
    static float values[MOST];
    for (uint64_t i = 0; i < elements_of(r); i++)
        values[i] = (float)xm_random_normal(9, (uint64_t)(r - rows), i);
    return values;
}

/* A bad value at the start of the first matrix, where it is not 0. */
static void write_model_with(float bad)
{
    xm_gguf_writer *writer;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_writer_create(gguf_target, &writer, &error), XMOE_OK);
    xm_gguf_writer_string(writer, "general.architecture", "any");
    xm_gguf_writer_u32(writer, "general.file_type", 0);
    xm_gguf_writer_u32(writer, "general.alignment", 32);
    for (size_t i = 0; i < ROWS; i++)
        xm_gguf_writer_tensor(writer, rows[i].name, XM_TYPE_F32, rows[i].shape[2] > 1 ? 3 : 2,
                              rows[i].shape);
    xm_gguf_writer_begin(writer);
    for (size_t i = 0; i < ROWS; i++) {
        const float *values = values_of(&rows[i]);
        uint64_t from = i == 0 && bad != 0.0f;
        if (from > 0)
            xm_gguf_writer_data(writer, &bad, sizeof bad);
        xm_gguf_writer_data(writer, values + from,
                            (size_t)(elements_of(&rows[i]) - from) * sizeof(float));
    }
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void write_model(void)
{
    write_model_with(0.0f);
}

/* --- helpers --- */

static char notes[2048];

static void take_note(void *context, const char *note)
{
    (void)context;
    snprintf(notes + strlen(notes), sizeof notes - strlen(notes), "%s\n", note);
}

static void must_quantize(xmoe_quantize_options options)
{
    xmoe_error error = {0};
    options.on_note = take_note;
    notes[0] = '\0';
    if (xmoe_quantize(gguf_target, gguf_other, &options, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void expect_failure(xmoe_quantize_options options, xmoe_status status, const char *message)
{
    xmoe_error error = {0};
    int files = gguf_files_in_directory();
    assert_int_equal(xmoe_quantize(gguf_target, gguf_other, &options, &error), status);
    assert_int_equal(error.status, status);
    gguf_expect_message(&error, message);
    assert_int_equal(gguf_files_in_directory(), files);
}

static void expect_type(const xm_gguf *file, const char *tensor, const char *type)
{
    const xm_gguf_tensor *found = xm_gguf_find_tensor(file, tensor);
    assert_non_null(found);
    if (strcmp(found->traits->name, type) != 0)
        fail_msg("%s is %s, expected %s", tensor, found->traits->name, type);
}

static void expect_file_type(const xm_gguf *file, uint32_t expected)
{
    uint32_t value;
    assert_int_equal(xm_gguf_get_u32(file, "general.file_type", &value, NULL, NULL), XMOE_OK);
    assert_int_equal(value, expected);
    assert_int_equal(xm_gguf_get_u32(file, "general.quantization_version", &value, NULL, NULL),
                     XMOE_OK);
    assert_int_equal(value, 2);
}

/* Every tensor holds what its type makes of the model's values. */
static void check_values(const xm_gguf *file)
{
    static unsigned char expected[MOST * sizeof(float)];
    assert_int_equal(xm_gguf_tensor_count(file), ROWS);
    for (size_t i = 0; i < ROWS; i++) {
        const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, rows[i].name);
        assert_non_null(tensor);
        if (!rows[i].is_matrix)
            assert_string_equal(tensor->traits->name, "F32");
        xm_weights_from_f32(tensor->traits, values_of(&rows[i]), NULL, expected,
                            (size_t)elements_of(&rows[i]));
        assert_memory_equal(tensor->data, expected, tensor->bytes);
    }
}

/* --- types --- */

static bool count_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    uint64_t *last = context;
    assert_non_null(what);
    assert_true(done > *last && done <= total && total == total_elements() * sizeof(float));
    *last = done;
    return true;
}

static void test_every_type(void **state)
{
    (void)state;
    size_t count;
    const xm_weight_traits *types = xm_weight_traits_all(&count);
    write_model();
    for (size_t i = 0; i < count; i++) {
        uint64_t last = 0;
        must_quantize((xmoe_quantize_options){
            .type = types[i].name, .progress = count_progress, .progress_context = &last});
        assert_int_equal(last, total_elements() * sizeof(float));
        xm_gguf *file = gguf_must_open(gguf_other);
        check_values(file);
        expect_type(file, "blk.1.ffn_up_exps.weight", types[i].name);
        expect_file_type(file, types[i].file_type);
        xm_gguf_close(file);
    }
    unlink(gguf_other);
}

static void test_rows_that_do_not_fit(void **state)
{
    (void)state;
    static const struct {
        const char *type, *rows_of_96;
    } chain[] = {{"Q2_K", "Q4_0"}, {"Q3_K", "Q4_0"}, {"Q4_K", "Q5_0"},     {"Q5_K", "Q5_1"},
                 {"Q6_K", "Q8_0"}, {"Q4_0", "Q4_0"}, {"IQ4_XS", "IQ4_NL"}, {"BF16", "BF16"}};
    write_model();
    for (size_t i = 0; i < sizeof chain / sizeof *chain; i++) {
        must_quantize((xmoe_quantize_options){.type = chain[i].type});
        xm_gguf *file = gguf_must_open(gguf_other);
        bool plain = strcmp(chain[i].type, "BF16") == 0;
        expect_type(file, "blk.0.ffn_down.weight", chain[i].rows_of_96);
        expect_type(file, "blk.0.odd.weight", plain ? "BF16" : "F16");
        xm_gguf_close(file);
        assert_int_equal(strstr(notes, "blk.0.odd.weight: rows of 24") != NULL, !plain);
    }
    unlink(gguf_other);
}

/* What has its type already is copied; a file may replace itself. */
static void test_quantized_again(void **state)
{
    (void)state;
    write_model();
    must_quantize((xmoe_quantize_options){.type = "Q4_0"});
    assert_null(strstr(notes, "already"));
    xmoe_quantize_options same = {.type = "Q4_0"}, other = {.type = "Q8_0", .on_note = take_note};
    assert_int_equal(xmoe_quantize(gguf_other, gguf_other, &same, NULL), XMOE_OK);
    xm_gguf *file = gguf_must_open(gguf_other);
    check_values(file);
    xm_gguf_close(file);
    assert_int_equal(xmoe_quantize(gguf_other, gguf_other, &other, NULL), XMOE_OK);
    assert_non_null(strstr(notes, "quantised already"));
    unlink(gguf_other);
}

static void test_mix(void **state)
{
    (void)state;
    write_model();
    must_quantize((xmoe_quantize_options){.type = "Q4_K_M"});
    xm_gguf *file = gguf_must_open(gguf_other);
    expect_file_type(file, 15);
    expect_type(file, "token_embd.weight", "Q6_K"); /* it is the output matrix too */
    expect_type(file, "blk.0.attn_qkv.weight", "Q6_K");
    expect_type(file, "blk.0.ffn_down.weight", "Q5_0"); /* Q4_K, but rows of 96 */
    expect_type(file, "blk.1.ffn_up_exps.weight", "Q4_K");
    expect_type(file, "blk.1.ffn_down_exps.weight", "Q4_K");
    expect_type(file, "blk.2.ffn_down_exps.weight", "Q6_K"); /* every third */
    check_values(file);
    xm_gguf_close(file);
    unlink(gguf_other);
}

static void test_overrides(void **state)
{
    (void)state;
    static const xmoe_quantize_override overrides[] = {
        {"*_exps.weight", "Q6_K"}, {"blk.2.*", "Q5_1"}, {"*odd*", "F32"}};
    write_model();
    must_quantize((xmoe_quantize_options){
        .type = "Q4_0", .output_type = "Q8_0", .overrides = overrides, .override_count = 3});
    xm_gguf *file = gguf_must_open(gguf_other);
    expect_type(file, "token_embd.weight", "Q8_0"); /* it is the output matrix too */
    expect_type(file, "blk.0.attn_qkv.weight", "Q4_0");
    expect_type(file, "blk.0.odd.weight", "F32");
    expect_type(file, "blk.1.ffn_up_exps.weight", "Q6_K");
    expect_type(file, "blk.2.ffn_down_exps.weight", "Q5_1");
    check_values(file);
    xm_gguf_close(file);
    must_quantize(
        (xmoe_quantize_options){.type = "Q4_0", .output_type = "Q8_0", .embedding_type = "Q5_0"});
    file = gguf_must_open(gguf_other);
    expect_type(file, "token_embd.weight", "Q5_0");
    xm_gguf_close(file);
    unlink(gguf_other);
}

static void test_refusals(void **state)
{
    (void)state;
    write_model();
    unlink(gguf_other);
    expect_failure((xmoe_quantize_options){.type = "Q4_2"}, XMOE_ERROR_ARGUMENT,
                   "unknown weight type 'Q4_2': expected one of F32|");
    expect_failure((xmoe_quantize_options){0}, XMOE_ERROR_ARGUMENT, "unknown weight type ''");
    expect_failure((xmoe_quantize_options){.type = "Q4_0", .output_type = "Q4_K_M"},
                   XMOE_ERROR_ARGUMENT, "unknown weight type 'Q4_K_M'");
    expect_failure((xmoe_quantize_options){.type = "Q4_0", .embedding_type = ""},
                   XMOE_ERROR_ARGUMENT, "unknown weight type ''");
    xmoe_quantize_override override = {"blk.7.*", "Q4_0"};
    expect_failure(
        (xmoe_quantize_options){.type = "Q4_0", .overrides = &override, .override_count = 1},
        XMOE_ERROR_ARGUMENT, "no matrix has a name like 'blk.7.*'");
    override = (xmoe_quantize_override){"*", "Q4"};
    expect_failure(
        (xmoe_quantize_options){.type = "Q4_0", .overrides = &override, .override_count = 1},
        XMOE_ERROR_ARGUMENT, "unknown weight type 'Q4'");
    write_model_with(NAN);
    expect_failure((xmoe_quantize_options){.type = "Q8_0"}, XMOE_ERROR_FORMAT,
                   "tensor 'token_embd.weight' has values that Q8_0 cannot hold");
    write_model_with(70000.0f);
    expect_failure((xmoe_quantize_options){.type = "F16"}, XMOE_ERROR_FORMAT,
                   "values that F16 cannot hold");
    gguf_write_sample();
    expect_failure((xmoe_quantize_options){.type = "Q8_0"}, XMOE_ERROR_UNSUPPORTED,
                   "tensor 'unread.weight' has type 16");
    unlink(gguf_target);
    expect_failure((xmoe_quantize_options){.type = "Q8_0"}, XMOE_ERROR_IO, "cannot open");
}

static bool stop_at_end(void *context, const char *what, uint64_t done, uint64_t total)
{
    (void)context;
    (void)what;
    return done < total;
}

static void test_stopped(void **state)
{
    (void)state;
    write_model();
    expect_failure((xmoe_quantize_options){.type = "Q8_0", .progress = stop_at_end},
                   XMOE_ERROR_ARGUMENT, "stopped");
}

static void test_without_memory(void **state)
{
    (void)state;
    write_model();
    xmoe_status status = XMOE_ERROR_MEMORY;
    xmoe_quantize_options options = {.type = "Q8_0", .threads = 2};
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        xm_memory_fail_after(allowed);
        status = xmoe_quantize(gguf_target, gguf_other, &options, NULL);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        assert_int_equal(gguf_files_in_directory(), status == XMOE_OK ? 2 : 1);
    }
    assert_true(allowed > 10);
    unlink(gguf_other);
}

/* --- importance --- */

static char importance_path[96];

/* An entry of a file of importance; shapes as llama.cpp has them. */
typedef struct {
    const char *matrix;
    uint64_t columns, experts, counts;
    const float *sums, *count;
} entry;

static void write_importance(const char *type, const entry *entries, size_t count)
{
    xm_gguf_writer *writer;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_writer_create(importance_path, &writer, &error), XMOE_OK);
    if (type != NULL)
        xm_gguf_writer_string(writer, "general.type", type);
    for (size_t i = 0; i < count; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s.in_sum2", entries[i].matrix);
        xm_gguf_writer_tensor(writer, name, XM_TYPE_F32, 2,
                              (uint64_t[]){entries[i].columns, entries[i].experts});
        snprintf(name, sizeof name, "%s.counts", entries[i].matrix);
        xm_gguf_writer_tensor(writer, name, XM_TYPE_F32, 2, (uint64_t[]){1, entries[i].counts});
    }
    xm_gguf_writer_begin(writer);
    for (size_t i = 0; i < count; i++) {
        xm_gguf_writer_data(writer, entries[i].sums,
                            (size_t)(entries[i].columns * entries[i].experts) * sizeof(float));
        xm_gguf_writer_data(writer, entries[i].count, (size_t)entries[i].counts * sizeof(float));
    }
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

enum { COLUMNS = 512, EXPERTS = 3 };

/* A few columns of each expert carry nearly all; expert 2 saw nothing. */
static void make_sums(float sums[EXPERTS * COLUMNS], float counts[EXPERTS])
{
    for (size_t i = 0; i < EXPERTS * COLUMNS; i++)
        sums[i] = i % 16 == i / COLUMNS ? 1000.0f : 1.0f;
    memset(sums + 2 * COLUMNS, 0, COLUMNS * sizeof *sums);
    counts[0] = 100.0f;
    counts[1] = 1000.0f;
    counts[2] = 0.0f;
}

/* Squared error of an expert of the last tensor, each column weighed. */
static double weighed_error(const float *sums, size_t expert)
{
    static float decoded[MOST];
    const row *r = &rows[ROWS - 1];
    xm_gguf *file = gguf_must_open(gguf_other);
    const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, r->name);
    const float *values = values_of(r);
    double error = 0;
    xm_weights_to_f32(tensor->traits, tensor->data, decoded, MOST);
    for (size_t i = expert * 100 * COLUMNS; i < (expert + 1) * 100 * COLUMNS; i++) {
        double difference = (double)(decoded[i] - values[i]);
        error += difference * difference * (double)sums[expert * COLUMNS + i % COLUMNS];
    }
    xm_gguf_close(file);
    return error;
}

static void test_importance(void **state)
{
    (void)state;
    static const char *const types[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1",   "Q2_K",   "Q3_K",
                                        "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"};
    static float sums[EXPERTS * COLUMNS];
    float counts[EXPERTS];
    make_sums(sums, counts);
    entry it = {rows[ROWS - 1].name, COLUMNS, EXPERTS, EXPERTS, sums, counts};
    write_model();
    write_importance("imatrix", &it, 1);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        double plain[2];
        must_quantize((xmoe_quantize_options){.type = types[i]});
        for (size_t e = 0; e < 2; e++)
            plain[e] = weighed_error(sums, e);
        must_quantize((xmoe_quantize_options){.type = types[i], .importance = importance_path});
        assert_non_null(strstr(notes, "has nothing of 6 matrices"));
        for (size_t e = 0; e < 2; e++)
            if (!(weighed_error(sums, e) < 0.98 * plain[e]))
                fail_msg("%s, expert %zu: %g with importance, %g without", types[i], e,
                         weighed_error(sums, e), plain[e]);
    }
    unlink(importance_path);
    unlink(gguf_other);
}

static void expect_importance_refused(const entry *it, const char *type, const char *message)
{
    write_importance(type, it, 1);
    expect_failure((xmoe_quantize_options){.type = "Q4_0", .importance = importance_path},
                   XMOE_ERROR_FORMAT, message);
}

static void test_importance_that_does_not_fit(void **state)
{
    (void)state;
    static float sums[EXPERTS * COLUMNS];
    float counts[EXPERTS];
    make_sums(sums, counts);
    const entry good = {rows[ROWS - 1].name, COLUMNS, EXPERTS, EXPERTS, sums, counts};
    entry it = good;
    write_model();
    expect_importance_refused(&it, NULL, "general.type is not 'imatrix'");
    expect_importance_refused(&it, "model", "general.type is not 'imatrix'");
    it.columns = COLUMNS / 2;
    expect_importance_refused(&it, "imatrix", "is [256, 3], but the matrix has 512 columns and 3");
    it = good;
    it.experts = 2;
    expect_importance_refused(&it, "imatrix", "is [512, 2], but the matrix has 512 columns and 3");
    it = good;
    it.counts = 2;
    expect_importance_refused(&it, "imatrix", "not one number for each of 3 experts");
    it = good;
    sums[5] = -1.0f;
    expect_importance_refused(&it, "imatrix", "negative or not finite");
    sums[5] = NAN;
    expect_importance_refused(&it, "imatrix", "negative or not finite");
    sums[5] = 1.0f;
    counts[1] = INFINITY;
    expect_importance_refused(&it, "imatrix", "negative or not finite");
    unlink(importance_path);
    expect_failure((xmoe_quantize_options){.type = "Q4_0", .importance = importance_path},
                   XMOE_ERROR_IO, "importance.gguf");
}

/* One thread and many give the same bytes, with importance too. */
static void test_threads(void **state)
{
    (void)state;
    static float sums[EXPERTS * COLUMNS];
    static unsigned char first[MOST];
    float counts[EXPERTS];
    make_sums(sums, counts);
    entry it = {rows[ROWS - 1].name, COLUMNS, EXPERTS, EXPERTS, sums, counts};
    write_model();
    write_importance("imatrix", &it, 1);
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        must_quantize((xmoe_quantize_options){
            .type = "Q4_K", .importance = importance_path, .threads = threads});
        xm_gguf *file = gguf_must_open(gguf_other);
        const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, it.matrix);
        if (threads == 1)
            memcpy(first, tensor->data, tensor->bytes);
        else
            assert_memory_equal(tensor->data, first, tensor->bytes);
        xm_gguf_close(file);
    }
    unlink(importance_path);
    unlink(gguf_other);
}

static int make_directory(void **state)
{
    int result = gguf_make_directory(state);
    snprintf(importance_path, sizeof importance_path, "%s/importance.gguf", gguf_directory);
    return result;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),      cmocka_unit_test(test_rows_that_do_not_fit),
        cmocka_unit_test(test_quantized_again), cmocka_unit_test(test_mix),
        cmocka_unit_test(test_overrides),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_stopped),         cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_importance),      cmocka_unit_test(test_importance_that_does_not_fit),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, make_directory, gguf_remove_directory);
}
