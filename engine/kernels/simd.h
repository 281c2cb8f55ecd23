/*
 * simd.h - the functions of one SIMD variant, named for it by XM_VARIANT (lanes.h); table_simd.c
 * puts them into the variant's table. Contracts: kernels.h.
 */
#ifndef XM_KERNELS_SIMD_H
#define XM_KERNELS_SIMD_H

#include "kernels/lanes.h"

/* matmul_simd.c */
void XM_VARIANT(xm_panel_f32)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_f16)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_bf16)(const xm_panel_job *job);

/* matmul_legacy_simd.c */
void XM_VARIANT(xm_panel_q8_0)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q4_0)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q4_1)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q5_0)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q5_1)(const xm_panel_job *job);

/* matmul_k_simd.c */
void XM_VARIANT(xm_panel_q2_k)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q3_k)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q4_k)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q5_k)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_q6_k)(const xm_panel_job *job);

/* matmul_table_simd.c */
void XM_VARIANT(xm_panel_iq4_nl)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_iq4_xs)(const xm_panel_job *job);
void XM_VARIANT(xm_panel_mxfp4)(const xm_panel_job *job);

/* attention_simd.c */
void XM_VARIANT(xm_attention_f32)(const xm_attention_job *job);
void XM_VARIANT(xm_attention_f16)(const xm_attention_job *job);

/* elementwise_simd.c */
void XM_VARIANT(xm_quantize_i16)(const float *x, size_t count, int16_t *q, float *scales,
                                 int32_t *sums);
void XM_VARIANT(xm_softmax)(float *x, size_t count);
float XM_VARIANT(xm_log_sum_exp)(const float *x, size_t count);
void XM_VARIANT(xm_layer_norm)(const float *x, const float *weight, const float *bias,
                               float epsilon, size_t count, float *out);
void XM_VARIANT(xm_rms_norm)(const float *x, const float *weight, float epsilon, size_t count,
                             float *out);
void XM_VARIANT(xm_gelu)(float *x, size_t count);
void XM_VARIANT(xm_swiglu)(const float *gate, float *up, size_t count);
void XM_VARIANT(xm_swiglu_clamped)(const float *gate, float *up, size_t count);
void XM_VARIANT(xm_add)(float *x, const float *y, size_t count);
void XM_VARIANT(xm_scaled_add)(float *x, float scale, const float *y, size_t count);

#endif
