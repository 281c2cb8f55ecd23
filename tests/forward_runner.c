/* forward_runner.c - see forward_runner.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "forward_runner.h"

#include "base/random.h"

#include <string.h>

xmoe_model *runner_load(const char *path, const char *isa, int32_t threads)
{
    xmoe_error error = {0};
    xmoe_model *model = NULL;
    const xmoe_model_options options = {.isa = isa, .threads = threads};
    if (xmoe_model_load(path, &options, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return model;
}

runner runner_start(const xmoe_model *model, int32_t threads, bool kv_f32)
{
    runner run = {.model = model};
    if (threads > 1)
        assert_int_equal(xm_pool_create(threads, &run.pool, NULL), XMOE_OK);
    assert_int_equal(xm_kv_cache_create(model, RUNNER_BLOCKS, kv_f32, &run.cache, NULL), XMOE_OK);
    /* What an earlier owner left in a block must not matter. */
    memset(run.cache->memory, 0xff, (size_t)RUNNER_BLOCKS * run.cache->block_bytes);
    assert_int_equal(xm_forward_create(model, run.pool, run.cache, RUNNER_ROWS, &run.forward, NULL),
                     XMOE_OK);
    return run;
}

void runner_stop(runner *run)
{
    xm_forward_free(run->forward);
    xm_kv_cache_free(run->cache);
    xm_pool_free(run->pool);
}

sequence runner_sequence(runner *run, int32_t count, uint64_t seed)
{
    sequence result = {.count = count};
    for (int32_t i = 0; i < count; i++)
        result.tokens[i] = (int32_t)(xm_random_bits(seed, 0, (uint64_t)i) %
                                     (uint64_t)run->model->info.vocabulary_size);
    for (int32_t b = 0; b * XM_KV_TOKENS < count; b++) {
        assert_true(run->blocks_used < RUNNER_BLOCKS);
        result.blocks[b] = RUNNER_BLOCKS - 1 - run->blocks_used++;
    }
    xmoe_model_default_routing(run->model, &result.routing);
    return result;
}

xm_segment segment_of(const sequence *s, int32_t first, int32_t count, int32_t logits_from)
{
    return (xm_segment){.tokens = s->tokens + first,
                        .token_count = count,
                        .position = first,
                        .blocks = s->blocks,
                        .routing = &s->routing,
                        .logits_from = logits_from};
}
