/*
 * test_gguf_broken.c - GGUF files that must be refused, each by its message, and files that must
 * only be survived: cut at every byte, with flipped bytes, opened without memory.
 */
#include "gguf_bytes.h"

#include "base/memory.h"
#include "base/random.h"

#include <stdio.h>
#include <string.h>

enum { PAGE = 4096 };

/* Opens what is in out, frees it, and expects a refusal that says message. */
static void expect_refusal(xm_buffer *out, xmoe_status status, const char *message)
{
    assert_false(out->failed);
    gguf_write_bytes(out->data, out->length);
    xm_buffer_free(out);
    xm_gguf *file;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_open(gguf_target, &file, &error), status);
    assert_null(file);
    assert_int_equal(error.status, status);
    gguf_expect_message(&error, message);
    gguf_expect_message(&error, "model.gguf");
}

static void test_broken_headers(void **state)
{
    (void)state;
    xm_buffer out = {0};
    xm_buffer_text(&out, "");
    expect_refusal(&out, XMOE_ERROR_FORMAT, "0 bytes");
    gguf_put_header(&out, 0, 0);
    out.length--;
    expect_refusal(&out, XMOE_ERROR_FORMAT, "23 bytes");
    gguf_put_header(&out, 0, 0);
    out.data[0] = 'g';
    expect_refusal(&out, XMOE_ERROR_FORMAT, "does not start with 'GGUF'");
    gguf_put_header(&out, 0, 0);
    memcpy(out.data, "FUGG", 4);
    expect_refusal(&out, XMOE_ERROR_UNSUPPORTED, "big-endian");
    gguf_put_header(&out, 0, 0);
    memcpy(out.data + 4, "\0\0\0\3", 4);
    expect_refusal(&out, XMOE_ERROR_UNSUPPORTED, "big-endian");
    gguf_put_header(&out, 0, 0);
    out.data[4] = 1;
    expect_refusal(&out, XMOE_ERROR_UNSUPPORTED, "GGUF version 1, this engine reads versions 2");
    gguf_put_header(&out, 0, 0);
    out.data[4] = 4;
    expect_refusal(&out, XMOE_ERROR_UNSUPPORTED, "GGUF version 4");
    gguf_put_header(&out, 0, UINT64_MAX);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "claims 18446744073709551615 keys and 0 tensors");
    gguf_put_header(&out, UINT64_MAX / 48, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "claims 0 keys and 384307168202282325 tensors");
    gguf_put_header(&out, 0, 2);
    gguf_put_key(&out, "key", GGUF_U32);
    gguf_put_u32(&out, 1);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "claims 2 keys");
}

static void start_one_key(xm_buffer *out, const char *name, uint32_t type)
{
    gguf_put_header(out, 0, 1);
    gguf_put_key(out, name, type);
}

static void test_broken_keys(void **state)
{
    (void)state;
    xm_buffer out = {0};
    start_one_key(&out, "", GGUF_U32);
    gguf_put_u64(&out, 1);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0: its name is empty");
    gguf_put_header(&out, 0, 1);
    gguf_put_u64(&out, UINT64_MAX);
    gguf_put_u64(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0: the file ends inside its name");
    gguf_put_header(&out, 0, 1);
    gguf_put_u64(&out, 2);
    xm_buffer_append(&out, "a\0", 2);
    gguf_put_u64(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "its name holds a NUL byte");
    gguf_put_header(&out, 0, 1);
    gguf_put_u64(&out, 65536);
    gguf_put_zeros(&out, 65536 + 16);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "its name is too long");
    start_one_key(&out, "evil\x1b[2J", 13);
    gguf_put_u32(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'evil?[2J': its value type is 13");
    start_one_key(&out, "cut.short", GGUF_U64);
    gguf_put_u32(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'cut.short': the file ends inside its value");
    start_one_key(&out, "cut.string", GGUF_STRING);
    gguf_put_u64(&out, UINT64_MAX - 3);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'cut.string': the file ends inside its value");
    start_one_key(&out, "maybe", GGUF_BOOL);
    xm_buffer_append(&out, "\x02", 1);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'maybe': a bool is neither 0 nor 1");
    gguf_put_header(&out, 0, 2);
    gguf_put_key(&out, "twice", GGUF_U32);
    gguf_put_u32(&out, 1);
    gguf_put_key(&out, "twice", GGUF_U32);
    gguf_put_u32(&out, 1);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 'twice' occurs twice");
}

static void test_broken_arrays(void **state)
{
    (void)state;
    xm_buffer out = {0};
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "nested", GGUF_ARRAY, 1);
    gguf_put_u64(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'nested': it is an array of arrays");
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "unknown", 99, 1);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'unknown': its element type is 99");
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "huge", GGUF_U64, UINT64_MAX / 8 + 2);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'huge': the length of its array overflows");
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "long", GGUF_U8, 5);
    gguf_put_u32(&out, 0);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'long': the file ends inside its value");
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "strings", GGUF_STRING, UINT64_MAX);
    gguf_put_string(&out, "a");
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'strings': the file ends inside its value");
    gguf_put_header(&out, 0, 1);
    gguf_put_array(&out, "bools", GGUF_BOOL, 2);
    xm_buffer_append(&out, "\x01\x03", 2);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "key 0 'bools': a bool is neither 0 nor 1");
}

static void put_alignment(xm_buffer *out, uint32_t alignment)
{
    gguf_put_header(out, 0, 1);
    gguf_put_key(out, "general.alignment", GGUF_U32);
    gguf_put_u32(out, alignment);
}

static void test_alignment(void **state)
{
    (void)state;
    static const uint32_t broken[] = {0, 1, 4, 24, 33, 1u << 21, 1u << 31, UINT32_MAX};
    xm_buffer out = {0};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        char message[64];
        snprintf(message, sizeof message, "general.alignment is %u", broken[i]);
        put_alignment(&out, broken[i]);
        expect_refusal(&out, XMOE_ERROR_FORMAT, message);
    }
    start_one_key(&out, "general.alignment", GGUF_STRING);
    gguf_put_string(&out, "32");
    expect_refusal(&out, XMOE_ERROR_FORMAT, "'general.alignment' is of type string, expected u32");
    gguf_put_header(&out, 1, 1);
    gguf_put_key(&out, "general.alignment", GGUF_U32);
    gguf_put_u32(&out, 128);
    gguf_put_tensor(&out, "t", 1, (uint64_t[]){1}, 0, 128);
    gguf_pad(&out, 128);
    gguf_put_zeros(&out, 128);
    gguf_put_u32(&out, 0x40000000); /* 2.0f */
    gguf_write_bytes(out.data, out.length);
    xm_buffer_free(&out);
    xm_gguf *file = gguf_must_open(gguf_target);
    assert_int_equal(xm_gguf_tensor_at(file, 0)->offset, 256);
    assert_true(*(const float *)xm_gguf_tensor_at(file, 0)->data == 2.0f);
    xm_gguf_close(file);
}

/* One tensor of this description over 128 bytes of data. */
static void put_one_tensor(xm_buffer *out, uint32_t dimensions, const uint64_t *shape,
                           uint32_t type, uint64_t offset)
{
    gguf_put_header(out, 1, 0);
    gguf_put_tensor(out, "t", dimensions, shape, type, offset);
    gguf_put_zeros(out, 64); /* more than the shortest description */
    gguf_pad(out, GGUF_ALIGNMENT);
    gguf_put_zeros(out, 128);
}

static void test_broken_tensors(void **state)
{
    (void)state;
    static const struct {
        uint32_t dimensions;
        uint64_t shape[5];
        uint32_t type;
        uint64_t offset;
        const char *message;
    } cases[] = {
        {0, {0}, 0, 0, "tensor 0 't': it has 0 dimensions"},
        {5, {1, 1, 1, 1, 1}, 0, 0, "tensor 0 't': it has 5 dimensions"},
        {2, {8, 0}, 0, 0, "tensor 0 't': one of its dimensions is 0"},
        {2, {UINT64_C(1) << 32, UINT64_C(1) << 32}, 0, 0, "its number of elements overflows"},
        {1, {UINT64_C(1) << 63}, 0, 0, "its number of elements overflows"},
        {1, {UINT64_C(1) << 62}, 0, 0, "its size overflows"},
        {2, {40, 2}, 8, 0, "its rows of 40 elements are not whole Q8_0 blocks of 32"},
        {1, {16}, 2, 0, "its rows of 16 elements are not whole Q4_0 blocks of 32"},
        {1, {8}, 0, 8, "its offset 8 is not a multiple of the alignment 32"},
        {1, {1000}, 0, 0, "its data (4000 bytes) reaches beyond the end of the file"},
        {1, {8}, 0, 1 << 20, "reaches beyond the end of the file"},
        {1, {8}, 0, UINT64_MAX - 31, "reaches beyond the end of the file"},
        {2, {128, 2}, 12, 0, "its rows of 128 elements are not whole Q4_K blocks of 256"},
        {1, {1000}, 16, 1 << 20, "reaches beyond the end of the file"},
        {4, {1, 1, 1, UINT64_C(1) << 61}, 0, 0, "beyond the end of the file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xm_buffer out = {0};
        put_one_tensor(&out, cases[i].dimensions, cases[i].shape, cases[i].type, cases[i].offset);
        expect_refusal(&out, XMOE_ERROR_FORMAT, cases[i].message);
    }
}

static void put_two_tensors(xm_buffer *out, const char *first, const char *second,
                            uint32_t second_type, uint64_t second_offset)
{
    gguf_put_header(out, 2, 0);
    gguf_put_tensor(out, first, 1, (uint64_t[]){16}, 0, 32); /* data: [32, 96) */
    gguf_put_tensor(out, second, 1, (uint64_t[]){8}, second_type, second_offset);
    gguf_pad(out, GGUF_ALIGNMENT);
    gguf_put_zeros(out, 256);
}

static void test_tensors_together(void **state)
{
    (void)state;
    xm_buffer out = {0};
    put_two_tensors(&out, "same", "same", 0, 96);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "tensor 'same' occurs twice");
    put_two_tensors(&out, "a", "b", 0, 64);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "the data of tensors 'a' and 'b' overlap");
    put_two_tensors(&out, "a", "b", 16, 64); /* of a type whose size is not known */
    expect_refusal(&out, XMOE_ERROR_FORMAT, "the data of tensors 'a' and 'b' overlap");
    put_two_tensors(&out, "a", "b", 30, 32);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "overlap");
    static const uint64_t beside[] = {0, 96, 128};
    for (size_t i = 0; i < 3; i++) {
        put_two_tensors(&out, "a", "b", 0, beside[i]);
        gguf_write_bytes(out.data, out.length);
        xm_buffer_free(&out);
        assert_true(gguf_survive());
    }
    char name[70];
    memset(name, 'n', 65);
    name[65] = '\0';
    put_two_tensors(&out, name, "b", 0, 96);
    expect_refusal(&out, XMOE_ERROR_FORMAT, "its name is too long");
}

static void test_no_such_file(void **state)
{
    (void)state;
    xm_gguf *file;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_open("/nonexistent/x.gguf", &file, &error), XMOE_ERROR_IO);
    gguf_expect_message(&error, "cannot open /nonexistent/x.gguf: No such file");
    assert_int_equal(xm_gguf_open(gguf_directory, &file, &error), XMOE_ERROR_IO);
    gguf_expect_message(&error, "not a regular file");
    assert_int_equal(xm_gguf_open("/nonexistent/x.gguf", &file, NULL), XMOE_ERROR_IO);
}

/* Cuts the file at every byte. Padding in front makes each cut end exactly at a page, so that one
 * byte read too far is a fault. */
static void test_truncation(void **state)
{
    (void)state;
    xm_buffer whole = {0};
    gguf_put_sample(&whole, 0);
    size_t prefix = 24 + 8 + strlen("padding") + 4 + 8; /* up to the padding */
    int readable = 0;
    for (size_t length = prefix; length <= whole.length + GGUF_ALIGNMENT; length++) {
        xm_buffer out = {0};
        gguf_put_sample(&out, PAGE - length);
        gguf_write_bytes(out.data, out.length < PAGE ? out.length : PAGE);
        readable += gguf_survive();
        xm_buffer_free(&out);
    }
    assert_in_range(readable, 1, 2 * GGUF_ALIGNMENT); /* some were whole */
    for (size_t length = 0; length < prefix; length++) {
        gguf_write_bytes(whole.data, length);
        assert_false(gguf_survive());
    }
    xm_buffer_free(&whole);
}

static void test_flipped_bytes(void **state)
{
    (void)state;
    static const unsigned char masks[] = {0x01, 0x80, 0x40, 0xFF};
    xm_buffer out = {0};
    gguf_put_sample(&out, 3);
    int readable = 0, refused = 0;
    for (size_t i = 0; i < out.length; i++)
        for (size_t m = 0; m < sizeof masks; m++) {
            out.data[i] = (char)(out.data[i] ^ masks[m]);
            gguf_write_bytes(out.data, out.length);
            bool fine = gguf_survive();
            readable += fine;
            refused += !fine;
            out.data[i] = (char)(out.data[i] ^ masks[m]);
        }
    assert_true(readable > 100 && refused > 100);
    for (uint64_t round = 0; round < 2000; round++) {
        xm_buffer mixed = {0};
        xm_buffer_append(&mixed, out.data, out.length);
        for (uint64_t i = 0; i < 1 + round % 6; i++) {
            uint64_t draw = xm_random_bits(3, round, i);
            mixed.data[draw % 900 % mixed.length] = (char)(draw >> 32);
        }
        gguf_write_bytes(mixed.data, mixed.length);
        gguf_survive();
        xm_buffer_free(&mixed);
    }
    xm_buffer_free(&out);
}

static void test_opening_without_memory(void **state)
{
    (void)state;
    gguf_write_sample();
    xmoe_status status = XMOE_ERROR_MEMORY;
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        xm_gguf *file;
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status = xm_gguf_open(gguf_target, &file, &error);
        xm_memory_fail_after(-1);
        if (status != XMOE_OK) {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_null(file);
        }
        xm_gguf_close(file);
    }
    assert_true(allowed > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken_headers), cmocka_unit_test(test_broken_keys),
        cmocka_unit_test(test_broken_arrays),  cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_broken_tensors), cmocka_unit_test(test_tensors_together),
        cmocka_unit_test(test_no_such_file),   cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_flipped_bytes),  cmocka_unit_test(test_opening_without_memory),
    };
    return cmocka_run_group_tests(tests, gguf_make_directory, gguf_remove_directory);
}
