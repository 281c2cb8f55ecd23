/*
 * engine_fixture.h - what the tests of the engine share: a tiny random engine_model, engines over
 * it, and calls, which are requests with all that they were told.
 */
#ifndef XM_TESTS_ENGINE_FIXTURE_H
#define XM_TESTS_ENGINE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>

#include "xmoe.h"

enum { CONTEXT = 128, VOCABULARY = 300, EXPERTS = 12, MOE_LAYERS = 2, MAX_CHOICES = 5, TOP = 3 };

extern xmoe_model *engine_model;
/* Group fixtures. */
int engine_load_model(void **state);
int engine_free_model(void **state);
/* Writes a random model and loads it into engine_model; 0 or -1. */
int engine_write_and_load(int32_t moe_every);

typedef struct {
    int32_t tokens[CONTEXT];
    float logprobs[CONTEXT];
    xmoe_token_logprob top[CONTEXT][TOP];
    int32_t count;
    char text[16 * CONTEXT];
    size_t text_length;
    xmoe_finish finish;
    uint16_t routed_counts[CONTEXT * MOE_LAYERS];
    uint16_t routed_experts[CONTEXT * MOE_LAYERS * EXPERTS];
    float routed_weights[CONTEXT * MOE_LAYERS * EXPERTS];
    int32_t routed_positions, routed_pairs;
} told_choice;

typedef struct {
    xmoe_request_params params;
    int32_t prompt[CONTEXT];
    xmoe_routing routing;
    uint64_t id;
    told_choice choices[MAX_CHOICES];
    float prompt_logprobs[CONTEXT];
    xmoe_token_logprob prompt_top[CONTEXT * TOP];
    xmoe_request_summary summary;
    xmoe_finish finish;
    uint64_t usage_counts[MOE_LAYERS][EXPERTS], usage_tokens;
    double usage_weights[MOE_LAYERS][EXPERTS];
    int32_t ends;
    xmoe_engine *cancel_at_token; /* cancels itself from its callback */
    bool *gate;                   /* the first token waits for this */
} call;

/* Guards what callbacks write; call_changed is broadcast after each event. */
extern pthread_mutex_t call_mutex;
extern pthread_cond_t call_changed;

/* A call number n: prompt, sampling and routing depend on n alone. */
call *call_new(int32_t n);
void call_submit(xmoe_engine *engine, call *c);
void call_wait(call *c);
/* Waits until so many tokens of choice 0 have come. */
void call_wait_for_tokens(call *c, int32_t count);
void call_run(xmoe_engine *engine, call *c);
void call_assert_same_choice(const told_choice *a, const told_choice *b);

/* Small, one thread; tests change what they are about. */
xmoe_engine_options engine_small_options(void);
xmoe_engine *engine_create(const xmoe_engine_options *options);
xmoe_engine *engine_create_small(void);
xmoe_engine_stats engine_stats(xmoe_engine *engine);

#endif
