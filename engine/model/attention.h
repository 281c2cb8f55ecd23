/*
 * attention.h - causal attention of a step's rows over the paged KV cache, and the storing of new
 * keys and values. A part of the forward pass (forward.c), which owns the rows.
 */
#ifndef XM_MODEL_ATTENTION_H
#define XM_MODEL_ATTENTION_H

#include "model/forward.h"
#include "model/model.h"

/* Up to 16 consecutive positions of one segment. */
typedef struct {
    const xm_segment *segment;
    int32_t first; /* in the segment */
    int32_t count;
    int32_t row; /* of `first`, in the step */
} xm_query_tile;

typedef struct {
    int32_t tile;             /* most queries of a tile */
    int32_t heads_per_task;   /* so that their columns are whole blocks of 32, where they can be */
    xm_query_tile *tiles;     /* [max_rows] */
    int32_t tile_count;       /* of this step */
    size_t scores_stride;     /* context, rounded up to whole KV blocks */
    float *scores;            /* [threads][tile][scores_stride] */
    const void **keys;        /* [threads][blocks of a full context] */
    const void **values;      /* [threads][blocks of a full context] */
    size_t blocks_per_thread; /* blocks of a full context */
} xm_attention;

xmoe_status xm_attention_create(const xmoe_model_info *info, int32_t threads, int32_t max_rows,
                                xm_attention *attention, xmoe_error *error);
void xm_attention_free(xm_attention *attention);

/* Cuts the segments into query tiles. */
void xm_attention_begin(xm_attention *attention, const xm_segment *segments, int32_t count);

/* Stores columns [first, last) of one row of qkv (q, k, v one after the other): those of k and v go
 * to the row's position in the cache, those of q nowhere. */
void xm_attention_store(const xm_kv_cache *cache, int32_t layer, const xm_segment *segment,
                        int32_t position, const float *qkv, size_t first, size_t last);

/* out[row] = for each head softmax(scale * q . keys) . values over the positions up to the row's
 * own; in int16 too, if asked for. All keys and values of the rows must be stored. */
void xm_attention_run(const xm_attention *attention, const xm_kernels *kernels, xm_pool *pool,
                      const xm_kv_cache *cache, int32_t layer, const float *qkv, size_t qkv_stride,
                      const xm_activations *out, bool quantize);

#endif
