/*
 * test_family_formats.c - each family in each weight type, against the same weights written as F32:
 * what differs is only that products of quantised weights round their activations to 16 bits.
 * Types of 256 elements a block have wider models. That F32 is right: test_families.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "family_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 24 };

/* Found: up to 4e-7 nats, over all families and types. */
static const double divergence_bound = 1e-6;
/* Logits and routing weights so close may change places. */
static const double tie = 1e-3;

static void log_softmax(const float *logits, int32_t count, double *logprobs)
{
    double largest = -INFINITY, sum = 0.0;
    for (int32_t i = 0; i < count; i++)
        largest = fmax(largest, (double)logits[i]);
    for (int32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - largest);
    for (int32_t i = 0; i < count; i++)
        logprobs[i] = (double)logits[i] - largest - log(sum);
}

static int32_t likeliest(const float *logits, int32_t count)
{
    int32_t best = 0;
    for (int32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* In nats: a model that is sure of everything would agree with anything. */
static double entropy_of(const float *logits, int32_t count)
{
    double *p = calloc((size_t)count, sizeof *p), sum = 0.0;
    assert_non_null(p);
    log_softmax(logits, count, p);
    for (int32_t i = 0; i < count; i++)
        sum -= exp(p[i]) * p[i];
    free(p);
    return sum;
}

static double divergence_of(const float *expected, const float *found, int32_t count)
{
    double *p = calloc((size_t)count, sizeof *p), *q = calloc((size_t)count, sizeof *q);
    double sum = 0.0;
    assert_non_null(p);
    assert_non_null(q);
    log_softmax(expected, count, p);
    log_softmax(found, count, q);
    for (int32_t i = 0; i < count; i++)
        sum += exp(p[i]) * (p[i] - q[i]);
    free(p);
    free(q);
    return sum;
}

/* Whether a row has the same experts; they may differ only where their weights do not. */
static bool same_choices(const char *what, const family_choices *expected,
                         const family_choices *found, int32_t row)
{
    for (int32_t layer = 0; layer < expected->moe_layers; layer++) {
        const int32_t *a = expected->expert[layer][row], *b = found->expert[layer][row];
        assert_int_equal(found->top[layer], expected->top[layer]);
        if (memcmp(a, b, sizeof expected->expert[layer][row]) == 0)
            continue;
        for (int32_t i = 0; i < expected->top[layer]; i++)
            if (!(fabs((double)(expected->weight[layer][row][i] - found->weight[layer][row][i])) <
                  tie))
                fail_msg("%s: MoE layer %d, row %d: rank %d is expert %d of weight %g, expected %d "
                         "of %g",
                         what, layer, row, i, b[i], (double)found->weight[layer][row][i], a[i],
                         (double)expected->weight[layer][row][i]);
        return false;
    }
    return true;
}

/* Returns how many rows could be compared: those before the first tie of experts. */
static int32_t compare(const char *what, const family_result *expected, const family_result *found,
                       int32_t vocabulary)
{
    int32_t row = 0;
    double entropy = 0.0;
    for (; row < ROWS && same_choices(what, &expected->choices, &found->choices, row); row++) {
        const float *a = expected->logits + (size_t)row * (size_t)vocabulary;
        const float *b = found->logits + (size_t)row * (size_t)vocabulary;
        double divergence = divergence_of(a, b, vocabulary);
        double lost = (double)(a[likeliest(a, vocabulary)] - a[likeliest(b, vocabulary)]);
        if (!(divergence < divergence_bound))
            fail_msg("%s, row %d: KL divergence %g", what, row, divergence);
        if (!(lost < tie))
            fail_msg("%s, row %d: another token is the likeliest, by %g", what, row, lost);
        entropy += entropy_of(a, vocabulary);
    }
    if (!(entropy >= row * 1.0))
        fail_msg("%s: mean entropy %g", what, entropy / row);
    return row;
}

static family_result run_file(const family_fixture *f, const family_file *file,
                              const int32_t *tokens)
{
    family_write(f, file);
    xmoe_model *model = family_load(NULL);
    family_result result = family_run(model, tokens, ROWS, NULL);
    xmoe_model_free(model);
    return result;
}

/* Returns the rows compared. */
static int32_t compare_type(const family_fixture *f, const xm_weight_traits *traits)
{
    int32_t tokens[ROWS];
    char what[64];
    for (int32_t i = 0; i < ROWS; i++)
        tokens[i] = (int32_t)(xm_random_bits(29, 0, (uint64_t)i) % (uint64_t)f->vocabulary);
    family_file file = {.type = traits};
    family_result found = run_file(f, &file, tokens);
    file.in_f32 = true;
    family_result expected = run_file(f, &file, tokens);
    snprintf(what, sizeof what, "%s in %s", f->name, traits->name);
    int32_t rows = compare(what, &expected, &found, f->vocabulary);
    family_result_free(&found);
    family_result_free(&expected);
    return rows;
}

static void compare_all(const char *const *names, bool wide)
{
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    int32_t rows = 0, compared = 0;
    for (int32_t i = 0; names[i] != NULL; i++) {
        family_fixture *f = family_read(names[i]);
        for (size_t t = 0; t < types; t++)
            if ((traits[t].block_elements == 256) == wide) {
                rows += ROWS;
                compared += compare_type(f, &traits[t]);
            }
        family_free(f);
    }
    assert_true(compared > rows * 98 / 100);
}

static void small_blocks_match_f32(void **state)
{
    (void)state;
    compare_all(family_names, false);
}

static void large_blocks_match_f32(void **state)
{
    (void)state;
    compare_all(family_wide_names, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_blocks_match_f32),
        cmocka_unit_test(large_blocks_match_f32),
    };
    return cmocka_run_group_tests(tests, family_make_path, family_remove_path);
}
