/*
 * test_forward.c - the forward pass against the double-precision reference, and to the bit against
 * itself: alone or in company, on any number of threads, in any chunks, on any instruction set.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "forward_runner.h"
#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- models ----------------------------------------------------------------------------------- */

static char model_path[64];

static int make_path(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/xmoe-forward-%d.gguf", (int)getpid());
    return 0;
}

static int remove_path(void **state)
{
    (void)state;
    unlink(model_path);
    return 0;
}

/* Sizes that suit block formats; odd ones for the float types in odd_shape. */
static xmoe_random_model even_shape(const char *type)
{
    bool wide = xm_weight_traits_by_name(type)->block_elements == 256;
    return (xmoe_random_model){
        .context_length = 96,
        .embedding_length = wide ? 256 : 64,
        .layer_count = wide ? 2 : 4,
        .head_count = 4,
        .feed_forward_length = wide ? 256 : 96,
        .expert_count = wide ? 6 : 12,
        .expert_feed_forward_length = wide ? 256 : 32,
        .vocabulary_size = 300,
        .moe_every = 2,
        .router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.8f, .min_experts = 1},
        .router_spread = 2.0f,
        .tied_output = true,
        .type = type,
        .seed = 11, /* no two experts of a row are nearer than rounding */
    };
}

static xmoe_random_model odd_shape(const char *type)
{
    xmoe_random_model shape = even_shape(type);
    shape.embedding_length = 39;
    shape.head_count = 3;
    shape.feed_forward_length = 50;
    shape.expert_count = 5;
    shape.expert_feed_forward_length = 21;
    shape.tied_output = false;
    shape.moe_every = 1;
    return shape;
}

static void write_model(const xmoe_random_model *shape)
{
    xmoe_error error = {0};
    if (xmoe_random_model_write(model_path, shape, NULL, NULL, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

/* --- a forward pass with its cache ------------------------------------------------------------ */

/* A copy of `rows` rows of logits, to be freed. */
static float *copy_logits(const runner *run, const float *logits, int32_t rows)
{
    size_t bytes = (size_t)rows * (size_t)run->model->info.vocabulary_size * sizeof(float);
    float *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, logits, bytes);
    return copy;
}

/* All logits of a sequence computed in one step, alone. */
static float *logits_alone(runner *run, const sequence *s)
{
    xm_segment segment = segment_of(s, 0, s->count, 0);
    return copy_logits(run, xm_forward_step(run->forward, &segment, 1, NULL, NULL), s->count);
}

static void assert_same_bits(const runner *run, const float *a, const float *b, int32_t rows)
{
    size_t bytes = (size_t)rows * (size_t)run->model->info.vocabulary_size * sizeof(float);
    assert_memory_equal(a, b, bytes);
}

/* --- against the reference -------------------------------------------------------------------- */

/* Compares each layer's choice as it is reported. */
typedef struct {
    const xmoe_model *model;
    const reference_result *expected;
    int32_t calls;
} routed_check;

static void check_routed(void *context, int32_t moe_layer, const xm_selection *selection)
{
    routed_check *check = context;
    const reference_result *expected = check->expected;
    int32_t layer = check->model->moe_layers[moe_layer];
    assert_int_equal(moe_layer, check->calls++);
    for (int32_t row = 0; row < selection->rows; row++) {
        int32_t at = row * expected->layers + layer;
        assert_int_equal(selection->count[row], expected->counts[at]);
        for (int32_t i = 0; i < selection->count[row]; i++) {
            int32_t from = row * selection->experts + i, to = at * expected->expert_count + i;
            assert_int_equal(selection->expert[from], expected->experts[to]);
            assert_float_equal(selection->weight[from], expected->weights[to], 1e-3);
        }
    }
}

static double log_softmax_error(const float *logits, const double *expected, int32_t count)
{
    double largest = -INFINITY, sum = 0.0, worst = 0.0;
    for (int32_t i = 0; i < count; i++)
        largest = fmax(largest, (double)logits[i]);
    for (int32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - largest);
    for (int32_t i = 0; i < count; i++) {
        double error = fabs((double)logits[i] - largest - log(sum) - expected[i]);
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static void compare_with_reference(const xmoe_model *model, const reference_model *reference,
                                   const xmoe_routing *routing, bool kv_f32)
{
    runner run = runner_start(model, 1, kv_f32);
    sequence s = runner_sequence(&run, 37, 11);
    s.routing = *routing;
    reference_result expected =
        reference_forward(reference, s.tokens, s.count, &s.routing, !kv_f32);
    routed_check check = {.model = model, .expected = &expected};
    xm_segment segment = segment_of(&s, 0, s.count, 0);
    const float *logits = xm_forward_step(run.forward, &segment, 1, check_routed, &check);
    assert_int_equal(check.calls, model->info.moe_layer_count);
    for (int32_t i = 0; i < s.count; i++) {
        size_t start_at = (size_t)i * (size_t)expected.vocabulary;
        double error =
            log_softmax_error(logits + start_at, expected.logprobs + start_at, expected.vocabulary);
        if (!(error < 2e-3))
            fail_msg("%s, %s, row %d: logprobs are off by %g", model->info.isa,
                     model->info.quantization, i, error);
    }
    reference_result_free(&expected);
    runner_stop(&run);
}

/* Routers of every kind, one after the other; the last has another one at each layer. */
enum { ROUTINGS = 6, SIGMOID_ROUTINGS = 4 };

static xmoe_routing routing_of(const xmoe_model *model, int32_t kind)
{
    static const xmoe_router routers[ROUTINGS] = {
        {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.8f, .min_experts = 1},
        {.type = XMOE_ROUTER_TOP_K, .top_k = 3, .min_experts = 1, .normalize = true},
        {.type = XMOE_ROUTER_DENSE, .min_experts = 1},
        {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.3f, .min_experts = 2, .max_experts = 4},
        {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.95f, .min_experts = 1, .normalize = true},
        {.type = XMOE_ROUTER_TOP_K, .top_k = 2, .min_experts = 1},
    };
    static const xmoe_router sigmoids[SIGMOID_ROUTINGS] = {
        {.type = XMOE_ROUTER_SIGMOID, .threshold = 0.8f, .min_experts = 1},
        {.type = XMOE_ROUTER_SIGMOID, .threshold = 0.3f, .min_experts = 1, .normalize = true},
        {.type = XMOE_ROUTER_SIGMOID, .threshold = 0.97f, .min_experts = 2, .max_experts = 4},
        {.type = XMOE_ROUTER_SIGMOID, .threshold = 1.0f, .min_experts = 1},
    };
    xmoe_routing routing = {.layer_count = model->info.layer_count};
    for (int32_t i = 0; i < routing.layer_count; i++)
        routing.layers[i] = kind >= ROUTINGS ? sigmoids[kind - ROUTINGS]
                                             : routers[kind < ROUTINGS - 1 ? kind : i % ROUTINGS];
    assert_int_equal(xmoe_routing_check(model, &routing, NULL), XMOE_OK);
    return routing;
}

/* every_variant: else the best one; instruction_sets_change_nothing has the others. */
static void compare_shape(const xmoe_random_model *shape, bool every_variant)
{
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    write_model(shape);
    reference_model *reference = reference_load(model_path);
    for (int32_t v = every_variant ? 0 : variants - 1; v < variants; v++) {
        xmoe_model *model = runner_load(model_path, tables[v]->name, 2);
        bool sigmoid = model->info.router.type == XMOE_ROUTER_SIGMOID;
        for (int32_t kind = 0; kind < ROUTINGS + (sigmoid ? SIGMOID_ROUTINGS : 0); kind++)
            for (int kv_f32 = 0; kv_f32 < 2; kv_f32++) {
                xmoe_routing routing = routing_of(model, kind);
                compare_with_reference(model, reference, &routing, kv_f32 != 0);
            }
        xmoe_model_free(model);
    }
    reference_free(reference);
}

static void matches_reference_in_every_type(void **state)
{
    (void)state;
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    for (size_t t = 0; t < types; t++) {
        xmoe_random_model shape = even_shape(traits[t].name);
        compare_shape(&shape, traits[t].block_elements == 1);
    }
}

static void matches_reference_at_odd_sizes(void **state)
{
    (void)state;
    static const char *const types[] = {"F32", "F16", "BF16"};
    for (size_t t = 0; t < 3; t++) {
        xmoe_random_model shape = odd_shape(types[t]);
        compare_shape(&shape, true);
    }
}

/* Every type of a request's router on a model that scores experts one by one. */
static void matches_reference_with_sigmoids(void **state)
{
    (void)state;
    static const char *const types[] = {"F32", "Q8_0"};
    for (size_t t = 0; t < 2; t++) {
        xmoe_random_model shape = even_shape(types[t]);
        shape.router.type = XMOE_ROUTER_SIGMOID;
        shape.seed = 12; /* no choice hangs on rounding */
        compare_shape(&shape, true);
    }
}

static void matches_reference_without_experts(void **state)
{
    (void)state;
    xmoe_random_model shape = even_shape("Q8_0");
    shape.moe_every = 0;
    compare_shape(&shape, true);
}

/* --- to the bit ------------------------------------------------------------------------------- */

/* One sequence alone, and the same among 31 others of all lengths and routers. */
static void company_changes_nothing(void **state)
{
    (void)state;
    enum { COMPANY = 31, PLACE = 13 };
    static const char *const types[] = {"F32", "Q8_0"};
    for (size_t t = 0; t < 2; t++) {
        xmoe_random_model shape = even_shape(types[t]);
        write_model(&shape);
        xmoe_model *model = runner_load(model_path, NULL, 2);
        runner run = runner_start(model, 2, false);
        sequence s = runner_sequence(&run, 20, 1);
        s.routing = routing_of(model, 3);
        float *alone = logits_alone(&run, &s);
        sequence *others = calloc(COMPANY + 1, sizeof *others);
        xm_segment segments[COMPANY + 1];
        int32_t before = 0;
        assert_non_null(others);
        for (int32_t i = 0; i <= COMPANY; i++) {
            others[i] = i == PLACE ? s : runner_sequence(&run, 1 + i * 7 % 23, 100 + (uint64_t)i);
            if (i != PLACE)
                others[i].routing = routing_of(model, i % ROUTINGS);
            segments[i] = segment_of(&others[i], 0, others[i].count, i < 10 ? 0 : others[i].count);
            before += i < 10 ? others[i].count : 0;
        }
        segments[PLACE].logits_from = 5;
        const float *logits = xm_forward_step(run.forward, segments, COMPANY + 1, NULL, NULL);
        size_t vocabulary = (size_t)model->info.vocabulary_size;
        assert_same_bits(&run, logits + (size_t)before * vocabulary, alone + 5 * vocabulary,
                         s.count - 5);
        free(alone);
        free(others);
        runner_stop(&run);
        xmoe_model_free(model);
    }
}

static void threads_change_nothing(void **state)
{
    (void)state;
    static const char *const types[] = {"F16", "Q4_0"};
    for (size_t t = 0; t < 2; t++) {
        xmoe_random_model shape = even_shape(types[t]);
        shape.expert_feed_forward_length = 160;
        shape.feed_forward_length = 224;
        shape.head_count = 2;
        write_model(&shape);
        xmoe_model *model = runner_load(model_path, NULL, 2);
        float *expected = NULL;
        for (int32_t threads = 1; threads <= 3; threads++) {
            runner run = runner_start(model, threads, t == 0);
            sequence s = runner_sequence(&run, 90, 5);
            float *logits = logits_alone(&run, &s);
            if (expected != NULL)
                assert_same_bits(&run, logits, expected, s.count);
            free(expected);
            expected = logits;
            runner_stop(&run);
        }
        free(expected);
        xmoe_model_free(model);
    }
}

/* A prompt in pieces of 1, 7 and 16 tokens, and whole; decoding is pieces of 1. */
static void chunks_change_nothing(void **state)
{
    (void)state;
    static const int32_t chunks[] = {1, 7, 16};
    xmoe_random_model shape = even_shape("Q8_0");
    write_model(&shape);
    xmoe_model *model = runner_load(model_path, NULL, 2);
    size_t vocabulary = (size_t)model->info.vocabulary_size;
    for (int kv_f32 = 0; kv_f32 < 2; kv_f32++) {
        runner run = runner_start(model, 2, kv_f32 != 0);
        sequence s = runner_sequence(&run, 50, 3);
        float *whole = logits_alone(&run, &s);
        for (size_t c = 0; c < 3; c++) {
            sequence again = runner_sequence(&run, 50, 3);
            for (int32_t done = 0; done < s.count;) {
                int32_t count = s.count - done < chunks[c] ? s.count - done : chunks[c];
                xm_segment segment = segment_of(&again, done, count, 0);
                const float *logits = xm_forward_step(run.forward, &segment, 1, NULL, NULL);
                assert_same_bits(&run, logits, whole + (size_t)done * vocabulary, count);
                done += count;
            }
        }
        free(whole);
        runner_stop(&run);
    }
    xmoe_model_free(model);
}

static void instruction_sets_change_nothing(void **state)
{
    (void)state;
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    for (size_t t = 0; t < types; t++) {
        xmoe_random_model shape = even_shape(traits[t].name);
        float *expected = NULL;
        write_model(&shape);
        for (int32_t v = 0; v < variants; v++) {
            xmoe_model *model = runner_load(model_path, tables[v]->name, 2);
            runner run = runner_start(model, 1, false);
            sequence s = runner_sequence(&run, 33, 9);
            float *logits = logits_alone(&run, &s);
            if (expected != NULL)
                assert_same_bits(&run, logits, expected, s.count);
            free(expected);
            expected = logits;
            runner_stop(&run);
            xmoe_model_free(model);
        }
        free(expected);
    }
}

/* Two sequences that share their first block and a half, by a shared and a copied block, go on as
 * if each had computed all itself. */
static void copied_blocks_continue(void **state)
{
    (void)state;
    xmoe_random_model shape = even_shape("F32");
    write_model(&shape);
    xmoe_model *model = runner_load(model_path, NULL, 2);
    runner run = runner_start(model, 1, false);
    sequence s = runner_sequence(&run, 40, 3);
    float *whole = logits_alone(&run, &s);
    sequence fork = runner_sequence(&run, 40, 3);
    fork.blocks[0] = s.blocks[0];
    xm_kv_copy_block(run.cache, s.blocks[1], fork.blocks[1]);
    xm_segment segment = segment_of(&fork, 24, 16, 0);
    const float *logits = xm_forward_step(run.forward, &segment, 1, NULL, NULL);
    assert_same_bits(&run, logits, whole + 24 * (size_t)model->info.vocabulary_size, 16);
    free(whole);
    runner_stop(&run);
    xmoe_model_free(model);
}

/* The context can be filled to its end. */
static void last_position_works(void **state)
{
    (void)state;
    xmoe_random_model shape = even_shape("Q8_0");
    shape.context_length = 43;
    write_model(&shape);
    xmoe_model *model = runner_load(model_path, NULL, 2);
    reference_model *reference = reference_load(model_path);
    runner run = runner_start(model, 1, true);
    sequence s = runner_sequence(&run, 43, 21);
    reference_result expected = reference_forward(reference, s.tokens, 43, &s.routing, false);
    xm_segment segment = segment_of(&s, 0, 43, 42);
    const float *logits = xm_forward_step(run.forward, &segment, 1, NULL, NULL);
    assert_true(log_softmax_error(logits, expected.logprobs + 42 * (size_t)expected.vocabulary,
                                  expected.vocabulary) < 2e-3);
    reference_result_free(&expected);
    reference_free(reference);
    runner_stop(&run);
    xmoe_model_free(model);
}

/* A NaN (here from a broken weight) stays with the rows that it concerns, and harms nothing. */
static void nan_stays_in_its_row(void **state)
{
    (void)state;
    static const char *const types[] = {"F16", "Q8_0"};
    for (size_t t = 0; t < 2; t++) {
        xmoe_random_model shape = even_shape(types[t]);
        write_model(&shape);
        xmoe_model *model = runner_load(model_path, NULL, 2);
        size_t vocabulary = (size_t)model->info.vocabulary_size;
        runner run = runner_start(model, 2, false);
        sequence s = runner_sequence(&run, 9, 5), other = runner_sequence(&run, 4, 6);
        float *expected = logits_alone(&run, &s), *other_expected = logits_alone(&run, &other);
        float *embedding = (float *)(uintptr_t)model->position_embedding;
        embedding[6 * model->info.embedding_length + 3] = NAN;
        xm_segment segments[2] = {segment_of(&s, 0, 9, 0), segment_of(&other, 0, 4, 0)};
        const float *logits = xm_forward_step(run.forward, segments, 2, NULL, NULL);
        assert_same_bits(&run, logits, expected, 6);
        assert_same_bits(&run, logits + 9 * vocabulary, other_expected, 4);
        for (size_t i = 6 * vocabulary; i < 9 * vocabulary; i++)
            assert_true(isnan(logits[i]));
        free(expected);
        free(other_expected);
        runner_stop(&run);
        xmoe_model_free(model);
    }
}

/* Every allocation of a forward pass and its cache fails once; nothing leaks or crashes. */
static void lack_of_memory_is_reported(void **state)
{
    (void)state;
    xmoe_random_model shape = even_shape("Q8_0");
    write_model(&shape);
    xmoe_model *model = runner_load(model_path, NULL, 2);
    int32_t failures = 0;
    for (xmoe_status status = XMOE_ERROR_MEMORY; status != XMOE_OK; failures++) {
        xm_kv_cache *cache = NULL;
        xm_forward *forward = NULL;
        xm_memory_fail_after(failures);
        status = xm_kv_cache_create(model, 4, false, &cache, NULL);
        if (status == XMOE_OK)
            status = xm_forward_create(model, NULL, cache, 8, &forward, NULL);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        assert_true((forward != NULL) == (status == XMOE_OK));
        xm_forward_free(forward);
        xm_kv_cache_free(cache);
    }
    assert_true(failures > 20);
    xmoe_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_reference_in_every_type),
        cmocka_unit_test(matches_reference_at_odd_sizes),
        cmocka_unit_test(matches_reference_with_sigmoids),
        cmocka_unit_test(matches_reference_without_experts),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(instruction_sets_change_nothing),
        cmocka_unit_test(copied_blocks_continue),
        cmocka_unit_test(last_position_works),
        cmocka_unit_test(nan_stays_in_its_row),
        cmocka_unit_test(lack_of_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
