/*
 * ranges.h - sets of characters as ranges of code points, and these as ranges of UTF-8 bytes.
 *
 * Pure functions.
 */
#ifndef XM_GRAMMAR_RANGES_H
#define XM_GRAMMAR_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t low, high; /* code points, both included */
} xm_code_range;

/* Sorts, and joins what overlaps or touches; returns how many are left. */
size_t xm_ranges_sort(xm_code_range *ranges, size_t count);
/* Sorted ranges, or with `negated` all that they leave out, without surrogates, to out, which has
 * room for 2 * count + 2; returns how many. */
size_t xm_ranges_finish(const xm_code_range *ranges, size_t count, bool negated,
                        xm_code_range *out);

/* UTF-8 of a code point; returns the length. */
size_t xm_ranges_encode(uint32_t code_point, unsigned char bytes[4]);

/* Strings of bytes whose i-th lies in [low[i], high[i]]. */
typedef struct {
    int32_t length;
    uint8_t low[4], high[4];
} xm_byte_ranges;

enum { XM_RANGES_PIECES = 24 }; /* that one range of code points can fall into */

/* The UTF-8 of a range without surrogates, as pieces; returns how many. */
size_t xm_ranges_split(xm_code_range range, xm_byte_ranges pieces[XM_RANGES_PIECES]);

#endif
