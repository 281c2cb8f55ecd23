/*
 * query_key.h - what happens to queries and keys between their product and attention in blocks with
 * rotary positions (Su et al. 2021): an RMSNorm over all heads together where the architecture has
 * one (OLMoE), then the turn of each pair of values by its angle. Forward and backward, in place.
 */
#ifndef XM_TRAIN_QUERY_KEY_H
#define XM_TRAIN_QUERY_KEY_H

#include "base/pool.h"
#include "model/rope.h"

typedef struct {
    int32_t rows, length; /* rows = sequences * length; the position of a row is row % length */
    int32_t width, heads;
    float epsilon;
    xm_rope rope;       /* of a head */
    const float *turns; /* [length][rope.dimensions]: of each position */
} xm_query_key_shape;

/* qkv: [rows][3 * width], q, k, v. q_norm, k_norm: [width], or both NULL: no norm. raw:
 * [rows][2 * width], keeps q and k as they came, and inverses: [rows][2], with a norm only. */
void xm_query_key_forward(xm_pool *pool, const xm_query_key_shape *shape, const float *q_norm,
                          const float *k_norm, float *qkv, float *raw, float *inverses);

typedef struct {
    const float *q_norm, *k_norm; /* NULL: no norm, and the rest but dqkv NULL too */
    const float *raw, *inverses;
    float *dqkv;              /* [rows][3 * width], changed in place */
    float *dq_norm, *dk_norm; /* accumulated */
    float *partial;           /* scratch: XM_QUERY_KEY_CHUNKS * 3 * width floats */
} xm_query_key_gradients;

enum { XM_QUERY_KEY_CHUNKS = 16 };
void xm_query_key_backward(xm_pool *pool, const xm_query_key_shape *shape,
                           const xm_query_key_gradients *gradients);

#endif
