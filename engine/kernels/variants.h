/*
 * variants.h - the tables of kernels that this build contains; dispatch.c chooses among them.
 */
#ifndef XM_KERNELS_VARIANTS_H
#define XM_KERNELS_VARIANTS_H

#include "kernels/kernels.h"

extern const xm_kernels xm_kernels_scalar; /* scalar.c, always there */

#if defined(__x86_64__)
extern const xm_kernels xm_kernels_avx2;   /* table_simd.c; needs AVX2, FMA, F16C */
extern const xm_kernels xm_kernels_avx512; /* table_simd.c; needs F, BW, DQ, VL, VNNI, F16C, FMA */
#endif

#endif
