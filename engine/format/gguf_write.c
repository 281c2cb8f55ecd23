/*
 * gguf_write.c - writes a GGUF file whole or not at all.
 *
 * Owns a temporary file beside the target. Before it takes the target's name, its bytes are synced
 * and it is read back by the reader of gguf_read.c: a file that it would refuse (a key given twice,
 * rows that are not whole blocks) never appears. The first error sticks and is
 * reported by xm_gguf_writer_finish. One thread per writer.
 */
#include "format/gguf_file.h"

#include "base/buffer.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEMPORARY_NAMES = 100, ALIGNMENT = XM_GGUF_DEFAULT_ALIGNMENT };

struct xm_gguf_writer {
    char *path;
    char *temporary; /* NULL until created */
    FILE *stream;
    xm_buffer keys; /* entries as in the file */
    uint64_t key_count;
    xm_buffer tensors; /* entries as in the file */
    uint64_t tensor_count;
    uint64_t data_bytes; /* of the data section as described so far, padding included */
    bool begun;
    xm_buffer sizes;        /* uint64_t per tensor: its bytes without padding */
    uint64_t tensor;        /* the one whose data comes next */
    uint64_t tensor_offset; /* bytes of it already written */
    xmoe_error error;       /* the first; status XMOE_OK: none */
};

/* --- the error that sticks -------------------------------------------------------------------- */

static bool failed(const xm_gguf_writer *writer)
{
    return writer->error.status != XMOE_OK;
}

static void fail(xm_gguf_writer *writer, xmoe_status status, const char *problem)
{
    if (!failed(writer))
        xm_fail(&writer->error, status, "cannot write %.200s: %s", writer->path, problem);
}

/* --- creation --------------------------------------------------------------------------------- */

/* A file of its own beside the target, so that rename stays within one file system. */
static xmoe_status create_temporary(xm_gguf_writer *writer, xmoe_error *error)
{
    size_t capacity = strlen(writer->path) + 48;
    char *name = xm_calloc(capacity, 1);
    if (name == NULL)
        return xm_fail_memory(error, "temporary file name", capacity);
    int descriptor = -1;
    for (int i = 0; i < TEMPORARY_NAMES && descriptor < 0; i++) {
        snprintf(name, capacity, "%s.%ld-%d.tmp", writer->path, (long)getpid(), i);
        descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor < 0 && errno != EEXIST)
            break;
    }
    if (descriptor < 0) {
        xm_fail(error, XMOE_ERROR_IO, "cannot create %.200s: %s", name, strerror(errno));
        xm_free(name);
        return XMOE_ERROR_IO;
    }
    writer->temporary = name;
    writer->stream = fdopen(descriptor, "wb");
    if (writer->stream == NULL) {
        close(descriptor);
        return xm_fail_memory(error, "file stream", sizeof *writer->stream);
    }
    return XMOE_OK;
}

void xm_gguf_writer_abandon(xm_gguf_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->stream != NULL)
        fclose(writer->stream);
    if (writer->temporary != NULL)
        unlink(writer->temporary);
    xm_buffer_free(&writer->keys);
    xm_buffer_free(&writer->tensors);
    xm_buffer_free(&writer->sizes);
    xm_free(writer->temporary);
    xm_free(writer->path);
    xm_free(writer);
}

xmoe_status xm_gguf_writer_create(const char *path, xm_gguf_writer **writer_out, xmoe_error *error)
{
    *writer_out = NULL;
    xm_gguf_writer *writer = xm_calloc(1, sizeof *writer);
    if (writer == NULL)
        return xm_fail_memory(error, "GGUF writer", sizeof *writer);
    xmoe_status status = XMOE_OK;
    writer->path = xm_strdup(path);
    if (writer->path == NULL)
        status = xm_fail_memory(error, "path", strlen(path) + 1);
    else
        status = create_temporary(writer, error);
    if (status != XMOE_OK) {
        xm_gguf_writer_abandon(writer);
        return status;
    }
    *writer_out = writer;
    return XMOE_OK;
}

/* --- keys ------------------------------------------------------------------------------------- */

static void put_u32(xm_buffer *buffer, uint32_t value)
{
    xm_buffer_append(buffer, &value, sizeof value);
}

static void put_u64(xm_buffer *buffer, uint64_t value)
{
    xm_buffer_append(buffer, &value, sizeof value);
}

static void put_string(xm_buffer *buffer, const char *text, size_t length)
{
    put_u64(buffer, length);
    xm_buffer_append(buffer, text, length);
}

static void start_key(xm_gguf_writer *writer, const char *key, xm_gguf_value_type type)
{
    put_string(&writer->keys, key, strlen(key));
    put_u32(&writer->keys, (uint32_t)type);
    writer->key_count++;
}

static void start_array(xm_gguf_writer *writer, const char *key, xm_gguf_value_type element,
                        size_t count)
{
    start_key(writer, key, XM_GGUF_ARRAY);
    put_u32(&writer->keys, (uint32_t)element);
    put_u64(&writer->keys, count);
}

void xm_gguf_writer_u32(xm_gguf_writer *writer, const char *key, uint32_t value)
{
    start_key(writer, key, XM_GGUF_U32);
    put_u32(&writer->keys, value);
}

void xm_gguf_writer_f32(xm_gguf_writer *writer, const char *key, float value)
{
    start_key(writer, key, XM_GGUF_F32);
    xm_buffer_append(&writer->keys, &value, sizeof value);
}

void xm_gguf_writer_bool(xm_gguf_writer *writer, const char *key, bool value)
{
    start_key(writer, key, XM_GGUF_BOOL);
    xm_buffer_append(&writer->keys, &(uint8_t){value}, 1);
}

void xm_gguf_writer_string(xm_gguf_writer *writer, const char *key, const char *value)
{
    start_key(writer, key, XM_GGUF_STRING);
    put_string(&writer->keys, value, strlen(value));
}

void xm_gguf_writer_strings(xm_gguf_writer *writer, const char *key, const xm_string *strings,
                            size_t count)
{
    start_array(writer, key, XM_GGUF_STRING, count);
    for (size_t i = 0; i < count; i++)
        put_string(&writer->keys, strings[i].data, strings[i].length);
}

void xm_gguf_writer_f32s(xm_gguf_writer *writer, const char *key, const float *values, size_t count)
{
    start_array(writer, key, XM_GGUF_F32, count);
    xm_buffer_append(&writer->keys, values, count * sizeof *values);
}

void xm_gguf_writer_i32s(xm_gguf_writer *writer, const char *key, const int32_t *values,
                         size_t count)
{
    start_array(writer, key, XM_GGUF_I32, count);
    xm_buffer_append(&writer->keys, values, count * sizeof *values);
}

static bool is_listed(const char *const *list, const char *name)
{
    for (; list != NULL && *list != NULL; list++)
        if (strcmp(*list, name) == 0)
            return true;
    return false;
}

void xm_gguf_writer_copy_keys(xm_gguf_writer *writer, const xm_gguf *from, const char *const *skip)
{
    static const char *const layout[] = {"general.alignment", "split.no", "split.count",
                                         "split.tensors.count", NULL};
    for (uint64_t i = 0; i < from->key_count; i++) {
        const xm_gguf_key *key = &from->keys[i];
        if (is_listed(skip, key->name.data) || is_listed(layout, key->name.data))
            continue;
        xm_buffer_append(&writer->keys, key->record, key->record_bytes);
        writer->key_count++;
    }
}

/* --- tensors ---------------------------------------------------------------------------------- */

void xm_gguf_writer_tensor(xm_gguf_writer *writer, const char *name, xm_weight_type type,
                           int32_t dimensions, const uint64_t *shape)
{
    const xm_weight_traits *traits = xm_weight_traits_of((uint32_t)type);
    if (traits == NULL || dimensions < 1 || dimensions > 4) {
        fail(writer, XMOE_ERROR_INTERNAL, "a tensor has a wrong type or number of dimensions");
        return;
    }
    uint64_t bytes = 1;
    bool fits = true;
    for (int32_t i = 0; i < dimensions; i++)
        fits = fits && !__builtin_mul_overflow(bytes, shape[i], &bytes);
    bytes /= traits->block_elements;
    fits = fits && !__builtin_mul_overflow(bytes, (uint64_t)traits->block_bytes, &bytes);
    uint64_t next;
    fits = fits && !__builtin_add_overflow(writer->data_bytes, bytes, &next) &&
           !__builtin_add_overflow(next, (uint64_t)(ALIGNMENT - 1), &next);
    if (!fits) {
        fail(writer, XMOE_ERROR_INTERNAL, "a tensor's size overflows");
        return;
    }
    put_string(&writer->tensors, name, strlen(name));
    put_u32(&writer->tensors, (uint32_t)dimensions);
    for (int32_t i = 0; i < dimensions; i++)
        put_u64(&writer->tensors, shape[i]);
    put_u32(&writer->tensors, (uint32_t)type);
    put_u64(&writer->tensors, writer->data_bytes);
    put_u64(&writer->sizes, bytes);
    writer->data_bytes = next / ALIGNMENT * ALIGNMENT;
    writer->tensor_count++;
}

/* --- the file --------------------------------------------------------------------------------- */

static void put_bytes(xm_gguf_writer *writer, const void *bytes, size_t length)
{
    if (!failed(writer) && length > 0 && fwrite(bytes, 1, length, writer->stream) != length)
        fail(writer, XMOE_ERROR_IO, strerror(errno));
}

static void pad(xm_gguf_writer *writer, uint64_t position)
{
    static const char zeros[ALIGNMENT];
    put_bytes(writer, zeros, (size_t)((ALIGNMENT - position % ALIGNMENT) % ALIGNMENT));
}

void xm_gguf_writer_begin(xm_gguf_writer *writer)
{
    if (writer->keys.failed || writer->tensors.failed || writer->sizes.failed)
        fail(writer, XMOE_ERROR_MEMORY, "out of memory for its header");
    if (failed(writer))
        return;
    writer->begun = true;
    put_bytes(writer, "GGUF", 4);
    put_bytes(writer, &(uint32_t){3}, sizeof(uint32_t));
    put_bytes(writer, &writer->tensor_count, sizeof writer->tensor_count);
    put_bytes(writer, &writer->key_count, sizeof writer->key_count);
    put_bytes(writer, writer->keys.data, writer->keys.length);
    put_bytes(writer, writer->tensors.data, writer->tensors.length);
    pad(writer, 24 + writer->keys.length + writer->tensors.length);
}

static uint64_t tensor_bytes(const xm_gguf_writer *writer, uint64_t tensor)
{
    uint64_t bytes;
    memcpy(&bytes, writer->sizes.data + tensor * sizeof bytes, sizeof bytes);
    return bytes;
}

void xm_gguf_writer_data(xm_gguf_writer *writer, const void *bytes, size_t length)
{
    const char *from = bytes;
    while (length > 0 && !failed(writer)) {
        if (!writer->begun || writer->tensor == writer->tensor_count) {
            fail(writer, XMOE_ERROR_INTERNAL, "more tensor data than was described");
            return;
        }
        uint64_t whole = tensor_bytes(writer, writer->tensor);
        uint64_t left = whole - writer->tensor_offset;
        size_t piece = length < left ? length : (size_t)left;
        put_bytes(writer, from, piece);
        from += piece;
        length -= piece;
        writer->tensor_offset += piece;
        if (piece == left) {
            pad(writer, whole);
            writer->tensor++;
            writer->tensor_offset = 0;
        }
    }
}

/* Makes the rename durable. A file system that cannot sync directories is no reason to fail. */
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *directory = slash != NULL ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int descriptor = directory != NULL ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
    free(directory);
}

/* Brings the temporary file to the disk and reads it back. */
static void complete(xm_gguf_writer *writer)
{
    if (!writer->begun || writer->tensor != writer->tensor_count)
        fail(writer, XMOE_ERROR_INTERNAL, "less tensor data than was described");
    if (failed(writer))
        return;
    if (fflush(writer->stream) != 0 || fsync(fileno(writer->stream)) != 0) {
        fail(writer, XMOE_ERROR_IO, strerror(errno));
        return;
    }
    xm_gguf *check;
    if (xm_gguf_open_part(writer->temporary, &check, &writer->error) == XMOE_OK)
        xm_gguf_close(check);
}

xmoe_status xm_gguf_writer_finish(xm_gguf_writer *writer, xmoe_error *error)
{
    complete(writer);
    if (!failed(writer)) {
        int closed = fclose(writer->stream);
        writer->stream = NULL;
        if (closed != 0 || rename(writer->temporary, writer->path) != 0) {
            fail(writer, XMOE_ERROR_IO, strerror(errno));
        } else {
            sync_directory(writer->path);
            xm_free(writer->temporary); /* it has become the target */
            writer->temporary = NULL;
        }
    }
    xmoe_status status = writer->error.status;
    if (status != XMOE_OK && error != NULL)
        *error = writer->error;
    xm_gguf_writer_abandon(writer);
    return status;
}
