/*
 * reference.h - a second forward pass, for reading and for comparison: the format's description in
 * double precision, one token after the other, straight from the values in the file. No threads, no
 * SIMD, no batches, no code shared with the engine beyond the reading of GGUF.
 */
#ifndef TESTS_REFERENCE_H
#define TESTS_REFERENCE_H

#include "xmoe.h"

typedef struct reference_model reference_model;

/* Reads the whole model as double. Aborts with a message if the file is not what it should be. */
reference_model *reference_load(const char *path);
void reference_free(reference_model *model);

typedef struct {
    double *logprobs; /* [tokens][vocabulary]: log softmax of the logits */
    int32_t *counts;  /* [tokens][layers]: experts chosen; 0 at dense layers */
    int32_t *experts; /* [tokens][layers][E], in order of rank */
    double *weights;  /* [tokens][layers][E], in order of rank */
    int32_t vocabulary, layers, expert_count;
} reference_result;

/* half_kv: keys and values are rounded to half precision, as an engine with an F16 cache stores
 * them; that rounding is part of what such an engine promises to compute. */
reference_result reference_forward(const reference_model *model, const int32_t *tokens,
                                   int32_t count, const xmoe_routing *routing, bool half_kv);
void reference_result_free(reference_result *result);

/* The experts of one token from its scores p, by sorting. share: a threshold looks at so many of
 * the best, with p divided by their sum; 0: at all, as they are. Returns how many. */
int32_t reference_route(const xmoe_router *router, int32_t share, const double *p, int32_t experts,
                        int32_t *chosen, double *weights);

#endif
