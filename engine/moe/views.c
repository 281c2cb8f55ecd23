/*
 * views.c - see views.h. With m the largest view of an expert, b_v = z_v - m <= 0 and
 * w_v = exp(b_v / T), the mix is m + sum(w_v b_v) / sum(w_v): nothing overflows, and equal views
 * give themselves exactly.
 */
#include "moe/views.h"

#include <math.h>

float xm_mix_expert(const float *z, int32_t views, size_t stride, float temperature, float *shares)
{
    float largest = z[0], weights = 0.0f, sum = 0.0f;
    for (int32_t v = 1; v < views; v++)
        if (z[(size_t)v * stride] > largest)
            largest = z[(size_t)v * stride];
    for (int32_t v = 0; v < views; v++) {
        float below = z[(size_t)v * stride] - largest;
        float weight = (float)exp((double)(below / temperature));
        weights += weight;
        sum += weight * below;
        if (shares != NULL)
            shares[(size_t)v * stride] = weight;
    }
    for (int32_t v = 0; v < views && shares != NULL; v++)
        shares[(size_t)v * stride] /= weights;
    return largest + sum / weights;
}

void xm_mix_views(const float *z, int32_t views, int32_t experts, float temperature, float *logits)
{
    for (int32_t e = 0; e < experts; e++)
        logits[e] = xm_mix_expert(z + e, views, (size_t)experts, temperature, NULL);
}
