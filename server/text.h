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
/* Length of what stands at text, where there is no character, and becomes one U+FFFD: as much of a
 * character as is there (Unicode standard, section 3.9), or one byte. */
size_t xm_text_broken(const char *text, size_t length);
/* Appends bytes, with U+FFFD for what is no well-formed character. */
void xm_text_add_utf8(xm_text *text, const char *bytes, size_t length);

/* Where a walk over bytes stands within a character; all zero at the start. */
typedef struct {
    unsigned char low, high; /* range of the byte that may come next */
    int missing;             /* bytes of the character still to come */
} xm_utf8_place;

/* Whether byte begins a new character, or a new stretch of bytes that is none and becomes one
 * U+FFFD; else it continues what came before. */
bool xm_utf8_begins(xm_utf8_place *place, unsigned char byte);

#endif
