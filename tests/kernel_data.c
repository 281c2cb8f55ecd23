/*
 * kernel_data.c - see kernel_data.h.
 */
#include "kernel_data.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"

const xm_kernels *tables[4];
int32_t table_count;

int kernel_setup(void **state)
{
    (void)state;
    table_count = xm_kernels_available(tables);
    return table_count > 0 ? 0 : -1;
}

static uint64_t draws;

uint64_t random_bits(void)
{
    return xm_random_bits(7, 1, draws++);
}

float random_normal(void)
{
    return (float)xm_random_normal(7, 2, draws++);
}

static float random_value(int mode)
{
    static const float special[] = {NAN,     INFINITY, -INFINITY, 0.0f,   -0.0f,    1e-45f,
                                    -1e-40f, FLT_MIN,  FLT_MAX,   -3e38f, 1e-30f,   88.5f,
                                    -87.0f,  -87.5f,   -104.0f,   65504,  -65520.0f};
    uint32_t bits = (uint32_t)random_bits();
    float any;

    if (mode == PLAIN || bits % 8 != 0)
        return random_normal();
    if (bits % 16 == 0)
        return special[random_bits() % (sizeof special / sizeof *special)];
    bits = (uint32_t)random_bits();
    memcpy(&any, &bits, sizeof any);
    return any;
}

float *random_floats(size_t count, int mode)
{
    float *x = malloc(count * sizeof *x);

    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = random_value(mode);
    return x;
}

void *copy_of(const void *data, size_t bytes)
{
    void *copy = malloc(bytes);

    assert_non_null(copy);
    memcpy(copy, data, bytes);
    return copy;
}

void expect_same(const char *what, const char *isa, const float *expected, const float *found,
                 size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (isnan(expected[i]) && isnan(found[i]))
            continue;
        if (memcmp(&expected[i], &found[i], sizeof *expected) != 0)
            fail_msg("%s, %s: element %zu of %zu is %a, expected %a", what, isa, i, count,
                     (double)found[i], (double)expected[i]);
    }
}

void expect_near(const char *what, double found, double expected, double bound)
{
    if (!(fabs(found - expected) <= bound))
        fail_msg("%s: %.9g, expected %.9g within %.3g", what, found, expected, bound);
}
