/*
 * table_simd.c - the table of a SIMD variant (see variants.h); constant data, no code.
 */
#include "kernels/simd.h"
#include "kernels/variants.h"

#define TEXT_(name) #name
#define TEXT(name)  TEXT_(name)

const xm_kernels XM_VARIANT(xm_kernels) = {
    .name = TEXT(XM_ISA),
    .panel_f32 = XM_VARIANT(xm_panel_f32),
    .panel_f16 = XM_VARIANT(xm_panel_f16),
    .panel_bf16 = XM_VARIANT(xm_panel_bf16),
    .panel_q8_0 = XM_VARIANT(xm_panel_q8_0),
    .panel_q4_0 = XM_VARIANT(xm_panel_q4_0),
    .quantize_i16 = XM_VARIANT(xm_quantize_i16),
    .block_sums = XM_VARIANT(xm_block_sums),
    .attention_f32 = XM_VARIANT(xm_attention_f32),
    .attention_f16 = XM_VARIANT(xm_attention_f16),
    .softmax = XM_VARIANT(xm_softmax),
    .log_sum_exp = XM_VARIANT(xm_log_sum_exp),
    .layer_norm = XM_VARIANT(xm_layer_norm),
    .gelu = XM_VARIANT(xm_gelu),
    .add = XM_VARIANT(xm_add),
    .scaled_add = XM_VARIANT(xm_scaled_add),
};
