/*
 * weight_coding.h - how the elements of each block type are coded, as constants: what packing and
 * kernels need to know, and what makes one kernel serve many types.
 *
 * A block holds codes of `bits` bits, a scale, and perhaps a minimum. Groups of 16 or 32 elements
 * share both:
 *
 *   element = value * (scale * group's scale) + minimum * group's minimum
 *   value   = code - zero, or values[code] for a table, or the code itself if it is an int8
 *
 * where the group's scale and minimum are integers, or 1 if the type has none. Both products of a
 * scale and an integer, and that with the value, are exact in F32; only the sum rounds. K types
 * store what is to be subtracted; xm_weight_block holds it with its sign flipped.
 */
#ifndef XM_FORMAT_WEIGHT_CODING_H
#define XM_FORMAT_WEIGHT_CODING_H

#include "format/weight_type.h"

enum {
    XM_BLOCK_GROUPS = 16,    /* groups of the largest block */
    XM_BLOCK_ELEMENTS = 256, /* elements of it */
};

typedef struct {
    uint16_t elements;    /* of a block: 32 or 256 */
    uint8_t group;        /* elements that share a scale: 16 or 32 */
    uint8_t bits;         /* of a code: 2 to 6; 8: an int8 */
    uint8_t zero;         /* the code of 0 */
    bool minimum;         /* the type has minima */
    bool group_scales;    /* the type has integers per group; else the group is the block */
    bool power_of_two;    /* the scale is E8M0: a byte e for 2^(e - 128); else F16 */
    const int8_t *values; /* [16]: the table of values; NULL: none */
} xm_weight_coding;

/* One block taken apart. */
typedef struct xm_weight_block {
    uint16_t scale;                   /* F16, or E8M0 in the low byte */
    uint16_t minimum;                 /* F16 */
    int8_t scales[XM_BLOCK_GROUPS];   /* by group */
    uint8_t minima[XM_BLOCK_GROUPS];  /* by group */
    uint8_t codes[XM_BLOCK_ELEMENTS]; /* by element */
} xm_weight_block;

/* Tables of values: of IQ4_NL and IQ4_XS, and twice those of FP4 (E2M1). */
extern const int8_t xm_iq4_values[16];
extern const int8_t xm_fp4_values[16];

/* For types of blocks; folds where the type is a constant. bits 0 for plain types. */
static inline __attribute__((always_inline)) xm_weight_coding
xm_weight_coding_of(xm_weight_type type)
{
    switch (type) {
    case XM_TYPE_Q8_0:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 8};
    case XM_TYPE_Q4_0:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 4, .zero = 8};
    case XM_TYPE_Q4_1:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 4, .minimum = true};
    case XM_TYPE_Q5_0:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 5, .zero = 16};
    case XM_TYPE_Q5_1:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 5, .minimum = true};
    case XM_TYPE_Q2_K:
        return (xm_weight_coding){
            .elements = 256, .group = 16, .bits = 2, .minimum = true, .group_scales = true};
    case XM_TYPE_Q3_K:
        return (xm_weight_coding){
            .elements = 256, .group = 16, .bits = 3, .zero = 4, .group_scales = true};
    case XM_TYPE_Q4_K:
        return (xm_weight_coding){
            .elements = 256, .group = 32, .bits = 4, .minimum = true, .group_scales = true};
    case XM_TYPE_Q5_K:
        return (xm_weight_coding){
            .elements = 256, .group = 32, .bits = 5, .minimum = true, .group_scales = true};
    case XM_TYPE_Q6_K:
        return (xm_weight_coding){
            .elements = 256, .group = 16, .bits = 6, .zero = 32, .group_scales = true};
    case XM_TYPE_IQ4_NL:
        return (xm_weight_coding){.elements = 32, .group = 32, .bits = 4, .values = xm_iq4_values};
    case XM_TYPE_IQ4_XS:
        return (xm_weight_coding){
            .elements = 256, .group = 32, .bits = 4, .group_scales = true, .values = xm_iq4_values};
    case XM_TYPE_MXFP4:
        return (xm_weight_coding){
            .elements = 32, .group = 32, .bits = 4, .power_of_two = true, .values = xm_fp4_values};
    default:
        return (xm_weight_coding){0};
    }
}

/* The elements of one block. Their sums' rounding is the only one. */
void xm_weight_block_to_f32(const xm_weight_coding *coding, const xm_weight_block *parts,
                            float *values);

/* What a code stands for: -128 to 127. */
static inline int32_t xm_weight_value(const xm_weight_coding *coding, uint8_t code)
{
    if (coding->values != NULL)
        return coding->values[code];
    return coding->bits == 8 ? (int8_t)code : code - coding->zero;
}

#endif
