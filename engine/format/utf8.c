/*
 * utf8.c - well-formed UTF-8: single characters, and the stream that turns the bytes of tokens,
 * which may end in mid-character, into whole characters. See utf8.h and tokenizer.h.
 */
#include "format/utf8.h"

#include "format/tokenizer.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* Bytes of a character by its first byte; 0 if none starts so. */
static size_t length_by_lead(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2) /* continuation, or overlong */
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead < 0xF0)
        return 3;
    return lead < 0xF5 ? 4 : 0;
}

/* Whether byte may come at place `index` (from 1) after this first byte. */
static bool continues(unsigned char lead, size_t index, unsigned char byte)
{
    if (index > 1)
        return byte >= 0x80 && byte <= 0xBF;
    switch (lead) {
    case 0xE0: /* below would be overlong */
        return byte >= 0xA0 && byte <= 0xBF;
    case 0xED: /* above would be a surrogate */
        return byte >= 0x80 && byte <= 0x9F;
    case 0xF0: /* below would be overlong */
        return byte >= 0x90 && byte <= 0xBF;
    case 0xF4: /* above would exceed U+10FFFF */
        return byte >= 0x80 && byte <= 0x8F;
    default:
        return byte >= 0x80 && byte <= 0xBF;
    }
}

size_t xm_utf8_length(const unsigned char *bytes, size_t available)
{
    if (available == 0)
        return 0;
    size_t length = length_by_lead(bytes[0]);
    if (length > available)
        return 0;
    for (size_t i = 1; i < length; i++)
        if (!continues(bytes[0], i, bytes[i]))
            return 0;
    return length;
}

size_t xm_utf8_decode(const unsigned char *bytes, size_t available, uint32_t *code_point)
{
    static const unsigned char lead_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    size_t length = xm_utf8_length(bytes, available);
    if (length == 0)
        return 0;
    uint32_t value = bytes[0] & lead_bits[length];
    for (size_t i = 1; i < length; i++)
        value = value << 6 | (bytes[i] & 0x3Fu);
    *code_point = value;
    return length;
}

void xm_utf8_printable(const char *text, size_t length, char *out, size_t capacity)
{
    static const char more[] = "...";
    const unsigned char *bytes = (const unsigned char *)text;
    size_t written = 0, cut = 0; /* cut: where "..." still fits */
    for (size_t i = 0; i < length;) {
        uint32_t code_point = 0;
        size_t character = xm_utf8_decode(bytes + i, length - i, &code_point);
        bool shown =
            character > 0 && code_point >= 0x20 && (code_point < 0x7F || code_point > 0x9F);
        size_t size = shown ? character : 1;
        if (written + sizeof more <= capacity)
            cut = written;
        if (written + size >= capacity) {
            memcpy(out + cut, more, sizeof more);
            return;
        }
        if (shown)
            memcpy(out + written, bytes + i, size);
        else
            out[written] = '?';
        written += size;
        i += character > 0 ? character : 1;
    }
    out[written] = '\0';
}

/* --- stream ----------------------------------------------------------------------------------- */

/* One byte that is not plain ASCII with nothing held. */
static void push_byte(xm_utf8_stream *stream, unsigned char byte, xm_buffer *out)
{
    size_t held = (size_t)stream->held_length;
    if (held > 0 && !continues(stream->held[0], held, byte)) {
        xm_utf8_stream_end(stream, out); /* what is held was a maximal subpart */
        held = 0;
    }
    if (held == 0 && length_by_lead(byte) == 0) {
        xm_buffer_text(out, replacement);
        return;
    }
    stream->held[held++] = byte;
    stream->held_length = (int32_t)held;
    if (held == length_by_lead(stream->held[0])) {
        xm_buffer_append(out, stream->held, held);
        stream->held_length = 0;
    }
}

void xm_utf8_stream_push(xm_utf8_stream *stream, const char *bytes, size_t length, xm_buffer *out)
{
    size_t i = 0;
    while (i < length) {
        size_t start = i;
        if (stream->held_length == 0)
            while (i < length && (unsigned char)bytes[i] < 0x80)
                i++;
        if (i > start)
            xm_buffer_append(out, bytes + start, i - start);
        else
            push_byte(stream, (unsigned char)bytes[i++], out);
    }
}

void xm_utf8_stream_end(xm_utf8_stream *stream, xm_buffer *out)
{
    if (stream->held_length > 0)
        xm_buffer_text(out, replacement);
    stream->held_length = 0;
}
