/*
 * gemm.h - the matrix products of training and who computes them: BLAS in F32, or kernels of our
 * own that round what they multiply to BF16 (gemm_bf16_simd.c).
 *
 * All matrices are row-major, strides are those of the stored matrices, in floats. A product runs
 * on the calling thread, and its result depends on its operands alone. In BF16 it does not matter
 * for the bits how a product is cut into several along m or n.
 */
#ifndef XM_TRAIN_GEMM_H
#define XM_TRAIN_GEMM_H

#include "base/error.h"
#include "base/pool.h"

/* c[m][n] = beta * c + op(a) op(b); with beta 0, c is not read. scratch is the calling thread's. */
typedef void (*xm_gemm_fn)(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                           int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                           int32_t c_stride);

/* Values are those of checkpoints. */
typedef enum { XM_PRECISION_F32, XM_PRECISION_BF16, XM_PRECISION_AUTO } xm_precision;

typedef struct {
    xm_precision precision;
    size_t scratch_bytes; /* at a 64-byte boundary; 0: none */
    xm_gemm_fn nt;        /* a[m][k] b[n][k] */
    xm_gemm_fn nn;        /* a[m][k] b[k][n] */
    xm_gemm_fn tn;        /* a[k][m] b[k][n] */
} xm_gemm;

/* OpenBLAS. Before the first product xm_gemm_setup has to be called: BLAS itself uses one thread
 * from then on. */
extern const xm_gemm xm_gemm_f32;
void xm_gemm_setup(void);

#if defined(__x86_64__)
/* a and b are rounded to BF16 (to nearest, ties to even); products are exact, sums are F32. Numbers
 * below 2^-126 count as zero, in operands and in sums. Only where xm_gemm_select gives it. */
extern const xm_gemm xm_gemm_bf16;
#endif

/* Auto: BF16 where this CPU multiplies it, else F32. UNSUPPORTED: BF16 where it does not. */
xmoe_status xm_gemm_select(xm_precision precision, const xm_gemm **gemm, xmoe_error *error);
/* "f32", "bf16", "auto" */
const char *xm_precision_name(xm_precision precision);
/* The kernels that a table runs on here: those that BLAS chose when it was loaded, by its name
 * ("Haswell"), or "AVX512_BF16". */
const char *xm_gemm_kernels(const xm_gemm *gemm);

/* What operations compute with: threads, products, and scratch for each of the threads. */
typedef struct {
    xm_pool *pool; /* NULL: the caller */
    const xm_gemm *gemm;
    char *scratch; /* [threads of the pool][gemm->scratch_bytes] */
} xm_compute;

/* With products in F32, which need no scratch. */
xm_compute xm_compute_f32(xm_pool *pool);
void *xm_compute_scratch(const xm_compute *compute, int32_t thread);

#endif
