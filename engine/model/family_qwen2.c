/*
 * family_qwen2.c - general.architecture "qwen2": dense Qwen 2 and 2.5.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_qwen2_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qkv_bias = XM_REQUIRED,
        .activation = XM_ACTIVATION_SWIGLU,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
