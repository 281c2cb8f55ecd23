/*
 * family_deepseek2.c - general.architecture "deepseek2": DeepSeek V2, V3 and R1, and what is shaped
 * like them (Kimi K2): latent attention, shared experts, dense layers first, routing limited to
 * groups.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_deepseek2_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .yarn_whole_pairs = true,
        .yarn_in_scale = true,
        .latent = true,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .leading_dense = true,
        .selection_bias = true,
        .shared_experts = XM_OPTIONAL,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
