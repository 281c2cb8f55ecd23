/*
 * attention.h - causal attention of a step's rows over the paged KV cache, and the storing of new
 * keys and values. A part of the forward pass (forward.c), which owns the rows.
 */
#ifndef XM_MODEL_ATTENTION_H
#define XM_MODEL_ATTENTION_H

#include "model/forward.h"
#include "model/model.h"

/* A few consecutive positions of one segment. */
typedef struct {
    const xm_segment *segment;
    int32_t first; /* in the segment */
    int32_t count;
    int32_t row; /* of `first`, in the step */
} xm_query_tile;

typedef struct {
    xm_attention_shape shape;
    int32_t job_heads;        /* query heads of one kernel call; they share keys and values */
    int32_t task_jobs;        /* so that their columns are whole blocks of 32, where they can be */
    int32_t tile;             /* most positions of a tile */
    xm_query_tile *tiles;     /* [max_rows] */
    int32_t tile_count;       /* of this step */
    size_t scores_stride;     /* context and a sink, rounded up to whole KV blocks */
    float *scores;            /* [threads][tile * job_heads][scores_stride] */
    const void **keys;        /* [threads][blocks of a full context] */
    const void **values;      /* [threads][blocks of a full context] */
    size_t blocks_per_thread; /* blocks of a full context */
} xm_attention;

xmoe_status xm_attention_create(const xmoe_model *model, int32_t threads, int32_t max_rows,
                                xm_attention *attention, xmoe_error *error);
void xm_attention_free(xm_attention *attention);

/* Cuts the segments into query tiles. */
void xm_attention_begin(xm_attention *attention, const xm_segment *segments, int32_t count);

/* Stores the keys [heads][key_length] and values [heads][value_length] of one position, of all
 * heads of the cache. */
void xm_attention_store(const xm_kv_cache *cache, int32_t layer, const xm_segment *segment,
                        int32_t position, const float *keys, const float *values);

/* One layer's attention: for each row and query head, softmax(scale * q . keys) . values over the
 * positions up to the row's own that the layer's window leaves. */
typedef struct {
    const xm_attention *attention;
    const xm_kernels *kernels;
    const xm_kv_cache *cache;
    int32_t layer;
    int32_t window;       /* as in xm_attention_weights */
    const float *sinks;   /* as in xm_attention_weights */
    const float *queries; /* row r, head h at r * query_stride + h * key_length */
    size_t query_stride;
    const xm_activations *out; /* row r, head h at column h * value_length */
    bool quantize;             /* out in int16 too */
} xm_attention_call;

/* All keys and values of the rows must be stored. */
void xm_attention_run(const xm_attention_call *call, xm_pool *pool);

#endif
