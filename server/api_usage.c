/*
 * api_usage.c - /v1/experts/usage: read, perhaps beside a snapshot; reset; stream.
 *
 * The stream compares snapshots: each event is the difference of two, so no token is counted twice
 * or lost between events.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.h"
#include "server.h"
#include "snapshots.h"
#include "usage_json.h"

#define INTERVAL_LEAST   100
#define INTERVAL_MOST    10000
#define INTERVAL_DEFAULT 1000

typedef struct {
    int64_t layer, window, interval;
    xmoe_phase phase;
} usage_query;

/* A stream has an interval, one look a window. */
static bool read_query(const xm_exchange *exchange, bool stream, usage_query *query,
                       xm_problem *problem)
{
    const xmoe_model *model = exchange->server->model;
    *query = (usage_query){.layer = -1, .interval = INTERVAL_DEFAULT};
    int32_t layers = xmoe_model_get_info(model)->layer_count;
    if (!xm_exchange_query_number(exchange, "layer", 0, layers - 1, &query->layer, problem) ||
        !(stream ? xm_exchange_query_number(exchange, "interval", INTERVAL_LEAST, INTERVAL_MOST,
                                            &query->interval, problem)
                 : xm_exchange_query_number(exchange, "window", 1, 3600, &query->window, problem)))
        return false;
    if (query->layer >= 0 && !xmoe_model_layer_is_moe(model, (int32_t)query->layer))
        return xm_problem_field(problem, "layer", "layer %lld has no experts",
                                (long long)query->layer);
    const char *phase = NULL;
    if (!xm_exchange_query(exchange, "phase", &phase, problem))
        return false;
    if (phase && !xm_usage_phase_parse(phase, &query->phase))
        return xm_problem_field(problem, "phase", "'phase' must be one of: prefill, decode, all");
    return true;
}

/* What xmoe_usage_get would have given for that layer alone: differences are of all layers. */
static xmoe_usage of_layer(const xmoe_usage *usage, int64_t layer)
{
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *one = &usage->layers[i];
        if (one->layer != layer)
            continue;
        return (xmoe_usage){.phase = usage->phase,
                            .window_seconds = usage->window_seconds,
                            .since = usage->since,
                            .tokens = one->tokens,
                            .mean_active = one->mean_active,
                            .active_fraction = one->mean_active / one->experts,
                            .load_balance = one->load_balance,
                            .dead_experts = one->dead_count,
                            .layer_count = 1,
                            .layers = one};
    }
    return *usage;
}

static void write_usage(const xm_exchange *exchange, const xmoe_usage *usage,
                        const xm_usage_comparison *compare, xm_text *out)
{
    const xm_server *server = exchange->server;
    xm_json json = {out, false};
    xmoe_routing routing;
    xmoe_engine_get_routing(server->engine, &routing);
    xm_usage_write(server->model, server->model_id, usage, &routing, compare, &json, NULL);
}

/* Replies with usage, which it frees, or with the failed call's error. then: the snapshot to
 * compare with, or NULL. */
static void reply_usage(xm_exchange *exchange, xmoe_status status, xmoe_usage *usage,
                        const xmoe_error *error, const xm_snapshot *then)
{
    if (status != XMOE_OK) {
        xm_problem problem = {0};
        xm_problem_engine(&problem, error, NULL);
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    xm_text answer = {0};
    xm_usage_comparison compare = {0};
    if (then)
        compare = (xm_usage_comparison){.snapshot = then->document.id,
                                        .created = then->document.created,
                                        .usage = then->document.phases[usage->phase]};
    write_usage(exchange, usage, then ? &compare : NULL, &answer);
    xmoe_usage_free(usage);
    xm_exchange_reply_json(exchange, &answer);
}

/* *then gets the snapshot that the query names, held, or NULL where it names none. */
static bool read_compare(const xm_exchange *exchange, xm_snapshot **then, xm_problem *problem)
{
    const char *id = NULL;
    *then = NULL;
    if (!xm_exchange_query(exchange, "compare", &id, problem))
        return false;
    if (!id)
        return true;
    *then = xm_snapshots_find(exchange->server->snapshots, id);
    return *then || xm_snapshots_unknown(id, "compare", problem);
}

void xm_api_usage(xm_exchange *exchange)
{
    xm_problem problem = {0};
    usage_query query;
    xm_snapshot *then;
    if (!read_query(exchange, false, &query, &problem) ||
        !read_compare(exchange, &then, &problem)) {
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    xmoe_usage *usage = NULL;
    xmoe_error error = {0};
    xmoe_status status = xmoe_usage_get(exchange->server->engine, (int32_t)query.layer, query.phase,
                                        (int32_t)query.window, &usage, &error);
    reply_usage(exchange, status, usage, &error, then);
    xm_snapshot_release(then);
}

void xm_api_usage_reset(xm_exchange *exchange)
{
    xmoe_usage *usage = NULL;
    xmoe_error error = {0};
    xmoe_status status = xmoe_usage_reset(exchange->server->engine, &usage, &error);
    reply_usage(exchange, status, usage, &error, NULL);
}

typedef struct {
    usage_query query;
    xmoe_usage *before;
    int64_t since; /* Unix time of it */
    int64_t due_ns;
} usage_stream;

static void release_stream(void *context)
{
    usage_stream *stream = context;
    xmoe_usage_free(stream->before);
    free(stream);
}

/* One event once its time has come; its end sets the time of the next. */
static xm_fill fill_stream(xm_exchange *exchange, xm_text *out)
{
    usage_stream *stream = exchange->context;
    xm_server *server = exchange->server;
    if (server->state == XM_SERVER_DRAINING)
        return XM_FILL_END;
    int64_t now = xm_now_ns();
    if (now >= stream->due_ns) {
        xmoe_usage *later = NULL, *difference = NULL;
        if (xmoe_usage_get(server->engine, -1, stream->query.phase, 0, &later, NULL) != XMOE_OK)
            return XM_FILL_ABORT;
        if (xmoe_usage_difference(later, stream->before, &difference, NULL) != XMOE_OK) {
            xmoe_usage_free(later);
            return XM_FILL_ABORT;
        }
        if (difference->since < stream->since) /* no reset in between */
            difference->since = stream->since;
        xmoe_usage shown = of_layer(difference, stream->query.layer);
        xm_text_puts(out, "data: ");
        write_usage(exchange, &shown, NULL, out);
        xm_text_puts(out, "\n\n");
        xmoe_usage_free(difference);
        xmoe_usage_free(stream->before);
        stream->before = later;
        stream->since = time(NULL);
        stream->due_ns += stream->query.interval * 1000000;
        if (stream->due_ns <= now) /* the client was slow: no burst to catch up */
            stream->due_ns = now + stream->query.interval * 1000000;
    }
    xm_exchange_wake_at(exchange, stream->due_ns);
    return XM_FILL_WAIT;
}

static const xm_exchange_kind stream_kind = {.fill = fill_stream, .release = release_stream};

void xm_api_usage_stream(xm_exchange *exchange)
{
    xm_problem problem = {0};
    xmoe_error error = {.status = XMOE_ERROR_MEMORY, .message = "out of memory"};
    usage_stream *stream = calloc(1, sizeof *stream);
    bool good = stream != NULL;
    if (good)
        good = read_query(exchange, true, &stream->query, &problem);
    if (good && xmoe_usage_get(exchange->server->engine, -1, stream->query.phase, 0,
                               &stream->before, &error) != XMOE_OK)
        good = false;
    if (good) {
        stream->since = time(NULL);
        stream->due_ns = xm_now_ns() + stream->query.interval * 1000000;
        xm_exchange_stream(exchange, &stream_kind, stream);
        return;
    }
    if (!problem.status)
        xm_problem_engine(&problem, &error, NULL);
    free(stream);
    xm_exchange_reply_problem(exchange, &problem);
}
