/*
 * scheduler_fixture.h - what the tests of the scheduler share: a bench with a simulated clock and a
 * fake bench_model, bench_clients that keep what they were told, and what they must have been told.
 *
 * The fake bench_model keeps one number per position in the blocks that it is told of, each
 * depending on the token, the routing and the number before it, and makes logits from all numbers
 * of a sequence. So a wrong block table, a block given to two, a lost copy or a stale prefix
 * changes the tokens, and what a request must answer can be computed from its prompt alone. The
 * fake also checks what it is asked to do: budget, ranges, and that a block is written by its only
 * holder.
 */
#ifndef XM_TESTS_SCHEDULER_FIXTURE_H
#define XM_TESTS_SCHEDULER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/kernels.h"
#include "serve/scheduler.h"

enum {
    CONTEXT = 96,
    VOCABULARY = 300,
    EXPERTS = 6,
    MOE_LAYERS = 2,
    MAX_BLOCKS = 200,
    MAX_ROWS = 256,
    MAX_REQUESTS = 2000,
    MAX_CHOICES = 5
};

typedef struct {
    const xm_scheduler *scheduler;
    int32_t step_tokens;
    int64_t now_ns; /* the simulated clock */
    uint64_t steps, rows;
    uint64_t numbers[MAX_BLOCKS][XM_KV_TOKENS];
    float logits[MAX_ROWS * VOCABULARY];
    bool broken; /* logits are NaN */
} fake_model;

typedef struct {
    int32_t tokens[CONTEXT];
    float logprobs[CONTEXT];
    int32_t count;
    xmoe_finish finish;
} answer;

typedef struct {
    xmoe_request_params params;
    int32_t prompt[CONTEXT];
    xm_request *request; /* until END */
    int32_t ends, choice_ends, prompt_events;
    answer told[MAX_CHOICES];
    int32_t progress;
    uint64_t unknown_entries, known_entries; /* of routed experts */
    xmoe_request_summary summary;
    xmoe_finish finish;
    uint64_t usage_tokens, usage_activations, expected_activations;
    int64_t submitted_ns;
} client;

typedef struct {
    fake_model fake;
    xm_usage *usage;
    xm_scheduler *scheduler;
    uint64_t next_id;
    xmoe_routing routing[2];
} bench;

/* Only the figures, layers, tokens and kernels of this model are used. Group fixtures. */
extern xmoe_model *bench_model;
int bench_load_model(void **state);
int bench_free_model(void **state);

bench *bench_create(int32_t blocks, int32_t max_sequences, int32_t step_tokens, bool prefix_cache);
/* All blocks must have been given back. */
void bench_free(bench *b);
/* A client whose prompt is `length` tokens from a family of prompts with a common beginning. */
extern client bench_clients[MAX_REQUESTS];
client *bench_client(bench *b, int32_t index, int32_t length, uint64_t family);
/* The simulated clock. */
xm_clock bench_clock(bench *b);
void bench_submit(bench *b, client *c);
/* One step; then checks the block pool. */
void bench_step(bench *b);
void bench_run(bench *b);
xmoe_engine_stats bench_stats(const bench *b);
/* A client that ended of its own must have been told exactly what it would be told alone; one that
 * was cut short, the beginning of that. */
void bench_check_answer(const client *c);

#endif
