/*
 * session.h - what the tools that run a model share: the flags that choose model, threads and
 * routing, a loaded model with its engine, and a gate that bounds how many requests are in flight.
 * Functions that can fail print their message and return an exit status.
 */
#ifndef XMOE_TOOLS_SESSION_H
#define XMOE_TOOLS_SESSION_H

#include "cli.h"

#include "xmoe.h"

#include <pthread.h>

/* What the flags were set to; zero and NULL: not given. */
typedef struct {
    const char *model;
    const char *isa;
    const char *router;
    float threshold;
    int32_t top_k, min_experts, max_experts;
    int32_t threads, context_length;
    bool quiet;
} session_settings; /* start with {0} */

enum { SESSION_FLAGS = 10 };
/* Fills rows[SESSION_FLAGS] with the flags over settings; returns how many. */
size_t session_add_flags(session_settings *settings, cli_flag *rows);

typedef struct {
    xmoe_model *model;
    xmoe_engine *engine;
    const xmoe_model_info *info;
    xmoe_routing routing; /* the model's own with the flags applied; the engine's default */
} tool_session;           /* start with {0}; session_close in any state */

/* Loads the model and starts an engine with options (threads come from settings). */
int session_open(tool_session *session, const session_settings *settings,
                 xmoe_engine_options *options);
/* Only the model, with its routing; the engine is started by session_start. */
int session_load(tool_session *session, const session_settings *settings);
int session_start(tool_session *session, const session_settings *settings,
                  xmoe_engine_options *options);
void session_close(tool_session *session);

/* Sets one field in every layer of a routing. */
void routing_set_threshold(xmoe_routing *routing, float threshold);

/* "stop", "length", ... */
const char *finish_name(xmoe_finish finish);

/* Counts requests in flight. The submitting thread enters, the request's END leaves. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int32_t running;
    uint64_t news; /* counts changes, so that none is missed between two waits */
} flight_gate;

void gate_init(flight_gate *gate);
void gate_free(flight_gate *gate);
void gate_enter(flight_gate *gate);
void gate_leave(flight_gate *gate);
/* Waits until fewer than `below` are in flight; false after Ctrl-C. */
bool gate_wait(flight_gate *gate, int32_t below);
/* Tells the waiting thread of something new; the caller holds the lock. */
void gate_notify_locked(flight_gate *gate);
/* Waits for news since *seen (a tenth of a second at most); true when none is in flight. */
bool gate_wait_news(flight_gate *gate, uint64_t *seen);

#endif
