/*
 * forward_runner.h - forward passes of a model without an engine around it: a cache, and sequences
 * that own blocks of it.
 */
#ifndef XMOE_TESTS_FORWARD_RUNNER_H
#define XMOE_TESTS_FORWARD_RUNNER_H

#include "model/forward.h"
#include "model/model.h"

enum { RUNNER_BLOCKS = 64, RUNNER_ROWS = 512, RUNNER_TOKENS = 128 /* of a sequence */ };

/* Loads with this many threads; fails the test where it fails. */
xmoe_model *runner_load(const char *path, const char *isa, int32_t threads);

typedef struct {
    const xmoe_model *model;
    xm_pool *pool;
    xm_kv_cache *cache;
    xm_forward *forward;
    int32_t blocks_used;
} runner;

runner runner_start(const xmoe_model *model, int32_t threads, bool kv_f32);
void runner_stop(runner *run);

typedef struct {
    int32_t tokens[RUNNER_TOKENS];
    int32_t count;
    int32_t blocks[RUNNER_TOKENS / XM_KV_TOKENS + 1];
    xmoe_routing routing;
} sequence;

/* Random tokens, of one seed the same; its blocks are taken from the end of the cache, in
 * descending order. */
sequence runner_sequence(runner *run, int32_t count, uint64_t seed);

xm_segment segment_of(const sequence *s, int32_t first, int32_t count, int32_t logits_from);

#endif
