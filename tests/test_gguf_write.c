/*
 * test_gguf_write.c - writing GGUF files: round trips, and the promise of whole or not at all.
 */
#include "gguf_bytes.h"

#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MATRIX = 64 * 6, ODD = 24 * 3, TOTAL = MATRIX + ODD + 64 * 4 + 64 + 32 * 2 * 2 + 32 * 2 };

/* A small model in F32: matrices, and tensors that no type change may touch. */
static void describe_model(xm_gguf_writer *writer)
{
    xm_string words[] = {{"one", 3}, {"", 0}, {"t\0w", 3}};
    int32_t numbers[] = {5, -6};
    xm_gguf_writer_string(writer, "general.architecture", "xmoe");
    xm_gguf_writer_u32(writer, "xmoe.block_count", 2);
    xm_gguf_writer_f32(writer, "xmoe.epsilon", 1e-5f);
    xm_gguf_writer_bool(writer, "xmoe.normalize", true);
    xm_gguf_writer_bool(writer, "xmoe.other", false);
    xm_gguf_writer_strings(writer, "words", words, 3);
    xm_gguf_writer_i32s(writer, "numbers", numbers, 2);
    xm_gguf_writer_u32(writer, "general.file_type", 0);
    xm_gguf_writer_tensor(writer, "token_embd.weight", XM_TYPE_F32, 2, (uint64_t[]){64, 6});
    xm_gguf_writer_tensor(writer, "odd.weight", XM_TYPE_F32, 2, (uint64_t[]){24, 3});
    xm_gguf_writer_tensor(writer, "position_embd.weight", XM_TYPE_F32, 2, (uint64_t[]){64, 4});
    xm_gguf_writer_tensor(writer, "output_norm.weight", XM_TYPE_F32, 1, (uint64_t[]){64});
    xm_gguf_writer_tensor(writer, "blk.1.ffn_up_exps.weight", XM_TYPE_F32, 3,
                          (uint64_t[]){32, 2, 2});
    xm_gguf_writer_tensor(writer, "blk.1.ffn_up_exps.bias", XM_TYPE_F32, 2, (uint64_t[]){32, 1});
    xm_gguf_writer_tensor(writer, "blk.1.ffn_gate_inp.weight", XM_TYPE_F32, 2, (uint64_t[]){32, 1});
    xm_gguf_writer_begin(writer);
}

static void fill(float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)xm_random_normal(9, 0, i);
}

static void write_model(const char *path, const float *values)
{
    xm_gguf_writer *writer;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_writer_create(path, &writer, &error), XMOE_OK);
    describe_model(writer);
    for (size_t i = 0; i < TOTAL; i += 50) /* pieces that no tensor ends with */
        xm_gguf_writer_data(writer, values + i, (TOTAL - i < 50 ? TOTAL - i : 50) * sizeof(float));
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void check_model_keys(const xm_gguf *file)
{
    uint32_t number;
    float real;
    bool truth;
    xm_string text, *texts;
    int32_t *numbers;
    size_t count;
    assert_int_equal(xm_gguf_get_string(file, "general.architecture", &text, NULL, NULL), XMOE_OK);
    assert_true(text.length == 4 && memcmp(text.data, "xmoe", 4) == 0);
    assert_int_equal(xm_gguf_get_u32(file, "xmoe.block_count", &number, NULL, NULL), XMOE_OK);
    assert_int_equal(number, 2);
    assert_int_equal(xm_gguf_get_f32(file, "xmoe.epsilon", &real, NULL, NULL), XMOE_OK);
    assert_true(real == 1e-5f);
    assert_int_equal(xm_gguf_get_bool(file, "xmoe.normalize", &truth, NULL, NULL), XMOE_OK);
    assert_true(truth);
    assert_int_equal(xm_gguf_get_bool(file, "xmoe.other", &truth, NULL, NULL), XMOE_OK);
    assert_false(truth);
    assert_int_equal(xm_gguf_get_strings(file, "words", &texts, &count, NULL, NULL), XMOE_OK);
    assert_true(count == 3 && texts[1].length == 0 && memcmp(texts[2].data, "t\0w", 3) == 0);
    xm_free(texts);
    assert_int_equal(xm_gguf_get_i32s(file, "numbers", &numbers, &count, NULL, NULL), XMOE_OK);
    assert_true(count == 2 && numbers[0] == 5 && numbers[1] == -6);
    xm_free(numbers);
}

static void test_round_trip(void **state)
{
    (void)state;
    float values[TOTAL];
    fill(values, TOTAL);
    write_model(gguf_target, values);
    xm_gguf *file = gguf_must_open(gguf_target);
    check_model_keys(file);
    const float *expected = values;
    for (uint64_t i = 0; i < xm_gguf_tensor_count(file); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        assert_int_equal(tensor->offset % GGUF_ALIGNMENT, 0);
        assert_memory_equal(tensor->data, expected, tensor->bytes);
        expected += tensor->bytes / sizeof(float);
    }
    assert_ptr_equal(expected, values + TOTAL);
    xm_gguf_close(file);
}

static void test_file_without_tensors(void **state)
{
    (void)state;
    xm_gguf_writer *writer;
    assert_int_equal(xm_gguf_writer_create(gguf_target, &writer, NULL), XMOE_OK);
    xm_gguf_writer_begin(writer);
    assert_int_equal(xm_gguf_writer_finish(writer, NULL), XMOE_OK);
    xm_gguf *file = gguf_must_open(gguf_target);
    assert_int_equal(xmoe_gguf_key_count(file) + xm_gguf_tensor_count(file), 0);
    assert_null(xm_gguf_find_tensor(file, "t"));
    xm_gguf_close(file);
}

/* Each fault leaves the old file as it was and nothing beside it. */
static void expect_write_failure(xm_gguf_writer *writer, xmoe_status status, const char *message)
{
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_writer_finish(writer, &error), status);
    gguf_expect_message(&error, message);
    assert_int_equal(gguf_files_in_directory(), 1);
    xm_gguf *file = gguf_must_open(gguf_target);
    assert_int_equal(xmoe_gguf_key_count(file), 19);
    xm_gguf_close(file);
}

static xm_gguf_writer *new_writer(void)
{
    xm_gguf_writer *writer;
    assert_int_equal(xm_gguf_writer_create(gguf_target, &writer, NULL), XMOE_OK);
    return writer;
}

static void test_whole_or_not_at_all(void **state)
{
    (void)state;
    float values[TOTAL] = {0};
    gguf_write_sample();
    xm_gguf_writer *writer = new_writer();
    describe_model(writer);
    xm_gguf_writer_data(writer, values, sizeof values - 1);
    expect_write_failure(writer, XMOE_ERROR_INTERNAL, "less tensor data than was described");
    writer = new_writer();
    describe_model(writer);
    xm_gguf_writer_data(writer, values, sizeof values);
    xm_gguf_writer_data(writer, values, 1);
    expect_write_failure(writer, XMOE_ERROR_INTERNAL, "more tensor data than was described");
    writer = new_writer();
    xm_gguf_writer_u32(writer, "never.begun", 1);
    expect_write_failure(writer, XMOE_ERROR_INTERNAL, "less tensor data than was described");
    writer = new_writer();
    xm_gguf_writer_u32(writer, "same", 1);
    xm_gguf_writer_u32(writer, "same", 2);
    xm_gguf_writer_begin(writer);
    expect_write_failure(writer, XMOE_ERROR_FORMAT, "key 'same' occurs twice");
    writer = new_writer();
    xm_gguf_writer_tensor(writer, "t", XM_TYPE_Q8_0, 2, (uint64_t[]){16, 2});
    xm_gguf_writer_begin(writer);
    xm_gguf_writer_data(writer, values, 34);
    expect_write_failure(writer, XMOE_ERROR_FORMAT, "not whole Q8_0 blocks");
    writer = new_writer();
    xm_gguf_writer_tensor(writer, "t", XM_TYPE_F32, 2, (uint64_t[]){UINT64_MAX, 2});
    xm_gguf_writer_begin(writer);
    expect_write_failure(writer, XMOE_ERROR_INTERNAL, "size overflows");
    writer = new_writer();
    describe_model(writer);
    xm_gguf_writer_abandon(writer);
    xm_gguf_writer_abandon(NULL);
    assert_int_equal(gguf_files_in_directory(), 1);
}

static void test_unwritable_targets(void **state)
{
    (void)state;
    xm_gguf_writer *writer;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_writer_create("/nonexistent/x.gguf", &writer, &error), XMOE_ERROR_IO);
    assert_null(writer);
    gguf_expect_message(&error, "cannot create /nonexistent/x.gguf");
    assert_int_equal(mkdir(gguf_other, 0700), 0); /* a directory has the name */
    assert_int_equal(xm_gguf_writer_create(gguf_other, &writer, &error), XMOE_OK);
    xm_gguf_writer_begin(writer);
    assert_int_equal(xm_gguf_writer_finish(writer, &error), XMOE_ERROR_IO);
    gguf_expect_message(&error, "other.gguf");
    assert_int_equal(rmdir(gguf_other), 0);
    assert_int_equal(xm_gguf_writer_create("/dev/full/x", &writer, &error), XMOE_ERROR_IO);
}

static void test_writing_without_memory(void **state)
{
    (void)state;
    float values[TOTAL] = {0};
    unlink(gguf_target);
    xmoe_status status = XMOE_ERROR_MEMORY;
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        xm_gguf_writer *writer;
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status = xm_gguf_writer_create(gguf_target, &writer, &error);
        if (status == XMOE_OK) {
            describe_model(writer);
            xm_gguf_writer_data(writer, values, sizeof values);
            status = xm_gguf_writer_finish(writer, &error);
        }
        xm_memory_fail_after(-1);
        if (status != XMOE_OK) {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_int_equal(gguf_files_in_directory(), 0);
        }
    }
    assert_true(allowed > 5);
    assert_int_equal(gguf_files_in_directory(), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_file_without_tensors),
        cmocka_unit_test(test_whole_or_not_at_all),
        cmocka_unit_test(test_unwritable_targets),
        cmocka_unit_test(test_writing_without_memory),
    };
    return cmocka_run_group_tests(tests, gguf_make_directory, gguf_remove_directory);
}
