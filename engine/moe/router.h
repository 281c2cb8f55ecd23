/*
 * router.h - from router logits to the experts of each token (XMoE, Yang et al. 2024, section 3.2).
 *
 * Pure functions of one row: what a row gets never depends on its neighbours.
 */
#ifndef XM_MOE_ROUTER_H
#define XM_MOE_ROUTER_H

#include "base/error.h"

enum { XM_MAX_EXPERTS = 1024 }; /* experts of one layer that the engine accepts */

/* What a MoE layer's router decided for the rows of one step. Row r chose count[r] experts: ids
 * expert[r * experts + i] with routing weights weight[r * experts + i], i in order of rank. */
typedef struct {
    int32_t rows;
    int32_t experts;
    const int32_t *count;
    const uint16_t *expert;
    const float *weight;
} xm_selection;

/* Chooses the experts of one row from its probabilities p[experts] (softmax, F32): descending p,
 * ties to the lower index; rank r is taken while p_1 + ... + p_{r-1} < threshold (summed in F32 in
 * order of rank), or while r <= top_k, or all; then floor and cap; then weights are p, divided by
 * their sum where router->normalize. NaN probabilities sort last. Returns how many; at least 1. */
int32_t xm_route(const xmoe_router *router, const float *p, int32_t experts, uint16_t *chosen,
                 float *weights);

#endif
