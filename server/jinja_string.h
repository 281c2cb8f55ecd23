/*
 * jinja_string.h - strings of marked bytes: cut, searched, built, in another case.
 *
 * Strings never change; a cut shares the bytes of what it was cut from. Positions are bytes here,
 * the functions that Python counts in characters say so.
 */
#ifndef XM_SERVER_JINJA_STRING_H
#define XM_SERVER_JINJA_STRING_H

#include "jinja_value.h"

#define XM_JINJA_NOWHERE SIZE_MAX

xm_jinja_string xm_jinja_cut(xm_jinja_string string, size_t from, size_t to);
/* Bytes of the character at a position; of a byte that begins none, 1. */
size_t xm_jinja_character_size(xm_jinja_string string, size_t at);
size_t xm_jinja_characters(xm_jinja_job *job, xm_jinja_string string);
/* Where a piece is found first, from a position on. */
size_t xm_jinja_search(xm_jinja_job *job, xm_jinja_string string, xm_jinja_string piece,
                       size_t from);
bool xm_jinja_starts(xm_jinja_string string, xm_jinja_string with);
bool xm_jinja_ends(xm_jinja_string string, xm_jinja_string with);

/* Without these characters at its ends; NULL: without white space. */
xm_jinja_string xm_jinja_strip(xm_jinja_job *job, xm_jinja_string string,
                               const xm_jinja_string *characters, bool left, bool right);
/* The first `most` occurrences are replaced. */
xm_jinja_string xm_jinja_replace(xm_jinja_job *job, xm_jinja_string string, xm_jinja_string old,
                                 xm_jinja_string fresh, int64_t most);
/* Python's split: by a separator, or by runs of white space (NULL); at most so many cuts, all where
 * it is below 0. */
xm_jinja_value xm_jinja_split(xm_jinja_job *job, xm_jinja_string string,
                              const xm_jinja_string *separator, int64_t most);
xm_jinja_value xm_jinja_split_right(xm_jinja_job *job, xm_jinja_string string,
                                    xm_jinja_string separator, int64_t most);
xm_jinja_value xm_jinja_split_lines(xm_jinja_job *job, xm_jinja_string string, bool keep_ends);
/* Of characters, as Python's slices; any of the bounds may be absent (NULL). */
xm_jinja_string xm_jinja_slice(xm_jinja_job *job, xm_jinja_string string, const int64_t *from,
                               const int64_t *to, int64_t step);
/* Python's rules for a slice's bounds over count items: first, and how many. */
void xm_jinja_slice_bounds(xm_jinja_job *job, size_t count, const int64_t *from, const int64_t *to,
                           int64_t step, int64_t *first, size_t *taken);

typedef enum { XM_JINJA_LOWER, XM_JINJA_UPPER, XM_JINJA_CAPITAL, XM_JINJA_TITLE } xm_jinja_case;
/* One character becomes one character: U+00DF stays in upper case, where Python writes SS.
 * TITLE as str.title has it. */
xm_jinja_string xm_jinja_in_case(xm_jinja_job *job, xm_jinja_string string, xm_jinja_case to);

/* --- building ----------------------------------------------------------------------------------
 */

typedef struct {
    xm_jinja_job *job;
    char *bytes, *marks; /* marks: NULL while nothing has one */
    size_t length, capacity;
} xm_jinja_builder; /* start with {.job = job} */

void xm_jinja_add(xm_jinja_builder *builder, xm_jinja_string string);
void xm_jinja_puts(xm_jinja_builder *builder, const char *text);
void xm_jinja_pad(xm_jinja_builder *builder, char character, size_t count);
void xm_jinja_format(xm_jinja_builder *builder, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
xm_jinja_string xm_jinja_built(const xm_jinja_builder *builder);
xm_jinja_string xm_jinja_concatenate(xm_jinja_job *job, xm_jinja_string a, xm_jinja_string b);

#endif
