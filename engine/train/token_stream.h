/*
 * token_stream.h - which tokens a training step sees: random windows of several domains.
 *
 * A sequence of a step is a pure function of (seed, step, sequence), so a run that resumes sees
 * what it would have seen, and nothing about the stream needs to be saved but seed and step.
 */
#ifndef XM_TRAIN_TOKEN_STREAM_H
#define XM_TRAIN_TOKEN_STREAM_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint16_t *tokens;
    size_t count;
    double weight; /* share of the sequences, relative to the others'; 0: never drawn */
} xm_stream_domain;

typedef struct {
    const xm_stream_domain *domains;
    int32_t domain_count;
    uint64_t seed;
    int32_t sequences, length; /* of a step */
} xm_token_stream;

/* Which domain the sequence is from. Domains are drawn stratified: each step holds the domains in
 * proportion to their weights, up to rounding. */
int32_t xm_token_stream_domain(const xm_token_stream *stream, uint64_t step, int32_t sequence);
/* Fills tokens and targets, [length] each: target i is the token after token i. Every domain drawn
 * must hold more than length tokens. */
void xm_token_stream_window(const xm_token_stream *stream, uint64_t step, int32_t sequence,
                            int32_t *tokens, int32_t *targets);

#endif
