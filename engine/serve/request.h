/*
 * request.h - a request and its sequences: what was asked, and how far it has come.
 *
 * xm_request_create checks and copies everything on the caller's thread. From submission on, the
 * scheduler thread alone touches a request, but for `cancelled` (any thread) and the engine's links
 * (under the engine's mutex). A sequence is one choice of a request: the prompt, shared by all
 * choices, and its own output.
 */
#ifndef XM_SERVE_REQUEST_H
#define XM_SERVE_REQUEST_H

#include "base/clock.h"
#include "base/error.h"
#include "grammar/grammar.h"
#include "model/pooled.h"
#include "serve/block_pool.h"
#include "serve/route_log.h"
#include "serve/text_stream.h"
#include "serve/usage_view.h"

#include <stdatomic.h>

enum { XM_MAX_CHOICES = 128 };

typedef struct xm_request xm_request;
typedef struct xm_sequence xm_sequence;

typedef enum {
    XM_SEQUENCE_UNBORN,  /* a further choice, before its prompt is computed: on no list */
    XM_SEQUENCE_WAITING, /* not started, or preempted: on the waiting list, holds no blocks */
    XM_SEQUENCE_RUNNING, /* in the running array, holds blocks for all its tokens */
    XM_SEQUENCE_ENDED    /* on no list, holds nothing */
} xm_sequence_state;

struct xm_sequence {
    xm_request *request;
    int32_t choice;
    xm_sequence_state state;
    xmoe_finish finish;
    xm_sequence *next, *previous; /* waiting list */
    int32_t *output;              /* tokens generated so far; kept over preemption */
    int32_t output_length, output_capacity;
    int32_t computed; /* positions whose keys and values are in the blocks */
    int32_t counted;  /* positions below were counted in this request's usage, or came from the
                         cache: they are not counted when computed again */
    int32_t *blocks;  /* block table, while running */
    int32_t block_count;
    int32_t indexed_blocks; /* of these, how many the prefix index was told of */
    xm_block_hash chain;    /* hash of the last of them */
    uint64_t last_turn;     /* the scheduler's count of turns when it last had one */
    int64_t last_token_ns;
    xm_text_stream text;
    xm_matcher matcher; /* where the output is in the grammar, if there is one */
    xm_route_log routes;
};

struct xm_request {
    uint64_t id;                /* ascending in order of submission: its priority */
    xmoe_request_params params; /* pointers are copies owned by the request, or NULL */
    xm_stop_set stops;
    xmoe_routing routing; /* effective */
    xm_block_hash root;   /* where its blocks' hashes begin */
    int32_t prompt_length;
    int32_t max_tokens; /* per choice, cut to the context */
    _Atomic bool cancelled;

    xm_sequence *sequences; /* [params.choices] */
    int32_t live;           /* sequences not ended */
    int32_t running;        /* sequences running */
    bool started;           /* has run at least once */
    int32_t cached_tokens;
    int32_t progress; /* prompt tokens that the last PROGRESS event told of */
    uint64_t completion_tokens;
    uint64_t layer_positions;       /* (position, MoE layer) pairs computed, each once */
    uint64_t activations;           /* experts that these took */
    xm_pooled pooled;               /* with pooling: its prompt's states; owns pooled.sum */
    float *embedding;               /* [d], made of it for END, or NULL */
    int32_t embedding_length;       /* d with pooling, else 0 */
    xm_usage_view *usage;           /* its own; made at submission, so that END cannot lack it */
    int32_t scored;                 /* prompt positions with known logprob; the first is NaN */
    float *prompt_logprobs;         /* [prompt_length] or NULL */
    xmoe_token_logprob *prompt_top; /* [prompt_length][top_logprobs] */

    int64_t submitted_ns, submitted_unix;
    int64_t deadline_ns; /* INT64_MAX: none */
    int64_t started_ns, first_token_ns, ended_ns;
    xmoe_error error;

    xm_request *next, *previous;               /* scheduler: all requests, or the ended ones */
    xm_request *engine_next, *engine_previous; /* engine: inbox, or live requests */
};

/* Checks the parameters against the model and copies them. routing is the default for requests
 * that bring none. */
xmoe_status xm_request_create(const xmoe_model *model, const xmoe_request_params *params,
                              const xmoe_routing *routing, const xm_clock *clock,
                              xm_request **request, xmoe_error *error);
void xm_request_free(xm_request *request);

/* Tokens of a sequence: prompt, then output. */
static inline int32_t xm_sequence_length(const xm_sequence *sequence)
{
    return sequence->request->prompt_length + sequence->output_length;
}
/* Copies the tokens at [position, position + count). */
void xm_sequence_tokens(const xm_sequence *sequence, int32_t position, int32_t count, int32_t *out);
/* Adds a token to the output; false if out of memory. */
bool xm_sequence_push(xm_sequence *sequence, int32_t token);
/* Order of admission: earlier requests first, then lower choices. */
static inline bool xm_sequence_before(const xm_sequence *a, const xm_sequence *b)
{
    if (a->request->id != b->request->id)
        return a->request->id < b->request->id;
    return a->choice < b->choice;
}

#endif
