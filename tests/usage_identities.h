/* usage_identities.h - what holds in every layer of a usage, whatever was counted. */
#ifndef XM_TESTS_USAGE_IDENTITIES_H
#define XM_TESTS_USAGE_IDENTITIES_H

#include "xmoe.h"

/* Experts' counts, and the histogram weighted by active experts, add up to the activations; the
 * histogram adds up to the tokens. */
void usage_assert_identities(const xmoe_usage *usage);

#endif
