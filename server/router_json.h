/*
 * router_json.h - routing between JSON and xmoe_routing.
 */
#ifndef XM_SERVER_ROUTER_JSON_H
#define XM_SERVER_ROUTER_JSON_H

#include "json_read.h"
#include "json_write.h"
#include "xmoe.h"

/* Applies the members that `router` has to every MoE layer of *routing, then those of its "layers".
 * Where no type is given, it is implied (below). Problems name the member as prefix + "threshold"
 * and so on. The result is checked against the model. */
bool xm_router_apply(const xmoe_model *model, const cJSON *router, const char *prefix,
                     xmoe_routing *routing, xm_problem *problem);

/* Gives the router the type whose dial was set, where that is one dial and no type was: a threshold
 * is also type sigmoid's. */
void xm_router_imply_type(xmoe_router *router, bool threshold, bool top_k);

/* The first MoE layer's routing, and in "layers" those that differ from it. */
void xm_router_write(const xmoe_model *model, const xmoe_routing *routing, xm_json *json,
                     const char *key);
/* The members of one layer's routing, into an object that is open. */
void xm_router_write_members(const xmoe_router *router, xm_json *json);

#endif
