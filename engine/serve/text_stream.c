/* text_stream.c - see text_stream.h. */
#include "serve/text_stream.h"

#include "base/memory.h"

#include <string.h>

/* Length of the longest beginning of the stop string that a text ends with, when it ended with the
 * first `matched` bytes before `byte` came. */
static size_t advance(const xm_stop *stop, size_t matched, char byte)
{
    while (matched > 0 && (matched == stop->length || stop->text[matched] != byte))
        matched = stop->failure[matched - 1];
    return stop->text[matched] == byte ? matched + 1 : 0;
}

bool xm_stop_set_init(xm_stop_set *set, const char *const *strings, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        xm_stop *stop = &set->stops[set->count++];
        stop->length = strlen(strings[i]);
        stop->text = xm_strdup(strings[i]);
        stop->failure = xm_calloc(stop->length, sizeof *stop->failure);
        if (stop->text == NULL || stop->failure == NULL)
            return false;
        for (size_t at = 1; at < stop->length; at++)
            stop->failure[at] = advance(stop, stop->failure[at - 1], stop->text[at]);
    }
    return true;
}

void xm_stop_set_free(xm_stop_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        xm_free(set->stops[i].text);
        xm_free(set->stops[i].failure);
    }
    *set = (xm_stop_set){0};
}

static bool inside_character(const xm_buffer *text, size_t at)
{
    return at < text->length && ((unsigned char)text->data[at] & 0xC0) == 0x80;
}

/* Looks at the byte of text at `at`; returns the length of the longest stop string that it
 * completes, or 0. A stop string that is no UTF-8 does not match from inside a character. */
static size_t look(xm_text_stream *stream, size_t at, const xm_stop_set *stops)
{
    size_t longest = 0;
    for (size_t i = 0; i < stops->count; i++) {
        const xm_stop *stop = &stops->stops[i];
        size_t n = advance(stop, stream->matched[i], stream->text.data[at]);
        stream->matched[i] = n;
        if (n == stop->length && n > longest && !inside_character(&stream->text, at + 1 - n))
            longest = n;
    }
    return longest;
}

static void cut(xm_text_stream *stream, size_t length)
{
    stream->stopped = true;
    stream->text.length = stream->released = length;
    stream->text.data[length] = '\0';
}

bool xm_text_stream_push(xm_text_stream *stream, const char *bytes, size_t length,
                         const xm_stop_set *stops)
{
    xm_buffer *text = &stream->text;
    if (stream->stopped)
        return true;
    size_t hold = 0;
    size_t at = text->length;
    xm_utf8_stream_push(&stream->utf8, bytes, length, text);
    for (; at < text->length; at++) {
        size_t found = look(stream, at, stops);
        if (found > 0) {
            cut(stream, at + 1 - found);
            return true;
        }
    }
    for (size_t i = 0; i < stops->count; i++)
        hold = stream->matched[i] > hold ? stream->matched[i] : hold;
    stream->released = text->length - hold;
    while (inside_character(text, stream->released))
        stream->released--;
    return false;
}

void xm_text_stream_finish(xm_text_stream *stream)
{
    if (!stream->stopped)
        xm_utf8_stream_end(&stream->utf8, &stream->text);
    stream->released = stream->text.length;
}

void xm_text_stream_consume(xm_text_stream *stream)
{
    if (stream->released > 0)
        xm_buffer_consume(&stream->text, stream->released);
    stream->released = 0;
}

void xm_text_stream_free(xm_text_stream *stream)
{
    xm_buffer_free(&stream->text);
}
