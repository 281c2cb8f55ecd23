/*
 * http.c - see http.h. Runs on libmicrohttpd's fixed pool of threads, each with its own epoll.
 *
 * No thread ever waits for the engine: a request that must wait suspends its connection, and
 * whoever has something for it wakes it (exchange.c). Bodies are collected up to the limit; a
 * request that is refused before its body has come is answered after the body, which is thrown
 * away, because an answer sent into a client that is still writing is often lost to it.
 */
#include "http.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "route.h"
#include "server.h"
#include "watch.h"

#define STREAM_BLOCK  16384
#define MEMORY_LIMIT  (48 * 1024)        /* per connection: headers in, block out */
#define DISCARD_LIMIT (64 * 1024 * 1024) /* of a refused body; more closes the connection */

static xm_connection *connection_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static int descriptor_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

static void on_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    xm_server *server = context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        *socket_context = xm_watch_open(server->watch, descriptor_of(connection));
    else if (*socket_context)
        xm_watch_close(server->watch, *socket_context);
}

/* The request line has come: from now on the request has a time limit. The result is the access
 * handler's *request_context. */
static void *on_request_line(void *context, const char *uri, struct MHD_Connection *connection)
{
    xm_server *server = context;
    xm_connection *watched = connection_of(connection);
    xm_exchange *exchange = watched ? xm_exchange_create(server, connection) : NULL;
    if (!exchange)
        return NULL;
    if (strstr(uri, "%00")) /* decoded, it would cut the path or a parameter short */
        xm_problem_set(&exchange->early, 400, "invalid_url", NULL, "the URL holds a NUL byte");
    xm_watch_begin(server->watch, watched, exchange);
    return exchange;
}

static void add_headers(const xm_exchange *exchange, struct MHD_Response *response)
{
    MHD_add_response_header(response, "X-Request-Id", exchange->id);
    if (exchange->content_type)
        MHD_add_response_header(response, "Content-Type", exchange->content_type);
    for (int i = 0; i < exchange->header_count; i++)
        MHD_add_response_header(response, exchange->headers[i].name, exchange->headers[i].value);
    const char *origin = exchange->settings->http_cors_origin;
    if (origin[0]) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", origin);
        MHD_add_response_header(response, "Access-Control-Expose-Headers",
                                "X-Request-Id, Retry-After");
        if (strcmp(origin, "*") != 0)
            MHD_add_response_header(response, "Vary", "Origin");
    }
}

static enum MHD_Result queue(xm_exchange *exchange, struct MHD_Response *response)
{
    if (!response)
        return MHD_NO;
    add_headers(exchange, response);
    if (exchange->server->state == XM_SERVER_DRAINING)
        MHD_add_response_header(response, "Connection", "close");
    enum MHD_Result result =
        MHD_queue_response(exchange->connection, (unsigned)exchange->status, response);
    MHD_destroy_response(response); /* drops our reference; MHD keeps its own */
    return result;
}

/* MHD closes the connection when the socket has taken nothing for so long; 0: never. */
static void limit_stall(struct MHD_Connection *connection, int64_t seconds)
{
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)seconds);
}

static enum MHD_Result queue_reply(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->phase = XM_PHASE_ANSWERED;
    pthread_mutex_unlock(&exchange->lock);
    xm_text *answer = &exchange->answer;
    exchange->bytes = answer->length;
    struct MHD_Response *response;
    if (answer->data)
        response =
            MHD_create_response_from_buffer(answer->length, answer->data, MHD_RESPMEM_MUST_FREE);
    else
        response = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
    if (response)
        *answer = (xm_text){0};
    limit_stall(exchange->connection, exchange->settings->limits_stall_seconds);
    return queue(exchange, response);
}

/* Suspends unless a wake came since the last look; true if it did suspend. */
static bool suspend_unless_pending(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    bool suspend = !exchange->pending;
    exchange->pending = false;
    if (suspend) {
        MHD_suspend_connection(exchange->connection);
        exchange->suspended = true;
    }
    pthread_mutex_unlock(&exchange->lock);
    return suspend;
}

static size_t hand_over(xm_exchange *exchange, char *buffer, size_t size)
{
    size_t length = exchange->out.length - exchange->out_at;
    if (length > size)
        length = size;
    memcpy(buffer, exchange->out.data + exchange->out_at, length);
    exchange->out_at += length;
    exchange->bytes += length;
    if (exchange->out_at == exchange->out.length) {
        xm_text_clear(&exchange->out);
        exchange->out_at = 0;
    }
    return length;
}

/* What the stream's state says before it is asked for more; takes the flags. */
static bool begin_fill(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->pending = false;
    exchange->progress_ns = xm_now_ns();
    bool gone = exchange->gone;
    bool ping = exchange->ping;
    exchange->ping = false;
    pthread_mutex_unlock(&exchange->lock);
    if (ping && !gone)
        xm_text_puts(&exchange->out, ": ping\n\n");
    return !gone;
}

/* MHD asks for the next bytes of a stream. Under backpressure it does not ask, and what the engine
 * makes meanwhile waits in the request's own bounded queue. */
static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t size)
{
    (void)position;
    xm_exchange *exchange = context;
    for (;;) {
        if (!begin_fill(exchange))
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (exchange->out.length)
            return (ssize_t)hand_over(exchange, buffer, size);
        if (exchange->stream_ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        xm_fill fill = exchange->kind->fill(exchange, &exchange->out);
        if (fill == XM_FILL_ABORT || exchange->out.failed)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        exchange->stream_ended = fill == XM_FILL_END;
        if (!exchange->out.length && !exchange->stream_ended && suspend_unless_pending(exchange))
            return 0;
    }
}

static enum MHD_Result queue_stream(xm_exchange *exchange)
{
    exchange->status = 200;
    if (!exchange->content_type) {
        exchange->content_type = "text/event-stream; charset=utf-8";
        xm_exchange_header(exchange, "Cache-Control", "no-cache");
        xm_exchange_header(exchange, "X-Accel-Buffering", "no");
    }
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, exchange, NULL);
    /* After the headers of a chunked answer to HEAD, MHD sends the last chunk, which the client
     * would take for the next answer. */
    if (response && strcmp(exchange->method, "HEAD") == 0)
        MHD_set_response_options(response, MHD_RF_HTTP_1_0_COMPATIBLE_STRICT, MHD_RO_END);
    return queue(exchange, response);
}

/* After a handler or a wake: answer, stream, or go (back) to sleep. */
static enum MHD_Result advance(xm_exchange *exchange)
{
    while (!exchange->replied) {
        pthread_mutex_lock(&exchange->lock);
        xm_exchange_phase phase = exchange->phase;
        pthread_mutex_unlock(&exchange->lock);
        if (phase == XM_PHASE_STREAMING)
            return queue_stream(exchange);
        if (phase != XM_PHASE_WAITING)
            return MHD_NO;
        if (suspend_unless_pending(exchange))
            return MHD_YES;
        exchange->kind->finish(exchange);
    }
    return queue_reply(exchange);
}

static enum MHD_Result handle(xm_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    bool late = exchange->phase == XM_PHASE_TIMED_OUT;
    if (!late)
        exchange->phase = XM_PHASE_HANDLING;
    pthread_mutex_unlock(&exchange->lock);
    if (late)
        return MHD_NO;
    if (exchange->early.status)
        xm_exchange_reply_problem(exchange, &exchange->early);
    else if (!exchange->replied)
        exchange->route->handler(exchange);
    pthread_mutex_lock(&exchange->lock);
    bool gone = exchange->gone;
    pthread_mutex_unlock(&exchange->lock);
    if (gone && exchange->kind)
        xm_exchange_gone(exchange); /* it may have come before there was anything to stop */
    return advance(exchange);
}

static const char *header(const xm_exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* A client's own id is taken over if it can stand in a log line. */
static void take_request_id(xm_exchange *exchange)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    const char *id = header(exchange, "X-Request-Id");
    if (!id || !id[0] || strlen(id) > XM_REQUEST_ID_LENGTH || id[strspn(id, allowed)])
        return;
    snprintf(exchange->id, sizeof exchange->id, "%s", id);
}

typedef struct {
    int hosts, lengths, encodings;
    bool chunked;
} framing_headers;

static enum MHD_Result count_framing(void *context, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    (void)kind;
    framing_headers *found = context;
    found->hosts += strcasecmp(name, "Host") == 0;
    found->lengths += strcasecmp(name, "Content-Length") == 0;
    if (strcasecmp(name, "Transfer-Encoding") == 0) {
        found->encodings++;
        found->chunked = value && strcasecmp(value, "chunked") == 0;
    }
    return MHD_YES;
}

/* Where a proxy might see another end of the body than we do, a request could be smuggled past it
 * (RFC 9112, sections 3.2 and 6.3). MHD lets these pass. NULL if all is well. */
static const char *framing_fault(const xm_exchange *exchange, const char *version)
{
    framing_headers found = {0};
    MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, count_framing, &found);
    if (found.lengths > 1)
        return "Content-Length occurs more than once";
    if (found.lengths && found.encodings)
        return "Content-Length and Transfer-Encoding exclude each other";
    if (found.encodings > 1 || (found.encodings && !found.chunked))
        return "the only Transfer-Encoding understood is chunked";
    if (found.hosts > 1 || (found.hosts == 0 && strcmp(version, "HTTP/1.1") == 0))
        return "one Host header is needed";
    return NULL;
}

/* The path of "http://host/path", a form that every server must accept. */
static const char *path_of(const char *url)
{
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return url;
    const char *slash = strchr(strchr(url, ':') + 3, '/');
    return slash ? slash : "/";
}

/* All headers are there; the body, if any, is not. */
static enum MHD_Result begin(xm_exchange *exchange, const char *url, const char *method,
                             const char *version)
{
    exchange->begun = true;
    url = path_of(url);
    snprintf(exchange->method, sizeof exchange->method, "%s", method);
    snprintf(exchange->path, sizeof exchange->path, "%s", url);
    take_request_id(exchange);
    const char *fault = framing_fault(exchange, version);
    if (fault) {
        xm_exchange_header(exchange, "Connection", "close");
        xm_problem_set(&exchange->early, 400, "invalid_request", NULL, "%s", fault);
        return handle(exchange);
    }
    const char *length_text = header(exchange, "Content-Length");
    unsigned long long length = length_text ? strtoull(length_text, NULL, 10) : 0;
    if (!exchange->early.status)
        xm_route_find(exchange, url);
    if (!exchange->early.status && !exchange->replied &&
        length > (unsigned long long)exchange->settings->limits_body_bytes)
        xm_problem_set(&exchange->early, 413, "body_too_large", NULL,
                       "the body has %llu bytes; at most %lld are accepted", length,
                       (long long)exchange->settings->limits_body_bytes);
    exchange->discard = exchange->early.status != 0 || exchange->replied;
    if (exchange->early.status && (length > DISCARD_LIMIT || header(exchange, "Expect")))
        return handle(exchange);
    return MHD_YES;
}

static enum MHD_Result receive(xm_exchange *exchange, const char *data, size_t length)
{
    if (exchange->discard) {
        exchange->bytes += length;
        if (exchange->bytes <= DISCARD_LIMIT)
            return MHD_YES;
        xm_http_send_raw(descriptor_of(exchange->connection), 413, "body_too_large",
                         "the body is too large", exchange->id);
        exchange->status = 413;
        return MHD_NO;
    }
    if (length > (size_t)exchange->settings->limits_body_bytes - exchange->body.length) {
        exchange->discard = true;
        xm_text_free(&exchange->body);
        xm_problem_set(&exchange->early, 413, "body_too_large", NULL,
                       "the body has more than %lld bytes",
                       (long long)exchange->settings->limits_body_bytes);
        return MHD_YES;
    }
    xm_text_add(&exchange->body, data, length);
    return exchange->body.failed ? MHD_NO : MHD_YES;
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **request_context)
{
    (void)context;
    (void)connection;
    xm_exchange *exchange = *request_context;
    if (!exchange)
        return MHD_NO;
    if (!exchange->begun)
        return begin(exchange, url, method, version);
    if (*upload_size) {
        size_t length = *upload_size;
        *upload_size = 0;
        return receive(exchange, upload, length);
    }
    if (exchange->kind)
        return advance(exchange); /* resumed */
    return handle(exchange);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **request_context,
                         enum MHD_RequestTerminationCode how)
{
    xm_server *server = context;
    xm_exchange *exchange = *request_context;
    if (!exchange)
        return;
    *request_context = NULL;
    xm_watch_end(server->watch, connection_of(connection));
    if (how == MHD_REQUEST_TERMINATED_COMPLETED_OK)
        limit_stall(connection, 0); /* the watcher has a limit of its own for what is idle */
    pthread_mutex_lock(&exchange->lock);
    bool timed_out = exchange->phase == XM_PHASE_TIMED_OUT;
    bool gone = exchange->gone;
    pthread_mutex_unlock(&exchange->lock);
    /* What is no HTTP is answered by MHD itself: 400, 413, 414 or 431, it does not say which. */
    bool refused = how == MHD_REQUEST_TERMINATED_WITH_ERROR && !gone && exchange->status == 0;
    /* Many clients hang up as soon as they have read [DONE]. */
    bool whole = how == MHD_REQUEST_TERMINATED_COMPLETED_OK ||
                 (exchange->stream_ended && exchange->out.length == 0);
    if (!whole) {
        if (exchange->kind)
            xm_exchange_gone(exchange);
        if (exchange->status != 413)
            exchange->status = timed_out ? 408 : refused ? 400 : 499;
    }
    if (exchange->kind)
        atomic_fetch_sub(&server->waiting, 1);
    xm_server_count(server, xm_route_index(exchange->route), exchange->status);
    xm_log_request(&(xm_log_answer){
        .id = exchange->id,
        .method = exchange->method[0] ? exchange->method : "-",
        .path = exchange->path[0] ? exchange->path : "-",
        .status = exchange->status,
        .bytes = exchange->bytes,
        .seconds = (double)(xm_now_ns() - exchange->began_ns) / 1e9,
        .generated = exchange->generated,
        .prompt_tokens = exchange->prompt_tokens,
        .completion_tokens = exchange->completion_tokens,
    });
    xm_exchange_release(exchange);
}

static void on_mhd_message(void *context, const char *format, va_list arguments)
{
    (void)context;
    char message[512];
    vsnprintf(message, sizeof message, format, arguments);
    message[strcspn(message, "\n")] = '\0';
    xm_log_line(XM_LOG_DEBUG, "libmicrohttpd: %s", message);
}

bool xm_http_start(xm_server *server, char *message, size_t size)
{
    xm_settings *settings = xm_server_settings(server);
    int fd =
        xm_listen(settings->http_host, (uint16_t)settings->http_port, &server->port, message, size);
    if (fd >= 0) {
        server->daemon = MHD_start_daemon(
            MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
            NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_message, NULL,
            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE,
            (unsigned)settings->http_threads, MHD_OPTION_CONNECTION_LIMIT,
            (unsigned)settings->http_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
            (size_t)MEMORY_LIMIT, MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server,
            MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_NOTIFY_COMPLETED,
            on_completed, server, MHD_OPTION_END);
        if (!server->daemon) {
            snprintf(message, size, "cannot start the HTTP threads");
            close(fd);
        }
    }
    xm_settings_release(settings);
    return server->daemon != NULL;
}

void xm_http_quiesce(xm_server *server)
{
    server->listener = MHD_quiesce_daemon(server->daemon);
    if (server->listener != MHD_INVALID_SOCKET)
        shutdown(server->listener, SHUT_RDWR);
}

void xm_http_stop(xm_server *server)
{
    MHD_stop_daemon(server->daemon);
    server->daemon = NULL;
    if (server->listener != MHD_INVALID_SOCKET)
        close(server->listener);
}

void xm_http_send_raw(int fd, int status, const char *code, const char *message, const char *id)
{
    xm_problem problem = {0};
    xm_text body = {0}, head = {0};
    xm_json json = {&body, false};
    xm_problem_set(&problem, status, code, NULL, "%s", message);
    xm_problem_write(&problem, &json);
    xm_text_format(&head,
                   "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                   "X-Request-Id: %s\r\nConnection: close\r\n\r\n",
                   status, MHD_get_reason_phrase_for((unsigned)status), body.length, id);
    if (!body.failed && !head.failed) {
        xm_text_add(&head, body.data, body.length);
        ssize_t sent = send(fd, head.data, head.length, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent;
    }
    xm_text_free(&body);
    xm_text_free(&head);
}
