/*
 * recurrent_router.h - the keys and tensors of a router of type recurrent while its model is being
 * loaded, as ROUTERS.md has them. What they compute: moe/recurrent.h.
 */
#ifndef XM_MODEL_RECURRENT_ROUTER_H
#define XM_MODEL_RECURRENT_ROUTER_H

#include "model/loader.h"

/* Reads the state's length and binds the GRU that all MoE layers share; it lives as long as the
 * model. */
xmoe_status xm_recurrent_router_bind(xm_loader *loader, const xm_gru **gru, xmoe_error *error);

/* Binds the matrices of one layer, whose sizes are set. */
xmoe_status xm_recurrent_layer_bind(xm_loader *loader, int32_t index, const xm_gru *gru,
                                    xm_moe_layer *moe, xmoe_error *error);

#endif
