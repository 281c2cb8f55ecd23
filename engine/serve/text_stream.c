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

/* Looks from `released` on for a stop string, and for the first place where one may come to stand.
 * The one that is complete first wins, of several the longest: what a look after every byte would
 * find. */
static void scan(xm_text_stream *stream, const char *const *stops, size_t stop_count)
{
    xm_buffer *text = &stream->text;
    size_t hold = text->length, cut = 0, end = SIZE_MAX;
    for (size_t at = stream->released; at < text->length && at < end; at++)
        for (size_t i = 0; i < stop_count && !inside_character(text, at); i++) {
            size_t n = agreement(text, at, stops[i]);
            if (stops[i][n] == '\0' && at + n < end) {
                cut = at;
                end = at + n;
            } else if (stops[i][n] != '\0' && at + n == text->length && at < hold) {
                hold = at;
            }
        }
    stream->stopped = end != SIZE_MAX;
    if (stream->stopped) {
        text->length = hold = cut;
        text->data[cut] = '\0';
    }
    stream->released = hold;
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
