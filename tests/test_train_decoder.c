/*
 * test_train_decoder.c - networks of the architectures llama and olmoe: loss and gradients against
 * a reference written here (double, one token at a time, central differences in place of a backward
 * pass); their files as the engine serves them; activations that are made again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "gradient_check.h"
#include "train/model_file.h"
#include "train/pass.h"
#include "xmoe.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SEQUENCES = 2,
    LENGTH = 10,
    ROWS = SEQUENCES * LENGTH,
    WIDTH = 32,
    HEADS = 2,
    SIZE = WIDTH / HEADS,
    HIDDEN = 24, /* of a dense FFN */
    EXPERTS = 6,
    EXPERT_HIDDEN = 16,
    VOCABULARY = 260
};

typedef struct {
    const xm_network *network;
    int32_t tokens[ROWS], targets[ROWS];
} batch_problem;

/* --- the reference ---------------------------------------------------------------------------- */

static void rms_norm(const double *x, const double *weight, double epsilon, double *y)
{
    double square = 0;
    for (int i = 0; i < WIDTH; i++)
        square += x[i] * x[i] / WIDTH;
    for (int i = 0; i < WIDTH; i++)
        y[i] = x[i] / sqrt(square + epsilon) * weight[i];
}

static void multiply(const double *w, const double *x, int out, int in, double *y)
{
    for (int o = 0; o < out; o++) {
        y[o] = 0;
        for (int i = 0; i < in; i++)
            y[o] += w[o * in + i] * x[i];
    }
}

static void swiglu(const double *gate, const double *up, const double *down, int hidden,
                   const double *h, double *y)
{
    double g[HIDDEN], u[HIDDEN];
    multiply(gate, h, hidden, WIDTH, g);
    multiply(up, h, hidden, WIDTH, u);
    for (int i = 0; i < hidden; i++)
        u[i] *= g[i] / (1 + exp(-g[i]));
    multiply(down, u, WIDTH, hidden, y);
}

/* OLMoE turns value i of a head with value i + SIZE/2, Llama 2i with 2i + 1. */
static void rotate(bool halves, int position, double *x)
{
    for (int head = 0; head < HEADS; head++)
        for (int i = 0; i < SIZE / 2; i++) {
            double *a = x + head * SIZE + (halves ? i : 2 * i), *b = a + (halves ? SIZE / 2 : 1);
            double angle = position * pow(XM_ROPE_BASE, -2.0 * i / SIZE);
            double first = *a, second = *b;
            *a = first * cos(angle) - second * sin(angle);
            *b = first * sin(angle) + second * cos(angle);
        }
}

static void attend(const double (*q)[WIDTH], const double (*k)[WIDTH], const double (*v)[WIDTH],
                   int t, double *out)
{
    for (int head = 0; head < HEADS; head++) {
        double score[LENGTH], sum = 0;
        for (int s = 0; s <= t; s++) {
            double dot = 0;
            for (int i = head * SIZE; i < (head + 1) * SIZE; i++)
                dot += q[t][i] * k[s][i];
            score[s] = exp(dot / sqrt(SIZE));
            sum += score[s];
        }
        for (int i = head * SIZE; i < (head + 1) * SIZE; i++) {
            out[i] = 0;
            for (int s = 0; s <= t; s++)
                out[i] += score[s] / sum * v[s][i];
        }
    }
}

static void attention_block(const xm_network *network, const double *w, const xm_block_offsets *o,
                            double (*x)[WIDTH])
{
    bool olmoe = network->shape.architecture == XM_ARCHITECTURE_OLMOE;
    double epsilon = (double)network->shape.epsilon;
    double h[WIDTH], raw[WIDTH], q[LENGTH][WIDTH], k[LENGTH][WIDTH], v[LENGTH][WIDTH], y[WIDTH];
    const double *matrix = w + o->attn_qkv_weight;
    for (int t = 0; t < LENGTH; t++) {
        rms_norm(x[t], w + o->attn_norm_weight, epsilon, h);
        multiply(matrix, h, WIDTH, WIDTH, q[t]);
        multiply(matrix + WIDTH * WIDTH, h, WIDTH, WIDTH, k[t]);
        multiply(matrix + 2 * WIDTH * WIDTH, h, WIDTH, WIDTH, v[t]);
        if (olmoe) {
            memcpy(raw, q[t], sizeof raw);
            rms_norm(raw, w + o->attn_q_norm_weight, epsilon, q[t]);
            memcpy(raw, k[t], sizeof raw);
            rms_norm(raw, w + o->attn_k_norm_weight, epsilon, k[t]);
        }
        rotate(olmoe, t, q[t]);
        rotate(olmoe, t, k[t]);
    }
    for (int t = 0; t < LENGTH; t++) {
        attend((const double(*)[WIDTH])q, (const double(*)[WIDTH])k, (const double(*)[WIDTH])v, t,
               h);
        multiply(w + o->attn_output_weight, h, WIDTH, WIDTH, y);
        for (int i = 0; i < WIDTH; i++)
            x[t][i] += y[i];
    }
}

/* y = sum of p_e * expert_e(h) over the experts in front of the threshold. */
static void experts(const xm_network *network, const double *w, const xm_block_offsets *o,
                    const double *h, double *y)
{
    double p[EXPERTS], sum = 0, taken = 0, out[WIDTH];
    const size_t matrix = (size_t)EXPERT_HIDDEN * WIDTH;
    multiply(w + o->router_weight, h, EXPERTS, WIDTH, p);
    for (int e = 0; e < EXPERTS; e++)
        sum += exp(p[e]);
    for (int e = 0; e < EXPERTS; e++)
        p[e] = exp(p[e]) / sum;
    memset(y, 0, WIDTH * sizeof *y);
    while (taken < (double)network->shape.threshold) {
        int best = 0;
        for (int e = 1; e < EXPERTS; e++)
            best = p[e] > p[best] ? e : best;
        swiglu(w + o->gate_weight + (size_t)best * matrix, w + o->up_weight + (size_t)best * matrix,
               w + o->down_weight + (size_t)best * matrix, EXPERT_HIDDEN, h, out);
        for (int i = 0; i < WIDTH; i++)
            y[i] += p[best] * out[i];
        taken += p[best];
        p[best] = 0;
    }
}

static double train_loss(const void *context, const double *w)
{
    const batch_problem *problem = context;
    const xm_network *network = problem->network;
    double epsilon = (double)network->shape.epsilon, loss = 0, h[WIDTH], y[WIDTH];
    double x[ROWS][WIDTH], logits[VOCABULARY];
    for (int row = 0; row < ROWS; row++)
        memcpy(x[row], w + network->token_embedding + (size_t)problem->tokens[row] * WIDTH,
               sizeof x[row]);
    for (int block = 0; block < network->shape.blocks; block++) {
        const xm_block_offsets *o = &network->blocks[block];
        for (int sequence = 0; sequence < SEQUENCES; sequence++)
            attention_block(network, w, o, x + sequence * LENGTH);
        for (int row = 0; row < ROWS; row++) {
            rms_norm(x[row], w + o->ffn_norm_weight, epsilon, h);
            if (o->moe)
                experts(network, w, o, h, y);
            else
                swiglu(w + o->gate_weight, w + o->up_weight, w + o->down_weight, HIDDEN, h, y);
            for (int i = 0; i < WIDTH; i++)
                x[row][i] += y[i];
        }
    }
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        rms_norm(x[row], w + network->output_norm_weight, epsilon, h);
        multiply(w + network->token_embedding, h, VOCABULARY, WIDTH, logits);
        for (int i = 0; i < VOCABULARY; i++)
            sum += exp(logits[i]);
        loss += (log(sum) - logits[problem->targets[row]]) / ROWS;
    }
    return loss;
}

/* --- the comparison --------------------------------------------------------------------------- */

static xm_network *make_network(xm_architecture architecture)
{
    const xm_network_shape shape = {.architecture = architecture,
                                    .vocabulary = VOCABULARY,
                                    .context = LENGTH,
                                    .width = WIDTH,
                                    .blocks = 2,
                                    .heads = HEADS,
                                    .feed_forward = HIDDEN,
                                    .experts = EXPERTS,
                                    .expert_feed_forward = EXPERT_HIDDEN,
                                    .moe_every = architecture == XM_ARCHITECTURE_OLMOE ? 1 : 0,
                                    .epsilon = 1e-5f,
                                    .router = XMOE_ROUTER_THRESHOLD,
                                    .threshold = 0.8f,
                                    .top_k = 2,
                                    .init_std = 0.2f,
                                    .router_std = 1.5f};
    return gradient_network(&shape);
}

static void fill_problem(batch_problem *problem, const xm_network *network)
{
    problem->network = network;
    gradient_tokens(problem->tokens, problem->targets, ROWS, VOCABULARY);
}

/* One pass over the problem; gradients: NULL or [total]. */
static void run_pass(const batch_problem *problem, const float *parameters, bool recompute,
                     float *gradients, float losses[ROWS], xm_pass_result *result)
{
    const xm_pass_options options = {.sequences = SEQUENCES,
                                     .length = LENGTH,
                                     .training = gradients != NULL,
                                     .recompute = recompute};
    xm_pool *pool = NULL;
    xm_pass *pass = NULL;
    assert_int_equal(xm_pool_create(2, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_pass_create(problem->network, pool, &options, &pass, NULL), XMOE_OK);
    xm_pass_run(pass, parameters, problem->tokens, problem->targets, gradients, result);
    memcpy(losses, xm_pass_losses(pass), ROWS * sizeof *losses);
    xm_pass_free(pass);
    xm_pool_free(pool);
}

static void check_gradients(xm_architecture architecture)
{
    xm_network *network = make_network(architecture);
    batch_problem problem;
    fill_problem(&problem, network);
    float *parameters = gradient_parameters(network), losses[2][ROWS];
    float *gradients[2];
    double *w = calloc(network->total, sizeof *w);
    xm_pass_result result;
    for (size_t i = 0; i < network->total; i++)
        w[i] = (double)parameters[i];
    for (int run = 0; run < 2; run++) { /* the second makes activations again */
        gradients[run] = xm_calloc_aligned(network->total, sizeof(float));
        run_pass(&problem, parameters, run == 1, gradients[run], losses[run], &result);
    }
    assert_true(fabs(result.loss - train_loss(&problem, w)) < 1e-5 * result.loss);
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    assert_memory_equal(gradients[0], gradients[1], network->total * sizeof(float));
    gradient_check(xm_architecture_name(architecture), network, gradients[0], train_loss, &problem,
                   w);
    xm_free(gradients[0]);
    xm_free(gradients[1]);
    xm_free(parameters);
    xm_network_free(network);
    free(w);
}

static void test_llama_gradients(void **state)
{
    (void)state;
    check_gradients(XM_ARCHITECTURE_LLAMA);
}

static void test_olmoe_gradients(void **state)
{
    (void)state;
    check_gradients(XM_ARCHITECTURE_OLMOE);
}

/* --- served ----------------------------------------------------------------------------------- */

static const xm_merge merges[] = {{'t', 'h'}, {' ', 257}, {258, 'e'}};
static const xm_vocabulary vocabulary = {(xm_merge *)(uintptr_t)merges, 3};

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    float logprobs[LENGTH]; /* of the tokens of a prompt; the first has none */
    bool ended;
} scored;

static void hear(void *context, const xmoe_event *event)
{
    scored *s = context;
    pthread_mutex_lock(&s->mutex);
    if (event->kind == XMOE_EVENT_PROMPT)
        memcpy(s->logprobs, event->prompt_logprobs, sizeof s->logprobs);
    s->ended = event->kind == XMOE_EVENT_END;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* Scores every sequence of the problem as a prompt: losses of all tokens but the last. */
static void compare_scores(xmoe_model *model, const batch_problem *problem, const float *losses)
{
    xmoe_engine_options options;
    xmoe_engine *engine = NULL;
    xmoe_error error = {0};
    scored s = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    xmoe_engine_default_options(&options);
    options.threads = 1;
    options.kv_f32 = true;
    if (xmoe_engine_create(model, &options, &engine, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    for (int sequence = 0; sequence < SEQUENCES; sequence++) {
        xmoe_request_params params;
        uint64_t request = 0;
        xmoe_request_default_params(&params);
        params.prompt = problem->tokens + sequence * LENGTH;
        params.prompt_length = LENGTH;
        params.max_tokens = 0;
        params.prompt_logprobs = true;
        params.on_event = hear;
        params.context = &s;
        s.ended = false;
        if (xmoe_request_submit(engine, &params, &request, &error) != XMOE_OK)
            fail_msg("%s", error.message);
        pthread_mutex_lock(&s.mutex);
        while (!s.ended)
            pthread_cond_wait(&s.changed, &s.mutex);
        pthread_mutex_unlock(&s.mutex);
        for (int t = 0; t + 1 < LENGTH; t++) {
            double served = -(double)s.logprobs[t + 1];
            double trained = (double)losses[sequence * LENGTH + t];
            if (!(fabs(served - trained) < 1e-4))
                fail_msg("token %d: %.7f nats in training, %.7f served", t, trained, served);
        }
    }
    xmoe_engine_free(engine);
}

/* The engine scores each sequence's tokens as the pass does. */
static void check_served(xm_architecture architecture)
{
    char path[] = "/tmp/xmoe-test-decoder-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    xm_network *network = make_network(architecture);
    float *parameters = gradient_parameters(network), losses[ROWS];
    batch_problem problem;
    fill_problem(&problem, network);
    for (int row = 0; row < ROWS; row++) /* targets are the tokens that follow */
        if ((row + 1) % LENGTH != 0)
            problem.targets[row] = problem.tokens[row + 1];
    xm_pass_result result;
    run_pass(&problem, parameters, false, NULL, losses, &result);
    const xm_model_labels labels = {0};
    xmoe_error error = {0};
    xmoe_model *model = NULL;
    assert_int_equal(xm_model_file_write(path, network, &vocabulary, &labels, parameters, &error),
                     XMOE_OK);
    if (xmoe_model_load(path, NULL, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    const xmoe_model_info *info = xmoe_model_get_info(model);
    assert_string_equal(info->architecture, xm_architecture_name(architecture));
    if (architecture == XM_ARCHITECTURE_OLMOE) {
        assert_int_equal(info->router.type, XMOE_ROUTER_THRESHOLD);
        assert_true(info->router.threshold == 0.8f);
        assert_int_equal(info->expert_multiply_adds, 3 * WIDTH * EXPERT_HIDDEN);
    }
    compare_scores(model, &problem, losses);
    xmoe_model_free(model);
    xm_network_free(network);
    xm_free(parameters);
    unlink(path);
}

static void test_llama_served(void **state)
{
    (void)state;
    check_served(XM_ARCHITECTURE_LLAMA);
}

static void test_olmoe_served(void **state)
{
    (void)state;
    check_served(XM_ARCHITECTURE_OLMOE);
}

/* What a family's files cannot hold is refused. */
static void test_bad_shapes(void **state)
{
    (void)state;
    xm_network *network = make_network(XM_ARCHITECTURE_OLMOE), *other = NULL;
    xm_network_shape shape = network->shape;
    xmoe_error error;
    shape.moe_every = 2;
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "moe_every");
    shape.moe_every = 1;
    shape.heads = 32;
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "heads");
    xm_network_free(network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_gradients), cmocka_unit_test(test_olmoe_gradients),
        cmocka_unit_test(test_llama_served),    cmocka_unit_test(test_olmoe_served),
        cmocka_unit_test(test_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
