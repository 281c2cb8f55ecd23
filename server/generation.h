/*
 * generation.h - one generation request over HTTP: the engine's requests behind it (one per
 * prompt), the events that come back, and what has become of each choice.
 *
 * Ownership: a generation is the context of its exchange and dies with it. Each engine request
 * holds a reference of the exchange from before its submission to its XMOE_EVENT_END, so a
 * generation outlives its client while the engine still works on it.
 *
 * Threads: the scheduler's callback only copies events into the queue, under `lock`, and wakes the
 * exchange. Everything else is the HTTP thread's.
 */
#ifndef XM_SERVER_GENERATION_H
#define XM_SERVER_GENERATION_H

#include "event.h"
#include "exchange.h"
#include "generate_params.h"

/* A token whose log-probability the answer shows. */
typedef struct {
    int32_t token;
    float logprob; /* NaN: none (the first of a prompt) */
    size_t offset; /* of its text in the choice's text, in characters */
    size_t top;    /* its alternatives: top_count of them from tops[top] */
    int32_t top_count;
} xm_shown_token;

typedef struct {
    xm_text text; /* not yet written out */
    xm_shown_token *shown;
    size_t shown_count, shown_capacity;
    xmoe_token_logprob *tops;
    size_t top_count, top_capacity;
    size_t characters; /* of the tokens so far: where the next one begins */
    xm_utf8_place place;
    uint64_t tokens; /* generated */
    double logprob_sum;
    xmoe_finish finish;
    xm_event *routed; /* the event that holds routed_experts; owned */
    bool begun;       /* a chat answer: past the blanks at its start */
    bool announced;   /* a chat stream: the role was sent */
    xm_reply reply;   /* of a chat: thoughts, calls, and what is not yet understood */
} xm_choice;

typedef struct xm_generation xm_generation;

typedef struct {
    xm_generation *generation;
    int32_t index;
    uint64_t request; /* the engine's id; under lock */
    bool submitted;   /* under lock */
    xm_event *end;    /* its XMOE_EVENT_END; owned */
} xm_part;

struct xm_generation {
    xm_exchange *exchange;
    xm_generate_params params;
    char id[XM_REQUEST_ID_LENGTH + 16];
    char model[160];    /* as the request called it */
    int64_t created;    /* Unix time */
    xm_part *parts;     /* one per prompt */
    xm_choice *choices; /* prompt_count * engine.choices, those of one prompt together */
    size_t choice_count;
    size_t unfinished;  /* choices without a finish */
    size_t ended;       /* parts whose end was taken from the queue */
    xm_choice *held;    /* stream: the last choice's last chunk, waiting for the final figures */
    xm_problem problem; /* the answer has failed */

    pthread_mutex_t lock;
    xm_event_queue queue;
    size_t open;    /* engine requests without an end */
    bool cancelled; /* submit no more, keep no more events */
    bool lost;      /* an event could not be kept */
};

/* Submits what params ask for and leaves the exchange waiting, streaming or replied. Takes over
 * *params. model: the name that the request used. */
void xm_generation_start(xm_exchange *exchange, xm_generate_params *params, const char *model);

/* The scheduler's trace, by the context of a request that has not ended: the id that its answer
 * carries, and in *number which of the answer's choices this choice of the engine's request is. */
const char *xm_generation_of_route(const void *context, int32_t choice, int32_t *number);

/* choice.c: takes one event over. False when the answer has failed (generation->problem). */
bool xm_generation_apply(xm_generation *generation, xm_event *event);
/* Forgets text and tokens that were written out. */
void xm_choice_clear(xm_choice *choice);
void xm_choice_free(xm_choice *choice);

#endif
