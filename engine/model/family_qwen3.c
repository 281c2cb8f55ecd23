/*
 * family_qwen3.c - general.architecture "qwen3": dense Qwen 3.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_qwen3_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qk_norm = XM_QK_NORM_HEADS,
        .activation = XM_ACTIVATION_SWIGLU,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
