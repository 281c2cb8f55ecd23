/* gradient_check.c - see gradient_check.h. */
#include "gradient_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"

#include <math.h>

enum { CHECKED = 6 }; /* elements of each tensor */

xm_network *gradient_network(const xm_network_shape *shape)
{
    xm_network *network = NULL;
    xmoe_error error;
    if (xm_network_create(shape, &network, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return network;
}

float *gradient_parameters(const xm_network *network)
{
    float *parameters = xm_calloc_aligned(network->total, sizeof(float));
    assert_non_null(parameters);
    xm_network_init(network, 5, parameters);
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        for (size_t j = p->offset; !p->fixed && j < p->offset + p->count; j++)
            parameters[j] += 0.05f * (float)xm_random_normal(11, 0, j);
    }
    return parameters;
}

void gradient_tokens(int32_t *tokens, int32_t *targets, int32_t rows, int32_t vocabulary)
{
    for (int32_t row = 0; row < rows; row++) {
        tokens[row] = (int32_t)(xm_random_bits(3, 1, (uint64_t)row) % (uint64_t)vocabulary);
        targets[row] = (int32_t)(xm_random_bits(3, 2, (uint64_t)row) % (uint64_t)vocabulary);
    }
}

/* Central difference of the loss in one parameter. */
static double difference(gradient_loss loss, const void *problem, double *w, size_t index)
{
    const double h = 1e-6, kept = w[index];
    w[index] = kept + h;
    double above = loss(problem, w);
    w[index] = kept - h;
    double below = loss(problem, w);
    w[index] = kept;
    return (above - below) / (2 * h);
}

void gradient_check(const char *name, const xm_network *network, const float *gradients,
                    gradient_loss loss, const void *problem, double *w)
{
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        const float *own = gradients + p->offset;
        size_t largest = 0;
        for (size_t j = 0; j < p->count; j++)
            largest = fabsf(own[j]) > fabsf(own[largest]) ? j : largest;
        double scale = fabs((double)own[largest]);
        assert_true(p->fixed ? scale == 0 : scale > 0);
        for (size_t j = 0; j < CHECKED && !p->fixed; j++) {
            size_t at = j == 0 ? largest : xm_random_bits(7, p->offset, j) % p->count;
            double expected = difference(loss, problem, w, p->offset + at), found = (double)own[at];
            if (!(fabs(found - expected) <= 1e-3 * fabs(expected) + 1e-4 * scale))
                fail_msg("%s: gradient of %s[%zu] is %.8g, reference %.8g", name, p->name, at,
                         found, expected);
        }
    }
}
