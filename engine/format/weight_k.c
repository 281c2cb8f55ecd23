/*
 * weight_k.c - the K types: blocks of 256 elements with an F16 scale d (and with minima an F16 m),
 * and small integers per group of 16 or 32 that multiply it. Bytes of a block in order:
 *
 *   Q2_K   16 of groups (scale low nibble, minimum high), 64 of codes, d, m   groups of 16
 *   Q3_K   32 of third bits, 64 of low bits, 12 of scales, d                  groups of 16
 *   Q4_K   d, m, 12 of scales and minima, 128 of nibbles                      groups of 32
 *   Q5_K   d, m, 12 of scales and minima, 32 of fifth bits, 128 of nibbles    groups of 32
 *   Q6_K   128 of nibbles, 64 of high bits, 16 int8 scales, d                 groups of 16
 *
 *   x = d * scale * q - m * minimum   (Q2_K, Q4_K, Q5_K)
 *   x = d * scale * (q - zero)        (Q3_K: zero 4, scale 6 bits - 32; Q6_K: zero 32)
 *
 * Bits of an element lie 32 bytes after those of the element 32 places before, field by field: a
 * row of 32 bytes with fields of w bits holds 8 / w times 32 elements.
 */
#include "format/weight_block.h"

enum {
    ROW = 32, /* bytes of a row of fields, and elements of one field of it */
    SIGN = 0x8000,
};

/* Ors the field of `width` bits at bit `shift` of each byte of a row into 32 codes, at bit `up`. */
static void split_field(const uint8_t *row, int width, int shift, int up, uint8_t *codes)
{
    int mask = (1 << width) - 1;

    for (size_t i = 0; i < ROW; i++)
        codes[i] |= (uint8_t)((row[i] >> shift & mask) << up);
}

static void join_field(const uint8_t *codes, int width, int shift, int up, uint8_t *row)
{
    int mask = (1 << width) - 1;

    for (size_t i = 0; i < ROW; i++)
        row[i] |= (uint8_t)((codes[i] >> up & mask) << shift);
}

/* All 256 elements' bits from `up` on, from rows of fields of `width` bits; and back. */
static void split_fields(const uint8_t *rows, int width, int up, uint8_t *codes)
{
    size_t fields = 8 / (size_t)width;

    for (size_t i = 0; i < XM_BLOCK_ELEMENTS / ROW; i++)
        split_field(rows + i / fields * ROW, width, (int)(i % fields) * width, up, codes + i * ROW);
}

static void join_fields(const uint8_t *codes, int width, int up, uint8_t *rows)
{
    size_t fields = 8 / (size_t)width;

    memset(rows, 0, XM_BLOCK_ELEMENTS / fields);
    for (size_t i = 0; i < XM_BLOCK_ELEMENTS / ROW; i++)
        join_field(codes + i * ROW, width, (int)(i % fields) * width, up, rows + i / fields * ROW);
}

/* --- Q2_K --- */

void xm_q2_k_split(const uint8_t *block, xm_weight_block *parts)
{
    for (size_t g = 0; g < 16; g++) {
        parts->scales[g] = block[g] & 15;
        parts->minima[g] = block[g] >> 4;
    }
    memset(parts->codes, 0, sizeof parts->codes);
    split_fields(block + 16, 2, 0, parts->codes);
    parts->scale = xm_read_u16(block + 80);
    parts->minimum = xm_read_u16(block + 82) ^ SIGN;
}

void xm_q2_k_join(const xm_weight_block *parts, uint8_t *block)
{
    for (size_t g = 0; g < 16; g++)
        block[g] = (uint8_t)(parts->scales[g] | parts->minima[g] << 4);
    join_fields(parts->codes, 2, 0, block + 16);
    xm_write_u16(parts->scale, block + 80);
    xm_write_u16(parts->minimum ^ SIGN, block + 82);
}

void xm_q2_k_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_Q2_K);
    xm_search_with_minima(&coding, 15, values, importance, parts);
}

/* --- Q3_K --- */

/* 16 scales of 6 bits: the nibbles of bytes 0 to 7, low then high, and above them the 2-bit fields
 * of bytes 8 to 11, lowest first. */
static void split_q3_scales(const uint8_t *bytes, int8_t *scales)
{
    for (size_t g = 0; g < 16; g++) {
        int low = bytes[g % 8] >> g / 8 * 4 & 15;
        int high = bytes[8 + g % 4] >> g / 4 * 2 & 3;
        scales[g] = (int8_t)((low | high << 4) - 32);
    }
}

static void join_q3_scales(const int8_t *scales, uint8_t *bytes)
{
    memset(bytes, 0, 12);
    for (size_t g = 0; g < 16; g++) {
        int scale = scales[g] + 32;
        bytes[g % 8] |= (uint8_t)((scale & 15) << g / 8 * 4);
        bytes[8 + g % 4] |= (uint8_t)(scale >> 4 << g / 4 * 2);
    }
}

void xm_q3_k_split(const uint8_t *block, xm_weight_block *parts)
{
    memset(parts->codes, 0, sizeof parts->codes);
    split_fields(block, 1, 2, parts->codes);
    split_fields(block + 32, 2, 0, parts->codes);
    split_q3_scales(block + 96, parts->scales);
    parts->scale = xm_read_u16(block + 108);
}

void xm_q3_k_join(const xm_weight_block *parts, uint8_t *block)
{
    join_fields(parts->codes, 1, 2, block);
    join_fields(parts->codes, 2, 0, block + 32);
    join_q3_scales(parts->scales, block + 96);
    xm_write_u16(parts->scale, block + 108);
}

void xm_q3_k_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_Q3_K);
    xm_search_scales(&coding, -32, 31, values, importance, parts);
}

/* --- Q4_K and Q5_K --- */

/* 8 scales and 8 minima of 6 bits: those of groups 0 to 3 are the low 6 bits of bytes 0 to 3 and 4
 * to 7; groups 4 to 7 have their low nibbles in bytes 8 to 11, the scale's low, and their upper
 * bits above those of groups 0 to 3. */
static void split_q4_scales(const uint8_t *bytes, int8_t *scales, uint8_t *minima)
{
    for (size_t g = 0; g < 4; g++) {
        scales[g] = bytes[g] & 63;
        minima[g] = bytes[4 + g] & 63;
        scales[4 + g] = (int8_t)((bytes[8 + g] & 15) | bytes[g] >> 6 << 4);
        minima[4 + g] = (uint8_t)(bytes[8 + g] >> 4 | bytes[4 + g] >> 6 << 4);
    }
}

static void join_q4_scales(const int8_t *scales, const uint8_t *minima, uint8_t *bytes)
{
    for (size_t g = 0; g < 4; g++) {
        bytes[g] = (uint8_t)(scales[g] | scales[4 + g] >> 4 << 6);
        bytes[4 + g] = (uint8_t)(minima[g] | minima[4 + g] >> 4 << 6);
        bytes[8 + g] = (uint8_t)((scales[4 + g] & 15) | (minima[4 + g] & 15) << 4);
    }
}

static void split_q4_head(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    parts->minimum = xm_read_u16(block + 2) ^ SIGN;
    split_q4_scales(block + 4, parts->scales, parts->minima);
}

static void join_q4_head(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    xm_write_u16(parts->minimum ^ SIGN, block + 2);
    join_q4_scales(parts->scales, parts->minima, block + 4);
}

void xm_q4_k_split(const uint8_t *block, xm_weight_block *parts)
{
    split_q4_head(block, parts);
    memset(parts->codes, 0, sizeof parts->codes);
    split_fields(block + 16, 4, 0, parts->codes);
}

void xm_q4_k_join(const xm_weight_block *parts, uint8_t *block)
{
    join_q4_head(parts, block);
    join_fields(parts->codes, 4, 0, block + 16);
}

void xm_q4_k_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_Q4_K);
    xm_search_with_minima(&coding, 63, values, importance, parts);
}

void xm_q5_k_split(const uint8_t *block, xm_weight_block *parts)
{
    split_q4_head(block, parts);
    memset(parts->codes, 0, sizeof parts->codes);
    split_fields(block + 16, 1, 4, parts->codes);
    split_fields(block + 48, 4, 0, parts->codes);
}

void xm_q5_k_join(const xm_weight_block *parts, uint8_t *block)
{
    join_q4_head(parts, block);
    join_fields(parts->codes, 1, 4, block + 16);
    join_fields(parts->codes, 4, 0, block + 48);
}

void xm_q5_k_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_Q5_K);
    xm_search_with_minima(&coding, 63, values, importance, parts);
}

/* --- Q6_K --- */

/* Nibbles in rows of 64 bytes: the exception from rows of 32. */
void xm_q6_k_split(const uint8_t *block, xm_weight_block *parts)
{
    xm_split_nibbles(block, 64, parts->codes);
    xm_split_nibbles(block + 64, 64, parts->codes + 128);
    split_fields(block + 128, 2, 4, parts->codes);
    memcpy(parts->scales, block + 192, 16);
    parts->scale = xm_read_u16(block + 208);
}

void xm_q6_k_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_join_nibbles(parts->codes, 64, block);
    xm_join_nibbles(parts->codes + 128, 64, block + 64);
    join_fields(parts->codes, 2, 4, block + 128);
    memcpy(block + 192, parts->scales, 16);
    xm_write_u16(parts->scale, block + 208);
}

void xm_q6_k_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_Q6_K);
    xm_search_scales(&coding, -128, 127, values, importance, parts);
}
