/*
 * weight_type.c - the rows of the weight type table and the conversions behind them.
 *
 * Results are those of ggml's reference code to the bit, so a file quantised here is the file that
 * other tools would have made. Inputs that C leaves undefined there (NaN, infinities, scales so
 * small that their reciprocal overflows) give quants within range instead. Pure functions; any
 * thread. Blocks may lie at any address.
 */
#include "format/weight_type.h"

#include <math.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is used as it lies in memory");

enum {
    BLOCK = 32,
    Q8_0_BYTES = 2 + BLOCK,
    Q4_0_BYTES = 2 + BLOCK / 2,
};

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

/* --- blocks of 32 ----------------------------------------------------------------------------- */

static float read_scale(const unsigned char *block)
{
    uint16_t half;
    memcpy(&half, block, sizeof half);
    return xm_f16_to_f32(half);
}

static void write_scale(unsigned char *block, float scale)
{
    uint16_t half = xm_f32_to_f16(scale);
    memcpy(block, &half, sizeof half);
}

/* The element of largest magnitude, with its sign; the first of equals. */
static float largest(const float *values)
{
    float found = 0.0f;
    for (int j = 0; j < BLOCK; j++)
        if (fabsf(values[j]) > fabsf(found))
            found = values[j];
    return found;
}

/* A float to an integer in [low, high]; NaN gives low. */
static int32_t clamp(float x, int32_t low, int32_t high)
{
    if (!(x > (float)low))
        return low;
    return x < (float)high ? (int32_t)x : high;
}

static void q8_0_to_f32(const void *blocks, float *values, size_t count)
{
    const unsigned char *block = blocks;
    for (size_t i = 0; i < count; i += BLOCK, block += Q8_0_BYTES) {
        float scale = read_scale(block);
        for (int j = 0; j < BLOCK; j++)
            values[i + (size_t)j] = (float)(int8_t)block[2 + j] * scale;
    }
}

static void q8_0_from_f32(const float *values, void *blocks, size_t count)
{
    unsigned char *block = blocks;
    for (size_t i = 0; i < count; i += BLOCK, block += Q8_0_BYTES) {
        float scale = fabsf(largest(values + i)) / 127.0f;
        float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        write_scale(block, scale);
        for (int j = 0; j < BLOCK; j++) {
            float rounded = roundf(values[i + (size_t)j] * inverse); /* halves away from zero */
            block[2 + j] = (unsigned char)clamp(rounded, -127, 127);
        }
    }
}

static void q4_0_to_f32(const void *blocks, float *values, size_t count)
{
    const unsigned char *block = blocks;
    for (size_t i = 0; i < count; i += BLOCK, block += Q4_0_BYTES) {
        float scale = read_scale(block);
        for (int j = 0; j < BLOCK / 2; j++) {
            values[i + (size_t)j] = (float)((block[2 + j] & 15) - 8) * scale;
            values[i + (size_t)j + BLOCK / 2] = (float)((block[2 + j] >> 4) - 8) * scale;
        }
    }
}

static void q4_0_from_f32(const float *values, void *blocks, size_t count)
{
    unsigned char *block = blocks;
    for (size_t i = 0; i < count; i += BLOCK, block += Q4_0_BYTES) {
        float scale = largest(values + i) / -8.0f;
        float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        write_scale(block, scale);
        for (int j = 0; j < BLOCK / 2; j++) {
            int32_t low = clamp(values[i + (size_t)j] * inverse + 8.5f, 0, 15);
            int32_t high = clamp(values[i + (size_t)j + BLOCK / 2] * inverse + 8.5f, 0, 15);
            block[2 + j] = (unsigned char)(low | high << 4);
        }
    }
}

/* --- the table -------------------------------------------------------------------------------- */

static const xm_weight_traits table[] = {
    {XM_TYPE_F32, "F32", 1, 4, f32_to_f32, f32_from_f32},
    {XM_TYPE_F16, "F16", 1, 2, f16_to_f32, f16_from_f32},
    {XM_TYPE_BF16, "BF16", 1, 2, bf16_to_f32, bf16_from_f32},
    {XM_TYPE_Q8_0, "Q8_0", BLOCK, Q8_0_BYTES, q8_0_to_f32, q8_0_from_f32},
    {XM_TYPE_Q4_0, "Q4_0", BLOCK, Q4_0_BYTES, q4_0_to_f32, q4_0_from_f32},
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

const xm_weight_traits *xm_weight_traits_all(size_t *count)
{
    *count = TYPES;
    return table;
}
