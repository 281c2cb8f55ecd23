/*
 * xmoe_router.h - the router of a model of architecture xmoe while it is being loaded: its keys and
 * the tensors of each MoE layer, as ROUTERS.md has them.
 */
#ifndef XM_MODEL_XMOE_ROUTER_H
#define XM_MODEL_XMOE_ROUTER_H

#include "format/router_kind.h"
#include "model/loader.h"

typedef struct {
    const xm_router_kind *kind;
    int32_t views; /* logits of each expert */
    float view_temperature;
    const xm_gru *gru; /* of type recurrent, else NULL */
} xm_xmoe_router;

/* Layers that have a router's tensors are MoE. context: the loader. */
bool xm_xmoe_is_moe_layer(const void *context, int32_t layer);

/* Reads the keys, sets the model's own router and binds what its layers share. */
xmoe_status xm_xmoe_router_read(xm_loader *loader, xm_xmoe_router *router, xmoe_error *error);

/* Binds the router of one layer, whose sizes are set, and sets its rules. */
xmoe_status xm_xmoe_router_bind(xm_loader *loader, int32_t index, const xm_xmoe_router *router,
                                xm_moe_layer *moe, xmoe_error *error);

#endif
