/*
 * text.h - a growable byte string, in which the server builds its answers.
 *
 * Once an append has failed for lack of memory, the text stays failed and further appends do
 * nothing, so that a run of appends needs one check at its end. Not thread-safe.
 */
#ifndef XM_SERVER_TEXT_H
#define XM_SERVER_TEXT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    char *data; /* length bytes and a NUL; NULL while empty */
    size_t length;
    size_t capacity;
    bool failed;
} xm_text; /* start with {0}; the owner calls xm_text_free */

void xm_text_add(xm_text *text, const char *bytes, size_t length);
void xm_text_puts(xm_text *text, const char *string);
void xm_text_format(xm_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Makes room for length more bytes; false when there is none. */
bool xm_text_reserve(xm_text *text, size_t length);
/* Empties the text and keeps its memory. */
void xm_text_clear(xm_text *text);
void xm_text_free(xm_text *text);

/* Length of the well-formed UTF-8 character at text (1-4), or 0 if there is none: overlong forms,
 * surrogates and values above U+10FFFF are not well-formed. */
size_t xm_text_character(const char *text, size_t length);
bool xm_text_is_utf8(const char *text, size_t length);
/* Appends bytes, each byte that belongs to no well-formed character replaced by U+FFFD. */
void xm_text_add_utf8(xm_text *text, const char *bytes, size_t length);

#endif
