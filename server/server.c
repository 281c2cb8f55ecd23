/*
 * server.c - see server.h: start, load, reload, drain, end.
 */
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "chat_template.h"
#include "expert_trace.h"
#include "http.h"
#include "keeper.h"
#include "log.h"
#include "metrics.h"
#include "response_format.h"
#include "router_json.h"
#include "snapshots.h"
#include "trace_writer.h"
#include "watch.h"

#define TRACE_FILE_BUFFER                                                                          \
    (4 << 20) /* of the trace file, where trace.bytes does not say otherwise */

const int xm_counted_codes[XM_CODE_LIMIT] = {200, 201, 204, 400, 401, 403, 404, 405, 408,
                                             413, 415, 429, 499, 500, 501, 503, 0};

/* Streams hold one descriptor each: take as many as the system lets us. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static uint32_t random_run_id(void)
{
    uint32_t id = 0;
    if (getrandom(&id, sizeof id, 0) != sizeof id)
        id = (uint32_t)time(NULL);
    return id;
}

xm_server *xm_server_start(xm_settings *settings, char *message, size_t size)
{
    xm_server *server = calloc(1, sizeof *server);
    if (!server) {
        snprintf(message, size, "out of memory");
        xm_settings_release(settings);
        return NULL;
    }
    server->settings = settings;
    server->started = time(NULL);
    server->run_id = random_run_id();
    pthread_mutex_init(&server->settings_lock, NULL);
    pthread_mutex_init(&server->figures_lock, NULL);
    raise_descriptor_limit();
    server->watch = xm_watch_create(server);
    if (!server->watch)
        snprintf(message, size, "cannot start a thread: %s", strerror(errno));
    if (server->watch && xm_http_start(server, message, size))
        return server;
    xm_watch_free(server->watch);
    pthread_mutex_destroy(&server->settings_lock);
    pthread_mutex_destroy(&server->figures_lock);
    xm_settings_release(settings);
    free(server);
    return NULL;
}

static void name_model(xm_server *server, const char *path, const char *alias)
{
    const char *slash = strrchr(path, '/');
    snprintf(server->model_file, sizeof server->model_file, "%s", slash ? slash + 1 : path);
    snprintf(server->model_id, sizeof server->model_id, "%s",
             alias[0] ? alias : server->model_file);
    size_t length = strlen(server->model_id);
    if (!alias[0] && length > 5 && strcmp(server->model_id + length - 5, ".gguf") == 0)
        server->model_id[length - 5] = '\0';
    const xmoe_model_info *info = xmoe_model_get_info(server->model);
    snprintf(server->fingerprint, sizeof server->fingerprint, "xmoe-%s-%s", xmoe_version(),
             info->isa);
}

/* The default routing as the settings want it, over what the file says. */
static xmoe_status apply_router(xm_server *server, const xm_settings *settings, xmoe_error *error)
{
    xmoe_routing routing;
    xmoe_model_default_routing(server->model, &routing);
    for (int32_t layer = 0; layer < routing.layer_count; layer++) {
        xmoe_router *router = &routing.layers[layer];
        if (!xmoe_router_type_parse(settings->router_type, &router->type)) /* "model" */
            xm_router_imply_type(router, settings->router_threshold > 0,
                                 settings->router_top_k > 0);
        if (settings->router_threshold > 0)
            router->threshold = (float)settings->router_threshold;
        if (settings->router_top_k > 0)
            router->top_k = (int32_t)settings->router_top_k;
        if (settings->router_min_experts > 0)
            router->min_experts = (int32_t)settings->router_min_experts;
        if (settings->router_max_experts > 0)
            router->max_experts = (int32_t)settings->router_max_experts;
        if (strcmp(settings->router_normalize, "model") != 0)
            router->normalize = strcmp(settings->router_normalize, "true") == 0;
    }
    return xmoe_engine_set_routing(server->engine, &routing, error);
}

static xmoe_status create_engine(xm_server *server, const xm_settings *settings, xmoe_error *error)
{
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.threads = (int32_t)settings->engine_threads;
    options.max_sequences = (int32_t)settings->engine_max_sequences;
    options.step_tokens = (int32_t)settings->engine_step_tokens;
    options.queue_length = (int32_t)settings->engine_queue_length;
    options.kv_bytes = (uint64_t)settings->engine_kv_bytes;
    options.kv_f32 = strcmp(settings->engine_kv_type, "f32") == 0;
    options.prefix_cache = settings->engine_prefix_cache;
    options.usage_window_seconds = (int32_t)settings->usage_window_seconds;
    options.usage_window_bytes = (uint64_t)settings->usage_window_bytes;
    return xmoe_engine_create(server->model, &options, &server->engine, error);
}

/* The trace, if anybody wants it: the endpoint has a ring of trace.bytes, and the file reads from
 * it too. */
static bool start_trace(xm_server *server, const xm_settings *settings, char *message, size_t size)
{
    bool file = settings->trace_file[0];
    size_t bytes = settings->trace_bytes > 0 ? (size_t)settings->trace_bytes : TRACE_FILE_BUFFER;
    if (settings->trace_bytes == 0 && !file)
        return true;
    server->trace =
        xm_expert_trace_create(server->model, bytes, (size_t)settings->engine_step_tokens);
    if (!server->trace) {
        snprintf(message, size, "setting 'trace.bytes': out of memory");
        return false;
    }
    if (file) {
        server->trace_writer =
            xm_trace_writer_create(server->trace, settings->trace_file, message, size);
        if (!server->trace_writer)
            return false;
    }
    xmoe_engine_set_trace(server->engine, xm_expert_trace_take, server->trace);
    return true;
}

/* What watches the experts of a running engine. */
static bool start_watching_experts(xm_server *server, const xm_settings *settings, char *message,
                                   size_t size)
{
    server->snapshots = xm_snapshots_open(server->model, settings->usage_directory,
                                          (size_t)settings->usage_snapshots, message, size);
    return server->snapshots && start_trace(server, settings, message, size) &&
           (server->keeper = xm_keeper_create(server, message, size)) != NULL;
}

/* A template that cannot be used takes chats away, not the model. */
static bool prepare_chat(xm_server *server, char *message, size_t size)
{
    server->chat = xm_chat_format_create(server->model);
    if (!server->chat) {
        snprintf(message, size, "out of memory");
        return false;
    }
    const xm_jinja_error *error = &server->chat->error;
    if (server->chat->source && !server->chat->jinja)
        xm_log_line(XM_LOG_WARNING,
                    "the model's chat template cannot be used, chats are refused: line %d: %s",
                    error->line, error->message);
    return true;
}

bool xm_server_load(xm_server *server, const char *path, xmoe_progress_fn progress, char *message,
                    size_t size)
{
    xm_settings *settings = xm_server_settings(server);
    xmoe_error error = {0};
    xmoe_model_options options = {.threads = (int32_t)settings->engine_threads,
                                  .context_length = (int32_t)settings->model_context_length,
                                  .progress = progress};
    if (strcmp(settings->engine_isa, "auto") != 0)
        options.isa = settings->engine_isa;
    xmoe_status status = xmoe_model_load(path, &options, &server->model, &error);
    if (status == XMOE_OK)
        status = create_engine(server, settings, &error);
    if (status == XMOE_OK)
        status = apply_router(server, settings, &error);
    if (status == XMOE_OK && !(server->grammars = xm_grammar_cache_create(server->model))) {
        status = XMOE_ERROR_MEMORY;
        snprintf(error.message, sizeof error.message, "out of memory");
    }
    bool good = status == XMOE_OK;
    if (good) {
        name_model(server, path, settings->model_alias);
        xm_metrics_requests_init(server);
        server->model_loaded = time(NULL);
        good = prepare_chat(server, message, size) &&
               start_watching_experts(server, settings, message, size);
    } else {
        snprintf(message, size, "%s", error.message);
    }
    if (good) {
        server->loaded = true;
        int loading = XM_SERVER_LOADING; /* a drain that began meanwhile stays */
        atomic_compare_exchange_strong(&server->state, &loading, XM_SERVER_READY);
    }
    xm_settings_release(settings);
    return good;
}

xm_settings *xm_server_settings(xm_server *server)
{
    pthread_mutex_lock(&server->settings_lock);
    xm_settings *settings = xm_settings_hold(server->settings);
    pthread_mutex_unlock(&server->settings_lock);
    return settings;
}

static bool router_differs(const xm_settings *a, const xm_settings *b)
{
    return strcmp(a->router_type, b->router_type) != 0 ||
           a->router_threshold != b->router_threshold || a->router_top_k != b->router_top_k ||
           a->router_min_experts != b->router_min_experts ||
           a->router_max_experts != b->router_max_experts ||
           strcmp(a->router_normalize, b->router_normalize) != 0;
}

bool xm_server_reload(xm_server *server, const xm_settings *fresh, char *message, size_t size)
{
    xm_settings *old = xm_server_settings(server);
    xm_settings *settings = xm_settings_reload(old, fresh);
    bool good = settings != NULL;
    if (!good)
        snprintf(message, size, "out of memory");
    /* A router set by PUT /v1/router stays unless the settings themselves changed. */
    if (good && server->loaded && router_differs(old, settings)) {
        xmoe_error error = {0};
        good = apply_router(server, settings, &error) == XMOE_OK;
        if (!good)
            snprintf(message, size, "%s", error.message);
    }
    if (good) {
        xm_log_configure(settings->log_level, settings->log_format);
        pthread_mutex_lock(&server->settings_lock);
        xm_settings *replaced = server->settings;
        server->settings = settings;
        pthread_mutex_unlock(&server->settings_lock);
        xm_settings_release(replaced);
        if (server->loaded)
            xm_keeper_kick(server->keeper);
    } else {
        xm_settings_release(settings);
    }
    xm_settings_release(old);
    return good;
}

void xm_server_drain(xm_server *server)
{
    int before = atomic_exchange(&server->state, XM_SERVER_DRAINING);
    if (before != XM_SERVER_DRAINING && server->loaded)
        xmoe_engine_drain(server->engine);
    xm_watch_wake_all(server->watch);
}

bool xm_server_idle(xm_server *server)
{
    return server->waiting == 0;
}

static void sleep_milliseconds(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* MHD may only be stopped when none of its connections is suspended, so the last requests are cut
 * and awaited first; the engine ends a cancelled request within one step. Each of its requests
 * holds an exchange to its end: when there are none any more, all is counted, and the keeper may
 * save it for the last time. */
void xm_server_free(xm_server *server)
{
    if (!server)
        return;
    xm_server_drain(server);
    xm_http_quiesce(server);
    while (!xm_server_idle(server)) {
        xm_watch_cut_all(server->watch);
        sleep_milliseconds(5);
    }
    xm_http_stop(server);
    while (server->exchanges > 0)
        sleep_milliseconds(1);
    xm_keeper_free(server->keeper);
    if (server->engine)
        xmoe_engine_free(server->engine);
    xm_trace_writer_free(server->trace_writer);
    xm_expert_trace_free(server->trace);
    xm_snapshots_close(server->snapshots);
    xm_grammar_cache_free(server->grammars);
    xm_watch_free(server->watch);
    xm_chat_format_free(server->chat);
    xmoe_model_free(server->model);
    pthread_mutex_destroy(&server->settings_lock);
    pthread_mutex_destroy(&server->figures_lock);
    xm_settings_release(server->settings);
    free(server);
}

void xm_server_count(xm_server *server, size_t route, int status)
{
    size_t code = 0;
    while (xm_counted_codes[code] != 0 && xm_counted_codes[code] != status)
        code++;
    atomic_fetch_add(&server->answers[route][code], 1);
}
