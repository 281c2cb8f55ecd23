/*
 * loader.h - while a model is being loaded: tensors are found by name, checked and remembered, then
 * all weights are packed into one block, in parallel.
 *
 * A family (family.h) calls the xm_loader_bind functions; nothing of a weight's size is allocated
 * before every tensor has been compared with the shape that the hyper-parameters ask for.
 */
#ifndef XM_MODEL_LOADER_H
#define XM_MODEL_LOADER_H

#include "base/pool.h"
#include "model/model.h"

enum { XM_MAX_TRANSPOSED = 1 << 14 }; /* elements of a row that may become a column */

/* A tensor and where its weights go. */
typedef struct {
    const xm_gguf_tensor *tensor;
    xm_matrix *matrices;  /* [count]; NULL: plain values */
    const float **values; /* where matrices is NULL: the tensor as F32 */
    size_t count;         /* matrices of the tensor; 1 for values */
    size_t source_offset; /* bytes in the tensor before the first matrix */
    size_t source_stride; /* and from one matrix to the next */
    bool transposed;      /* the tensor's rows become the matrices' columns, as F32 */
    size_t stride;        /* bytes from one matrix to the next in the weight block */
    size_t offset;        /* of the first in the weight block */
} xm_load_item;

typedef struct {
    xmoe_model *model;        /* being filled; its file is open */
    const char *architecture; /* as in the file; prefix of its keys */
    int32_t context_limit;    /* longest sequence asked for; 0: the file's */
    xm_load_item *items;
    size_t item_count, item_capacity;
} xm_loader;

/* Memory that lives as long as the model: count * size zeroed bytes at a 64-byte boundary, or NULL.
 */
void *xm_model_allocate(xmoe_model *model, size_t count, size_t size);
/* A NUL-terminated copy that lives as long as the model, in valid UTF-8; NULL without memory. */
const char *xm_model_copy_text(xmoe_model *model, xm_string text);

/* Frees all that xm_model_allocate gave, weights included. */
void xm_model_free_memory(xmoe_model *model);

bool xm_loader_has(const xm_loader *loader, const char *name);
/* Tensor `name` of shape [columns, rows, count] becomes count matrices, of type `type` only unless
 * that is NULL. Their shapes are set at once, their data when packed. */
xmoe_status xm_loader_bind_matrices(xm_loader *loader, const char *name, int32_t columns,
                                    int32_t rows, int32_t count, const xm_weight_traits *type,
                                    xm_matrix *matrices, xmoe_error *error);
/* Tensor `name` of shape [columns, rows] becomes F32 values when packed. */
xmoe_status xm_loader_bind_values(xm_loader *loader, const char *name, int32_t columns,
                                  int32_t rows, const xm_weight_traits *type, const float **values,
                                  xmoe_error *error);
/* Tensor `name` of shape [columns, count * (first + second)], whose rows are, `count` times,
 * `first` rows and then `second` rows: the former become F32 matrices [columns x first]
 * (transposed), the latter matrices [second x columns]. */
xmoe_status xm_loader_bind_split(xm_loader *loader, const char *name, int32_t columns,
                                 int32_t first, int32_t second, int32_t count,
                                 xm_matrix *transposed, xm_matrix *matrices, xmoe_error *error);
/* F32 tensor `name` of `count` values, read now. */
xmoe_status xm_loader_read_values(xm_loader *loader, const char *name, int32_t count, float *values,
                                  xmoe_error *error);
/* Fails if the file holds a tensor that was not bound. */
xmoe_status xm_loader_check_all_bound(const xm_loader *loader, xmoe_error *error);
/* Allocates the weights, fills them from the file and lets go of the file's pages. */
xmoe_status xm_loader_pack(xm_loader *loader, xm_pool *pool, xmoe_progress_fn progress,
                           void *progress_context, xmoe_error *error);
/* Frees the list of items, not the model. */
void xm_loader_free(xm_loader *loader);

#endif
