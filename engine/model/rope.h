/*
 * rope.h - rotary position embedding (Su et al. 2021) with the scalings that models come with.
 *
 * Pairs of elements of a query or key turn by an angle that is the token's position times the
 * pair's frequency. What a scaling does to long positions is in the frequencies, which are computed
 * once at load. Pure functions; any thread.
 */
#ifndef XM_MODEL_ROPE_H
#define XM_MODEL_ROPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t dimensions; /* even; the first so many elements turn; 0: none do */
    bool halves;        /* pairs are (i, i + dimensions / 2); else (2i, 2i + 1) */
    float magnitude;    /* factor of what turns */
    float *frequencies; /* [dimensions / 2] radians per position */
} xm_rope;

/* How frequencies are made. factor 1 and no divisors: base^(-2i / dimensions). */
typedef struct {
    double base;
    double factor;         /* by which positions exceed those of training, >= 1 */
    const float *divisors; /* [dimensions / 2] of the frequencies, or NULL (Llama 3, LongRoPE) */
    bool yarn;             /* YaRN (Peng et al. 2023); else all frequencies are divided by factor */
    bool yarn_whole_pairs; /* the ramp's ends are rounded outwards to whole pairs */
    double yarn_fast, yarn_slow; /* turns over the original context at the ramp's ends */
    double original_context;     /* positions seen in training; for YaRN */
} xm_rope_scaling;

/* Fills rope->frequencies; dimensions is set. */
void xm_rope_make_frequencies(const xm_rope_scaling *scaling, xm_rope *rope);

/* turns[2i], turns[2i + 1] = cosine and sine of pair i at the position, times magnitude. */
void xm_rope_turns(const xm_rope *rope, int32_t position, float *turns);

/* Turns the pairs of x in place. */
void xm_rope_apply(const xm_rope *rope, const float *turns, float *x);
/* Turns them the other way: from the gradient of what xm_rope_apply gives to that of x. */
void xm_rope_transpose(const xm_rope *rope, const float *turns, float *x);

#endif
