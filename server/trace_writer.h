/*
 * trace_writer.h - the thread that writes the trace into a file (setting trace.file) as it comes.
 *
 * The ring is its buffer: while the disk is slow or full, rows wait there, and when it has no more
 * room the oldest of them are dropped and counted. No step ever waits for it. The file holds whole
 * lines: JSON lines if its name ends in .jsonl, else CSV; it is appended to if it is such a trace
 * already, and a last line that a killed process left half is cut off first. Pipes and devices will
 * do too.
 */
#ifndef XM_SERVER_TRACE_WRITER_H
#define XM_SERVER_TRACE_WRITER_H

#include "expert_trace.h"

typedef struct xm_trace_writer xm_trace_writer;

/* Opens the file and starts the thread; NULL with a message. The trace must outlive it. */
xm_trace_writer *xm_trace_writer_create(xm_expert_trace *trace, const char *path, char *message,
                                        size_t size);
/* Writes what is left, for as long as the file takes it, and ends the thread. NULL is fine. */
void xm_trace_writer_free(xm_trace_writer *writer);

/* Rows that were dropped so far; any thread. */
uint64_t xm_trace_writer_dropped(const xm_trace_writer *writer);

#endif
