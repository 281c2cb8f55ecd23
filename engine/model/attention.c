/*
 * attention.c - see attention.h.
 *
 * One parallel region per layer; a task is some heads over a tile of consecutive positions of one
 * segment. Query heads that share keys and values go through the kernel together, which reads those
 * once for them. A query's result is computed over all its positions in order, so it does not
 * depend on the tile or on the heads that it lies beside.
 */
#include "model/attention.h"

#include "base/memory.h"
#include "moe/activations.h"
#include "moe/tiles.h"

enum {
    MAX_QUERIES = 16, /* that read a block of keys once; the kernels' limit */
    MIN_QUERIES = 4,
    MAX_JOB_HEADS = 8,       /* more would leave too few tasks where all heads share keys */
    SCORES_FLOATS = 1 << 17, /* of a thread: long contexts get smaller tiles */
    BLOCK = 32,              /* columns of a block of int16 activations */
};

/* --- scratch ---------------------------------------------------------------------------------- */

/* The most heads of one kernel call, of `group` that share keys and values. */
static int32_t heads_of_job(int32_t group)
{
    int32_t heads = group < MAX_JOB_HEADS ? group : MAX_JOB_HEADS;
    while (group % heads != 0)
        heads--;
    return heads;
}

/* The fewest jobs whose columns are whole blocks, among divisors of the number of jobs. */
static int32_t jobs_in_whole_blocks(int32_t jobs, int32_t columns)
{
    for (int32_t count = 1; count < jobs; count++)
        if (jobs % count == 0 && count * columns % BLOCK == 0)
            return count;
    return jobs;
}

/* Positions of a tile: as many queries as the scratch for scores holds. */
static int32_t positions_of_tile(size_t scores_stride, int32_t job_heads)
{
    size_t queries = SCORES_FLOATS / scores_stride;
    queries = queries > MAX_QUERIES ? MAX_QUERIES : queries < MIN_QUERIES ? MIN_QUERIES : queries;
    int32_t positions = (int32_t)queries / job_heads;
    return positions < 1 ? 1 : positions;
}

xmoe_status xm_attention_create(const xmoe_model *model, int32_t threads, int32_t max_rows,
                                xm_attention *attention, xmoe_error *error)
{
    const xm_attention_shape *shape = &model->attention;
    size_t blocks = ((size_t)model->info.context_length + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    size_t stride = (blocks + 1) * XM_KV_TOKENS;
    int32_t job_heads = heads_of_job(shape->heads / shape->kv_heads);
    int32_t tile = positions_of_tile(stride, job_heads);
    size_t pointers = (size_t)threads * blocks;
    size_t queries = (size_t)threads * (size_t)(tile * job_heads);
    *attention = (xm_attention){
        .shape = *shape,
        .job_heads = job_heads,
        .task_jobs =
            jobs_in_whole_blocks(shape->heads / job_heads, job_heads * shape->value_length),
        .tile = tile,
        .tiles = xm_calloc((size_t)max_rows, sizeof *attention->tiles),
        .scores_stride = stride,
        /* Not aligned: its pages then are touched only as far as sequences become long. */
        .scores = xm_calloc(queries, stride * sizeof(float)),
        .keys = xm_calloc(pointers, sizeof *attention->keys),
        .values = xm_calloc(pointers, sizeof *attention->values),
        .blocks_per_thread = blocks,
    };
    if (attention->tiles != NULL && attention->scores != NULL && attention->keys != NULL &&
        attention->values != NULL)
        return XMOE_OK;
    xm_attention_free(attention);
    return xm_fail_memory(error, "attention scratch", queries * stride * sizeof(float));
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

/* count values, every step-th element. */
static void store(void *elements, bool f32, size_t step, const float *values, size_t count)
{
    if (f32)
        for (size_t i = 0; i < count; i++)
            ((float *)elements)[i * step] = values[i];
    else
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)elements)[i * step] = xm_f32_to_f16(values[i]);
}

void xm_attention_store(const xm_kv_cache *cache, int32_t layer, const xm_segment *segment,
                        int32_t position, const float *keys, const float *values)
{
    size_t key_length = (size_t)cache->key_length, value_length = (size_t)cache->value_length;
    size_t element = cache->f32 ? sizeof(float) : sizeof(uint16_t);
    size_t token = (size_t)position % XM_KV_TOKENS;
    int32_t block = segment->blocks[position / XM_KV_TOKENS];
    for (int32_t head = 0; head < cache->heads; head++) {
        uint8_t *to_keys = xm_kv_keys(cache, block, layer, head);
        uint8_t *to_values = xm_kv_values(cache, block, layer, head);
        store(to_keys + token * element, cache->f32, XM_KV_TOKENS, keys + (size_t)head * key_length,
              key_length);
        store(to_values + token * value_length * element, cache->f32, 1,
              values + (size_t)head * value_length, value_length);
    }
}

/* --- attending -------------------------------------------------------------------------------- */

/* The first position that the query at `position` sees. */
static int32_t first_seen(int32_t window, int32_t position)
{
    return window > 0 && position >= window ? position + 1 - window : 0;
}

/* Query heads [head, head + job_heads) of the tile's positions. */
static void attend_heads(const xm_attention_call *call, const xm_query_tile *tile, int32_t head,
                         int32_t thread)
{
    const xm_attention *attention = call->attention;
    const xm_attention_shape *shape = &attention->shape;
    const void **keys = attention->keys + (size_t)thread * attention->blocks_per_thread;
    const void **values = attention->values + (size_t)thread * attention->blocks_per_thread;
    int32_t kv_head = head / (shape->heads / shape->kv_heads);
    int32_t position = tile->segment->position + tile->first;
    int32_t first_block = first_seen(call->window, position) / XM_KV_TOKENS;
    int32_t blocks = (position + tile->count + XM_KV_TOKENS - 1) / XM_KV_TOKENS - first_block;
    for (int32_t b = 0; b < blocks; b++) {
        int32_t block = tile->segment->blocks[first_block + b];
        keys[b] = xm_kv_keys(call->cache, block, call->layer, kv_head);
        values[b] = xm_kv_values(call->cache, block, call->layer, kv_head);
    }
    size_t queries = (size_t)attention->tile * (size_t)attention->job_heads;
    xm_attention_job job = {
        .query = call->queries + (size_t)tile->row * call->query_stride +
                 (size_t)head * (size_t)shape->key_length,
        .query_stride = call->query_stride,
        .heads = attention->job_heads,
        .query_count = tile->count * attention->job_heads,
        .first_count = position + 1 - first_block * XM_KV_TOKENS,
        .window = call->window,
        .key_length = shape->key_length,
        .value_length = shape->value_length,
        .scale = shape->scale,
        .sinks = call->sinks != NULL ? call->sinks + head : NULL,
        .keys = keys,
        .values = values,
        .scores = attention->scores + (size_t)thread * queries * attention->scores_stride,
        .scores_stride = attention->scores_stride,
        .out = call->out->f32 + (size_t)tile->row * call->out->stride +
               (size_t)(head * shape->value_length),
        .out_stride = call->out->stride,
    };
    if (call->cache->f32)
        call->kernels->attention_f32(&job);
    else
        call->kernels->attention_f16(&job);
}

/* Tasks of one tile. */
static int32_t tasks_of_tile(const xm_attention *attention)
{
    return attention->shape.heads / (attention->job_heads * attention->task_jobs);
}

static void run_task(void *context, int32_t task, int32_t thread)
{
    const xm_attention_call *call = context;
    const xm_attention *attention = call->attention;
    int32_t tasks = tasks_of_tile(attention);
    int32_t heads = attention->job_heads * attention->task_jobs;
    const xm_query_tile *tile = &attention->tiles[task / tasks];
    int32_t head = task % tasks * heads;
    size_t length = (size_t)attention->shape.value_length;
    for (int32_t i = 0; i < heads; i += attention->job_heads)
        attend_heads(call, tile, head + i, thread);
    for (int32_t i = 0; call->quantize && i < tile->count; i++)
        xm_activations_quantize(call->kernels, call->out, (size_t)tile->row + (size_t)i,
                                (size_t)head * length, (size_t)(head + heads) * length);
}

/* Multiplications of the step's attention in one layer. */
static size_t work_of(const xm_attention_call *call)
{
    const xm_attention *attention = call->attention;
    const xm_attention_shape *shape = &attention->shape;
    size_t pairs = 0;
    for (int32_t t = 0; t < attention->tile_count; t++) {
        const xm_query_tile *tile = &attention->tiles[t];
        int32_t last = tile->segment->position + tile->first + tile->count;
        pairs += (size_t)tile->count * (size_t)(last - first_seen(call->window, last - 1));
    }
    return pairs * (size_t)shape->heads * (size_t)(shape->key_length + shape->value_length);
}

void xm_attention_run(const xm_attention_call *call, xm_pool *pool)
{
    int32_t tasks = call->attention->tile_count * tasks_of_tile(call->attention);
    xm_attention_call shared = *call;
    xm_pool_run(xm_pool_for(pool, work_of(call)), tasks, run_task, &shared);
}
