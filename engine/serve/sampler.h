/*
 * sampler.h - from logits to one token: a pure function of the logits, the history, the parameters
 * and (seed, choice, position).
 *
 * Order of the steps (each off at its neutral value):
 *   1. logit_bias is added; -100 or less bans; so does not being in `allowed`
 *   2. repetition penalty over prompt and output, then frequency and presence penalty over the
 *      output
 *   3. temperature; 0 ends here with the largest value, ties to the lower id
 *   4. top_k, ranked by value, ties to the lower id; then softmax over what is left
 *   5. top_p: the shortest prefix in order of rank whose mass reaches top_p
 *   6. min_p: only what has at least min_p of the best one's probability
 *   7. one uniform draw over the rest, walked in order of id
 * Tokens less probable than e^-60 of the best one are never drawn.
 */
#ifndef XM_SERVE_SAMPLER_H
#define XM_SERVE_SAMPLER_H

#include "kernels/kernels.h"

typedef struct {
    float value;
    int32_t index;
} xm_ranked;

/* Work space of one thread, for one vocabulary size. */
typedef struct {
    int32_t vocabulary;
    float *values;     /* [vocabulary, up to a multiple of 16] */
    int32_t *ids;      /* [vocabulary] */
    xm_ranked *ranked; /* [vocabulary] */
    uint32_t *seen;    /* [vocabulary]; all zero between calls */
    uint64_t *allowed; /* [vocabulary / 64, rounded up]: the caller's, for xm_sample_input */
} xm_sampler_scratch;

xmoe_status xm_sampler_scratch_init(xm_sampler_scratch *scratch, int32_t vocabulary,
                                    xmoe_error *error);
void xm_sampler_scratch_free(xm_sampler_scratch *scratch);

typedef struct {
    const float *logits; /* [vocabulary] */
    const int32_t *prompt;
    int32_t prompt_length;
    const int32_t *output; /* tokens generated before */
    int32_t output_length;
    const xmoe_sampling *sampling;
    int32_t choice;
    const uint64_t *allowed; /* token t by bit t % 64 of word t / 64; NULL: all */
} xm_sample_input;

typedef enum {
    XM_SAMPLE_OK,
    XM_SAMPLE_NOT_FINITE, /* a logit is NaN or +infinity */
    XM_SAMPLE_ALL_BANNED  /* no token is left */
} xm_sample_status;

/* The position that the draw depends on is prompt_length + output_length. */
xm_sample_status xm_sample(const xm_kernels *kernels, xm_sampler_scratch *scratch,
                           const xm_sample_input *input, int32_t *token);

/* The log-probability of token under the unmodified logits, and the top_count most probable tokens,
 * best first, ties to the lower id. */
void xm_logprobs(const xm_kernels *kernels, const float *logits, int32_t vocabulary, int32_t token,
                 float *logprob, xmoe_token_logprob *top, int32_t top_count);

#endif
