/*
 * family_llama.c - general.architecture "llama": Llama and what is shaped like it (SmolLM,
 * Mistral), dense, and Mixtral with experts. Writers of these files permute the rows of q and k so
 * that the pairs that turn lie side by side.
 */
#include "model/decoder.h"
#include "model/family.h"

xmoe_status xm_family_llama_bind(xm_loader *loader, xmoe_error *error)
{
    const xm_decoder decoder = {
        .norm = XM_NORM_RMS,
        .qkv_bias = XM_OPTIONAL,
        .attention_output_bias = XM_OPTIONAL,
        .activation = XM_ACTIVATION_SWIGLU,
        .experts = XM_OPTIONAL,
        .normalize = true,
        .hidden_from_dense = true,
    };
    return xm_decoder_bind(loader, &decoder, error);
}
