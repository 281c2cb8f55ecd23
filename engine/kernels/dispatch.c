/*
 * dispatch.c - which variant of the kernels runs: what the build contains, what this CPU and its
 * operating system support, and what the user asks for. No state: detection is cheap enough to
 * repeat. Code of a variant is never entered before its check has passed.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static bool runs_always(void)
{
    return true;
}

#if defined(__x86_64__)
/* Not every compiler's cpu_supports knows this name. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* The compiler's cpu_supports also asks whether the operating system saves the registers. */
static bool runs_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

typedef struct {
    const xm_kernels *kernels;
    bool (*runs)(void);
} variant;

/* Slowest first. */
static const variant variants[] = {
    {&xm_kernels_scalar, runs_always},
#if defined(__x86_64__)
    {&xm_kernels_avx2, runs_avx2},
    {&xm_kernels_avx512, runs_avx512},
#endif
};

enum { VARIANT_COUNT = sizeof variants / sizeof *variants };

int32_t xm_kernels_available(const xm_kernels *tables[4])
{
    int32_t count = 0;

    for (size_t i = 0; i < VARIANT_COUNT; i++)
        if (variants[i].runs())
            tables[count++] = variants[i].kernels;
    return count;
}

xmoe_status xm_kernels_select(const char *isa, const xm_kernels **kernels, xmoe_error *error)
{
    const char *origin = isa ? "isa" : "XMOE_ISA";

    *kernels = NULL;
    if (!isa)
        isa = getenv("XMOE_ISA");
    if (!isa || !*isa) {
        for (size_t i = 0; i < VARIANT_COUNT; i++) /* the best comes last */
            if (variants[i].runs())
                *kernels = variants[i].kernels;
        return XMOE_OK;
    }
    for (size_t i = 0; i < VARIANT_COUNT; i++) {
        if (strcmp(variants[i].kernels->name, isa) != 0)
            continue;
        if (!variants[i].runs())
            return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                           "%s asks for the %s kernels, which this CPU or its operating system "
                           "cannot run",
                           origin, isa);
        *kernels = variants[i].kernels;
        return XMOE_OK;
    }
    return xm_fail_argument(error, "isa",
                            "%s is \"%.32s\", but this build has the kernels scalar"
#if defined(__x86_64__)
                            ", avx2 and avx512",
#else
                            " only",
#endif
                            origin, isa);
}
