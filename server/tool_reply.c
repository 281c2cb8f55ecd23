/*
 * tool_reply.c - see tool_reply.h.
 *
 * Two ways of reading: markers within text (<think>, the form's open and close), and gpt-oss'
 * messages, each with a header that says where it goes:
 *
 *     <|channel|>analysis<|message|>a thought<|end|>
 *     <|start|>assistant<|channel|>commentary to=functions.name
 * <|constrain|>json<|message|>{...}<|call|>
 *     <|start|>assistant<|channel|>final<|message|>text
 */
#include "tool_reply.h"

#include <stdlib.h>
#include <string.h>

static const char think[] = "<think>", think_end[] = "</think>";

static void drop(xm_text *text, size_t length)
{
    if (length == 0 || !text->data)
        return;
    text->length -= length;
    memmove(text->data, text->data + length, text->length + 1);
}

static void move(xm_text *from, size_t length, xm_text *to)
{
    if (length == 0)
        return;
    xm_text_add(to, from->data, length);
    drop(from, length);
}

/* Length of the longest end of the text that begins a marker, but is not all of it. */
static size_t held_back(const xm_text *text, const char *const *markers, size_t count)
{
    size_t longest = 0;
    if (!text->data)
        return 0;
    for (size_t i = 0; i < count; i++) {
        size_t most = strlen(markers[i]) - 1;
        most = most < text->length ? most : text->length;
        for (size_t length = most; length > longest; length--)
            if (memcmp(text->data + text->length - length, markers[i], length) == 0) {
                longest = length;
                break;
            }
    }
    return longest;
}

/* Finds the first of the markers: its position, and which; else how much is safe, and count. */
static size_t find_marker(const xm_text *text, const char *const *markers, size_t count,
                          size_t *which)
{
    const char *first = NULL;
    *which = count;
    for (size_t i = 0; i < count; i++) {
        const char *found = text->data ? strstr(text->data, markers[i]) : NULL;
        if (found && (!first || found < first)) {
            first = found;
            *which = i;
        }
    }
    return first ? (size_t)(first - text->data) : text->length - held_back(text, markers, count);
}

static void take_thought(xm_reply *reply, size_t length)
{
    size_t skip = 0;
    while (reply->thoughts.length == 0 && !reply->started && skip < length &&
           strchr(" \n", reply->pending.data[skip]))
        skip++;
    drop(&reply->pending, skip);
    if (length > skip)
        reply->started = true;
    move(&reply->pending, length - skip, &reply->thoughts);
}

/* Whether what is pending may still begin with <think>, blanks before it left out. */
static bool may_think(const xm_text *pending)
{
    if (pending->data == NULL)
        return true;
    size_t blanks = strspn(pending->data, " \n"), left = pending->length - blanks;
    return memcmp(pending->data + blanks, think,
                  left < sizeof think - 1 ? left : sizeof think - 1) == 0;
}

/* Each step returns whether there is more to understand now. */
static bool step_text(xm_reply *reply, const xm_reply_style *style, xm_text *content)
{
    const char *markers[2];
    size_t count = 0, which = 0;
    bool calls = style->tools != NULL;
    if (reply->skip_blanks) {
        drop(&reply->pending, strspn(reply->pending.data, " \n"));
        if (reply->pending.length == 0)
            return false;
        reply->skip_blanks = false;
    }
    if (calls && style->form->style == XM_TOOL_BARE && !reply->started) {
        const char *pending = reply->pending.data ? reply->pending.data : "";
        size_t blanks = strspn(pending, " \n");
        if (blanks == reply->pending.length)
            return false;
        if (pending[blanks] == '{') {
            reply->state = XM_REPLY_CALL;
            reply->bare = true;
            return true;
        }
    }
    if (calls)
        markers[count++] = style->form->open;
    if (style->thinks && !reply->started && may_think(&reply->pending))
        markers[count++] = think;
    size_t at = find_marker(&reply->pending, markers, count, &which);
    if (reply->pending.data && strspn(reply->pending.data, " \n") < at)
        reply->started = true; /* thoughts come before text */
    move(&reply->pending, at, content);
    if (which == count)
        return false;
    drop(&reply->pending, strlen(markers[which]));
    reply->state = markers[which] == think ? XM_REPLY_THOUGHT : XM_REPLY_CALL;
    reply->started = reply->state == XM_REPLY_CALL;
    reply->bare = false;
    return true;
}

static bool step_thought(xm_reply *reply)
{
    const char *const markers[] = {think_end};
    size_t which = 0, at = find_marker(&reply->pending, markers, 1, &which);
    take_thought(reply, at);
    if (which == 1)
        return false;
    drop(&reply->pending, strlen(think_end));
    reply->skip_blanks = true;
    reply->state = XM_REPLY_TEXT;
    reply->started = false; /* a call may follow at once */
    return true;
}

/* The call whose text ends at `length`; what is none becomes text. */
static void end_call(xm_reply *reply, const xm_reply_style *style, size_t length, bool closed,
                     xm_text *content)
{
    const xm_tool_form *form = style->form;
    char *body = reply->pending.data ? strndup(reply->pending.data, length) : strdup("");
    size_t before = reply->calls.count;
    bool good = body && form->parse && form->parse(form, style->tools, body, &reply->calls);
    if (!good) {
        while (reply->calls.count > before) { /* of a list that was wrong further on */
            xm_tool_call *last = &reply->calls.items[--reply->calls.count];
            free(last->name);
            free(last->arguments);
        }
        if (!reply->bare)
            xm_text_puts(content, form->open);
        xm_text_puts(content, body ? body : "");
        if (closed)
            xm_text_puts(content, form->close);
    }
    free(body);
    drop(&reply->pending, length + (closed ? strlen(form->close) : 0));
    reply->skip_blanks = good;
    reply->state = XM_REPLY_TEXT;
    reply->started = true;
}

static bool step_call(xm_reply *reply, const xm_reply_style *style, xm_text *content)
{
    const char *close = style->form->close;
    const char *found = close && reply->pending.data ? strstr(reply->pending.data, close) : NULL;
    if (!found)
        return false;
    end_call(reply, style, (size_t)(found - reply->pending.data), true, content);
    return true;
}

/* --- gpt-oss' messages --------------------------------------------------------------------------
 */

static bool step_header(xm_reply *reply, xm_text *content)
{
    static const char end[] = "<|message|>", to[] = "to=functions.";
    (void)content;
    char *found = reply->pending.data ? strstr(reply->pending.data, end) : NULL;
    if (!found)
        return false;
    *found = '\0';
    const char *header = reply->pending.data;
    const char *recipient = strstr(header, to);
    free(reply->recipient);
    reply->recipient = NULL;
    if (recipient) {
        recipient += strlen(to);
        reply->recipient = strndup(recipient, strcspn(recipient, " <"));
        reply->state = XM_REPLY_CALL;
    } else {
        reply->state = strstr(header, "analysis") ? XM_REPLY_THOUGHT : XM_REPLY_TEXT;
    }
    drop(&reply->pending, (size_t)(found - reply->pending.data) + strlen(end));
    return true;
}

static void end_channel_call(xm_reply *reply, const xm_reply_style *style, size_t length)
{
    char *arguments = reply->pending.data ? strndup(reply->pending.data, length) : strdup("");
    if (arguments && reply->recipient)
        xm_tool_calls_add(style->form, &reply->calls, reply->recipient, arguments);
    free(arguments);
    drop(&reply->pending, length);
}

static bool step_message(xm_reply *reply, const xm_reply_style *style, xm_text *content)
{
    static const char *const ends[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>"};
    size_t which = 0, at = find_marker(&reply->pending, ends, 4, &which);
    if (reply->state == XM_REPLY_TEXT)
        move(&reply->pending, at, content);
    else if (reply->state == XM_REPLY_THOUGHT)
        take_thought(reply, at);
    else if (which < 4)
        end_channel_call(reply, style, at);
    if (which == 4)
        return false;
    drop(&reply->pending, strlen(ends[which]));
    reply->state = XM_REPLY_HEADER;
    return true;
}

static bool step(xm_reply *reply, const xm_reply_style *style, xm_text *content)
{
    if (style->form->style == XM_TOOL_CHANNELS)
        return reply->state == XM_REPLY_HEADER ? step_header(reply, content)
                                               : step_message(reply, style, content);
    switch (reply->state) {
    case XM_REPLY_TEXT:
        return step_text(reply, style, content);
    case XM_REPLY_THOUGHT:
        return step_thought(reply);
    default:
        return step_call(reply, style, content);
    }
}

static void begin(xm_reply *reply, const xm_reply_style *style)
{
    if (style->form->style == XM_TOOL_CHANNELS)
        reply->state = XM_REPLY_HEADER;
    else if (style->begins_thinking)
        reply->state = XM_REPLY_THOUGHT;
}

void xm_reply_feed(xm_reply *reply, const xm_reply_style *style, const char *text, size_t length,
                   xm_text *content)
{
    if (length == 0)
        return;
    if (!reply->pending.data)
        begin(reply, style);
    xm_text_add(&reply->pending, text, length);
    if (reply->pending.failed)
        content->failed = true;
    while (!content->failed && reply->pending.length && step(reply, style, content))
        ;
}

void xm_reply_finish(xm_reply *reply, const xm_reply_style *style, xm_text *content)
{
    bool channels = style->form->style == XM_TOOL_CHANNELS;
    if (reply->pending.length == 0 && reply->state != XM_REPLY_CALL)
        return;
    if (reply->state == XM_REPLY_CALL && channels)
        end_channel_call(reply, style, reply->pending.length);
    else if (reply->state == XM_REPLY_CALL)
        end_call(reply, style, reply->pending.length, false, content);
    else if (reply->state == XM_REPLY_THOUGHT)
        take_thought(reply, reply->pending.length);
    else if (reply->state == XM_REPLY_HEADER && strncmp(reply->pending.data, "<|", 2) == 0)
        drop(&reply->pending, reply->pending.length); /* a header that was cut is no text */
    move(&reply->pending, reply->pending.length, content);
    reply->state = XM_REPLY_TEXT;
}

void xm_reply_free(xm_reply *reply)
{
    xm_text_free(&reply->pending);
    xm_text_free(&reply->thoughts);
    xm_tool_calls_free(&reply->calls);
    free(reply->recipient);
}
