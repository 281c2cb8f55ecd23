/*
 * linear.h - linear layers of training over the pool, norms over rows, activations.
 *
 * All matrices are row-major; a weight is [out][in] as in GGUF. The split into tasks depends on the
 * sizes alone and each task is one product on its thread, so that results depend neither on the
 * number of threads nor on their timing. Gradients of parameters accumulate.
 */
#ifndef XM_TRAIN_LINEAR_H
#define XM_TRAIN_LINEAR_H

#include "train/gemm.h"

/* y[rows][out] = x[rows][in] w^T + bias (may be NULL) */
void xm_linear_forward(const xm_compute *compute, const float *x, const float *weight,
                       const float *bias, float *y, int32_t rows, int32_t in, int32_t out);
/* As above, and y += residual, [rows][out]; y may not be residual. */
void xm_linear_forward_residual(const xm_compute *compute, const float *x, const float *weight,
                                const float *bias, const float *residual, float *y, int32_t rows,
                                int32_t in, int32_t out);
/* dx = dy w (accumulate: dx += dy w) */
void xm_linear_backward_input(const xm_compute *compute, const float *dy, const float *weight,
                              float *dx, int32_t rows, int32_t in, int32_t out, bool accumulate);
/* dweight += dy^T x; dbias (may be NULL) += column sums of dy */
void xm_linear_backward_weight(const xm_compute *compute, const float *dy, const float *x,
                               float *dweight, float *dbias, int32_t rows, int32_t in, int32_t out);

/* y = gelu(x) and dx = dy * gelu'(x), elementwise over count floats; dx may be dy. */
void xm_gelu_forward(xm_pool *pool, const float *x, float *y, size_t count);
void xm_gelu_backward(xm_pool *pool, const float *x, const float *dy, float *dx, size_t count);

/* SwiGLU, elementwise over count floats; dgate may be dy. */
void xm_swiglu_forward(xm_pool *pool, const float *gate, const float *up, float *y, size_t count);
void xm_swiglu_backward(xm_pool *pool, const float *gate, const float *up, const float *dy,
                        float *dgate, float *dup, size_t count);

/* A LayerNorm over rows or, where bias is NULL, an RMSNorm. statistics: [rows][2], mean (LayerNorm
 * only) and inverse deviation of each row. */
void xm_norm_forward(xm_pool *pool, const float *x, const float *weight, const float *bias,
                     float epsilon, float *y, float *statistics, int32_t rows, int32_t width);

enum { XM_NORM_CHUNKS = 16 };
/* dx += ...; dbias NULL: RMSNorm; partial: scratch of XM_NORM_CHUNKS * 2 * width floats. */
void xm_norm_backward(xm_pool *pool, const float *dy, const float *x, const float *weight,
                      const float *statistics, float *dx, float *dweight, float *dbias,
                      float *partial, int32_t rows, int32_t width);

#endif
