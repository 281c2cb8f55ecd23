/*
 * family_xmoe.c - general.architecture "xmoe": a GPT-2 shaped decoder in which some blocks have a
 * routed set of small experts instead of one dense FFN. Keys, tensors and shapes are those of the
 * format's description; whatever differs from it is refused with a message that names the key or
 * tensor, what was found and what was expected.
 */
#include "model/bind.h"
#include "model/family.h"
#include "model/keys.h"
#include "model/xmoe_router.h"

#include <math.h>
#include <string.h>

enum { MAX_CONTEXT = 1 << 20 };

/* --- hyper-parameters ------------------------------------------------------------------------- */

static xmoe_status read_sizes(xm_loader *loader, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    xmoe_model_info *info = &model->info;
    xmoe_status status;
    model->norm_kind = XM_NORM_LAYER;
    model->embedding_scale = model->residual_scale = model->logit_scale = 1.0f;
    if ((status = xm_key_size(loader, "context_length", true, MAX_CONTEXT, &info->context_length,
                              error)) != XMOE_OK ||
        (status = xm_key_size(loader, "embedding_length", true, XM_MAX_WIDTH,
                              &info->embedding_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "block_count", true, XMOE_MAX_LAYERS, &info->layer_count,
                              error)) != XMOE_OK ||
        (status = xm_key_size(loader, "attention.head_count", true, info->embedding_length,
                              &info->head_count, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "attention.layer_norm_epsilon", true, 0.0, 1.0,
                                &model->norm_epsilon, error)) != XMOE_OK)
        return status;
    if (info->embedding_length % info->head_count != 0)
        return xm_key_fail(loader, "attention.head_count", error,
                           "is %d, which does not divide the embedding length %d", info->head_count,
                           info->embedding_length);
    info->kv_head_count = info->head_count;
    info->head_length = info->embedding_length / info->head_count;
    model->attention = (xm_attention_shape){
        .heads = info->head_count,
        .kv_heads = info->head_count,
        .key_length = info->head_length,
        .value_length = info->head_length,
        .scale = 1.0f / sqrtf((float)info->head_length),
    };
    return XMOE_OK;
}

/* What only MoE, or only dense layers need is required where there are such. */
static xmoe_status read_feed_forward(xm_loader *loader, xmoe_error *error)
{
    xmoe_model_info *info = &loader->model->info;
    bool any_moe = info->moe_layer_count > 0;
    bool any_dense = info->moe_layer_count < info->layer_count;
    xmoe_status status;
    if ((status = xm_key_size(loader, "feed_forward_length", any_dense, XM_MAX_HIDDEN,
                              &info->feed_forward_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "expert_count", any_moe, XM_MAX_EXPERTS, &info->expert_count,
                              error)) != XMOE_OK)
        return status;
    return xm_key_size(loader, "expert_feed_forward_length", any_moe, XM_MAX_HIDDEN,
                       &info->expert_feed_forward_length, error);
}

/* --- tensors ---------------------------------------------------------------------------------- */

static xmoe_status bind_moe(xm_loader *loader, int32_t index, const xm_xmoe_router *router,
                            xm_moe_layer *moe, xmoe_error *error)
{
    const xmoe_model_info *info = &loader->model->info;
    moe->experts = info->expert_count;
    moe->hidden = info->expert_feed_forward_length;
    moe->width = info->embedding_length;
    moe->activation = XM_ACTIVATION_GELU;
    moe->output_scale = loader->model->residual_scale;
    xmoe_status status = xm_xmoe_router_bind(loader, index, router, moe, error);
    if (status == XMOE_OK)
        status = xm_bind_linears(loader, index, "ffn_up_exps", moe->width, moe->hidden,
                                 moe->experts, XM_REQUIRED, &moe->up, &moe->up_bias, error);
    if (status == XMOE_OK)
        status = xm_bind_linears(loader, index, "ffn_down_exps", moe->hidden, moe->width,
                                 moe->experts, XM_REQUIRED, &moe->down, &moe->down_bias, error);
    return status;
}

static xmoe_status bind_layer(xm_loader *loader, int32_t index, const xm_xmoe_router *router,
                              xmoe_error *error)
{
    const xmoe_model_info *info = &loader->model->info;
    int32_t d = info->embedding_length;
    int32_t hidden = info->feed_forward_length;
    xm_layer *layer = &loader->model->layers[index];
    xmoe_status status;
    layer->attention.project_count = 1;
    if ((status = xm_bind_norm(loader, index, "attn_norm", &layer->attention_norm, error)) !=
            XMOE_OK ||
        (status = xm_bind_linear(loader, index, "attn_qkv", d, 3 * d, XM_REQUIRED,
                                 &layer->attention.project[0], error)) != XMOE_OK ||
        (status = xm_bind_linear(loader, index, "attn_output", d, d, XM_REQUIRED,
                                 &layer->attention.output, error)) != XMOE_OK ||
        (status = xm_bind_norm(loader, index, "ffn_norm", &layer->ffn_norm, error)) != XMOE_OK)
        return status;
    if (layer->is_moe)
        return bind_moe(loader, index, router, &layer->moe, error);
    layer->ffn.activation = XM_ACTIVATION_GELU;
    status = xm_bind_linear(loader, index, "ffn_up", d, hidden, XM_REQUIRED, &layer->ffn.up, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_linear(loader, index, "ffn_down", hidden, d, XM_REQUIRED, &layer->ffn.down,
                          error);
}

static xmoe_status bind_tables(xm_loader *loader, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    int32_t d = model->info.embedding_length;
    int32_t vocabulary = model->info.vocabulary_size;
    xmoe_status status;
    if ((status = xm_loader_bind_matrices(loader, "token_embd.weight", d, vocabulary, 1, NULL,
                                          &model->token_embedding, error)) != XMOE_OK ||
        (status =
             xm_loader_bind_values(loader, "position_embd.weight", d, model->info.context_length,
                                   NULL, &model->position_embedding, error)) != XMOE_OK ||
        (status = xm_bind_norm(loader, -1, "output_norm", &model->output_norm, error)) != XMOE_OK)
        return status;
    if (!xm_loader_has(loader, "output.weight")) /* tied: model.c copies the token embedding's */
        return XMOE_OK;
    return xm_loader_bind_matrices(loader, "output.weight", d, vocabulary, 1, NULL,
                                   &model->output.weight, error);
}

xmoe_status xm_family_xmoe_bind(xm_loader *loader, xmoe_error *error)
{
    xmoe_status status;
    xm_xmoe_router router;
    if ((status = read_sizes(loader, error)) != XMOE_OK ||
        (status = xm_bind_layer_lists(loader, xm_xmoe_is_moe_layer, loader, error)) != XMOE_OK ||
        (status = read_feed_forward(loader, error)) != XMOE_OK ||
        (status = xm_xmoe_router_read(loader, &router, error)) != XMOE_OK ||
        (status = bind_tables(loader, error)) != XMOE_OK)
        return status;
    for (int32_t i = 0; i < loader->model->info.layer_count && status == XMOE_OK; i++)
        status = bind_layer(loader, i, &router, error);
    /* Only now: position_embd has as many rows as the file's context. */
    int32_t limit = loader->context_limit;
    if (limit > 0 && limit < loader->model->info.context_length)
        loader->model->info.context_length = limit;
    return status;
}
