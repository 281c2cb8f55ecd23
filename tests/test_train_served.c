/*
 * test_train_served.c - what is trained is what is served: small random networks with every kind of
 * router are written as GGUF, and the engine's forward pass gives the trainer's probabilities and
 * chooses the trainer's experts, row by row.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "gradient_check.h"
#include "model/forward.h"
#include "model/model.h"
#include "reference.h"
#include "train/pass.h"
#include "trained_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VOCABULARY = TRAINED_VOCABULARY, LENGTH = 12, BLOCKS = 6, EXPERTS = 7 };

static char path[64];

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/xmoe-served-%d.gguf", (int)getpid());
    return 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static xm_network_shape base_shape(void)
{
    return trained_file_shape(LENGTH, BLOCKS, EXPERTS);
}

static void write_file(const xm_network *network, const float *parameters)
{
    xmoe_error error;
    if (trained_file_write(path, network, parameters, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

/* --- the trainer's side ----------------------------------------------------------------------- */

typedef struct {
    double logprobs[LENGTH][VOCABULARY];
    int32_t count[BLOCKS][LENGTH];
    uint16_t chosen[BLOCKS][LENGTH][EXPERTS];
} forward_result;

/* A pass gives the loss of one target per row: so many passes as there are tokens. */
static void run_trainer(const xm_network *network, const float *parameters, const int32_t *tokens,
                        forward_result *result)
{
    const xm_pass_options options = {.sequences = 1, .length = LENGTH};
    xm_pass *pass = NULL;
    xm_pass_result totals;
    assert_int_equal(xm_pass_create(network, NULL, &options, &pass, NULL), XMOE_OK);
    for (int32_t token = 0; token < VOCABULARY; token++) {
        int32_t targets[LENGTH];
        for (int32_t row = 0; row < LENGTH; row++)
            targets[row] = token;
        xm_pass_run(pass, parameters, tokens, targets, NULL, &totals);
        for (int32_t row = 0; row < LENGTH; row++)
            result->logprobs[row][token] = -(double)xm_pass_losses(pass)[row];
    }
    for (int32_t block = 0; block < BLOCKS; block++) {
        const xm_routes *routes = xm_pass_routes(pass, block);
        for (int32_t row = 0; network->blocks[block].moe && row < LENGTH; row++) {
            result->count[block][row] = routes->wanted[row];
            memcpy(result->chosen[block][row], routes->chosen + row * EXPERTS,
                   (size_t)routes->wanted[row] * sizeof(uint16_t));
        }
    }
    xm_pass_free(pass);
}

/* --- the engine's side ------------------------------------------------------------------------ */

typedef struct {
    const xmoe_model *model;
    forward_result *result;
} routed_context;

static void keep_routes(void *context, int32_t moe_layer, const xm_selection *selection)
{
    const routed_context *kept = context;
    int32_t block = kept->model->moe_layers[moe_layer];
    for (int32_t row = 0; row < selection->rows; row++) {
        kept->result->count[block][row] = selection->count[row];
        memcpy(kept->result->chosen[block][row], selection->expert + row * selection->experts,
               (size_t)selection->count[row] * sizeof(uint16_t));
    }
}

static void log_softmax(const float *logits, double *logprobs)
{
    double sum = 0;
    for (int32_t i = 0; i < VOCABULARY; i++)
        sum += exp((double)logits[i]);
    for (int32_t i = 0; i < VOCABULARY; i++)
        logprobs[i] = (double)logits[i] - log(sum);
}

static void run_engine(const xmoe_model *model, const int32_t *tokens, const xmoe_routing *routing,
                       forward_result *result)
{
    xm_kv_cache *cache = NULL;
    xm_forward *forward = NULL;
    const int32_t block = 0;
    routed_context kept = {model, result};
    assert_int_equal(xm_kv_cache_create(model, 1, true, &cache, NULL), XMOE_OK);
    assert_int_equal(xm_forward_create(model, NULL, cache, LENGTH, &forward, NULL), XMOE_OK);
    const xm_segment segment = {
        .tokens = tokens, .token_count = LENGTH, .blocks = &block, .routing = routing};
    const float *logits = xm_forward_step(forward, &segment, 1, keep_routes, &kept);
    for (int32_t row = 0; row < LENGTH; row++)
        log_softmax(logits + row * VOCABULARY, result->logprobs[row]);
    xm_forward_free(forward);
    xm_kv_cache_free(cache);
}

static void run_reference(const int32_t *tokens, const xmoe_routing *routing,
                          forward_result *result)
{
    reference_model *reference = reference_load(path);
    reference_result all = reference_forward(reference, tokens, LENGTH, routing, false);
    memcpy(result->logprobs, all.logprobs, sizeof result->logprobs);
    for (int32_t row = 0; row < LENGTH; row++)
        for (int32_t block = 0; block < BLOCKS; block++) {
            int32_t at = row * BLOCKS + block;
            result->count[block][row] = all.counts[at];
            for (int32_t i = 0; i < all.counts[at]; i++)
                result->chosen[block][row][i] = (uint16_t)all.experts[at * EXPERTS + i];
        }
    reference_result_free(&all);
    reference_free(reference);
}

/* --- the comparison --------------------------------------------------------------------------- */

static void assert_same(const char *what, const forward_result *a, const forward_result *b)
{
    for (int32_t row = 0; row < LENGTH; row++) {
        for (int32_t block = 0; block < BLOCKS; block++) {
            int32_t count = a->count[block][row];
            if (count != b->count[block][row] ||
                memcmp(a->chosen[block][row], b->chosen[block][row],
                       (size_t)count * sizeof(uint16_t)) != 0)
                fail_msg("%s: block %d, row %d: other experts", what, block, row);
        }
        for (int32_t i = 0; i < VOCABULARY; i++)
            if (!(fabs(a->logprobs[row][i] - b->logprobs[row][i]) < 1e-4))
                fail_msg("%s: row %d, token %d: %.7g and %.7g", what, row, i, a->logprobs[row][i],
                         b->logprobs[row][i]);
    }
}

/* Rows must not all choose alike, or the test would not see wrong choices. */
static void assert_varied(const forward_result *result)
{
    for (int32_t block = 1; block < BLOCKS; block += 2) {
        bool varied = false;
        for (int32_t row = 1; row < LENGTH; row++)
            varied = varied || result->chosen[block][row][0] != result->chosen[block][0][0];
        assert_true(varied);
    }
}

static void check_served(const xm_network_shape *shape)
{
    static forward_result trained, served, expected;
    xm_network *network = gradient_network(shape);
    xmoe_model *model = NULL;
    xmoe_error error;
    xmoe_routing routing;
    int32_t tokens[LENGTH];
    trained = served = expected = (forward_result){0};
    for (int32_t i = 0; i < LENGTH; i++)
        tokens[i] = (int32_t)(xm_random_bits(9, 9, (uint64_t)i) % VOCABULARY);
    float *parameters = gradient_parameters(network);
    write_file(network, parameters);
    if (xmoe_model_load(path, NULL, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    xmoe_model_default_routing(model, &routing);
    run_trainer(network, parameters, tokens, &trained);
    run_engine(model, tokens, &routing, &served);
    run_reference(tokens, &routing, &expected);
    assert_varied(&trained);
    assert_same("trainer and reference", &trained, &expected);
    assert_same("engine and reference", &served, &expected);
    assert_same("trainer and engine", &trained, &served);
    xmoe_model_free(model);
    xm_network_free(network);
    xm_free(parameters);
}

static void softmax_routers(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    check_served(&shape); /* threshold */
    shape.router = XMOE_ROUTER_TOP_K;
    shape.top_k = 2;
    check_served(&shape);
    shape.router = XMOE_ROUTER_DENSE;
    check_served(&shape);
}

/* As they are served, and at a temperature in the middle of training. */
static void views(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    shape.router_views = 3;
    check_served(&shape); /* threshold */
    shape.view_temperature = 2.5f;
    shape.router = XMOE_ROUTER_TOP_K;
    shape.top_k = 2;
    check_served(&shape);
    shape.router_views = 2;
    shape.router = XMOE_ROUTER_DENSE;
    check_served(&shape);
}

static void sigmoid(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    shape.gate = XM_GATE_SIGMOID;
    shape.router = XMOE_ROUTER_SIGMOID;
    check_served(&shape);
}

static void base(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    shape.gate = XM_GATE_BASE;
    shape.router = XMOE_ROUTER_TOP_K;
    check_served(&shape);
}

static void hash(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    shape.gate = XM_GATE_HASH;
    shape.router = XMOE_ROUTER_TOP_K;
    check_served(&shape);
}

static void recurrent(void **state)
{
    (void)state;
    static const int32_t lengths[] = {64, 5, 1}; /* whole panels of 16, and less */
    xm_network_shape shape = base_shape();
    shape.gate = XM_GATE_RECURRENT;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        shape.router_state = lengths[i];
        check_served(&shape);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_routers),
        cmocka_unit_test(views),
        cmocka_unit_test(sigmoid),
        cmocka_unit_test(base),
        cmocka_unit_test(hash),
        cmocka_unit_test(recurrent),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
