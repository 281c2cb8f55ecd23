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
#include "train/pass.h"

#include "base/memory.h"
#include "train/attention.h"
#include "train/linear.h"
#include "train/loss.h"
#include "train/moe.h"
#include "train/rows.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Activations of one block; rows = sequences * length. In a pass without training all blocks share
 * one set of arrays. */
typedef struct {
    float *x_in, *x_mid;                /* [rows][d]: before attention, before the FFN */
    float *attn_norm, *attn_statistics; /* [rows][d], [rows][2] */
    float *qkv, *log_sums, *attended;   /* [rows][3d], [rows][heads], [rows][d] */
    float *ffn_norm, *ffn_statistics;   /* [rows][d], [rows][2] */
    float *before, *activated;          /* [rows][ff]: dense FFN around GELU */
    xm_train_moe_layer moe;
} block_state;

struct xm_pass {
    const xm_network *network;
    xm_pool *pool;
    xm_pass_options options;
    int32_t rows;
    const int32_t *tokens; /* of the run, [rows] */
    xm_attention_shape attention;
    block_state *blocks;
    float *x_out; /* [rows][d]: after the last block */
    float *out_norm, *out_statistics;
    float *losses; /* [rows] */
    float *logits; /* [XM_LOSS_ROWS][vocabulary] */
    float *attention_scratch;
    xm_train_moe_scratch moe;
    /* training only */
    float *dx, *dnorm; /* [rows][d] */
    float *dqkv;       /* [rows][3d] */
    float *dhidden;    /* [rows][ff] */
    float *norm_partial;
    void **owned; /* every array above */
    size_t owned_count, owned_capacity;
    bool failed; /* an allocation did */
};

static float *own(xm_pass *pass, size_t a, size_t b)
{
    if (pass->failed)
        return NULL;
    size_t count = 0;
    float *array = xm_multiply(a, b, &count) ? xm_calloc_aligned(count, sizeof *array) : NULL;
    if (array == NULL || pass->owned_count == pass->owned_capacity)
        pass->failed = true;
    else
        pass->owned[pass->owned_count++] = array;
    return array;
}

static void create_block_arrays(xm_pass *pass, block_state *state)
{
    const xm_network_shape *s = &pass->network->shape;
    size_t rows = (size_t)pass->rows, d = (size_t)s->width;
    state->x_in = own(pass, rows, d);
    state->x_mid = own(pass, rows, d);
    state->attn_norm = own(pass, rows, d);
    state->attn_statistics = own(pass, rows, 2);
    state->qkv = own(pass, rows, 3 * d);
    state->log_sums = own(pass, rows, (size_t)s->heads);
    state->attended = own(pass, rows, d);
    state->ffn_norm = own(pass, rows, d);
    state->ffn_statistics = own(pass, rows, 2);
}

static xmoe_status create_moe(xm_pass *pass, block_state *state, const block_state *shared,
                              xmoe_error *error)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_route_rule rule = {.gate = s->gate,
                                .type = s->router,
                                .threshold = s->threshold,
                                .top_k = s->top_k,
                                .capacity_factor = pass->options.capacity_factor,
                                .min_capacity = pass->options.min_capacity,
                                .balance_weight = pass->options.balance_weight,
                                .entropy_weight = pass->options.entropy_weight,
                                .sparsity_weight = pass->options.sparsity_weight,
                                .training = pass->options.training};
    xmoe_status status = xm_routes_create(&rule, pass->rows, s->experts, &state->moe.routes, error);
    if (status != XMOE_OK)
        return status;
    size_t slots = state->moe.routes.slots, hidden = (size_t)s->expert_feed_forward;
    if (shared != NULL) {
        state->moe.gathered = shared->moe.gathered;
        state->moe.before = shared->moe.before;
        state->moe.activated = shared->moe.activated;
    } else {
        state->moe.gathered = own(pass, slots, (size_t)s->width);
        state->moe.before = own(pass, slots, hidden);
        state->moe.activated = own(pass, slots, hidden);
    }
    if (pass->moe.out == NULL) {
        pass->moe.out = own(pass, slots, (size_t)s->width);
        if (pass->options.training) {
            pass->moe.dout = own(pass, slots, (size_t)s->width);
            pass->moe.dhidden = own(pass, slots, hidden);
            pass->moe.dgate = own(pass, slots, 1);
            pass->moe.dlogits = own(pass, (size_t)pass->rows, (size_t)s->experts);
        }
    }
    return XMOE_OK;
}

static xmoe_status create_blocks(xm_pass *pass, xmoe_error *error)
{
    const xm_network *network = pass->network;
    const xm_network_shape *s = &network->shape;
    const block_state *first_dense = NULL, *first_moe = NULL;
    for (int32_t block = 0; block < s->blocks; block++) {
        block_state *state = &pass->blocks[block];
        bool share = !pass->options.training;
        if (block > 0 && share)
            *state = (block_state){.x_in = pass->blocks[0].x_in,
                                   .x_mid = pass->blocks[0].x_mid,
                                   .attn_norm = pass->blocks[0].attn_norm,
                                   .attn_statistics = pass->blocks[0].attn_statistics,
                                   .qkv = pass->blocks[0].qkv,
                                   .log_sums = pass->blocks[0].log_sums,
                                   .attended = pass->blocks[0].attended,
                                   .ffn_norm = pass->blocks[0].ffn_norm,
                                   .ffn_statistics = pass->blocks[0].ffn_statistics};
        else
            create_block_arrays(pass, state);
        if (network->blocks[block].moe) {
            xmoe_status status = create_moe(pass, state, share ? first_moe : NULL, error);
            if (status != XMOE_OK)
                return status;
            first_moe = first_moe == NULL ? state : first_moe;
        } else if (share && first_dense != NULL) {
            state->before = first_dense->before;
            state->activated = first_dense->activated;
        } else {
            state->before = own(pass, (size_t)pass->rows, (size_t)s->feed_forward);
            state->activated = own(pass, (size_t)pass->rows, (size_t)s->feed_forward);
            first_dense = state;
        }
    }
    return XMOE_OK;
}

static void create_shared(xm_pass *pass)
{
    const xm_network_shape *s = &pass->network->shape;
    size_t rows = (size_t)pass->rows, d = (size_t)s->width;
    pass->x_out = own(pass, rows, d);
    pass->out_norm = own(pass, rows, d);
    pass->out_statistics = own(pass, rows, 2);
    pass->losses = own(pass, rows, 1);
    pass->logits = own(pass, rows < XM_LOSS_ROWS ? rows : XM_LOSS_ROWS, (size_t)s->vocabulary);
    pass->attention_scratch =
        own(pass, (size_t)xm_pool_threads(pass->pool), xm_attention_scratch(&pass->attention));
    if (pass->options.training) {
        pass->dx = own(pass, rows, d);
        pass->dnorm = own(pass, rows, d);
        pass->dqkv = own(pass, rows, 3 * d);
        pass->dhidden = own(pass, rows, (size_t)s->feed_forward);
        pass->norm_partial = own(pass, XM_NORM_CHUNKS * 2, d);
    }
}

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
    xm_pass *pass = xm_calloc(1, sizeof *pass);
    if (pass == NULL)
        return xm_fail_memory(error, "pass", sizeof *pass);
    pass->network = network;
    pass->pool = pool;
    pass->options = *options;
    pass->rows = options->sequences * options->length;
    pass->attention = (xm_attention_shape){.sequences = options->sequences,
                                           .length = options->length,
                                           .width = s->width,
                                           .heads = s->heads};
    pass->owned_capacity = 16 * (size_t)s->blocks + 32;
    pass->owned = xm_calloc(pass->owned_capacity, sizeof *pass->owned);
    pass->blocks = xm_calloc((size_t)s->blocks, sizeof *pass->blocks);
    pass->failed = pass->owned == NULL || pass->blocks == NULL;
    xmoe_status status = pass->failed ? XMOE_OK : create_blocks(pass, error);
    if (status == XMOE_OK) {
        create_shared(pass);
        if (pass->failed)
            status = xm_fail_memory(error, "activations of a training batch",
                                    (size_t)pass->rows * (size_t)s->width * sizeof(float));
    }
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
    for (size_t i = 0; i < pass->owned_count; i++)
        xm_free(pass->owned[i]);
    if (pass->blocks != NULL)
        for (int32_t block = 0; block < pass->network->shape.blocks; block++)
            xm_routes_free(&pass->blocks[block].moe.routes);
    xm_free(pass->blocks);
    xm_free(pass->owned);
    xm_free(pass);
}

const float *xm_pass_losses(const xm_pass *pass)
{
    return pass->losses;
}

const xm_routes *xm_pass_routes(const xm_pass *pass, int32_t block)
{
    return &pass->blocks[block].moe.routes;
}

static xm_train_moe_weights moe_weights(const xm_network *network, const xm_block_offsets *o,
                                        const float *parameters)
{
    return (xm_train_moe_weights){.width = network->shape.width,
                                  .hidden = network->shape.expert_feed_forward,
                                  .experts = network->shape.experts,
                                  .gate = {.width = network->shape.width,
                                           .weight = parameters + o->router_weight,
                                           .expert_of = parameters + o->hash},
                                  .up = parameters + o->up_weight,
                                  .up_bias = parameters + o->up_bias,
                                  .down = parameters + o->down_weight,
                                  .down_bias = parameters + o->down_bias};
}

static void embed(const xm_pass *pass, const float *parameters, const int32_t *tokens, float *x)
{
    size_t d = (size_t)pass->network->shape.width;
    const float *token_embedding = parameters + pass->network->token_embedding;
    const float *position_embedding = parameters + pass->network->position_embedding;
    for (int32_t row = 0; row < pass->rows; row++)
        xm_row_sum(x + (size_t)row * d, token_embedding + (size_t)tokens[row] * d,
                   position_embedding + (size_t)(row % pass->options.length) * d, d);
}

/* From state->x_in to x_next, which may be state->x_in itself. */
static void forward_block(xm_pass *pass, const float *p, int32_t block, float *x_next)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width, ff = s->feed_forward;

    xm_layer_norm_forward(pass->pool, state->x_in, p + o->attn_norm_weight, p + o->attn_norm_bias,
                          s->epsilon, state->attn_norm, state->attn_statistics, rows, d);
    xm_linear_forward(pass->pool, state->attn_norm, p + o->attn_qkv_weight, p + o->attn_qkv_bias,
                      state->qkv, rows, d, 3 * d);
    xm_attention_forward(pass->pool, &pass->attention, state->qkv, state->attended, state->log_sums,
                         pass->attention_scratch);
    xm_linear_forward_residual(pass->pool, state->attended, p + o->attn_output_weight,
                               p + o->attn_output_bias, state->x_in, state->x_mid, rows, d, d);

    xm_layer_norm_forward(pass->pool, state->x_mid, p + o->ffn_norm_weight, p + o->ffn_norm_bias,
                          s->epsilon, state->ffn_norm, state->ffn_statistics, rows, d);
    if (o->moe) {
        xm_train_moe_weights weights = moe_weights(pass->network, o, p);
        xm_train_moe_forward(pass->pool, &weights, &state->moe, &pass->moe, state->ffn_norm,
                             pass->tokens, state->x_mid, x_next);
        return;
    }
    xm_linear_forward(pass->pool, state->ffn_norm, p + o->up_weight, p + o->up_bias, state->before,
                      rows, d, ff);
    xm_gelu_forward(pass->pool, state->before, state->activated, (size_t)rows * (size_t)ff);
    xm_linear_forward_residual(pass->pool, state->activated, p + o->down_weight, p + o->down_bias,
                               state->x_mid, x_next, rows, ff, d);
}

static void backward_attention(xm_pass *pass, const float *p, float *g, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width;
    xm_linear_backward_weight(pass->pool, pass->dx, state->attended, g + o->attn_output_weight,
                              g + o->attn_output_bias, rows, d, d);
    xm_linear_backward_input(pass->pool, pass->dx, p + o->attn_output_weight, pass->dnorm, rows, d,
                             d, false);
    xm_attention_backward(pass->pool, &pass->attention, state->qkv, state->attended,
                          state->log_sums, pass->dnorm, pass->dqkv, pass->attention_scratch);
    xm_linear_backward_weight(pass->pool, pass->dqkv, state->attn_norm, g + o->attn_qkv_weight,
                              g + o->attn_qkv_bias, rows, d, 3 * d);
    xm_linear_backward_input(pass->pool, pass->dqkv, p + o->attn_qkv_weight, pass->dnorm, rows, d,
                             3 * d, false);
    xm_layer_norm_backward(pass->pool, pass->dnorm, state->x_in, p + o->attn_norm_weight,
                           state->attn_statistics, pass->dx, g + o->attn_norm_weight,
                           g + o->attn_norm_bias, pass->norm_partial, rows, d);
}

static void backward_ffn(xm_pass *pass, const float *p, float *g, int32_t block)
{
    const xm_network_shape *s = &pass->network->shape;
    const xm_block_offsets *o = &pass->network->blocks[block];
    block_state *state = &pass->blocks[block];
    int32_t rows = pass->rows, d = s->width, ff = s->feed_forward;
    if (o->moe) {
        xm_train_moe_weights weights = moe_weights(pass->network, o, p);
        xm_train_moe_gradients gradients = {.gate = {.weight = g + o->router_weight},
                                            .up = g + o->up_weight,
                                            .up_bias = g + o->up_bias,
                                            .down = g + o->down_weight,
                                            .down_bias = g + o->down_bias};
        xm_train_moe_backward(pass->pool, &weights, &gradients, &state->moe, &pass->moe,
                              state->ffn_norm, pass->dx, pass->dnorm);
    } else {
        xm_linear_backward_weight(pass->pool, pass->dx, state->activated, g + o->down_weight,
                                  g + o->down_bias, rows, ff, d);
        xm_linear_backward_input(pass->pool, pass->dx, p + o->down_weight, pass->dhidden, rows, ff,
                                 d, false);
        xm_gelu_backward(pass->pool, state->before, pass->dhidden, pass->dhidden,
                         (size_t)rows * (size_t)ff);
        xm_linear_backward_weight(pass->pool, pass->dhidden, state->ffn_norm, g + o->up_weight,
                                  g + o->up_bias, rows, d, ff);
        xm_linear_backward_input(pass->pool, pass->dhidden, p + o->up_weight, pass->dnorm, rows, d,
                                 ff, false);
    }
    xm_layer_norm_backward(pass->pool, pass->dnorm, state->x_mid, p + o->ffn_norm_weight,
                           state->ffn_statistics, pass->dx, g + o->ffn_norm_weight,
                           g + o->ffn_norm_bias, pass->norm_partial, rows, d);
}

static void backward_embedding(const xm_pass *pass, const int32_t *tokens, float *gradients)
{
    size_t d = (size_t)pass->network->shape.width;
    float *token_embedding = gradients + pass->network->token_embedding;
    float *position_embedding = gradients + pass->network->position_embedding;
    for (int32_t row = 0; row < pass->rows; row++) {
        const float *dx = pass->dx + (size_t)row * d;
        xm_row_add_scaled(token_embedding + (size_t)tokens[row] * d, dx, 1.0f, d);
        xm_row_add_scaled(position_embedding + (size_t)(row % pass->options.length) * d, dx, 1.0f,
                          d);
    }
}

static void backward(xm_pass *pass, const float *p, const int32_t *tokens, float *g)
{
    const xm_network *network = pass->network;
    size_t d = (size_t)network->shape.width;
    memset(pass->dx, 0, (size_t)pass->rows * d * sizeof(float));
    xm_layer_norm_backward(pass->pool, pass->dnorm, pass->x_out, p + network->output_norm_weight,
                           pass->out_statistics, pass->dx, g + network->output_norm_weight,
                           g + network->output_norm_bias, pass->norm_partial, pass->rows,
                           network->shape.width);
    for (int32_t block = network->shape.blocks - 1; block >= 0; block--) {
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
        forward_block(pass, parameters, block,
                      block + 1 < s->blocks ? pass->blocks[block + 1].x_in : pass->x_out);
    xm_layer_norm_forward(pass->pool, pass->x_out, parameters + network->output_norm_weight,
                          parameters + network->output_norm_bias, s->epsilon, pass->out_norm,
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
    result->tokens = xm_loss_run(pass->pool, &loss);
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
    for (int32_t block = 0; pass->options.training && block < pass->network->shape.blocks;
         block++) {
        const block_state *state = &pass->blocks[block];
        const char *part = !all_finite(state->x_in, count)    ? "input"
                           : !all_finite(state->x_mid, count) ? "attention"
                                                              : NULL;
        if (part != NULL) {
            snprintf(place, size, "block %d, %s", block, part);
            return;
        }
    }
    snprintf(place, size, "%s",
             all_finite(pass->x_out, count) ? "the output layer" : "the last FFN");
}
