/*
 * buffer.h - a growable byte string. Once an append has failed, the buffer stays failed and further
 * appends do nothing, so that a run of appends needs one check at its end.
 */
#ifndef XM_BASE_BUFFER_H
#define XM_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    char *data; /* length bytes and a NUL; NULL while empty */
    size_t length;
    size_t capacity;
    bool failed;
} xm_buffer; /* start with {0}; the owner calls xm_buffer_free */

void xm_buffer_append(xm_buffer *buffer, const void *bytes, size_t length);
void xm_buffer_text(xm_buffer *buffer, const char *text);
void xm_buffer_format(xm_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Drops the first length bytes. */
void xm_buffer_consume(xm_buffer *buffer, size_t length);
void xm_buffer_free(xm_buffer *buffer);

#endif
