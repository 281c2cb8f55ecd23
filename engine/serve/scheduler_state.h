/*
 * scheduler_state.h - the scheduler's own state, shared by the files it is made of:
 *   scheduler.c  the step, beginnings and ends of requests
 *   admission.c  who runs and holds which blocks: admission, growth, preemption, forks
 *   batch.c      this step's tokens, and what the model tells about them
 *   outcome.c    from logits to tokens
 *   events.c     what requests are told
 * All of it belongs to the scheduler's thread.
 */
#ifndef XM_SERVE_SCHEDULER_STATE_H
#define XM_SERVE_SCHEDULER_STATE_H

#include "model/model.h"
#include "serve/sampler.h"
#include "serve/scheduler.h"

/* Positions [position, position + count) of a sequence, in rows [row, row + count) of the step. */
typedef struct {
    xm_sequence *sequence;
    int32_t position, count;
    int32_t row;
    int32_t logits_from; /* as in xm_segment */
} xm_batch_entry;

typedef struct {
    int32_t rows, entry_count;
    xm_batch_entry *entries; /* [max_sequences] */
    xm_sequence **decoding;  /* [max_sequences]: scratch of the choice */
    xm_segment *segments;    /* [max_sequences] */
    int32_t *tokens;         /* [step_tokens] */
    uint8_t *is_decode;      /* [step_tokens] */
    xmoe_route *routes;      /* [step_tokens]: what the trace is told of each row */
    bool traced;             /* this step */
} xm_batch;

/* One row of logits and what becomes of it: a sampled token, or the score of a prompt token. */
typedef struct {
    xm_sequence *sequence;
    const float *logits;
    int32_t scored_position; /* prompt position whose token is scored; 0: sample */
    xm_match_status match;   /* of the grammar */
    xm_sample_status status;
    int32_t token;
    float logprob;
    xmoe_token_logprob *top; /* [top_logprobs]; the request's own where a prompt is scored */
    xmoe_token_logprob sampled_top[XMOE_MAX_TOP_LOGPROBS];
} xm_outcome;

enum { XM_MAX_OUTCOMES = 256 }; /* treated at a time */

struct xm_scheduler {
    xm_scheduler_options options;
    const xmoe_model_info *info;
    xm_block_pool *blocks;

    xm_request *requests, *last_request; /* all that have not ended, in order */
    xm_request *ended, *last_ended;      /* to be told so at the end of the step */
    xm_sequence *waiting, *last_waiting; /* in order of priority */
    xm_sequence **running;               /* [max_sequences], in order of priority */
    int32_t running_count;
    int32_t unstarted;
    int32_t *tables;       /* [max_sequences][table_length]: block tables of running sequences */
    int32_t **free_tables; /* [max_sequences], stack */
    int32_t free_table_count, table_length;

    uint64_t turns; /* given out: one per sequence and step */
    xm_batch batch;
    xm_outcome *outcomes; /* [XM_MAX_OUTCOMES] */
    int32_t outcome_count;
    xm_sampler_scratch *scratch; /* [threads] */
    int32_t threads;

    xmoe_engine_stats stats; /* counters and histograms; gauges are set when read */
};

/* scheduler.c */
/* Ends one sequence, tells it so, and its request too if it was the last. */
void xm_scheduler_end_sequence(xm_scheduler *s, xm_sequence *sequence, xmoe_finish finish);
/* Ends what is left of a request; error (or NULL) is copied. */
void xm_scheduler_end_request(xm_scheduler *s, xm_request *request, xmoe_finish finish,
                              const xmoe_error *error);

/* admission.c */
void xm_admission_wait(xm_scheduler *s, xm_sequence *sequence);
void xm_admission_admit(xm_scheduler *s);
/* Makes sure that the running sequence has a block for its next position, preempting where needed;
 * false if it was itself preempted. */
bool xm_admission_grow(xm_scheduler *s, xm_sequence *sequence);
/* The prompt is computed: further choices join on its blocks as far as there is room. */
void xm_admission_fork(xm_scheduler *s, xm_request *request);
/* Lets a running sequence go on behind blocks that others have computed since it was admitted: of
 * many that come at once with a common beginning, the first computes it for all. */
void xm_admission_reuse(xm_scheduler *s, xm_sequence *sequence);
/* Tells the prefix index of blocks that have become full. */
void xm_admission_index(xm_scheduler *s, xm_sequence *sequence);
/* Takes a sequence off its list and gives back its blocks. */
void xm_admission_remove(xm_scheduler *s, xm_sequence *sequence);

/* batch.c */
xmoe_status xm_batch_init(xm_batch *batch, int32_t max_sequences, int32_t step_tokens,
                          xmoe_error *error);
void xm_batch_free(xm_batch *batch);
void xm_batch_choose(xm_scheduler *s);
/* Runs the model over the batch; returns the logits. */
const float *xm_batch_run(xm_scheduler *s);

/* outcome.c */
void xm_outcome_treat(xm_scheduler *s, const float *logits);

/* events.c */
void xm_event_progress(const xm_request *request, int32_t done);
void xm_event_prompt(const xm_request *request);
void xm_event_token(const xm_scheduler *s, xm_sequence *sequence, const xm_outcome *outcome,
                    int64_t now);
/* False if text or the record of routed experts is not whole for lack of memory. */
bool xm_event_choice(xm_sequence *sequence);
void xm_event_end(const xm_scheduler *s, const xm_request *request, xmoe_finish finish);
double xm_event_seconds(int64_t from_ns, int64_t to_ns);

#endif
