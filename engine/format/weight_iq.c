/*
 * weight_iq.c - the types of 4 bits whose codes index a table of 16 values. Bytes of a block in
 * order:
 *
 *   IQ4_NL   F16 scale, 16 of nibbles                                   32 elements
 *   IQ4_XS   F16 d, 2 and 4 of scales, 128 of nibbles                   256, groups of 32
 *   MXFP4    E8M0 exponent e, 16 of nibbles                             32 elements
 *
 *   x = scale * value[q], with scale = d * (6 bits - 32) in IQ4_XS, 2^(e - 128) in MXFP4
 *
 * Each 16 bytes of nibbles are 32 elements: byte j holds j (low) and j + 16 (high). The values of
 * MXFP4 are those of FP4 (E2M1) doubled, so that they are integers; the scale is halved for it.
 */
#include "format/weight_block.h"

#include <math.h>

const int8_t xm_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
const int8_t xm_fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* --- IQ4_NL --- */

void xm_iq4_nl_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = xm_read_u16(block);
    xm_split_nibbles(block + 2, 16, parts->codes);
}

void xm_iq4_nl_join(const xm_weight_block *parts, uint8_t *block)
{
    xm_write_u16(parts->scale, block);
    xm_join_nibbles(parts->codes, 16, block + 2);
}

void xm_iq4_nl_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_IQ4_NL);
    xm_search_scales(&coding, 1, 1, values, importance, parts);
}

/* --- IQ4_XS --- */

/* Scale g: its low nibble is nibble g of the 4 bytes, its upper bits the field 2g of the 16. */
void xm_iq4_xs_split(const uint8_t *block, xm_weight_block *parts)
{
    unsigned high = xm_read_u16(block + 2);

    parts->scale = xm_read_u16(block);
    for (size_t g = 0; g < 8; g++) {
        unsigned low = block[4 + g / 2] >> g % 2 * 4 & 15;
        parts->scales[g] = (int8_t)((int)(low | (high >> 2 * g & 3) << 4) - 32);
        xm_split_nibbles(block + 8 + g * 16, 16, parts->codes + g * 32);
    }
}

void xm_iq4_xs_join(const xm_weight_block *parts, uint8_t *block)
{
    unsigned high = 0;

    xm_write_u16(parts->scale, block);
    memset(block + 4, 0, 4);
    for (size_t g = 0; g < 8; g++) {
        unsigned scale = (unsigned)(parts->scales[g] + 32);
        high |= scale >> 4 << 2 * g;
        block[4 + g / 2] |= (uint8_t)((scale & 15) << g % 2 * 4);
        xm_join_nibbles(parts->codes + g * 32, 16, block + 8 + g * 16);
    }
    xm_write_u16((uint16_t)high, block + 2);
}

void xm_iq4_xs_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_IQ4_XS);
    xm_search_scales(&coding, -32, 31, values, importance, parts);
}

/* --- MXFP4 --- */

void xm_mxfp4_split(const uint8_t *block, xm_weight_block *parts)
{
    parts->scale = block[0];
    xm_split_nibbles(block + 1, 16, parts->codes);
}

void xm_mxfp4_join(const xm_weight_block *parts, uint8_t *block)
{
    block[0] = (uint8_t)parts->scale;
    xm_join_nibbles(parts->codes, 16, block + 1);
}

/* The nearest values under a scale; the first of equals. */
static void choose_fp4_codes(const float *values, xm_weight_block *parts)
{
    float scale = xm_e8m0_to_f32((uint8_t)parts->scale);
    for (size_t i = 0; i < 32; i++) {
        float best = fabsf(values[i]);
        parts->codes[i] = 0;
        for (uint8_t code = 1; code < 16; code++) {
            float error = fabsf(scale * (float)xm_fp4_values[code] - values[i]);
            if (error < best) {
                best = error;
                parts->codes[i] = code;
            }
        }
    }
}

/* As the OCP specification has it: the exponent of the largest magnitude, less that of FP4's
 * largest (2), then the nearest values. With importance the exponents beside it are tried too. */
void xm_mxfp4_fill(const float *values, const float *importance, xm_weight_block *parts)
{
    const xm_weight_coding coding = xm_weight_coding_of(XM_TYPE_MXFP4);
    float largest = 0.0f;
    for (size_t i = 0; i < 32; i++)
        largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    if (largest > 0.0f) /* ilogb of infinity is INT_MAX */
        parts->scale = (uint16_t)xm_clamp_to_int((float)ilogbf(largest) + 125.0f, 0, 254);
    choose_fp4_codes(values, parts);
    int32_t middle = parts->scale;
    for (int32_t e = middle - 1; importance != NULL && e <= middle + 1; e += 2) {
        xm_weight_block other = {.scale = (uint16_t)e};
        if (e < 0 || e > 254)
            continue;
        choose_fp4_codes(values, &other);
        if (xm_block_error(&coding, &other, values, importance) <
            xm_block_error(&coding, parts, values, importance))
            *parts = other;
    }
}
