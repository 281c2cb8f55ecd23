/*
 * family_olmoe.c - general.architecture "olmoe": OLMoE. Its norm of queries and keys is over all
 * heads together, and routing weights are the probabilities as they are.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_olmoe_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .rope_halves = true,
        .qk_norm = XM_QK_NORM_ROWS,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .hidden_from_dense = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
