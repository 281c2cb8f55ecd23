/* ranges.c - see ranges.h. */
#include "grammar/ranges.h"

#include <stdlib.h>

enum { SURROGATES_LOW = 0xD800, SURROGATES_HIGH = 0xDFFF, LAST = 0x10FFFF };

static int compare(const void *a, const void *b)
{
    const xm_code_range *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

size_t xm_ranges_sort(xm_code_range *ranges, size_t count)
{
    size_t kept = 0;
    if (count > 0)
        qsort(ranges, count, sizeof *ranges, compare);
    for (size_t i = 0; i < count; i++) {
        xm_code_range *last = kept > 0 ? &ranges[kept - 1] : NULL;
        if (last != NULL && ranges[i].low <= last->high + 1)
            last->high = last->high < ranges[i].high ? ranges[i].high : last->high;
        else
            ranges[kept++] = ranges[i];
    }
    return kept;
}

/* Appends low to high, if that is anything, without the surrogates. */
static size_t append(xm_code_range *out, size_t count, uint32_t low, uint32_t high)
{
    if (low < SURROGATES_LOW && high > SURROGATES_HIGH) {
        out[count++] = (xm_code_range){low, SURROGATES_LOW - 1};
        low = SURROGATES_HIGH + 1;
    }
    if (low >= SURROGATES_LOW && low <= SURROGATES_HIGH)
        low = SURROGATES_HIGH + 1;
    if (high >= SURROGATES_LOW && high <= SURROGATES_HIGH)
        high = SURROGATES_LOW - 1;
    if (low <= high)
        out[count++] = (xm_code_range){low, high};
    return count;
}

size_t xm_ranges_finish(const xm_code_range *ranges, size_t count, bool negated, xm_code_range *out)
{
    size_t made = 0;
    uint32_t next = 0; /* first code point behind the ranges so far */
    for (size_t i = 0; i < count; i++) {
        if (!negated)
            made = append(out, made, ranges[i].low, ranges[i].high);
        else if (ranges[i].low > next)
            made = append(out, made, next, ranges[i].low - 1);
        next = ranges[i].high + 1;
    }
    return negated && next <= LAST ? append(out, made, next, LAST) : made;
}

size_t xm_ranges_encode(uint32_t c, unsigned char bytes[4])
{
    if (c < 0x80) {
        bytes[0] = (unsigned char)c;
        return 1;
    }
    size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, c >>= 6)
        bytes[i] = (unsigned char)(0x80 | (c & 0x3F));
    static const unsigned char leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
    bytes[0] = (unsigned char)(leads[length] | c);
    return length;
}

/* Cuts so that all pieces have their bytes in ranges that do not depend on one another: where the
 * high bits differ, the low ones must be all zero below and all one above. */
static size_t cut(uint32_t low, uint32_t high, xm_byte_ranges *pieces, size_t count)
{
    static const uint32_t last_of_length[] = {0x7F, 0x7FF, 0xFFFF};
    for (int i = 0; i < 3; i++)
        if (low <= last_of_length[i] && high > last_of_length[i]) {
            count = cut(low, last_of_length[i], pieces, count);
            return cut(last_of_length[i] + 1, high, pieces, count);
        }
    for (int bits = 6; bits <= 18 && low > 0x7F; bits += 6) {
        uint32_t mask = (UINT32_C(1) << bits) - 1;
        if ((low & ~mask) == (high & ~mask))
            break;
        if ((low & mask) != 0) {
            count = cut(low, low | mask, pieces, count);
            return cut((low | mask) + 1, high, pieces, count);
        }
        if ((high & mask) != mask) {
            count = cut(low, (high & ~mask) - 1, pieces, count);
            return cut(high & ~mask, high, pieces, count);
        }
    }
    xm_byte_ranges *piece = &pieces[count];
    unsigned char last[4] = {0};
    piece->length = (int32_t)xm_ranges_encode(low, piece->low);
    xm_ranges_encode(high, last);
    for (int32_t i = 0; i < piece->length; i++)
        piece->high[i] = last[i];
    return count + 1;
}

size_t xm_ranges_split(xm_code_range range, xm_byte_ranges pieces[XM_RANGES_PIECES])
{
    return cut(range.low, range.high, pieces, 0);
}
