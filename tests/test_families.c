/*
 * test_families.c - each family of models against Hugging Face transformers in float32: logits and
 * choices of experts of tiny models (tests/fixtures/families); and to the bit against itself, on
 * any instruction set, in any chunks, in any company.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "family_fixture.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A fixture that nobody names would test nothing. */
static void all_fixtures_are_named(void **state)
{
    (void)state;
    int32_t files = 0, names = 0;
    DIR *directory = opendir("tests/fixtures/families");
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        files += strstr(entry->d_name, ".txt") != NULL;
    closedir(directory);
    for (int32_t i = 0; family_names[i] != NULL; i++)
        names++;
    for (int32_t i = 0; family_wide_names[i] != NULL; i++)
        names++;
    assert_int_equal(names, files);
}

static void compare_choices(const family_fixture *f, int32_t sequence, const family_choices *found)
{
    const family_sequence *s = &f->sequences[sequence];
    assert_int_equal(found->moe_layers, s->choices.moe_layers);
    for (int32_t layer = 0; layer < found->moe_layers; layer++) {
        assert_int_equal(found->top[layer], s->choices.top[layer]);
        for (int32_t row = 0; row < s->token_count; row++)
            for (int32_t rank = 0; rank < found->top[layer]; rank++)
                if (found->expert[layer][row][rank] != s->choices.expert[layer][row][rank])
                    fail_msg("%s: MoE layer %d, sequence %d, position %d: rank %d is expert %d, "
                             "expected %d",
                             f->name, layer, sequence, row, rank, found->expert[layer][row][rank],
                             s->choices.expert[layer][row][rank]);
    }
}

/* The largest difference. */
static double compare_logits(const family_fixture *f, const family_logits *expected,
                             const float *found)
{
    double worst = 0.0;
    assert_true(expected->count > 0);
    for (int32_t p = 0; p < expected->count; p++) {
        const float *row = found + (size_t)expected->positions[p] * (size_t)f->vocabulary;
        for (int32_t i = 0; i < f->vocabulary; i++) {
            double error = fabs((double)row[i] - (double)expected->rows[p][i]);
            worst = error > worst || isnan(error) ? error : worst;
        }
    }
    return worst;
}

/* Found: within 1.5e-5, F32's rounding over a few layers. A wrong term moves logits by 0.1 and
 * more.
 */
static const double logits_bound = 1e-4;

static void matches_transformers(void **state)
{
    (void)state;
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        family_write(f, NULL);
        xmoe_model *model = family_load(NULL);
        for (int32_t s = 0; s < FAMILY_SEQUENCES; s++) {
            const family_sequence *sequence = &f->sequences[s];
            family_result result = family_run(model, sequence->tokens, sequence->token_count, NULL);
            double error = compare_logits(f, &sequence->logits, result.logits);
            compare_choices(f, s, &result.choices);
            if (!(error < logits_bound))
                fail_msg("%s, sequence %d: logits are off by %g", f->name, s, error);
            family_result_free(&result);
        }
        xmoe_model_free(model);
        family_free(f);
    }
}

/* --- fewer experts than a model was trained with ---------------------------------------------- */

static xmoe_routing routing_with(const xmoe_model *model, const xmoe_router *change)
{
    xmoe_routing routing;
    xmoe_model_default_routing(model, &routing);
    for (int32_t i = 0; i < model->info.moe_layer_count; i++) {
        xmoe_router *router = &routing.layers[model->moe_layers[i]];
        router->type = change->type;
        router->threshold = change->threshold;
        router->max_experts = change->max_experts;
    }
    assert_int_equal(xmoe_routing_check(model, &routing, NULL), XMOE_OK);
    return routing;
}

/* A cap gives what transformers computes with so many experts for a token: weights that add up to 1
 * in families that divide by their sum, and what they are in the others. */
static void fewer_experts_match_transformers(void **state)
{
    (void)state;
    int32_t compared = 0;
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        const family_sequence *s = &f->sequences[0];
        if (f->fewer.experts > 0) {
            family_write(f, NULL);
            xmoe_model *model = family_load(NULL);
            const xmoe_router change = {
                .type = XMOE_ROUTER_TOP_K, .threshold = 1.0f, .max_experts = f->fewer.experts};
            xmoe_routing routing = routing_with(model, &change);
            const family_run_options options = {.routing = &routing};
            family_result result = family_run(model, s->tokens, s->token_count, &options);
            double error = compare_logits(f, &f->fewer.logits, result.logits);
            if (!(error < logits_bound))
                fail_msg("%s, %d experts: logits are off by %g", f->name, f->fewer.experts, error);
            family_result_free(&result);
            xmoe_model_free(model);
            compared++;
        }
        family_free(f);
    }
    assert_true(compared >= 10);
}

/* The first ranks that add up to the threshold: the sum is over the ranks that the model would take
 * as it was trained, and threshold 1 takes all of those. */
static void thresholds_take_first_ranks(void **state)
{
    (void)state;
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        const family_sequence *s = &f->sequences[0];
        family_write(f, NULL);
        xmoe_model *model = family_load(NULL);
        family_result trained = family_run(model, s->tokens, s->token_count, NULL);
        if (trained.choices.moe_layers > 0) {
            xmoe_router change = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 1.0f};
            xmoe_routing routing = routing_with(model, &change);
            const family_run_options options = {.routing = &routing};
            family_result same = family_run(model, s->tokens, s->token_count, &options);
            if (memcmp(same.logits, trained.logits,
                       (size_t)s->token_count * (size_t)f->vocabulary * sizeof(float)) != 0)
                fail_msg("%s: threshold 1 is not the model as trained", f->name);
            family_result_free(&same);
            change.threshold = 1e-6f; /* of one token, so that `top` is the number of every row */
            routing = routing_with(model, &change);
            family_result one = family_run(model, s->tokens, 1, &options);
            for (int32_t layer = 0; layer < one.choices.moe_layers; layer++)
                assert_int_equal(one.choices.top[layer], 1);
            /* Later layers see another input. */
            assert_int_equal(one.choices.expert[0][0][0], trained.choices.expert[0][0][0]);
            family_result_free(&one);
        }
        family_result_free(&trained);
        xmoe_model_free(model);
        family_free(f);
    }
}

/* --- to the bit ------------------------------------------------------------------------------- */

static void expect_same_logits(const family_fixture *f, const char *what, const float *found,
                               const float *expected, int32_t rows)
{
    size_t count = (size_t)rows * (size_t)f->vocabulary;
    if (memcmp(found, expected, count * sizeof *found) != 0)
        fail_msg("%s: %s changes logits", f->name, what);
}

/* In F32, and in Q8_0, whose products are of integers. */
static void instruction_sets_change_nothing(void **state)
{
    (void)state;
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        const family_sequence *s = &f->sequences[1];
        for (int quantised = 0; quantised < 2; quantised++) {
            const family_file file = {.type = quantised ? xm_weight_traits_of(XM_TYPE_Q8_0) : NULL};
            family_result expected = {0};
            family_write(f, &file);
            for (int32_t v = 0; v < variants; v++) {
                xmoe_model *model = family_load(tables[v]->name);
                family_result found = family_run(model, s->tokens, s->token_count, NULL);
                if (v > 0)
                    expect_same_logits(f, tables[v]->name, found.logits, expected.logits,
                                       s->token_count);
                family_result_free(&expected);
                expected = found;
                xmoe_model_free(model);
            }
            family_result_free(&expected);
        }
        family_free(f);
    }
}

/* As a server has keys and values. */
static const family_run_options as_server = {.kv_f16 = true};

/* Pieces of 1 are decoding. */
static void chunks_and_threads_change_nothing(void **state)
{
    (void)state;
    static const family_run_options ways[] = {
        {.chunk = 1, .kv_f16 = true},
        {.chunk = 7, .kv_f16 = true, .threads = 2},
        {.chunk = 16, .kv_f16 = true},
        {.threads = 3, .kv_f16 = true},
    };
    const family_file file = {.type = xm_weight_traits_of(XM_TYPE_Q4_0)};
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        const family_sequence *s = &f->sequences[0];
        family_write(f, &file);
        xmoe_model *model = family_load(NULL);
        family_result whole = family_run(model, s->tokens, s->token_count, &as_server);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            family_result found = family_run(model, s->tokens, s->token_count, &ways[w]);
            expect_same_logits(f, "prefill in pieces, or by threads,", found.logits, whole.logits,
                               s->token_count);
            family_result_free(&found);
        }
        family_result_free(&whole);
        xmoe_model_free(model);
        family_free(f);
    }
}

/* Both sequences in one step, with routers of their own: each as if it were alone. */
static void company_changes_nothing(void **state)
{
    (void)state;
    const family_file file = {.type = xm_weight_traits_of(XM_TYPE_Q8_0)};
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        family_write(f, &file);
        xmoe_model *model = family_load(NULL);
        const family_sequence *s = f->sequences;
        const int32_t blocks[FAMILY_SEQUENCES][3] = {{5, 1, 3}, {2, 4, 0}};
        xmoe_routing routing[FAMILY_SEQUENCES];
        xm_segment segments[FAMILY_SEQUENCES];
        xm_kv_cache *cache = NULL;
        xm_forward *forward = NULL;
        assert_int_equal(xm_kv_cache_create(model, 6, false, &cache, NULL), XMOE_OK);
        assert_int_equal(
            xm_forward_create(model, NULL, cache, 2 * FAMILY_MAX_TOKENS, &forward, NULL), XMOE_OK);
        for (int32_t k = 0; k < FAMILY_SEQUENCES; k++) {
            xmoe_model_default_routing(model, &routing[k]);
            segments[k] = (xm_segment){.tokens = s[k].tokens,
                                       .token_count = s[k].token_count,
                                       .blocks = blocks[k],
                                       .routing = &routing[k]};
        }
        /* The first takes other experts than the second would. */
        for (int32_t layer = 0; layer < routing[0].layer_count; layer++)
            if (model->layers[layer].is_moe)
                routing[0].layers[layer].max_experts = 1;
        const float *together = xm_forward_step(forward, segments, FAMILY_SEQUENCES, NULL, NULL);
        family_result alone = family_run(model, s[1].tokens, s[1].token_count, &as_server);
        expect_same_logits(f, "company",
                           together + (size_t)s[0].token_count * (size_t)f->vocabulary,
                           alone.logits, s[1].token_count);
        family_result_free(&alone);
        xm_forward_free(forward);
        xm_kv_cache_free(cache);
        xmoe_model_free(model);
        family_free(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_fixtures_are_named),
        cmocka_unit_test(matches_transformers),
        cmocka_unit_test(fewer_experts_match_transformers),
        cmocka_unit_test(thresholds_take_first_ranks),
        cmocka_unit_test(instruction_sets_change_nothing),
        cmocka_unit_test(chunks_and_threads_change_nothing),
        cmocka_unit_test(company_changes_nothing),
    };
    return cmocka_run_group_tests(tests, family_make_path, family_remove_path);
}
