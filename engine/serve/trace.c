/*
 * trace.c - see trace.h.
 *
 * Guarded by mutex: all, but the scheduler thread, which alone writes `running` and what it runs,
 * reads these without.
 */
#include "serve/trace.h"

#include "base/memory.h"

#include <pthread.h>

typedef struct {
    xmoe_route_fn on_routes; /* NULL: none */
    void *context;
} listener;

struct xm_trace {
    pthread_mutex_t mutex;
    pthread_cond_t ended; /* a traced step */
    listener set;         /* for the next step */
    listener running;     /* of the step under way; none if that is not traced */
    uint64_t steps;       /* traced steps that have ended */
};

xmoe_status xm_trace_create(xm_trace **trace, xmoe_error *error)
{
    *trace = xm_calloc(1, sizeof **trace);
    if (*trace == NULL)
        return xm_fail_memory(error, "trace", sizeof **trace);
    pthread_mutex_init(&(*trace)->mutex, NULL);
    pthread_cond_init(&(*trace)->ended, NULL);
    return XMOE_OK;
}

void xm_trace_free(xm_trace *trace)
{
    if (trace == NULL)
        return;
    pthread_cond_destroy(&trace->ended);
    pthread_mutex_destroy(&trace->mutex);
    xm_free(trace);
}

void xm_trace_set(xm_trace *trace, xmoe_route_fn on_routes, void *context)
{
    pthread_mutex_lock(&trace->mutex);
    trace->set = (listener){on_routes, context};
    uint64_t steps = trace->steps;
    while (trace->running.on_routes != NULL && trace->steps == steps)
        pthread_cond_wait(&trace->ended, &trace->mutex);
    pthread_mutex_unlock(&trace->mutex);
}

bool xm_trace_begin_step(xm_trace *trace)
{
    pthread_mutex_lock(&trace->mutex);
    trace->running = trace->set;
    pthread_mutex_unlock(&trace->mutex);
    return trace->running.on_routes != NULL;
}

void xm_trace_routes(const xm_trace *trace, int32_t layer, const xmoe_route *routes, int32_t count)
{
    trace->running.on_routes(trace->running.context, layer, routes, count);
}

void xm_trace_end_step(xm_trace *trace)
{
    pthread_mutex_lock(&trace->mutex);
    trace->running = (listener){0};
    trace->steps++;
    pthread_cond_broadcast(&trace->ended);
    pthread_mutex_unlock(&trace->mutex);
}
