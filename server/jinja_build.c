/*
 * jinja_build.c - see jinja_string.h: strings put together, and in another case.
 */
#include <locale.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <wctype.h>

#include "jinja_string.h"

/* Makes room for length more bytes; marked: there will be marks. */
static void reserve(xm_jinja_builder *builder, size_t length, bool marked)
{
    xm_jinja_job *job = builder->job;
    xm_jinja_step(job, 1 + length / 64);
    bool marks = marked || builder->marks;
    bool grows = builder->length + length > builder->capacity;
    if (!grows && (!marks || builder->marks))
        return;
    size_t capacity = builder->capacity;
    if (grows) {
        capacity = (builder->length + length) * 2;
        if (length > XM_JINJA_MEMORY_LIMIT)
            capacity = XM_JINJA_MEMORY_LIMIT + 1;
        char *bytes = xm_jinja_allocate_items(job, capacity, 1);
        if (builder->length)
            memcpy(bytes, builder->bytes, builder->length);
        builder->bytes = bytes;
        builder->capacity = capacity;
    }
    if (marks) {
        char *fresh = xm_jinja_allocate_items(job, capacity, 1);
        if (builder->marks)
            memcpy(fresh, builder->marks, builder->length);
        builder->marks = fresh;
    }
}

void xm_jinja_add(xm_jinja_builder *builder, xm_jinja_string string)
{
    if (string.length == 0)
        return;
    reserve(builder, string.length, string.marks != NULL);
    memcpy(builder->bytes + builder->length, string.bytes, string.length);
    if (string.marks)
        memcpy(builder->marks + builder->length, string.marks, string.length);
    else if (builder->marks)
        memset(builder->marks + builder->length, 0, string.length);
    builder->length += string.length;
}

void xm_jinja_puts(xm_jinja_builder *builder, const char *text)
{
    xm_jinja_add(builder, xm_jinja_literal(text));
}

void xm_jinja_pad(xm_jinja_builder *builder, char character, size_t count)
{
    xm_jinja_string one = {&character, NULL, 1};
    if (count > XM_JINJA_MEMORY_LIMIT)
        count = XM_JINJA_MEMORY_LIMIT;
    for (size_t i = 0; i < count; i++)
        xm_jinja_add(builder, one);
}

void xm_jinja_format(xm_jinja_builder *builder, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    xm_jinja_puts(builder, text);
}

xm_jinja_string xm_jinja_built(const xm_jinja_builder *builder)
{
    return (xm_jinja_string){builder->bytes ? builder->bytes : "", builder->marks, builder->length};
}

xm_jinja_string xm_jinja_concatenate(xm_jinja_job *job, xm_jinja_string a, xm_jinja_string b)
{
    xm_jinja_builder builder = {.job = job};
    if (b.length == 0)
        return a;
    if (a.length == 0)
        return b;
    reserve(&builder, (a.length + b.length + 1) / 2, a.marks || b.marks); /* it doubles that */
    xm_jinja_add(&builder, a);
    xm_jinja_add(&builder, b);
    return xm_jinja_built(&builder);
}

static locale_t utf8_locale;

static void open_locale(void)
{
    utf8_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
}

static uint32_t decode(const char *bytes, size_t size)
{
    const unsigned char *byte = (const unsigned char *)bytes;
    uint32_t code = size == 1   ? byte[0]
                    : size == 2 ? byte[0] & 0x1fu
                    : size == 3 ? byte[0] & 0x0fu
                                : byte[0] & 0x07u;
    for (size_t i = 1; i < size; i++)
        code = code << 6 | (byte[i] & 0x3fu);
    return code;
}

static size_t encode(uint32_t code, char *bytes)
{
    if (code < 0x80) {
        bytes[0] = (char)code;
        return 1;
    }
    size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = size - 1; i > 0; i--, code >>= 6)
        bytes[i] = (char)(0x80 | (code & 0x3f));
    bytes[0] = (char)((size == 2 ? 0xc0 : size == 3 ? 0xe0 : 0xf0) | code);
    return size;
}

static uint32_t in_case(uint32_t code, bool upper)
{
    if (code < 0x80 || !utf8_locale) {
        if (upper)
            return code >= 'a' && code <= 'z' ? code - 32 : code;
        return code >= 'A' && code <= 'Z' ? code + 32 : code;
    }
    return (uint32_t)(upper ? towupper_l((wint_t)code, utf8_locale)
                            : towlower_l((wint_t)code, utf8_locale));
}

static bool has_case(uint32_t code)
{
    return in_case(code, true) != code || in_case(code, false) != code;
}

xm_jinja_string xm_jinja_in_case(xm_jinja_job *job, xm_jinja_string string, xm_jinja_case to)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    xm_jinja_builder builder = {.job = job};
    bool in_word = false;
    pthread_once(&once, open_locale);
    for (size_t at = 0, size; at < string.length; at += size) {
        size = xm_jinja_character_size(string, at);
        xm_jinja_string piece = xm_jinja_cut(string, at, at + size);
        if (size > 1 || (unsigned char)*piece.bytes < 0x80) {
            uint32_t code = decode(piece.bytes, size);
            bool upper = to == XM_JINJA_UPPER || (to == XM_JINJA_CAPITAL && at == 0) ||
                         (to == XM_JINJA_TITLE && !in_word);
            char bytes[4], marks[4];
            in_word = has_case(code);
            xm_jinja_string changed = {bytes, NULL, encode(in_case(code, upper), bytes)};
            if (piece.marks) {
                memset(marks, *piece.marks, sizeof marks);
                changed.marks = marks;
            }
            xm_jinja_add(&builder, changed);
        } else {
            xm_jinja_add(&builder, piece);
        }
    }
    return xm_jinja_built(&builder);
}
