/*
 * scheduler.h - continuous batching: which tokens of which sequences run in a step.
 *
 * One step: end what was cancelled or ran out of time; admit waiting sequences in order of
 * submission (never past an older one that does not fit yet); choose up to step_tokens tokens; run
 * the model; sample; tell the requests. Each decoding sequence gives one token, in turns if there
 * are too many; the rest goes to prompts, oldest first, and at least a quarter while they need it.
 * When KV blocks run out, the youngest sequence is preempted: it gives back its blocks, keeps its
 * tokens and is computed again later. The oldest one is never preempted and a sequence of full
 * context always fits, so work always goes on.
 *
 * A scheduler has no thread and no lock: whoever calls xm_scheduler_step is its thread. Its clock
 * and the model's step are handed in, so that tests can simulate both.
 */
#ifndef XM_SERVE_SCHEDULER_H
#define XM_SERVE_SCHEDULER_H

#include "base/clock.h"
#include "model/forward.h"
#include "serve/request.h"
#include "serve/trace.h"
#include "serve/usage.h"

typedef struct xm_scheduler xm_scheduler;

/* What runs the model: xm_forward_step and xm_kv_copy_block, or a test's stand-in. */
typedef struct {
    const float *(*step)(void *context, const xm_segment *segments, int32_t segment_count,
                         xm_routed_fn routed, void *routed_context);
    void (*copy_block)(void *context, int32_t from, int32_t to);
    void *context;
} xm_backend;

typedef struct {
    const xmoe_model *model;
    xm_pool *pool; /* for sampling; may be NULL */
    xm_backend backend;
    xm_usage *usage;
    xm_trace *trace; /* may be NULL */
    xm_clock clock;
    int32_t block_count; /* at least one sequence of full context */
    int32_t max_sequences;
    int32_t step_tokens;
    bool prefix_cache;
    uint64_t secret; /* keys the prefix index */
    /* Called at the end of a step, before the END events of requests that ended in it; may be
     * NULL. */
    void (*publish)(void *context);
    /* Takes a request after its END event, to free it; NULL: xm_request_free. */
    void (*release)(void *context, xm_request *request);
    void *context;
} xm_scheduler_options;

xmoe_status xm_scheduler_create(const xm_scheduler_options *options, xm_scheduler **scheduler,
                                xmoe_error *error);
/* Requests must have ended. */
void xm_scheduler_free(xm_scheduler *scheduler);

/* Takes over a request whose id is above all before it. */
void xm_scheduler_submit(xm_scheduler *scheduler, xm_request *request);
/* Marks all requests as cancelled. */
void xm_scheduler_cancel_all(xm_scheduler *scheduler);
/* True while there are requests. */
bool xm_scheduler_has_work(const xm_scheduler *scheduler);
void xm_scheduler_step(xm_scheduler *scheduler);

/* State as of the end of the last step. */
void xm_scheduler_stats(const xm_scheduler *scheduler, xmoe_engine_stats *stats);
int32_t xm_scheduler_slots(const xm_scheduler *scheduler, xmoe_slot *slots, int32_t capacity);
/* Requests that have not run yet. */
int32_t xm_scheduler_unstarted(const xm_scheduler *scheduler);
const xm_block_pool *xm_scheduler_blocks(const xm_scheduler *scheduler);

#endif
