/*
 * test_gguf_split.c - split GGUF files: one file over several maps, and every way in which the
 * parts may not fit together.
 */
#include "gguf_bytes.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PARTS = 3 };

static char directory[64];

static const char *part_name(uint32_t number, uint32_t count)
{
    static char path[160];
    snprintf(path, sizeof path, "%s/m-%05u-of-%05u.gguf", directory, number + 1, count);
    return path;
}

/* What a part claims; -1: the key is absent. */
typedef struct {
    int64_t number, count, tensors;
    const char *names[3]; /* of tensors [4], each of its own value */
} part;

static void write_part(const char *path, const part *what)
{
    xm_gguf_writer *writer;
    xmoe_error error = {0};
    uint64_t shape[] = {4};
    assert_int_equal(xm_gguf_writer_create(path, &writer, &error), XMOE_OK);
    if (what->number == 0)
        xm_gguf_writer_string(writer, "general.architecture", "split");
    if (what->number >= 0)
        xm_gguf_writer_u32(writer, "split.no", (uint32_t)what->number);
    if (what->count >= 0)
        xm_gguf_writer_u32(writer, "split.count", (uint32_t)what->count);
    if (what->tensors >= 0)
        xm_gguf_writer_u32(writer, "split.tensors.count", (uint32_t)what->tensors);
    for (int i = 0; i < 3 && what->names[i] != NULL; i++)
        xm_gguf_writer_tensor(writer, what->names[i], XM_TYPE_F32, 1, shape);
    xm_gguf_writer_begin(writer);
    for (int i = 0; i < 3 && what->names[i] != NULL; i++) {
        float value = (float)what->names[i][0];
        xm_gguf_writer_data(writer, (float[]){value, value, value, value}, 4 * sizeof value);
    }
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void make_sound(part parts[PARTS])
{
    parts[0] = (part){0, PARTS, 4, {NULL}}; /* keys only, as some writers do */
    parts[1] = (part){1, PARTS, 4, {"c", "a", "d"}};
    parts[2] = (part){2, PARTS, 4, {"b"}};
}

static void write_parts(const part parts[PARTS])
{
    for (uint32_t i = 0; i < PARTS; i++)
        write_part(part_name(i, PARTS), &parts[i]);
}

static void expect_refusal(const char *path, xmoe_status status, const char *message)
{
    xm_gguf *file;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_open(path, &file, &error), status);
    assert_null(file);
    assert_int_equal(error.status, status);
    gguf_expect_message(&error, message);
}

static void test_one_file_over_parts(void **state)
{
    (void)state;
    static const char *const order[] = {"c", "a", "d", "b"};
    part parts[PARTS];
    make_sound(parts);
    write_parts(parts);
    xm_gguf *file = gguf_must_open(part_name(0, PARTS));
    assert_int_equal(xm_gguf_tensor_count(file), 4);
    for (uint64_t i = 0; i < 4; i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        assert_string_equal(tensor->name.data, order[i]);
        assert_ptr_equal(xm_gguf_find_tensor(file, order[i]), tensor);
        assert_true(((const float *)tensor->data)[3] == (float)order[i][0]);
    }
    assert_null(xm_gguf_find_tensor(file, "e"));
    assert_int_equal(xmoe_gguf_key_count(file), 4);
    xm_gguf_close(file);
}

/* Rewritten, it is one whole file. */
static void test_quantized_to_one(void **state)
{
    (void)state;
    part parts[PARTS];
    char target[96];
    bool found;
    uint32_t value;
    make_sound(parts);
    write_parts(parts);
    snprintf(target, sizeof target, "%s/whole.gguf", directory);
    assert_int_equal(
        xmoe_quantize(part_name(0, PARTS), target, &(xmoe_quantize_options){.type = "F32"}, NULL),
        XMOE_OK);
    xm_gguf *file = gguf_must_open(target);
    assert_int_equal(xm_gguf_tensor_count(file), 4);
    assert_int_equal(xm_gguf_get_u32(file, "split.count", &value, &found, NULL), XMOE_OK);
    assert_false(found);
    xm_gguf_close(file);
    unlink(target);
}

static void test_single_part(void **state)
{
    (void)state;
    part whole = {0, 1, 1, {"a"}};
    write_part(part_name(0, 1), &whole);
    xm_gguf *file = gguf_must_open(part_name(0, 1));
    assert_int_equal(xm_gguf_tensor_count(file), 1);
    xm_gguf_close(file);
    unlink(part_name(0, 1));
}

static void test_missing_and_swapped_parts(void **state)
{
    (void)state;
    part parts[PARTS];
    make_sound(parts);
    write_parts(parts);
    expect_refusal(part_name(1, PARTS), XMOE_ERROR_FORMAT, "is part 2 of 3 of a split file: open");
    expect_refusal(part_name(1, PARTS), XMOE_ERROR_FORMAT, "m-00001-of-00003.gguf");
    unlink(part_name(2, PARTS));
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_IO, "part 3 of 3: cannot open");
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_IO, "m-00003-of-00003.gguf: No such file");
    write_part(part_name(2, PARTS), &parts[1]);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT,
                   "m-00003-of-00003.gguf: split.no is 1 and split.count is 3, expected 2 and 3");
    parts[2].count = 4;
    write_part(part_name(2, PARTS), &parts[2]);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT,
                   "split.no is 2 and split.count is 4, expected 2 and 3");
    parts[2].count = parts[2].number = -1; /* not a part at all */
    write_part(part_name(2, PARTS), &parts[2]);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT, "expected 2 and 3");
    truncate(part_name(2, PARTS), 100);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT, "part 3 of 3: ");
}

static void test_numbers_that_do_not_fit(void **state)
{
    (void)state;
    part parts[PARTS];
    make_sound(parts);
    parts[2].tensors = 5;
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT,
                   "split.tensors.count is 5, but 4 in the first part");
    parts[0].tensors = parts[1].tensors = 5;
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT,
                   "split.tensors.count is 5, but its 3 parts have 4 tensors");
    make_sound(parts);
    parts[2].names[0] = "a";
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT, "tensor 'a' is both in ");
    parts[0].count = 70000;
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT, "split.count is 70000");
    parts[0].count = 0;
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT, "split.no is 0 and split.count is 0");
    parts[0].count = 2; /* the name says 3 */
    write_parts(parts);
    expect_refusal(part_name(0, PARTS), XMOE_ERROR_FORMAT,
                   "its name does not end in -00001-of-00002.gguf");
    parts[1].number = 3;
    write_parts(parts);
    expect_refusal(part_name(1, PARTS), XMOE_ERROR_FORMAT, "split.no is 3 and split.count is 3");
}

static void test_opening_without_memory(void **state)
{
    (void)state;
    part parts[PARTS];
    make_sound(parts);
    write_parts(parts);
    xmoe_status status = XMOE_ERROR_MEMORY;
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        xm_gguf *file;
        xm_memory_fail_after(allowed);
        status = xm_gguf_open(part_name(0, PARTS), &file, NULL);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        xm_gguf_close(file);
    }
    assert_true(allowed > 3 * PARTS);
}

static int make_directory(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/xmoe-test-split-XXXXXX");
    return mkdtemp(directory) != NULL ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < PARTS; i++)
        unlink(part_name(i, PARTS));
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_file_over_parts),
        cmocka_unit_test(test_quantized_to_one),
        cmocka_unit_test(test_single_part),
        cmocka_unit_test(test_missing_and_swapped_parts),
        cmocka_unit_test(test_numbers_that_do_not_fit),
        cmocka_unit_test(test_opening_without_memory),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
