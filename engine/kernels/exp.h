/*
 * exp.h - the numbers of the exponential function that all variants share.
 *
 * exp(x) for x in [XM_EXP_LOWEST, XM_EXP_HIGHEST], 0 below, +inf above, NaN for NaN; at most 1 ulp
 * from the exact value. Every variant takes these steps, in this order:
 *
 *     t = fma(x, 1/ln 2, 1.5 * 2^23)     the sum's last bits are n, the integer nearest to x / ln 2
 *     n = t - 1.5 * 2^23
 *     r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))                              |r| <= 0.3467
 *     p = fma(... fma(fma(C6, r, C5), r, C4) ..., r, C0)                      Horner, C1 = C0 = 1
 *     p * 2^n, with 2^n built from t's last bits: n + 127 as exponent
 *
 * 2^n is a normal number over the whole range, so the last product is exact. The polynomial is 1 +
 * r + r^2 q(r), q interpolating at the five Chebyshev nodes of [-0.3469, 0.3469] (relative error
 * 1.1e-8, that is 0.17 ulp, with the coefficients rounded to F32).
 */
#ifndef XM_KERNELS_EXP_H
#define XM_KERNELS_EXP_H

#define XM_EXP_LOWEST   (-87.0f)
#define XM_EXP_HIGHEST  88.0f
#define XM_EXP_LOG2E    0x1.715476p+0f
#define XM_EXP_SHIFT    12582912.0f /* 1.5 * 2^23: sums with it are rounded to integers */
#define XM_EXP_LN2_HIGH 0x1.62e43p-1f
#define XM_EXP_LN2_LOW  (-0x1.05c61p-29f)
#define XM_EXP_C2       0x1p-1f
#define XM_EXP_C3       0x1.5554dcp-3f
#define XM_EXP_C4       0x1.555518p-5f
#define XM_EXP_C5       0x1.120be2p-7f
#define XM_EXP_C6       0x1.6d117cp-10f

/* gelu(x) = x / (1 + exp(x * (A + B x^2))): tanh(u) = 1 - 2 / (1 + exp(2u)) put into x/2 (1 +
 * tanh u) leaves no difference of nearly equal numbers. A = -2 sqrt(2/pi), B = 0.044715 A. */
#define XM_GELU_A (-0x1.988454p+0f)
#define XM_GELU_B (-0x1.2444f2p-4f)

/* GPT-OSS's clamped SwiGLU. */
#define XM_SWIGLU_LIMIT     7.0f
#define XM_SWIGLU_STEEPNESS 1.702f

/* quantize_i16 takes blocks whose maximum is below this for blocks of zeros: 1 / scale would leave
 * the range of F32. */
#define XM_QUANTIZE_TINY 0x1p-100f

#endif
