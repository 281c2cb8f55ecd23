/*
 * gemm.c - see gemm.h.
 */
#include "train/gemm.h"

#include <cblas.h>

void xm_gemm_setup(void)
{
    openblas_set_num_threads(1);
}

static void blas_nt(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    (void)scratch;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, a, a_stride, b, b_stride,
                beta, c, c_stride);
}

static void blas_nn(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    (void)scratch;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1.0f, a, a_stride, b, b_stride,
                beta, c, c_stride);
}

static void blas_tn(void *scratch, int32_t m, int32_t n, int32_t k, const float *a,
                    int32_t a_stride, const float *b, int32_t b_stride, float beta, float *c,
                    int32_t c_stride)
{
    (void)scratch;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1.0f, a, a_stride, b, b_stride,
                beta, c, c_stride);
}

const xm_gemm xm_gemm_f32 = {
    .precision = XM_PRECISION_F32, .nt = blas_nt, .nn = blas_nn, .tn = blas_tn};

/* NULL: this CPU does not multiply BF16. */
static const xm_gemm *bf16_here(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bf16"))
        return &xm_gemm_bf16;
#endif
    return NULL;
}

xmoe_status xm_gemm_select(xm_precision precision, const xm_gemm **gemm, xmoe_error *error)
{
    const xm_gemm *bf16 = bf16_here();
    if (precision == XM_PRECISION_BF16 && bf16 == NULL)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "precision is bf16, but this CPU has no AVX512_BF16; f32 works everywhere");
    *gemm = precision == XM_PRECISION_F32 || bf16 == NULL ? &xm_gemm_f32 : bf16;
    return XMOE_OK;
}

const char *xm_precision_name(xm_precision precision)
{
    static const char *const names[] = {"f32", "bf16", "auto"};
    return names[precision];
}

const char *xm_gemm_kernels(const xm_gemm *gemm)
{
    return gemm->precision == XM_PRECISION_BF16 ? "AVX512_BF16" : openblas_get_corename();
}

xm_compute xm_compute_f32(xm_pool *pool)
{
    return (xm_compute){.pool = pool, .gemm = &xm_gemm_f32};
}

void *xm_compute_scratch(const xm_compute *compute, int32_t thread)
{
    size_t bytes = compute->gemm->scratch_bytes;
    return bytes > 0 ? compute->scratch + (size_t)thread * bytes : NULL;
}
