/*
 * answer_logprobs.c - log-probabilities in OpenAI's two shapes.
 *
 * Completions name a token by its text; one that is not well-formed UTF-8 is written as
 * "bytes:\xe2\x80", as theirs is, so that names stay distinct. Chat gives the text with U+FFFD for
 * what is no character, and the exact bytes beside it.
 */
#include <math.h>

#include "answer.h"
#include "server.h"

/* Clients want a number: minus infinity is given as this one. */
#define LOWEST_LOGPROB (-9999.0f)

static float clamped(float logprob)
{
    return logprob >= LOWEST_LOGPROB ? logprob : LOWEST_LOGPROB;
}

/* The token's text as completions write it. */
static void token_name(const xm_generation *generation, int32_t token, xm_text *name)
{
    size_t length = 0;
    const char *bytes = xmoe_token_bytes(generation->exchange->server->model, token, &length);
    xm_text_clear(name);
    if (xm_text_is_utf8(bytes, length)) {
        xm_text_add(name, bytes, length);
        return;
    }
    xm_text_puts(name, "bytes:");
    for (size_t i = 0; i < length; i++)
        xm_text_format(name, "\\x%02x", (unsigned char)bytes[i]);
}

/* "token": logprob */
static void write_named(const xm_generation *generation, int32_t token, float logprob,
                        xm_text *name, xm_json *json)
{
    token_name(generation, token, name);
    xm_json_name(json, name->data ? name->data : "", name->length);
    xm_json_float(json, NULL, clamped(logprob));
}

static void write_name(const xm_generation *generation, int32_t token, xm_text *name, xm_json *json)
{
    token_name(generation, token, name);
    xm_json_bytes(json, NULL, name->data ? name->data : "", name->length);
}

/* {" the": -0.5, ...}: the most probable tokens, and the chosen one where it is not among them. */
static void write_top(const xm_generation *generation, const xm_choice *choice,
                      const xm_shown_token *shown, xm_text *name, xm_json *json)
{
    if (shown->top_count == 0) {
        xm_json_null(json, NULL);
        return;
    }
    bool listed = false;
    xm_json_open(json, NULL, '{');
    for (int32_t i = 0; i < shown->top_count; i++) {
        const xmoe_token_logprob *top = &choice->tops[shown->top + (size_t)i];
        write_named(generation, top->token, top->logprob, name, json);
        listed = listed || top->token == shown->token;
    }
    if (!listed)
        write_named(generation, shown->token, shown->logprob, name, json);
    xm_json_close(json, '}');
}

static void write_completion(const xm_generation *generation, const xm_choice *choice,
                             xm_json *json)
{
    xm_text name = {0};
    const xm_shown_token *shown = choice->shown;
    size_t count = choice->shown_count;
    xm_json_open(json, "logprobs", '{');
    xm_json_open(json, "tokens", '[');
    for (size_t i = 0; i < count; i++)
        write_name(generation, shown[i].token, &name, json);
    xm_json_close(json, ']');
    xm_json_open(json, "token_logprobs", '[');
    for (size_t i = 0; i < count; i++)
        if (isnan(shown[i].logprob))
            xm_json_null(json, NULL);
        else
            xm_json_float(json, NULL, clamped(shown[i].logprob));
    xm_json_close(json, ']');
    if (generation->params.engine.top_logprobs == 0) {
        xm_json_null(json, "top_logprobs");
    } else {
        xm_json_open(json, "top_logprobs", '[');
        for (size_t i = 0; i < count; i++)
            write_top(generation, choice, &shown[i], &name, json);
        xm_json_close(json, ']');
    }
    xm_json_open(json, "text_offset", '[');
    for (size_t i = 0; i < count; i++)
        xm_json_uint(json, NULL, shown[i].offset);
    xm_json_close(json, ']');
    xm_json_close(json, '}');
    xm_text_free(&name);
}

/* "token", "logprob", "bytes" into an open object. */
static void write_members(const xm_generation *generation, int32_t token, float logprob,
                          xm_json *json)
{
    size_t length = 0;
    const char *bytes = xmoe_token_bytes(generation->exchange->server->model, token, &length);
    xm_json_bytes(json, "token", bytes, length);
    xm_json_float(json, "logprob", clamped(logprob));
    xm_json_open(json, "bytes", '[');
    for (size_t i = 0; i < length; i++)
        xm_json_int(json, NULL, (unsigned char)bytes[i]);
    xm_json_close(json, ']');
}

static void write_chat(const xm_generation *generation, const xm_choice *choice, xm_json *json)
{
    xm_json_open(json, "logprobs", '{');
    xm_json_open(json, "content", '[');
    for (size_t i = 0; i < choice->shown_count; i++) {
        const xm_shown_token *shown = &choice->shown[i];
        xm_json_open(json, NULL, '{');
        write_members(generation, shown->token, shown->logprob, json);
        xm_json_open(json, "top_logprobs", '[');
        for (int32_t t = 0; t < shown->top_count; t++) {
            const xmoe_token_logprob *top = &choice->tops[shown->top + (size_t)t];
            xm_json_open(json, NULL, '{');
            write_members(generation, top->token, top->logprob, json);
            xm_json_close(json, '}');
        }
        xm_json_close(json, ']');
        xm_json_close(json, '}');
    }
    xm_json_close(json, ']');
    xm_json_null(json, "refusal");
    xm_json_close(json, '}');
}

void xm_answer_logprobs(const xm_generation *generation, const xm_choice *choice, xm_json *json)
{
    if (!generation->params.logprobs)
        xm_json_null(json, "logprobs");
    else if (generation->params.chat)
        write_chat(generation, choice, json);
    else
        write_completion(generation, choice, json);
}
