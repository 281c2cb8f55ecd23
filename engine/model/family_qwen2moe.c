/*
 * family_qwen2moe.c - general.architecture "qwen2moe": Qwen 1.5 and 2 with experts. One large
 * expert, weighed by a sigmoid of its own, serves all tokens beside the routed ones.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_qwen2moe_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qkv_bias = XM_REQUIRED,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .shared_experts = XM_REQUIRED,
        .shared_gate = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
