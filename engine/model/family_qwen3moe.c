/*
 * family_qwen3moe.c - general.architecture "qwen3moe": Qwen 3 with experts, whose weights are
 * divided by their sum.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_qwen3moe_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qk_norm = XM_QK_NORM_HEADS,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .normalize = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
