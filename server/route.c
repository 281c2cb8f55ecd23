/*
 * route.c - see route.h.
 */
#include "route.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api.h"
#include "log.h"
#include "server.h"

#define GENERATION (XM_ROUTE_MODEL | XM_ROUTE_GENERATES | XM_ROUTE_JSON)

/* clang-format off */
const xm_route xm_route_table[] = {
    {"GET", "/", xm_api_dashboard, XM_ROUTE_PUBLIC},
    {"GET", "/health", xm_api_health, XM_ROUTE_PUBLIC},
    {"GET", "/v1/health", xm_api_health, XM_ROUTE_PUBLIC},
    {"GET", "/ready", xm_api_ready, XM_ROUTE_PUBLIC},
    {"GET", "/openapi.json", xm_api_openapi, XM_ROUTE_PUBLIC},
    {"GET", "/metrics", xm_api_metrics, 0},
    {"GET", "/props", xm_api_props, XM_ROUTE_MODEL},
    {"GET", "/slots", xm_api_slots, XM_ROUTE_MODEL},
    {"GET", "/v1/models", xm_api_models, XM_ROUTE_MODEL},
    {"GET", "/v1/models/", xm_api_model, XM_ROUTE_MODEL},
    {"POST", "/v1/completions", xm_api_completions, GENERATION},
    {"POST", "/v1/chat/completions", xm_api_chat_completions, GENERATION},
    {"POST", "/infill", xm_api_infill, GENERATION},
    {"POST", "/v1/embeddings", xm_api_embeddings, GENERATION},
    {"POST", "/embeddings", xm_api_embeddings, GENERATION},
    {"POST", "/embedding", xm_api_embedding, GENERATION},
    {"POST", "/tokenize", xm_api_tokenize, XM_ROUTE_MODEL | XM_ROUTE_JSON},
    {"POST", "/detokenize", xm_api_detokenize, XM_ROUTE_MODEL | XM_ROUTE_JSON},
    {"POST", "/apply-template", xm_api_apply_template, XM_ROUTE_MODEL | XM_ROUTE_JSON},
    {"GET", "/v1/experts/usage", xm_api_usage, XM_ROUTE_MODEL},
    {"POST", "/v1/experts/usage/reset", xm_api_usage_reset, XM_ROUTE_MODEL},
    {"GET", "/v1/experts/usage/stream", xm_api_usage_stream, XM_ROUTE_MODEL},
    {"GET", "/v1/experts/snapshots", xm_api_snapshots, XM_ROUTE_MODEL},
    {"GET", "/v1/experts/snapshots/", xm_api_snapshot, XM_ROUTE_MODEL},
    {"PUT", "/v1/experts/snapshots/", xm_api_snapshot_put, XM_ROUTE_MODEL | XM_ROUTE_JSON},
    {"DELETE", "/v1/experts/snapshots/", xm_api_snapshot_delete, XM_ROUTE_MODEL},
    {"GET", "/v1/experts/trace", xm_api_trace, XM_ROUTE_MODEL},
    {"GET", "/v1/router", xm_api_router, XM_ROUTE_MODEL},
    {"PUT", "/v1/router", xm_api_router_put, XM_ROUTE_MODEL | XM_ROUTE_JSON},
};
/* clang-format on */
const size_t xm_route_count = sizeof xm_route_table / sizeof *xm_route_table;

_Static_assert(sizeof xm_route_table / sizeof *xm_route_table < XM_ROUTE_LIMIT,
               "each route needs a row of counters, unknown paths one more");

size_t xm_route_index(const xm_route *route)
{
    return route ? (size_t)(route - xm_route_table) : xm_route_count;
}

static bool path_matches(const xm_route *route, const char *url)
{
    size_t length = strlen(route->path);
    if (length > 1 && route->path[length - 1] == '/')
        return strncmp(url, route->path, length) == 0;
    return strcmp(url, route->path) == 0;
}

static bool method_matches(const xm_route *route, const char *method)
{
    return strcmp(route->method, method) == 0 ||
           (strcmp(route->method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* "GET, HEAD, PUT, OPTIONS": what the path's rows offer. */
static void allowed_methods(const char *url, char *list, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; i < xm_route_count; i++) {
        if (!path_matches(&xm_route_table[i], url))
            continue;
        const char *method = xm_route_table[i].method;
        used += (size_t)snprintf(list + used, size - used, "%s%s, ", method,
                                 strcmp(method, "GET") == 0 ? ", HEAD" : "");
    }
    snprintf(list + used, size - used, "OPTIONS");
}

static bool equal_in_constant_time(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned char difference = a_length != b_length;
    for (size_t i = 0; i < a_length; i++)
        difference |= (unsigned char)(a[i] ^ (b_length ? b[i % b_length] : 0));
    return difference == 0;
}

/* Of the key's length only, not of which stored key it resembles, does the time depend. */
bool xm_key_matches(const xm_settings *settings, const char *key)
{
    bool found = false;
    size_t length = strlen(key);
    for (const char *item = settings->http_api_keys; *item;) {
        size_t span = strcspn(item, ",");
        if (span && equal_in_constant_time(key, length, item, span))
            found = true;
        item += span + (item[span] == ',');
    }
    return found && length > 0;
}

static bool is_authorized(const xm_exchange *exchange)
{
    if (!exchange->settings->http_api_keys[0])
        return true;
    const char *value =
        MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Authorization");
    if (value && strncasecmp(value, "Bearer ", 7) == 0)
        return xm_key_matches(exchange->settings, value + 7 + strspn(value + 7, " "));
    value = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "X-Api-Key");
    return value && xm_key_matches(exchange->settings, value);
}

static bool is_json(const xm_exchange *exchange)
{
    const char *type =
        MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Content-Type");
    if (!type)
        return true;
    size_t length = strcspn(type, "; \t");
    return length == 16 && strncasecmp(type, "application/json", 16) == 0;
}

static bool is_compressed(const xm_exchange *exchange)
{
    const char *coding =
        MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Content-Encoding");
    return coding && coding[0] && strcasecmp(coding, "identity") != 0;
}

static void answer_options(xm_exchange *exchange, const char *allow)
{
    xm_text nothing = {0};
    xm_exchange_header(exchange, "Allow", allow);
    if (exchange->settings->http_cors_origin[0]) {
        xm_exchange_header(exchange, "Access-Control-Allow-Methods", allow);
        xm_exchange_header(exchange, "Access-Control-Allow-Headers",
                           "Authorization, Content-Type, X-Api-Key, X-Request-Id, *");
        xm_exchange_header(exchange, "Access-Control-Max-Age", "600");
    }
    xm_exchange_reply(exchange, 204, NULL, &nothing);
}

static bool check_state(xm_exchange *exchange)
{
    int state = exchange->server->state;
    int flags = exchange->route->flags;
    if (state == XM_SERVER_DRAINING && (flags & XM_ROUTE_GENERATES))
        return xm_problem_set(&exchange->early, 503, "draining", NULL,
                              "the server is shutting down and takes no new requests");
    if ((flags & XM_ROUTE_MODEL) && !exchange->server->loaded)
        return xm_problem_set(&exchange->early, 503, "loading", NULL,
                              "the model is still being loaded");
    return true;
}

static bool check_route(xm_exchange *exchange, const char *allow)
{
    const xm_route *route = exchange->route;
    xm_problem *early = &exchange->early;
    if (!(route && (route->flags & XM_ROUTE_PUBLIC)) && !is_authorized(exchange)) {
        xm_exchange_header(exchange, "WWW-Authenticate", "Bearer");
        return xm_problem_set(early, 401, "invalid_api_key", NULL,
                              "a valid API key is needed: Authorization: Bearer KEY");
    }
    if (!route)
        return xm_problem_set(early, 404, "unknown_url", NULL, "there is nothing at %s",
                              exchange->path);
    if (allow) {
        xm_exchange_header(exchange, "Allow", allow);
        return xm_problem_set(early, 405, "method_not_allowed", NULL, "%s does not take %s",
                              exchange->path, exchange->method);
    }
    if (!check_state(exchange))
        return false;
    if ((route->flags & XM_ROUTE_JSON) && !is_json(exchange))
        return xm_problem_set(early, 415, "unsupported_media_type", NULL,
                              "the body must have Content-Type: application/json");
    if ((route->flags & XM_ROUTE_JSON) && is_compressed(exchange)) {
        xm_exchange_header(exchange, "Accept-Encoding", "identity");
        return xm_problem_set(early, 415, "unsupported_media_type", NULL,
                              "the body must not have a Content-Encoding");
    }
    return true;
}

void xm_route_find(xm_exchange *exchange, const char *url)
{
    const xm_route *same_path = NULL;
    for (size_t i = 0; i < xm_route_count && !exchange->route; i++) {
        const xm_route *route = &xm_route_table[i];
        if (!path_matches(route, url))
            continue;
        same_path = route;
        if (method_matches(route, exchange->method))
            exchange->route = route;
    }
    char allow[64];
    allowed_methods(url, allow, sizeof allow);
    bool wrong_method = same_path && !exchange->route;
    if (wrong_method)
        exchange->route = same_path;
    if (wrong_method && strcmp(exchange->method, "OPTIONS") == 0) {
        answer_options(exchange, allow);
        return;
    }
    if (!check_route(exchange, wrong_method ? allow : NULL))
        return;
    size_t prefix = strlen(exchange->route->path);
    if (prefix > 1 && exchange->route->path[prefix - 1] == '/') {
        exchange->argument = strdup(url + prefix);
        if (!exchange->argument)
            xm_problem_set(&exchange->early, 503, "out_of_memory", NULL, "out of memory");
    }
}
