/* route_log.c - see route_log.h. */
#include "serve/route_log.h"

#include "base/memory.h"

#include <string.h>

xmoe_status xm_route_log_init(xm_route_log *log, int32_t moe_layers, xmoe_error *error)
{
    log->moe_layers = moe_layers;
    log->layers = xm_calloc((size_t)moe_layers, sizeof *log->layers);
    if (log->layers == NULL)
        return xm_fail_memory(error, "routed experts", (size_t)moe_layers * sizeof *log->layers);
    return XMOE_OK;
}

void xm_route_log_free(xm_route_log *log)
{
    for (int32_t i = 0; log->layers != NULL && i < log->moe_layers; i++) {
        xm_buffer_free(&log->layers[i].counts);
        xm_buffer_free(&log->layers[i].experts);
        xm_buffer_free(&log->layers[i].weights);
    }
    xm_free(log->layers);
    log->layers = NULL;
}

void xm_route_log_append(xm_route_log *log, int32_t layer, int32_t count, const uint16_t *experts,
                         const float *weights)
{
    xm_route_layer *l = &log->layers[layer];
    uint16_t n = (uint16_t)count;
    xm_buffer_append(&l->counts, &n, sizeof n);
    xm_buffer_append(&l->experts, experts, n * sizeof *experts);
    xm_buffer_append(&l->weights, weights, n * sizeof *weights);
}

void xm_route_log_skip(xm_route_log *log, int32_t positions)
{
    const uint16_t unknown = XMOE_ROUTED_UNKNOWN;
    for (int32_t i = 0; i < log->moe_layers; i++)
        for (int32_t p = 0; p < positions; p++)
            xm_buffer_append(&log->layers[i].counts, &unknown, sizeof unknown);
}

bool xm_route_log_failed(const xm_route_log *log)
{
    for (int32_t i = 0; log->layers != NULL && i < log->moe_layers; i++)
        if (log->layers[i].counts.failed || log->layers[i].experts.failed ||
            log->layers[i].weights.failed)
            return true;
    return false;
}

/* Copies element `at` onwards of a buffer; an empty buffer has no data. */
static void copy_out(void *to, const xm_buffer *from, size_t at, size_t bytes)
{
    if (bytes > 0)
        memcpy(to, from->data + at, bytes);
}

xmoe_status xm_route_log_weave(const xm_route_log *log, xmoe_routed_experts *routed, void **memory,
                               xmoe_error *error)
{
    size_t layers = (size_t)log->moe_layers, pairs = 0;
    size_t positions = layers > 0 ? log->layers[0].counts.length / sizeof(uint16_t) : 0;
    for (size_t i = 0; i < layers; i++)
        pairs += log->layers[i].experts.length / sizeof(uint16_t);
    size_t bytes = pairs * sizeof(float) + (pairs + positions * layers) * sizeof(uint16_t);
    char *block = xm_calloc(bytes + layers * sizeof(size_t), 1);
    *memory = block;
    if (block == NULL)
        return xm_fail_memory(error, "routed experts", bytes);
    size_t *taken = (size_t *)(void *)block; /* pairs woven so far, per layer */
    float *weights = (float *)(void *)(block + layers * sizeof(size_t));
    uint16_t *experts = (uint16_t *)(void *)(weights + pairs), *counts = experts + pairs;
    *routed = (xmoe_routed_experts){.position_count = (int32_t)positions,
                                    .moe_layers = log->moe_layers,
                                    .counts = counts,
                                    .experts = experts,
                                    .weights = weights};
    for (size_t p = 0; p < positions; p++)
        for (size_t i = 0; i < layers; i++) {
            const xm_route_layer *l = &log->layers[i];
            uint16_t count;
            copy_out(&count, &l->counts, p * sizeof count, sizeof count);
            *counts++ = count;
            if (count == XMOE_ROUTED_UNKNOWN)
                continue;
            copy_out(experts, &l->experts, taken[i] * sizeof *experts, count * sizeof *experts);
            copy_out(weights, &l->weights, taken[i] * sizeof *weights, count * sizeof *weights);
            taken[i] += count;
            experts += count;
            weights += count;
        }
    return XMOE_OK;
}
