/*
 * pass.c - see pass.h. The forward pass reads like the formula of the architecture:
 *
 *     x = token_embd[token] + position_embd[pos]
 *     per block:  x = x + attention(norm(x));  x = x + ffn(norm(x))
 *     loss = cross_entropy(token_embd . norm(x))
 *
 * and the backward pass undoes it line by line, with one array dx for the residual stream's
 * gradient.
 */
#include "train/pass_state.h"

#include "base/memory.h"
#include "train/linear.h"
#include "train/loss.h"
#include "train/rows.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

xmoe_status xm_pass_create(const xm_network *network, xm_pool *pool, const xm_pass_options *options,
                           xm_pass **pass_out, xmoe_error *error)
{
    *pass_out = NULL;
    const xm_network_shape *s = &network->shape;
    if (options->sequences < 1 || options->length < 1 || options->length > s->context ||
        options->sequences > (1 << 22) / options->length)
        return xm_fail_argument(error, "sequences",
                                "%d sequences of %d tokens: length must be 1 to %d and the batch "
                                "at most 4194304 tokens",
                                options->sequences, options->length, s->context);
    if (!(options->expert_dropout >= 0.0f && options->expert_dropout < 1.0f))
        return xm_fail_argument(error, "expert_dropout",
                                "expert_dropout is %g, must be at least 0 and below 1",
                                (double)options->expert_dropout);
    xm_pass *pass = xm_calloc(1, sizeof *pass);
    if (pass == NULL)
        return xm_fail_memory(error, "pass", sizeof *pass);
    pass->network = network;
    pass->compute = xm_compute_f32(pool);
    if (options->gemm != NULL)
        pass->compute.gemm = options->gemm;
    pass->options = *options;
    pass->rows = options->sequences * options->length;
    pass->attention = (xm_attention_shape){.sequences = options->sequences,
                                           .length = options->length,
                                           .width = s->width,
                                           .heads = s->heads};
    xmoe_status status = xm_pass_create_arrays(pass, error);
    if (status != XMOE_OK) {
        xm_pass_free(pass);
        return status;
    }
    xm_gemm_setup();
    *pass_out = pass;
    return XMOE_OK;
}

void xm_pass_free(xm_pass *pass)
{
    if (pass == NULL)
        return;
    xm_pass_free_arrays(pass);
    xm_free(pass);
}

const float *xm_pass_losses(const xm_pass *pass)
{
    return pass->losses;
}

void xm_pass_set_dropout_key(xm_pass *pass, uint64_t key)
{
    for (int32_t block = 0; block < pass->network->shape.blocks; block++)
        pass->blocks[block].moe.dropout.key = key;
}

/* The tensor at an offset, NULL if the architecture does not have it. */
static const float *weight_at(const float *parameters, size_t offset)
{
    return offset == XM_NO_TENSOR ? NULL : parameters + offset;
}

static float *gradient_at(float *gradients, size_t offset)
{
    return offset == XM_NO_TENSOR ? NULL : gradients + offset;
}

const xm_routes *xm_pass_routes(const xm_pass *pass, int32_t block)
{
    return &pass->blocks[block].moe.routes;
}

/* The state that a MoE block's router starts from: that of the MoE block before it. */
static const float *state_before(const xm_pass *pass, int32_t block)
{
    while (--block >= 0)
        if (pass->network->blocks[block].moe)
            return pass->blocks[block].recurrent.state;
    return pass->recurrent.zero;
}

static xm_train_moe_weights moe_weights(const xm_network *network, const xm_block_offsets *o,
                                        const float *parameters)
{
    return (xm_train_moe_weights){.width = network->shape.width,
                                  .hidden = network->shape.expert_feed_forward,
                                  .experts = network->shape.experts,
                                  .gate = {.width = network->shape.width,
                                           .views = network->shape.router_views,
                                           .view_temperature = network->shape.view_temperature,
                                           .weight = weight_at(parameters, o->router_weight),
                                           .expert_of = weight_at(parameters, o->hash)},
                                  .expert_gate = weight_at(parameters, o->gate_weight),
                                  .up = parameters + o->up_weight,
                                  .up_bias = weight_at(parameters, o->up_bias),
                                  .down = parameters + o->down_weight,
                                  .down_bias = weight_at(parameters, o->down_bias)};
}

/* With gate recurrent, puts the router's cell into the weights of a MoE block. g: NULL in the
 * forward pass. */
static void add_recurrent(const xm_pass *pass, int32_t block, const float *p, float *g,
                          xm_recurrent *recurrent, xm_train_moe_weights *weights)
{
    const xm_network *network = pass->network;
    const xm_block_offsets *o = &network->blocks[block];
    if (network->shape.gate != XM_GATE_RECURRENT)
        return;
    *recurrent = (xm_recurrent){.rows = pass->rows,
                                .width = network->shape.width,
                                .length = network->shape.router_state,
                                .weights = {.projection = p + o->router_projection,
                                            .input_weight = p + network->gru_input_weight,
                                            .input_bias = p + network->gru_input_bias,
                                            .state_weight = p + network->gru_state_weight,
                                            .state_bias = p + network->gru_state_bias},
                                .layer = pass->blocks[block].recurrent,
                                .scratch = &pass->recurrent,
                                .before = state_before(pass, block)};
    if (g != NULL)
        recurrent->gradients =
            (xm_recurrent_gradients){.projection = g + o->router_projection,
                                     .input_weight = g + network->gru_input_weight,
                                     .input_bias = g + network->gru_input_bias,
                                     .state_weight = g + network->gru_state_weight,
                                     .state_bias = g + network->gru_state_bias};
    weights->gate.recurrent = recurrent;
    weights->gate.width = recurrent->length;
}

static void embed(const xm_pass *pass, const float *parameters, const int32_t *tokens, float *x)
{
    size_t d = (size_t)pass->network->shape.width;
    const float *token_embedding = parameters + pass->network->token_embedding;
    size_t positions = pass->network->position_embedding; /* offset */
    for (int32_t row = 0; row < pass->rows; row++) {
        const float *token = token_embedding + (size_t)tokens[row] * d;
        size_t position = (size_t)(row % pass->options.length);
        if (positions != XM_NO_TENSOR)
            xm_row_sum(x + (size_t)row * d, token, parameters + positions + position * d, d);
        else
            memcpy(x + (size_t)row * d, token, d * sizeof *x);
    }
}

/* From the block's x_in to that of the next block, which may be the same array. Run again, it
 * writes the same values. */
static void forward_block(xm_pass *pass, const float *p, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    xm_block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width, ff = s->feed_forward;
    float *x_next = block + 1 < s->blocks ? pass->blocks[block + 1].x_in : pass->x_out;

    xm_norm_forward(pass->compute.pool, state->x_in, p + o->attn_norm_weight,
                    weight_at(p, o->attn_norm_bias), s->epsilon, state->attn_norm,
                    state->attn_statistics, rows, d);
    xm_linear_forward(&pass->compute, state->attn_norm, p + o->attn_qkv_weight,
                      weight_at(p, o->attn_qkv_bias), state->qkv, rows, d, 3 * d);
    if (pass->query_key.rows > 0)
        xm_query_key_forward(
            pass->compute.pool, &pass->query_key, weight_at(p, o->attn_q_norm_weight),
            weight_at(p, o->attn_k_norm_weight), state->qkv, state->raw, state->raw_inverses);
    xm_attention_forward(&pass->compute, &pass->attention, state->qkv, state->attended,
                         state->log_sums, pass->attention_scratch);
    xm_linear_forward_residual(&pass->compute, state->attended, p + o->attn_output_weight,
                               weight_at(p, o->attn_output_bias), state->x_in, state->x_mid, rows,
                               d, d);

    xm_norm_forward(pass->compute.pool, state->x_mid, p + o->ffn_norm_weight,
                    weight_at(p, o->ffn_norm_bias), s->epsilon, state->ffn_norm,
                    state->ffn_statistics, rows, d);
    if (o->moe) {
        xm_train_moe_weights weights = moe_weights(pass->network, o, p);
        xm_recurrent recurrent;
        add_recurrent(pass, block, p, NULL, &recurrent, &weights);
        xm_train_moe_forward(&pass->compute, &weights, &state->moe, &pass->moe, state->ffn_norm,
                             pass->tokens, state->x_mid, x_next);
        return;
    }
    xm_linear_forward(&pass->compute, state->ffn_norm, p + o->up_weight, weight_at(p, o->up_bias),
                      state->before, rows, d, ff);
    if (state->gates != NULL) {
        xm_linear_forward(&pass->compute, state->ffn_norm, p + o->gate_weight, NULL, state->gates,
                          rows, d, ff);
        xm_swiglu_forward(pass->compute.pool, state->gates, state->before, state->activated,
                          (size_t)rows * (size_t)ff);
    } else {
        xm_gelu_forward(pass->compute.pool, state->before, state->activated,
                        (size_t)rows * (size_t)ff);
    }
    xm_linear_forward_residual(&pass->compute, state->activated, p + o->down_weight,
                               weight_at(p, o->down_bias), state->x_mid, x_next, rows, ff, d);
}

static void backward_attention(xm_pass *pass, const float *p, float *g, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    xm_block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width;
    xm_linear_backward_weight(&pass->compute, pass->dx, state->attended, g + o->attn_output_weight,
                              gradient_at(g, o->attn_output_bias), rows, d, d);
    xm_linear_backward_input(&pass->compute, pass->dx, p + o->attn_output_weight, pass->dnorm, rows,
                             d, d, false);
    xm_attention_backward(&pass->compute, &pass->attention, state->qkv, state->attended,
                          state->log_sums, pass->dnorm, pass->dqkv, pass->attention_scratch);
    if (pass->query_key.rows > 0) {
        const xm_query_key_gradients query_key = {.q_norm = weight_at(p, o->attn_q_norm_weight),
                                                  .k_norm = weight_at(p, o->attn_k_norm_weight),
                                                  .raw = state->raw,
                                                  .inverses = state->raw_inverses,
                                                  .dqkv = pass->dqkv,
                                                  .dq_norm = gradient_at(g, o->attn_q_norm_weight),
                                                  .dk_norm = gradient_at(g, o->attn_k_norm_weight),
                                                  .partial = pass->query_key_partial};
        xm_query_key_backward(pass->compute.pool, &pass->query_key, &query_key);
    }
    xm_linear_backward_weight(&pass->compute, pass->dqkv, state->attn_norm, g + o->attn_qkv_weight,
                              gradient_at(g, o->attn_qkv_bias), rows, d, 3 * d);
    xm_linear_backward_input(&pass->compute, pass->dqkv, p + o->attn_qkv_weight, pass->dnorm, rows,
                             d, 3 * d, false);
    xm_norm_backward(pass->compute.pool, pass->dnorm, state->x_in, p + o->attn_norm_weight,
                     state->attn_statistics, pass->dx, g + o->attn_norm_weight,
                     gradient_at(g, o->attn_norm_bias), pass->norm_partial, rows, d);
}

static void backward_dense(xm_pass *pass, const float *p, float *g, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    const xm_block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width, ff = s->feed_forward;
    size_t count = (size_t)rows * (size_t)ff;
    float *dup = pass->dhidden;
    xm_linear_backward_weight(&pass->compute, pass->dx, state->activated, g + o->down_weight,
                              gradient_at(g, o->down_bias), rows, ff, d);
    xm_linear_backward_input(&pass->compute, pass->dx, p + o->down_weight, pass->dhidden, rows, ff,
                             d, false);
    if (state->gates != NULL) {
        dup = pass->dup;
        xm_swiglu_backward(pass->compute.pool, state->gates, state->before, pass->dhidden,
                           pass->dhidden, dup, count);
        xm_linear_backward_weight(&pass->compute, pass->dhidden, state->ffn_norm,
                                  g + o->gate_weight, NULL, rows, d, ff);
        xm_linear_backward_input(&pass->compute, pass->dhidden, p + o->gate_weight, pass->dnorm,
                                 rows, d, ff, false);
    } else {
        xm_gelu_backward(pass->compute.pool, state->before, pass->dhidden, pass->dhidden, count);
    }
    xm_linear_backward_weight(&pass->compute, dup, state->ffn_norm, g + o->up_weight,
                              gradient_at(g, o->up_bias), rows, d, ff);
    xm_linear_backward_input(&pass->compute, dup, p + o->up_weight, pass->dnorm, rows, d, ff,
                             state->gates != NULL);
}

static void backward_ffn(xm_pass *pass, const float *p, float *g, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    xm_block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width;
    if (o->moe) {
        xm_train_moe_weights weights = moe_weights(pass->network, o, p);
        xm_recurrent recurrent;
        add_recurrent(pass, block, p, g, &recurrent, &weights);
        xm_train_moe_gradients gradients = {.gate = {.weight = gradient_at(g, o->router_weight)},
                                            .expert_gate = gradient_at(g, o->gate_weight),
                                            .up = g + o->up_weight,
                                            .up_bias = gradient_at(g, o->up_bias),
                                            .down = g + o->down_weight,
                                            .down_bias = gradient_at(g, o->down_bias)};
        xm_train_moe_backward(&pass->compute, &weights, &gradients, &state->moe, &pass->moe,
                              state->ffn_norm, pass->dx, pass->dnorm);
    } else {
        backward_dense(pass, p, g, block);
    }
    xm_norm_backward(pass->compute.pool, pass->dnorm, state->x_mid, p + o->ffn_norm_weight,
                     state->ffn_statistics, pass->dx, g + o->ffn_norm_weight,
                     gradient_at(g, o->ffn_norm_bias), pass->norm_partial, rows, d);
}

static void backward_embedding(const xm_pass *pass, const int32_t *tokens, float *gradients)
{
    size_t d = (size_t)pass->network->shape.width;
    float *token_embedding = gradients + pass->network->token_embedding;
    float *position_embedding = gradient_at(gradients, pass->network->position_embedding);
    for (int32_t row = 0; row < pass->rows; row++) {
        const float *dx = pass->dx + (size_t)row * d;
        xm_row_add_scaled(token_embedding + (size_t)tokens[row] * d, dx, 1.0f, d);
        if (position_embedding != NULL)
            xm_row_add_scaled(position_embedding + (size_t)(row % pass->options.length) * d, dx,
                              1.0f, d);
    }
}

static void backward(xm_pass *pass, const float *p, const int32_t *tokens, float *g)
{
    const xm_network *network = pass->network;
    size_t d = (size_t)network->shape.width;
    memset(pass->dx, 0, (size_t)pass->rows * d * sizeof(float));
    if (pass->recurrent.dstate != NULL)
        memset(pass->recurrent.dstate, 0,
               (size_t)pass->rows * (size_t)network->shape.router_state * sizeof(float));
    xm_norm_backward(pass->compute.pool, pass->dnorm, pass->x_out, p + network->output_norm_weight,
                     pass->out_statistics, pass->dx, g + network->output_norm_weight,
                     gradient_at(g, network->output_norm_bias), pass->norm_partial, pass->rows,
                     network->shape.width);
    for (int32_t block = network->shape.blocks - 1; block >= 0; block--) {
        if (pass->options.recompute && block + 1 < network->shape.blocks)
            forward_block(pass, p, block); /* the last block's are still there */
        backward_ffn(pass, p, g, block);
        backward_attention(pass, p, g, block);
    }
    backward_embedding(pass, tokens, g);
}

static void measure_routing(const xm_pass *pass, const int32_t *targets, xm_pass_result *result)
{
    double wanted = 0, dropped = 0;
    for (int32_t block = 0; block < pass->network->shape.blocks; block++) {
        if (!pass->network->blocks[block].moe)
            continue;
        const xm_routes *routes = &pass->blocks[block].moe.routes;
        for (int32_t row = 0; row < pass->rows; row++) {
            wanted += routes->wanted[row];
            if (targets[row] >= 0)
                result->active[block] += routes->wanted[row];
        }
        dropped += (double)routes->dropped;
        result->balance_loss += (double)routes->balance_loss;
        result->entropy += (double)routes->entropy;
        result->z_loss += (double)routes->z_loss;
        result->sparsity += (double)routes->sparsity;
    }
    result->dropped = wanted > 0 ? dropped / wanted : 0;
}

void xm_pass_run(xm_pass *pass, const float *parameters, const int32_t *tokens,
                 const int32_t *targets, float *gradients, xm_pass_result *result)
{
    const xm_network *network = pass->network;
    const xm_network_shape *s = &network->shape;
    *result = (xm_pass_result){0};
    pass->tokens = tokens;
    embed(pass, parameters, tokens, pass->blocks[0].x_in);
    for (int32_t block = 0; block < s->blocks; block++)
        forward_block(pass, parameters, block);
    xm_norm_forward(pass->compute.pool, pass->x_out, parameters + network->output_norm_weight,
                    weight_at(parameters, network->output_norm_bias), s->epsilon, pass->out_norm,
                    pass->out_statistics, pass->rows, s->width);
    xm_loss_job loss = {.h = pass->out_norm,
                        .weight = parameters + network->token_embedding,
                        .targets = targets,
                        .rows = pass->rows,
                        .width = s->width,
                        .vocabulary = s->vocabulary,
                        .losses = pass->losses,
                        .logits = pass->logits,
                        .dh = gradients != NULL ? pass->dnorm : NULL,
                        .dweight = gradients != NULL ? gradients + network->token_embedding : NULL};
    result->tokens = xm_loss_run(&pass->compute, &loss);
    double total = 0;
    for (int32_t row = 0; row < pass->rows; row++)
        total += (double)pass->losses[row];
    result->loss = result->tokens > 0 ? total / (double)result->tokens : 0;
    measure_routing(pass, targets, result);
    if (gradients != NULL)
        backward(pass, parameters, tokens, gradients);
}

static bool all_finite(const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

void xm_pass_name_nonfinite(const xm_pass *pass, char *place, size_t size)
{
    size_t count = (size_t)pass->rows * (size_t)pass->network->shape.width;
    int32_t blocks = pass->options.training ? pass->network->shape.blocks : 0;
    if (blocks > 0 && !all_finite(pass->blocks[0].x_in, count)) {
        snprintf(place, size, "the embedding");
        return;
    }
    for (int32_t block = 0; block < blocks; block++) {
        const float *after = block + 1 < blocks ? pass->blocks[block + 1].x_in : pass->x_out;
        const char *part = NULL;
        if (!pass->options.recompute && !all_finite(pass->blocks[block].x_mid, count))
            part = ", attention";
        else if (!all_finite(after, count))
            part = pass->options.recompute ? "" : ", FFN"; /* "": all blocks share one x_mid */
        if (part != NULL) {
            snprintf(place, size, "block %d%s", block, part);
            return;
        }
    }
    snprintf(place, size, "the output layer");
}
