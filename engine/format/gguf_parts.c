/*
 * gguf_parts.c - split GGUF files: the parts NAME-00001-of-00003.gguf, ... as one file.
 *
 * Every part is a GGUF file of its own with the keys split.no (from 0), split.count and
 * split.tensors.count (of all parts together); the model's own keys are in the first part only.
 * Each part is mapped and checked for itself, then the first takes their tensors into its tables.
 * Refused: a part that is missing or is not the one its name says, a total that is wrong, a tensor
 * in two parts, and opening by another part than the first.
 */
#include "format/gguf_file.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

enum {
    PARTS_MAX = 65535, /* split.count is a u16 */
    SUFFIX = sizeof "-00001-of-00003.gguf" - 1,
};

typedef struct {
    uint32_t number, count; /* of the part, from 0; of parts */
    uint32_t tensors;       /* of all parts together */
    bool has_tensors;
} split_keys;

/* *is_part is false where the file is whole. */
static xmoe_status read_split_keys(const xm_gguf *file, split_keys *keys, bool *is_part,
                                   xmoe_error *error)
{
    *keys = (split_keys){.count = 1};
    *is_part = false;
    bool found = false, numbered = false;
    xmoe_status status = xm_gguf_get_u32(file, "split.count", &keys->count, &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_u32(file, "split.no", &keys->number, &numbered, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_u32(file, "split.tensors.count", &keys->tensors, &keys->has_tensors, error);
    if (status != XMOE_OK || !(found || numbered))
        return status;
    if (keys->count < 1 || keys->count > PARTS_MAX || keys->number >= keys->count)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: split.no is %u and split.count is %u: expected parts 0 to count - "
                       "1, at most %d",
                       file->path, keys->number, keys->count, PARTS_MAX);
    *is_part = keys->count > 1;
    return XMOE_OK;
}

/* The path of a part (from 0), in `path` of the length of the file's own; false if that does not
 * end as the name of part `own` does. */
static bool part_path(const xm_gguf *file, uint32_t own, uint32_t number, uint32_t count,
                      char *path)
{
    char suffix[40];
    size_t length = strlen(file->path);
    snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", own + 1, count);
    if (length < SUFFIX || strcmp(file->path + length - SUFFIX, suffix) != 0)
        return false;
    snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", number + 1, count);
    memcpy(path, file->path, length - SUFFIX);
    memcpy(path + length - SUFFIX, suffix, SUFFIX + 1);
    return true;
}

static xmoe_status fail_not_first(const xm_gguf *file, const split_keys *keys, char *path,
                                  xmoe_error *error)
{
    bool named = part_path(file, keys->number, 0, keys->count, path);
    return xm_fail(error, XMOE_ERROR_FORMAT,
                   "%.150s is part %u of %u of a split file: open the first part%s%.150s",
                   file->path, keys->number + 1, keys->count, named ? ", " : "", named ? path : "");
}

/* Opens part `number` (from 0) and compares it with the first part's keys. */
static xmoe_status open_part(const char *path, uint32_t number, const split_keys *first,
                             xm_gguf **part, xmoe_error *error)
{
    xmoe_error reason = {0};
    xmoe_status status = xm_gguf_open_part(path, part, &reason);
    if (status != XMOE_OK)
        return xm_fail(error, status, "part %u of %u: %.380s", number + 1, first->count,
                       reason.message);
    split_keys keys;
    bool is_part;
    status = read_split_keys(*part, &keys, &is_part, error);
    if (status == XMOE_OK && (!is_part || keys.number != number || keys.count != first->count))
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%.200s: split.no is %u and split.count is %u, expected %u and %u", path,
                         keys.number, keys.count, number, first->count);
    if (status == XMOE_OK && keys.has_tensors && first->has_tensors &&
        keys.tensors != first->tensors)
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%.200s: split.tensors.count is %u, but %u in the first part", path,
                         keys.tensors, first->tensors);
    return status;
}

static xmoe_status open_parts(xm_gguf *file, const split_keys *keys, char *path, xmoe_error *error)
{
    if (!part_path(file, 0, 0, keys->count, path))
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s is the first of %u parts of a split file, but its name does not end "
                       "in -00001-of-%05u.gguf, by which the others are found",
                       file->path, keys->count, keys->count);
    file->parts = xm_calloc(keys->count - 1, sizeof(xm_gguf *));
    if (file->parts == NULL)
        return xm_fail_memory(error, "parts", (keys->count - 1) * sizeof(xm_gguf *));
    for (uint32_t number = 1; number < keys->count; number++) {
        part_path(file, 0, number, keys->count, path);
        xmoe_status status = open_part(path, number, keys, &file->parts[file->part_count], error);
        file->part_count += file->parts[file->part_count] != NULL;
        if (status != XMOE_OK)
            return status;
    }
    return XMOE_OK;
}

/* The part that has the tensor of an index over all. */
static const xm_gguf *part_of(const xm_gguf *file, uint64_t own, size_t index)
{
    const xm_gguf *part = file;
    for (uint32_t i = 0; index >= own && i < file->part_count; i++) {
        index -= (size_t)own;
        part = file->parts[i];
        own = part->tensor_count;
    }
    return part;
}

/* Replaces the first part's tables by those over all parts. */
static xmoe_status join_tensors(xm_gguf *file, const split_keys *keys, xmoe_error *error)
{
    uint64_t total = file->tensor_count, own = file->tensor_count;
    for (uint32_t i = 0; i < file->part_count; i++)
        total += file->parts[i]->tensor_count; /* each has bytes in memory: no overflow */
    if (keys->has_tensors && keys->tensors != total)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: split.tensors.count is %u, but its %u parts have %llu tensors",
                       file->path, keys->tensors, keys->count, (unsigned long long)total);
    xm_gguf_tensor *tensors = xm_calloc((size_t)total, sizeof *tensors);
    xm_gguf_name *names = xm_calloc((size_t)total, sizeof *names);
    if (tensors == NULL || names == NULL) {
        xm_free(tensors);
        xm_free(names);
        return xm_fail_memory(error, "tensor table", (size_t)total * sizeof *tensors);
    }
    size_t next = 0;
    for (uint32_t i = 0; i <= file->part_count; i++) {
        const xm_gguf *part = i == 0 ? file : file->parts[i - 1];
        for (uint64_t j = 0; j < part->tensor_count; j++, next++) {
            tensors[next] = part->tensors[j];
            names[next] = (xm_gguf_name){part->tensors[j].name, next};
        }
    }
    xm_free(file->tensors);
    xm_free(file->tensors_by_name);
    file->tensors = tensors;
    file->tensors_by_name = names;
    file->tensor_count = total;
    size_t twice = xm_gguf_sort_names(names, (size_t)total);
    if (twice == 0)
        return XMOE_OK;
    return xm_fail(error, XMOE_ERROR_FORMAT, "tensor '%.64s' is both in %.150s and in %.150s",
                   names[twice].name.data, part_of(file, own, names[twice - 1].index)->path,
                   part_of(file, own, names[twice].index)->path);
}

xmoe_status xm_gguf_join_parts(xm_gguf *file, xmoe_error *error)
{
    split_keys keys;
    bool is_part;
    xmoe_status status = read_split_keys(file, &keys, &is_part, error);
    if (status != XMOE_OK || !is_part)
        return status;
    char *path = xm_strdup(file->path); /* all parts' paths are of one length */
    if (path == NULL)
        return xm_fail_memory(error, "path", strlen(file->path) + 1);
    if (keys.number != 0)
        status = fail_not_first(file, &keys, path, error);
    else
        status = open_parts(file, &keys, path, error);
    if (status == XMOE_OK)
        status = join_tensors(file, &keys, error);
    xm_free(path);
    return status;
}
