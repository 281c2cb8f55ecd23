/*
 * weight_type.c - the rows of the weight type table, conversions of single values, and the walk
 * over blocks that all block types share.
 *
 * Results are those of ggml's reference code to the bit where that leaves no choice, so a file
 * quantised here is the file that other tools would have made. Pure functions; any thread.
 */
#include "format/weight_block.h"
#include "xmoe.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is used as it lies in memory");

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* --- single values ---------------------------------------------------------------------------- */

/* NaNs become quiet and keep their payload, as the F16C instructions do. */
float xm_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ff;
    if (exponent == 0x1f) {
        uint32_t quiet = mantissa != 0 ? 0x400000 : 0;
        return float_of_bits(sign | 0x7f800000 | quiet | mantissa << 13);
    }
    if (exponent == 0) /* zero or subnormal: mantissa * 2^-24, exact in F32 */
        return float_of_bits(sign | bits_of_float((float)mantissa * 0x1p-24f));
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* Drops the low `shift` bits of x, rounding to nearest, ties to even. */
static uint32_t shift_right_rounded(uint32_t x, uint32_t shift)
{
    uint32_t half = UINT32_C(1) << (shift - 1);
    uint32_t odd = x >> shift & 1;
    return (x + half - 1 + odd) >> shift;
}

uint16_t xm_f32_to_f16(float value)
{
    uint32_t bits = bits_of_float(value);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) /* NaN: quiet, upper payload bits kept */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x47800000) /* 65536 and more, infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) { /* normal half; rounding may carry into the exponent: right */
        uint32_t rebiased = magnitude - (UINT32_C(112) << 23);
        return (uint16_t)(sign | shift_right_rounded(rebiased, 13));
    }
    if (magnitude <= 0x33000000) /* up to 2^-25: half of the smallest subnormal, ties to even 0 */
        return (uint16_t)sign;
    uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    uint32_t shift = 126 - (magnitude >> 23); /* 14..24 */
    return (uint16_t)(sign | shift_right_rounded(mantissa, shift));
}

float xm_bf16_to_f32(uint16_t value)
{
    return float_of_bits((uint32_t)value << 16);
}

uint16_t xm_f32_to_bf16(float value)
{
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* (e - 1) << 23 would be the bits of 2^(e - 128), were it not for denormals. */
float xm_e8m0_to_f32(uint8_t exponent)
{
    return float_of_bits(exponent < 2 ? UINT32_C(0x200000) << exponent
                                      : (uint32_t)(exponent - 1) << 23);
}

/* --- plain rows ------------------------------------------------------------------------------- */

static void f32_to_f32(const void *blocks, float *values, size_t count)
{
    memcpy(values, blocks, count * sizeof *values);
}

static void f32_from_f32(const float *values, void *blocks, size_t count)
{
    memcpy(blocks, values, count * sizeof *values);
}

static void f16_to_f32(const void *blocks, float *values, size_t count)
{
    const unsigned char *from = blocks;
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        values[i] = xm_f16_to_f32(half);
    }
}

static void f16_from_f32(const float *values, void *blocks, size_t count)
{
    unsigned char *to = blocks;
    for (size_t i = 0; i < count; i++) {
        uint16_t half = xm_f32_to_f16(values[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

static void bf16_to_f32(const void *blocks, float *values, size_t count)
{
    const unsigned char *from = blocks;
    for (size_t i = 0; i < count; i++) {
        uint16_t value;
        memcpy(&value, from + 2 * i, sizeof value);
        values[i] = xm_bf16_to_f32(value);
    }
}

static void bf16_from_f32(const float *values, void *blocks, size_t count)
{
    unsigned char *to = blocks;
    for (size_t i = 0; i < count; i++) {
        uint16_t value = xm_f32_to_bf16(values[i]);
        memcpy(to + 2 * i, &value, sizeof value);
    }
}

/* --- blocks ----------------------------------------------------------------------------------- */

void xm_weight_block_to_f32(const xm_weight_coding *coding, const xm_weight_block *parts,
                            float *values)
{
    float scale =
        coding->power_of_two ? xm_e8m0_to_f32((uint8_t)parts->scale) : xm_f16_to_f32(parts->scale);
    float minimum = coding->minimum ? xm_f16_to_f32(parts->minimum) : 0.0f;

    for (size_t first = 0; first < coding->elements; first += coding->group) {
        size_t g = first / coding->group;
        float s = coding->group_scales ? scale * (float)parts->scales[g] : scale;
        float m = coding->group_scales ? minimum * (float)parts->minima[g] : minimum;

        for (size_t i = first; i < first + coding->group; i++) {
            float product = s * (float)xm_weight_value(coding, parts->codes[i]);
            values[i] = coding->minimum ? product + m : product;
        }
    }
}

void xm_weights_to_f32(const xm_weight_traits *traits, const void *blocks, float *values,
                       size_t count)
{
    if (traits->to_f32 != NULL) {
        traits->to_f32(blocks, values, count);
        return;
    }
    const xm_weight_coding coding = xm_weight_coding_of(traits->type);
    const uint8_t *block = blocks;
    for (size_t i = 0; i < count; i += traits->block_elements, block += traits->block_bytes) {
        xm_weight_block parts;
        traits->split(block, &parts);
        xm_weight_block_to_f32(&coding, &parts, values + i);
    }
}

void xm_weights_from_f32(const xm_weight_traits *traits, const float *values,
                         const float *importance, void *blocks, size_t count)
{
    if (traits->from_f32 != NULL) {
        traits->from_f32(values, blocks, count);
        return;
    }
    uint8_t *block = blocks;
    for (size_t i = 0; i < count; i += traits->block_elements, block += traits->block_bytes) {
        xm_weight_block parts = {0};
        traits->fill(values + i, importance != NULL ? importance + i : NULL, &parts);
        traits->join(&parts, block);
    }
}

/* --- the table -------------------------------------------------------------------------------- */

#define PLAIN(name)  .to_f32 = name##_to_f32, .from_f32 = name##_from_f32
#define BLOCKS(name) .split = xm_##name##_split, .join = xm_##name##_join, .fill = xm_##name##_fill

static const xm_weight_traits table[] = {
    {XM_TYPE_F32, "F32", 1, 4, 0, PLAIN(f32)},
    {XM_TYPE_F16, "F16", 1, 2, 1, PLAIN(f16)},
    {XM_TYPE_BF16, "BF16", 1, 2, 32, PLAIN(bf16)},
    {XM_TYPE_Q8_0, "Q8_0", 32, 34, 7, BLOCKS(q8_0)},
    {XM_TYPE_Q4_0, "Q4_0", 32, 18, 2, BLOCKS(q4_0)},
    {XM_TYPE_Q4_1, "Q4_1", 32, 20, 3, BLOCKS(q4_1)},
    {XM_TYPE_Q5_0, "Q5_0", 32, 22, 8, BLOCKS(q5_0)},
    {XM_TYPE_Q5_1, "Q5_1", 32, 24, 9, BLOCKS(q5_1)},
    {XM_TYPE_Q2_K, "Q2_K", 256, 84, 10, BLOCKS(q2_k)},
    {XM_TYPE_Q3_K, "Q3_K", 256, 110, 12, BLOCKS(q3_k)},
    {XM_TYPE_Q4_K, "Q4_K", 256, 144, 15, BLOCKS(q4_k)},
    {XM_TYPE_Q5_K, "Q5_K", 256, 176, 17, BLOCKS(q5_k)},
    {XM_TYPE_Q6_K, "Q6_K", 256, 210, 18, BLOCKS(q6_k)},
    {XM_TYPE_IQ4_NL, "IQ4_NL", 32, 18, 25, BLOCKS(iq4_nl)},
    {XM_TYPE_IQ4_XS, "IQ4_XS", 256, 136, 30, BLOCKS(iq4_xs)},
    {XM_TYPE_MXFP4, "MXFP4", 32, 17, 38, BLOCKS(mxfp4)},
};

enum { TYPES = sizeof table / sizeof *table };

const xm_weight_traits *xm_weight_traits_of(uint32_t type)
{
    for (size_t i = 0; i < TYPES; i++)
        if ((uint32_t)table[i].type == type)
            return &table[i];
    return NULL;
}

const xm_weight_traits *xm_weight_traits_by_name(const char *name)
{
    for (size_t i = 0; i < TYPES && name != NULL; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

const char *xmoe_weight_types(void)
{
    return XM_WEIGHT_TYPE_NAMES;
}

const xm_weight_traits *xm_weight_traits_all(size_t *count)
{
    *count = TYPES;
    return table;
}
