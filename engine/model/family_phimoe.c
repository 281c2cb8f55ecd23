/*
 * family_phimoe.c - general.architecture "phimoe": Phi-3.5-MoE. LayerNorm, biases everywhere but in
 * the experts, and the routing of SparseMixer.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_phimoe_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_LAYER,
        .rope_halves = true,
        .qkv_bias = XM_REQUIRED,
        .attention_output_bias = XM_REQUIRED,
        .output_bias = XM_REQUIRED,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_REQUIRED,
        .score = XM_SCORE_SPARSE_MIXER,
        .hidden_from_dense = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
