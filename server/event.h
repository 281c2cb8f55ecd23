/*
 * event.h - events of the engine, copied out of the callback and kept in a queue.
 *
 * A copy is one block of memory that holds the event and everything its pointers reach. The queue
 * itself is not thread-safe: its owner locks.
 */
#ifndef XM_SERVER_EVENT_H
#define XM_SERVER_EVENT_H

#include "xmoe.h"

typedef struct xm_event xm_event;
struct xm_event {
    xm_event *next;
    size_t bytes;     /* of the block, routed experts aside: the request asked for them all at once,
                       * and they say nothing about how fast its client reads */
    int32_t prompt;   /* which of the HTTP request's prompts */
    xmoe_event event; /* its pointers lead into the block */
};

/* prompt_length: of the request's prompt, in tokens. NULL without memory. Freed with free(). */
xm_event *xm_event_copy(const xmoe_event *event, int32_t prompt, size_t prompt_length);

typedef struct {
    xm_event *first, *last;
    size_t bytes;
} xm_event_queue; /* start with {0} */

void xm_event_push(xm_event_queue *queue, xm_event *event);
/* The oldest, which the caller then owns, or NULL. */
xm_event *xm_event_pop(xm_event_queue *queue);
void xm_event_clear(xm_event_queue *queue);

#endif
