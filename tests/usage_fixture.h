/*
 * usage_fixture.h - what the tests of usages share: counters of random choices on a simulated
 * clock, and what must be equal in two usages that count the same.
 */
#ifndef XM_TESTS_USAGE_FIXTURE_H
#define XM_TESTS_USAGE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "serve/usage.h"

enum { EXPERTS = 10, LAYERS = 3, ROWS = 3 };

extern const int32_t usage_layer_numbers[LAYERS];
extern int64_t usage_seconds; /* the simulated clock; its Unix time is 1000000 later */

xm_usage *usage_counters_of(const int32_t *layers, int32_t layer_count, int32_t experts);
xm_usage *usage_counters(void);
/* Steps of ROWS random rows of both phases, numbered [from, to): the same number, the same step. */
void usage_count_steps(xm_usage *usage, uint64_t from, uint64_t to);

xmoe_usage *usage_get(xm_usage *usage, xmoe_phase phase, int32_t window);
void usage_get_phases(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES]);
void usage_free_phases(xmoe_usage *phases[XMOE_PHASES]);
/* A usage made of nothing but what another one gives. */
xmoe_usage *usage_made_of(const xmoe_usage *from);

/* Bit for bit, derived values included; since and window may differ. */
void usage_assert_same(const xmoe_usage *a, const xmoe_usage *b);
void usage_assert_same_phases(xmoe_usage *a[XMOE_PHASES], xmoe_usage *b[XMOE_PHASES]);

#endif
