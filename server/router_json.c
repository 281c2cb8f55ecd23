/*
 * router_json.c - see router_json.h.
 */
#include "router_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Puts prefix before the name that a reader has left in problem->param. */
static bool prefixed(xm_problem *problem, const char *prefix)
{
    char name[sizeof problem->param + 48];
    snprintf(name, sizeof name, "%s%s", prefix, problem->param);
    name[sizeof problem->param - 1] = '\0';
    memcpy(problem->param, name, sizeof problem->param);
    return false;
}

/* min_experts and max_experts, where null means: no bound. */
static bool read_bound(const cJSON *object, const char *key, int32_t minimum, int32_t *value,
                       xm_problem *problem)
{
    const cJSON *member = cJSON_GetObjectItemCaseSensitive(object, key);
    if (member && cJSON_IsNull(member)) {
        *value = minimum;
        return true;
    }
    return xm_json_read_int32(object, key, minimum, INT32_MAX, value, problem);
}

void xm_router_imply_type(xmoe_router *router, bool threshold, bool top_k)
{
    if (threshold && !top_k && router->type != XMOE_ROUTER_SIGMOID)
        router->type = XMOE_ROUTER_THRESHOLD;
    if (top_k && !threshold)
        router->type = XMOE_ROUTER_TOP_K;
}

static bool read_router(const cJSON *object, xmoe_router *router, xm_problem *problem)
{
    const char *type = NULL;
    if (!xm_json_read_string(object, "type", &type, problem) ||
        !xm_json_read_float(object, "threshold", 0, 1, &router->threshold, problem) ||
        !xm_json_read_int32(object, "top_k", 1, INT32_MAX, &router->top_k, problem) ||
        !read_bound(object, "min_experts", 1, &router->min_experts, problem) ||
        !read_bound(object, "max_experts", 0, &router->max_experts, problem) ||
        !xm_json_read_bool(object, "normalize", &router->normalize, problem))
        return false;
    if (xm_json_member(object, "threshold") && !(router->threshold > 0))
        return xm_problem_field(problem, "threshold", "'threshold' must be above 0 and at most 1");
    if (type && !xmoe_router_type_parse(type, &router->type))
        return xm_problem_field(
            problem, "type", "'type' must be one of: threshold, top_k, dense, sigmoid; not '%.40s'",
            type);
    if (!type)
        xm_router_imply_type(router, xm_json_member(object, "threshold") != NULL,
                             xm_json_member(object, "top_k") != NULL);
    return true;
}

/* "layers": {"3": {...}} */
static bool read_layers(const xmoe_model *model, const cJSON *layers, xmoe_routing *routing,
                        xm_problem *problem)
{
    if (!cJSON_IsObject(layers))
        return xm_problem_field(problem, "layers", "'layers' must be an object of layer numbers");
    for (const cJSON *item = layers->child; item; item = item->next) {
        char *end = NULL;
        long layer = strtol(item->string, &end, 10);
        bool number = item->string[0] >= '0' && item->string[0] <= '9' && *end == '\0';
        if (!number || layer >= routing->layer_count ||
            !xmoe_model_layer_is_moe(model, (int32_t)layer))
            return xm_problem_field(problem, "layers",
                                    "'layers': '%.20s' is not the number of a MoE layer",
                                    item->string);
        if (!cJSON_IsObject(item))
            return xm_problem_field(problem, "layers", "'layers': '%.20s' must be an object",
                                    item->string);
        char prefix[40];
        snprintf(prefix, sizeof prefix, "layers.%ld.", layer);
        if (!read_router(item, &routing->layers[layer], problem))
            return prefixed(problem, prefix);
    }
    return true;
}

bool xm_router_apply(const xmoe_model *model, const cJSON *router, const char *prefix,
                     xmoe_routing *routing, xm_problem *problem)
{
    if (!cJSON_IsObject(router))
        return xm_problem_field(problem, "router", "the router must be an object");
    for (int32_t layer = 0; layer < routing->layer_count; layer++)
        if (xmoe_model_layer_is_moe(model, layer) &&
            !read_router(router, &routing->layers[layer], problem))
            return prefixed(problem, prefix);
    const cJSON *layers = xm_json_member(router, "layers");
    if (layers && !read_layers(model, layers, routing, problem))
        return prefixed(problem, prefix);
    xmoe_error error = {0};
    if (xmoe_routing_check(model, routing, &error) != XMOE_OK) {
        xm_problem_engine(problem, &error, "layers");
        return prefixed(problem, prefix);
    }
    return true;
}

void xm_router_write_members(const xmoe_router *router, xm_json *json)
{
    xm_json_string(json, "type", xmoe_router_type_name(router->type));
    if (xmoe_router_type_has_threshold(router->type))
        xm_json_float(json, "threshold", router->threshold);
    if (router->type == XMOE_ROUTER_TOP_K)
        xm_json_int(json, "top_k", router->top_k);
    xm_json_int(json, "min_experts", router->min_experts);
    xm_json_int(json, "max_experts", router->max_experts);
    xm_json_bool(json, "normalize", router->normalize);
}

/* Equal in effect: what the type does not read does not count. */
static bool equal(const xmoe_router *a, const xmoe_router *b)
{
    return a->type == b->type &&
           (!xmoe_router_type_has_threshold(a->type) || a->threshold == b->threshold) &&
           (a->type != XMOE_ROUTER_TOP_K || a->top_k == b->top_k) &&
           a->min_experts == b->min_experts && a->max_experts == b->max_experts &&
           a->normalize == b->normalize;
}

void xm_router_write(const xmoe_model *model, const xmoe_routing *routing, xm_json *json,
                     const char *key)
{
    const xmoe_router *first = NULL;
    bool exceptions = false;
    xm_json_open(json, key, '{');
    for (int32_t layer = 0; layer < routing->layer_count; layer++) {
        const xmoe_router *router = &routing->layers[layer];
        if (!xmoe_model_layer_is_moe(model, layer))
            continue;
        if (!first) {
            first = router;
            xm_router_write_members(first, json);
        }
        if (equal(first, router))
            continue;
        if (!exceptions)
            xm_json_open(json, "layers", '{');
        exceptions = true;
        char number[16];
        snprintf(number, sizeof number, "%d", layer);
        xm_json_open(json, number, '{');
        xm_router_write_members(router, json);
        xm_json_close(json, '}');
    }
    if (exceptions)
        xm_json_close(json, '}');
    xm_json_close(json, '}');
}
