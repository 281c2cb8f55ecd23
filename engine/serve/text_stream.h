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

enum { XM_MAX_STOPS = 16 };

/* A stop string with its failure table (Knuth, Morris, Pratt 1977), so that long and repetitive
 * ones cost no more than others: failure[i] is the length of the longest proper beginning of text
 * that text[0..i] ends with. */
typedef struct {
    char *text;
    size_t length;
    size_t *failure;
} xm_stop;

typedef struct {
    xm_stop stops[XM_MAX_STOPS];
    size_t count;
} xm_stop_set; /* start with {0} */

/* Copies count NUL-terminated, not empty strings; false for lack of memory. The owner calls
 * xm_stop_set_free in either case. */
bool xm_stop_set_init(xm_stop_set *set, const char *const *strings, size_t count);
void xm_stop_set_free(xm_stop_set *set);

typedef struct {
    xm_utf8_stream utf8;
    xm_buffer text;               /* not yet given out */
    size_t released;              /* bytes of text that may be given out now */
    size_t matched[XM_MAX_STOPS]; /* of each stop string, how much the text ends with */
    bool stopped;                 /* a stop string was found: text ends before it */
} xm_text_stream;                 /* start with {0} */

/* Takes the bytes of one token. True when a stop string is complete: the first that is, and of
 * several the longest, as if the text were looked at after every byte. text.failed tells of lack of
 * memory. */
bool xm_text_stream_push(xm_text_stream *stream, const char *bytes, size_t length,
                         const xm_stop_set *stops);
/* No more bytes will come: releases all that is held back. */
void xm_text_stream_finish(xm_text_stream *stream);
/* Forgets what was released, after it was given out. */
void xm_text_stream_consume(xm_text_stream *stream);
void xm_text_stream_free(xm_text_stream *stream);

#endif
