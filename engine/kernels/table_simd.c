/*
 * table_simd.c - the table of a SIMD variant (see variants.h); constant data, no code.
 */
#include "kernels/simd.h"
#include "kernels/variants.h"

#define TEXT_(name) #name
#define TEXT(name)  TEXT_(name)

const xm_kernels XM_VARIANT(xm_kernels) = {
    .name = TEXT(XM_ISA),
    .panels =
        {
            [XM_TYPE_F32] = XM_VARIANT(xm_panel_f32),
            [XM_TYPE_F16] = XM_VARIANT(xm_panel_f16),
            [XM_TYPE_BF16] = XM_VARIANT(xm_panel_bf16),
            [XM_TYPE_Q8_0] = XM_VARIANT(xm_panel_q8_0),
            [XM_TYPE_Q4_0] = XM_VARIANT(xm_panel_q4_0),
            [XM_TYPE_Q4_1] = XM_VARIANT(xm_panel_q4_1),
            [XM_TYPE_Q5_0] = XM_VARIANT(xm_panel_q5_0),
            [XM_TYPE_Q5_1] = XM_VARIANT(xm_panel_q5_1),
            [XM_TYPE_Q2_K] = XM_VARIANT(xm_panel_q2_k),
            [XM_TYPE_Q3_K] = XM_VARIANT(xm_panel_q3_k),
            [XM_TYPE_Q4_K] = XM_VARIANT(xm_panel_q4_k),
            [XM_TYPE_Q5_K] = XM_VARIANT(xm_panel_q5_k),
            [XM_TYPE_Q6_K] = XM_VARIANT(xm_panel_q6_k),
            [XM_TYPE_IQ4_NL] = XM_VARIANT(xm_panel_iq4_nl),
            [XM_TYPE_IQ4_XS] = XM_VARIANT(xm_panel_iq4_xs),
            [XM_TYPE_MXFP4] = XM_VARIANT(xm_panel_mxfp4),
        },
    .quantize_i16 = XM_VARIANT(xm_quantize_i16),
    .attention_f32 = XM_VARIANT(xm_attention_f32),
    .attention_f16 = XM_VARIANT(xm_attention_f16),
    .softmax = XM_VARIANT(xm_softmax),
    .log_sum_exp = XM_VARIANT(xm_log_sum_exp),
    .layer_norm = XM_VARIANT(xm_layer_norm),
    .rms_norm = XM_VARIANT(xm_rms_norm),
    .gelu = XM_VARIANT(xm_gelu),
    .swiglu = XM_VARIANT(xm_swiglu),
    .swiglu_clamped = XM_VARIANT(xm_swiglu_clamped),
    .add = XM_VARIANT(xm_add),
    .scaled_add = XM_VARIANT(xm_scaled_add),
};
