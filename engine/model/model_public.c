/*
 * model_public.c - the public header's functions over a loaded model that only look: its figures,
 * routing, and tokens. All are safe from any thread.
 */
#include "base/error.h"
#include "grammar/grammar.h"
#include "model/model.h"

#include <string.h>

#define TEXT(x)        #x
#define NUMBER_TEXT(x) TEXT(x)

const char *xmoe_version(void)
{
    return NUMBER_TEXT(XMOE_VERSION_MAJOR) "." NUMBER_TEXT(XMOE_VERSION_MINOR) "." NUMBER_TEXT(
        XMOE_VERSION_PATCH);
}

/* --- routing ---------------------------------------------------------------------------------- */

static const struct {
    xmoe_router_type type;
    const char *name;
} router_types[] = {
    {XMOE_ROUTER_THRESHOLD, "threshold"},
    {XMOE_ROUTER_TOP_K, "top_k"},
    {XMOE_ROUTER_DENSE, "dense"},
    {XMOE_ROUTER_SIGMOID, "sigmoid"},
};

enum { ROUTER_TYPES = sizeof router_types / sizeof *router_types };

const char *xmoe_router_type_name(xmoe_router_type type)
{
    for (size_t i = 0; i < ROUTER_TYPES; i++)
        if (router_types[i].type == type)
            return router_types[i].name;
    return NULL;
}

bool xmoe_router_type_has_threshold(xmoe_router_type type)
{
    return type == XMOE_ROUTER_THRESHOLD || type == XMOE_ROUTER_SIGMOID;
}

bool xmoe_router_type_parse(const char *name, xmoe_router_type *type)
{
    for (size_t i = 0; i < ROUTER_TYPES; i++)
        if (strcmp(router_types[i].name, name) == 0) {
            *type = router_types[i].type;
            return true;
        }
    return false;
}

void xmoe_model_default_routing(const xmoe_model *model, xmoe_routing *routing)
{
    *routing = (xmoe_routing){.layer_count = model->info.layer_count};
    for (int32_t i = 0; i < routing->layer_count; i++)
        routing->layers[i] = model->info.router;
}

static xmoe_status check_router(const xmoe_model *model, int32_t layer, const xmoe_router *router,
                                xmoe_error *error)
{
    int32_t experts = model->info.expert_count;
    if (xmoe_router_type_name(router->type) == NULL)
        return xm_fail_argument(error, "layers", "layer %d: router type %d is unknown", layer,
                                (int)router->type);
    if (router->type == XMOE_ROUTER_SIGMOID && model->info.router.type != XMOE_ROUTER_SIGMOID)
        return xm_fail_argument(error, "type",
                                "layer %d: type sigmoid is for models trained with it; this one "
                                "was trained with %s",
                                layer, xmoe_router_type_name(model->info.router.type));
    if (xmoe_router_type_has_threshold(router->type) &&
        !(router->threshold > 0.0f && router->threshold <= 1.0f))
        return xm_fail_argument(error, "threshold",
                                "layer %d: threshold is %g, expected above 0 and at most 1", layer,
                                (double)router->threshold);
    if (router->type == XMOE_ROUTER_TOP_K && router->top_k < 1)
        return xm_fail_argument(error, "top_k", "layer %d: top_k is %d, expected at least 1", layer,
                                router->top_k);
    if (router->min_experts < 1 || router->min_experts > experts)
        return xm_fail_argument(error, "min_experts",
                                "layer %d: min_experts is %d, expected 1 to %d", layer,
                                router->min_experts, experts);
    if (router->max_experts < 0 ||
        (router->max_experts > 0 && router->max_experts < router->min_experts))
        return xm_fail_argument(error, "max_experts",
                                "layer %d: max_experts is %d, expected 0 (no cap) or at least "
                                "min_experts, which is %d",
                                layer, router->max_experts, router->min_experts);
    return XMOE_OK;
}

xmoe_status xmoe_routing_check(const xmoe_model *model, const xmoe_routing *routing,
                               xmoe_error *error)
{
    if (routing->layer_count != model->info.layer_count)
        return xm_fail_argument(error, "layers", "routing is for %d layers, the model has %d",
                                routing->layer_count, model->info.layer_count);
    for (int32_t m = 0; m < model->info.moe_layer_count; m++) {
        int32_t layer = model->moe_layers[m];
        xmoe_status status = check_router(model, layer, &routing->layers[layer], error);
        if (status != XMOE_OK)
            return status;
    }
    return XMOE_OK;
}

/* --- model ------------------------------------------------------------------------------------ */

const xmoe_model_info *xmoe_model_get_info(const xmoe_model *model)
{
    return &model->info;
}

bool xmoe_model_layer_is_moe(const xmoe_model *model, int32_t layer)
{
    return layer >= 0 && layer < model->info.layer_count && model->layers[layer].is_moe;
}

/* --- tokens ----------------------------------------------------------------------------------- */

xmoe_status xmoe_tokenize(const xmoe_model *model, const char *text, size_t length,
                          bool add_special, bool parse_special, int32_t **tokens, size_t *count,
                          xmoe_error *error)
{
    return xm_tokenizer_encode(model->tokenizer, text, length, add_special, parse_special, tokens,
                               count, error);
}

xmoe_status xmoe_tokenize_marked(const xmoe_model *model, const char *text, const char *marks,
                                 size_t length, int32_t **tokens, size_t *count, xmoe_error *error)
{
    return xm_tokenizer_encode_marked(model->tokenizer, text, marks, length, tokens, count, error);
}

const char *xmoe_token_bytes(const xmoe_model *model, int32_t token, size_t *length)
{
    return xm_tokenizer_bytes(model->tokenizer, token, length);
}

bool xmoe_token_is_end(const xmoe_model *model, int32_t token)
{
    return xm_tokenizer_is_end(model->tokenizer, token);
}

bool xmoe_token_is_special(const xmoe_model *model, int32_t token)
{
    return xm_tokenizer_is_special(model->tokenizer, token);
}

/* --- grammars --------------------------------------------------------------------------------- */

xmoe_status xmoe_grammar_create(const xmoe_model *model, const char *text, size_t length,
                                const char *trigger, xmoe_grammar **grammar, xmoe_error *error)
{
    return xm_grammar_create(model->token_tree, text, length, trigger, grammar, error);
}
