/*
 * test_recurrent.c - files with a recurrent router (model/ROUTERS.md): what a request may ask of
 * them, the same bits alone and in company, in pieces, on any number of threads and instruction
 * set; files that are not what they should be; quantising; where logits start in training. Its
 * gradients: test_train_gradients.c, trained against served: test_train_served.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "forward_runner.h"
#include "gradient_check.h"
#include "reference.h"
#include "train/pass.h"
#include "trained_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    VOCABULARY = TRAINED_VOCABULARY,
    CONTEXT = 48,
    EXPERTS = 7,
    LAYERS = 6,
    STATE = 24, /* a panel and a half */
    COMPANY = 5 /* sequences of a step */
};

static char good_path[64], bad_path[64];
static xm_network *network;
static float *parameters;

/* Layers 1, 3 and 5 are MoE. */
static xm_network_shape base_shape(void)
{
    xm_network_shape shape = trained_file_shape(CONTEXT, LAYERS, EXPERTS);
    shape.gate = XM_GATE_RECURRENT;
    shape.router_state = STATE;
    return shape;
}

static int write_good_model(void **state)
{
    (void)state;
    const xm_network_shape shape = base_shape();
    xmoe_error error = {0};
    snprintf(good_path, sizeof good_path, "/tmp/xmoe-recurrent-%d.gguf", (int)getpid());
    snprintf(bad_path, sizeof bad_path, "/tmp/xmoe-recurrent-%d-bad.gguf", (int)getpid());
    network = gradient_network(&shape);
    parameters = gradient_parameters(network);
    if (trained_file_write(good_path, network, parameters, &error) == XMOE_OK)
        return 0;
    fprintf(stderr, "%s\n", error.message);
    return -1;
}

static int clean_up(void **state)
{
    (void)state;
    xm_network_free(network);
    xm_free(parameters);
    unlink(good_path);
    unlink(bad_path);
    return 0;
}

/* --- sequences -------------------------------------------------------------------------------- */

/* Logits [count][VOCABULARY] of a sequence in pieces of at most so many tokens. */
static void run_pieces(runner *run, const sequence *s, int32_t piece, float *logits)
{
    for (int32_t done = 0; done < s->count; done += piece) {
        int32_t count = s->count - done < piece ? s->count - done : piece;
        xm_segment segment = segment_of(s, done, count, 0);
        memcpy(logits + done * VOCABULARY, xm_forward_step(run->forward, &segment, 1, NULL, NULL),
               (size_t)count * VOCABULARY * sizeof(float));
    }
}

/* --- what a request may ask ------------------------------------------------------------------- */

static const xmoe_router routers[] = {
    {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.75f, .min_experts = 1},
    {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.3f, .min_experts = 2, .max_experts = 4},
    {.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f, .min_experts = 1, .normalize = true},
    {.type = XMOE_ROUTER_TOP_K, .top_k = 2, .min_experts = 1},
    {.type = XMOE_ROUTER_DENSE, .min_experts = 1},
};

enum { ROUTERS = sizeof routers / sizeof *routers };

/* The router of this number at all layers; ROUTERS: another one at each. */
static void set_routing(xmoe_routing *routing, int32_t number)
{
    for (int32_t i = 0; i < routing->layer_count; i++)
        routing->layers[i] = routers[(number < ROUTERS ? number : i) % ROUTERS];
}

static void compare_experts(void *context, int32_t moe_layer, const xm_selection *selection)
{
    const reference_result *expected = context;
    int32_t layer = 2 * moe_layer + 1;
    for (int32_t row = 0; row < selection->rows; row++) {
        int32_t at = row * expected->layers + layer;
        assert_int_equal(selection->count[row], expected->counts[at]);
        for (int32_t i = 0; i < selection->count[row]; i++) {
            int32_t from = row * EXPERTS + i, to = at * EXPERTS + i;
            assert_int_equal(selection->expert[from], expected->experts[to]);
            assert_true(fabs((double)selection->weight[from] - expected->weights[to]) < 1e-4);
        }
    }
}

static void compare_logprobs(const float *logits, const double *expected)
{
    double sum = 0;
    for (int32_t i = 0; i < VOCABULARY; i++)
        sum += exp((double)logits[i]);
    for (int32_t i = 0; i < VOCABULARY; i++)
        assert_true(fabs((double)logits[i] - log(sum) - expected[i]) < 1e-4);
}

static void requests_are_those_of_threshold(void **state)
{
    (void)state;
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    reference_model *reference = reference_load(good_path);
    for (int32_t v = 0; v < variants; v++) {
        xmoe_model *model = runner_load(good_path, tables[v]->name, 1);
        for (int32_t number = 0; number <= ROUTERS; number++) {
            runner run = runner_start(model, 1, true);
            sequence s = runner_sequence(&run, 30, 5);
            set_routing(&s.routing, number);
            assert_int_equal(xmoe_routing_check(model, &s.routing, NULL), XMOE_OK);
            reference_result expected =
                reference_forward(reference, s.tokens, s.count, &s.routing, false);
            xm_segment segment = segment_of(&s, 0, s.count, 0);
            const float *logits =
                xm_forward_step(run.forward, &segment, 1, compare_experts, &expected);
            for (int32_t row = 0; row < s.count; row++)
                compare_logprobs(logits + row * VOCABULARY, expected.logprobs + row * VOCABULARY);
            reference_result_free(&expected);
            runner_stop(&run);
        }
        xmoe_model_free(model);
    }
    reference_free(reference);
}

static void sigmoid_is_refused(void **state)
{
    (void)state;
    xmoe_model *model = runner_load(good_path, NULL, 1);
    xmoe_routing routing;
    xmoe_error error;
    xmoe_model_default_routing(model, &routing);
    assert_int_equal(routing.layers[1].type, XMOE_ROUTER_THRESHOLD);
    assert_true(routing.layers[1].threshold == 0.75f);
    routing.layers[3].type = XMOE_ROUTER_SIGMOID;
    assert_int_equal(xmoe_routing_check(model, &routing, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "type");
    xmoe_model_free(model);
}

/* --- to the bit ------------------------------------------------------------------------------- */

/* On every instruction set, alone on 1 to 3 threads and in pieces of 1 to 48 tokens. */
static void pieces_and_threads_change_nothing(void **state)
{
    (void)state;
    static const int32_t pieces[] = {48, 1, 7, 16};
    static float expected[CONTEXT * VOCABULARY], found[CONTEXT * VOCABULARY];
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    bool first = true;
    for (int32_t v = 0; v < variants; v++) {
        xmoe_model *model = runner_load(good_path, tables[v]->name, 1);
        for (int32_t threads = 1; threads <= 3; threads++)
            for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
                runner run = runner_start(model, threads, true);
                sequence s = runner_sequence(&run, CONTEXT, 5);
                run_pieces(&run, &s, pieces[i], first ? expected : found);
                if (!first)
                    assert_memory_equal(found, expected, sizeof found);
                first = false;
                runner_stop(&run);
            }
        xmoe_model_free(model);
    }
}

/* Among sequences of other lengths, positions and routers, at every place, step after step. */
static void company_changes_nothing(void **state)
{
    (void)state;
    enum { COUNT = 20, BEFORE = 13 };
    static float expected[CONTEXT * VOCABULARY];
    xmoe_model *model = runner_load(good_path, NULL, 1);
    runner alone = runner_start(model, 1, true);
    sequence s = runner_sequence(&alone, COUNT, 1);
    run_pieces(&alone, &s, COUNT, expected);
    runner_stop(&alone);
    for (int32_t place = 0; place < COMPANY; place++) {
        runner run = runner_start(model, 2, true);
        sequence all[COMPANY];
        xm_segment segments[COMPANY];
        int32_t rows_before = 0;
        for (int32_t i = 0; i < COMPANY; i++) {
            all[i] = runner_sequence(&run, i == place ? COUNT : 3 + 9 * i, i == place ? 1 : 50);
            if (i != place)
                set_routing(&all[i].routing, i);
        }
        for (int32_t step = 0; step < 2; step++) {
            int32_t from = step * BEFORE, to = step == 0 ? BEFORE : COUNT;
            for (int32_t i = 0; i < COMPANY; i++) {
                segments[i] = segment_of(&all[i], 0, all[i].count, 0);
                if (i == place)
                    segments[i] = segment_of(&all[i], from, to - from, 0);
            }
            rows_before = 0;
            for (int32_t i = 0; i < place; i++)
                rows_before += segments[i].token_count;
            const float *logits = xm_forward_step(run.forward, segments, COMPANY, NULL, NULL);
            assert_memory_equal(logits + rows_before * VOCABULARY, expected + from * VOCABULARY,
                                (size_t)((to - from) * VOCABULARY) * sizeof(float));
        }
        runner_stop(&run);
    }
    xmoe_model_free(model);
}

/* --- wrong files ------------------------------------------------------------------------------ */

typedef struct {
    const char *name; /* tensor to be changed; NULL: none */
    int dimension;    /* -1: left out; else this one grows by change */
    int64_t change;
    const xm_weight_traits *type; /* NULL: as it is */
    bool key;                     /* state_length is what follows; with_key false: left out */
    bool with_key;
    uint32_t length;
} file_edit;

/* Describes tensors, or writes zeros for them. */
static void put_tensors(xm_gguf_writer *writer, const xm_gguf *from, const file_edit *edit,
                        bool describe)
{
    for (uint64_t i = 0; i < xm_gguf_tensor_count(from); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(from, i);
        const xm_weight_traits *traits = tensor->traits;
        uint64_t shape[4];
        memcpy(shape, tensor->shape, sizeof shape);
        bool chosen = edit->name != NULL && strcmp(tensor->name.data, edit->name) == 0;
        if (chosen && edit->dimension < 0)
            continue;
        if (chosen && edit->type != NULL)
            traits = edit->type;
        if (chosen)
            shape[edit->dimension] += (uint64_t)edit->change;
        if (describe) {
            xm_gguf_writer_tensor(writer, tensor->name.data, traits->type, tensor->dimensions,
                                  shape);
            continue;
        }
        size_t bytes =
            shape[0] * shape[1] * shape[2] / traits->block_elements * traits->block_bytes;
        void *zeros = calloc(bytes, 1);
        xm_gguf_writer_data(writer, zeros, bytes);
        free(zeros);
    }
}

static void write_bad_model(const file_edit *edit)
{
    static const char key[] = "xmoe.router.state_length";
    const char *skip[] = {edit->key ? key : NULL, NULL};
    xm_gguf *from = NULL;
    xm_gguf_writer *writer = NULL;
    assert_int_equal(xm_gguf_open(good_path, &from, NULL), XMOE_OK);
    assert_int_equal(xm_gguf_writer_create(bad_path, &writer, NULL), XMOE_OK);
    xm_gguf_writer_copy_keys(writer, from, skip);
    if (edit->key && edit->with_key)
        xm_gguf_writer_u32(writer, key, edit->length);
    put_tensors(writer, from, edit, true);
    xm_gguf_writer_begin(writer);
    put_tensors(writer, from, edit, false);
    assert_int_equal(xm_gguf_writer_finish(writer, NULL), XMOE_OK);
    xm_gguf_close(from);
}

static void assert_refused(const file_edit *edit, const char *first, const char *second)
{
    xmoe_model *model = NULL;
    xmoe_error error = {0};
    write_bad_model(edit);
    assert_int_equal(xmoe_model_load(bad_path, &(xmoe_model_options){.threads = 1}, &model, &error),
                     XMOE_ERROR_FORMAT);
    assert_null(model);
    if (strstr(error.message, first) == NULL || strstr(error.message, second) == NULL)
        fail_msg("\"%s\" does not name \"%s\" and \"%s\"", error.message, first, second);
}

static void wrong_files_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const names[] = {
        "blk.1.ffn_gate_inp.weight", "blk.5.ffn_gate_inp_projection.weight",
        "router_gru_input.weight",   "router_gru_input.bias",
        "router_gru_state.weight",   "router_gru_state.bias",
    };
    const xm_weight_traits *f16 = xm_weight_traits_of(XM_TYPE_F16);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        /* A layer without a router is a dense one, whose FFN is missing. */
        assert_refused(&(file_edit){.name = names[i], .dimension = -1},
                       i == 0 ? "ffn_up.weight" : names[i], "is missing");
        for (int dimension = 0; dimension < (strstr(names[i], "bias") != NULL ? 1 : 2); dimension++)
            for (int64_t change = -1; change <= 1; change += 2)
                assert_refused(
                    &(file_edit){.name = names[i], .dimension = dimension, .change = change},
                    names[i], "has shape");
        assert_refused(&(file_edit){.name = names[i], .type = f16}, names[i],
                       "has type F16, expected F32");
    }
    static const uint32_t lengths[] = {0, 4097, UINT32_MAX};
    const char *key = "xmoe.router.state_length";
    assert_refused(&(file_edit){.key = true}, key, "missing");
    for (size_t i = 0; i < 3; i++)
        assert_refused(&(file_edit){.key = true, .with_key = true, .length = lengths[i]}, key,
                       "expected 1 to 4096");
    assert_refused(&(file_edit){.key = true, .with_key = true, .length = STATE + 1},
                   "router_gru_input.weight", "expected [25, 75]");
}

/* --- the trainer's files ---------------------------------------------------------------------- */

static void files_come_back(void **state)
{
    (void)state;
    xm_gguf *file = NULL;
    xm_network *copy = NULL;
    xm_network_shape shape;
    xmoe_error error = {0};
    assert_int_equal(xm_gguf_open(good_path, &file, NULL), XMOE_OK);
    assert_int_equal(xm_model_file_shape(file, &shape, &error), XMOE_OK);
    assert_int_equal(shape.gate, XM_GATE_RECURRENT);
    assert_int_equal(shape.router, XMOE_ROUTER_THRESHOLD);
    assert_int_equal(shape.router_state, STATE);
    assert_int_equal(xm_network_create(&shape, &copy, NULL), XMOE_OK);
    assert_int_equal(copy->total, network->total);
    float *read = xm_calloc_aligned(copy->total, sizeof(float));
    assert_int_equal(xm_model_file_read(file, copy, read, NULL), XMOE_OK);
    assert_memory_equal(read, parameters, copy->total * sizeof(float));
    xm_free(read);
    xm_network_free(copy);
    xm_gguf_close(file);

    write_bad_model(&(file_edit){.key = true});
    assert_int_equal(xm_gguf_open(bad_path, &file, NULL), XMOE_OK);
    assert_int_equal(xm_model_file_shape(file, &shape, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "xmoe.router.state_length"));
    xm_gguf_close(file);
}

/* Quantised files keep all of the router as it is. */
static void quantising_keeps_the_router(void **state)
{
    (void)state;
    xmoe_error error = {0};
    xmoe_model *model = NULL;
    xm_gguf *file = NULL;
    if (xmoe_quantize(good_path, bad_path, &(xmoe_quantize_options){.type = "Q8_0"}, &error) !=
        XMOE_OK)
        fail_msg("%s", error.message);
    assert_int_equal(xm_gguf_open(bad_path, &file, NULL), XMOE_OK);
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        assert_int_equal(xm_gguf_find_tensor(file, p->name)->type_number,
                         p->matrix ? XM_TYPE_Q8_0 : XM_TYPE_F32);
    }
    xm_gguf_close(file);
    if (xmoe_model_load(bad_path, NULL, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    xmoe_model_free(model);
}

static void bad_shapes_are_refused(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    xm_network *other = NULL;
    xmoe_error error;
    shape.router_state = 0;
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "router_state");
    shape.router_state = XM_MAX_ROUTER_STATE + 1;
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "router_state");
    shape = base_shape();
    shape.moe_every = 0; /* nothing to route: no cell, which the engine would refuse */
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_OK);
    assert_null(xm_network_find(other, "router_gru_input.weight"));
    xm_network_free(other);
    shape.architecture = XM_ARCHITECTURE_OLMOE;
    shape.moe_every = 1;
    assert_int_equal(xm_network_create(&shape, &other, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "router");
}

/* Operations of a token: projection, both halves of the cell, logits, of each of three layers. */
static void operations_are_counted(void **state)
{
    (void)state;
    xm_network_shape shape = base_shape();
    shape.gate = XM_GATE_SOFTMAX;
    xm_network *linear = gradient_network(&shape);
    double more = xm_network_forward_flops(network, 2) - xm_network_forward_flops(linear, 2);
    double router = 2.0 * (32 * STATE + 6 * STATE * STATE + STATE * EXPERTS);
    assert_true(more == 3 * (router - 2.0 * 32 * EXPERTS));
    xm_network_free(linear);
}

/* The first layer's logits have the deviation that was asked for, those behind it some more. */
static void logits_start_as_asked(void **state)
{
    (void)state;
    enum { ROWS = 32, WIDTH = 512, MANY = 256 };
    xm_network_shape shape = base_shape();
    shape.width = WIDTH;
    shape.experts = MANY;
    shape.router_state = 128;
    shape.router_std = 0.5f;
    xm_network *wide = gradient_network(&shape);
    float *start_values = xm_calloc_aligned(wide->total, sizeof(float));
    xm_network_init(wide, 3, start_values);
    int32_t tokens[ROWS];
    for (int32_t i = 0; i < ROWS; i++)
        tokens[i] = (int32_t)(xm_random_bits(8, 1, (uint64_t)i) % VOCABULARY);
    xm_pass *pass = NULL;
    xm_pass_result result;
    const xm_pass_options options = {.sequences = 1, .length = ROWS};
    assert_int_equal(xm_pass_create(wide, NULL, &options, &pass, NULL), XMOE_OK);
    xm_pass_run(pass, start_values, tokens, tokens, NULL, &result);
    for (int32_t block = 1; block < LAYERS; block += 2) {
        const float *p = xm_pass_routes(pass, block)->probabilities;
        double deviation = 0;
        for (int32_t row = 0; row < ROWS; row++) { /* of log p, as of the logits */
            double sum = 0, squares = 0;
            for (int32_t e = 0; e < MANY; e++) {
                double z = log((double)p[row * MANY + e]);
                sum += z / MANY;
                squares += z * z / MANY;
            }
            deviation += sqrt(squares - sum * sum) / ROWS;
        }
        if (!(deviation > 0.42 && deviation < 0.9))
            fail_msg("block %d: logits start with deviation %g, not about 0.5", block, deviation);
        if (block == 1)
            assert_true(fabs(deviation - 0.5) < 0.06);
    }
    xm_pass_free(pass);
    xm_free(start_values);
    xm_network_free(wide);
}

/* Every allocation of a forward pass fails once. */
static void lack_of_memory_is_reported(void **state)
{
    (void)state;
    xmoe_model *model = runner_load(good_path, NULL, 1);
    xm_kv_cache *cache = NULL;
    assert_int_equal(xm_kv_cache_create(model, 1, true, &cache, NULL), XMOE_OK);
    int32_t failures = 0;
    for (xmoe_status status = XMOE_ERROR_MEMORY; status != XMOE_OK; failures++) {
        xm_forward *forward = NULL;
        xm_memory_fail_after(failures);
        status = xm_forward_create(model, NULL, cache, 8, &forward, NULL);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        xm_forward_free(forward);
    }
    assert_true(failures > 20);
    xm_kv_cache_free(cache);
    xmoe_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_those_of_threshold),
        cmocka_unit_test(sigmoid_is_refused),
        cmocka_unit_test(pieces_and_threads_change_nothing),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(wrong_files_are_refused_by_name),
        cmocka_unit_test(files_come_back),
        cmocka_unit_test(quantising_keeps_the_router),
        cmocka_unit_test(bad_shapes_are_refused),
        cmocka_unit_test(operations_are_counted),
        cmocka_unit_test(logits_start_as_asked),
        cmocka_unit_test(lack_of_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, write_good_model, clean_up);
}
