/*
 * json.c - see json.h. State is one depth and two booleans: closing a value makes its parent one
 * that has a member, so no stack is needed.
 */
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void write_escaped(json_writer *json, const char *text, size_t length);

static void begin_member(json_writer *json, const char *name)
{
    if (json->filled) {
        fputs(json->inline_array ? ", " : ",", json->out);
    }
    if (json->depth > 0 && !json->inline_array) {
        fprintf(json->out, "\n%*s", 2 * json->depth, "");
    }
    if (name != NULL) {
        write_escaped(json, name, strlen(name));
        fputs(": ", json->out);
    }
    json->filled = true;
}

static void open_value(json_writer *json, const char *name, char bracket)
{
    begin_member(json, name);
    fputc(bracket, json->out);
    json->depth++;
    json->filled = false;
}

static void close_value(json_writer *json, char bracket)
{
    json->depth--;
    if (json->filled && !json->inline_array) {
        fprintf(json->out, "\n%*s", 2 * json->depth, "");
    }
    json->inline_array = false;
    fputc(bracket, json->out);
    if (json->depth == 0) {
        fputc('\n', json->out);
    }
    json->filled = json->depth > 0;
}

void json_open_object(json_writer *json, const char *name)
{
    open_value(json, name, '{');
}

void json_open_array(json_writer *json, const char *name)
{
    open_value(json, name, '[');
}

void json_open_row(json_writer *json, const char *name)
{
    open_value(json, name, '[');
    json->inline_array = true;
}

void json_close_object(json_writer *json)
{
    close_value(json, '}');
}

void json_close_array(json_writer *json)
{
    close_value(json, ']');
}

void json_string(json_writer *json, const char *name, const char *value)
{
    json_text(json, name, value, strlen(value));
}

void json_text(json_writer *json, const char *name, const char *value, size_t length)
{
    begin_member(json, name);
    write_escaped(json, value, length);
}

void json_unsigned(json_writer *json, const char *name, uint64_t value)
{
    begin_member(json, name);
    fprintf(json->out, "%llu", (unsigned long long)value);
}

void json_integer(json_writer *json, const char *name, int64_t value)
{
    begin_member(json, name);
    fprintf(json->out, "%lld", (long long)value);
}

static void write_number(json_writer *json, const char *name, double value, int digits)
{
    begin_member(json, name);
    if (isfinite(value)) {
        fprintf(json->out, "%.*g", digits, value);
    } else {
        fputs("null", json->out);
    }
}

void json_number(json_writer *json, const char *name, double value)
{
    write_number(json, name, value, 9);
}

void json_exact(json_writer *json, const char *name, double value)
{
    char text[32];
    int digits = 15;
    do {
        snprintf(text, sizeof text, "%.*g", digits, value);
    } while (strtod(text, NULL) != value && ++digits < 17);
    write_number(json, name, value, digits);
}

void json_null(json_writer *json, const char *name)
{
    begin_member(json, name);
    fputs("null", json->out);
}

void json_bool(json_writer *json, const char *name, bool value)
{
    begin_member(json, name);
    fputs(value ? "true" : "false", json->out);
}

size_t json_utf8_length(const char *string, size_t length)
{
    const unsigned char *text = (const unsigned char *)string;
    unsigned first = text[0];
    size_t bytes = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (bytes == 0 || first > 0xF4 || bytes > length) {
        return 0;
    }
    for (size_t i = 1; i < bytes; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    bool short_form = (first == 0xE0 && text[1] < 0xA0) || (first == 0xF0 && text[1] < 0x90);
    bool no_character = (first == 0xED && text[1] > 0x9F) || (first == 0xF4 && text[1] > 0x8F);
    return short_form || no_character ? 0 : bytes;
}

bool json_is_plain(const char *text)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        size_t bytes = json_utf8_length(text + i, length - i);
        if (bytes == 0 || (unsigned char)text[i] < 0x20 || text[i] == 0x7F ||
            (bytes == 2 && (unsigned char)text[i] == 0xC2 && (unsigned char)text[i + 1] < 0xA0)) {
            return false;
        }
        i += bytes;
    }
    return true;
}

static void write_escaped(json_writer *json, const char *text, size_t length)
{
    fputc('"', json->out);
    for (size_t i = 0; i < length;) {
        unsigned char byte = (unsigned char)text[i];
        size_t bytes = json_utf8_length(text + i, length - i);
        if (bytes == 0) {
            fputs("\\ufffd", json->out);
            bytes = 1;
        } else if (byte == '"' || byte == '\\') {
            fprintf(json->out, "\\%c", byte);
        } else if (byte == '\n') {
            fputs("\\n", json->out);
        } else if (byte < 0x20 || byte == 0x7F) {
            fprintf(json->out, "\\u%04x", byte);
        } else {
            fwrite(text + i, 1, bytes, json->out);
        }
        i += bytes;
    }
    fputc('"', json->out);
}
