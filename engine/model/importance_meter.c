/* importance_meter.c - see importance_meter.h. */
#include "model/importance_meter.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 512 }; /* positions that the file calls a chunk */

/* What was seen of the matrices of one tensor. */
typedef struct {
    const xm_named_matrices *matrices;
    size_t columns, experts;
    double *sums;     /* [experts][columns] */
    uint64_t *counts; /* [experts] */
} entry;

struct xm_importance_meter {
    xm_input_observer observer;
    pthread_mutex_t mutex; /* over all sums and counts */
    entry *entries;        /* in order of their weights' addresses */
    size_t entry_count;
};

/* --- adding ----------------------------------------------------------------------------------- */

/* The last entry whose weights begin at or before the address; NULL if it is before all. */
static entry *find_entry(const xm_importance_meter *meter, const uint8_t *data)
{
    size_t low = 0, high = meter->entry_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (meter->entries[middle].matrices->data <= data)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 ? &meter->entries[low - 1] : NULL;
}

static void add_inputs(void *context, const xm_matrix *matrix, const xm_activations *in,
                       const int32_t *rows, int32_t count)
{
    xm_importance_meter *meter = context;
    entry *e = find_entry(meter, matrix->data);
    size_t index = e != NULL ? (size_t)(matrix->data - e->matrices->data) / e->matrices->stride : 0;
    if (e == NULL || index >= e->matrices->count)
        return; /* made of the file's, not in it: keys of latent attention */
    size_t expert = e->experts == e->matrices->count ? index : 0;
    double *sums = e->sums + expert * e->columns;
    pthread_mutex_lock(&meter->mutex);
    e->counts[expert] += (uint64_t)count;
    for (int32_t i = 0; i < count; i++) {
        const float *x = in->f32 + (size_t)rows[i] * in->stride;
        for (size_t c = 0; c < e->columns; c++)
            sums[c] += (double)x[c] * (double)x[c];
    }
    pthread_mutex_unlock(&meter->mutex);
}

/* --- life ------------------------------------------------------------------------------------- */

static xmoe_status create_entry(entry *e, const xm_named_matrices *matrices, xmoe_error *error)
{
    const uint64_t *shape = matrices->tensor->shape;
    size_t size; /* shapes were checked when the model was loaded */
    e->matrices = matrices;
    e->columns = (size_t)shape[0];
    e->experts = (size_t)shape[2];
    if (!xm_multiply(e->columns, e->experts, &size))
        size = SIZE_MAX;
    e->sums = xm_calloc(size, sizeof *e->sums);
    e->counts = xm_calloc(e->experts, sizeof *e->counts);
    if (e->sums == NULL || e->counts == NULL)
        return xm_fail_memory(error, "sums of squares", size);
    return XMOE_OK;
}

xmoe_status xm_importance_meter_create(const xmoe_model *model, xm_importance_meter **meter_out,
                                       xmoe_error *error)
{
    *meter_out = NULL;
    xm_importance_meter *meter = xm_calloc(1, sizeof *meter);
    if (meter == NULL)
        return xm_fail_memory(error, "importance", sizeof *meter);
    pthread_mutex_init(&meter->mutex, NULL);
    meter->observer = (xm_input_observer){.on_inputs = add_inputs, .context = meter};
    meter->entries = xm_calloc(model->named_count, sizeof *meter->entries);
    if (meter->entries == NULL) {
        xm_importance_meter_free(meter);
        return xm_fail_memory(error, "importance", model->named_count * sizeof(entry));
    }
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < model->named_count && status == XMOE_OK; i++)
        status = create_entry(&meter->entries[meter->entry_count++], &model->named[i], error);
    if (status != XMOE_OK) {
        xm_importance_meter_free(meter);
        return status;
    }
    *meter_out = meter;
    return XMOE_OK;
}

void xm_importance_meter_free(xm_importance_meter *meter)
{
    if (meter == NULL)
        return;
    for (size_t i = 0; meter->entries != NULL && i < meter->entry_count; i++) {
        xm_free(meter->entries[i].sums);
        xm_free(meter->entries[i].counts);
    }
    xm_free(meter->entries);
    pthread_mutex_destroy(&meter->mutex);
    xm_free(meter);
}

const xm_input_observer *xm_importance_meter_observer(const xm_importance_meter *meter)
{
    return &meter->observer;
}

/* --- the file --------------------------------------------------------------------------------- */

static uint64_t positions_of(const entry *e)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < e->experts; i++)
        sum += e->counts[i];
    return sum;
}

static void describe(const xm_importance_meter *meter, xm_gguf_writer *writer, const char *dataset)
{
    const xm_string name = {dataset, strlen(dataset)};
    uint64_t most = 0;
    for (size_t i = 0; i < meter->entry_count; i++) {
        const entry *e = &meter->entries[i];
        if (e->experts == 1 && positions_of(e) > most)
            most = positions_of(e);
    }
    xm_gguf_writer_string(writer, "general.type", "imatrix");
    xm_gguf_writer_strings(writer, "imatrix.datasets", &name, 1);
    xm_gguf_writer_u32(writer, "imatrix.chunk_count", (uint32_t)((most + CHUNK - 1) / CHUNK));
    xm_gguf_writer_u32(writer, "imatrix.chunk_size", CHUNK);
    for (size_t i = 0; i < meter->entry_count; i++) {
        const entry *e = &meter->entries[i];
        char tensor[128];
        if (positions_of(e) == 0)
            continue;
        const char *matrix = e->matrices->tensor->name.data;
        snprintf(tensor, sizeof tensor, "%s.in_sum2", matrix);
        xm_gguf_writer_tensor(writer, tensor, XM_TYPE_F32, 2, (uint64_t[]){e->columns, e->experts});
        snprintf(tensor, sizeof tensor, "%s.counts", matrix);
        xm_gguf_writer_tensor(writer, tensor, XM_TYPE_F32, 2, (uint64_t[]){1, e->experts});
    }
    xm_gguf_writer_begin(writer);
}

static void write_entry(const entry *e, xm_gguf_writer *writer)
{
    if (positions_of(e) == 0)
        return;
    for (size_t i = 0; i < e->columns * e->experts; i++) {
        float sum = (float)e->sums[i];
        xm_gguf_writer_data(writer, &sum, sizeof sum);
    }
    for (size_t i = 0; i < e->experts; i++) {
        float count = (float)e->counts[i];
        xm_gguf_writer_data(writer, &count, sizeof count);
    }
}

xmoe_status xm_importance_meter_write(xm_importance_meter *meter, const char *path,
                                      const char *dataset, xmoe_error *error)
{
    xm_gguf_writer *writer;
    xmoe_status status = xm_gguf_writer_create(path, &writer, error);
    if (status != XMOE_OK)
        return status;
    pthread_mutex_lock(&meter->mutex);
    describe(meter, writer, dataset);
    for (size_t i = 0; i < meter->entry_count; i++)
        write_entry(&meter->entries[i], writer);
    pthread_mutex_unlock(&meter->mutex);
    return xm_gguf_writer_finish(writer, error);
}
