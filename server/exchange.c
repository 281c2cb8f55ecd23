/*
 * exchange.c - see exchange.h. How an exchange moves through libmicrohttpd is http.c.
 */
#include "exchange.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server.h"
#include "watch.h"

int64_t xm_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Unique in this process, unlikely elsewhere. */
static void make_id(xm_exchange *exchange)
{
    uint64_t serial = atomic_fetch_add(&exchange->server->request_serial, 1);
    snprintf(exchange->id, sizeof exchange->id, "req-%08" PRIx32 "-%06" PRIx64,
             exchange->server->run_id, serial);
}

xm_exchange *xm_exchange_create(xm_server *server, struct MHD_Connection *connection)
{
    xm_exchange *exchange = calloc(1, sizeof *exchange);
    if (!exchange)
        return NULL;
    exchange->server = server;
    exchange->settings = xm_server_settings(server);
    exchange->connection = connection;
    exchange->began_ns = xm_now_ns();
    exchange->references = 1;
    pthread_mutex_init(&exchange->lock, NULL);
    make_id(exchange);
    atomic_fetch_add(&server->exchanges, 1);
    return exchange;
}

void xm_exchange_hold(xm_exchange *exchange)
{
    atomic_fetch_add(&exchange->references, 1);
}

void xm_exchange_release(xm_exchange *exchange)
{
    if (atomic_fetch_sub(&exchange->references, 1) > 1)
        return;
    if (exchange->kind && exchange->kind->release)
        exchange->kind->release(exchange->context);
    xm_settings_release(exchange->settings);
    xm_text_free(&exchange->body);
    xm_text_free(&exchange->answer);
    xm_text_free(&exchange->out);
    free(exchange->argument);
    pthread_mutex_destroy(&exchange->lock);
    atomic_fetch_sub(&exchange->server->exchanges, 1);
    free(exchange);
}

void xm_exchange_reply(xm_exchange *exchange, int status, const char *content_type, xm_text *answer)
{
    if (answer->failed) {
        xm_problem problem = {0};
        xm_text_free(answer);
        xm_problem_set(&problem, 503, "out_of_memory", NULL, "out of memory");
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    exchange->replied = true;
    exchange->status = status;
    exchange->content_type = content_type;
    xm_text_free(&exchange->answer);
    exchange->answer = *answer;
    *answer = (xm_text){0};
}

void xm_exchange_reply_json(xm_exchange *exchange, xm_text *answer)
{
    xm_exchange_reply(exchange, 200, "application/json", answer);
}

void xm_exchange_reply_problem(xm_exchange *exchange, const xm_problem *problem)
{
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_problem_write(problem, &json);
    if (answer.failed)
        xm_text_free(&answer); /* the status alone must do */
    if (problem->status == 429 || problem->status == 503) {
        char seconds[24];
        snprintf(seconds, sizeof seconds, "%" PRId64, exchange->settings->limits_retry_seconds);
        xm_exchange_header(exchange, "Retry-After", seconds);
    }
    xm_exchange_reply(exchange, problem->status, "application/json", &answer);
}

void xm_exchange_header(xm_exchange *exchange, const char *name, const char *value)
{
    if (exchange->header_count == XM_EXTRA_HEADERS)
        return;
    int i = exchange->header_count++;
    exchange->headers[i].name = name;
    snprintf(exchange->headers[i].value, sizeof exchange->headers[i].value, "%s", value);
}

static void attach(xm_exchange *exchange, xm_exchange_phase phase, const xm_exchange_kind *kind,
                   void *context)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->phase = phase;
    exchange->kind = kind;
    exchange->context = context;
    exchange->progress_ns = xm_now_ns();
    pthread_mutex_unlock(&exchange->lock);
    atomic_fetch_add(&exchange->server->waiting, 1);
}

void xm_exchange_wait(xm_exchange *exchange, const xm_exchange_kind *kind, void *context)
{
    attach(exchange, XM_PHASE_WAITING, kind, context);
}

void xm_exchange_stream(xm_exchange *exchange, const xm_exchange_kind *kind, void *context)
{
    attach(exchange, XM_PHASE_STREAMING, kind, context);
}

/* Whoever clears `suspended` resumes, and MHD keeps a suspended connection alive until then: so the
 * call may stand outside the lock. */
void xm_exchange_wake(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    bool resume = exchange->suspended;
    exchange->suspended = false;
    exchange->pending = true;
    pthread_mutex_unlock(&exchange->lock);
    if (resume)
        MHD_resume_connection(exchange->connection);
}

void xm_exchange_gone(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->gone = true;
    const xm_exchange_kind *kind = exchange->kind;
    bool stream = exchange->phase == XM_PHASE_STREAMING;
    pthread_mutex_unlock(&exchange->lock);
    if (kind && kind->gone)
        kind->gone(exchange);
    if (stream)
        xm_exchange_wake(exchange);
}

void xm_exchange_wake_at(xm_exchange *exchange, int64_t when_ns)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->wake_at_ns = when_ns;
    pthread_mutex_unlock(&exchange->lock);
    xm_watch_kick(exchange->server->watch);
}

typedef struct {
    const char *name, *value;
    int count;
} query_search;

static enum MHD_Result look_at_parameter(void *context, enum MHD_ValueKind kind, const char *name,
                                         const char *value)
{
    (void)kind;
    query_search *search = context;
    if (strcmp(name, search->name) == 0) {
        search->value = value ? value : "";
        search->count++;
    }
    return MHD_YES;
}

bool xm_exchange_query(const xm_exchange *exchange, const char *name, const char **value,
                       xm_problem *problem)
{
    query_search search = {.name = name};
    MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, look_at_parameter,
                              &search);
    *value = search.value;
    if (search.count > 1)
        return xm_problem_field(problem, name, "'%s' is given more than once", name);
    return true;
}

bool xm_exchange_query_number(const xm_exchange *exchange, const char *name, int64_t minimum,
                              int64_t maximum, int64_t *value, xm_problem *problem)
{
    const char *text = NULL;
    if (!xm_exchange_query(exchange, name, &text, problem))
        return false;
    if (!text)
        return true;
    char *end = NULL;
    long long number = strtoll(text, &end, 10);
    bool digits = (text[0] >= '0' && text[0] <= '9') && *end == '\0';
    if (!digits || number < minimum || number > maximum)
        return xm_problem_field(problem, name, "'%s' must be a whole number from %lld to %lld",
                                name, (long long)minimum, (long long)maximum);
    *value = number;
    return true;
}
