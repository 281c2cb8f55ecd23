/*
 * gguf_names.c - the names in a GGUF file: copies that end in NUL, and sorted indices of them.
 *
 * Sorted rather than hashed, so that no choice of names makes opening a file slow. Refuses names
 * that occur twice among keys or among tensors.
 */
#include "format/gguf_file.h"

#include "base/memory.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

static int compare_names(const void *a, const void *b)
{
    const xm_string *x = &((const xm_gguf_name *)a)->name, *y = &((const xm_gguf_name *)b)->name;
    int order = memcmp(x->data, y->data, x->length < y->length ? x->length : y->length);
    if (order != 0)
        return order;
    return x->length < y->length ? -1 : x->length > y->length;
}

size_t xm_gguf_sort_names(xm_gguf_name *rows, size_t count)
{
    qsort(rows, count, sizeof *rows, compare_names);
    for (size_t i = 1; i < count; i++)
        if (compare_names(&rows[i - 1], &rows[i]) == 0)
            return i;
    return 0;
}

/* Sorts an index and refuses equal names. */
static xmoe_status sort_names(const xm_gguf *file, const char *kind, xm_gguf_name *rows,
                              size_t count, xmoe_error *error)
{
    size_t twice = xm_gguf_sort_names(rows, count);
    if (twice == 0)
        return XMOE_OK;
    char name[XM_GGUF_SHOWN];
    xm_utf8_printable(rows[twice].name.data, rows[twice].name.length, name, sizeof name);
    return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: %s '%s' occurs twice", file->path, kind,
                   name);
}

/* Moves a name to *next, with a NUL behind it. */
static void copy_name(xm_string *name, char **next)
{
    memcpy(*next, name->data, name->length);
    name->data = *next;
    *next += name->length + 1;
}

xmoe_status xm_gguf_index_names(xm_gguf *file, xmoe_error *error)
{
    size_t keys = (size_t)file->key_count, tensors = (size_t)file->tensor_count;
    size_t total = 0; /* no more than the file has */
    for (size_t i = 0; i < keys; i++)
        total += file->keys[i].name.length + 1;
    for (size_t i = 0; i < tensors; i++)
        total += file->tensors[i].name.length + 1;
    file->names = xm_calloc(total, 1);
    file->keys_by_name = xm_calloc(keys, sizeof *file->keys_by_name);
    file->tensors_by_name = xm_calloc(tensors, sizeof *file->tensors_by_name);
    if (file->names == NULL || file->keys_by_name == NULL || file->tensors_by_name == NULL)
        return xm_fail_memory(error, "names", total + (keys + tensors) * sizeof(xm_gguf_name));
    char *next = file->names;
    for (size_t i = 0; i < keys; i++) {
        copy_name(&file->keys[i].name, &next);
        file->keys_by_name[i] = (xm_gguf_name){file->keys[i].name, i};
    }
    for (size_t i = 0; i < tensors; i++) {
        copy_name(&file->tensors[i].name, &next);
        file->tensors_by_name[i] = (xm_gguf_name){file->tensors[i].name, i};
    }
    xmoe_status status = sort_names(file, "key", file->keys_by_name, keys, error);
    if (status == XMOE_OK)
        status = sort_names(file, "tensor", file->tensors_by_name, tensors, error);
    return status;
}

static const xm_gguf_name *find(const xm_gguf_name *rows, uint64_t count, const char *name)
{
    xm_gguf_name wanted = {.name = {name, strlen(name)}};
    return bsearch(&wanted, rows, (size_t)count, sizeof *rows, compare_names);
}

const xm_gguf_key *xm_gguf_find_key(const xm_gguf *file, const char *name)
{
    const xm_gguf_name *row = find(file->keys_by_name, file->key_count, name);
    return row != NULL ? &file->keys[row->index] : NULL;
}

const xm_gguf_tensor *xm_gguf_find_tensor(const xm_gguf *file, const char *name)
{
    const xm_gguf_name *row = find(file->tensors_by_name, file->tensor_count, name);
    return row != NULL ? &file->tensors[row->index] : NULL;
}
