/*
 * json_write.h - writes JSON into a text, front to back.
 *
 * Every value takes a key: the member's name inside an object, NULL inside an array or at the top.
 * Numbers that JSON has no word for (NaN, infinities) become null; strings may hold any bytes, what
 * is not UTF-8 becomes U+FFFD. Floats are written with the fewest digits that read back the same.
 */
#ifndef XM_SERVER_JSON_WRITE_H
#define XM_SERVER_JSON_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text.h"

typedef struct {
    xm_text *out;
    bool comma; /* the next value needs one before it */
} xm_json;      /* start with {&text, false} */

/* A name that may hold NUL bytes; its value follows with key NULL. */
void xm_json_name(xm_json *json, const char *bytes, size_t length);
void xm_json_open(xm_json *json, const char *key, char bracket); /* '{' or '[' */
void xm_json_close(xm_json *json, char bracket);                 /* '}' or ']' */
void xm_json_null(xm_json *json, const char *key);
void xm_json_bool(xm_json *json, const char *key, bool value);
void xm_json_int(xm_json *json, const char *key, int64_t value);
void xm_json_uint(xm_json *json, const char *key, uint64_t value);
void xm_json_double(xm_json *json, const char *key, double value);
void xm_json_float(xm_json *json, const char *key, float value);
void xm_json_string(xm_json *json, const char *key, const char *string); /* NULL: null */
void xm_json_bytes(xm_json *json, const char *key, const char *bytes, size_t length);

#endif
