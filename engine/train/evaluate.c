/*
 * evaluate.c - see evaluate.h.
 */
#include "train/evaluate.h"

#include "base/memory.h"

#include <math.h>

struct xm_evaluator {
    const xm_network *network;
    xm_pass *pass;
    int32_t sequences, length;
    int32_t *tokens, *targets; /* [sequences * length] */
    uint32_t *token_bytes;     /* [vocabulary] */
};

double xm_bits_per_byte(const xm_evaluation *evaluation)
{
    return evaluation->bytes > 0 ? evaluation->nats / M_LN2 / (double)evaluation->bytes : 0;
}

double xm_nats_per_token(const xm_evaluation *evaluation)
{
    return evaluation->tokens > 0 ? evaluation->nats / (double)evaluation->tokens : 0;
}

xmoe_status xm_evaluator_create(const xm_network *network, const xm_tokenizer *tokenizer,
                                xm_pool *pool, int32_t sequences, xm_evaluator **evaluator_out,
                                xmoe_error *error)
{
    *evaluator_out = NULL;
    xm_evaluator *evaluator = xm_calloc(1, sizeof *evaluator);
    if (evaluator == NULL)
        return xm_fail_memory(error, "evaluator", sizeof *evaluator);
    *evaluator = (xm_evaluator){
        .network = network, .sequences = sequences, .length = network->shape.context};
    const xm_pass_options options = {.sequences = sequences, .length = evaluator->length};
    xmoe_status status = xm_pass_create(network, pool, &options, &evaluator->pass, error);
    size_t rows = (size_t)sequences * (size_t)evaluator->length;
    size_t vocabulary = (size_t)network->shape.vocabulary;
    if (status == XMOE_OK) {
        evaluator->tokens = xm_calloc(rows, sizeof(int32_t));
        evaluator->targets = xm_calloc(rows, sizeof(int32_t));
        evaluator->token_bytes = xm_calloc(vocabulary, sizeof(uint32_t));
        if (evaluator->tokens == NULL || evaluator->targets == NULL ||
            evaluator->token_bytes == NULL)
            status = xm_fail_memory(error, "evaluator", rows * sizeof(int32_t));
    }
    if (status != XMOE_OK || evaluator->token_bytes == NULL) {
        xm_evaluator_free(evaluator);
        return status;
    }
    for (int32_t id = 0; id < network->shape.vocabulary; id++) {
        size_t length = 0;
        (void)xm_tokenizer_bytes(tokenizer, id, &length);
        evaluator->token_bytes[id] = xm_tokenizer_is_special(tokenizer, id) ? 0 : (uint32_t)length;
    }
    *evaluator_out = evaluator;
    return XMOE_OK;
}

void xm_evaluator_free(xm_evaluator *evaluator)
{
    if (evaluator == NULL)
        return;
    xm_pass_free(evaluator->pass);
    xm_free(evaluator->tokens);
    xm_free(evaluator->targets);
    xm_free(evaluator->token_bytes);
    xm_free(evaluator);
}

/* Fills sequence `sequence` of the batch with the window that begins at begin and counts the
 * predictions of tokens from first_counted on. */
static void fill_window(xm_evaluator *evaluator, const xm_token_file *text, size_t begin,
                        size_t first_counted, int32_t sequence, xm_evaluation *evaluation)
{
    int32_t *tokens = evaluator->tokens + (size_t)sequence * (size_t)evaluator->length;
    int32_t *targets = evaluator->targets + (size_t)sequence * (size_t)evaluator->length;
    for (size_t i = 0; i < (size_t)evaluator->length; i++) {
        size_t at = begin + i;
        tokens[i] = at < text->count ? text->tokens[at] : XM_END_OF_TEXT;
        targets[i] = -1;
        if (at + 1 < text->count && at + 1 >= first_counted) {
            targets[i] = text->tokens[at + 1];
            evaluation->bytes += evaluator->token_bytes[targets[i]];
        }
    }
}

static void run_batch(xm_evaluator *evaluator, const float *parameters, int32_t filled,
                      xm_evaluation *evaluation)
{
    for (int32_t i = filled * evaluator->length; i < evaluator->sequences * evaluator->length;
         i++) {
        evaluator->tokens[i] = XM_END_OF_TEXT;
        evaluator->targets[i] = -1;
    }
    xm_pass_result result;
    xm_pass_run(evaluator->pass, parameters, evaluator->tokens, evaluator->targets, NULL, &result);
    evaluation->nats += result.loss * (double)result.tokens;
    evaluation->tokens += (uint64_t)result.tokens;
    for (int32_t block = 0; block < evaluator->network->shape.blocks; block++)
        evaluation->active[block] += result.active[block];
}

xmoe_status xm_evaluate(xm_evaluator *evaluator, const float *parameters, const xm_token_file *text,
                        int32_t stride, int32_t max_windows, xm_evaluation *evaluation,
                        xmoe_error *error)
{
    *evaluation = (xm_evaluation){0};
    size_t length = (size_t)evaluator->length, step = (size_t)stride;
    if (stride < 1 || stride > evaluator->length)
        return xm_fail_argument(error, "stride", "stride is %d, must be 1 to %d", stride,
                                evaluator->length);
    if (text->count < 2)
        return xm_fail_argument(error, "text", "the text is empty");
    size_t predictions = text->count - 1;
    size_t windows = predictions <= length ? 1 : 1 + (predictions - length + step - 1) / step;
    size_t used = max_windows > 0 && (size_t)max_windows < windows ? (size_t)max_windows : windows;
    int32_t filled = 0;
    for (size_t i = 0; i < used; i++) {
        size_t window = i * windows / used, begin = window * step;
        size_t first_counted = window == 0 ? 1 : begin + length - step + 1;
        fill_window(evaluator, text, begin, first_counted, filled, evaluation);
        if (++filled == evaluator->sequences || i + 1 == used) {
            run_batch(evaluator, parameters, filled, evaluation);
            filled = 0;
        }
    }
    if (!isfinite(evaluation->nats))
        return xm_fail(error, XMOE_ERROR_INTERNAL, "the loss on held-out text is not finite");
    return XMOE_OK;
}
