/*
 * weight_block.h - what the files of the weight type table share; not for use elsewhere.
 */
#ifndef XM_FORMAT_WEIGHT_BLOCK_H
#define XM_FORMAT_WEIGHT_BLOCK_H

#include "format/weight_coding.h"

#include <string.h>

/* The functions of a row (weight_type.h). */
#define XM_BLOCK_TYPE(name)                                                                        \
    void xm_##name##_split(const uint8_t *block, xm_weight_block *parts);                          \
    void xm_##name##_join(const xm_weight_block *parts, uint8_t *block);                           \
    void xm_##name##_fill(const float *values, const float *importance, xm_weight_block *parts)

/* weight_legacy.c */
XM_BLOCK_TYPE(q8_0);
XM_BLOCK_TYPE(q4_0);
XM_BLOCK_TYPE(q4_1);
XM_BLOCK_TYPE(q5_0);
XM_BLOCK_TYPE(q5_1);

/* weight_k.c */
XM_BLOCK_TYPE(q2_k);
XM_BLOCK_TYPE(q3_k);
XM_BLOCK_TYPE(q4_k);
XM_BLOCK_TYPE(q5_k);
XM_BLOCK_TYPE(q6_k);

/* weight_iq.c */
XM_BLOCK_TYPE(iq4_nl);
XM_BLOCK_TYPE(iq4_xs);
XM_BLOCK_TYPE(mxfp4);

/* weight_search.c: scales, minima and codes of one block with the least error. Groups' integers
 * are 0 to `most` with minima, `low` to `high` (|low| >= |high|) without; 1 and 1 if groups have
 * none. Minima are at most 0. Tables of values ascend. */
void xm_search_with_minima(const xm_weight_coding *coding, int32_t most, const float *values,
                           const float *importance, xm_weight_block *parts);
void xm_search_scales(const xm_weight_coding *coding, int32_t low, int32_t high,
                      const float *values, const float *importance, xm_weight_block *parts);

/* What is left of values by the parts: the sum of importance * (decoded value - value)^2. */
double xm_block_error(const xm_weight_coding *coding, const xm_weight_block *parts,
                      const float *values, const float *importance);

static inline uint16_t xm_read_u16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void xm_write_u16(uint16_t value, uint8_t *to)
{
    memcpy(to, &value, sizeof value);
}

/* The 2 * count codes whose lower 4 bits lie in count bytes: first those of the low nibbles, then
 * those of the high ones; and back. */
static inline void xm_split_nibbles(const uint8_t *bytes, size_t count, uint8_t *codes)
{
    for (size_t i = 0; i < count; i++) {
        codes[i] = bytes[i] & 15;
        codes[count + i] = bytes[i] >> 4;
    }
}

static inline void xm_join_nibbles(const uint8_t *codes, size_t count, uint8_t *bytes)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)((codes[i] & 15) | codes[count + i] << 4);
}

/* A float to an integer in [low, high], towards 0; NaN gives low. */
static inline int32_t xm_clamp_to_int(float x, int32_t low, int32_t high)
{
    if (!(x > (float)low))
        return low;
    return x < (float)high ? (int32_t)x : high;
}

#endif
