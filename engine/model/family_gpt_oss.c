/*
 * family_gpt_oss.c - general.architecture "gpt-oss": GPT-OSS. Every second layer, from the first
 * on, sees a window; scores have a sink; experts and router have biases and a clamped activation.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_gpt_oss_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qkv_bias = XM_REQUIRED,
        .attention_output_bias = XM_REQUIRED,
        .sinks = true,
        .alternate_windows = true,
        .ffn_norm = "post_attention_norm",
        .activation = XM_ACTIVATION_SWIGLU_CLAMPED,
        .experts = XM_REQUIRED,
        .normalize = true,
        .biases = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
