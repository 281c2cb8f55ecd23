/*
 * route_log.h - the record behind xmoe_routed_experts: which experts each position of one sequence
 * took. Layers arrive one after the other within a step, so each has its own growing arrays; they
 * are woven together once, at the end.
 */
#ifndef XM_SERVE_ROUTE_LOG_H
#define XM_SERVE_ROUTE_LOG_H

#include "base/buffer.h"
#include "base/error.h"

typedef struct {
    xm_buffer counts;  /* uint16_t per position */
    xm_buffer experts; /* uint16_t per choice */
    xm_buffer weights; /* float per choice */
} xm_route_layer;

typedef struct {
    int32_t moe_layers;
    xm_route_layer *layers; /* [moe_layers]; NULL: nothing is logged */
} xm_route_log;

xmoe_status xm_route_log_init(xm_route_log *log, int32_t moe_layers, xmoe_error *error);
void xm_route_log_free(xm_route_log *log);

/* The next position's choice in one layer. */
void xm_route_log_append(xm_route_log *log, int32_t layer, int32_t count, const uint16_t *experts,
                         const float *weights);
/* The next `positions` positions are unknown in all layers. */
void xm_route_log_skip(xm_route_log *log, int32_t positions);
/* True if an append ran out of memory. */
bool xm_route_log_failed(const xm_route_log *log);

/* Fills *routed but first_position; *memory owns its arrays (xm_free). */
xmoe_status xm_route_log_weave(const xm_route_log *log, xmoe_routed_experts *routed, void **memory,
                               xmoe_error *error);

#endif
