/*
 * choice.c - what events mean for the choices of a generation. HTTP threads only.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "generation.h"
#include "metrics.h"
#include "server.h"

static bool no_memory(xm_generation *generation)
{
    return xm_problem_set(&generation->problem, 503, "out_of_memory", NULL, "out of memory");
}

/* Whether the text that is generated shows a token. */
static bool is_shown(const xm_generation *generation, int32_t token)
{
    const xmoe_model *model = generation->exchange->server->model;
    return !xmoe_token_is_end(model, token) &&
           (generation->params.engine.special_text || !xmoe_token_is_special(model, token));
}

/* Characters that a token begins, with U+FFFD counted where its bytes do not become any. */
static size_t count_characters(const xm_generation *generation, int32_t token, xm_utf8_place *place)
{
    size_t length = 0, count = 0;
    const char *bytes = xmoe_token_bytes(generation->exchange->server->model, token, &length);
    for (size_t i = 0; i < length; i++)
        count += xm_utf8_begins(place, (unsigned char)bytes[i]);
    return count;
}

/* The same for a token of the prompt. What the model wants before a text has no part in it: a start
 * token, and a space. */
static size_t count_prompt_characters(const xm_generation *generation, const xm_prompt *prompt,
                                      size_t index, xm_utf8_place *place)
{
    const xmoe_model_info *info = xmoe_model_get_info(generation->exchange->server->model);
    bool text = prompt->text.length > 0;
    size_t first = text && info->add_bos && prompt->tokens[0] == info->bos_token ? 1 : 0;
    if (index < first)
        return 0;
    size_t count = count_characters(generation, prompt->tokens[index], place);
    return text && info->add_space && index == first && count > 0 ? count - 1 : count;
}

/* Room for one more item of size bytes; *items moves. */
static bool grow(void **items, size_t size, size_t count, size_t *capacity)
{
    if (count <= *capacity)
        return true;
    size_t wanted = count > *capacity * 2 ? count : *capacity * 2;
    void *moved = realloc(*items, wanted * size);
    if (!moved)
        return false;
    *items = moved;
    *capacity = wanted;
    return true;
}

static bool show_token(xm_choice *choice, size_t offset, int32_t token, float logprob,
                       const xmoe_token_logprob *top, int32_t top_count)
{
    size_t tops = (size_t)top_count;
    void *shown = choice->shown, *stored = choice->tops;
    bool good =
        grow(&shown, sizeof *choice->shown, choice->shown_count + 1, &choice->shown_capacity);
    choice->shown = shown;
    good = good &&
           grow(&stored, sizeof *choice->tops, choice->top_count + tops, &choice->top_capacity);
    choice->tops = stored;
    if (!good)
        return false;
    if (tops)
        memcpy(choice->tops + choice->top_count, top, tops * sizeof *top);
    choice->shown[choice->shown_count++] =
        (xm_shown_token){token, logprob, offset, choice->top_count, top_count};
    choice->top_count += tops;
    return true;
}

/* The prompt comes first in an echoed answer. */
static void begin_choice(xm_generation *generation, int32_t prompt, xm_choice *choice)
{
    if (choice->begun || generation->params.chat)
        return;
    choice->begun = true;
    const xm_prompt *source = &generation->params.prompts[prompt];
    if (!generation->params.echo)
        return;
    if (source->text.length)
        xm_text_add(&choice->text, source->text.data, source->text.length);
    xm_utf8_place place = {0};
    for (size_t i = 0; i < source->count && !source->empty; i++)
        choice->characters += count_prompt_characters(generation, source, i, &place);
}

/* What the reply has become, without the blanks at its beginning. */
static void add_content(xm_choice *choice, const xm_text *content)
{
    const char *text = content->data;
    size_t length = content->length;
    if (!choice->begun) {
        for (; length && (*text == ' ' || *text == '\n'); text++, length--)
            ;
        choice->begun = length > 0;
    }
    if (length)
        xm_text_add(&choice->text, text, length);
    choice->text.failed = choice->text.failed || content->failed;
}

static void add_text(const xm_generation *generation, xm_choice *choice, const xmoe_event *event)
{
    const xm_generate_params *params = &generation->params;
    size_t length = event->text ? event->text_length : 0;
    if (!params->chat) {
        if (length)
            xm_text_add(&choice->text, event->text, length);
        return;
    }
    xm_text content = {0};
    xm_reply_feed(&choice->reply, &params->reply, event->text, length, &content);
    add_content(choice, &content);
    xm_text_free(&content);
}

static bool apply_prompt(xm_generation *generation, int32_t index, const xmoe_event *event)
{
    const xm_prompt *prompt = &generation->params.prompts[index];
    xm_choice *choices = &generation->choices[index * generation->params.engine.choices];
    for (int32_t c = 0; c < generation->params.engine.choices; c++) {
        xm_utf8_place place = {0};
        size_t offset = 0;
        for (size_t i = 0; i < prompt->count; i++) {
            const xmoe_token_logprob *top =
                event->prompt_top ? event->prompt_top + i * (size_t)event->top_count : NULL;
            int32_t top_count = i && top ? event->top_count : 0;
            float logprob = i && event->prompt_logprobs ? event->prompt_logprobs[i] : NAN;
            if (!show_token(&choices[c], offset, prompt->tokens[i], logprob, top, top_count))
                return no_memory(generation);
            offset += count_prompt_characters(generation, prompt, i, &place);
        }
    }
    return true;
}

static bool apply_token(xm_generation *generation, xm_choice *choice, const xmoe_event *event)
{
    choice->tokens++;
    choice->logprob_sum += event->logprob;
    add_text(generation, choice, event);
    if (!generation->params.logprobs)
        return true;
    if (!show_token(choice, choice->characters, event->token, event->logprob, event->top,
                    event->top ? event->top_count : 0))
        return no_memory(generation);
    if (is_shown(generation, event->token))
        choice->characters += count_characters(generation, event->token, &choice->place);
    return true;
}

static void end_choice(xm_generation *generation, xm_choice *choice, xmoe_finish finish)
{
    if (choice->finish != XMOE_FINISH_NONE)
        return;
    choice->finish = finish == XMOE_FINISH_NONE ? XMOE_FINISH_LENGTH : finish;
    if (generation->params.chat) {
        xm_text content = {0};
        xm_reply_finish(&choice->reply, &generation->params.reply, &content);
        add_content(choice, &content);
        xm_text_free(&content);
    }
    generation->unfinished--;
}

/* For /metrics: a part that came to its end. */
static void note_request(const xm_generation *generation, const xmoe_event *end,
                         const xm_choice *choices)
{
    const xm_generate_params *params = &generation->params;
    const xmoe_request_summary *summary = end->summary;
    uint64_t longest = 0;
    for (int32_t c = 0; c < params->engine.choices; c++)
        longest = choices[c].tokens > longest ? choices[c].tokens : longest;
    xm_metrics_note_request(generation->exchange->server, params->n, params->engine.max_tokens,
                            longest,
                            summary ? summary->prompt_seconds + summary->decode_seconds : 0);
}

static bool apply_end(xm_generation *generation, xm_event *copy)
{
    const xmoe_event *event = &copy->event;
    xm_part *part = &generation->parts[copy->prompt];
    part->end = copy;
    generation->ended++;
    if (event->finish == XMOE_FINISH_ERROR) {
        xmoe_error unknown = {.status = XMOE_ERROR_INTERNAL, .message = "the generation failed"};
        return xm_problem_engine(&generation->problem, event->error ? event->error : &unknown,
                                 NULL);
    }
    if (event->finish == XMOE_FINISH_CANCELLED)
        return xm_problem_set(&generation->problem, 503, "cancelled", NULL,
                              "the request was cancelled: the server is shutting down");
    if (generation->params.embedding != XM_EMBEDDING_NONE && !event->embedding)
        return xm_problem_set(&generation->problem, 503, "deadline_exceeded", NULL,
                              "the request ran out of its time");
    int32_t count = generation->params.engine.choices;
    xm_choice *choices = &generation->choices[copy->prompt * count];
    for (int32_t c = 0; c < count; c++) {
        begin_choice(generation, copy->prompt, &choices[c]);
        end_choice(generation, &choices[c], event->finish);
    }
    note_request(generation, event, choices);
    return true;
}

bool xm_generation_apply(xm_generation *generation, xm_event *copy)
{
    const xmoe_event *event = &copy->event;
    if (event->kind == XMOE_EVENT_END)
        return apply_end(generation, copy); /* keeps the copy */
    bool good = true;
    if (event->kind == XMOE_EVENT_PROMPT) {
        good = apply_prompt(generation, copy->prompt, event);
    } else if (event->kind == XMOE_EVENT_TOKEN || event->kind == XMOE_EVENT_CHOICE) {
        xm_choice *choice =
            &generation->choices[copy->prompt * generation->params.engine.choices + event->choice];
        begin_choice(generation, copy->prompt, choice);
        if (event->kind == XMOE_EVENT_TOKEN) {
            good = apply_token(generation, choice, event);
        } else {
            add_text(generation, choice, event);
            end_choice(generation, choice, event->finish);
            if (event->routed) {
                choice->routed = copy;
                return true;
            }
        }
    }
    free(copy);
    return good;
}

void xm_choice_clear(xm_choice *choice)
{
    xm_text_clear(&choice->text);
    xm_text_clear(&choice->reply.thoughts);
    choice->reply.calls_written = choice->reply.calls.count;
    choice->shown_count = choice->top_count = 0;
}

void xm_choice_free(xm_choice *choice)
{
    xm_text_free(&choice->text);
    xm_reply_free(&choice->reply);
    free(choice->shown);
    free(choice->tops);
    free(choice->routed);
}
