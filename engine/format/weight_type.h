/*
 * weight_type.h - the table of weight types: how elements are stored, and their conversion from and
 * to F32. One row per type; nothing else in the engine knows a type's block layout: whoever needs
 * the integers behind the values (kernels/pack.c) gets blocks taken apart (weight_coding.h).
 *
 * Type numbers and block layouts are those of the public GGUF specification; weight_legacy.c,
 * weight_k.c and weight_iq.c say them type by type.
 */
#ifndef XM_FORMAT_WEIGHT_TYPE_H
#define XM_FORMAT_WEIGHT_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xm_weight_block;

typedef enum {
    XM_TYPE_F32 = 0,
    XM_TYPE_F16 = 1,
    XM_TYPE_Q4_0 = 2,
    XM_TYPE_Q4_1 = 3,
    XM_TYPE_Q5_0 = 6,
    XM_TYPE_Q5_1 = 7,
    XM_TYPE_Q8_0 = 8,
    XM_TYPE_Q2_K = 10,
    XM_TYPE_Q3_K = 11,
    XM_TYPE_Q4_K = 12,
    XM_TYPE_Q5_K = 13,
    XM_TYPE_Q6_K = 14,
    XM_TYPE_IQ4_NL = 20,
    XM_TYPE_IQ4_XS = 23,
    XM_TYPE_BF16 = 30,
    XM_TYPE_MXFP4 = 39,
} xm_weight_type; /* numbers as in GGUF files */

enum { XM_TYPE_NUMBERS = 40 }; /* all types are below */

typedef struct {
    xm_weight_type type;
    const char *name;        /* "Q8_0" */
    uint32_t block_elements; /* rows are whole numbers of blocks */
    uint32_t block_bytes;
    uint32_t file_type; /* general.file_type of files that mostly hold this type */

    /* Plain types: each element by itself. NULL for types of blocks. */
    void (*to_f32)(const void *elements, float *values, size_t count);
    void (*from_f32)(const float *values, void *elements, size_t count);
    /* Types of blocks: one block taken apart (weight_coding.h), put together from parts in range,
     * and the parts that stand for values best. NULL for plain types. */
    void (*split)(const uint8_t *block, struct xm_weight_block *parts);
    void (*join)(const struct xm_weight_block *parts, uint8_t *block);
    void (*fill)(const float *values, const float *importance, struct xm_weight_block *parts);
} xm_weight_traits;

/* The names of all rows, for messages and command lines. */
#define XM_WEIGHT_TYPE_NAMES                                                                       \
    "F32|F16|BF16|Q8_0|Q4_0|Q4_1|Q5_0|Q5_1|Q2_K|Q3_K|Q4_K|Q5_K|Q6_K|IQ4_NL|IQ4_XS|MXFP4"

/* Blocks to values and back; count: elements, whole blocks. Blocks may lie at any address.
 * importance: how much the error of each of the count values matters, finite and >= 0, scale
 * without meaning; NULL: all the same. Types without a choice of scales ignore it. */
void xm_weights_to_f32(const xm_weight_traits *traits, const void *blocks, float *values,
                       size_t count);
void xm_weights_from_f32(const xm_weight_traits *traits, const float *values,
                         const float *importance, void *blocks, size_t count);

/* NULL for a number that this engine does not read. */
const xm_weight_traits *xm_weight_traits_of(uint32_t type);
/* By name ("Q8_0"), NULL if unknown or NULL. */
const xm_weight_traits *xm_weight_traits_by_name(const char *name);
/* All rows, in order of names as people list them. */
const xm_weight_traits *xm_weight_traits_all(size_t *count);

/* Conversions of single values; to F16 and BF16 by round to nearest even. */
float xm_f16_to_f32(uint16_t half);
uint16_t xm_f32_to_f16(float value);
float xm_bf16_to_f32(uint16_t value);
uint16_t xm_f32_to_bf16(float value);
/* E8M0, halved, as MXFP4 has it: 2^(exponent - 128), a denormal for 0 and 1. */
float xm_e8m0_to_f32(uint8_t exponent);

#endif
