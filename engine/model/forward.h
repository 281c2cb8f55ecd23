/*
 * forward.h - one step of the model over a batch of segments (the spec's forward pass).
 *
 * Runs on the scheduler's thread, which opens parallel regions on the pool. An xm_forward owns all
 * scratch, sized at creation; a step allocates nothing and cannot fail. Each row's results depend
 * on its own segment alone.
 */
#ifndef XM_MODEL_FORWARD_H
#define XM_MODEL_FORWARD_H

#include "base/pool.h"
#include "model/kv_cache.h"
#include "model/pooled.h"
#include "moe/observer.h"
#include "moe/router.h"

/* Consecutive positions of one sequence. */
typedef struct {
    const int32_t *tokens; /* [token_count], ids in range */
    int32_t token_count;   /* >= 1 */
    int32_t position;      /* of tokens[0]; position + token_count <= context */
    const int32_t *blocks; /* block table: block of positions 16i .. 16i+15 at blocks[i] */
    const xmoe_routing *routing;
    int32_t logits_from; /* rows from this one (in the segment) on give logits;
                            token_count: none do */
    xm_pooled *pooled;   /* takes the final hidden states of all rows; NULL: nobody does */
} xm_segment;

/* Called on the calling thread after the router of each MoE layer has decided for all rows of the
 * step, with the very arrays that drive the computation. moe_layer counts MoE layers from 0. Rows
 * are the segments' tokens in order. */
typedef void (*xm_routed_fn)(void *context, int32_t moe_layer, const xm_selection *selection);

typedef struct xm_forward xm_forward;

/* max_rows: most tokens of one step. pool and cache outlive the forward; pool may be NULL. */
xmoe_status xm_forward_create(const xmoe_model *model, xm_pool *pool, xm_kv_cache *cache,
                              int32_t max_rows, xm_forward **forward, xmoe_error *error);
/* From the next step on, tells of what matrices are multiplied with; NULL: no more. */
void xm_forward_observe(xm_forward *forward, const xm_input_observer *observer);
void xm_forward_free(xm_forward *forward);

/* Writes the rows' keys and values into the cache and returns logits [rows that want
 * them][vocabulary] in order of segments and rows, valid until the next step. routed may be NULL.
 */
const float *xm_forward_step(xm_forward *forward, const xm_segment *segments, int32_t segment_count,
                             xm_routed_fn routed, void *routed_context);

#endif
