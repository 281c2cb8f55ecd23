/* kv_cache.c - see kv_cache.h. */
#include "model/kv_cache.h"

#include "base/memory.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/pages.h"

#include <string.h>

/* Keys, or values, of one head of one layer of one block, in bytes. */
static size_t part_bytes(int32_t length, bool f32)
{
    return (size_t)length * XM_KV_TOKENS * (f32 ? sizeof(float) : sizeof(uint16_t));
}

size_t xm_kv_block_bytes(const xmoe_model *model, bool f32)
{
    const xm_attention_shape *shape = &model->attention;
    return (size_t)model->info.layer_count * (size_t)shape->kv_heads *
           (part_bytes(shape->key_length, f32) + part_bytes(shape->value_length, f32));
}

/* Memory for the blocks; false without. */
static bool allocate_blocks(xm_kv_cache *cache)
{
    size_t bytes, size;
    if (!xm_multiply((size_t)cache->block_count, cache->block_bytes, &bytes) ||
        !xm_pages_size(bytes, &size))
        return false;
    cache->allocation = xm_calloc(size, 1);
    if (cache->allocation == NULL)
        return false;
    cache->memory = xm_pages_place(cache->allocation, bytes);
    return true;
}

xmoe_status xm_kv_cache_create(const xmoe_model *model, int32_t block_count, bool f32,
                               xm_kv_cache **cache_out, xmoe_error *error)
{
    *cache_out = NULL;
    xm_kv_cache *cache = xm_calloc(1, sizeof *cache);
    if (cache == NULL)
        return xm_fail_memory(error, "KV cache", sizeof *cache);
    const xm_attention_shape *shape = &model->attention;
    *cache = (xm_kv_cache){
        .block_count = block_count,
        .heads = shape->kv_heads,
        .key_length = shape->key_length,
        .value_length = shape->value_length,
        .f32 = f32,
        .key_bytes = part_bytes(shape->key_length, f32),
        .block_bytes = xm_kv_block_bytes(model, f32),
    };
    cache->head_bytes = cache->key_bytes + part_bytes(shape->value_length, f32);
    if (!allocate_blocks(cache)) {
        size_t bytes = (size_t)block_count * cache->block_bytes;
        xm_free(cache);
        return xm_fail(error, XMOE_ERROR_MEMORY,
                       "out of memory: the KV cache of %lld tokens needs %zu bytes (a smaller "
                       "context_length or kv_bytes needs less)",
                       (long long)block_count * XM_KV_TOKENS, bytes);
    }
    *cache_out = cache;
    return XMOE_OK;
}

void xm_kv_cache_free(xm_kv_cache *cache)
{
    if (cache == NULL)
        return;
    xm_free(cache->allocation);
    xm_free(cache);
}

void xm_kv_copy_block(xm_kv_cache *cache, int32_t from, int32_t to)
{
    memcpy(cache->memory + (size_t)to * cache->block_bytes,
           cache->memory + (size_t)from * cache->block_bytes, cache->block_bytes);
}
