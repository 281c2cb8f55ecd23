/*
 * decoder_keys.c - the hyper-parameters of a decoder (decoder.h) from the file's keys, checked.
 * Runs on the thread that loads the model.
 */
#include "model/decoder.h"
#include "model/keys.h"

#include <math.h>

enum {
    MAX_HEADS = 1024,
    MAX_HEAD_LENGTH = 4096,
    MAX_RANK = XM_MAX_TRANSPOSED, /* of latent attention */
};

/* --- sizes ------------------------------------------------------------------------------------ */

static xmoe_status read_basics(xm_loader *loader, const xm_decoder *decoder, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    xmoe_model_info *info = &model->info;
    /* Of Phi-3.5-MoE's LayerNorm too: so its files are written. */
    const char *epsilon = "attention.layer_norm_rms_epsilon";
    xmoe_status status;
    model->norm_kind = decoder->norm;
    model->embedding_scale = model->residual_scale = model->logit_scale = 1.0f;
    if ((status = xm_key_size(loader, "context_length", true, XM_MAX_CONTEXT, &info->context_length,
                              error)) != XMOE_OK ||
        (status = xm_key_size(loader, "embedding_length", true, XM_MAX_WIDTH,
                              &info->embedding_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "block_count", true, XMOE_MAX_LAYERS, &info->layer_count,
                              error)) != XMOE_OK ||
        (status = xm_key_number(loader, epsilon, true, 0.0, 1.0, &model->norm_epsilon, error)) !=
            XMOE_OK)
        return status;
    if (loader->context_limit > 0 && loader->context_limit < info->context_length)
        info->context_length = loader->context_limit;
    return XMOE_OK;
}

/* Granite divides logits by its logit_scale. */
static xmoe_status read_multipliers(xm_loader *loader, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    const double most = 1e6;
    float divisor = 1.0f;
    xmoe_status status;
    if ((status = xm_key_number(loader, "embedding_scale", false, 0.0, most,
                                &model->embedding_scale, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "residual_scale", false, 0.0, most, &model->residual_scale,
                                error)) != XMOE_OK ||
        (status = xm_key_number(loader, "attention.scale", false, 0.0, most,
                                &model->attention.scale, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "logit_scale", false, 0.0, most, &divisor, error)) !=
            XMOE_OK)
        return status;
    model->logit_scale = 1.0f / divisor;
    return XMOE_OK;
}

/* --- attention -------------------------------------------------------------------------------- */

static xmoe_status read_heads(xm_loader *loader, xmoe_error *error)
{
    xm_attention_shape *shape = &loader->model->attention;
    xmoe_status status =
        xm_key_size(loader, "attention.head_count", true, MAX_HEADS, &shape->heads, error);
    if (status != XMOE_OK)
        return status;
    shape->kv_heads = shape->heads;
    status =
        xm_key_size(loader, "attention.head_count_kv", false, MAX_HEADS, &shape->kv_heads, error);
    if (status == XMOE_OK && shape->heads % shape->kv_heads != 0)
        return xm_key_fail(loader, "attention.head_count_kv", error,
                           "is %d, which does not divide the %d heads", shape->kv_heads,
                           shape->heads);
    return status;
}

static xmoe_status read_head_lengths(xm_loader *loader, xmoe_error *error)
{
    xm_attention_shape *shape = &loader->model->attention;
    int32_t d = loader->model->info.embedding_length;
    bool whole = d % shape->heads == 0 && d / shape->heads <= MAX_HEAD_LENGTH;
    shape->key_length = whole ? d / shape->heads : 0;
    bool required = shape->key_length == 0;
    xmoe_status status = xm_key_size(loader, "attention.key_length", required, MAX_HEAD_LENGTH,
                                     &shape->key_length, error);
    if (status != XMOE_OK)
        return status;
    shape->value_length = shape->key_length;
    status = xm_key_size(loader, "attention.value_length", false, MAX_HEAD_LENGTH,
                         &shape->value_length, error);
    shape->scale = 1.0f / sqrtf((float)shape->key_length);
    return status;
}

/* Lengths of latent attention; the cache then has one head. Files with key_length_mla have key_up
 * and value_up apart and give the cache's lengths in key_length and value_length; older ones have
 * both in one tensor and give those of a head. */
static xmoe_status read_latent(xm_loader *loader, xmoe_error *error)
{
    xm_attention_shape *shape = &loader->model->attention;
    int32_t key_length = 0, turning = 0;
    xmoe_status status;
    if ((status = xm_key_size(loader, "attention.kv_lora_rank", true, MAX_RANK,
                              &shape->latent_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "rope.dimension_count", true, MAX_HEAD_LENGTH, &turning,
                              error)) != XMOE_OK ||
        (status = xm_key_size(loader, "attention.key_length", true, MAX_HEAD_LENGTH, &key_length,
                              error)) != XMOE_OK ||
        (status = xm_key_size(loader, "attention.value_length", true, MAX_HEAD_LENGTH,
                              &shape->head_value_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "attention.key_length_mla", false, MAX_HEAD_LENGTH,
                              &key_length, error)) != XMOE_OK ||
        (status = xm_key_size(loader, "attention.value_length_mla", false, MAX_HEAD_LENGTH,
                              &shape->head_value_length, error)) != XMOE_OK)
        return status;
    if (shape->latent_length % 32 != 0)
        return xm_key_fail(loader, "attention.kv_lora_rank", error, "is %d, not a multiple of 32",
                           shape->latent_length);
    if (key_length <= turning)
        return xm_key_fail(loader, "rope.dimension_count", error,
                           "is %d, expected less than the %d of a head's key", turning, key_length);
    shape->kv_heads = 1;
    shape->turning_length = turning;
    shape->plain_length = key_length - turning;
    shape->key_length = shape->latent_length + turning;
    shape->value_length = shape->latent_length;
    shape->scale = 1.0f / sqrtf((float)key_length);
    return XMOE_OK;
}

static xmoe_status read_attention(xm_decoder_job *job, xmoe_error *error)
{
    xm_loader *loader = job->loader;
    xmoe_model *model = loader->model;
    xm_attention_shape *shape = &model->attention;
    bool latent = job->decoder->latent;
    xmoe_status status = read_heads(loader, error);
    if (status == XMOE_OK)
        status = latent ? read_latent(loader, error) : read_head_lengths(loader, error);
    if (status == XMOE_OK && latent)
        status =
            xm_key_count(loader, "attention.q_lora_rank", false, MAX_RANK, &job->query_rank, error);
    if (status == XMOE_OK && job->decoder->windows)
        status = xm_key_count(loader, "attention.sliding_window", false, XM_MAX_CONTEXT,
                              &job->window, error);
    if (status == XMOE_OK && job->decoder->alternate_windows)
        status = xm_key_size(loader, "attention.sliding_window", true, XM_MAX_CONTEXT, &job->window,
                             error);
    if (status != XMOE_OK)
        return status;
    shape->norm_whole_rows = job->decoder->qk_norm == XM_QK_NORM_ROWS;
    model->info.head_count = shape->heads;
    model->info.kv_head_count = shape->kv_heads;
    model->info.head_length =
        latent ? shape->plain_length + shape->turning_length : shape->key_length;
    return XMOE_OK;
}

/* --- experts ---------------------------------------------------------------------------------- */

/* expert_gating_func: how the file says what scores are. 3 is softmax over the chosen experts,
 * which is softmax over all and then normalised. */
static xmoe_status read_gating(xm_decoder_job *job, xmoe_error *error)
{
    xmoe_router *router = &job->loader->model->info.router;
    int32_t function = 0;
    xmoe_status status =
        xm_key_count(job->loader, "expert_gating_func", false, 255, &function, error);
    job->rules.score = job->decoder->score;
    if (status != XMOE_OK || function == 0)
        return status;
    if (function > 3)
        return xm_key_fail(job->loader, "expert_gating_func", error,
                           "is %d, expected 1 (softmax), 2 (sigmoid) or 3 (softmax of the chosen)",
                           function);
    if (job->decoder->score != XM_SCORE_SPARSE_MIXER)
        job->rules.score = function == 2 ? XM_SCORE_SIGMOID : XM_SCORE_SOFTMAX;
    if (function == 3)
        router->normalize = true;
    return XMOE_OK;
}

static xmoe_status read_groups(xm_decoder_job *job, xmoe_error *error)
{
    const xm_loader *loader = job->loader;
    xm_gate_rules *rules = &job->rules;
    int32_t experts = loader->model->info.expert_count, groups = 1, used = 1;
    xmoe_status status = xm_key_size(loader, "expert_group_count", false, experts, &groups, error);
    if (status == XMOE_OK)
        status = xm_key_size(loader, "expert_group_used_count", groups > 1, groups, &used, error);
    if (status != XMOE_OK || groups == 1)
        return status;
    if (experts % groups != 0)
        return xm_key_fail(loader, "expert_group_count", error,
                           "is %d, which does not divide the %d experts", groups, experts);
    if (rules->trained_top_k > experts / groups * used)
        return xm_key_fail(loader, "expert_group_used_count", error,
                           "is %d: too few groups for the %d experts of a token", used,
                           rules->trained_top_k);
    rules->groups = groups;
    rules->groups_used = used;
    rules->group_by_top_two = rules->score == XM_SCORE_SIGMOID && experts / groups > 1;
    return XMOE_OK;
}

/* router.type and router.threshold are ours: what xmoe-train writes into files of the families. */
static xmoe_status read_rules(xm_decoder_job *job, xmoe_error *error)
{
    const xm_loader *loader = job->loader;
    xmoe_model_info *info = &loader->model->info;
    xm_gate_rules *rules = &job->rules;
    xmoe_router *router = &info->router;
    const xm_router_kind *kind = xm_router_kind_of(XM_GATE_SOFTMAX, XMOE_ROUTER_TOP_K);
    xmoe_status status;
    rules->weight_scale = 1.0f;
    router->normalize = job->decoder->normalize;
    if ((status = xm_key_size(loader, "expert_used_count", true, info->expert_count, &router->top_k,
                              error)) != XMOE_OK ||
        (status = xm_key_router_kind(loader, true, &kind, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "router.threshold", false, 0.0, 1.0, &router->threshold,
                                error)) != XMOE_OK ||
        (status = xm_key_flag(loader, "expert_weights_norm", &router->normalize, error)) !=
            XMOE_OK ||
        (status = xm_key_number(loader, "expert_weights_scale", false, 0.0, 1e3,
                                &rules->weight_scale, error)) != XMOE_OK ||
        (status = read_gating(job, error)) != XMOE_OK)
        return status;
    router->type = kind->chooses;
    rules->trained_top_k = router->top_k;
    rules->normalize_epsilon = rules->score == XM_SCORE_SIGMOID ? 1e-20f : 0.0f;
    return read_groups(job, error);
}

/* Hidden size of the experts that all tokens share. */
static xmoe_status read_shared(const xm_decoder_job *job, xmoe_error *error)
{
    xmoe_model *model = job->loader->model;
    int32_t count = 0;
    if (job->decoder->shared_experts == XM_ABSENT)
        return XMOE_OK;
    if (job->decoder->shared_experts == XM_REQUIRED)
        model->shared_hidden = model->info.feed_forward_length;
    xmoe_status status =
        xm_key_count(job->loader, "expert_shared_count", false, XM_MAX_EXPERTS, &count, error);
    if (status != XMOE_OK)
        return status;
    if (count > XM_MAX_HIDDEN / model->info.expert_feed_forward_length)
        return xm_key_fail(job->loader, "expert_shared_count", error,
                           "is %d: too many for experts of %d", count,
                           model->info.expert_feed_forward_length);
    if (count > 0)
        model->shared_hidden = count * model->info.expert_feed_forward_length;
    return xm_key_count(job->loader, "expert_shared_feed_forward_length", false, XM_MAX_HIDDEN,
                        &model->shared_hidden, error);
}

static xmoe_status read_experts(xm_decoder_job *job, xmoe_error *error)
{
    const xm_decoder *decoder = job->decoder;
    const xm_loader *loader = job->loader;
    xmoe_model_info *info = &loader->model->info;
    xmoe_status status;
    info->router = (xmoe_router){.threshold = 1.0f, .top_k = 1, .min_experts = 1};
    if (decoder->experts == XM_ABSENT)
        return XMOE_OK;
    status =
        decoder->experts == XM_REQUIRED
            ? xm_key_size(loader, "expert_count", true, XM_MAX_EXPERTS, &info->expert_count, error)
            : xm_key_count(loader, "expert_count", false, XM_MAX_EXPERTS, &info->expert_count,
                           error);
    if (status != XMOE_OK || info->expert_count == 0)
        return status;
    if (decoder->leading_dense)
        status = xm_key_count(loader, "leading_dense_block_count", false, info->layer_count,
                              &job->first_moe_layer, error);
    if (status != XMOE_OK)
        return status;
    if (decoder->hidden_from_dense)
        info->expert_feed_forward_length = info->feed_forward_length;
    status =
        xm_key_size(loader, "expert_feed_forward_length", info->expert_feed_forward_length == 0,
                    XM_MAX_HIDDEN, &info->expert_feed_forward_length, error);
    if (status == XMOE_OK)
        status = read_rules(job, error);
    if (status == XMOE_OK)
        status = read_shared(job, error);
    return status;
}

/* The hidden size of dense layers must be there where there are any. */
static xmoe_status read_feed_forward(xm_decoder_job *job, xmoe_error *error)
{
    xmoe_model_info *info = &job->loader->model->info;
    const char *name = "feed_forward_length";
    xmoe_status status =
        xm_key_count(job->loader, name, false, XM_MAX_HIDDEN, &info->feed_forward_length, error);
    if (status == XMOE_OK)
        status = read_experts(job, error);
    if (status != XMOE_OK || (info->expert_count > 0 && job->first_moe_layer == 0))
        return status;
    return xm_key_size(job->loader, name, true, XM_MAX_HIDDEN, &info->feed_forward_length, error);
}

/* --- all -------------------------------------------------------------------------------------- */

xmoe_status xm_decoder_read_keys(xm_decoder_job *job, xmoe_error *error)
{
    xm_loader *loader = job->loader;
    xmoe_status status;
    if ((status = read_basics(loader, job->decoder, error)) != XMOE_OK ||
        (status = read_attention(job, error)) != XMOE_OK ||
        (status = read_feed_forward(job, error)) != XMOE_OK)
        return status;
    if (job->decoder->multipliers && (status = read_multipliers(loader, error)) != XMOE_OK)
        return status;
    return xm_decoder_read_rope(job, error);
}
