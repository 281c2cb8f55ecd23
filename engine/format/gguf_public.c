/*
 * gguf_public.c - xmoe.h's look into GGUF files: what xmoe-inspect prints. Values are made
 * printable here: text from a file may hold anything, terminal control sequences included.
 */
#include "format/gguf_file.h"

#include "format/utf8.h"

#include <stdio.h>
#include <string.h>

/* Types that GGUF files may hold; those without a row in the weight type table have only a name. */
static const char *const tensor_type_names[] = {
    [0] = "F32",     [1] = "F16",      [2] = "Q4_0",   [3] = "Q4_1",    [6] = "Q5_0",
    [7] = "Q5_1",    [8] = "Q8_0",     [9] = "Q8_1",   [10] = "Q2_K",   [11] = "Q3_K",
    [12] = "Q4_K",   [13] = "Q5_K",    [14] = "Q6_K",  [15] = "Q8_K",   [16] = "IQ2_XXS",
    [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S",
    [22] = "IQ2_S",  [23] = "IQ4_XS",  [24] = "I8",    [25] = "I16",    [26] = "I32",
    [27] = "I64",    [28] = "F64",     [29] = "IQ1_M", [30] = "BF16",   [34] = "TQ1_0",
    [35] = "TQ2_0",  [39] = "MXFP4",
};

static const char *const array_names[XM_GGUF_VALUE_TYPES] = {
    [XM_GGUF_U8] = "array of u8",         [XM_GGUF_I8] = "array of i8",
    [XM_GGUF_U16] = "array of u16",       [XM_GGUF_I16] = "array of i16",
    [XM_GGUF_U32] = "array of u32",       [XM_GGUF_I32] = "array of i32",
    [XM_GGUF_F32] = "array of f32",       [XM_GGUF_BOOL] = "array of bool",
    [XM_GGUF_STRING] = "array of string", [XM_GGUF_U64] = "array of u64",
    [XM_GGUF_I64] = "array of i64",       [XM_GGUF_F64] = "array of f64",
};

xmoe_status xmoe_gguf_open(const char *path, xmoe_gguf **file, xmoe_error *error)
{
    return xm_gguf_open(path, file, error);
}

void xmoe_gguf_close(xmoe_gguf *file)
{
    xm_gguf_close(file);
}

uint64_t xmoe_gguf_key_count(const xmoe_gguf *file)
{
    return file->key_count;
}

uint64_t xmoe_gguf_tensor_count(const xmoe_gguf *file)
{
    return file->tensor_count;
}

/* Writes the value at `at` and returns its bytes in the file. */
static size_t show_value(xm_gguf_value_type type, const uint8_t *at, char *out, size_t capacity)
{
    uint64_t bits = 0;
    size_t size = xm_gguf_value_size(type);
    memcpy(&bits, at, size);
    float single;
    double twice;
    uint64_t length;
    switch (type) {
    case XM_GGUF_I8:
        snprintf(out, capacity, "%d", (int8_t)bits);
        break;
    case XM_GGUF_I16:
        snprintf(out, capacity, "%d", (int16_t)bits);
        break;
    case XM_GGUF_I32:
        snprintf(out, capacity, "%d", (int32_t)bits);
        break;
    case XM_GGUF_I64:
        snprintf(out, capacity, "%lld", (long long)bits);
        break;
    case XM_GGUF_F32:
        memcpy(&single, at, sizeof single);
        snprintf(out, capacity, "%.9g", (double)single);
        break;
    case XM_GGUF_F64:
        memcpy(&twice, at, sizeof twice);
        snprintf(out, capacity, "%.17g", twice);
        break;
    case XM_GGUF_BOOL:
        snprintf(out, capacity, "%s", bits != 0 ? "true" : "false");
        break;
    case XM_GGUF_STRING:
        memcpy(&length, at, sizeof length);
        xm_utf8_printable((const char *)at + sizeof length, (size_t)length, out, capacity);
        return sizeof length + (size_t)length;
    default:
        snprintf(out, capacity, "%llu", (unsigned long long)bits);
        break;
    }
    return size;
}

/* "[1, 2, 3, ...]": as many elements as fit. */
static void show_array(const xm_gguf_key *key, char *out, size_t capacity)
{
    const uint8_t *at = key->value;
    size_t used = (size_t)snprintf(out, capacity, "[");
    for (uint64_t i = 0; i < key->count; i++) {
        char element[48];
        at += show_value(key->element, at, element, sizeof element);
        size_t length = strlen(element);
        if (used + length + sizeof ", , ...]" > capacity) {
            used += (size_t)snprintf(out + used, capacity - used, "%s...", i > 0 ? ", " : "");
            break;
        }
        used += (size_t)snprintf(out + used, capacity - used, "%s%s", i > 0 ? ", " : "", element);
    }
    snprintf(out + used, capacity - used, "]");
}

void xmoe_gguf_get_key(const xmoe_gguf *file, uint64_t index, xmoe_gguf_key *key)
{
    *key = (xmoe_gguf_key){.key = "", .type = ""};
    if (index >= file->key_count)
        return;
    const xm_gguf_key *from = &file->keys[index];
    key->key = from->name.data;
    if (from->type == XM_GGUF_ARRAY) {
        key->type = array_names[from->element];
        key->array_count = from->count;
        show_array(from, key->value, sizeof key->value);
    } else {
        key->type = xm_gguf_value_type_name(from->type);
        show_value(from->type, from->value, key->value, sizeof key->value);
    }
}

void xmoe_gguf_get_tensor(const xmoe_gguf *file, uint64_t index, xmoe_gguf_tensor *tensor)
{
    *tensor = (xmoe_gguf_tensor){.name = "", .type = ""};
    if (index >= file->tensor_count)
        return;
    const xm_gguf_tensor *from = &file->tensors[index];
    enum { NAMES = sizeof tensor_type_names / sizeof *tensor_type_names };
    const char *type = from->type_number < NAMES ? tensor_type_names[from->type_number] : NULL;
    tensor->name = from->name.data;
    tensor->type = type != NULL ? type : "unknown";
    tensor->dimensions = from->dimensions;
    memcpy(tensor->shape, from->shape, sizeof tensor->shape);
    tensor->offset = from->offset;
    tensor->bytes = from->bytes;
}
