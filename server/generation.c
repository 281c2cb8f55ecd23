/*
 * generation.c - see generation.h: submission, the scheduler's callback, and the two ways in which
 * an answer leaves (whole, or as a stream).
 */
#include "generation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "answer.h"
#include "server.h"
#include "watch.h"

/* Asks the engine to end all parts. Without the lock: the engine may have locks of its own. */
static void cancel_parts(xm_generation *generation)
{
    xmoe_engine *engine = generation->exchange->server->engine;
    for (size_t i = 0; i < generation->params.prompt_count; i++) {
        pthread_mutex_lock(&generation->lock);
        bool submitted = generation->parts[i].submitted;
        uint64_t request = generation->parts[i].request;
        pthread_mutex_unlock(&generation->lock);
        if (submitted)
            xmoe_request_cancel(engine, request);
    }
}

static void cancel(xm_generation *generation)
{
    pthread_mutex_lock(&generation->lock);
    generation->cancelled = true;
    xm_event_clear(&generation->queue);
    pthread_mutex_unlock(&generation->lock);
    cancel_parts(generation);
}

/* Keeps the event unless nobody will look at it. Returns false where the request must be cut off:
 * its events cannot be kept, or its client reads too slowly. */
static bool keep_event(xm_generation *generation, xm_event *event)
{
    if (!event) {
        generation->lost = true;
        return false;
    }
    if (generation->cancelled) {
        free(event);
        return true;
    }
    xm_event_push(&generation->queue, event);
    return !generation->params.stream ||
           generation->queue.bytes <= (size_t)generation->exchange->settings->limits_stream_bytes;
}

/* Runs on the scheduler thread: copy, wake, done. */
static void on_event(void *context, const xmoe_event *event)
{
    const xm_part *part = context;
    xm_generation *generation = part->generation;
    xm_exchange *exchange = generation->exchange;
    xmoe_event kept = *event;
    if (event->kind == XMOE_EVENT_TOKEN && !generation->params.timings_per_token)
        kept.summary = NULL; /* nobody will look at it */
    xm_event *copy =
        xm_event_copy(&kept, part->index, generation->params.prompts[part->index].count);
    pthread_mutex_lock(&generation->lock);
    bool good = keep_event(generation, copy);
    if (event->kind == XMOE_EVENT_END)
        generation->open--;
    bool complete = generation->open == 0;
    pthread_mutex_unlock(&generation->lock);

    if (!good) {
        xmoe_request_cancel(exchange->server->engine, event->request);
        xm_exchange_gone(exchange);
        xm_watch_kick(exchange->server->watch);
    }
    if (generation->params.stream || complete)
        xm_exchange_wake(exchange);
    if (event->kind == XMOE_EVENT_END)
        xm_exchange_release(exchange);
}

const char *xm_generation_of_route(const void *context, int32_t choice, int32_t *number)
{
    const xm_part *part = context;
    const xm_generation *generation = part->generation; /* alive until the end: see its head */
    *number = part->index * generation->params.engine.choices + choice;
    return generation->id;
}

static xm_event *next_event(xm_generation *generation)
{
    pthread_mutex_lock(&generation->lock);
    xm_event *event = xm_event_pop(&generation->queue);
    pthread_mutex_unlock(&generation->lock);
    return event;
}

static void note_tokens(xm_generation *generation)
{
    xm_exchange *exchange = generation->exchange;
    xmoe_request_summary summary = xm_answer_summary(generation);
    exchange->generated = true;
    exchange->prompt_tokens = summary.prompt_tokens;
    exchange->completion_tokens = summary.completion_tokens;
}

/* All engine requests have ended, or a wake came for another reason. */
static void finish(xm_exchange *exchange)
{
    xm_generation *generation = exchange->context;
    pthread_mutex_lock(&generation->lock);
    bool complete = generation->open == 0;
    bool lost = generation->lost;
    bool cancelled = generation->cancelled;
    pthread_mutex_unlock(&generation->lock);
    if (!complete)
        return;
    if (lost)
        xm_problem_set(&generation->problem, 503, "out_of_memory", NULL, "out of memory");
    else if (cancelled) /* nobody reads this any more; the status is for logs and metrics */
        xm_problem_set(&generation->problem, 499, "client_closed_request", NULL,
                       "the client closed the connection");
    for (xm_event *event; !generation->problem.status && (event = next_event(generation));)
        xm_generation_apply(generation, event);
    note_tokens(generation);
    if (generation->problem.status) {
        xm_exchange_reply_problem(exchange, &generation->problem);
        return;
    }
    xm_text answer = {0};
    xm_json json = {&answer, false};
    if (generation->params.embedding == XM_EMBEDDING_NONE)
        xm_answer_whole(generation, &json);
    else
        xm_answer_embeddings(generation, &json);
    xm_exchange_reply_json(exchange, &answer);
}

/* An error in a stream is an event of its own: the status line has long been sent. */
static xm_fill fail_stream(xm_generation *generation, xm_text *out)
{
    xm_json json = {out, false};
    xm_text_puts(out, "data: ");
    xm_problem_write(&generation->problem, &json);
    xm_text_puts(out, "\n\ndata: [DONE]\n\n");
    cancel(generation);
    return XM_FILL_END;
}

static xm_fill fill(xm_exchange *exchange, xm_text *out)
{
    xm_generation *generation = exchange->context;
    size_t enough = out->length + 8192;
    while (out->length < enough) {
        xm_event *event = next_event(generation);
        if (!event)
            return XM_FILL_WAIT;
        if (!xm_answer_stream(generation, event, out))
            return fail_stream(generation, out);
        if (generation->ended == generation->params.prompt_count) {
            note_tokens(generation);
            xm_answer_stream_end(generation, out);
            return XM_FILL_END;
        }
    }
    return XM_FILL_WAIT; /* there is output: the HTTP layer asks again */
}

static void gone(xm_exchange *exchange)
{
    cancel(exchange->context);
}

static void release(void *context)
{
    xm_generation *generation = context;
    for (size_t i = 0; i < generation->params.prompt_count; i++)
        free(generation->parts[i].end);
    for (size_t i = 0; i < generation->choice_count; i++)
        xm_choice_free(&generation->choices[i]);
    free(generation->parts);
    free(generation->choices);
    xm_event_clear(&generation->queue);
    xm_generate_params_free(&generation->params);
    pthread_mutex_destroy(&generation->lock);
    free(generation);
}

static const xm_exchange_kind generation_kind = {
    .finish = finish, .fill = fill, .gone = gone, .release = release};

/* NULL without memory; then *params is freed. */
static xm_generation *create(xm_exchange *exchange, xm_generate_params *params, const char *model)
{
    size_t choices = params->prompt_count * (size_t)params->engine.choices;
    xm_generation *generation = calloc(1, sizeof *generation);
    if (generation) {
        generation->parts = calloc(params->prompt_count, sizeof *generation->parts);
        generation->choices = calloc(choices, sizeof *generation->choices);
    }
    if (!generation || !generation->parts || !generation->choices) {
        if (generation) {
            free(generation->parts);
            free(generation->choices);
        }
        free(generation);
        xm_generate_params_free(params);
        return NULL;
    }
    pthread_mutex_init(&generation->lock, NULL);
    generation->exchange = exchange;
    generation->params = *params;
    generation->params.engine.routing = &generation->params.routing;
    generation->params.engine.stop = (const char *const *)generation->params.stop;
    generation->choice_count = generation->unfinished = choices;
    generation->created = time(NULL);
    snprintf(generation->id, sizeof generation->id, "%s-%s", params->chat ? "chatcmpl" : "cmpl",
             exchange->id);
    snprintf(generation->model, sizeof generation->model, "%s", model);
    for (size_t i = 0; i < params->prompt_count; i++)
        generation->parts[i] = (xm_part){.generation = generation, .index = (int32_t)i};
    return generation;
}

/* False where the engine refused, or nobody wants the answer any more. */
static bool submit(xm_generation *generation, xm_part *part, xmoe_error *error)
{
    xm_exchange *exchange = generation->exchange;
    xmoe_request_params params = generation->params.engine;
    params.prompt = generation->params.prompts[part->index].tokens;
    params.prompt_length = generation->params.prompts[part->index].count;
    params.on_event = on_event;
    params.context = part;

    pthread_mutex_lock(&generation->lock);
    generation->open++;
    pthread_mutex_unlock(&generation->lock);
    xm_exchange_hold(exchange); /* the callback's, until the end */
    uint64_t request = 0;
    xmoe_status status = xmoe_request_submit(exchange->server->engine, &params, &request, error);

    pthread_mutex_lock(&generation->lock);
    if (status == XMOE_OK) {
        part->request = request;
        part->submitted = true;
    } else {
        generation->open--;
    }
    bool cancelled = generation->cancelled;
    pthread_mutex_unlock(&generation->lock);
    if (status != XMOE_OK)
        xm_exchange_release(exchange);
    else if (cancelled)
        xmoe_request_cancel(exchange->server->engine, request);
    return status == XMOE_OK;
}

void xm_generation_start(xm_exchange *exchange, xm_generate_params *params, const char *model)
{
    xm_problem problem = {0};
    xm_generation *generation = create(exchange, params, model);
    if (!generation) {
        xm_problem_set(&problem, 503, "out_of_memory", NULL, "out of memory");
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    if (generation->params.stream)
        xm_exchange_stream(exchange, &generation_kind, generation);
    else
        xm_exchange_wait(exchange, &generation_kind, generation);
    for (size_t i = 0; i < generation->params.prompt_count; i++) {
        xmoe_error error = {0};
        if (submit(generation, &generation->parts[i], &error))
            continue;
        xm_problem_engine(&problem, &error, generation->params.prompts[i].field);
        cancel(generation);
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
}
