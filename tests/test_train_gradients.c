/*
 * test_train_gradients.c - loss and gradients of the trainer against a reference written here: the
 * whole network, its capacity limit and its auxiliary losses in double, one token at a time, with
 * central differences in place of a backward pass. Read the reference from train_loss() down.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "gradient_check.h"
#include "train/expert_dropout.h"
#include "train_routing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t DROPOUT_KEY = 77;

/* --- the reference ---------------------------------------------------------------------------- */

static void layer_norm(const double *x, const double *weight, const double *bias, double epsilon,
                       double *y)
{
    double mean = 0, variance = 0;
    for (int i = 0; i < WIDTH; i++)
        mean += x[i] / WIDTH;
    for (int i = 0; i < WIDTH; i++)
        variance += (x[i] - mean) * (x[i] - mean) / WIDTH;
    for (int i = 0; i < WIDTH; i++)
        y[i] = (x[i] - mean) / sqrt(variance + epsilon) * weight[i] + bias[i];
}

/* y = w x + b, w: [out][in] */
static void linear(const double *w, const double *b, const double *x, int out, int in, double *y)
{
    for (int o = 0; o < out; o++) {
        y[o] = b == NULL ? 0 : b[o];
        for (int i = 0; i < in; i++)
            y[o] += w[o * in + i] * x[i];
    }
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* factors: of the hidden units, NULL: 1 */
static void feed_forward(const double *up, const double *up_bias, const double *down,
                         const double *down_bias, int hidden, const double *factors,
                         const double *h, double *y)
{
    double a[MAX_HIDDEN];
    linear(up, up_bias, h, hidden, WIDTH, a);
    for (int i = 0; i < hidden; i++)
        a[i] = gelu(a[i]) * (factors == NULL ? 1 : factors[i]);
    linear(down, down_bias, a, WIDTH, hidden, y);
}

/* qkv: [LENGTH][3 * WIDTH] of one sequence; the attended values of position t. */
static void attend(const double (*qkv)[3 * WIDTH], int t, double *out)
{
    const int size = WIDTH / HEADS;
    for (int head = 0; head < HEADS; head++) {
        double score[LENGTH], sum = 0;
        for (int s = 0; s <= t; s++) {
            double dot = 0;
            for (int i = 0; i < size; i++)
                dot += qkv[t][head * size + i] * qkv[s][WIDTH + head * size + i];
            score[s] = exp(dot / sqrt(size));
            sum += score[s];
        }
        for (int i = 0; i < size; i++) {
            out[head * size + i] = 0;
            for (int s = 0; s <= t; s++)
                out[head * size + i] += score[s] / sum * qkv[s][2 * WIDTH + head * size + i];
        }
    }
}

/* What dropout multiplies the hidden units of a pair by: the trainer's own draws. */
static void dropout_factors(const batch_problem *problem, int block, int row, int e,
                            double *factors)
{
    const xm_expert_dropout dropout = {
        .rate = problem->options.expert_dropout, .key = DROPOUT_KEY, .block = block};
    float values[EXPERT_HIDDEN];
    for (int i = 0; i < EXPERT_HIDDEN; i++)
        values[i] = 1;
    xm_expert_dropout_apply(&dropout, row, e, values, EXPERT_HIDDEN);
    for (int i = 0; i < EXPERT_HIDDEN; i++)
        factors[i] = (double)values[i];
}

/* The logits of a row: softmax(z / T) over the views of an expert, times these. */
static void router_logits(const xm_network_shape *s, const double *weight, const double *h,
                          double *logits)
{
    double z[MAX_VIEWS * EXPERTS], t = (double)s->view_temperature;
    linear(weight, NULL, h, s->router_views * EXPERTS, WIDTH, z);
    for (int e = 0; e < EXPERTS; e++) {
        double sum = 0;
        logits[e] = 0;
        for (int v = 0; v < s->router_views; v++)
            sum += exp(z[v * EXPERTS + e] / t);
        for (int v = 0; v < s->router_views; v++)
            logits[e] += exp(z[v * EXPERTS + e] / t) / sum * z[v * EXPERTS + e];
    }
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* One row's state of gate recurrent goes past the MoE block (PyTorch's GRUCell). */
static void advance_state(const xm_network *network, const double *w, const xm_block_offsets *o,
                          const double *h, double *state)
{
    enum { R = ROUTER_STATE };
    double x[R], in[3 * R], own[3 * R];
    linear(w + o->router_projection, NULL, h, R, WIDTH, x);
    linear(w + network->gru_input_weight, w + network->gru_input_bias, x, 3 * R, R, in);
    linear(w + network->gru_state_weight, w + network->gru_state_bias, state, 3 * R, R, own);
    for (int i = 0; i < R; i++) {
        double reset = sigmoid(in[i] + own[i]), update = sigmoid(in[R + i] + own[R + i]);
        double n = tanh(in[2 * R + i] + reset * own[2 * R + i]);
        state[i] = (1 - update) * n + update * state[i];
    }
}

/* x += MoE(norm(x)) for all rows; returns the weighted auxiliary losses. states: of the rows, for
 * gate recurrent. */
static double moe_block(const batch_problem *problem, const double *w, int block,
                        double (*x)[WIDTH], double (*states)[ROUTER_STATE])
{
    const xm_network_shape *s = &problem->network->shape;
    const xm_block_offsets *o = &problem->network->blocks[block];
    static routing r;
    double h[ROWS][WIDTH];
    for (int row = 0; row < ROWS; row++) {
        layer_norm(x[row], w + o->ffn_norm_weight, w + o->ffn_norm_bias, (double)s->epsilon,
                   h[row]);
        if (s->gate == XM_GATE_RECURRENT) {
            advance_state(problem->network, w, o, h[row], states[row]);
            linear(w + o->router_weight, NULL, states[row], EXPERTS, ROUTER_STATE, r.z[row]);
        } else if (s->gate != XM_GATE_HASH) {
            router_logits(s, w + o->router_weight, h[row], r.z[row]);
        }
    }
    double extra = train_route(problem, w, block, &r);
    for (int row = 0; row < ROWS; row++)
        for (int e = 0; e < EXPERTS; e++) {
            if (!r.kept[row][e])
                continue;
            double y[WIDTH], factors[EXPERT_HIDDEN];
            dropout_factors(problem, block, row, e, factors);
            feed_forward(w + o->up_weight + (size_t)e * EXPERT_HIDDEN * WIDTH,
                         w + o->up_bias + (size_t)e * EXPERT_HIDDEN,
                         w + o->down_weight + (size_t)e * WIDTH * EXPERT_HIDDEN,
                         w + o->down_bias + (size_t)e * WIDTH, EXPERT_HIDDEN, factors, h[row], y);
            for (int i = 0; i < WIDTH; i++)
                x[row][i] += r.gate[row][e] * y[i];
        }
    return extra;
}

static void attention_block(const batch_problem *problem, const double *w,
                            const xm_block_offsets *o, double (*x)[WIDTH])
{
    double epsilon = (double)problem->network->shape.epsilon;
    for (int sequence = 0; sequence < SEQUENCES; sequence++) {
        double qkv[LENGTH][3 * WIDTH], h[WIDTH], attended[WIDTH], y[WIDTH];
        for (int t = 0; t < LENGTH; t++) {
            layer_norm(x[sequence * LENGTH + t], w + o->attn_norm_weight, w + o->attn_norm_bias,
                       epsilon, h);
            linear(w + o->attn_qkv_weight, w + o->attn_qkv_bias, h, 3 * WIDTH, WIDTH, qkv[t]);
        }
        for (int t = 0; t < LENGTH; t++) {
            attend((const double(*)[3 * WIDTH]) qkv, t, attended);
            linear(w + o->attn_output_weight, w + o->attn_output_bias, attended, WIDTH, WIDTH, y);
            for (int i = 0; i < WIDTH; i++)
                x[sequence * LENGTH + t][i] += y[i];
        }
    }
}

static double cross_entropy(const double *w, const double *h, int target)
{
    double sum = 0, wanted = 0;
    for (int v = 0; v < VOCABULARY; v++) {
        double logit = 0;
        for (int i = 0; i < WIDTH; i++)
            logit += w[v * WIDTH + i] * h[i];
        sum += exp(logit);
        if (v == target)
            wanted = logit;
    }
    return log(sum) - wanted;
}

/* The loss that the trainer differentiates; *plain (may be NULL): without auxiliary losses. */
static double train_loss(const batch_problem *problem, const double *w, double *plain)
{
    const xm_network *network = problem->network;
    double x[ROWS][WIDTH], h[WIDTH], states[ROWS][ROUTER_STATE] = {0}, extra = 0, loss = 0;
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < WIDTH; i++)
            x[row][i] = w[network->token_embedding + (size_t)(problem->tokens[row] * WIDTH + i)] +
                        w[network->position_embedding + (size_t)(row % LENGTH * WIDTH + i)];
    for (int block = 0; block < network->shape.blocks; block++) {
        const xm_block_offsets *o = &network->blocks[block];
        attention_block(problem, w, o, x);
        if (o->moe) {
            extra += moe_block(problem, w, block, x, states);
            continue;
        }
        for (int row = 0; row < ROWS; row++) {
            double y[WIDTH];
            layer_norm(x[row], w + o->ffn_norm_weight, w + o->ffn_norm_bias,
                       (double)network->shape.epsilon, h);
            feed_forward(w + o->up_weight, w + o->up_bias, w + o->down_weight, w + o->down_bias,
                         HIDDEN, NULL, h, y);
            for (int i = 0; i < WIDTH; i++)
                x[row][i] += y[i];
        }
    }
    int counted = 0;
    for (int row = 0; row < ROWS; row++) {
        if (problem->targets[row] < 0)
            continue;
        layer_norm(x[row], w + network->output_norm_weight, w + network->output_norm_bias,
                   (double)network->shape.epsilon, h);
        loss += cross_entropy(w + network->token_embedding, h, problem->targets[row]);
        counted++;
    }
    if (plain != NULL)
        *plain = loss / counted;
    return loss / counted + extra;
}

/* --- the comparison --------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    xmoe_router_type router;
    float threshold, capacity_factor, entropy_weight;
    bool drops;    /* the capacity limit must bite */
    int32_t top_k; /* 0: 2 */
    xm_gate gate;
    float sparsity_weight, z_weight, expert_dropout;
    int32_t views; /* 0: one */
    float view_temperature;
    int32_t blocks; /* 0: 2; every second one has experts */
    bool recompute;
} variant;

static xm_network *make_network(const variant *v)
{
    const xm_network_shape shape = {.vocabulary = VOCABULARY,
                                    .context = LENGTH,
                                    .width = WIDTH,
                                    .blocks = v->blocks > 0 ? v->blocks : 2,
                                    .heads = HEADS,
                                    .feed_forward = HIDDEN,
                                    .experts = EXPERTS,
                                    .expert_feed_forward = EXPERT_HIDDEN,
                                    .moe_every = 2,
                                    .epsilon = 1e-5f,
                                    .router_state = ROUTER_STATE,
                                    .gate = v->gate,
                                    .router = v->router,
                                    .threshold = v->threshold,
                                    .top_k = v->top_k > 0 ? v->top_k : 2,
                                    .router_views = v->views,
                                    .view_temperature = v->view_temperature,
                                    .init_std = 0.2f,
                                    .router_std = 1.5f};
    return gradient_network(&shape);
}

static double loss_of(const void *problem, const double *w)
{
    return train_loss(problem, w, NULL);
}

static void check_variant(const variant *v)
{
    xm_network *network = make_network(v);
    anchor *anchors = calloc((size_t)network->shape.blocks, sizeof *anchors);
    batch_problem problem = {.network = network,
                             .anchors = anchors,
                             .options = {.sequences = SEQUENCES,
                                         .length = LENGTH,
                                         .capacity_factor = v->capacity_factor,
                                         .min_capacity = 2,
                                         .balance_weight = 0.05f,
                                         .entropy_weight = v->entropy_weight,
                                         .sparsity_weight = v->sparsity_weight,
                                         .z_weight = v->z_weight,
                                         .expert_dropout = v->expert_dropout,
                                         .training = true,
                                         .recompute = v->recompute}};
    gradient_tokens(problem.tokens, problem.targets, ROWS, VOCABULARY);
    problem.targets[4] = -1;
    float *parameters = gradient_parameters(network);
    float *gradients = xm_calloc_aligned(network->total, sizeof(float));
    double *w = calloc(network->total, sizeof *w);
    xm_pool *pool = NULL;
    xm_pass *pass = NULL;
    assert_int_equal(xm_pool_create(2, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_pass_create(network, pool, &problem.options, &pass, NULL), XMOE_OK);
    for (size_t i = 0; i < network->total; i++)
        w[i] = (double)parameters[i];
    xm_pass_result result;
    xm_pass_set_dropout_key(pass, DROPOUT_KEY);
    xm_pass_run(pass, parameters, problem.tokens, problem.targets, gradients, &result);
    double plain;
    (void)train_loss(&problem, w, &plain);
    assert_true(fabs(result.loss - plain) < 1e-5 * plain);
    assert_int_equal(result.tokens, ROWS - 1);
    assert_true(v->drops == (result.dropped > 0.05));
    gradient_check(v->name, network, gradients, loss_of, &problem, w);
    xm_pass_free(pass);
    xm_pool_free(pool);
    xm_network_free(network);
    xm_free(parameters);
    xm_free(gradients);
    free(w);
    free(anchors);
}

static void test_threshold(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "threshold",
                             .router = XMOE_ROUTER_THRESHOLD,
                             .threshold = 0.7f,
                             .capacity_factor = 8});
}

static void test_threshold_one(void **state)
{
    (void)state;
    check_variant(
        &(variant){.name = "threshold 1", .router = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f});
}

static void test_capacity(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "capacity",
                             .router = XMOE_ROUTER_THRESHOLD,
                             .threshold = 0.8f,
                             .capacity_factor = 0.9f,
                             .drops = true});
}

static void test_entropy(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "entropy",
                             .router = XMOE_ROUTER_THRESHOLD,
                             .threshold = 0.7f,
                             .capacity_factor = 1.0f,
                             .entropy_weight = 0.1f,
                             .drops = true});
}

static void test_z(void **state)
{
    (void)state;
    check_variant(&(variant){
        .name = "z", .router = XMOE_ROUTER_THRESHOLD, .threshold = 0.7f, .z_weight = 0.05f});
}

static void test_expert_dropout(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "expert dropout",
                             .router = XMOE_ROUTER_THRESHOLD,
                             .threshold = 0.8f,
                             .capacity_factor = 0.9f,
                             .expert_dropout = 0.3f,
                             .drops = true});
}

static void test_top_k(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "top_k", .router = XMOE_ROUTER_TOP_K, .threshold = 0.5f});
}

static void test_dense(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "dense", .router = XMOE_ROUTER_DENSE, .threshold = 0.5f});
}

static void test_views(void **state)
{
    (void)state;
    check_variant(&(variant){
        .name = "2 views, T 0.1", .router = XMOE_ROUTER_THRESHOLD, .threshold = 0.7f, .views = 2});
    check_variant(&(variant){.name = "4 views, T 20.1",
                             .router = XMOE_ROUTER_TOP_K,
                             .threshold = 0.5f,
                             .views = 4,
                             .view_temperature = 20.1f});
    check_variant(&(variant){.name = "3 views, T 1",
                             .router = XMOE_ROUTER_DENSE,
                             .threshold = 0.5f,
                             .entropy_weight = 0.1f,
                             .capacity_factor = 0.9f,
                             .drops = true,
                             .z_weight = 0.02f,
                             .views = 3,
                             .view_temperature = 1.0f});
}

static void test_sigmoid(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        check_variant(&(variant){.name = "sigmoid",
                                 .router = XMOE_ROUTER_SIGMOID,
                                 .gate = XM_GATE_SIGMOID,
                                 .threshold = i == 0 ? 0.5f : 0.9f,
                                 .capacity_factor = 0.5f, /* which it must not know */
                                 .sparsity_weight = i == 0 ? 0.0f : 2.0f});
}

static void test_switch(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "switch",
                             .router = XMOE_ROUTER_TOP_K,
                             .top_k = 1,
                             .threshold = 0.5f,
                             .capacity_factor = 1.0f,
                             .drops = true});
}

static void test_base(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "base",
                             .router = XMOE_ROUTER_TOP_K,
                             .gate = XM_GATE_BASE,
                             .top_k = 1,
                             .threshold = 0.5f});
}

static void test_hash(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "hash",
                             .router = XMOE_ROUTER_TOP_K,
                             .gate = XM_GATE_HASH,
                             .top_k = 1,
                             .threshold = 0.5f});
}

/* Over three MoE blocks, through which the state's gradient goes back, and a dense one behind them:
 * the last MoE block too is made again where activations are. */
static void test_recurrent(void **state)
{
    (void)state;
    variant v = {.name = "recurrent",
                 .router = XMOE_ROUTER_THRESHOLD,
                 .gate = XM_GATE_RECURRENT,
                 .threshold = 0.7f,
                 .capacity_factor = 8,
                 .blocks = 7};
    check_variant(&v);
    v.name = "recurrent, activations made again";
    v.recompute = true;
    check_variant(&v);
}

static void test_recurrent_losses(void **state)
{
    (void)state;
    check_variant(&(variant){.name = "recurrent with capacity and losses",
                             .router = XMOE_ROUTER_THRESHOLD,
                             .gate = XM_GATE_RECURRENT,
                             .threshold = 0.7f,
                             .capacity_factor = 1.0f,
                             .entropy_weight = 0.1f,
                             .drops = true,
                             .blocks = 4});
}

/* Gradients add up, and a pass that cannot train gives the same losses, at any number of threads.
 */
static void test_same_to_the_bit(void **state)
{
    (void)state;
    const variant v = {.name = "bits", .router = XMOE_ROUTER_THRESHOLD, .threshold = 0.8f};
    xm_network *network = make_network(&v);
    float *parameters = xm_calloc_aligned(network->total, sizeof(float));
    xm_network_init(network, 5, parameters);
    int32_t tokens[ROWS], targets[ROWS];
    for (int row = 0; row < ROWS; row++)
        tokens[row] = targets[row] = row * 7 % VOCABULARY;
    float *gradients[3], losses[3][ROWS];
    for (int run = 0; run < 3; run++) {
        const xm_pass_options options = {
            .sequences = SEQUENCES, .length = LENGTH, .training = run < 2};
        xm_pool *pool = NULL;
        xm_pass *pass = NULL;
        xm_pass_result result;
        gradients[run] = xm_calloc_aligned(network->total, sizeof(float));
        assert_int_equal(xm_pool_create(run == 0 ? 1 : 3, &pool, NULL), XMOE_OK);
        assert_int_equal(xm_pass_create(network, pool, &options, &pass, NULL), XMOE_OK);
        xm_pass_run(pass, parameters, tokens, targets, run < 2 ? gradients[run] : NULL, &result);
        memcpy(losses[run], xm_pass_losses(pass), sizeof losses[run]);
        xm_pass_free(pass);
        xm_pool_free(pool);
    }
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    assert_memory_equal(losses[0], losses[2], sizeof losses[0]);
    assert_memory_equal(gradients[0], gradients[1], network->total * sizeof(float));
    for (int run = 0; run < 3; run++)
        xm_free(gradients[run]);
    xm_free(parameters);
    xm_network_free(network);
}

static void test_bad_shapes(void **state)
{
    (void)state;
    xm_network_shape shape = {.vocabulary = VOCABULARY,
                              .context = LENGTH,
                              .width = WIDTH,
                              .blocks = 2,
                              .heads = 3, /* 16 is no multiple */
                              .feed_forward = HIDDEN,
                              .experts = EXPERTS,
                              .expert_feed_forward = EXPERT_HIDDEN,
                              .moe_every = 2,
                              .epsilon = 1e-5f,
                              .threshold = 0.9f,
                              .top_k = 2,
                              .init_std = 0.02f};
    xm_network *network = NULL;
    xmoe_error error;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "heads");
    assert_null(network);
    shape.heads = 2;
    shape.threshold = 1.5f;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "threshold");
    shape.threshold = 0.9f;
    shape.vocabulary = 100;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "vocabulary");
    shape.vocabulary = VOCABULARY;
    shape.router_views = XM_MAX_ROUTER_VIEWS + 1;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "router_views");
    shape.router_views = 2;
    shape.view_temperature = NAN;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "view_temperature");
    shape.view_temperature = 1.0f;
    shape.gate = XM_GATE_SIGMOID;
    shape.router = XMOE_ROUTER_SIGMOID;
    assert_int_equal(xm_network_create(&shape, &network, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "router_views");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threshold),
        cmocka_unit_test(test_threshold_one),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_entropy),
        cmocka_unit_test(test_z),
        cmocka_unit_test(test_expert_dropout),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_sigmoid),
        cmocka_unit_test(test_same_to_the_bit),
        cmocka_unit_test(test_bad_shapes),
        cmocka_unit_test(test_switch),
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_recurrent),
        cmocka_unit_test(test_recurrent_losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
