/*
 * text_stream.h - token bytes in, text that may be shown out: whole UTF-8 characters, cut at the
 * first stop string, never a piece of one.
 *
 * Bytes pass through xm_utf8_stream into `text`. Of that, [0, released) may be given out; the rest
 * is held back because it begins like a stop string. A match is found wherever token boundaries
 * fall.
 */
#ifndef XM_SERVE_TEXT_STREAM_H
#define XM_SERVE_TEXT_STREAM_H

#include "base/buffer.h"
#include "format/tokenizer.h"

typedef struct {
    xm_utf8_stream utf8;
    xm_buffer text;  /* not yet given out */
    size_t released; /* bytes of text that may be given out now */
    bool stopped;    /* a stop string was found: text ends before it */
} xm_text_stream;    /* start with {0} */

/* Takes the bytes of one token. True when a stop string is complete. text.failed tells of lack of
 * memory. */
bool xm_text_stream_push(xm_text_stream *stream, const char *bytes, size_t length,
                         const char *const *stops, size_t stop_count);
/* No more bytes will come: releases all that is held back (unless it was cut by a stop). */
void xm_text_stream_finish(xm_text_stream *stream);
/* Forgets what was released, after it was given out. */
void xm_text_stream_consume(xm_text_stream *stream);
void xm_text_stream_free(xm_text_stream *stream);

#endif
