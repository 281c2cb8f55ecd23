/*
 * decoder.c - binds the tensors of a decoder (decoder.h), whose keys decoder_keys.c has read. Runs
 * on the thread that loads the model.
 */
#include "model/decoder.h"

static bool is_moe_layer(const void *context, int32_t layer)
{
    const xm_decoder_job *job = context;
    return job->loader->model->info.expert_count > 0 && layer >= job->first_moe_layer;
}

/* --- attention -------------------------------------------------------------------------------- */

static xmoe_status bind_qk_norms(const xm_decoder_job *job, int32_t index,
                                 xm_attention_weights *attention, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    int32_t q = shape->key_length;
    int32_t k = q;
    if (job->decoder->qk_norm == XM_QK_NORM_NONE)
        return XMOE_OK;
    if (job->decoder->qk_norm == XM_QK_NORM_ROWS) {
        q *= shape->heads;
        k *= shape->kv_heads;
    }
    xmoe_status status = xm_bind_values(job->loader, index, "attn_q_norm", "weight", q, 1,
                                        XM_REQUIRED, &attention->query_norm, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_values(job->loader, index, "attn_k_norm", "weight", k, 1, XM_REQUIRED,
                          &attention->key_norm, error);
}

static xmoe_status bind_projections(const xm_decoder_job *job, int32_t index,
                                    xm_attention_weights *attention, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    const struct {
        const char *part;
        int32_t rows;
    } parts[3] = {{"attn_q", shape->heads * shape->key_length},
                  {"attn_k", shape->kv_heads * shape->key_length},
                  {"attn_v", shape->kv_heads * shape->value_length}};
    xmoe_status status = XMOE_OK;
    attention->project_count = 3;
    for (int32_t i = 0; i < 3 && status == XMOE_OK; i++)
        status = xm_bind_linear(job->loader, index, parts[i].part,
                                job->loader->model->info.embedding_length, parts[i].rows,
                                job->decoder->qkv_bias, &attention->project[i], error);
    if (status == XMOE_OK)
        status = bind_qk_norms(job, index, attention, error);
    return status;
}

/* Queries, with a lower rank between where the file has one. */
static xmoe_status bind_latent_query(const xm_decoder_job *job, int32_t index,
                                     xm_latent_weights *latent, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    int32_t d = job->loader->model->info.embedding_length, rank = job->query_rank;
    int32_t rows = shape->heads * (shape->plain_length + shape->turning_length);
    xmoe_status status;
    if (rank == 0)
        return xm_bind_linear(job->loader, index, "attn_q", d, rows, XM_ABSENT, &latent->query,
                              error);
    if ((status = xm_bind_linear(job->loader, index, "attn_q_a", d, rank, XM_ABSENT,
                                 &latent->query_down, error)) != XMOE_OK ||
        (status = xm_bind_values(job->loader, index, "attn_q_a_norm", "weight", rank, 1,
                                 XM_REQUIRED, &latent->query_norm, error)) != XMOE_OK)
        return status;
    return xm_bind_linear(job->loader, index, "attn_q_b", rank, rows, XM_ABSENT, &latent->query,
                          error);
}

/* Old files have a head's key_up, transposed, and value_up in one tensor. */
static xmoe_status bind_latent_heads(const xm_decoder_job *job, int32_t index,
                                     xm_latent_weights *latent, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    char name[XM_TENSOR_NAME_BYTES];
    if (xm_loader_has(job->loader, xm_tensor_name(index, "attn_kv_b", "weight", name))) {
        size_t bytes = (size_t)shape->heads * sizeof(xm_matrix);
        latent->key_up = xm_model_allocate(job->loader->model, bytes, 1);
        latent->value_up = xm_model_allocate(job->loader->model, bytes, 1);
        if (latent->key_up == NULL || latent->value_up == NULL)
            return xm_fail_memory(error, "list of matrices", bytes);
        return xm_loader_bind_split(job->loader, name, shape->latent_length, shape->plain_length,
                                    shape->head_value_length, shape->heads, latent->key_up,
                                    latent->value_up, error);
    }
    xmoe_status status =
        xm_bind_linears(job->loader, index, "attn_k_b", shape->plain_length, shape->latent_length,
                        shape->heads, XM_ABSENT, &latent->key_up, NULL, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_linears(job->loader, index, "attn_v_b", shape->latent_length,
                           shape->head_value_length, shape->heads, XM_ABSENT, &latent->value_up,
                           NULL, error);
}

static xmoe_status bind_latent(const xm_decoder_job *job, int32_t index,
                               xm_attention_weights *attention, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    xm_latent_weights *latent = xm_model_allocate(job->loader->model, 1, sizeof *latent);
    xmoe_status status;
    if (latent == NULL)
        return xm_fail_memory(error, "latent attention", sizeof *latent);
    attention->latent = latent;
    if ((status = bind_latent_query(job, index, latent, error)) != XMOE_OK ||
        (status = xm_bind_linear(job->loader, index, "attn_kv_a_mqa",
                                 job->loader->model->info.embedding_length, shape->key_length,
                                 XM_ABSENT, &latent->latent, error)) != XMOE_OK ||
        (status =
             xm_bind_values(job->loader, index, "attn_kv_a_norm", "weight", shape->latent_length, 1,
                            XM_REQUIRED, &latent->latent_norm, error)) != XMOE_OK)
        return status;
    return bind_latent_heads(job, index, latent, error);
}

static xmoe_status bind_attention(const xm_decoder_job *job, int32_t index,
                                  xm_attention_weights *attention, xmoe_error *error)
{
    const xm_attention_shape *shape = &job->loader->model->attention;
    int32_t value = job->decoder->latent ? shape->head_value_length : shape->value_length;
    xmoe_status status = job->decoder->latent ? bind_latent(job, index, attention, error)
                                              : bind_projections(job, index, attention, error);
    if (status != XMOE_OK)
        return status;
    if (job->decoder->alternate_windows && index % 2 == 0)
        attention->window = job->window;
    status =
        xm_bind_values(job->loader, index, "attn_sinks", "weight", shape->heads, 1,
                       job->decoder->sinks ? XM_REQUIRED : XM_ABSENT, &attention->sinks, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_linear(job->loader, index, "attn_output", shape->heads * value,
                          job->loader->model->info.embedding_length,
                          job->decoder->attention_output_bias, &attention->output, error);
}

/* --- feed-forward ----------------------------------------------------------------------------- */

/* shared: of the experts that all tokens share. */
static xmoe_status bind_ffn(const xm_decoder_job *job, int32_t index, bool shared, int32_t hidden,
                            xm_feed_forward *ffn, xmoe_error *error)
{
    int32_t d = job->loader->model->info.embedding_length;
    xmoe_status status;
    ffn->activation = job->decoder->activation;
    if ((status = xm_bind_linear(job->loader, index, shared ? "ffn_gate_shexp" : "ffn_gate", d,
                                 hidden, XM_ABSENT, &ffn->gate, error)) != XMOE_OK ||
        (status = xm_bind_linear(job->loader, index, shared ? "ffn_up_shexp" : "ffn_up", d, hidden,
                                 XM_ABSENT, &ffn->up, error)) != XMOE_OK)
        return status;
    return xm_bind_linear(job->loader, index, shared ? "ffn_down_shexp" : "ffn_down", hidden, d,
                          XM_ABSENT, &ffn->down, error);
}

static xmoe_status bind_router(const xm_decoder_job *job, int32_t index, xm_moe_layer *moe,
                               xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    xmoe_status status =
        xm_loader_bind_matrices(job->loader, xm_tensor_name(index, "ffn_gate_inp", "weight", name),
                                moe->width, moe->experts, 1, NULL, &moe->router, error);
    if (status == XMOE_OK)
        status = xm_bind_values(job->loader, index, "ffn_gate_inp", "bias", moe->experts, 1,
                                job->decoder->biases ? XM_REQUIRED : XM_ABSENT, &moe->router_bias,
                                error);
    if (status == XMOE_OK)
        status = xm_bind_values(job->loader, index, "exp_probs_b", "bias", moe->experts, 1,
                                job->decoder->selection_bias ? XM_OPTIONAL : XM_ABSENT,
                                &moe->rules.selection_bias, error);
    return status;
}

static xmoe_status bind_experts(const xm_decoder_job *job, int32_t index, xm_moe_layer *moe,
                                xmoe_error *error)
{
    const xmoe_model_info *info = &job->loader->model->info;
    xm_presence bias = job->decoder->biases ? XM_REQUIRED : XM_ABSENT;
    int32_t d = info->embedding_length, hidden = info->expert_feed_forward_length;
    int32_t experts = info->expert_count;
    xmoe_status status;
    moe->experts = experts;
    moe->hidden = hidden;
    moe->width = d;
    moe->rules = job->rules;
    moe->output_scale = job->loader->model->residual_scale;
    moe->activation = job->decoder->activation;
    if ((status = bind_router(job, index, moe, error)) != XMOE_OK ||
        (status = xm_bind_linears(job->loader, index, "ffn_gate_exps", d, hidden, experts, bias,
                                  &moe->gate, &moe->gate_bias, error)) != XMOE_OK ||
        (status = xm_bind_linears(job->loader, index, "ffn_up_exps", d, hidden, experts, bias,
                                  &moe->up, &moe->up_bias, error)) != XMOE_OK)
        return status;
    return xm_bind_linears(job->loader, index, "ffn_down_exps", hidden, d, experts, bias,
                           &moe->down, &moe->down_bias, error);
}

static xmoe_status bind_shared(const xm_decoder_job *job, int32_t index, xm_layer *layer,
                               xmoe_error *error)
{
    const xmoe_model *model = job->loader->model;
    char name[XM_TENSOR_NAME_BYTES];
    if (model->shared_hidden == 0)
        return XMOE_OK;
    xmoe_status status = bind_ffn(job, index, true, model->shared_hidden, &layer->ffn, error);
    if (status != XMOE_OK || !job->decoder->shared_gate)
        return status;
    return xm_loader_bind_matrices(
        job->loader, xm_tensor_name(index, "ffn_gate_inp_shexp", "weight", name),
        model->info.embedding_length, 1, 1, NULL, &layer->ffn_gate, error);
}

/* --- all -------------------------------------------------------------------------------------- */

static xmoe_status bind_layer(const xm_decoder_job *job, int32_t index, xmoe_error *error)
{
    const xmoe_model_info *info = &job->loader->model->info;
    xm_layer *layer = &job->loader->model->layers[index];
    const char *ffn_norm = job->decoder->ffn_norm != NULL ? job->decoder->ffn_norm : "ffn_norm";
    xmoe_status status;
    if ((status = xm_bind_norm(job->loader, index, "attn_norm", &layer->attention_norm, error)) !=
            XMOE_OK ||
        (status = bind_attention(job, index, &layer->attention, error)) != XMOE_OK ||
        (status = xm_bind_norm(job->loader, index, ffn_norm, &layer->ffn_norm, error)) != XMOE_OK)
        return status;
    if (!layer->is_moe)
        return bind_ffn(job, index, false, info->feed_forward_length, &layer->ffn, error);
    status = bind_experts(job, index, &layer->moe, error);
    if (status != XMOE_OK)
        return status;
    return bind_shared(job, index, layer, error);
}

static xmoe_status bind_tables(const xm_decoder_job *job, xmoe_error *error)
{
    xmoe_model *model = job->loader->model;
    int32_t d = model->info.embedding_length, vocabulary = model->info.vocabulary_size;
    xmoe_status status = xm_loader_bind_matrices(job->loader, "token_embd.weight", d, vocabulary, 1,
                                                 NULL, &model->token_embedding, error);
    if (status == XMOE_OK)
        status = xm_bind_norm(job->loader, -1, "output_norm", &model->output_norm, error);
    if (status == XMOE_OK)
        status = xm_bind_values(job->loader, -1, "output", "bias", vocabulary, 1,
                                job->decoder->output_bias, &model->output.bias, error);
    if (status != XMOE_OK || !xm_loader_has(job->loader, "output.weight"))
        return status; /* tied: model.c copies the token embedding's */
    return xm_loader_bind_matrices(job->loader, "output.weight", d, vocabulary, 1, NULL,
                                   &model->output.weight, error);
}

xmoe_status xm_decoder_bind(xm_loader *loader, const xm_decoder *decoder, xmoe_error *error)
{
    xm_decoder_job job = {.loader = loader, .decoder = decoder};
    xmoe_status status;
    if ((status = xm_decoder_read_keys(&job, error)) != XMOE_OK ||
        (status = xm_bind_layer_lists(loader, is_moe_layer, &job, error)) != XMOE_OK ||
        (status = bind_tables(&job, error)) != XMOE_OK)
        return status;
    for (int32_t i = 0; i < loader->model->info.layer_count && status == XMOE_OK; i++)
        status = bind_layer(&job, i, error);
    return status;
}
