/*
 * eval_windows.c - see eval_windows.h. on_event runs on the scheduler thread, all else on main.
 *
 * The trace is written in order, by main, while windows are being scored: what a window took is
 * copied when it ends and kept until those before it are written. The scheduler fills its steps
 * oldest request first, so no more than `parallel` windows wait for their turn.
 */
#include "eval_windows.h"

#include <stdlib.h>

void windows_init(eval_windows *windows, bool quiet)
{
    *windows = (eval_windows){.parallel = 1};
    gate_init(&windows->gate);
    cli_progress_start(&windows->progress, "positions", quiet);
}

void windows_free(eval_windows *windows)
{
    for (size_t i = 0; i < windows->count; i++) {
        free(windows->items[i].routes);
    }
    free(windows->items);
    documents_free(&windows->documents);
    gate_free(&windows->gate);
}

/* --- plan --------------------------------------------------------------------------------------
 */

static bool add_window(eval_windows *windows, const eval_window *item)
{
    if (windows->count == windows->capacity) {
        size_t capacity = windows->capacity == 0 ? 256 : 2 * windows->capacity;
        eval_window *items = realloc(windows->items, capacity * sizeof *items);
        if (items == NULL) {
            return false;
        }
        windows->items = items;
        windows->capacity = capacity;
    }
    windows->items[windows->count++] = *item;
    return true;
}

bool windows_plan(eval_windows *windows, size_t length, size_t stride)
{
    for (size_t d = 0; d < windows->documents.count; d++) {
        const size_t count = windows->documents.items[d].count;
        size_t scored = 1; /* tokens before this one are counted; the first is begin-of-text */
        for (size_t start = 0; scored < count; start += stride) {
            size_t end = start + length < count ? start + length : count;
            const eval_window item = {.owner = windows,
                                      .document = d,
                                      .start = start,
                                      .first = scored,
                                      .length = (int32_t)(end - start)};
            if (!add_window(windows, &item)) {
                return false;
            }
            windows->positions += end - start;
            scored = end;
        }
    }
    return true;
}

/* --- scoring -----------------------------------------------------------------------------------
 */

/* Index, in the window, of the first position that it traces: begin-of-text is never counted, but
 * the model computes it like any other. */
static int32_t first_traced(const eval_window *item)
{
    return item->start == 0 ? 0 : (int32_t)(item->first - item->start);
}

static void on_end(eval_window *item, const xmoe_error *error)
{
    eval_windows *windows = item->owner;
    static const xmoe_error no_memory = {.status = XMOE_ERROR_MEMORY,
                                         .message = "out of memory for the trace"};
    if (error == NULL && windows->trace != NULL && item->routes == NULL) {
        error = &no_memory;
    }
    pthread_mutex_lock(&windows->gate.lock);
    if (error != NULL && !windows->failed) {
        windows->error = *error;
        windows->failed = true;
    }
    item->ended = true;
    pthread_mutex_unlock(&windows->gate.lock);
    gate_leave(&windows->gate);
}

static void on_event(void *context, const xmoe_event *event)
{
    eval_window *item = context;
    if (event->kind == XMOE_EVENT_PROMPT) {
        item->nats = 0;
        for (size_t i = item->first - item->start; i < (size_t)item->length; i++) {
            item->nats -= (double)event->prompt_logprobs[i];
        }
    } else if (event->kind == XMOE_EVENT_CHOICE && event->routed != NULL &&
               event->routed->position_count == item->length) { /* less where it was cancelled */
        item->routes = trace_copy_routes(event->routed, first_traced(item));
    } else if (event->kind == XMOE_EVENT_END) {
        on_end(item, event->error);
    }
}

static bool submit(eval_windows *windows, xmoe_engine *engine, eval_window *item,
                   const xmoe_routing *routing)
{
    xmoe_request_params params;
    xmoe_error error;
    uint64_t request;
    xmoe_request_default_params(&params);
    params.prompt = windows->documents.items[item->document].tokens + item->start;
    params.prompt_length = (size_t)item->length;
    params.max_tokens = 0;
    params.prompt_logprobs = true;
    params.cache_prompt = false;
    params.routed_experts = windows->trace != NULL;
    params.routing = routing;
    params.on_event = on_event;
    params.context = item;
    item->ended = false;
    gate_enter(&windows->gate);
    if (xmoe_request_submit(engine, &params, &request, &error) != XMOE_OK) {
        gate_leave(&windows->gate);
        cli_fail("%s", error.message);
        return false;
    }
    return true;
}

/* --- trace -------------------------------------------------------------------------------------
 */

static bool has_failed(eval_windows *windows)
{
    pthread_mutex_lock(&windows->gate.lock);
    bool failed = windows->failed;
    pthread_mutex_unlock(&windows->gate.lock);
    return failed;
}

/* The window whose turn it is in the trace, if it has ended and can be written; else NULL. */
static eval_window *next_to_trace(eval_windows *windows)
{
    if (windows->trace == NULL || windows->traced == windows->count || has_failed(windows)) {
        return NULL;
    }
    eval_window *item = &windows->items[windows->traced];
    pthread_mutex_lock(&windows->gate.lock);
    bool ended = item->ended;
    pthread_mutex_unlock(&windows->gate.lock);
    return ended ? item : NULL;
}

static bool write_trace(eval_windows *windows)
{
    eval_window *item;
    while ((item = next_to_trace(windows)) != NULL) {
        const document *text = &windows->documents.items[item->document];
        const int32_t *tokens = text->tokens + item->start + first_traced(item);
        if (!trace_write(windows->trace, tokens, item->routes)) {
            return false;
        }
        free(item->routes);
        item->routes = NULL;
        windows->traced++;
    }
    return true;
}

bool windows_score_file(eval_windows *windows, xmoe_engine *engine, int32_t file,
                        const xmoe_routing *routing)
{
    bool good = true;
    for (size_t i = 0; i < windows->count && good; i++) {
        eval_window *item = &windows->items[i];
        if (windows->documents.items[item->document].file != file) {
            continue;
        }
        good = gate_wait(&windows->gate, windows->parallel) && write_trace(windows) &&
               submit(windows, engine, item, routing);
        windows->scored += (uint64_t)item->length;
        good = good && cli_progress_report(&windows->progress, "scoring", windows->scored,
                                           windows->to_score);
    }
    good = gate_wait(&windows->gate, 1) && good && write_trace(windows);
    cli_progress_clear(&windows->progress);
    if (has_failed(windows)) {
        cli_fail("%s", windows->error.message);
        return false;
    }
    return good;
}
