/* buffer.c - see buffer.h. */
#include "base/buffer.h"

#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Makes room for length more bytes and the NUL. */
static bool reserve(xm_buffer *buffer, size_t length)
{
    size_t need;
    if (buffer->failed || !xm_add(buffer->length, length, &need) || !xm_add(need, 1, &need)) {
        buffer->failed = true;
        return false;
    }
    if (need <= buffer->capacity)
        return true;
    size_t capacity = buffer->capacity < 64 ? 64 : buffer->capacity;
    while (capacity < need)
        capacity += capacity / 2;
    char *data = xm_realloc(buffer->data, capacity, 1);
    if (data == NULL) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

void xm_buffer_append(xm_buffer *buffer, const void *bytes, size_t length)
{
    if (!reserve(buffer, length))
        return;
    if (length > 0)
        memcpy(buffer->data + buffer->length, bytes, length);
    buffer->length += length;
    buffer->data[buffer->length] = '\0';
}

void xm_buffer_text(xm_buffer *buffer, const char *text)
{
    xm_buffer_append(buffer, text, strlen(text));
}

void xm_buffer_format(xm_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        buffer->failed = true;
    else if (reserve(buffer, (size_t)length)) {
        vsnprintf(buffer->data + buffer->length, (size_t)length + 1, format, again);
        buffer->length += (size_t)length;
    }
    va_end(again);
}

void xm_buffer_consume(xm_buffer *buffer, size_t length)
{
    if (length >= buffer->length) {
        buffer->length = 0;
        if (buffer->data != NULL)
            buffer->data[0] = '\0';
        return;
    }
    memmove(buffer->data, buffer->data + length, buffer->length - length + 1);
    buffer->length -= length;
}

void xm_buffer_free(xm_buffer *buffer)
{
    xm_free(buffer->data);
    *buffer = (xm_buffer){0};
}
