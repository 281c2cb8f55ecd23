/*
 * gate_hash.c - see gate_hash.h.
 */
#include "train/gate_hash.h"

#include "base/memory.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>

void xm_hash_scatter(uint64_t seed, uint64_t block, int32_t experts, size_t vocabulary,
                     float *experts_of)
{
    for (size_t token = 0; token < vocabulary; token++)
        experts_of[token] = (float)(xm_random_bits(seed, block, token) % (uint64_t)experts);
}

typedef struct {
    double weight; /* what orders tokens */
    uint32_t token;
} ordered_token;

static int compare_tokens(const void *left, const void *right)
{
    const ordered_token *a = left, *b = right;
    if (a->weight != b->weight)
        return a->weight > b->weight ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

static int32_t least_loaded(const double *load, int32_t experts)
{
    int32_t least = 0;
    for (int32_t e = 1; e < experts; e++)
        least = load[e] < load[least] ? e : least;
    return least;
}

/* One block's table. Tokens that never occur come last and are spread by their number. */
static void balance_block(const xm_network *network, uint64_t seed, int32_t block,
                          const uint64_t *counts, ordered_token *order, double *load,
                          float *experts_of)
{
    size_t vocabulary = (size_t)network->shape.vocabulary;
    for (size_t token = 0; token < vocabulary; token++) {
        double blur = 0.8 + 0.2 * xm_random_uniform(seed, (uint64_t)block, token);
        order[token] = (ordered_token){counts[token] > 0 ? (double)counts[token] * blur : -blur,
                                       (uint32_t)token};
    }
    qsort(order, vocabulary, sizeof *order, compare_tokens);
    for (size_t i = 0; i < vocabulary; i++) {
        uint64_t count = counts[order[i].token];
        if (i == 0 || (count == 0 && counts[order[i - 1].token] > 0))
            memset(load, 0, (size_t)network->shape.experts * sizeof *load);
        int32_t expert = least_loaded(load, network->shape.experts);
        load[expert] += count > 0 ? (double)count : 1.0;
        experts_of[order[i].token] = (float)expert;
    }
}

xmoe_status xm_hash_balance(const xm_network *network, uint64_t seed, const uint64_t *counts,
                            float *parameters, xmoe_error *error)
{
    const xm_network_shape *s = &network->shape;
    ordered_token *order = xm_calloc((size_t)s->vocabulary, sizeof *order);
    double *load = xm_calloc((size_t)s->experts, sizeof *load);
    xmoe_status status = XMOE_OK;
    if (order == NULL || load == NULL) {
        status = xm_fail_memory(error, "hash tables", (size_t)s->vocabulary * sizeof *order);
    } else {
        for (int32_t block = 0; block < s->blocks; block++)
            if (network->blocks[block].moe)
                balance_block(network, seed, block, counts, order, load,
                              parameters + network->blocks[block].hash);
    }
    xm_free(order);
    xm_free(load);
    return status;
}

xmoe_status xm_hash_check(const xm_parameter *parameter, const float *experts_of, int32_t experts,
                          xmoe_error *error)
{
    for (size_t token = 0; token < parameter->count; token++) {
        float expert = experts_of[token];
        if (!xm_is_expert(expert, experts))
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "%s: token %zu has expert %g, expected a whole number from 0 to %d",
                           parameter->name, token, (double)expert, experts - 1);
    }
    return XMOE_OK;
}
