/*
 * text.c - see text.h.
 */
#include "text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool xm_text_reserve(xm_text *text, size_t length)
{
    if (text->failed)
        return false;
    if (length >= SIZE_MAX / 2 - text->length) {
        text->failed = true;
        return false;
    }
    size_t wanted = text->length + length + 1;
    if (wanted <= text->capacity)
        return true;
    size_t capacity = text->capacity ? text->capacity * 2 : 256;
    if (capacity < wanted)
        capacity = wanted;
    char *data = realloc(text->data, capacity);
    if (!data) {
        text->failed = true;
        return false;
    }
    text->data = data;
    text->capacity = capacity;
    return true;
}

void xm_text_add(xm_text *text, const char *bytes, size_t length)
{
    if (!xm_text_reserve(text, length))
        return;
    if (length)
        memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = '\0';
}

void xm_text_puts(xm_text *text, const char *string)
{
    xm_text_add(text, string, strlen(string));
}

void xm_text_format(xm_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length >= 0 && xm_text_reserve(text, (size_t)length)) {
        vsnprintf(text->data + text->length, (size_t)length + 1, format, again);
        text->length += (size_t)length;
    }
    va_end(again);
}

void xm_text_clear(xm_text *text)
{
    text->length = 0;
    if (text->data)
        text->data[0] = '\0';
}

void xm_text_free(xm_text *text)
{
    free(text->data);
    *text = (xm_text){0};
}

/* Lead byte -> length and the range of the second byte (Unicode standard, table 3-7). */
size_t xm_text_character(const char *text, size_t length)
{
    const unsigned char *byte = (const unsigned char *)text;
    if (length == 0)
        return 0;
    if (byte[0] < 0x80)
        return 1;
    size_t size = byte[0] >= 0xf0 ? 4 : byte[0] >= 0xe0 ? 3 : 2;
    if (byte[0] < 0xc2 || byte[0] > 0xf4 || length < size)
        return 0;
    unsigned low = 0x80, high = 0xbf;
    if (byte[0] == 0xe0)
        low = 0xa0;
    else if (byte[0] == 0xed)
        high = 0x9f;
    else if (byte[0] == 0xf0)
        low = 0x90;
    else if (byte[0] == 0xf4)
        high = 0x8f;
    if (byte[1] < low || byte[1] > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if ((byte[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

bool xm_utf8_begins(xm_utf8_place *place, unsigned char byte)
{
    bool continues = place->missing && byte >= place->low && byte <= place->high;
    if (continues)
        place->missing--;
    else
        place->missing = byte < 0xc2 || byte > 0xf4 ? 0 : byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    place->low = continues || (byte != 0xe0 && byte != 0xf0) ? 0x80 : byte == 0xe0 ? 0xa0 : 0x90;
    place->high = continues || (byte != 0xed && byte != 0xf4) ? 0xbf : byte == 0xed ? 0x9f : 0x8f;
    return !continues;
}

size_t xm_text_broken(const char *text, size_t length)
{
    xm_utf8_place place = {0};
    size_t size = 0;
    while (size < length && (!xm_utf8_begins(&place, (unsigned char)text[size]) || size == 0))
        size++;
    return size;
}

bool xm_text_is_utf8(const char *text, size_t length)
{
    for (size_t i = 0; i < length;) {
        size_t size = xm_text_character(text + i, length - i);
        if (size == 0)
            return false;
        i += size;
    }
    return true;
}

void xm_text_add_utf8(xm_text *text, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length;) {
        size_t size = xm_text_character(bytes + i, length - i);
        if (size)
            xm_text_add(text, bytes + i, size);
        else
            xm_text_puts(text, "\xef\xbf\xbd");
        i += size ? size : xm_text_broken(bytes + i, length - i);
    }
}
