/*
 * weight_legacy.c - the types whose blocks are 32 elements with an F16 scale, and perhaps an F16
 * minimum, and nothing above: bytes of a block in order,
 *
 *   Q8_0   scale, 32 int8                              x = scale * q
 *   Q4_0   scale, 16 bytes of nibbles                  x = scale * (q - 8)
 *   Q4_1   scale, minimum, 16 bytes of nibbles         x = scale * q + minimum
 *   Q5_0   scale, 4 bytes of fifth bits, 16 of nibbles x = scale * (q - 16)
 *   Q5_1   scale, minimum, 4 bytes, 16 bytes           x = scale * q + minimum
 *
 * Byte j of nibbles holds element j (low) and j + 16 (high); bit i of the fifth bits, as one little
 * endian number, is element i's. Without importance rounding is that of ggml's reference code; with
 * it, scales are searched too, but for Q8_0, and what leaves the least error is taken. Inputs that
 * C leaves undefined there (NaN, infinities, scales so small that their reciprocal overflows) give
 * codes within range instead.
 */
#include "format/weight_block.h"

#include <math.h>

enum { BLOCK = 32 };

/* The element of largest magnitude, with its sign; the first of equals. */
static float largest(const float *values)
{
    float found = 0.0f;
    for (int j = 0; j < BLOCK; j++)
        if (fabsf(values[j]) > fabsf(found))
            found = values[j];
    return found;
}

static float inverse_of(float scale)
{
    return scale != 0.0f ? 1.0f / scale : 0.0f;
}

/* codes from the signed extreme, which becomes code 0: -2^(bits - 1) times the scale. */
static void fill_signed(const float *values, int32_t half, xm_weight_block *parts)
{
    float scale = largest(values) / (float)-half;
    float inverse = inverse_of(scale);
    parts->scale = xm_f32_to_f16(scale);
    for (int j = 0; j < BLOCK; j++) {
        float code = values[j] * inverse + ((float)half + 0.5f);
        parts->codes[j] = (uint8_t)xm_clamp_to_int(code, 0, 2 * half - 1);
    }
}

/* codes from 0 at the least element to `most` at the greatest. */
static void fill_range(const float *values, int32_t most, xm_weight_block *parts)
{
    float low = values[0], high = values[0];
    for (int j = 1; j < BLOCK; j++) {
        low = values[j] < low ? values[j] : low;
        high = values[j] > high ? values[j] : high;
    }
    float scale = (high - low) / (float)most;
    float inverse = inverse_of(scale);
    parts->scale = xm_f32_to_f16(scale);
    parts->minimum = xm_f32_to_f16(low);
    for (int j = 0; j < BLOCK; j++) {
        float code = (values[j] - low) * inverse + 0.5f;
        parts->codes[j] = (uint8_t)xm_clamp_to_int(code, 0, most);
    }
}

/* Replaces the parts by better ones, if a search finds such. */
static void search(xm_weight_type type, const float *values, const float *importance,
                   xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(type);
    xm_weight_block found = {0};
    if (coding.minimum)
        xm_search_with_minima(&coding, 1, values, importance, &found);
    else
        xm_search_scales(&coding, 1, 1, values, importance, &found);
    /* The block has one scale and one minimum: an integer of 0 cannot be stored beside them. */
    if (found.scales[0] == 0)
        found.scale = 0;
    if (found.minima[0] == 0)
        found.minimum = 0;
    if (xm_block_error(&coding, &found, values, importance) <
        xm_block_error(&coding, parts, values, importance))
        *parts = found;
}

static void split_fifth_bits(const uint8_t *bits, uint8_t *codes)
{
    for (size_t i = 0; i < BLOCK; i++)
        codes[i] |= (uint8_t)((bits[i / 8] >> i % 8 & 1) << 4);
}

static void join_fifth_bits(const uint8_t *codes, uint8_t *bits)
{
    memset(bits, 0, BLOCK / 8);
    for (size_t i = 0; i < BLOCK; i++)
        bits[i / 8] |= (uint8_t)(codes[i] >> 4 << i % 8);
}

/* --- Q8_0 --- */

void xm_q8_0_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    memcpy(parts->codes, block + 2, BLOCK);
}

void xm_q8_0_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    memcpy(block + 2, parts->codes, BLOCK);
}

void xm_q8_0_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    (void)importance;
    float scale = fabsf(largest(values)) / 127.0f;
    float inverse = inverse_of(scale);
    parts->scale = xm_f32_to_f16(scale);
    for (int j = 0; j < BLOCK; j++) {
        float rounded = roundf(values[j] * inverse); /* halves away from zero */
        parts->codes[j] = (uint8_t)xm_clamp_to_int(rounded, -127, 127);
    }
}

/* --- Q4_0 --- */

void xm_q4_0_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    xm_split_nibbles(block + 2, 16, parts->codes);
}

void xm_q4_0_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    xm_join_nibbles(parts->codes, 16, block + 2);
}

void xm_q4_0_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    fill_signed(values, 8, parts);
    if (importance != NULL)
        search(XM_TYPE_Q4_0, values, importance, parts);
}

/* --- Q4_1 --- */

void xm_q4_1_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    parts->minimum = xm_read_u16(block + 2);
    xm_split_nibbles(block + 4, 16, parts->codes);
}

void xm_q4_1_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    xm_write_u16(parts->minimum, block + 2);
    xm_join_nibbles(parts->codes, 16, block + 4);
}

void xm_q4_1_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    fill_range(values, 15, parts);
    if (importance != NULL)
        search(XM_TYPE_Q4_1, values, importance, parts);
}

/* --- Q5_0 --- */

void xm_q5_0_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    xm_split_nibbles(block + 6, 16, parts->codes);
    split_fifth_bits(block + 2, parts->codes);
}

void xm_q5_0_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    join_fifth_bits(parts->codes, block + 2);
    xm_join_nibbles(parts->codes, 16, block + 6);
}

void xm_q5_0_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    fill_signed(values, 16, parts);
    if (importance != NULL)
        search(XM_TYPE_Q5_0, values, importance, parts);
}

/* --- Q5_1 --- */

void xm_q5_1_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    parts->minimum = xm_read_u16(block + 2);
    xm_split_nibbles(block + 8, 16, parts->codes);
    split_fifth_bits(block + 4, parts->codes);
}

void xm_q5_1_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    xm_write_u16(parts->minimum, block + 2);
    join_fifth_bits(parts->codes, block + 4);
    xm_join_nibbles(parts->codes, 16, block + 8);
}

void xm_q5_1_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    fill_range(values, 31, parts);
    if (importance != NULL)
        search(XM_TYPE_Q5_1, values, importance, parts);
}
