/*
 * attention.c - see attention.h.
 *
 * One parallel region per layer; a task is a group of heads over a tile of consecutive queries of
 * one segment. A query's result is computed by one kernel call over all its positions in order, so
 * it does not depend on the tile it lies in.
 */
#include "model/attention.h"

#include "base/memory.h"
#include "moe/activations.h"
#include "moe/tiles.h"

#include <math.h>

enum {
    MAX_TILE = 16, /* queries that read a block of keys once; the kernels' limit */
    MIN_TILE = 4,
    SCORES_FLOATS = 1 << 17, /* of a thread: long contexts get smaller tiles */
    BLOCK = 32,              /* columns of a block of int16 activations */
};

typedef struct {
    const xm_attention *attention;
    const xm_kernels *kernels;
    const xm_kv_cache *cache;
    int32_t layer;
    const float *qkv;
    size_t qkv_stride;
    const xm_activations *out;
    bool quantize;
    int32_t groups; /* tasks of one tile */
} attention_call;

/* --- scratch ---------------------------------------------------------------------------------- */

/* The fewest heads whose columns are whole blocks, among divisors of the number of heads. */
static int32_t heads_in_whole_blocks(int32_t heads, int32_t head_length)
{
    for (int32_t group = 1; group < heads; group++)
        if (heads % group == 0 && group * head_length % BLOCK == 0)
            return group;
    return heads;
}

xmoe_status xm_attention_create(const xmoe_model_info *info, int32_t threads, int32_t max_rows,
                                xm_attention *attention, xmoe_error *error)
{
    size_t blocks = ((size_t)info->context_length + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    size_t stride = blocks * XM_KV_TOKENS;
    size_t tile = SCORES_FLOATS / stride;
    tile = tile > MAX_TILE ? MAX_TILE : tile < MIN_TILE ? MIN_TILE : tile;
    size_t pointers = (size_t)threads * blocks;
    *attention = (xm_attention){
        .tile = (int32_t)tile,
        .heads_per_task = heads_in_whole_blocks(info->head_count, info->head_length),
        .tiles = xm_calloc((size_t)max_rows, sizeof *attention->tiles),
        .scores_stride = stride,
        .scores = xm_calloc_aligned((size_t)threads * tile, stride * sizeof(float)),
        .keys = xm_calloc(pointers, sizeof *attention->keys),
        .values = xm_calloc(pointers, sizeof *attention->values),
        .blocks_per_thread = blocks,
    };
    if (attention->tiles != NULL && attention->scores != NULL && attention->keys != NULL &&
        attention->values != NULL)
        return XMOE_OK;
    xm_attention_free(attention);
    return xm_fail_memory(error, "attention scratch", pointers * tile * XM_KV_TOKENS);
}

void xm_attention_free(xm_attention *attention)
{
    xm_free(attention->tiles);
    xm_free(attention->scores);
    xm_free(attention->keys);
    xm_free(attention->values);
    *attention = (xm_attention){0};
}

/* A segment's last queries come first: they look at the most positions, and a region balances
 * better when its long tasks start early. */
void xm_attention_begin(xm_attention *attention, const xm_segment *segments, int32_t count)
{
    int32_t row = 0;
    attention->tile_count = 0;
    for (int32_t s = 0; s < count; s++) {
        int32_t tokens = segments[s].token_count;
        for (int32_t end = tokens; end > 0; end -= attention->tile) {
            int32_t first = end > attention->tile ? end - attention->tile : 0;
            attention->tiles[attention->tile_count++] = (xm_query_tile){
                .segment = &segments[s], .first = first, .count = end - first, .row = row + first};
        }
        row += tokens;
    }
}

/* --- storing ---------------------------------------------------------------------------------- */

static void store_element(const xm_kv_cache *cache, void *elements, size_t index, float value)
{
    if (cache->f32)
        ((float *)elements)[index] = value;
    else
        ((uint16_t *)elements)[index] = xm_f32_to_f16(value);
}

void xm_attention_store(const xm_kv_cache *cache, int32_t layer, const xm_segment *segment,
                        int32_t position, const float *qkv, size_t first, size_t last)
{
    size_t length = (size_t)cache->head_length;
    size_t width = (size_t)cache->heads * length;
    size_t token = (size_t)position % XM_KV_TOKENS;
    int32_t block = segment->blocks[position / XM_KV_TOKENS];
    for (size_t column = first > width ? first : width; column < last;) {
        bool is_key = column < 2 * width;
        size_t part = column - (is_key ? width : 2 * width); /* column within k or v */
        int32_t head = (int32_t)(part / length);
        size_t start = part % length;
        size_t count = length - start < last - column ? length - start : last - column;
        void *elements = is_key ? xm_kv_keys(cache, block, layer, head)
                                : xm_kv_values(cache, block, layer, head);
        for (size_t i = 0; i < count; i++)
            store_element(cache, elements,
                          is_key ? (start + i) * XM_KV_TOKENS + token : token * length + start + i,
                          qkv[column + i]);
        column += count;
    }
}

/* --- attending -------------------------------------------------------------------------------- */

static void attend_head(const attention_call *call, const xm_query_tile *tile, int32_t head,
                        int32_t thread)
{
    const xm_attention *attention = call->attention;
    const xm_kv_cache *cache = call->cache;
    size_t first_block = (size_t)thread * attention->blocks_per_thread;
    const void **keys = attention->keys + first_block;
    const void **values = attention->values + first_block;
    int32_t position = tile->segment->position + tile->first;
    int32_t blocks = (position + tile->count + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    size_t column = (size_t)head * (size_t)cache->head_length;
    for (int32_t b = 0; b < blocks; b++) {
        keys[b] = xm_kv_keys(cache, tile->segment->blocks[b], call->layer, head);
        values[b] = xm_kv_values(cache, tile->segment->blocks[b], call->layer, head);
    }
    xm_attention_job job = {
        .query = call->qkv + (size_t)tile->row * call->qkv_stride + column,
        .query_stride = call->qkv_stride,
        .query_count = tile->count,
        .first_count = position + 1,
        .head_length = cache->head_length,
        .scale = 1.0f / sqrtf((float)cache->head_length),
        .keys = keys,
        .values = values,
        .scores =
            attention->scores + (size_t)thread * (size_t)attention->tile * attention->scores_stride,
        .scores_stride = attention->scores_stride,
        .out = call->out->f32 + (size_t)tile->row * call->out->stride + column,
        .out_stride = call->out->stride,
    };
    if (cache->f32)
        call->kernels->attention_f32(&job);
    else
        call->kernels->attention_f16(&job);
}

static void run_task(void *context, int32_t task, int32_t thread)
{
    const attention_call *call = context;
    const xm_query_tile *tile = &call->attention->tiles[task / call->groups];
    int32_t heads = call->attention->heads_per_task;
    int32_t head = task % call->groups * heads;
    size_t length = (size_t)call->cache->head_length;
    for (int32_t i = 0; i < heads; i++)
        attend_head(call, tile, head + i, thread);
    for (int32_t i = 0; call->quantize && i < tile->count; i++)
        xm_activations_quantize(call->kernels, call->out, (size_t)tile->row + (size_t)i,
                                (size_t)head * length, (size_t)(head + heads) * length);
}

/* Multiplications of the step's attention in one layer. */
static size_t work_of(const xm_attention *attention, const xm_kv_cache *cache)
{
    size_t pairs = 0;
    for (int32_t t = 0; t < attention->tile_count; t++) {
        const xm_query_tile *tile = &attention->tiles[t];
        pairs +=
            (size_t)tile->count * (size_t)(tile->segment->position + tile->first + tile->count);
    }
    return 2 * pairs * (size_t)cache->heads * (size_t)cache->head_length;
}

void xm_attention_run(const xm_attention *attention, const xm_kernels *kernels, xm_pool *pool,
                      const xm_kv_cache *cache, int32_t layer, const float *qkv, size_t qkv_stride,
                      const xm_activations *out, bool quantize)
{
    attention_call call = {
        .attention = attention,
        .kernels = kernels,
        .cache = cache,
        .layer = layer,
        .qkv = qkv,
        .qkv_stride = qkv_stride,
        .out = out,
        .quantize = quantize,
        .groups = cache->heads / attention->heads_per_task,
    };
    xm_pool_run(xm_pool_for(pool, work_of(attention, cache)), attention->tile_count * call.groups,
                run_task, &call);
}
