/*
 * weight_type.h - the table of weight types: how elements are stored, and their conversion from and
 * to F32. One row per type; nothing else in the engine switches on a type's block layout (kernels
 * pack from it, see kernels/kernels.h).
 *
 * Type numbers and block layouts are those of the public GGUF specification:
 *   Q8_0  32 elements: F16 scale, 32 int8;            x = scale * q
 *   Q4_0  32 elements: F16 scale, 16 bytes of nibbles; byte j holds element j (low) and j + 16
 *         (high);                                      x = scale * (q - 8)
 */
#ifndef XM_FORMAT_WEIGHT_TYPE_H
#define XM_FORMAT_WEIGHT_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    XM_TYPE_F32 = 0,
    XM_TYPE_F16 = 1,
    XM_TYPE_Q4_0 = 2,
    XM_TYPE_Q8_0 = 8,
    XM_TYPE_BF16 = 30,
} xm_weight_type; /* numbers as in GGUF files */

typedef struct {
    xm_weight_type type;
    const char *name;        /* "Q8_0" */
    uint32_t block_elements; /* rows are whole numbers of blocks */
    uint32_t block_bytes;
    void (*to_f32)(const void *blocks, float *values, size_t count);   /* count: whole blocks */
    void (*from_f32)(const float *values, void *blocks, size_t count); /* round to nearest */
} xm_weight_traits;

/* NULL for a number that this engine does not read. */
const xm_weight_traits *xm_weight_traits_of(uint32_t type);
/* By name ("Q8_0"), NULL if unknown or NULL. */
const xm_weight_traits *xm_weight_traits_by_name(const char *name);
/* All rows, for tests that walk the table. */
const xm_weight_traits *xm_weight_traits_all(size_t *count);

/* Conversions of single values; to F16 and BF16 by round to nearest even. */
float xm_f16_to_f32(uint16_t half);
uint16_t xm_f32_to_f16(float value);
float xm_bf16_to_f32(uint16_t value);
uint16_t xm_f32_to_bf16(float value);

#endif
