/*
 * json_write.c - see json_write.h.
 */
#include "json_write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void escape_byte(xm_text *out, unsigned char byte)
{
    switch (byte) {
    case '"':
        xm_text_add(out, "\\\"", 2);
        break;
    case '\\':
        xm_text_add(out, "\\\\", 2);
        break;
    case '\n':
        xm_text_add(out, "\\n", 2);
        break;
    case '\r':
        xm_text_add(out, "\\r", 2);
        break;
    case '\t':
        xm_text_add(out, "\\t", 2);
        break;
    default:
        xm_text_format(out, "\\u%04x", byte);
    }
}

static bool is_plain(unsigned char byte)
{
    return byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\';
}

static void quote(xm_text *out, const char *bytes, size_t length)
{
    xm_text_add(out, "\"", 1);
    for (size_t i = 0; i < length;) {
        size_t run = 0;
        while (i + run < length && is_plain((unsigned char)bytes[i + run]))
            run++;
        xm_text_add(out, bytes + i, run);
        i += run;
        if (i == length)
            break;
        unsigned char byte = (unsigned char)bytes[i];
        if (byte < 0x80) {
            escape_byte(out, byte);
            i++;
            continue;
        }
        size_t size = xm_text_character(bytes + i, length - i);
        if (!size)
            size = xm_text_broken(bytes + i, length - i);
        xm_text_add_utf8(out, bytes + i, size);
        i += size;
    }
    xm_text_add(out, "\"", 1);
}

/* The comma before and the name of the next value. */
static void start(xm_json *json, const char *key)
{
    if (json->comma)
        xm_text_add(json->out, ",", 1);
    json->comma = true;
    if (key) {
        quote(json->out, key, strlen(key));
        xm_text_add(json->out, ":", 1);
    }
}

void xm_json_name(xm_json *json, const char *bytes, size_t length)
{
    start(json, NULL);
    quote(json->out, bytes, length);
    xm_text_add(json->out, ":", 1);
    json->comma = false;
}

void xm_json_open(xm_json *json, const char *key, char bracket)
{
    start(json, key);
    xm_text_add(json->out, &bracket, 1);
    json->comma = false;
}

void xm_json_close(xm_json *json, char bracket)
{
    xm_text_add(json->out, &bracket, 1);
    json->comma = true;
}

void xm_json_null(xm_json *json, const char *key)
{
    start(json, key);
    xm_text_puts(json->out, "null");
}

void xm_json_bool(xm_json *json, const char *key, bool value)
{
    start(json, key);
    xm_text_puts(json->out, value ? "true" : "false");
}

void xm_json_int(xm_json *json, const char *key, int64_t value)
{
    start(json, key);
    xm_text_format(json->out, "%" PRId64, value);
}

void xm_json_uint(xm_json *json, const char *key, uint64_t value)
{
    start(json, key);
    xm_text_format(json->out, "%" PRIu64, value);
}

void xm_json_double(xm_json *json, const char *key, double value)
{
    start(json, key);
    if (!isfinite(value)) {
        xm_text_puts(json->out, "null");
        return;
    }
    char digits[40];
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    xm_text_puts(json->out, digits);
}

void xm_json_float(xm_json *json, const char *key, float value)
{
    start(json, key);
    if (!isfinite(value)) {
        xm_text_puts(json->out, "null");
        return;
    }
    char digits[40];
    for (int precision = 6; precision <= 9; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
        if (strtof(digits, NULL) == value)
            break;
    }
    xm_text_puts(json->out, digits);
}

void xm_json_string(xm_json *json, const char *key, const char *string)
{
    if (!string) {
        xm_json_null(json, key);
        return;
    }
    xm_json_bytes(json, key, string, strlen(string));
}

void xm_json_bytes(xm_json *json, const char *key, const char *bytes, size_t length)
{
    start(json, key);
    quote(json->out, bytes, length);
}
