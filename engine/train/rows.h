/*
 * rows.h - vectorised loops over one row or range of floats: the part of training that BLAS has no
 * call for. Each function runs on the calling thread; callers split work with the pool.
 *
 * Sums run over 16 lanes that are added in one fixed tree, so a result does not depend on the
 * instruction set that the loader picked (see rows.c).
 */
#ifndef XM_TRAIN_ROWS_H
#define XM_TRAIN_ROWS_H

#include <stddef.h>
#include <stdint.h>

float xm_row_dot(const float *a, const float *b, size_t count);
/* y += scale * x */
void xm_row_add_scaled(float *y, const float *x, float scale, size_t count);
/* y = scale * x; y may be x */
void xm_row_scale(float *y, const float *x, float scale, size_t count);
/* y = a + b */
void xm_row_sum(float *y, const float *a, const float *b, size_t count);
/* Sum of squares in double, for norms over millions of values. */
double xm_row_square_sum(const float *x, size_t count);

/* sums[column] += sum over rows of x[row * stride + column] */
void xm_rows_column_sums(float *sums, const float *x, size_t rows, size_t columns, size_t stride);
/* y[row * stride + column] += bias[column] */
void xm_rows_add_bias(float *y, const float *bias, size_t rows, size_t columns, size_t stride);

/* x = softmax(scale * x); returns log(sum(exp(scale * x))). */
float xm_row_softmax(float *x, float scale, size_t count);
/* x = exp(scale * x - log_sum): a softmax whose normaliser is known. */
void xm_row_exp(float *x, float scale, float log_sum, size_t count);
/* ds = p * (dp - mean_dp) * scale, into dp */
void xm_row_softmax_backward(float *dp, const float *p, float mean_dp, float scale, size_t count);

/* x = 1 / (1 + exp(-x)) */
void xm_row_sigmoid(float *x, size_t count);

/* A GRU's gates, blocks of count: reset, update, n. gates holds W_i x + b_i and becomes the gates;
 * from_state is W_h s + b_h of the state before, after = (1 - update) * n + update * before, n =
 * tanh(gates_n + reset * from_state_n). */
void xm_row_gru(float *gates, const float *from_state, const float *before, float *after,
                size_t count);
/* From the gradient of `after`, which becomes that of `before` but for what goes through
 * from_state: dgates and dfrom_state are overwritten. candidate: from_state_n. */
void xm_row_gru_backward(float *dgates, float *dfrom_state, float *dstate, const float *gates,
                         const float *candidate, const float *before, size_t count);

/* GELU in its tanh form: x * sigmoid(2c(x + 0.044715 x^3)), c = sqrt(2/pi). */
void xm_row_gelu(float *y, const float *x, size_t count);
/* dx = scale * dy * gelu'(x); dx may be dy */
void xm_row_gelu_backward(float *dx, const float *dy, const float *x, float scale, size_t count);

/* SwiGLU: y = gate * sigmoid(gate) * up */
void xm_row_swiglu(float *y, const float *gate, const float *up, size_t count);
/* From scale * dy; dgate may be dy. */
void xm_row_swiglu_backward(float *dgate, float *dup, const float *dy, const float *gate,
                            const float *up, float scale, size_t count);

/* One LayerNorm row; mean and 1/sqrt(variance + epsilon) are kept for the backward pass. */
void xm_row_layer_norm(float *y, const float *x, const float *weight, const float *bias,
                       float epsilon, float *mean, float *inverse, size_t count);
/* dx += gradient of one row; dweight and dbias accumulate. */
void xm_row_layer_norm_backward(float *dx, float *dweight, float *dbias, const float *dy,
                                const float *x, const float *weight, float mean, float inverse,
                                size_t count);

/* One RMSNorm row; 1/sqrt(mean square + epsilon) is kept for the backward pass. */
void xm_row_rms_norm(float *y, const float *x, const float *weight, float epsilon, float *inverse,
                     size_t count);
/* dx += gradient of one row; dweight accumulates. */
void xm_row_rms_norm_backward(float *dx, float *dweight, const float *dy, const float *x,
                              const float *weight, float inverse, size_t count);

/* The constants of one AdamW step, equal for all elements of a range. */
typedef struct {
    float beta1, beta2;
    float rate;           /* learning rate / (1 - beta1^step) */
    float second_scale;   /* 1 / (1 - beta2^step) */
    float epsilon;        /* 1e-8 */
    float decay;          /* learning rate * weight decay */
    float gradient_scale; /* clipping: gradients are multiplied by it */
} xm_adam_step;

void xm_row_adam(float *weight, const float *gradient, float *first, float *second,
                 const xm_adam_step *step, size_t count);

#endif
