/*
 * trace_writer.c - see trace_writer.h.
 */
#include "trace_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exchange.h"
#include "log.h"

#define LOOK_MILLISECONDS 50                  /* between two looks at a ring that fills slowly */
#define LAST_NS           INT64_C(1000000000) /* at the end, for a pipe that is full at the moment */
#define CALM_NS           INT64_C(10000000000) /* without trouble: the outage is over */

struct xm_trace_writer {
    xm_expert_trace *trace;
    char *path;
    int fd; /* does not block: a pipe that nobody reads must not hold up the end */
    xm_trace_format format;
    pthread_t thread;
    atomic_bool stop;
    atomic_uint_fast64_t dropped;
    /* The thread's. */
    xm_trace_reader reader;
    xm_text lines; /* read but not yet written, from lines_at */
    size_t lines_at;
    uint64_t lines_rows;
    bool full;          /* a pipe that is not read fast enough */
    int64_t trouble_ns; /* last time; 0: all is well */
};

/* --- the file --- */

static bool fail(const char *path, const char *what, char *message, size_t size)
{
    snprintf(message, size, "setting 'trace.file': %s: %s", path, what);
    return false;
}

/* Whether the file begins as a trace of this format does. */
static bool is_trace(int fd, xm_trace_format format)
{
    char start[64];
    const char *wanted = format == XM_TRACE_CSV ? xm_trace_format_head(format) : "{\"request\":\"";
    size_t length = strlen(wanted);
    return pread(fd, start, length, 0) == (ssize_t)length && memcmp(start, wanted, length) == 0;
}

/* Length of the file up to its last line's end. */
static off_t whole_lines(int fd, off_t length)
{
    char piece[4096];
    while (length > 0) {
        off_t from = length > (off_t)sizeof piece ? length - (off_t)sizeof piece : 0;
        ssize_t got = pread(fd, piece, (size_t)(length - from), from);
        if (got <= 0)
            return length;
        const char *newline = memrchr(piece, '\n', (size_t)got);
        if (newline)
            return from + (newline - piece) + 1;
        length = from;
    }
    return 0;
}

/* A file with something in it must be a trace already, and goes on at its last whole line. */
static bool check_content(const xm_trace_writer *writer, bool *empty, char *message, size_t size)
{
    struct stat status;
    if (fstat(writer->fd, &status) != 0)
        return fail(writer->path, strerror(errno), message, size);
    *empty = !S_ISREG(status.st_mode) || status.st_size == 0;
    if (*empty)
        return true;
    if (!is_trace(writer->fd, writer->format))
        return fail(writer->path,
                    writer->format == XM_TRACE_CSV
                        ? "the file is there and is no trace as CSV; it is left as it is"
                        : "the file is there and is no trace as JSON lines; it is left as it is",
                    message, size);
    off_t length = whole_lines(writer->fd, status.st_size);
    if (length != status.st_size && ftruncate(writer->fd, length) != 0)
        return fail(writer->path, strerror(errno), message, size);
    return true;
}

/* The first lines of a fresh file wait to be written. */
static bool open_file(xm_trace_writer *writer, char *message, size_t size)
{
    bool empty = true;
    size_t length = strlen(writer->path);
    writer->format = length > 6 && strcmp(writer->path + length - 6, ".jsonl") == 0 ? XM_TRACE_JSONL
                                                                                    : XM_TRACE_CSV;
    writer->fd = open(writer->path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0666);
    if (writer->fd < 0)
        return fail(writer->path, strerror(errno), message, size);
    if (!check_content(writer, &empty, message, size))
        return false;
    if (empty)
        xm_text_puts(&writer->lines, xm_trace_format_head(writer->format));
    return true;
}

/* --- the thread --- */

static void note_trouble(xm_trace_writer *writer, const char *what)
{
    if (!writer->trouble_ns)
        xm_log_line(XM_LOG_WARNING, "trace file %s: %s", writer->path, what);
    writer->trouble_ns = xm_now_ns();
}

static void note_calm(xm_trace_writer *writer)
{
    if (!writer->trouble_ns || xm_now_ns() - writer->trouble_ns < CALM_NS)
        return;
    xm_log_line(XM_LOG_INFO,
                "trace file %s: keeps up again; %" PRIu64 " rows were dropped since the start",
                writer->path, (uint64_t)writer->dropped);
    writer->trouble_ns = 0;
}

static void note_lost(xm_trace_writer *writer)
{
    if (writer->reader.cursor.lost == writer->dropped)
        return;
    writer->dropped = writer->reader.cursor.lost;
    note_trouble(writer, "does not keep up, rows are dropped");
}

/* Lines out of the ring; false if it holds none. */
static bool read_lines(xm_trace_writer *writer)
{
    xm_text_clear(&writer->lines);
    writer->lines_at = 0;
    bool more = xm_trace_reader_next(&writer->reader, UINT64_MAX, NULL, writer->format,
                                     &writer->lines, &writer->lines_rows);
    if (writer->lines.failed) { /* no memory: what was read is lost */
        writer->reader.cursor.lost += writer->lines_rows;
        xm_text_free(&writer->lines);
    }
    note_lost(writer);
    return more;
}

/* False if the file takes no more for now. */
static bool write_lines(xm_trace_writer *writer)
{
    writer->full = false;
    while (writer->lines_at < writer->lines.length) {
        ssize_t written = write(writer->fd, writer->lines.data + writer->lines_at,
                                writer->lines.length - writer->lines_at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN)
            writer->full = true;
        else if (written < 0)
            note_trouble(writer, strerror(errno));
        if (written < 0)
            return false;
        writer->lines_at += (size_t)written;
    }
    return true;
}

/* Writes everything that is there; false if the file did not take it all. */
static bool catch_up(xm_trace_writer *writer)
{
    do {
        if (!write_lines(writer)) {
            xm_trace_ring_settle(xm_expert_trace_ring(writer->trace), &writer->reader.cursor);
            note_lost(writer);
            return false;
        }
    } while (read_lines(writer));
    note_calm(writer);
    return true;
}

static void wait_for_work(xm_trace_writer *writer, bool caught_up)
{
    struct pollfd file = {.fd = writer->fd, .events = POLLOUT};
    if (caught_up)
        xm_trace_ring_wait(xm_expert_trace_ring(writer->trace), &writer->reader.cursor,
                           LOOK_MILLISECONDS);
    else
        poll(&file, writer->full, LOOK_MILLISECONDS); /* after an error just the time */
}

static void *run(void *argument)
{
    xm_trace_writer *writer = argument;
    int64_t end = INT64_MAX;
    for (;;) {
        bool last = writer->stop; /* looked at first: what came before it is still written */
        bool caught_up = catch_up(writer);
        if (last && end == INT64_MAX)
            end = xm_now_ns() + LAST_NS;
        if (last && (caught_up || !writer->full || xm_now_ns() >= end))
            return NULL;
        wait_for_work(writer, caught_up);
    }
}

/* --- life --- */

xm_trace_writer *xm_trace_writer_create(xm_expert_trace *trace, const char *path, char *message,
                                        size_t size)
{
    xm_trace_writer *writer = calloc(1, sizeof *writer);
    snprintf(message, size, "out of memory");
    if (!writer)
        return NULL;
    writer->trace = trace;
    writer->fd = -1;
    writer->path = strdup(path);
    if (writer->path && xm_trace_reader_open(trace, &writer->reader) &&
        open_file(writer, message, size)) {
        if (pthread_create(&writer->thread, NULL, run, writer) == 0) {
            pthread_setname_np(writer->thread, "trace");
            return writer;
        }
        snprintf(message, size, "cannot start a thread");
    }
    if (writer->fd >= 0)
        close(writer->fd);
    xm_trace_reader_close(&writer->reader);
    xm_text_free(&writer->lines);
    free(writer->path);
    free(writer);
    return NULL;
}

/* The file ends with a whole line, also where the disk was full in the middle of one. */
static void cut_half_line(const xm_trace_writer *writer)
{
    struct stat status;
    bool half = writer->lines_at > 0 && writer->lines_at < writer->lines.length &&
                writer->lines.data[writer->lines_at - 1] != '\n';
    if (half && fstat(writer->fd, &status) == 0 && S_ISREG(status.st_mode) &&
        ftruncate(writer->fd, whole_lines(writer->fd, status.st_size)) != 0)
        xm_log_line(XM_LOG_WARNING, "trace file %s: its last line is not whole", writer->path);
}

static void tell_unwritten(xm_trace_writer *writer)
{
    xm_trace_cursor newest = xm_trace_ring_newest(xm_expert_trace_ring(writer->trace));
    uint64_t rows = newest.row - writer->reader.cursor.row;
    if (writer->lines_at < writer->lines.length)
        rows += writer->lines_rows;
    if (rows)
        xm_log_line(XM_LOG_WARNING,
                    "trace file %s: about %" PRIu64 " rows are not written at the end",
                    writer->path, rows);
}

void xm_trace_writer_free(xm_trace_writer *writer)
{
    if (!writer)
        return;
    writer->stop = true;
    xm_trace_ring_wake(xm_expert_trace_ring(writer->trace));
    pthread_join(writer->thread, NULL);
    tell_unwritten(writer);
    cut_half_line(writer);
    close(writer->fd);
    xm_trace_reader_close(&writer->reader);
    xm_text_free(&writer->lines);
    free(writer->path);
    free(writer);
}

uint64_t xm_trace_writer_dropped(const xm_trace_writer *writer)
{
    return writer->dropped;
}
