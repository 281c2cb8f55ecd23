/*
 * random.h - a counter-based random generator: a draw is a pure function of its key and counter, so
 * that results do not depend on who drew before. The mixer is SplitMix64's finaliser (Steele, Lea,
 * Flood 2014), applied to the key and counter words one after the other.
 */
#ifndef XM_BASE_RANDOM_H
#define XM_BASE_RANDOM_H

#include <math.h>
#include <stdint.h>

static inline uint64_t xm_random_mix(uint64_t x)
{
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* 64 random bits for (seed, stream, counter). */
static inline uint64_t xm_random_bits(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return xm_random_mix(xm_random_mix(xm_random_mix(seed) ^ stream) ^ counter);
}

/* Uniform in [0, 1), 53 bits. */
static inline double xm_random_uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(xm_random_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

/* Standard normal by Box and Muller. */
static inline double xm_random_normal(uint64_t seed, uint64_t stream, uint64_t counter)
{
    double u = 1.0 - xm_random_uniform(seed, stream, 2 * counter);
    double v = xm_random_uniform(seed, stream, 2 * counter + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

#endif
