/*
 * json_pattern.h - a regular expression as a schema's `pattern` has it, to an expression of a
 * grammar.
 *
 * Of ECMA-262's: alternatives, groups (capturing or not), classes, . \d \w \s and their
 * complements, \n \r \t \f \v \0 \xHH \uHHHH, escaped punctuation, * + ? {m} {m,} {m,n} also with ?
 * behind, ^ at the beginning and $ at the end of the whole or of its alternatives. A pattern
 * without these is one that the string contains. Refused by name: looking around, references back,
 * \b, \p.
 */
#ifndef XM_SERVER_JSON_PATTERN_H
#define XM_SERVER_JSON_PATTERN_H

#include "text.h"

/* Appends what stands between the quotes of a JSON string whose value matches. False with a reason
 * in message. plain: the name of a rule for any one character of a string. */
bool xm_json_pattern(const char *pattern, const char *plain, xm_text *out, char *message,
                     size_t size);

#endif
