/*
 * trace.h - who is told of every choice of experts, and when: set from any thread, in effect for
 * whole steps of the scheduler.
 *
 * A function set while a step runs is first called in the next one; one that is taken back is
 * called to the end of the step, for which xm_trace_set waits. It waits for this one step only,
 * however fast the next begins, and holds no lock meanwhile or while a function runs.
 */
#ifndef XM_SERVE_TRACE_H
#define XM_SERVE_TRACE_H

#include "base/error.h"

typedef struct xm_trace xm_trace;

xmoe_status xm_trace_create(xm_trace **trace, xmoe_error *error);
void xm_trace_free(xm_trace *trace);

/* Any thread; see xmoe_engine_set_trace. */
void xm_trace_set(xm_trace *trace, xmoe_route_fn on_routes, void *context);

/* Scheduler thread. A step begins: true if it is traced. If so, xm_trace_routes hands on its rows,
 * and xm_trace_end_step must follow. */
bool xm_trace_begin_step(xm_trace *trace);
void xm_trace_routes(const xm_trace *trace, int32_t layer, const xmoe_route *routes, int32_t count);
void xm_trace_end_step(xm_trace *trace);

#endif
