/*
 * kernel_data.h - what the tests of kernels share: the variants of this CPU, random data with
 * extreme values in it, comparison of bits.
 */
#ifndef XM_TESTS_KERNEL_DATA_H
#define XM_TESTS_KERNEL_DATA_H

#include "kernels/kernels.h"

/* The variants that this CPU runs, scalar first; filled by kernel_setup (a cmocka group setup). */
extern const xm_kernels *tables[4];
extern int32_t table_count;
int kernel_setup(void **state);

/* EXTREME: one value in eight is anything at all: NaN, infinities, denormals, huge, tiny, -0. */
enum { PLAIN, EXTREME, MODES };

uint64_t random_bits(void);
float random_normal(void);
/* malloc'ed to the byte, so that the address sanitizer sees what lies beyond. */
float *random_floats(size_t count, int mode);
void *copy_of(const void *data, size_t bytes);

/* Equal bits, or both NaN. */
void expect_same(const char *what, const char *isa, const float *expected, const float *found,
                 size_t count);
/* |found - expected| <= bound */
void expect_near(const char *what, double found, double expected, double bound);

#endif
