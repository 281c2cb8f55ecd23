/*
 * family.h - the architectures that the engine reads: one row each (families.c).
 *
 * A family's bind function reads its hyper-parameters from the file's keys into model->info (all of
 * it but what model.c fills: strings, kernels, tokens, byte and parameter counts), checks their
 * ranges, allocates model->layers and model->moe_layers, and binds every tensor.
 */
#ifndef XM_MODEL_FAMILY_H
#define XM_MODEL_FAMILY_H

#include "model/loader.h"

typedef struct {
    const char *architecture; /* general.architecture */
    xmoe_status (*bind)(xm_loader *loader, xmoe_error *error);
} xm_family;

/* NULL if the engine knows no such architecture. */
const xm_family *xm_family_of(xm_string architecture);

/* "xmoe, llama, ..."; static storage. */
const char *xm_family_names(void);

xmoe_status xm_family_xmoe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_llama_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_qwen2_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_qwen3_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_olmoe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_qwen2moe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_qwen3moe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_granitemoe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_phimoe_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_deepseek2_bind(xm_loader *loader, xmoe_error *error);
xmoe_status xm_family_gpt_oss_bind(xm_loader *loader, xmoe_error *error);

#endif
