/*
 * family_xmoe.c - general.architecture "xmoe": a GPT-2 shaped decoder in which some blocks have a
 * routed set of small experts instead of one dense FFN. Keys, tensors and shapes are those of the
 * format's description; whatever differs from it is refused with a message that names the key or
 * tensor, what was found and what was expected.
 */
#include "base/memory.h"
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_CONTEXT = 1 << 20,
    MAX_WIDTH = 1 << 16,  /* d */
    MAX_HIDDEN = 1 << 20, /* of any FFN */
    NAME_BYTES = 64,
};

/* --- hyper-parameters ------------------------------------------------------------------------- */

static xmoe_status fail_key(const xm_loader *loader, const char *key, const char *problem,
                            xmoe_error *error)
{
    xm_fail(error, XMOE_ERROR_FORMAT, "%.150s: key '%s' %s", xm_gguf_path(loader->model->file), key,
            problem);
    return XMOE_ERROR_FORMAT;
}

/* A number in [1, most]; absent: an error if required, else 0. */
static xmoe_status read_size(const xm_loader *loader, const char *key, bool required, int32_t most,
                             int32_t *value, xmoe_error *error)
{
    uint32_t number = 0;
    bool found = true;
    xmoe_status status =
        xm_gguf_get_u32(loader->model->file, key, &number, required ? NULL : &found, error);
    *value = 0;
    if (status != XMOE_OK || !found)
        return status;
    if (number < 1 || number > (uint32_t)most) {
        char problem[64];
        snprintf(problem, sizeof problem, "is %u, expected 1 to %d", number, most);
        return fail_key(loader, key, problem, error);
    }
    *value = (int32_t)number;
    return XMOE_OK;
}

static xmoe_status read_epsilon(xm_loader *loader, xmoe_error *error)
{
    const char *key = "xmoe.attention.layer_norm_epsilon";
    float epsilon;
    xmoe_status status = xm_gguf_get_f32(loader->model->file, key, &epsilon, NULL, error);
    if (status != XMOE_OK)
        return status;
    if (!(epsilon > 0.0f && epsilon < 1.0f))
        return fail_key(loader, key, "is not between 0 and 1", error);
    loader->model->norm_epsilon = epsilon;
    return XMOE_OK;
}

/* Layers that have a router matrix are MoE. */
static bool is_moe_layer(const xm_loader *loader, int32_t layer)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
    return xm_loader_has(loader, name);
}

static xmoe_status read_sizes(xm_loader *loader, xmoe_error *error)
{
    xmoe_model_info *info = &loader->model->info;
    xmoe_status status;
    if ((status = read_size(loader, "xmoe.context_length", true, MAX_CONTEXT, &info->context_length,
                            error)) != XMOE_OK ||
        (status = read_size(loader, "xmoe.embedding_length", true, MAX_WIDTH,
                            &info->embedding_length, error)) != XMOE_OK ||
        (status = read_size(loader, "xmoe.block_count", true, XMOE_MAX_LAYERS, &info->layer_count,
                            error)) != XMOE_OK ||
        (status = read_size(loader, "xmoe.attention.head_count", true, info->embedding_length,
                            &info->head_count, error)) != XMOE_OK)
        return status;
    if (info->embedding_length % info->head_count != 0) {
        char problem[96];
        snprintf(problem, sizeof problem, "is %d, which does not divide the embedding length %d",
                 info->head_count, info->embedding_length);
        return fail_key(loader, "xmoe.attention.head_count", problem, error);
    }
    info->head_length = info->embedding_length / info->head_count;
    for (int32_t layer = 0; layer < info->layer_count; layer++)
        info->moe_layer_count += is_moe_layer(loader, layer);
    bool any_moe = info->moe_layer_count > 0;
    bool any_dense = info->moe_layer_count < info->layer_count;
    if ((status = read_size(loader, "xmoe.feed_forward_length", any_dense, MAX_HIDDEN,
                            &info->feed_forward_length, error)) != XMOE_OK ||
        (status = read_size(loader, "xmoe.expert_count", any_moe, XM_MAX_EXPERTS,
                            &info->expert_count, error)) != XMOE_OK ||
        (status = read_size(loader, "xmoe.expert_feed_forward_length", any_moe, MAX_HIDDEN,
                            &info->expert_feed_forward_length, error)) != XMOE_OK)
        return status;
    return read_epsilon(loader, error);
}

static xmoe_status read_router_type(const xm_loader *loader, xmoe_router_type *type,
                                    xmoe_error *error)
{
    const char *key = "xmoe.router.type";
    xm_string text;
    bool found;
    xmoe_status status = xm_gguf_get_string(loader->model->file, key, &text, &found, error);
    if (status != XMOE_OK || !found)
        return status;
    char name[16] = "";
    if (text.length < sizeof name)
        memcpy(name, text.data, text.length);
    if (!xmoe_router_type_parse(name, type)) {
        char problem[96];
        snprintf(problem, sizeof problem, "is '%.*s', expected threshold, top_k or dense",
                 (int)(text.length < 32 ? text.length : 32), text.data);
        return fail_key(loader, key, problem, error);
    }
    return XMOE_OK;
}

static xmoe_status read_threshold(const xm_loader *loader, bool required, float *threshold,
                                  xmoe_error *error)
{
    const char *key = "xmoe.router.threshold";
    bool found = true;
    xmoe_status status =
        xm_gguf_get_f32(loader->model->file, key, threshold, required ? NULL : &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (!(*threshold > 0.0f && *threshold <= 1.0f)) {
        char problem[64];
        snprintf(problem, sizeof problem, "is %g, expected above 0 and at most 1",
                 (double)*threshold);
        return fail_key(loader, key, problem, error);
    }
    return XMOE_OK;
}

/* What the type does not use is kept where the file gives it, as the start of a user's own setting:
 * threshold 1 and one expert where it gives nothing. */
static xmoe_status read_router(xm_loader *loader, xmoe_error *error)
{
    xmoe_model_info *info = &loader->model->info;
    bool any = info->moe_layer_count > 0;
    xmoe_router router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f, .min_experts = 1};
    xmoe_status status = read_router_type(loader, &router.type, error);
    if (status != XMOE_OK)
        return status;
    status = read_threshold(loader, any && router.type == XMOE_ROUTER_THRESHOLD, &router.threshold,
                            error);
    if (status != XMOE_OK)
        return status;
    int32_t most = any ? info->expert_count : XM_MAX_EXPERTS;
    status = read_size(loader, "xmoe.expert_used_count", any && router.type == XMOE_ROUTER_TOP_K,
                       most, &router.top_k, error);
    if (status != XMOE_OK)
        return status;
    if (router.top_k == 0)
        router.top_k = 1;
    bool found;
    status = xm_gguf_get_bool(loader->model->file, "xmoe.router.normalize", &router.normalize,
                              &found, error);
    info->router = router;
    return status;
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Name of a tensor of the layer; of the whole model where layer is negative. */
static const char *tensor_name(int32_t layer, const char *part, const char *kind, char *name)
{
    if (layer < 0)
        snprintf(name, NAME_BYTES, "%s.%s", part, kind);
    else
        snprintf(name, NAME_BYTES, "blk.%d.%s.%s", layer, part, kind);
    return name;
}

static xmoe_status bind_norm(xm_loader *loader, int32_t layer, const char *part, xm_norm *norm,
                             xmoe_error *error)
{
    const xm_weight_traits *f32 = xm_weight_traits_of(XM_TYPE_F32);
    int32_t width = loader->model->info.embedding_length;
    char name[NAME_BYTES];
    xmoe_status status = xm_loader_bind_values(loader, tensor_name(layer, part, "weight", name),
                                               width, 1, f32, &norm->weight, error);
    if (status != XMOE_OK)
        return status;
    return xm_loader_bind_values(loader, tensor_name(layer, part, "bias", name), width, 1, f32,
                                 &norm->bias, error);
}

/* count matrices with their biases [rows, count]. */
static xmoe_status bind_linears(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                                int32_t rows, int32_t count, xm_matrix *matrices,
                                const float **bias, xmoe_error *error)
{
    char name[NAME_BYTES];
    xmoe_status status = xm_loader_bind_matrices(loader, tensor_name(layer, part, "weight", name),
                                                 columns, rows, count, NULL, matrices, error);
    if (status != XMOE_OK)
        return status;
    return xm_loader_bind_values(loader, tensor_name(layer, part, "bias", name), rows, count,
                                 xm_weight_traits_of(XM_TYPE_F32), bias, error);
}

static xmoe_status bind_linear(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                               int32_t rows, xm_linear *linear, xmoe_error *error)
{
    return bind_linears(loader, layer, part, columns, rows, 1, &linear->weight, &linear->bias,
                        error);
}

static xmoe_status bind_moe(xm_loader *loader, int32_t index, xm_moe_layer *moe, xmoe_error *error)
{
    const xmoe_model_info *info = &loader->model->info;
    char name[NAME_BYTES];
    moe->experts = info->expert_count;
    moe->hidden = info->expert_feed_forward_length;
    moe->width = info->embedding_length;
    moe->up = xm_model_allocate(loader->model, (size_t)moe->experts, sizeof *moe->up);
    moe->down = xm_model_allocate(loader->model, (size_t)moe->experts, sizeof *moe->down);
    if (moe->up == NULL || moe->down == NULL)
        return xm_fail_memory(error, "list of experts", (size_t)moe->experts * sizeof *moe->up);
    xmoe_status status = xm_loader_bind_matrices(
        loader, tensor_name(index, "ffn_gate_inp", "weight", name), moe->width, moe->experts, 1,
        xm_weight_traits_of(XM_TYPE_F32), &moe->gate, error);
    if (status != XMOE_OK)
        return status;
    status = bind_linears(loader, index, "ffn_up_exps", moe->width, moe->hidden, moe->experts,
                          moe->up, &moe->up_bias, error);
    if (status != XMOE_OK)
        return status;
    return bind_linears(loader, index, "ffn_down_exps", moe->hidden, moe->width, moe->experts,
                        moe->down, &moe->down_bias, error);
}

static xmoe_status bind_layer(xm_loader *loader, int32_t index, xmoe_error *error)
{
    const xmoe_model_info *info = &loader->model->info;
    int32_t d = info->embedding_length;
    int32_t hidden = info->feed_forward_length;
    xm_layer *layer = &loader->model->layers[index];
    xmoe_status status;
    if ((status = bind_norm(loader, index, "attn_norm", &layer->attention_norm, error)) !=
            XMOE_OK ||
        (status = bind_linear(loader, index, "attn_qkv", d, 3 * d, &layer->qkv, error)) !=
            XMOE_OK ||
        (status = bind_linear(loader, index, "attn_output", d, d, &layer->attention_output,
                              error)) != XMOE_OK ||
        (status = bind_norm(loader, index, "ffn_norm", &layer->ffn_norm, error)) != XMOE_OK)
        return status;
    if (layer->is_moe)
        return bind_moe(loader, index, &layer->moe, error);
    if ((status = bind_linear(loader, index, "ffn_up", d, hidden, &layer->up, error)) != XMOE_OK)
        return status;
    return bind_linear(loader, index, "ffn_down", hidden, d, &layer->down, error);
}

static xmoe_status make_layers(xm_loader *loader, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    size_t layers = (size_t)model->info.layer_count;
    size_t moe_layers = (size_t)model->info.moe_layer_count;
    model->layers = xm_model_allocate(model, layers, sizeof *model->layers);
    model->moe_layers = xm_model_allocate(model, moe_layers, sizeof *model->moe_layers);
    if (model->layers == NULL || model->moe_layers == NULL)
        return xm_fail_memory(error, "layers", layers * sizeof *model->layers);
    int32_t moe_index = 0;
    for (int32_t i = 0; i < model->info.layer_count; i++) {
        model->layers[i].is_moe = is_moe_layer(loader, i);
        if (!model->layers[i].is_moe)
            continue;
        model->layers[i].moe_index = moe_index;
        model->moe_layers[moe_index++] = i;
    }
    return XMOE_OK;
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
        (status = bind_norm(loader, -1, "output_norm", &model->output_norm, error)) != XMOE_OK)
        return status;
    if (!xm_loader_has(loader, "output.weight")) /* tied: model.c copies the token embedding's */
        return XMOE_OK;
    return xm_loader_bind_matrices(loader, "output.weight", d, vocabulary, 1, NULL, &model->output,
                                   error);
}

xmoe_status xm_family_xmoe_bind(xm_loader *loader, xmoe_error *error)
{
    xmoe_status status;
    if ((status = read_sizes(loader, error)) != XMOE_OK ||
        (status = read_router(loader, error)) != XMOE_OK ||
        (status = make_layers(loader, error)) != XMOE_OK ||
        (status = bind_tables(loader, error)) != XMOE_OK)
        return status;
    for (int32_t i = 0; i < loader->model->info.layer_count && status == XMOE_OK; i++)
        status = bind_layer(loader, i, error);
    return status;
}
