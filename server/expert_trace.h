/*
 * expert_trace.h - every choice of experts as it is made: from the engine into a ring, from which
 * GET /v1/experts/trace and the trace file read.
 *
 * The engine tells a step layer by layer; here its positions are put together, each in a place of
 * its own that was allocated at the start, and go into the ring when the last layer is through: so
 * a reader sees whole positions only. All of that runs on the scheduler's thread, allocates
 * nothing and waits for nothing but a reader's copy of a few kilobytes.
 */
#ifndef XM_SERVER_EXPERT_TRACE_H
#define XM_SERVER_EXPERT_TRACE_H

#include "trace_record.h"
#include "trace_ring.h"

typedef struct xm_expert_trace xm_expert_trace;

/* A ring of so many bytes, and places for step_tokens positions. NULL without memory. */
xm_expert_trace *xm_expert_trace_create(const xmoe_model *model, size_t ring_bytes,
                                        size_t step_tokens);
/* No engine tells it anything any more, nobody reads. NULL is fine. */
void xm_expert_trace_free(xm_expert_trace *trace);

/* For xmoe_engine_set_trace; context: the trace. */
void xm_expert_trace_take(void *context, int32_t layer, const xmoe_route *routes, int32_t count);

xm_trace_ring *xm_expert_trace_ring(xm_expert_trace *trace);

/* A reader of the ring: a cursor and the piece that was copied last. */
typedef struct {
    xm_expert_trace *trace;
    xm_trace_cursor cursor;
    unsigned char *piece; /* owned */
    size_t capacity;
} xm_trace_reader;

/* At the oldest record; false without memory. */
bool xm_trace_reader_open(xm_expert_trace *trace, xm_trace_reader *reader);
void xm_trace_reader_close(xm_trace_reader *reader);
/* Appends the lines of the next records before the place `end`, a piece of them; id: only those of
 * that request, or NULL. False at the end. *rows, which may be NULL, gets how many records' rows
 * were read. */
bool xm_trace_reader_next(xm_trace_reader *reader, uint64_t end, const char *id,
                          xm_trace_format format, xm_text *out, uint64_t *rows);

#endif
