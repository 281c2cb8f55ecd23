/* text_stream.c - see text_stream.h. */
#include "serve/text_stream.h"

#include <string.h>

/* Bytes by which text[at..] and the stop string agree, from their beginnings on. */
static size_t agreement(const xm_buffer *text, size_t at, const char *stop)
{
    size_t n = 0;
    while (at + n < text->length && stop[n] != '\0' && text->data[at + n] == stop[n])
        n++;
    return n;
}

static bool inside_character(const xm_buffer *text, size_t at)
{
    return ((unsigned char)text->data[at] & 0xC0) == 0x80;
}

/* Looks from `released` on for the first place where a stop string stands or may come to stand. */
static void scan(xm_text_stream *stream, const char *const *stops, size_t stop_count)
{
    xm_buffer *text = &stream->text;
    for (size_t at = stream->released; at < text->length; at++) {
        bool may_become = false;
        for (size_t i = 0; i < stop_count && !inside_character(text, at); i++) {
            size_t n = agreement(text, at, stops[i]);
            if (stops[i][n] == '\0') {
                stream->stopped = true;
                text->length = at;
                text->data[at] = '\0';
                stream->released = at;
                return;
            }
            may_become |= at + n == text->length;
        }
        if (may_become) {
            stream->released = at;
            return;
        }
    }
    stream->released = text->length;
}

bool xm_text_stream_push(xm_text_stream *stream, const char *bytes, size_t length,
                         const char *const *stops, size_t stop_count)
{
    if (stream->stopped)
        return true;
    xm_utf8_stream_push(&stream->utf8, bytes, length, &stream->text);
    scan(stream, stops, stop_count);
    return stream->stopped;
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
