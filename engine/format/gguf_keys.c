/*
 * gguf_keys.c - typed reads of a GGUF file's keys. Pure lookups over a checked file; any thread.
 * Refuses keys of another type and integers that do not fit, naming key, found and expected.
 */
#include "format/gguf_file.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

/* "u32" or "array of u32". */
static void describe(const xm_gguf_key *key, char *out, size_t capacity)
{
    snprintf(out, capacity, "%s%s", key->type == XM_GGUF_ARRAY ? "array of " : "",
             xm_gguf_value_type_name(key->element));
}

static xmoe_status fail_type(const xm_gguf *file, const xm_gguf_key *key, const char *expected,
                             xmoe_error *error)
{
    char found[32];
    describe(key, found, sizeof found);
    return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: key '%.80s' is of type %s, expected %s",
                   file->path, key->name.data, found, expected);
}

/* Looks a key up and treats absence as the header of xm_gguf_get_* says. *out is NULL then. */
static xmoe_status look_up(const xm_gguf *file, const char *name, const xm_gguf_key **out,
                           bool *found, xmoe_error *error)
{
    *out = xm_gguf_find_key(file, name);
    if (found != NULL)
        *found = *out != NULL;
    else if (*out == NULL)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: key '%.80s' is missing", file->path,
                       name);
    return XMOE_OK;
}

/* An integer of any type, sign-extended; u64 values above INT64_MAX come out negative. */
static int64_t read_integer(xm_gguf_value_type type, const uint8_t *at)
{
    uint64_t bits = 0;
    size_t size = xm_gguf_value_size(type);
    memcpy(&bits, at, size);
    bool has_sign =
        type == XM_GGUF_I8 || type == XM_GGUF_I16 || type == XM_GGUF_I32 || type == XM_GGUF_I64;
    if (has_sign && size < sizeof bits && bits >> (8 * size - 1) != 0)
        bits |= UINT64_MAX << 8 * size;
    return (int64_t)bits;
}

static bool is_integer(xm_gguf_value_type type)
{
    return type <= XM_GGUF_I32 || type == XM_GGUF_U64 || type == XM_GGUF_I64;
}

xmoe_status xm_gguf_get_u32(const xm_gguf *file, const char *name, uint32_t *value, bool *found,
                            xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (!is_integer(key->type))
        return fail_type(file, key, "u32", error);
    int64_t wide = read_integer(key->type, key->value);
    if (wide < 0 || wide > UINT32_MAX)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: the value of key '%.80s' does not fit into 32 bits without sign",
                       file->path, name);
    *value = (uint32_t)wide;
    return XMOE_OK;
}

/* Scalars that are read as they are. */
static xmoe_status get_plain(const xm_gguf *file, const char *name, xm_gguf_value_type type,
                             void *value, size_t size, bool *found, xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (key->type != type)
        return fail_type(file, key, xm_gguf_value_type_name(type), error);
    memcpy(value, key->value, size);
    return XMOE_OK;
}

xmoe_status xm_gguf_get_f32(const xm_gguf *file, const char *name, float *value, bool *found,
                            xmoe_error *error)
{
    return get_plain(file, name, XM_GGUF_F32, value, sizeof *value, found, error);
}

xmoe_status xm_gguf_get_bool(const xm_gguf *file, const char *name, bool *value, bool *found,
                             xmoe_error *error)
{
    return get_plain(file, name, XM_GGUF_BOOL, value, sizeof *value, found, error);
}

/* The string at *at, which moves behind it; lengths were checked when the file was opened. */
static xm_string next_string(const uint8_t **at)
{
    uint64_t length;
    memcpy(&length, *at, sizeof length);
    xm_string string = {(const char *)*at + sizeof length, (size_t)length};
    *at += sizeof length + length;
    return string;
}

xmoe_status xm_gguf_get_string(const xm_gguf *file, const char *name, xm_string *value, bool *found,
                               xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (key->type != XM_GGUF_STRING)
        return fail_type(file, key, "string", error);
    const uint8_t *at = key->value;
    *value = next_string(&at);
    return XMOE_OK;
}

xmoe_status xm_gguf_get_strings(const xm_gguf *file, const char *name, xm_string **strings,
                                size_t *count, bool *found, xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (key->type != XM_GGUF_ARRAY || key->element != XM_GGUF_STRING)
        return fail_type(file, key, "array of string", error);
    xm_string *list = xm_calloc((size_t)key->count, sizeof *list);
    if (list == NULL)
        return xm_fail_memory(error, name, (size_t)key->count * sizeof *list);
    const uint8_t *at = key->value;
    for (uint64_t i = 0; i < key->count; i++)
        list[i] = next_string(&at);
    *strings = list;
    *count = (size_t)key->count;
    return XMOE_OK;
}

xmoe_status xm_gguf_get_i32s(const xm_gguf *file, const char *name, int32_t **values, size_t *count,
                             bool *found, xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (key->type != XM_GGUF_ARRAY || (key->element != XM_GGUF_I32 && key->element != XM_GGUF_U32))
        return fail_type(file, key, "array of i32", error);
    int32_t *list = xm_calloc((size_t)key->count, sizeof *list);
    if (list == NULL)
        return xm_fail_memory(error, name, (size_t)key->count * sizeof *list);
    if (key->count > 0)
        memcpy(list, key->value, (size_t)key->count * sizeof *list);
    if (key->element == XM_GGUF_U32)
        for (uint64_t i = 0; i < key->count; i++)
            if (list[i] < 0) {
                xm_free(list);
                return xm_fail(error, XMOE_ERROR_FORMAT,
                               "%.200s: element %llu of key '%.80s' does not fit into an i32",
                               file->path, (unsigned long long)i, name);
            }
    *values = list;
    *count = (size_t)key->count;
    return XMOE_OK;
}

xmoe_status xm_gguf_get_f32s(const xm_gguf *file, const char *name, float **values, size_t *count,
                             bool *found, xmoe_error *error)
{
    const xm_gguf_key *key;
    xmoe_status status = look_up(file, name, &key, found, error);
    if (key == NULL)
        return status;
    if (key->type != XM_GGUF_ARRAY || key->element != XM_GGUF_F32)
        return fail_type(file, key, "array of f32", error);
    float *list = xm_calloc((size_t)key->count, sizeof *list);
    if (list == NULL)
        return xm_fail_memory(error, name, (size_t)key->count * sizeof *list);
    if (key->count > 0)
        memcpy(list, key->value, (size_t)key->count * sizeof *list);
    *values = list;
    *count = (size_t)key->count;
    return XMOE_OK;
}
