/*
 * xmoe_router.c - see xmoe_router.h. Runs on the loading thread.
 */
#include "model/xmoe_router.h"

#include "base/memory.h"
#include "model/bind.h"
#include "model/keys.h"
#include "model/recurrent_router.h"

bool xm_xmoe_is_moe_layer(const void *context, int32_t layer)
{
    char name[XM_TENSOR_NAME_BYTES];
    return xm_loader_has(context, xm_tensor_name(layer, "ffn_gate_inp", "weight", name)) ||
           xm_loader_has(context, xm_tensor_name(layer, "ffn_hash", "weight", name));
}

/* --- keys ------------------------------------------------------------------------------------- */

/* Far above any of use: from some hundreds on the mix is the mean of the views. */
static const double hottest_views = 1e6;

static xmoe_status read_views(const xm_loader *loader, xm_xmoe_router *router, xmoe_error *error)
{
    router->views = 1;
    router->view_temperature = 1.0f;
    xmoe_status status =
        xm_key_size(loader, "router.views", false, XM_MAX_ROUTER_VIEWS, &router->views, error);
    if (status != XMOE_OK)
        return status;
    if (router->views > 1 && router->kind->gate != XM_GATE_SOFTMAX)
        return xm_key_fail(loader, "router.views", error,
                           "is %d, but a router of type %s has no views", router->views,
                           router->kind->name);
    return xm_key_number(loader, "router.view_temperature", router->views > 1, 0.0, hottest_views,
                         &router->view_temperature, error);
}

/* What the type does not use is kept where the file gives it, as the start of a user's own setting:
 * threshold 1 and one expert where it gives nothing. */
xmoe_status xm_xmoe_router_read(xm_loader *loader, xm_xmoe_router *router_out, xmoe_error *error)
{
    xmoe_model_info *info = &loader->model->info;
    bool any = info->moe_layer_count > 0;
    const xm_router_kind *kind = xm_router_kind_of(XM_GATE_SOFTMAX, XMOE_ROUTER_THRESHOLD);
    xmoe_status status = xm_key_router_kind(loader, false, &kind, error);
    if (status != XMOE_OK)
        return status;
    xmoe_router router = {.type = kind->chooses, .threshold = 1.0f, .top_k = 1, .min_experts = 1};
    bool threshold = xmoe_router_type_has_threshold(router.type);
    bool top_k = router.type == XMOE_ROUTER_TOP_K && kind->top_k == 0;
    status = xm_key_number(loader, "router.threshold", any && threshold, 0.0, 1.0,
                           &router.threshold, error);
    if (status != XMOE_OK)
        return status;
    status = xm_key_size(loader, "expert_used_count", any && top_k,
                         any ? info->expert_count : XM_MAX_EXPERTS, &router.top_k, error);
    if (status != XMOE_OK)
        return status;
    if (kind->top_k > 0)
        router.top_k = kind->top_k;
    status = xm_key_flag(loader, "router.normalize", &router.normalize, error);
    info->router = router;
    *router_out = (xm_xmoe_router){.kind = kind};
    if (status == XMOE_OK)
        status = read_views(loader, router_out, error);
    if (status == XMOE_OK && kind->gate == XM_GATE_RECURRENT && any)
        status = xm_recurrent_router_bind(loader, &router_out->gru, error);
    return status;
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Rows of the matrix: of view 0 all experts, of view 1 all experts, ... */
static xmoe_status bind_logits(xm_loader *loader, int32_t index, int32_t views, xm_moe_layer *moe,
                               xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    return xm_loader_bind_matrices(loader, xm_tensor_name(index, "ffn_gate_inp", "weight", name),
                                   moe->width, views * moe->experts, 1,
                                   xm_weight_traits_of(XM_TYPE_F32), &moe->router, error);
}

/* ids: [vocabulary], as the file has them. */
static xmoe_status convert_experts(xm_loader *loader, const char *name, const float *ids,
                                   int32_t experts, uint16_t *expert_of, xmoe_error *error)
{
    for (int32_t token = 0; token < loader->model->info.vocabulary_size; token++) {
        if (!xm_is_expert(ids[token], experts))
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "%.200s: tensor '%s' gives token %d the expert %g, expected a whole "
                           "number from 0 to %d",
                           xm_gguf_path(loader->model->file), name, token, (double)ids[token],
                           experts - 1);
        expert_of[token] = (uint16_t)ids[token];
    }
    return XMOE_OK;
}

static xmoe_status bind_hash(xm_loader *loader, int32_t index, xm_moe_layer *moe, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    size_t count = (size_t)model->info.vocabulary_size;
    char name[XM_TENSOR_NAME_BYTES];
    xm_tensor_name(index, "ffn_hash", "weight", name);
    float *ids = xm_calloc(count, sizeof *ids);
    uint16_t *expert_of = xm_model_allocate(model, count, sizeof *expert_of);
    xmoe_status status = XMOE_ERROR_MEMORY;
    if (ids == NULL || expert_of == NULL)
        xm_fail_memory(error, "experts of tokens", count * sizeof *ids);
    else
        status = xm_loader_read_values(loader, name, model->info.vocabulary_size, ids, error);
    if (status == XMOE_OK)
        status = convert_experts(loader, name, ids, moe->experts, expert_of, error);
    xm_free(ids);
    moe->expert_of = expert_of;
    return status;
}

xmoe_status xm_xmoe_router_bind(xm_loader *loader, int32_t index, const xm_xmoe_router *router,
                                xm_moe_layer *moe, xmoe_error *error)
{
    const xmoe_router *own = &loader->model->info.router;
    xm_gate gate = router->kind->gate;
    bool sigmoid = gate == XM_GATE_SIGMOID || gate == XM_GATE_BASE;
    moe->rules = (xm_gate_rules){
        .score = sigmoid ? XM_SCORE_SIGMOID : XM_SCORE_SOFTMAX,
        .trained_top_k = own->type == XMOE_ROUTER_TOP_K ? own->top_k : 0,
        .weight_scale = 1.0f,
        .views = router->views,
        .view_temperature = router->view_temperature,
    };
    if (gate == XM_GATE_RECURRENT)
        return xm_recurrent_layer_bind(loader, index, router->gru, moe, error);
    return gate == XM_GATE_HASH ? bind_hash(loader, index, moe, error)
                                : bind_logits(loader, index, router->views, moe, error);
}
