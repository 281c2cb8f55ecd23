/*
 * evaluate.h - loss on held-out text as serving would give it: no capacity limit, no dropped pairs.
 *
 * Text is read in windows of the pass's length that begin `stride` tokens apart; each token but the
 * first counts once, in the first window that predicts it. stride = length costs least; a smaller
 * one gives every token at least length - stride tokens of context.
 */
#ifndef XM_TRAIN_EVALUATE_H
#define XM_TRAIN_EVALUATE_H

#include "train/pass.h"
#include "train/token_file.h"

typedef struct {
    double nats; /* sum; end-of-text tokens count */
    uint64_t tokens;
    uint64_t bytes;                 /* of text; an end-of-text token has none */
    double active[XMOE_MAX_LAYERS]; /* per block: experts, summed over tokens */
} xm_evaluation;

double xm_bits_per_byte(const xm_evaluation *evaluation);
double xm_nats_per_token(const xm_evaluation *evaluation);

typedef struct xm_evaluator xm_evaluator;

/* Evaluates batches of `sequences` windows. The tokenizer gives the bytes of a token. */
xmoe_status xm_evaluator_create(const xm_network *network, const xm_tokenizer *tokenizer,
                                xm_pool *pool, int32_t sequences, xm_evaluator **evaluator,
                                xmoe_error *error);
void xm_evaluator_free(xm_evaluator *evaluator);

/* max_windows: so many at equal distances over the text; 0: all. Refuses text of fewer than two
 * tokens; INTERNAL if the loss is not finite. */
xmoe_status xm_evaluate(xm_evaluator *evaluator, const float *parameters, const xm_token_file *text,
                        int32_t stride, int32_t max_windows, xm_evaluation *evaluation,
                        xmoe_error *error);

#endif
