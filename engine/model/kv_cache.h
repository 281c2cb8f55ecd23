/*
 * kv_cache.h - memory for keys and values, in blocks of XM_KV_TOKENS positions.
 *
 * This file owns the memory only. Which block belongs to whom is the scheduler's business
 * (serve/block_pool.h); a forward pass is told by block tables. Inside a block, each layer and head
 * has keys [key_length][16] and values [16][value_length], F16 or F32.
 */
#ifndef XM_MODEL_KV_CACHE_H
#define XM_MODEL_KV_CACHE_H

#include "base/error.h"

typedef struct {
    int32_t block_count;
    int32_t heads; /* of keys and values: not more than query heads */
    int32_t key_length, value_length;
    bool f32;
    size_t key_bytes;   /* keys of one head of one layer of one block */
    size_t head_bytes;  /* its keys and values */
    size_t block_bytes; /* keys and values of all layers and heads */
    uint8_t *memory;    /* block_count * block_bytes; pages are taken as they are written */
    void *allocation;   /* what memory lies in */
} xm_kv_cache;

size_t xm_kv_block_bytes(const xmoe_model *model, bool f32);
xmoe_status xm_kv_cache_create(const xmoe_model *model, int32_t block_count, bool f32,
                               xm_kv_cache **cache, xmoe_error *error);
void xm_kv_cache_free(xm_kv_cache *cache);

static inline void *xm_kv_keys(const xm_kv_cache *cache, int32_t block, int32_t layer, int32_t head)
{
    return cache->memory + (size_t)block * cache->block_bytes +
           ((size_t)layer * (size_t)cache->heads + (size_t)head) * cache->head_bytes;
}

static inline void *xm_kv_values(const xm_kv_cache *cache, int32_t block, int32_t layer,
                                 int32_t head)
{
    return (uint8_t *)xm_kv_keys(cache, block, layer, head) + cache->key_bytes;
}

/* All of block `from` into block `to` (when choices that share a prompt part ways inside a block).
 */
void xm_kv_copy_block(xm_kv_cache *cache, int32_t from, int32_t to);

#endif
