/* gguf_bytes.c - see gguf_bytes.h. */
#include "gguf_bytes.h"

#include "base/memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- files in a directory of our own ---------------------------------------------------------- */

char gguf_directory[64], gguf_target[96], gguf_other[96];

int gguf_make_directory(void **state)
{
    (void)state;
    strcpy(gguf_directory, "/tmp/xmoe-test-gguf-XXXXXX");
    if (mkdtemp(gguf_directory) == NULL)
        return -1;
    snprintf(gguf_target, sizeof gguf_target, "%s/model.gguf", gguf_directory);
    snprintf(gguf_other, sizeof gguf_other, "%s/other.gguf", gguf_directory);
    return 0;
}

int gguf_remove_directory(void **state)
{
    (void)state;
    unlink(gguf_target);
    unlink(gguf_other);
    return rmdir(gguf_directory); /* fails if a test left anything else */
}

int gguf_files_in_directory(void)
{
    DIR *listing = opendir(gguf_directory);
    int count = 0;
    while (readdir(listing) != NULL)
        count++;
    closedir(listing);
    return count - 2; /* . and .. */
}

/* Never empties the file first: some file systems then write to the disk when it is closed. */
void gguf_write_bytes(const char *bytes, size_t length)
{
    int descriptor = open(gguf_target, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(descriptor >= 0);
    assert_int_equal(pwrite(descriptor, bytes, length, 0), length);
    assert_int_equal(ftruncate(descriptor, (off_t)length), 0);
    close(descriptor);
}

/* Reads all that a file gives, so that sanitizers see every access. */
static uint64_t walk(const xm_gguf *file)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < xmoe_gguf_key_count(file); i++) {
        xmoe_gguf_key key;
        xmoe_gguf_get_key(file, i, &key);
        sum += strlen(key.key) + strlen(key.type) + strlen(key.value);
        uint32_t number;
        bool truth, found;
        float real;
        xm_string text, *texts = NULL;
        int32_t *numbers = NULL;
        size_t count;
        xm_gguf_get_u32(file, key.key, &number, &found, NULL);
        xm_gguf_get_bool(file, key.key, &truth, &found, NULL);
        xm_gguf_get_f32(file, key.key, &real, &found, NULL);
        if (xm_gguf_get_string(file, key.key, &text, &found, NULL) == XMOE_OK)
            for (size_t j = 0; j < text.length; j++)
                sum += (unsigned char)text.data[j];
        if (xm_gguf_get_strings(file, key.key, &texts, &count, &found, NULL) == XMOE_OK)
            for (size_t j = 0; j < count; j++)
                sum += texts[j].length;
        xm_gguf_get_i32s(file, key.key, &numbers, &count, &found, NULL);
        xm_free(texts);
        xm_free(numbers);
    }
    for (uint64_t i = 0; i < xm_gguf_tensor_count(file); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        xmoe_gguf_tensor shown;
        xmoe_gguf_get_tensor(file, i, &shown);
        sum += strlen(shown.name) + strlen(shown.type);
        assert_ptr_equal(xm_gguf_find_tensor(file, shown.name), tensor);
        for (uint64_t j = 0; j < tensor->bytes; j++)
            sum += ((const unsigned char *)tensor->data)[j];
    }
    return sum;
}

/* What is wrong with the file must be said, if anything is. */
bool gguf_survive(void)
{
    xm_gguf *file;
    xmoe_error error = {0};
    xmoe_status status = xm_gguf_open(gguf_target, &file, &error);
    if (status == XMOE_OK) {
        walk(file);
        xm_gguf_close(file);
        return true;
    }
    assert_null(file);
    assert_int_equal(error.status, status);
    assert_true(status == XMOE_ERROR_FORMAT || status == XMOE_ERROR_UNSUPPORTED);
    assert_non_null(strstr(error.message, "model.gguf"));
    return false;
}

xm_gguf *gguf_must_open(const char *path)
{
    xm_gguf *file;
    xmoe_error error = {0};
    if (xm_gguf_open(path, &file, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return file;
}

void gguf_expect_message(const xmoe_error *error, const char *message)
{
    if (strstr(error->message, message) == NULL)
        fail_msg("'%s' does not say '%s'", error->message, message);
}

/* --- files by hand, byte by byte as the specification says ------------------------------------ */

void gguf_put_u32(xm_buffer *out, uint32_t value)
{
    xm_buffer_append(out, &value, sizeof value);
}

void gguf_put_u64(xm_buffer *out, uint64_t value)
{
    xm_buffer_append(out, &value, sizeof value);
}

void gguf_put_string(xm_buffer *out, const char *text)
{
    gguf_put_u64(out, strlen(text));
    xm_buffer_text(out, text);
}

void gguf_put_header(xm_buffer *out, uint64_t tensors, uint64_t keys)
{
    xm_buffer_text(out, "GGUF");
    gguf_put_u32(out, 3);
    gguf_put_u64(out, tensors);
    gguf_put_u64(out, keys);
}

void gguf_put_key(xm_buffer *out, const char *name, uint32_t type)
{
    gguf_put_string(out, name);
    gguf_put_u32(out, type);
}

void gguf_put_array(xm_buffer *out, const char *name, uint32_t element, uint64_t count)
{
    gguf_put_key(out, name, GGUF_ARRAY);
    gguf_put_u32(out, element);
    gguf_put_u64(out, count);
}

void gguf_put_tensor(xm_buffer *out, const char *name, uint32_t dimensions, const uint64_t *shape,
                     uint32_t type, uint64_t offset)
{
    gguf_put_string(out, name);
    gguf_put_u32(out, dimensions);
    for (uint32_t i = 0; i < dimensions; i++)
        gguf_put_u64(out, shape[i]);
    gguf_put_u32(out, type);
    gguf_put_u64(out, offset);
}

void gguf_put_zeros(xm_buffer *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        xm_buffer_append(out, "", 1);
}

void gguf_pad(xm_buffer *out, size_t alignment)
{
    gguf_put_zeros(out, (alignment - out->length % alignment) % alignment);
}

void gguf_put_sample(xm_buffer *out, size_t padding)
{
    gguf_put_header(out, 3, 19);
    gguf_put_key(out, "padding", GGUF_STRING);
    gguf_put_u64(out, padding);
    gguf_put_zeros(out, padding);
    gguf_put_key(out, "u8", GGUF_U8);
    xm_buffer_append(out, "\xC8", 1);
    gguf_put_key(out, "i8", GGUF_I8);
    xm_buffer_append(out, "\xFE", 1);
    gguf_put_key(out, "u16", GGUF_U16);
    xm_buffer_append(out, "\xFF\xFF", 2);
    gguf_put_key(out, "i16", GGUF_I16);
    xm_buffer_append(out, "\x00\x80", 2);
    gguf_put_key(out, "u32", GGUF_U32);
    gguf_put_u32(out, UINT32_MAX);
    gguf_put_key(out, "i32", GGUF_I32);
    gguf_put_u32(out, (uint32_t)-7);
    gguf_put_key(out, "f32", GGUF_F32);
    gguf_put_u32(out, 0x3FC00000); /* 1.5 */
    gguf_put_key(out, "bool", GGUF_BOOL);
    xm_buffer_append(out, "\x01", 1);
    gguf_put_key(out, "string", GGUF_STRING);
    gguf_put_string(out, "one\ttwo");
    gguf_put_key(out, "u64", GGUF_U64);
    gguf_put_u64(out, UINT64_MAX);
    gguf_put_key(out, "i64", GGUF_I64);
    gguf_put_u64(out, (uint64_t)-5000000000);
    gguf_put_key(out, "f64", GGUF_F64);
    gguf_put_u64(out, UINT64_C(0xC000000000000000)); /* -2 */
    gguf_put_key(out, "small u64", GGUF_U64);
    gguf_put_u64(out, 77);
    gguf_put_array(out, "strings", GGUF_STRING, 3);
    gguf_put_string(out, "a");
    gguf_put_string(out, "");
    gguf_put_string(out, "ccc");
    gguf_put_array(out, "i32s", GGUF_I32, 2);
    gguf_put_u32(out, 1);
    gguf_put_u32(out, (uint32_t)-1);
    gguf_put_array(out, "u32s", GGUF_U32, 2);
    gguf_put_u32(out, 2);
    gguf_put_u32(out, UINT32_MAX);
    gguf_put_array(out, "bools", GGUF_BOOL, 2);
    xm_buffer_append(out, "\x01\x00", 2);
    gguf_put_array(out, "nothing", GGUF_F64, 0);
    gguf_put_tensor(out, "first.weight", 2, (uint64_t[]){32, 2}, 8, 0);
    gguf_put_tensor(out, "unread.weight", 1, (uint64_t[]){256}, 16, 96);
    gguf_put_tensor(out, "second.bias", 1, (uint64_t[]){3}, 0, 288);
    gguf_pad(out, GGUF_ALIGNMENT);
    for (int i = 0; i < 300; i++)
        xm_buffer_append(out, &(char){(char)i}, 1);
}

void gguf_write_sample(void)
{
    xm_buffer out = {0};
    gguf_put_sample(&out, 5);
    gguf_write_bytes(out.data, out.length);
    xm_buffer_free(&out);
}
