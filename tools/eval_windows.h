/*
 * eval_windows.h - documents cut into overlapping windows, and their way through the engine: as
 * requests that only score their prompt, several in flight, with the prefix cache off.
 *
 * A document longer than a window is cut into windows that begin every `stride` tokens; of a window
 * only the tokens that no earlier window has are counted and traced, so each has at least window -
 * stride tokens before it (or all there are).
 */
#ifndef XMOE_TOOLS_EVAL_WINDOWS_H
#define XMOE_TOOLS_EVAL_WINDOWS_H

#include "documents.h"
#include "session.h"
#include "trace_file.h"

typedef struct eval_windows eval_windows;

/* One request: tokens [start, start + length) of a document; those from `first` on are counted. */
typedef struct {
    eval_windows *owner;
    size_t document;
    size_t start, first;
    int32_t length;
    double nats;                 /* of the tokens counted, once scored */
    bool ended;                  /* under the gate's lock */
    xmoe_routed_experts *routes; /* for the trace: owned from the window's end until written */
} eval_window;

struct eval_windows {
    document_list documents; /* in order of their files */
    eval_window *items;      /* in order of their documents */
    size_t count, capacity;
    int32_t parallel;          /* windows in flight */
    trace_file *trace;         /* the caller's; NULL: none */
    size_t traced;             /* windows written to it */
    cli_progress progress;     /* of positions */
    uint64_t positions;        /* of all windows */
    uint64_t scored, to_score; /* positions, for the progress meter */
    flight_gate gate;
    xmoe_error error; /* the first of a request; under the gate's lock */
    bool failed;
}; /* start with windows_init; windows_free when no engine runs its requests any more */

void windows_init(eval_windows *windows, bool quiet);
void windows_free(eval_windows *windows);

/* Cuts all documents; false where memory ran out. */
bool windows_plan(eval_windows *windows, size_t length, size_t stride);

/* Scores the windows of one file and traces them, if there is a trace; true when all are done,
 * false after a message or Ctrl-C. With a trace, files come in their order, each once. */
bool windows_score_file(eval_windows *windows, xmoe_engine *engine, int32_t file,
                        const xmoe_routing *routing);

#endif
