/*
 * answer.c - see answer.h: the frames of answers and chunks.
 *
 * Streams: a chunk per token that has something to show; the last chunk of the last choice waits
 * for the end of the request, so that it can carry timings, router and expert_usage; with
 * stream_options.include_usage one more chunk without choices carries usage, and all others have
 * "usage": null, as OpenAI has it.
 */
#include "answer.h"

#include <stdlib.h>

#include "server.h"

static void open_frame(const xm_generation *generation, bool chunk, xm_json *json)
{
    const char *object = generation->params.chat
                             ? chunk ? "chat.completion.chunk" : "chat.completion"
                             : "text_completion";
    xm_json_open(json, NULL, '{');
    xm_json_string(json, "id", generation->id);
    xm_json_string(json, "object", object);
    xm_json_int(json, "created", generation->created);
    xm_json_string(json, "model", generation->model);
    xm_json_string(json, "system_fingerprint", generation->exchange->server->fingerprint);
}

static void write_text(const xm_choice *choice, const char *key, xm_json *json)
{
    xm_json_bytes(json, key, choice->text.data ? choice->text.data : "", choice->text.length);
}

/* Clients of llama-server's /infill look here for the text. */
static void write_content(const xm_generation *generation, const xm_choice *choice, xm_json *json)
{
    if (!generation->params.infill)
        return;
    write_text(choice, "content", json);
    xm_json_bool(json, "stop", choice->finish != XMOE_FINISH_NONE);
}

static void write_whole_choice(const xm_generation *generation, const xm_choice *choice,
                               size_t index, xm_json *json)
{
    xm_json_open(json, NULL, '{');
    xm_json_uint(json, "index", index);
    if (generation->params.chat) {
        xm_json_open(json, "message", '{');
        xm_json_string(json, "role", "assistant");
        if (choice->text.length == 0 && choice->reply.calls.count)
            xm_json_null(json, "content");
        else
            write_text(choice, "content", json);
        xm_json_null(json, "refusal");
        xm_answer_reply(choice, false, json);
        xm_json_close(json, '}');
    } else {
        write_text(choice, "text", json);
    }
    xm_answer_logprobs(generation, choice, json);
    xm_json_string(json, "finish_reason", xm_answer_finish_reason(choice));
    xm_answer_routed(generation, choice, json);
    xm_json_close(json, '}');
}

typedef struct {
    const xm_choice *choice;
    int32_t index;
    double mean_logprob;
} ranked_choice;

/* Best first; equally good ones in the order of their draws. */
static int compare_ranked(const void *a, const void *b)
{
    const ranked_choice *first = a, *second = b;
    if (first->mean_logprob != second->mean_logprob)
        return first->mean_logprob > second->mean_logprob ? -1 : 1;
    return first->index - second->index;
}

/* The n best by mean log-probability of best_of; all of them in order where best_of is n. */
static void write_choices_of(const xm_generation *generation, size_t prompt, xm_json *json)
{
    ranked_choice ranked[128];
    int32_t drawn = generation->params.engine.choices, n = generation->params.n;
    const xm_choice *choices = &generation->choices[prompt * (size_t)drawn];
    for (int32_t i = 0; i < drawn; i++) {
        double mean = choices[i].tokens ? choices[i].logprob_sum / (double)choices[i].tokens : 0;
        ranked[i] = (ranked_choice){&choices[i], i, mean};
    }
    if (drawn > n)
        qsort(ranked, (size_t)drawn, sizeof *ranked, compare_ranked);
    for (int32_t i = 0; i < n && i < drawn; i++)
        write_whole_choice(generation, ranked[i].choice, prompt * (size_t)n + (size_t)i, json);
}

void xm_answer_whole(xm_generation *generation, xm_json *json)
{
    open_frame(generation, false, json);
    xm_json_open(json, "choices", '[');
    for (size_t prompt = 0; prompt < generation->params.prompt_count; prompt++)
        write_choices_of(generation, prompt, json);
    xm_json_close(json, ']');
    write_content(generation, generation->choices, json);
    xm_answer_usage(generation, json);
    xm_answer_extras(generation, json);
    xm_json_close(json, '}');
}

static xm_json open_chunk(const xm_generation *generation, xm_text *out)
{
    xm_json json = {out, false};
    xm_text_puts(out, "data: ");
    open_frame(generation, true, &json);
    return json;
}

static void close_chunk(const xm_generation *generation, xm_json *json)
{
    if (generation->params.include_usage)
        xm_json_null(json, "usage");
    xm_json_close(json, '}');
    xm_text_puts(json->out, "\n\n");
}

static size_t index_of(const xm_generation *generation, const xm_choice *choice)
{
    return (size_t)(choice - generation->choices);
}

/* The first chunk of a chat choice says who speaks. */
static void announce(const xm_generation *generation, xm_choice *choice, xm_text *out)
{
    if (!generation->params.chat || choice->announced)
        return;
    choice->announced = true;
    xm_json json = open_chunk(generation, out);
    xm_json_open(&json, "choices", '[');
    xm_json_open(&json, NULL, '{');
    xm_json_uint(&json, "index", index_of(generation, choice));
    xm_json_open(&json, "delta", '{');
    xm_json_string(&json, "role", "assistant");
    xm_json_string(&json, "content", "");
    xm_json_close(&json, '}');
    xm_json_null(&json, "logprobs");
    xm_json_null(&json, "finish_reason");
    xm_json_close(&json, '}');
    xm_json_close(&json, ']');
    close_chunk(generation, &json);
}

static void write_choice_chunk(const xm_generation *generation, const xm_choice *choice,
                               xm_json *json)
{
    xm_json_open(json, "choices", '[');
    xm_json_open(json, NULL, '{');
    xm_json_uint(json, "index", index_of(generation, choice));
    if (generation->params.chat) {
        xm_json_open(json, "delta", '{');
        if (choice->text.length)
            write_text(choice, "content", json);
        xm_answer_reply(choice, true, json);
        xm_json_close(json, '}');
    } else {
        write_text(choice, "text", json);
    }
    if (choice->shown_count)
        xm_answer_logprobs(generation, choice, json);
    else
        xm_json_null(json, "logprobs");
    xm_json_string(json, "finish_reason", xm_answer_finish_reason(choice));
    xm_answer_routed(generation, choice, json);
    xm_json_close(json, '}');
    xm_json_close(json, ']');
    write_content(generation, choice, json);
}

static void stream_progress(const xm_generation *generation, const xmoe_event *event, xm_text *out)
{
    int64_t elapsed = xm_now_ns() - generation->exchange->began_ns;
    xm_json json = open_chunk(generation, out);
    xm_json_open(&json, "choices", '[');
    xm_json_close(&json, ']');
    xm_json_open(&json, "prompt_progress", '{');
    xm_json_int(&json, "total", event->prompt_total);
    xm_json_int(&json, "cache", event->prompt_cached);
    xm_json_int(&json, "processed", event->prompt_done);
    xm_json_int(&json, "time_ms", elapsed / 1000000);
    xm_json_close(&json, '}');
    close_chunk(generation, &json);
}

/* What the choice has to show since its last chunk; summary may be NULL. */
static void stream_choice(const xm_generation *generation, xm_choice *choice,
                          const xmoe_request_summary *summary, xm_text *out)
{
    if (!choice->text.length && !choice->shown_count && !choice->reply.thoughts.length &&
        choice->reply.calls_written == choice->reply.calls.count &&
        choice->finish == XMOE_FINISH_NONE && !generation->params.timings_per_token)
        return;
    announce(generation, choice, out);
    xm_json json = open_chunk(generation, out);
    write_choice_chunk(generation, choice, &json);
    if (generation->params.timings_per_token && summary)
        xm_answer_timings(summary, &json);
    close_chunk(generation, &json);
    xm_choice_clear(choice);
}

/* Choices that ended: all but the last of the whole request are written at once. */
static void stream_ended_choice(xm_generation *generation, xm_choice *choice, xm_text *out)
{
    if (generation->unfinished > 0) {
        stream_choice(generation, choice, NULL, out);
        return;
    }
    if (generation->held) /* several ended at once */
        stream_choice(generation, generation->held, NULL, out);
    generation->held = choice;
}

bool xm_answer_stream(xm_generation *generation, xm_event *event, xm_text *out)
{
    xmoe_event_kind kind = event->event.kind;
    int32_t choices = generation->params.engine.choices;
    int32_t prompt = event->prompt;
    xm_choice *of_prompt = &generation->choices[prompt * choices];
    xm_choice *choice = kind == XMOE_EVENT_TOKEN ? &of_prompt[event->event.choice] : NULL;
    bool has_summary = event->event.summary != NULL;
    xmoe_request_summary summary = has_summary ? *event->event.summary : (xmoe_request_summary){0};
    bool running[128];
    for (int32_t c = 0; c < choices; c++)
        running[c] = of_prompt[c].finish == XMOE_FINISH_NONE;
    if (kind == XMOE_EVENT_PROGRESS)
        stream_progress(generation, &event->event, out);

    if (!xm_generation_apply(generation, event))
        return false;
    if (choice)
        stream_choice(generation, choice, has_summary ? &summary : NULL, out);
    for (int32_t c = 0; c < choices; c++)
        if (running[c] && of_prompt[c].finish != XMOE_FINISH_NONE)
            stream_ended_choice(generation, &of_prompt[c], out);
    return true;
}

void xm_answer_stream_end(xm_generation *generation, xm_text *out)
{
    if (generation->held) {
        announce(generation, generation->held, out);
        xm_json json = open_chunk(generation, out);
        write_choice_chunk(generation, generation->held, &json);
        xm_answer_extras(generation, &json);
        close_chunk(generation, &json);
    }
    if (generation->params.include_usage) {
        xm_json json = open_chunk(generation, out);
        xm_json_open(&json, "choices", '[');
        xm_json_close(&json, ']');
        xm_answer_usage(generation, &json);
        xm_json_close(&json, '}');
        xm_text_puts(out, "\n\n");
    }
    xm_text_puts(out, "data: [DONE]\n\n");
}
