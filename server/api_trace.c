/*
 * api_trace.c - GET /v1/experts/trace: the lines that the trace's ring holds, oldest first.
 *
 * The answer is made piece by piece as the client takes it, up to the newest position of the
 * request's moment. What the ring overwrites meanwhile is missing at the front of what is still to
 * come: a slow client costs no memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "expert_trace.h"
#include "server.h"

#define ENOUGH 16384 /* bytes of one fill */

typedef struct {
    xm_trace_reader reader;
    uint64_t end;
    xm_trace_format format;
    char id[XM_TRACE_ID_LENGTH + 1]; /* "": all requests */
    bool begun;                      /* the first line was given */
} trace_answer;

static xm_fill fill(xm_exchange *exchange, xm_text *out)
{
    trace_answer *answer = exchange->context;
    if (!answer->begun)
        xm_text_puts(out, xm_trace_format_head(answer->format));
    answer->begun = true;
    while (out->length < ENOUGH)
        if (!xm_trace_reader_next(&answer->reader, answer->end, answer->id[0] ? answer->id : NULL,
                                  answer->format, out, NULL))
            return XM_FILL_END;
    return XM_FILL_WAIT; /* there is output: the HTTP layer asks again */
}

static void release(void *context)
{
    trace_answer *answer = context;
    xm_trace_reader_close(&answer->reader);
    free(answer);
}

static const xm_exchange_kind trace_kind = {.fill = fill, .release = release};

static bool read_format(const xm_exchange *exchange, xm_trace_format *format, xm_problem *problem)
{
    const char *name = NULL;
    *format = XM_TRACE_CSV;
    if (!xm_exchange_query(exchange, "format", &name, problem))
        return false;
    return !name || xm_trace_format_parse(name, format) ||
           xm_problem_field(problem, "format", "'format' must be one of: csv, jsonl");
}

/* An id that no answer can have finds nothing: it is cut, and still longer than any. */
static bool read_request(const xm_exchange *exchange, char *id, xm_problem *problem)
{
    const char *request = NULL;
    if (!xm_exchange_query(exchange, "request", &request, problem))
        return false;
    if (request && !request[0])
        return xm_problem_field(problem, "request", "'request' must be the id of an answer");
    snprintf(id, XM_TRACE_ID_LENGTH + 1, "%s", request ? request : "");
    return true;
}

/* What the query asks for: in which form, whose, how many rows (*limit; 0: all). */
static bool read_query(const xm_exchange *exchange, trace_answer *answer, int64_t *limit,
                       xm_problem *problem)
{
    return read_format(exchange, &answer->format, problem) &&
           read_request(exchange, answer->id, problem) &&
           xm_exchange_query_number(exchange, "limit", 1, INT64_C(1) << 53, limit, problem);
}

/* From which record to which; the reader stands at the oldest. */
static void choose(trace_answer *answer, xm_expert_trace *trace, int64_t limit)
{
    xm_trace_ring *ring = xm_expert_trace_ring(trace);
    xm_trace_match_fn match = answer->id[0] ? xm_trace_record_is_of : NULL;
    if (limit > 0)
        answer->reader.cursor =
            xm_trace_ring_last(ring, (uint64_t)limit, match, answer->id, &answer->end);
    else
        answer->end = xm_trace_ring_newest(ring).at;
}

/* NULL with a problem. */
static trace_answer *create(const xm_exchange *exchange, xm_problem *problem)
{
    xm_expert_trace *trace = exchange->server->trace;
    int64_t limit = 0;
    trace_answer *answer = calloc(1, sizeof *answer);
    bool memory = answer && xm_trace_reader_open(trace, &answer->reader);
    if (!memory)
        xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    if (memory && read_query(exchange, answer, &limit, problem)) {
        choose(answer, trace, limit);
        return answer;
    }
    if (answer)
        release(answer);
    return NULL;
}

void xm_api_trace(xm_exchange *exchange)
{
    xm_problem problem = {0};
    trace_answer *answer = NULL;
    if (exchange->settings->trace_bytes > 0)
        answer = create(exchange, &problem);
    else
        xm_problem_set(&problem, 404, "trace_off", NULL,
                       "there is no trace: the setting trace.bytes is 0");
    if (!answer) {
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    exchange->content_type = answer->format == XM_TRACE_CSV ? "text/csv; charset=utf-8"
                                                            : "application/jsonl; charset=utf-8";
    xm_exchange_stream(exchange, &trace_kind, answer);
}
