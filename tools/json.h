/*
 * json.h - writes JSON to a stream: the machine-readable output of the tools. Values go out as they
 * come, indented by two; arrays of numbers stay on one line. Bytes that are not UTF-8 become
 * U+FFFD, numbers that are not finite become null.
 */
#ifndef XMOE_TOOLS_JSON_H
#define XMOE_TOOLS_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
    FILE *out;
    int depth;
    bool filled; /* the object or array that is open has a member */
    bool inline_array;
} json_writer; /* start with {.out = stream} */

/* name is NULL for members of arrays and for the outermost value. After the outermost close a
 * newline follows. */
void json_open_object(json_writer *json, const char *name);
void json_open_array(json_writer *json, const char *name);
/* An array whose members stay on one line. */
void json_open_row(json_writer *json, const char *name);
void json_close_object(json_writer *json);
void json_close_array(json_writer *json);
void json_string(json_writer *json, const char *name, const char *value);
void json_text(json_writer *json, const char *name, const char *value, size_t length);
void json_unsigned(json_writer *json, const char *name, uint64_t value);
void json_integer(json_writer *json, const char *name, int64_t value);
void json_number(json_writer *json, const char *name, double value);
/* With as many digits as it takes to read the same double back; json_number gives nine. */
void json_exact(json_writer *json, const char *name, double value);
void json_null(json_writer *json, const char *name);
void json_bool(json_writer *json, const char *name, bool value);

/* Bytes of the UTF-8 sequence at text[0..length), length > 0; 0 where there is none (RFC 3629:
 * shortest form, no surrogates, at most U+10FFFF). */
size_t json_utf8_length(const char *text, size_t length);
/* Text that can go to a terminal: UTF-8 without control characters. */
bool json_is_plain(const char *text);

#endif
