/*
 * lanes.h - 16 lanes side by side: the small language in which the SIMD kernels are written once.
 *
 * Included only by *_simd.c files, which are compiled once per instruction set with XM_ISA defined
 * as its name. lanes_avx2.h and lanes_avx512.h give the same types and functions:
 *
 *   xm_lanes   16 floats          xm_ints   16 int32          xm_pairs   16 pairs of int16
 *
 * Everything here is static and inlined: code for an instruction set must never be merged by the
 * linker with that for another, nor run before dispatch.c has asked the CPU. Lane l of a result
 * depends on lane l of the operands only, except in the folds.
 */
#ifndef XM_KERNELS_LANES_H
#define XM_KERNELS_LANES_H

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

#define XM_INLINE static inline __attribute__((always_inline))

/* The name of an exported function or table of this variant: xm_softmax -> xm_softmax_avx2. */
#define XM_JOIN_(name, isa) name##_##isa
#define XM_JOIN(name, isa)  XM_JOIN_(name, isa)
#define XM_VARIANT(name)    XM_JOIN(name, XM_ISA)

/* How far loops over the pairs of a block are written out. Checks at each access would make that
 * code huge and slow to compile: not under the address sanitizer. */
#if defined(__SANITIZE_ADDRESS__)
enum { XM_UNROLL = 1 };
#else
enum { XM_UNROLL = 16 };
#endif

#if defined(__AVX512F__)
#include "kernels/lanes_avx512.h"
#else
#include "kernels/lanes_avx2.h"
#endif

enum { XM_MOST_TILE = 8 }; /* rows of the largest tile of any variant */

/* Asks for `bytes` that a walk over a matrix reaches XM_AHEAD bytes after p; they may lie beyond
 * its end. The hardware follows a plain stream by itself; with several rows at work per weight, its
 * reach is too short. */
XM_INLINE void xm_prefetch(const void *p, size_t bytes)
{
    enum { XM_AHEAD = 4096 };

#pragma GCC unroll 16
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + XM_AHEAD + i);
}

/* The shared exponential; steps and range in exp.h. */
XM_INLINE xm_lanes xm_lanes_exp(xm_lanes x)
{
    xm_lanes shift = xm_lanes_set(XM_EXP_SHIFT);
    xm_lanes one = xm_lanes_set(1.0f);
    xm_lanes t = xm_lanes_fma(x, xm_lanes_set(XM_EXP_LOG2E), shift);
    xm_lanes n = xm_lanes_sub(t, shift);
    xm_lanes r = xm_lanes_fma(n, xm_lanes_set(-XM_EXP_LN2_HIGH), x);
    xm_lanes p;

    r = xm_lanes_fma(n, xm_lanes_set(-XM_EXP_LN2_LOW), r);
    p = xm_lanes_fma(xm_lanes_set(XM_EXP_C6), r, xm_lanes_set(XM_EXP_C5));
    p = xm_lanes_fma(p, r, xm_lanes_set(XM_EXP_C4));
    p = xm_lanes_fma(p, r, xm_lanes_set(XM_EXP_C3));
    p = xm_lanes_fma(p, r, xm_lanes_set(XM_EXP_C2));
    p = xm_lanes_fma(p, r, one);
    p = xm_lanes_fma(p, r, one);
    p = xm_lanes_mul(p, xm_lanes_power_of_two(t));
    p = xm_lanes_where_less(x, xm_lanes_set(XM_EXP_LOWEST), xm_lanes_set(0.0f), p);
    return xm_lanes_where_less(xm_lanes_set(XM_EXP_HIGHEST), x, xm_lanes_set(INFINITY), p);
}

#endif
