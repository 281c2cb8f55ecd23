/*
 * test_gguf.c - what the reader gives of a GGUF file: typed keys, tensors, and what tools are
 * shown.
 */
#include "gguf_bytes.h"

#include "base/memory.h"

#include <string.h>

static void test_reads_integers(void **state)
{
    (void)state;
    gguf_write_sample();
    xm_gguf *file = gguf_must_open(gguf_target);
    uint32_t value = 0;
    bool found = false;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_get_u32(file, "u32", &value, NULL, &error), XMOE_OK);
    assert_int_equal(value, UINT32_MAX);
    assert_int_equal(xm_gguf_get_u32(file, "u8", &value, &found, &error), XMOE_OK);
    assert_true(found && value == 200);
    assert_int_equal(xm_gguf_get_u32(file, "u16", &value, NULL, &error), XMOE_OK);
    assert_int_equal(value, 65535);
    assert_int_equal(xm_gguf_get_u32(file, "small u64", &value, NULL, &error), XMOE_OK);
    assert_int_equal(value, 77);
    static const char *const unfit[] = {"i8", "i16", "i32", "i64", "u64"};
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
        assert_int_equal(xm_gguf_get_u32(file, unfit[i], &value, NULL, &error), XMOE_ERROR_FORMAT);
        gguf_expect_message(&error, unfit[i]);
        gguf_expect_message(&error, "does not fit");
    }
    assert_int_equal(xm_gguf_get_u32(file, "absent", &value, &found, &error), XMOE_OK);
    assert_true(!found && value == 77);
    assert_int_equal(xm_gguf_get_u32(file, "absent", &value, NULL, &error), XMOE_ERROR_FORMAT);
    gguf_expect_message(&error, "key 'absent' is missing");
    assert_int_equal(xm_gguf_get_u32(file, "f32", &value, NULL, &error), XMOE_ERROR_FORMAT);
    gguf_expect_message(&error, "key 'f32' is of type f32, expected u32");
    xm_gguf_close(file);
}

static void test_reads_other_values(void **state)
{
    (void)state;
    gguf_write_sample();
    xm_gguf *file = gguf_must_open(gguf_target);
    float real;
    bool truth;
    xm_string text, *texts;
    int32_t *numbers;
    size_t count;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_get_f32(file, "f32", &real, NULL, &error), XMOE_OK);
    assert_true(real == 1.5f);
    assert_int_equal(xm_gguf_get_bool(file, "bool", &truth, NULL, &error), XMOE_OK);
    assert_true(truth);
    assert_int_equal(xm_gguf_get_string(file, "string", &text, NULL, &error), XMOE_OK);
    assert_true(text.length == 7 && memcmp(text.data, "one\ttwo", 7) == 0);
    assert_int_equal(xm_gguf_get_strings(file, "strings", &texts, &count, NULL, &error), XMOE_OK);
    assert_true(count == 3 && texts[0].length == 1 && texts[1].length == 0 && texts[2].length == 3);
    assert_memory_equal(texts[2].data, "ccc", 3);
    xm_free(texts);
    assert_int_equal(xm_gguf_get_i32s(file, "i32s", &numbers, &count, NULL, &error), XMOE_OK);
    assert_true(count == 2 && numbers[0] == 1 && numbers[1] == -1);
    xm_free(numbers);
    assert_int_equal(xm_gguf_get_i32s(file, "u32s", &numbers, &count, NULL, &error),
                     XMOE_ERROR_FORMAT);
    gguf_expect_message(&error, "element 1 of key 'u32s'");
    assert_int_equal(xm_gguf_get_i32s(file, "bools", &numbers, &count, NULL, &error),
                     XMOE_ERROR_FORMAT);
    gguf_expect_message(&error, "key 'bools' is of type array of bool, expected array of i32");
    assert_int_equal(xm_gguf_get_f32(file, "f64", &real, NULL, &error), XMOE_ERROR_FORMAT);
    assert_int_equal(xm_gguf_get_bool(file, "u8", &truth, NULL, &error), XMOE_ERROR_FORMAT);
    assert_int_equal(xm_gguf_get_string(file, "strings", &text, NULL, &error), XMOE_ERROR_FORMAT);
    assert_int_equal(xm_gguf_get_strings(file, "string", &texts, &count, NULL, &error),
                     XMOE_ERROR_FORMAT);
    xm_gguf_close(file);
}

static void test_reads_tensors(void **state)
{
    (void)state;
    gguf_write_sample();
    xm_gguf *file = gguf_must_open(gguf_target);
    assert_string_equal(xm_gguf_path(file), gguf_target);
    assert_int_equal(xm_gguf_tensor_count(file), 3);
    const xm_gguf_tensor *first = xm_gguf_find_tensor(file, "first.weight");
    assert_ptr_equal(first, xm_gguf_tensor_at(file, 0));
    assert_int_equal(first->dimensions, 2);
    assert_true(first->shape[0] == 32 && first->shape[1] == 2 && first->shape[2] == 1);
    assert_int_equal(first->bytes, 68);
    assert_int_equal(first->offset % GGUF_ALIGNMENT, 0);
    assert_int_equal(((const unsigned char *)first->data)[67], 67);
    const xm_gguf_tensor *unread = xm_gguf_find_tensor(file, "unread.weight");
    assert_null(unread->traits);
    assert_int_equal(unread->type_number, 16);
    assert_int_equal(unread->bytes, 0);
    assert_null(xm_gguf_find_tensor(file, "first"));
    assert_null(xm_gguf_find_tensor(file, "first.weightx"));
    assert_null(xm_gguf_find_tensor(file, ""));
    xm_gguf_close(file);
}

/* Version 2 is laid out like 3. */
static void test_reads_version_2(void **state)
{
    (void)state;
    xm_buffer out = {0};
    gguf_put_sample(&out, 5);
    out.data[4] = 2;
    gguf_write_bytes(out.data, out.length);
    xm_buffer_free(&out);
    assert_true(gguf_survive());
}

static void test_shows_keys_and_tensors(void **state)
{
    (void)state;
    static const char *const expected[][3] = {
        {"padding", "string", "?????"},
        {"u8", "u8", "200"},
        {"i8", "i8", "-2"},
        {"u16", "u16", "65535"},
        {"i16", "i16", "-32768"},
        {"u32", "u32", "4294967295"},
        {"i32", "i32", "-7"},
        {"f32", "f32", "1.5"},
        {"bool", "bool", "true"},
        {"string", "string", "one?two"},
        {"u64", "u64", "18446744073709551615"},
        {"i64", "i64", "-5000000000"},
        {"f64", "f64", "-2"},
        {"small u64", "u64", "77"},
        {"strings", "array of string", "[a, , ccc]"},
        {"i32s", "array of i32", "[1, -1]"},
        {"u32s", "array of u32", "[2, 4294967295]"},
        {"bools", "array of bool", "[true, false]"},
        {"nothing", "array of f64", "[]"},
    };
    gguf_write_sample();
    xmoe_gguf *file;
    assert_int_equal(xmoe_gguf_open(gguf_target, &file, NULL), XMOE_OK);
    assert_int_equal(xmoe_gguf_key_count(file), sizeof expected / sizeof *expected);
    xmoe_gguf_key key;
    for (uint64_t i = 0; i < xmoe_gguf_key_count(file); i++) {
        xmoe_gguf_get_key(file, i, &key);
        assert_string_equal(key.key, expected[i][0]);
        assert_string_equal(key.type, expected[i][1]);
        assert_string_equal(key.value, expected[i][2]);
        assert_int_equal(key.array_count, i == 14 ? 3 : i > 14 && i < 18 ? 2 : 0);
    }
    xmoe_gguf_get_key(file, 1000, &key);
    assert_string_equal(key.key, "");
    xmoe_gguf_tensor tensor;
    xmoe_gguf_get_tensor(file, 1, &tensor);
    assert_string_equal(tensor.name, "unread.weight");
    assert_string_equal(tensor.type, "IQ2_XXS");
    xmoe_gguf_get_tensor(file, 0, &tensor);
    assert_string_equal(tensor.type, "Q8_0");
    assert_int_equal(tensor.shape[1], 2);
    xmoe_gguf_get_tensor(file, UINT64_MAX, &tensor);
    assert_string_equal(tensor.name, "");
    xmoe_gguf_close(file);
    xmoe_gguf_close(NULL);
}

/* Long texts and arrays are shortened within value[160]. */
static void test_shortens_values(void **state)
{
    (void)state;
    xm_buffer out = {0};
    gguf_put_header(&out, 0, 2);
    gguf_put_key(&out, "long", GGUF_STRING);
    gguf_put_u64(&out, 1000);
    for (int i = 0; i < 1000; i++)
        xm_buffer_text(&out, "x");
    gguf_put_array(&out, "many", GGUF_I32, 1000);
    for (uint32_t i = 0; i < 1000; i++)
        gguf_put_u32(&out, i);
    gguf_write_bytes(out.data, out.length);
    xm_buffer_free(&out);
    xm_gguf *file = gguf_must_open(gguf_target);
    xmoe_gguf_key key;
    xmoe_gguf_get_key(file, 0, &key);
    assert_int_equal(strlen(key.value), sizeof key.value - 1);
    assert_string_equal(key.value + sizeof key.value - 5, "x...");
    xmoe_gguf_get_key(file, 1, &key);
    assert_int_equal(key.array_count, 1000);
    assert_int_equal(strncmp(key.value, "[0, 1, 2, 3, ", 13), 0);
    assert_string_equal(key.value + strlen(key.value) - 6, ", ...]");
    xm_gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_integers),  cmocka_unit_test(test_reads_other_values),
        cmocka_unit_test(test_reads_tensors),   cmocka_unit_test(test_shows_keys_and_tensors),
        cmocka_unit_test(test_shortens_values), cmocka_unit_test(test_reads_version_2),
    };
    return cmocka_run_group_tests(tests, gguf_make_directory, gguf_remove_directory);
}
