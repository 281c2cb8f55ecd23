/*
 * trace_ring.h - a ring of records in bounded memory: the newest stay, the oldest make room.
 *
 * One thread appends and must never wait long: the mutex is held to copy bytes and for nothing
 * else, readers take it for one short piece at a time, and leave it to an appender who wants it.
 * Readers hold no place in the ring: each has a cursor of its own, and what is overwritten before
 * it was read is skipped and counted.
 *
 * A record is a string of bytes that the ring does not look into, and a number of rows (lines of
 * the trace), in which losses are counted. Places are byte offsets since the ring's making, which
 * never wrap.
 */
#ifndef XM_SERVER_TRACE_RING_H
#define XM_SERVER_TRACE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct xm_trace_ring xm_trace_ring;

typedef struct {
    const void *bytes;
    uint32_t length;
    uint32_t rows;
} xm_trace_record;

/* NULL without memory. */
xm_trace_ring *xm_trace_ring_create(size_t capacity);
void xm_trace_ring_free(xm_trace_ring *ring);

/* Puts records behind the newest, in one piece for all readers. A record that is longer than the
 * whole ring is lost at once. The appending thread. */
void xm_trace_ring_append(xm_trace_ring *ring, const xm_trace_record *records, size_t count);

/* Where a reader stands. */
typedef struct {
    uint64_t at;   /* the record that is read next */
    uint64_t row;  /* how many rows lie before it */
    uint64_t lost; /* rows that were overwritten before they were read */
} xm_trace_cursor;

/* At the oldest record. */
xm_trace_cursor xm_trace_ring_oldest(xm_trace_ring *ring);
/* Behind the newest record. */
xm_trace_cursor xm_trace_ring_newest(xm_trace_ring *ring);

/* Copies whole records from the cursor on, none from `end` on, into buffer, each as its length
 * (uint32_t) and its bytes; the cursor moves behind them, and first over what is gone. Returns the
 * bytes copied: 0 when there is nothing to read, or when the next record does not fit. */
size_t xm_trace_ring_read(xm_trace_ring *ring, xm_trace_cursor *cursor, uint64_t end, void *buffer,
                          size_t size);

/* Moves the cursor over what is gone, without reading. */
void xm_trace_ring_settle(xm_trace_ring *ring, xm_trace_cursor *cursor);

/* Whether the record whose bytes are given belongs to what is looked for; it may be cut: at most
 * XM_TRACE_PEEK bytes of it are given. */
typedef bool (*xm_trace_match_fn)(const void *bytes, size_t length, const void *context);
#define XM_TRACE_PEEK 128

/* A cursor at the first of the newest records that match and have at most so many rows together;
 * match may be NULL: all. *end gets the place behind the newest of that moment. */
xm_trace_cursor xm_trace_ring_last(xm_trace_ring *ring, uint64_t rows, xm_trace_match_fn match,
                                   const void *context, uint64_t *end);

/* Waits until rows that the cursor has not read fill half of the ring, or so many milliseconds have
 * passed, or a wake. One thread at a time. */
void xm_trace_ring_wait(xm_trace_ring *ring, const xm_trace_cursor *cursor, int milliseconds);
void xm_trace_ring_wake(xm_trace_ring *ring);

#endif
