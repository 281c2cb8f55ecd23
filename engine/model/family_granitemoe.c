/*
 * family_granitemoe.c - general.architecture "granitemoe": Granite 3 with experts, and shared ones
 * where a key gives their size. Rows of q and k are permuted as in llama.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_granitemoe_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .multipliers = true,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .normalize = true,
        .hidden_from_dense = true,
        .shared_experts = XM_OPTIONAL,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
