/*
 * loader.c - see loader.h.
 *
 * Runs on the thread that loads a model; packing runs on a pool, in regions of some tens of MB
 * between which progress is reported. Refuses tensors that are missing, of the wrong shape or of a
 * type that it cannot read, and files with tensors that the architecture does not have: a weight
 * that nobody reads would mean that another model is computed than the one in the file.
 */
#include "model/loader.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "format/utf8.h"
#include "model/pages.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    ALIGNMENT = 64,
    TASK_BYTES = 1 << 20,  /* source bytes that one packing task takes, about */
    REGION_TASKS = 64,     /* tasks between two reports of progress */
    SHAPE_TEXT_BYTES = 96, /* four 64-bit numbers and brackets */
};

/* --- memory of the model ---------------------------------------------------------------------- */

/* The arena is a list of blocks, the newest first. */
typedef struct arena_block {
    struct arena_block *next;
} arena_block;

void *xm_model_allocate(xmoe_model *model, size_t count, size_t size)
{
    size_t bytes;
    if (!xm_multiply(count, size, &bytes) || !xm_add(bytes, ALIGNMENT, &bytes))
        return NULL;
    arena_block *block = xm_calloc_aligned(bytes, 1);
    if (block == NULL)
        return NULL;
    block->next = model->arena;
    model->arena = block;
    return (uint8_t *)block + ALIGNMENT;
}

/* As xm_model_allocate, but touched first by the threads that pack into it. */
static uint8_t *allocate_weights(xmoe_model *model, size_t bytes)
{
    size_t size;
    if (!xm_pages_size(bytes, &size) || !xm_add(size, sizeof(arena_block), &size))
        return NULL;
    arena_block *block = xm_calloc(size, 1);
    if (block == NULL)
        return NULL;
    block->next = model->arena;
    model->arena = block;
    return xm_pages_place(block + 1, bytes);
}

void xm_model_free_memory(xmoe_model *model)
{
    while (model->arena != NULL) {
        arena_block *block = model->arena;
        model->arena = block->next;
        xm_free(block);
    }
}

const char *xm_model_copy_text(xmoe_model *model, xm_string text)
{
    xm_buffer valid = {0};
    xm_utf8_stream stream = {0};
    xm_utf8_stream_push(&stream, text.data, text.length, &valid);
    xm_utf8_stream_end(&stream, &valid);
    char *copy = valid.failed ? NULL : xm_model_allocate(model, valid.length + 1, 1);
    if (copy != NULL && valid.length > 0)
        memcpy(copy, valid.data, valid.length);
    xm_buffer_free(&valid);
    return copy;
}

/* --- binding ---------------------------------------------------------------------------------- */

bool xm_loader_has(const xm_loader *loader, const char *name)
{
    return xm_gguf_find_tensor(loader->model->file, name) != NULL;
}

static xmoe_status fail_tensor(const xm_loader *loader, const char *name, const char *problem,
                               xmoe_error *error)
{
    return xm_fail(error, XMOE_ERROR_FORMAT, "%.150s: tensor '%.64s' %s",
                   xm_gguf_path(loader->model->file), name, problem);
}

/* "[64, 192]"; ones at the end are left out. */
static void write_shape(const uint64_t shape[4], char *text)
{
    int dimensions = 4;
    while (dimensions > 1 && shape[dimensions - 1] == 1)
        dimensions--;
    size_t used = 0;
    for (int i = 0; i < dimensions; i++)
        used += (size_t)snprintf(text + used, SHAPE_TEXT_BYTES - used, "%s%llu",
                                 i == 0 ? "[" : ", ", (unsigned long long)shape[i]);
    snprintf(text + used, SHAPE_TEXT_BYTES - used, "]");
}

static xmoe_status check_type(const xm_loader *loader, const char *name,
                              const xm_gguf_tensor *tensor, const xm_weight_traits *type,
                              xmoe_error *error)
{
    char problem[256];
    if (tensor->traits == NULL) {
        snprintf(problem, sizeof problem,
                 "has type number %u, which this engine does not read (it reads %s)",
                 tensor->type_number, xmoe_weight_types());
        return fail_tensor(loader, name, problem, error);
    }
    if (type != NULL && tensor->traits != type) {
        snprintf(problem, sizeof problem, "has type %s, expected %s", tensor->traits->name,
                 type->name);
        return fail_tensor(loader, name, problem, error);
    }
    if (tensor->shape[0] % tensor->traits->block_elements != 0) {
        snprintf(problem, sizeof problem, "has rows of %llu elements, not whole blocks of %u (%s)",
                 (unsigned long long)tensor->shape[0], tensor->traits->block_elements,
                 tensor->traits->name);
        return fail_tensor(loader, name, problem, error);
    }
    return XMOE_OK;
}

static xmoe_status find_checked(const xm_loader *loader, const char *name, const uint64_t shape[4],
                                const xm_weight_traits *type, const xm_gguf_tensor **tensor,
                                xmoe_error *error)
{
    *tensor = xm_gguf_find_tensor(loader->model->file, name);
    if (*tensor == NULL)
        return fail_tensor(loader, name, "is missing", error);
    if (memcmp((*tensor)->shape, shape, sizeof(*tensor)->shape) != 0) {
        char found[SHAPE_TEXT_BYTES], expected[SHAPE_TEXT_BYTES];
        char problem[2 * SHAPE_TEXT_BYTES + 32];
        write_shape((*tensor)->shape, found);
        write_shape(shape, expected);
        snprintf(problem, sizeof problem, "has shape %s, expected %s", found, expected);
        return fail_tensor(loader, name, problem, error);
    }
    return check_type(loader, name, *tensor, type, error);
}

static xm_load_item *add_item(xm_loader *loader, const xm_gguf_tensor *tensor, xmoe_error *error)
{
    if (loader->item_count == loader->item_capacity) {
        size_t capacity = loader->item_capacity * 2 + 32;
        xm_load_item *grown = xm_realloc(loader->items, capacity, sizeof *grown);
        if (grown == NULL) {
            xm_fail_memory(error, "list of tensors", capacity * sizeof *grown);
            return NULL;
        }
        loader->items = grown;
        loader->item_capacity = capacity;
    }
    xm_load_item *item = &loader->items[loader->item_count++];
    *item = (xm_load_item){.tensor = tensor, .count = 1};
    return item;
}

/* A matrix of this shape without its data. */
static xm_matrix shape_matrix(xm_weight_type type, int32_t rows, int32_t columns)
{
    return (xm_matrix){
        .type = type,
        .rows = rows,
        .columns = columns,
        .panels = (rows + XM_PANEL - 1) / XM_PANEL,
        .panel_bytes = xm_panel_bytes(type, (size_t)columns),
    };
}

static xmoe_status add_matrices(xm_loader *loader, const xm_gguf_tensor *tensor, xm_matrix shape,
                                size_t count, xm_matrix *matrices, xm_load_item **item,
                                xmoe_error *error)
{
    *item = add_item(loader, tensor, error);
    if (*item == NULL)
        return XMOE_ERROR_MEMORY;
    for (size_t i = 0; i < count; i++)
        matrices[i] = shape;
    (*item)->matrices = matrices;
    (*item)->count = count;
    (*item)->source_stride = (size_t)(tensor->bytes / count);
    return XMOE_OK;
}

xmoe_status xm_loader_bind_matrices(xm_loader *loader, const char *name, int32_t columns,
                                    int32_t rows, int32_t count, const xm_weight_traits *type,
                                    xm_matrix *matrices, xmoe_error *error)
{
    const uint64_t shape[4] = {(uint64_t)columns, (uint64_t)rows, (uint64_t)count, 1};
    const xm_gguf_tensor *tensor;
    xmoe_status status = find_checked(loader, name, shape, type, &tensor, error);
    if (status != XMOE_OK)
        return status;
    xm_load_item *item;
    return add_matrices(loader, tensor, shape_matrix(tensor->traits->type, rows, columns),
                        (size_t)count, matrices, &item, error);
}

xmoe_status xm_loader_bind_split(xm_loader *loader, const char *name, int32_t columns,
                                 int32_t first, int32_t second, int32_t count,
                                 xm_matrix *transposed, xm_matrix *matrices, xmoe_error *error)
{
    const uint64_t shape[4] = {(uint64_t)columns, (uint64_t)count * (uint64_t)(first + second), 1,
                               1};
    const xm_gguf_tensor *tensor;
    xm_load_item *item;
    xmoe_status status = find_checked(loader, name, shape, NULL, &tensor, error);
    if (status != XMOE_OK)
        return status;
    size_t row_bytes = (size_t)(tensor->bytes / shape[1]);
    status = add_matrices(loader, tensor, shape_matrix(XM_TYPE_F32, columns, first), (size_t)count,
                          transposed, &item, error);
    if (status != XMOE_OK)
        return status;
    item->transposed = true;
    status = add_matrices(loader, tensor, shape_matrix(tensor->traits->type, second, columns),
                          (size_t)count, matrices, &item, error);
    if (status == XMOE_OK)
        item->source_offset = (size_t)first * row_bytes;
    return status;
}

xmoe_status xm_loader_read_values(xm_loader *loader, const char *name, int32_t count, float *values,
                                  xmoe_error *error)
{
    const uint64_t shape[4] = {(uint64_t)count, 1, 1, 1};
    const xm_weight_traits *f32 = xm_weight_traits_of(XM_TYPE_F32);
    const xm_gguf_tensor *tensor;
    xmoe_status status = find_checked(loader, name, shape, f32, &tensor, error);
    if (status != XMOE_OK)
        return status;
    if (add_item(loader, tensor, error) == NULL)
        return XMOE_ERROR_MEMORY;
    xm_weights_to_f32(f32, tensor->data, values, (size_t)count);
    return XMOE_OK;
}

xmoe_status xm_loader_bind_values(xm_loader *loader, const char *name, int32_t columns,
                                  int32_t rows, const xm_weight_traits *type, const float **values,
                                  xmoe_error *error)
{
    const uint64_t shape[4] = {(uint64_t)columns, (uint64_t)rows, 1, 1};
    const xm_gguf_tensor *tensor;
    xmoe_status status = find_checked(loader, name, shape, type, &tensor, error);
    if (status != XMOE_OK)
        return status;
    xm_load_item *item = add_item(loader, tensor, error);
    if (item == NULL)
        return XMOE_ERROR_MEMORY;
    item->values = values;
    return XMOE_OK;
}

static bool is_bound(const xm_loader *loader, const xm_gguf_tensor *tensor)
{
    for (size_t i = 0; i < loader->item_count; i++)
        if (loader->items[i].tensor == tensor)
            return true;
    return false;
}

xmoe_status xm_loader_check_all_bound(const xm_loader *loader, xmoe_error *error)
{
    const xm_gguf *file = loader->model->file;
    uint64_t count = xm_gguf_tensor_count(file);
    for (uint64_t i = 0; i < count; i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        if (is_bound(loader, tensor))
            continue;
        char name[65];
        xm_utf8_printable(tensor->name.data, tensor->name.length, name, sizeof name);
        return fail_tensor(loader, name, "is not part of this architecture", error);
    }
    return XMOE_OK;
}

/* --- packing ---------------------------------------------------------------------------------- */

/* Panels [first, last) of one matrix, or a whole tensor of values. */
typedef struct {
    const xm_load_item *item;
    size_t matrix;
    int32_t first, last;
} pack_task;

typedef struct {
    uint8_t *weights;
    pack_task tasks[REGION_TASKS];
    int32_t count;
} pack_region;

/* Where the next task begins. */
typedef struct {
    size_t item, matrix;
    int32_t panel;
    uint64_t bytes; /* source bytes of the tasks so far */
} pack_position;

static size_t rounded_up(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

/* Gives every item its place; false if the sum overflows. */
static bool place_items(xm_loader *loader, size_t *total)
{
    *total = 0;
    for (size_t i = 0; i < loader->item_count; i++) {
        xm_load_item *item = &loader->items[i];
        const uint64_t *shape = item->tensor->shape;
        size_t bytes = 0;
        if (item->matrices == NULL && item->values == NULL)
            continue; /* was read when it was bound */
        if (item->matrices != NULL
                ? !xm_multiply((size_t)item->matrices->panels, item->matrices->panel_bytes, &bytes)
                : !xm_multiply((size_t)(shape[0] * shape[1]), sizeof(float), &bytes))
            return false;
        item->offset = *total;
        item->stride = rounded_up(bytes);
        if (!xm_multiply(item->stride, item->count, &bytes) || !xm_add(*total, bytes, total))
            return false;
    }
    return true;
}

static void point_to_weights(xm_loader *loader, const uint8_t *weights)
{
    for (size_t i = 0; i < loader->item_count; i++) {
        xm_load_item *item = &loader->items[i];
        const uint8_t *start = weights + item->offset;
        if (item->values != NULL)
            *item->values = (const float *)(const void *)start;
        for (size_t m = 0; item->matrices != NULL && m < item->count; m++)
            item->matrices[m].data = start + m * item->stride;
    }
}

/* Each row of the source is a column of the matrix. */
static void pack_transposed(const xm_gguf_tensor *tensor, const uint8_t *source,
                            const xm_matrix *matrix, uint8_t *out)
{
    size_t row_bytes = (size_t)(tensor->bytes / tensor->shape[1]);
    float values[XM_MAX_TRANSPOSED];
    for (int32_t column = 0; column < matrix->columns; column++) {
        xm_weights_to_f32(tensor->traits, source + (size_t)column * row_bytes, values,
                          (size_t)matrix->rows);
        for (int32_t row = 0; row < matrix->rows; row++) {
            float *panel = (float *)(void *)(out + (size_t)(row / XM_PANEL) * matrix->panel_bytes);
            panel[column * XM_PANEL + row % XM_PANEL] = values[row];
        }
    }
}

static void run_pack_task(void *context, int32_t index, int32_t thread)
{
    (void)thread;
    const pack_region *region = context;
    const pack_task *task = &region->tasks[index];
    const xm_load_item *item = task->item;
    const xm_gguf_tensor *tensor = item->tensor;
    uint8_t *out = region->weights + item->offset + task->matrix * item->stride;
    if (item->values != NULL) {
        xm_weights_to_f32(tensor->traits, tensor->data, (float *)(void *)out,
                          (size_t)(tensor->shape[0] * tensor->shape[1]));
        return;
    }
    if (item->matrices == NULL)
        return;
    const xm_matrix *matrix = item->matrices;
    const uint8_t *source =
        (const uint8_t *)tensor->data + item->source_offset + task->matrix * item->source_stride;
    if (item->transposed)
        pack_transposed(tensor, source, matrix, out);
    else
        xm_pack_panels(matrix->type, source, (size_t)matrix->rows, (size_t)matrix->columns,
                       task->first, task->last, out);
}

/* The task at `at`, which moves past it. */
static pack_task next_task(const xm_loader *loader, pack_position *at)
{
    const xm_load_item *item = &loader->items[at->item];
    pack_task task = {.item = item, .matrix = at->matrix, .first = at->panel, .last = at->panel};
    if (item->matrices == NULL) { /* values */
        at->bytes += item->tensor->bytes;
        at->item++;
        return task;
    }
    int32_t panels = item->matrices->panels;
    int32_t most = (int32_t)(TASK_BYTES / item->matrices->panel_bytes) + 1;
    if (item->transposed)
        most = panels; /* a source row goes to all of them */
    task.last = panels - at->panel < most ? panels : at->panel + most;
    uint64_t bytes = item->tensor->bytes / item->count;
    at->bytes += bytes * (uint64_t)task.last / (uint64_t)panels -
                 bytes * (uint64_t)task.first / (uint64_t)panels;
    at->panel = task.last;
    if (at->panel == panels) {
        at->panel = 0;
        at->matrix++;
    }
    if (at->matrix == item->count) {
        at->matrix = 0;
        at->item++;
    }
    return task;
}

/* The map's pages of weights that now lie packed elsewhere need not stay in memory. */
static void release_source(const xm_loader *loader)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < loader->item_count; i++) {
        const xm_gguf_tensor *tensor = loader->items[i].tensor;
        uint8_t *data = (uint8_t *)tensor->data;        /* the advice does not write */
        size_t skipped = -(uintptr_t)data & (page - 1); /* to the first whole page */
        if (tensor->bytes > skipped)
            madvise(data + skipped, (tensor->bytes - skipped) & ~(page - 1), MADV_DONTNEED);
    }
}

/* Remembers which tensor packed matrices are of. */
static xmoe_status name_matrices(const xm_loader *loader, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    model->named = xm_model_allocate(model, loader->item_count, sizeof *model->named);
    if (model->named == NULL)
        return xm_fail_memory(error, "names of matrices",
                              loader->item_count * sizeof *model->named);
    for (size_t i = 0; i < loader->item_count; i++) {
        const xm_load_item *item = &loader->items[i];
        if (item->matrices != NULL && !item->transposed)
            model->named[model->named_count++] = (xm_named_matrices){.tensor = item->tensor,
                                                                     .data = item->matrices->data,
                                                                     .stride = item->stride,
                                                                     .count = item->count};
    }
    return XMOE_OK;
}

xmoe_status xm_loader_pack(xm_loader *loader, xm_pool *pool, xmoe_progress_fn progress,
                           void *progress_context, xmoe_error *error)
{
    size_t total;
    uint64_t source_bytes = 0;
    if (!place_items(loader, &total))
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: the weights exceed the address space",
                       xm_gguf_path(loader->model->file));
    pack_region region = {.weights = allocate_weights(loader->model, total)};
    if (region.weights == NULL)
        return xm_fail_memory(error, "weights", total);
    for (size_t i = 0; i < loader->item_count; i++)
        source_bytes += loader->items[i].tensor->bytes;
    point_to_weights(loader, region.weights);

    pack_position at = {0};
    while (at.item < loader->item_count) {
        for (region.count = 0; region.count < REGION_TASKS && at.item < loader->item_count;)
            region.tasks[region.count++] = next_task(loader, &at);
        xm_pool_run(pool, region.count, run_pack_task, &region);
        if (progress != NULL &&
            !progress(progress_context, "loading weights", at.bytes, source_bytes))
            return xm_fail_argument(error, "progress", "stopped while the model was loaded");
    }
    release_source(loader);
    return name_matrices(loader, error);
}

void xm_loader_free(xm_loader *loader)
{
    xm_free(loader->items);
    *loader = (xm_loader){0};
}
