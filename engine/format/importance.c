/* importance.c - reads files of importance; see importance.h. Any thread. */
#include "format/importance.h"

#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Positions of the matrix's mean that are added to those counted: an expert that saw few positions
 * cannot say of a column that it is never used. */
enum { PRIOR_POSITIONS = 4 };

struct xm_importance {
    xm_gguf *file;
};

xmoe_status xm_importance_open(const char *path, xm_importance **importance_out, xmoe_error *error)
{
    *importance_out = NULL;
    xm_importance *importance = xm_calloc(1, sizeof *importance);
    if (importance == NULL)
        return xm_fail_memory(error, "importance", sizeof *importance);
    xm_string type = {0};
    bool found;
    xmoe_status status = xm_gguf_open(path, &importance->file, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_string(importance->file, "general.type", &type, &found, error);
    if (status == XMOE_OK && (type.length != 7 || memcmp(type.data, "imatrix", 7) != 0))
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%.200s is not a file of importance: general.type is not 'imatrix'", path);
    if (status != XMOE_OK) {
        xm_importance_close(importance);
        return status;
    }
    *importance_out = importance;
    return XMOE_OK;
}

void xm_importance_close(xm_importance *importance)
{
    if (importance == NULL)
        return;
    xm_gguf_close(importance->file);
    xm_free(importance);
}

/* A tensor of one matrix; *tensor is NULL if there is none. */
static xmoe_status find_entry(const xm_importance *importance, const char *matrix,
                              const char *suffix, const xm_gguf_tensor **tensor, xmoe_error *error)
{
    char name[96];
    snprintf(name, sizeof name, "%.64s.%s", matrix, suffix);
    *tensor = xm_gguf_find_tensor(importance->file, name);
    if (*tensor != NULL && (*tensor)->type_number != XM_TYPE_F32)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: tensor '%s' is not F32",
                       xm_gguf_path(importance->file), name);
    return XMOE_OK;
}

/* Means of one expert from its sums; false if they are no sums of squares. */
static bool take_means(const float *sums, float count, size_t columns, float *values)
{
    double total = 0;
    if (!(count >= 0.0f) || isinf(count))
        return false;
    for (size_t i = 0; i < columns; i++) {
        if (!(sums[i] >= 0.0f) || isinf(sums[i]))
            return false;
        total += (double)sums[i];
    }
    double mean = count > 0.0f ? total / (double)count / (double)columns : 0.0;
    for (size_t i = 0; i < columns; i++)
        values[i] = mean > 0.0 ? (float)(((double)sums[i] / mean + PRIOR_POSITIONS) /
                                         ((double)count + PRIOR_POSITIONS))
                               : 1.0f;
    return true;
}

xmoe_status xm_importance_of(const xm_importance *importance, const xm_gguf_tensor *matrix,
                             float **values_out, xmoe_error *error)
{
    *values_out = NULL;
    const char *path = xm_gguf_path(importance->file), *name = matrix->name.data;
    const xm_gguf_tensor *sums, *counts;
    xmoe_status status = find_entry(importance, name, "in_sum2", &sums, error);
    if (status == XMOE_OK)
        status = find_entry(importance, name, "counts", &counts, error);
    if (status != XMOE_OK || sums == NULL)
        return status;
    uint64_t columns = matrix->shape[0], experts = matrix->shape[2];
    if (matrix->shape[3] != 1)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "%.200s: '%.64s' has four dimensions",
                       xm_gguf_path(importance->file), name);
    if (sums->shape[0] != columns || sums->shape[1] != experts || sums->shape[2] != 1)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: '%.64s.in_sum2' is [%llu, %llu], but the matrix has %llu columns "
                       "and %llu experts: the file is of another model",
                       path, name, (unsigned long long)sums->shape[0],
                       (unsigned long long)sums->shape[1], (unsigned long long)columns,
                       (unsigned long long)experts);
    if (counts == NULL || counts->shape[0] != 1 ||
        (counts->shape[1] != experts && counts->shape[1] != 1) || counts->shape[2] != 1)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: '%.64s.counts' is missing or not one number for each of %llu "
                       "experts",
                       path, name, (unsigned long long)experts);
    size_t size = (size_t)columns * (size_t)experts; /* as many as the file has */
    float *values = xm_calloc(size, sizeof *values);
    if (values == NULL)
        return xm_fail_memory(error, "importance", size * sizeof *values);
    for (uint64_t e = 0; e < experts; e++) {
        float count = ((const float *)counts->data)[counts->shape[1] == experts ? e : 0];
        if (take_means((const float *)sums->data + e * columns, count, (size_t)columns,
                       values + e * columns))
            continue;
        xm_free(values);
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%.200s: '%.64s' has sums or counts that are negative or not finite", path,
                       name);
    }
    *values_out = values;
    return XMOE_OK;
}
