/*
 * utf8.h - single characters of UTF-8 as the Unicode standard defines it (table 3-7: no overlong
 * forms, no surrogates, nothing above U+10FFFF). The stream that makes whole characters of token
 * bytes is declared in tokenizer.h. Pure functions.
 */
#ifndef XM_FORMAT_UTF8_H
#define XM_FORMAT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed character that bytes start with, 0 if they start with none. */
size_t xm_utf8_length(const unsigned char *bytes, size_t available);
/* The same, with the code point. */
size_t xm_utf8_decode(const unsigned char *bytes, size_t available, uint32_t *code_point);

/* Copies text that may hold anything for a message: bytes that are not UTF-8 and control characters
 * become '?', and a text too long for capacity (at least 4 bytes, NUL included) ends in "...". */
void xm_utf8_printable(const char *text, size_t length, char *out, size_t capacity);

#endif
