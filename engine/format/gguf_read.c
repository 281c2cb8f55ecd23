/*
 * gguf_read.c - opens a GGUF file: maps it and checks the container before anybody uses it.
 *
 * Owns the map and the tables over it. The file is hostile until proven otherwise: a cursor hands
 * out bytes only after it has compared them with what is left, and counts are compared with the
 * smallest size of what they count before a table is allocated. Refused: versions other than 2 and
 * 3 (which differ in nothing that is read here), big-endian files, arrays of arrays, doubled names,
 * empty names, zero dimensions, tensors that overlap or lie outside the file. Not seen: a file that
 * somebody truncates while it is mapped (writers must replace files, as gguf_write.c does). Any
 * thread; immutable once open.
 */
#include "format/gguf_file.h"

#include "base/memory.h"
#include "format/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 24,
    KEY_MIN_BYTES = 8 + 1 + 4 + 1, /* name length, name, type, value */
    TENSOR_MIN_BYTES =
        8 + 1 + 4 + 8 + 4 + 8, /* name length, name, dimensions, shape, type, offset */
    KEY_NAME_MAX = 65535,      /* bytes; both limits are the specification's */
    TENSOR_NAME_MAX = 64,
    ALIGNMENT_MIN = 8,
    ALIGNMENT_MAX = 1 << 20,
};

/* What is being read, for messages. */
typedef struct {
    const xm_gguf *file;
    uint64_t position;
    const char *kind; /* "key", "tensor", "header" */
    uint64_t index;
    xm_string name; /* once known */
    xmoe_error *error;
} cursor;

/* --- messages --------------------------------------------------------------------------------- */

/* "path: tensor 3 'name': problem" */
static xmoe_status fail_format(const cursor *at, const char *problem)
{
    char name[XM_GGUF_SHOWN];
    xm_utf8_printable(at->name.data, at->name.length, name, sizeof name);
    return xm_fail(at->error, XMOE_ERROR_FORMAT, "%.200s: %s %llu%s%s%s: %s", at->file->path,
                   at->kind, (unsigned long long)at->index, at->name.length > 0 ? " '" : "", name,
                   at->name.length > 0 ? "'" : "", problem);
}

/* --- cursor ----------------------------------------------------------------------------------- */

static uint64_t bytes_left(const cursor *at)
{
    return at->file->size - at->position;
}

/* The next bytes of the map; NULL (and *status set) where the file ends before. */
static const uint8_t *take(cursor *at, uint64_t bytes, const char *what, xmoe_status *status)
{
    if (bytes > bytes_left(at)) {
        char problem[160];
        snprintf(problem, sizeof problem,
                 "the file ends inside its %s (%llu bytes wanted, %llu left)", what,
                 (unsigned long long)bytes, (unsigned long long)bytes_left(at));
        *status = fail_format(at, problem);
        return NULL;
    }
    const uint8_t *start = at->file->base + at->position;
    at->position += bytes;
    return start;
}

static xmoe_status take_u32(cursor *at, const char *what, uint32_t *value)
{
    xmoe_status status = XMOE_OK;
    const uint8_t *bytes = take(at, sizeof *value, what, &status);
    if (bytes != NULL)
        memcpy(value, bytes, sizeof *value);
    return status;
}

static xmoe_status take_u64(cursor *at, const char *what, uint64_t *value)
{
    xmoe_status status = XMOE_OK;
    const uint8_t *bytes = take(at, sizeof *value, what, &status);
    if (bytes != NULL)
        memcpy(value, bytes, sizeof *value);
    return status;
}

static xmoe_status take_string(cursor *at, const char *what, xm_string *string)
{
    uint64_t length = 0;
    xmoe_status status = take_u64(at, what, &length);
    if (status != XMOE_OK)
        return status;
    const uint8_t *bytes = take(at, length, what, &status);
    if (bytes != NULL)
        *string = (xm_string){(const char *)bytes, (size_t)length};
    return status;
}

static xmoe_status take_name(cursor *at, uint64_t longest, xm_string *name)
{
    xmoe_status status = take_string(at, "name", name);
    if (status != XMOE_OK)
        return status;
    if (name->length == 0)
        return fail_format(at, "its name is empty");
    at->name = *name;
    if (name->length > longest)
        return fail_format(at, "its name is too long");
    if (memchr(name->data, '\0', name->length) != NULL)
        return fail_format(at, "its name holds a NUL byte");
    return XMOE_OK;
}

/* --- keys ------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t size; /* 0: varies */
} value_types[XM_GGUF_VALUE_TYPES] = {
    [XM_GGUF_U8] = {"u8", 1},       [XM_GGUF_I8] = {"i8", 1},     [XM_GGUF_U16] = {"u16", 2},
    [XM_GGUF_I16] = {"i16", 2},     [XM_GGUF_U32] = {"u32", 4},   [XM_GGUF_I32] = {"i32", 4},
    [XM_GGUF_F32] = {"f32", 4},     [XM_GGUF_BOOL] = {"bool", 1}, [XM_GGUF_STRING] = {"string", 0},
    [XM_GGUF_ARRAY] = {"array", 0}, [XM_GGUF_U64] = {"u64", 8},   [XM_GGUF_I64] = {"i64", 8},
    [XM_GGUF_F64] = {"f64", 8},
};

const char *xm_gguf_value_type_name(uint32_t type)
{
    return type < XM_GGUF_VALUE_TYPES ? value_types[type].name : NULL;
}

size_t xm_gguf_value_size(xm_gguf_value_type type)
{
    return value_types[type].size;
}

static xmoe_status take_value_type(cursor *at, const char *what, xm_gguf_value_type *type)
{
    uint32_t number = 0;
    xmoe_status status = take_u32(at, what, &number);
    if (status != XMOE_OK)
        return status;
    if (xm_gguf_value_type_name(number) == NULL) {
        char problem[80];
        snprintf(problem, sizeof problem, "its %s is %u, which GGUF does not define", what, number);
        return fail_format(at, problem);
    }
    *type = (xm_gguf_value_type)number;
    return XMOE_OK;
}

/* Passes over count values of a type, checking what can be wrong with them. */
static xmoe_status take_values(cursor *at, xm_gguf_value_type type, uint64_t count)
{
    xmoe_status status = XMOE_OK;
    if (type == XM_GGUF_STRING) {
        xm_string string;
        for (uint64_t i = 0; i < count && status == XMOE_OK; i++)
            status = take_string(at, "value", &string);
        return status;
    }
    uint64_t bytes;
    if (__builtin_mul_overflow(count, (uint64_t)xm_gguf_value_size(type), &bytes))
        return fail_format(at, "the length of its array overflows");
    const uint8_t *values = take(at, bytes, "value", &status);
    if (values != NULL && type == XM_GGUF_BOOL)
        for (uint64_t i = 0; i < count; i++)
            if (values[i] > 1)
                return fail_format(at, "a bool is neither 0 nor 1");
    return status;
}

static xmoe_status take_key(cursor *at, xm_gguf_key *key)
{
    uint64_t start = at->position;
    xmoe_status status = take_name(at, KEY_NAME_MAX, &key->name);
    if (status == XMOE_OK)
        status = take_value_type(at, "value type", &key->type);
    if (status != XMOE_OK)
        return status;
    key->element = key->type;
    key->count = 1;
    if (key->type == XM_GGUF_ARRAY) {
        status = take_value_type(at, "element type", &key->element);
        if (status == XMOE_OK)
            status = take_u64(at, "array length", &key->count);
        if (status == XMOE_OK && key->element == XM_GGUF_ARRAY)
            status = fail_format(at, "it is an array of arrays, which this engine does not read");
        if (status != XMOE_OK)
            return status;
    }
    key->value = at->file->base + at->position;
    status = take_values(at, key->element, key->count);
    key->record = at->file->base + start;
    key->record_bytes = (size_t)(at->position - start);
    return status;
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Sets tensor->bytes from type and shape. */
static xmoe_status measure_tensor(const cursor *at, xm_gguf_tensor *tensor)
{
    uint64_t elements = 1;
    for (int32_t i = 0; i < tensor->dimensions; i++) {
        if (tensor->shape[i] == 0)
            return fail_format(at, "one of its dimensions is 0");
        if (__builtin_mul_overflow(elements, tensor->shape[i], &elements) || elements > INT64_MAX)
            return fail_format(at, "its number of elements overflows");
    }
    const xm_weight_traits *traits = tensor->traits;
    if (traits == NULL)
        return XMOE_OK;
    if (tensor->shape[0] % traits->block_elements != 0) {
        char problem[120];
        snprintf(problem, sizeof problem, "its rows of %llu elements are not whole %s blocks of %u",
                 (unsigned long long)tensor->shape[0], traits->name, traits->block_elements);
        return fail_format(at, problem);
    }
    if (__builtin_mul_overflow(elements / traits->block_elements, (uint64_t)traits->block_bytes,
                               &tensor->bytes))
        return fail_format(at, "its size overflows");
    return XMOE_OK;
}

/* tensor->offset is still relative to the data section afterwards. */
static xmoe_status take_tensor(cursor *at, xm_gguf_tensor *tensor)
{
    uint32_t dimensions = 0;
    xmoe_status status = take_name(at, TENSOR_NAME_MAX, &tensor->name);
    if (status == XMOE_OK)
        status = take_u32(at, "number of dimensions", &dimensions);
    if (status != XMOE_OK)
        return status;
    if (dimensions < 1 || dimensions > 4) {
        char problem[80];
        snprintf(problem, sizeof problem, "it has %u dimensions, allowed are 1 to 4", dimensions);
        return fail_format(at, problem);
    }
    tensor->dimensions = (int32_t)dimensions;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->shape[i] = 1;
        if (i < dimensions && status == XMOE_OK)
            status = take_u64(at, "shape", &tensor->shape[i]);
    }
    if (status == XMOE_OK)
        status = take_u32(at, "type", &tensor->type_number);
    if (status == XMOE_OK)
        status = take_u64(at, "offset", &tensor->offset);
    if (status != XMOE_OK)
        return status;
    tensor->traits = xm_weight_traits_of(tensor->type_number);
    return measure_tensor(at, tensor);
}

/* Makes the offset absolute and checks that the data lies in the file. */
static xmoe_status place_tensor(const cursor *at, uint64_t alignment, xm_gguf_tensor *tensor)
{
    const xm_gguf *file = at->file;
    char problem[200];
    if (tensor->offset % alignment != 0) {
        snprintf(problem, sizeof problem, "its offset %llu is not a multiple of the alignment %llu",
                 (unsigned long long)tensor->offset, (unsigned long long)alignment);
        return fail_format(at, problem);
    }
    uint64_t end;
    if (__builtin_add_overflow(tensor->offset, file->data_start, &tensor->offset) ||
        __builtin_add_overflow(tensor->offset, tensor->bytes, &end) || end > file->size) {
        snprintf(problem, sizeof problem,
                 "its data (%llu bytes) reaches beyond the end of the file (%zu bytes)",
                 (unsigned long long)tensor->bytes, file->size);
        return fail_format(at, problem);
    }
    tensor->data = file->base + tensor->offset;
    return XMOE_OK;
}

/* The bytes [start, end) of the file that a tensor's data take. */
typedef struct {
    uint64_t start, end;
    xm_string name;
} extent;

static int compare_extents(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static xmoe_status check_overlap(const xm_gguf *file, xmoe_error *error)
{
    size_t count = (size_t)file->tensor_count;
    extent *extents = xm_calloc(count, sizeof *extents);
    if (extents == NULL)
        return xm_fail_memory(error, "tensor table", count * sizeof *extents);
    for (size_t i = 0; i < count; i++) {
        const xm_gguf_tensor *tensor = &file->tensors[i];
        uint64_t bytes = tensor->bytes > 0 ? tensor->bytes : 1; /* unknown type: something */
        extents[i] = (extent){tensor->offset, tensor->offset + bytes, tensor->name};
    }
    qsort(extents, count, sizeof *extents, compare_extents);
    xmoe_status status = XMOE_OK;
    for (size_t i = 1; i < count && status == XMOE_OK; i++) {
        const extent *before = &extents[i - 1], *after = &extents[i];
        if (before->end <= after->start)
            continue;
        char first[XM_GGUF_SHOWN], second[XM_GGUF_SHOWN];
        xm_utf8_printable(before->name.data, before->name.length, first, sizeof first);
        xm_utf8_printable(after->name.data, after->name.length, second, sizeof second);
        status =
            xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: the data of tensors '%s' and '%s' overlap",
                    file->path, first, second);
    }
    xm_free(extents);
    return status;
}

/* --- the file --------------------------------------------------------------------------------- */

static xmoe_status map_file(xm_gguf *file, xmoe_error *error)
{
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return xm_fail(error, XMOE_ERROR_IO, "cannot open %.200s: %s", file->path, strerror(errno));
    xmoe_status status = XMOE_OK;
    struct stat about;
    if (fstat(descriptor, &about) != 0)
        status =
            xm_fail(error, XMOE_ERROR_IO, "cannot examine %.200s: %s", file->path, strerror(errno));
    else if (!S_ISREG(about.st_mode))
        status = xm_fail(error, XMOE_ERROR_IO, "%.200s is not a regular file", file->path);
    else if (about.st_size < HEADER_BYTES)
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%.200s is not a GGUF file: %lld bytes, a header alone has %d", file->path,
                         (long long)about.st_size, HEADER_BYTES);
    if (status == XMOE_OK) {
        void *map = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (map == MAP_FAILED) {
            status =
                xm_fail(error, XMOE_ERROR_IO, "cannot map %.200s: %s", file->path, strerror(errno));
        } else {
            file->map = map;
            file->base = map;
            file->size = (size_t)about.st_size;
        }
    }
    close(descriptor);
    return status;
}

/* Magic, version and counts; the counts fit into the file afterwards. */
static xmoe_status read_header(cursor *at, xm_gguf *file)
{
    const char *path = file->path;
    if (memcmp(file->base, "FUGG", 4) == 0)
        return xm_fail(at->error, XMOE_ERROR_UNSUPPORTED, "%.200s is a big-endian GGUF file", path);
    if (memcmp(file->base, "GGUF", 4) != 0)
        return xm_fail(at->error, XMOE_ERROR_FORMAT,
                       "%.200s is not a GGUF file: it does not start with 'GGUF'", path);
    uint32_t version;
    memcpy(&version, file->base + 4, sizeof version);
    if (version == UINT32_C(3) << 24)
        return xm_fail(at->error, XMOE_ERROR_UNSUPPORTED, "%.200s is a big-endian GGUF file", path);
    if (version != 2 && version != 3)
        return xm_fail(at->error, XMOE_ERROR_UNSUPPORTED,
                       "%.200s has GGUF version %u, this engine reads versions 2 and 3", path,
                       version);
    memcpy(&file->tensor_count, file->base + 8, sizeof file->tensor_count);
    memcpy(&file->key_count, file->base + 16, sizeof file->key_count);
    at->position = HEADER_BYTES;
    if (file->key_count > bytes_left(at) / KEY_MIN_BYTES ||
        file->tensor_count > bytes_left(at) / TENSOR_MIN_BYTES) {
        xm_fail(at->error, XMOE_ERROR_FORMAT,
                "%.200s claims %llu keys and %llu tensors, more than its %zu bytes can hold", path,
                (unsigned long long)file->key_count, (unsigned long long)file->tensor_count,
                file->size);
        file->key_count = file->tensor_count = 0;
        return XMOE_ERROR_FORMAT;
    }
    return XMOE_OK;
}

static xmoe_status read_tables(cursor *at, xm_gguf *file)
{
    xmoe_status status = read_header(at, file);
    if (status != XMOE_OK)
        return status;
    file->keys = xm_calloc((size_t)file->key_count, sizeof *file->keys);
    file->tensors = xm_calloc((size_t)file->tensor_count, sizeof *file->tensors);
    if (file->keys == NULL || file->tensors == NULL)
        return xm_fail_memory(at->error, "key and tensor tables",
                              (size_t)file->key_count * sizeof *file->keys);
    at->kind = "key";
    for (at->index = 0; at->index < file->key_count && status == XMOE_OK; at->index++) {
        at->name = (xm_string){0};
        status = take_key(at, &file->keys[at->index]);
    }
    if (status != XMOE_OK)
        return status;
    at->kind = "tensor";
    for (at->index = 0; at->index < file->tensor_count && status == XMOE_OK; at->index++) {
        at->name = (xm_string){0};
        status = take_tensor(at, &file->tensors[at->index]);
    }
    return status;
}

/* Finds the data section, which starts at the next aligned position, and every tensor in it. */
static xmoe_status place_tensors(cursor *at, xm_gguf *file)
{
    uint32_t alignment = XM_GGUF_DEFAULT_ALIGNMENT;
    bool found;
    xmoe_status status = xm_gguf_get_u32(file, "general.alignment", &alignment, &found, at->error);
    if (status != XMOE_OK)
        return status;
    if (alignment < ALIGNMENT_MIN || alignment > ALIGNMENT_MAX ||
        (alignment & (alignment - 1)) != 0)
        return xm_fail(at->error, XMOE_ERROR_FORMAT,
                       "%.200s: general.alignment is %u, expected a power of two from %d to %d",
                       file->path, alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    file->data_start = (at->position + alignment - 1) / alignment * alignment;
    for (at->index = 0; at->index < file->tensor_count && status == XMOE_OK; at->index++) {
        at->name = file->tensors[at->index].name;
        status = place_tensor(at, alignment, &file->tensors[at->index]);
    }
    return status;
}

static xmoe_status read_mapped(xm_gguf *file, xmoe_error *error)
{
    cursor at = {.file = file, .kind = "header", .error = error};
    xmoe_status status = read_tables(&at, file);
    if (status == XMOE_OK)
        status = xm_gguf_index_names(file, error);
    if (status == XMOE_OK)
        status = place_tensors(&at, file);
    if (status == XMOE_OK)
        status = check_overlap(file, error);
    return status;
}

xmoe_status xm_gguf_open_part(const char *path, xm_gguf **file_out, xmoe_error *error)
{
    *file_out = NULL;
    xm_gguf *file = xm_calloc(1, sizeof *file);
    if (file == NULL)
        return xm_fail_memory(error, "GGUF file", sizeof *file);
    xmoe_status status;
    file->path = xm_strdup(path);
    if (file->path == NULL)
        status = xm_fail_memory(error, "path", strlen(path) + 1);
    else
        status = map_file(file, error);
    if (file->map != NULL)
        status = read_mapped(file, error);
    if (status != XMOE_OK) {
        xm_gguf_close(file);
        return status;
    }
    *file_out = file;
    return XMOE_OK;
}

xmoe_status xm_gguf_open(const char *path, xm_gguf **file_out, xmoe_error *error)
{
    xm_gguf *file;
    xmoe_status status = xm_gguf_open_part(path, &file, error);
    *file_out = NULL;
    if (status == XMOE_OK)
        status = xm_gguf_join_parts(file, error);
    if (status != XMOE_OK) {
        xm_gguf_close(file);
        return status;
    }
    *file_out = file;
    return XMOE_OK;
}

void xm_gguf_close(xm_gguf *file)
{
    if (file == NULL)
        return;
    for (uint32_t i = 0; i < file->part_count; i++)
        xm_gguf_close(file->parts[i]);
    xm_free(file->parts);
    if (file->map != NULL)
        munmap(file->map, file->size);
    xm_free(file->keys);
    xm_free(file->tensors);
    xm_free(file->keys_by_name);
    xm_free(file->tensors_by_name);
    xm_free(file->names);
    xm_free(file->path);
    xm_free(file);
}

const char *xm_gguf_path(const xm_gguf *file)
{
    return file->path;
}

uint64_t xm_gguf_tensor_count(const xm_gguf *file)
{
    return file->tensor_count;
}

const xm_gguf_tensor *xm_gguf_tensor_at(const xm_gguf *file, uint64_t index)
{
    return &file->tensors[index];
}
