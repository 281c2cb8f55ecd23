/* usage_identities.c - see usage_identities.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "usage_identities.h"

void usage_assert_identities(const xmoe_usage *usage)
{
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *l = &usage->layers[i];
        uint64_t counts = 0, weighted = 0, tokens = 0;
        for (int32_t e = 0; e < l->experts; e++)
            counts += l->counts[e];
        for (int32_t n = 0; n <= l->experts; n++) {
            weighted += (uint64_t)n * l->active_histogram[n];
            tokens += l->active_histogram[n];
        }
        assert_int_equal(counts, l->activations);
        assert_int_equal(weighted, l->activations);
        assert_int_equal(tokens, l->tokens);
    }
}
