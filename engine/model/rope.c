/*
 * rope.c - see rope.h. Angles and what is made of them are computed in double and rounded once, so
 * that they do not depend on the C library's float functions.
 */
#include "model/rope.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925;

/* The pair, counted in fractions, that makes so many turns over the original context. */
static double pair_of_turns(const xm_rope_scaling *scaling, int32_t dimensions, double turns)
{
    return dimensions * log(scaling->original_context / (turns * two_pi)) /
           (2.0 * log(scaling->base));
}

/* YaRN: the share of the unscaled frequency, 1 for pairs that turn fast, 0 for slow ones. */
static double unscaled_share(const xm_rope_scaling *scaling, int32_t dimensions, int32_t pair)
{
    double low = pair_of_turns(scaling, dimensions, scaling->yarn_fast);
    double high = pair_of_turns(scaling, dimensions, scaling->yarn_slow);
    if (scaling->yarn_whole_pairs) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, dimensions - 1);
    double ramp = (pair - low) / fmax(high - low, 0.001);
    return 1.0 - fmin(fmax(ramp, 0.0), 1.0);
}

void xm_rope_make_frequencies(const xm_rope_scaling *scaling, xm_rope *rope)
{
    for (int32_t i = 0; i < rope->dimensions / 2; i++) {
        double frequency = pow(scaling->base, -2.0 * i / rope->dimensions);
        if (scaling->divisors != NULL)
            frequency /= (double)scaling->divisors[i];
        double share = scaling->yarn ? unscaled_share(scaling, rope->dimensions, i) : 0.0;
        frequency *= share + (1.0 - share) / scaling->factor;
        rope->frequencies[i] = (float)frequency;
    }
}

/* The angle is rounded to F32 as models are trained with it: at large positions that matters more
 * than what is done with it afterwards. */
void xm_rope_turns(const xm_rope *rope, int32_t position, float *turns)
{
    for (int32_t i = 0; i < rope->dimensions / 2; i++) {
        float angle = (float)position * rope->frequencies[i];
        turns[2 * i] = (float)cos((double)angle) * rope->magnitude;
        turns[2 * i + 1] = (float)sin((double)angle) * rope->magnitude;
    }
}

/* direction -1 turns back. */
static inline void turn(const xm_rope *rope, const float *turns, float direction, float *x)
{
    int32_t pairs = rope->dimensions / 2;
    int32_t step = rope->halves ? 1 : 2, apart = rope->halves ? pairs : 1;
    for (int32_t i = 0; i < pairs; i++) {
        float *first = x + i * step, *second = first + apart;
        float a = *first, b = *second, cosine = turns[2 * i], sine = direction * turns[2 * i + 1];
        *first = a * cosine - b * sine;
        *second = b * cosine + a * sine;
    }
}

void xm_rope_apply(const xm_rope *rope, const float *turns, float *x)
{
    turn(rope, turns, 1.0f, x);
}

void xm_rope_transpose(const xm_rope *rope, const float *turns, float *x)
{
    turn(rope, turns, -1.0f, x);
}
