/*
 * trace_ring.c - see trace_ring.h.
 *
 * In the ring a record stands as head, bytes, length: the length at the end lets a walk go
 * backwards. Everything may wrap around the end of the memory.
 */
#include "trace_ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    uint64_t row; /* rows before it since the ring's making */
    uint32_t length, rows;
} frame_head;

#define FRAME_EXTRA    (sizeof(frame_head) + sizeof(uint32_t))
#define STEPS_PER_HOLD 64 /* of a walk backwards */

struct xm_trace_ring {
    atomic_bool appending; /* readers stand back: a mutex alone is not fair */
    pthread_mutex_t lock;
    pthread_cond_t filled; /* on the monotonic clock */
    size_t capacity;
    uint64_t oldest, newest; /* places: of the oldest record, behind the newest */
    uint64_t rows;           /* appended in all */
    bool waiting, woken;     /* a thread waits for half a ring behind `watched` */
    uint64_t watched;
    unsigned char *bytes; /* [capacity] */
};

xm_trace_ring *xm_trace_ring_create(size_t capacity)
{
    xm_trace_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return NULL;
    ring->bytes = malloc(capacity + 1);
    if (!ring->bytes) {
        free(ring);
        return NULL;
    }
    ring->capacity = capacity;
    pthread_mutex_init(&ring->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&ring->filled, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return ring;
}

void xm_trace_ring_free(xm_trace_ring *ring)
{
    if (!ring)
        return;
    pthread_cond_destroy(&ring->filled);
    pthread_mutex_destroy(&ring->lock);
    free(ring->bytes);
    free(ring);
}

/* Before the end of the memory, and what is left from its beginning. */
static void copy_in(xm_trace_ring *ring, uint64_t place, const void *from, size_t length)
{
    size_t at = (size_t)(place % ring->capacity);
    size_t first = length < ring->capacity - at ? length : ring->capacity - at;
    memcpy(ring->bytes + at, from, first);
    memcpy(ring->bytes, (const unsigned char *)from + first, length - first);
}

static void copy_out(const xm_trace_ring *ring, uint64_t place, void *to, size_t length)
{
    size_t at = (size_t)(place % ring->capacity);
    size_t first = length < ring->capacity - at ? length : ring->capacity - at;
    memcpy(to, ring->bytes + at, first);
    memcpy((unsigned char *)to + first, ring->bytes, length - first);
}

static frame_head head_at(const xm_trace_ring *ring, uint64_t place)
{
    frame_head head;
    copy_out(ring, place, &head, sizeof head);
    return head;
}

static void append_one(xm_trace_ring *ring, const xm_trace_record *record)
{
    frame_head head = {.row = ring->rows, .length = record->length, .rows = record->rows};
    size_t size = record->length + FRAME_EXTRA;
    ring->rows += record->rows;
    if (size > ring->capacity)
        return;
    while (ring->newest + size - ring->oldest > ring->capacity)
        ring->oldest += head_at(ring, ring->oldest).length + FRAME_EXTRA;
    copy_in(ring, ring->newest, &head, sizeof head);
    copy_in(ring, ring->newest + sizeof head, record->bytes, record->length);
    copy_in(ring, ring->newest + sizeof head + record->length, &head.length, sizeof head.length);
    ring->newest += size;
}

/* What the waiting thread waits for; never 0, or it would not wait at all. */
static bool is_half_full(const xm_trace_ring *ring)
{
    return ring->newest - ring->watched > ring->capacity / 2;
}

void xm_trace_ring_append(xm_trace_ring *ring, const xm_trace_record *records, size_t count)
{
    ring->appending = true;
    pthread_mutex_lock(&ring->lock);
    for (size_t i = 0; i < count; i++)
        append_one(ring, &records[i]);
    if (ring->waiting && is_half_full(ring))
        pthread_cond_signal(&ring->filled);
    pthread_mutex_unlock(&ring->lock);
    ring->appending = false;
}

static void lock_to_read(xm_trace_ring *ring)
{
    while (ring->appending)
        sched_yield();
    pthread_mutex_lock(&ring->lock);
}

xm_trace_cursor xm_trace_ring_oldest(xm_trace_ring *ring)
{
    lock_to_read(ring);
    xm_trace_cursor cursor = {.at = ring->oldest, .row = ring->rows};
    if (ring->oldest < ring->newest)
        cursor.row = head_at(ring, ring->oldest).row;
    pthread_mutex_unlock(&ring->lock);
    return cursor;
}

xm_trace_cursor xm_trace_ring_newest(xm_trace_ring *ring)
{
    lock_to_read(ring);
    xm_trace_cursor cursor = {.at = ring->newest, .row = ring->rows};
    pthread_mutex_unlock(&ring->lock);
    return cursor;
}

/* To the first record that is still there, or to the end; what lay between is lost. */
static void settle(const xm_trace_ring *ring, xm_trace_cursor *cursor)
{
    if (cursor->at < ring->oldest)
        cursor->at = ring->oldest;
    uint64_t row = cursor->at < ring->newest ? head_at(ring, cursor->at).row : ring->rows;
    cursor->lost += row - cursor->row;
    cursor->row = row;
}

void xm_trace_ring_settle(xm_trace_ring *ring, xm_trace_cursor *cursor)
{
    lock_to_read(ring);
    settle(ring, cursor);
    pthread_mutex_unlock(&ring->lock);
}

size_t xm_trace_ring_read(xm_trace_ring *ring, xm_trace_cursor *cursor, uint64_t end, void *buffer,
                          size_t size)
{
    unsigned char *to = buffer;
    size_t used = 0;
    lock_to_read(ring);
    for (settle(ring, cursor); cursor->at < ring->newest && cursor->at < end;
         settle(ring, cursor)) {
        frame_head head = head_at(ring, cursor->at);
        if (size - used < sizeof head.length + head.length)
            break;
        memcpy(to + used, &head.length, sizeof head.length);
        copy_out(ring, cursor->at + sizeof head, to + used + sizeof head.length, head.length);
        used += sizeof head.length + head.length;
        cursor->at += head.length + FRAME_EXTRA;
        cursor->row += head.rows;
    }
    pthread_mutex_unlock(&ring->lock);
    return used;
}

static bool matches(const xm_trace_ring *ring, uint64_t place, uint32_t length,
                    xm_trace_match_fn match, const void *context)
{
    unsigned char peek[XM_TRACE_PEEK];
    size_t seen = length < sizeof peek ? length : sizeof peek;
    if (!match)
        return true;
    copy_out(ring, place, peek, seen);
    return match(peek, seen, context);
}

xm_trace_cursor xm_trace_ring_last(xm_trace_ring *ring, uint64_t rows, xm_trace_match_fn match,
                                   const void *context, uint64_t *end)
{
    lock_to_read(ring);
    xm_trace_cursor first = {.at = ring->newest, .row = ring->rows};
    *end = ring->newest;
    uint64_t place = ring->newest, found = 0;
    for (int steps = 1; place > ring->oldest; steps++) {
        uint32_t length;
        copy_out(ring, place - sizeof length, &length, sizeof length);
        place -= length + FRAME_EXTRA;
        frame_head head = head_at(ring, place);
        if (matches(ring, place + sizeof head, length, match, context)) {
            found += head.rows;
            if (found > rows)
                break;
            first.at = place;
            first.row = head.row;
        }
        if (steps % STEPS_PER_HOLD == 0) {
            pthread_mutex_unlock(&ring->lock);
            lock_to_read(ring);
        }
    }
    pthread_mutex_unlock(&ring->lock);
    return first;
}

void xm_trace_ring_wait(xm_trace_ring *ring, const xm_trace_cursor *cursor, int milliseconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += milliseconds * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    lock_to_read(ring);
    ring->waiting = true;
    ring->watched = cursor->at;
    int timed_out = 0;
    while (!timed_out && !ring->woken && !is_half_full(ring))
        timed_out = pthread_cond_timedwait(&ring->filled, &ring->lock, &until);
    ring->waiting = ring->woken = false;
    pthread_mutex_unlock(&ring->lock);
}

void xm_trace_ring_wake(xm_trace_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->woken = true;
    pthread_cond_signal(&ring->filled);
    pthread_mutex_unlock(&ring->lock);
}
