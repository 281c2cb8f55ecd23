/*
 * router_json.h - routing between JSON and xmoe_routing.
 */
#ifndef XM_SERVER_ROUTER_JSON_H
#define XM_SERVER_ROUTER_JSON_H

#include "json_read.h"
#include "json_write.h"
#include "xmoe.h"

/* Applies the members that `router` has to every MoE layer of *routing, then those of its "layers".
 * Where no type is given, a threshold or a top_k alone asks for its type; a threshold is also type
 * sigmoid's. Problems name the member as prefix + "threshold" and so on. The result is checked
 * against the model. */
bool xm_router_apply(const xmoe_model *model, const cJSON *router, const char *prefix,
                     xmoe_routing *routing, xm_problem *problem);

/* The first MoE layer's routing, and in "layers" those that differ from it. */
void xm_router_write(const xmoe_model *model, const xmoe_routing *routing, xm_json *json,
                     const char *key);
/* The members of one layer's routing, into an object that is open. */
void xm_router_write_members(const xmoe_router *router, xm_json *json);

#endif
