/*
 * bench_load.h - the load generator of xmoe-bench: a number of equal requests at once through the
 * public API, timed by the events they give.
 */
#ifndef XMOE_TOOLS_BENCH_LOAD_H
#define XMOE_TOOLS_BENCH_LOAD_H

#include "xmoe.h"

typedef struct {
    int32_t sequences;
    int32_t prompt_tokens; /* random ones, of each sequence its own */
    int32_t generate;      /* tokens per sequence, sampled at temperature 1; at least 1 */
    const xmoe_routing *routing;
    uint64_t seed;
} load_shape;

typedef struct {
    double tokens_per_second;        /* of all sequences, while all of them decoded */
    double prompt_tokens_per_second; /* of the first: its prompt over first step to first token */
    double mean_active;              /* experts per position and MoE layer */
    double distinct;                 /* experts that a decoding step touches per MoE layer */
    double expert_bytes;  /* weights of the experts that a decoding step touches, all layers */
    double mean_position; /* of a decoded token in its sequence: how much KV cache it reads */
} load_result;

/* Runs the load alone on the engine, whose usage counters it resets; false after a message or
 * Ctrl-C. */
bool load_run(xmoe_engine *engine, const load_shape *shape, load_result *result);

#endif
