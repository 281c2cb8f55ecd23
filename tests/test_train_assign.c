/*
 * test_train_assign.c - what decides over experts beside logits: the even assignment of BASE layers
 * against the best one of all, and the tables of hash layers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "train/assign.h"
#include "train/gate_hash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The largest sum of scores of rows [row, rows) with these places left, by trying everything. */
static double best_total(const float *scores, int32_t rows, int32_t experts, int32_t row,
                         int32_t *places)
{
    double best = row == rows ? 0 : -INFINITY;
    for (int32_t e = 0; row < rows && e < experts; e++) {
        if (places[e] == 0)
            continue;
        places[e]--;
        double total =
            (double)scores[row * experts + e] + best_total(scores, rows, experts, row + 1, places);
        places[e]++;
        best = total > best ? total : best;
    }
    return best;
}

static void check_even(const uint16_t *expert_of, int32_t rows, int32_t experts)
{
    int32_t counts[64] = {0};
    for (int32_t row = 0; row < rows; row++) {
        assert_true(expert_of[row] < experts);
        counts[expert_of[row]]++;
    }
    for (int32_t e = 0; e < experts; e++)
        assert_true(counts[e] <= (rows + experts - 1) / experts);
}

static void assignment_is_near_the_best(void **state)
{
    (void)state;
    static const int32_t sizes[][2] = {{6, 3}, {7, 3}, {8, 2}, {5, 5}, {4, 6}, {9, 4}, {3, 1}};
    for (uint64_t seed = 0; seed < 140; seed++) {
        int32_t rows = sizes[seed % 7][0], experts = sizes[seed % 7][1];
        int32_t count = rows * experts, places[6];
        float scores[64];
        for (int32_t i = 0; i < count; i++) {
            double z = xm_random_normal(seed, 0, (uint64_t)i);
            scores[i] = (float)(seed % 3 == 0 ? floor(z) : z); /* with ties, too */
            if (seed % 5 == 0 && i % experts == 0)
                scores[i] += 5.0f; /* all want the first */
        }
        for (int32_t e = 0; e < experts; e++)
            places[e] = (rows + experts - 1) / experts;
        xm_assigner assigner;
        uint16_t expert_of[16], again[16];
        assert_int_equal(xm_assigner_create(rows, experts, &assigner, NULL), XMOE_OK);
        xm_assign(&assigner, scores, expert_of, 1);
        xm_assign(&assigner, scores, again, 1);
        assert_memory_equal(expert_of, again, (size_t)rows * sizeof *again);
        check_even(expert_of, rows, experts);
        double total = 0;
        for (int32_t row = 0; row < rows; row++)
            total += (double)scores[row * experts + expert_of[row]];
        double best = best_total(scores, rows, experts, 0, places);
        assert_true(total <= best + 1e-5);
        assert_true(total >= best - rows * xm_assign_step(scores, (size_t)count) - 1e-5);
        xm_assigner_free(&assigner);
    }
}

static void large_batches_are_even(void **state)
{
    (void)state;
    enum { ROWS = 1000, EXPERTS = 32 };
    float *scores = malloc(ROWS * EXPERTS * sizeof *scores);
    static uint16_t expert_of[ROWS * EXPERTS];
    xm_assigner assigner;
    assert_int_equal(xm_assigner_create(ROWS, EXPERTS, &assigner, NULL), XMOE_OK);
    for (int32_t kind = 0; kind < 4; kind++) {
        for (int32_t i = 0; i < ROWS * EXPERTS; i++) {
            double z = xm_random_normal(1, 2, (uint64_t)i);
            scores[i] = kind == 0   ? (float)z
                        : kind == 1 ? 0.0f                                      /* all equal */
                        : kind == 2 ? (float)z + (i % EXPERTS == 3 ? 30.0f : 0) /* one wanted */
                                    : (i == 77 ? NAN : (float)z);
        }
        xm_assign(&assigner, scores, expert_of, EXPERTS);
        uint16_t chosen[ROWS];
        for (int32_t row = 0; row < ROWS; row++)
            chosen[row] = expert_of[row * EXPERTS];
        check_even(chosen, ROWS, EXPERTS);
    }
    xm_assigner_free(&assigner);
    free(scores);
}

/* --- hash layers ------------------------------------------------------------------------------ */

enum { VOCABULARY = 1000, EXPERTS = 8 };

static xm_network *make_network(void)
{
    const xm_network_shape shape = {.vocabulary = VOCABULARY,
                                    .context = 4,
                                    .width = 8,
                                    .blocks = 2,
                                    .heads = 1,
                                    .feed_forward = 8,
                                    .experts = EXPERTS,
                                    .expert_feed_forward = 8,
                                    .moe_every = 1,
                                    .epsilon = 1e-5f,
                                    .gate = XM_GATE_HASH,
                                    .router = XMOE_ROUTER_TOP_K,
                                    .threshold = 1.0f,
                                    .top_k = 1,
                                    .init_std = 0.1f};
    xm_network *network = NULL;
    assert_int_equal(xm_network_create(&shape, &network, NULL), XMOE_OK);
    return network;
}

static const xm_parameter *table_of(const xm_network *network, int32_t block)
{
    const xm_parameter *p =
        xm_network_find(network, block == 0 ? "blk.0.ffn_hash.weight" : "blk.1.ffn_hash.weight");
    assert_non_null(p);
    assert_int_equal(p->count, VOCABULARY);
    return p;
}

/* Word frequencies after Zipf: the first token alone is an expert's share. */
static void tables_are_balanced(void **state)
{
    (void)state;
    xm_network *network = make_network();
    float *parameters = xm_calloc_aligned(network->total, sizeof *parameters);
    uint64_t counts[VOCABULARY];
    double total = 0, agree = 0;
    for (uint64_t token = 0; token < VOCABULARY; token++) {
        counts[token] = token < 900 ? 100000 / (token + 1) : 0;
        total += (double)counts[token];
    }
    assert_int_equal(xm_hash_balance(network, 3, counts, parameters, NULL), XMOE_OK);
    for (int32_t block = 0; block < 2; block++) {
        const xm_parameter *p = table_of(network, block);
        const float *table = parameters + p->offset;
        double load[EXPERTS] = {0};
        int32_t unseen[EXPERTS] = {0};
        assert_int_equal(xm_hash_check(p, table, EXPERTS, NULL), XMOE_OK);
        for (int32_t token = 0; token < VOCABULARY; token++) {
            load[(int32_t)table[token]] += (double)counts[token];
            unseen[(int32_t)table[token]] += counts[token] == 0;
            agree +=
                block == 1 && table[token] == parameters[network->blocks[0].hash + (size_t)token];
        }
        for (int32_t e = 0; e < EXPERTS; e++) {
            assert_true(load[e] < 1.10 * total / EXPERTS && load[e] > 0.90 * total / EXPERTS);
            assert_true(unseen[e] < 60);
        }
    }
    assert_true(agree < 0.3 * VOCABULARY); /* 1 / EXPERTS by chance */
    xm_free(parameters);
    xm_network_free(network);
}

static void wrong_tables_are_named(void **state)
{
    (void)state;
    static const float wrong[] = {-1.0f, 8.0f, 1.5f, NAN, INFINITY};
    xm_network *network = make_network();
    float *parameters = xm_calloc_aligned(network->total, sizeof *parameters);
    xm_network_init(network, 1, parameters);
    const xm_parameter *p = table_of(network, 1);
    float *table = parameters + p->offset;
    xmoe_error error;
    assert_int_equal(xm_hash_check(p, table, EXPERTS, &error), XMOE_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        table[71] = wrong[i];
        assert_int_equal(xm_hash_check(p, table, EXPERTS, &error), XMOE_ERROR_FORMAT);
        assert_non_null(strstr(error.message, "blk.1.ffn_hash.weight: token 71"));
    }
    xm_free(parameters);
    xm_network_free(network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(assignment_is_near_the_best),
        cmocka_unit_test(large_batches_are_even),
        cmocka_unit_test(tables_are_balanced),
        cmocka_unit_test(wrong_tables_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
