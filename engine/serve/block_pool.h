/*
 * block_pool.h - which KV block belongs to whom, and which finished blocks can serve again.
 *
 * A block is in exactly one of three states:
 *   free    nobody holds it and its content is worthless: on the free list
 *   held    one or more sequences hold it (reference count > 0); it may be in the prefix index too
 *   cached  nobody holds it, but it is in the prefix index: on the LRU list, ready to be found
 *           again or, when the free list is empty, to be taken for something else
 * Full blocks are indexed by a hash that chains the parent block's hash and the block's 16 tokens,
 * beginning from a root that stands for the effective routing: keys and values behind the first MoE
 * layer depend on it. All operations are O(1). Scheduler thread only; the memory of the blocks is
 * the KV cache's (model/kv_cache.h).
 */
#ifndef XM_SERVE_BLOCK_POOL_H
#define XM_SERVE_BLOCK_POOL_H

#include "base/error.h"

typedef struct {
    uint64_t a, b;
} xm_block_hash;

typedef struct xm_block_pool xm_block_pool;

/* secret keys the hashes, so that nobody outside can aim for a collision. */
xmoe_status xm_block_pool_create(int32_t blocks, uint64_t secret, xm_block_pool **pool,
                                 xmoe_error *error);
void xm_block_pool_free(xm_block_pool *pool);

/* A block with one reference, from the free list or else the least recently used cached one; -1
 * if every block is held. */
int32_t xm_block_pool_take(xm_block_pool *pool);
/* One more reference to a held or cached block. */
void xm_block_pool_hold(xm_block_pool *pool, int32_t block);
/* One reference less; the last one makes the block cached if it is indexed, else free. */
void xm_block_pool_release(xm_block_pool *pool, int32_t block);
int32_t xm_block_pool_references(const xm_block_pool *pool, int32_t block);

/* Makes a held, full block findable. Nothing happens if the hash is taken by another block. */
void xm_block_pool_index(xm_block_pool *pool, int32_t block, xm_block_hash hash);
/* The block of this hash, held or cached, or -1. Takes no reference. */
int32_t xm_block_pool_find(const xm_block_pool *pool, xm_block_hash hash);

int32_t xm_block_pool_total(const xm_block_pool *pool);
int32_t xm_block_pool_held(const xm_block_pool *pool);
int32_t xm_block_pool_cached(const xm_block_pool *pool);
/* Blocks that take() can give now: free and cached ones. */
int32_t xm_block_pool_available(const xm_block_pool *pool);

/* Where the chain of a sequence with this routing begins. Routers that always choose the same
 * experts have equal roots (top_k over all experts, a threshold >= 1 and dense, for example).
 * moe_layers[moe_layer_count] are the layers that count. trained_top_k: k of a model trained with
 * top-k, whose thresholds begin at its k choices; 0: of another. */
xm_block_hash xm_block_hash_root(const xm_block_pool *pool, const xmoe_routing *routing,
                                 const int32_t *moe_layers, int32_t moe_layer_count,
                                 int32_t experts, int32_t trained_top_k);
/* The hash of the block behind parent with these XM_KV_TOKENS tokens. */
xm_block_hash xm_block_hash_next(xm_block_hash parent, const int32_t *tokens);

/* For tests: checks every invariant in O(blocks); on failure *what names the broken one. */
bool xm_block_pool_check(const xm_block_pool *pool, const char **what);

#endif
