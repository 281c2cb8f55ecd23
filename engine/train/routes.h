/*
 * routes.h - the router of one MoE layer in training: which rows go to which experts, with the
 * capacity limit of the paper, and the gradient of the router's logits.
 *
 * After xm_routes_choose each kept (row, expert) pair has a slot. Slots are sorted by expert, then
 * by row, so that an expert's rows are one range; a row lists its slots in order of rank.
 */
#ifndef XM_TRAIN_ROUTES_H
#define XM_TRAIN_ROUTES_H

#include "base/pool.h"

typedef struct {
    xmoe_router_type type;
    float threshold;
    int32_t top_k;
    float capacity_factor; /* 0: no capacity limit */
    int32_t min_capacity;
    float balance_weight; /* of E * sum_e mean(p_e) * mean(1[e is top-1]) */
    float entropy_weight; /* of the mean entropy of p; keeps choices few; 0: off */
} xm_route_rule;

typedef struct {
    xm_route_rule rule;
    int32_t rows, experts;
    int32_t capacity;      /* rows per expert */
    size_t slots;          /* capacity of the slot arrays */
    float *probabilities;  /* [rows][experts] */
    uint16_t *chosen;      /* [rows][experts]: experts by rank; DROPPED where capacity ran out */
    int32_t *wanted;       /* [rows]: experts that the row chose, dropped ones included */
    int32_t *row_begin;    /* [rows + 1]: range of row_slots */
    int32_t *row_slots;    /* [slots] */
    int32_t *expert_begin; /* [experts + 1]: range of slots */
    int32_t *slot_row;     /* [slots] */
    float *slot_gate;      /* [slots]: p of the pair */
    int32_t *order;        /* [experts]: by falling number of rows: tasks in this order */
    uint64_t *keys;        /* [rows]: scratch for dropping */
    float *top1;           /* [experts]: share of rows whose first choice it is */
    float *mean_p;         /* [experts]: mean probability */
    float balance_loss, entropy; /* of the last choice, not weighted */
    int64_t dropped;             /* pairs */
} xm_routes;

/* capacity = max(min_capacity, ceil(rows / experts * factor)), at most rows. */
int32_t xm_route_capacity(const xm_route_rule *rule, int32_t rows, int32_t experts);

xmoe_status xm_routes_create(const xm_route_rule *rule, int32_t rows, int32_t experts,
                             xm_routes *routes, xmoe_error *error);
void xm_routes_free(xm_routes *routes);

/* From logits in routes->probabilities, which become probabilities. */
void xm_routes_choose(xm_routes *routes, xm_pool *pool);

/* From the gradient of each slot's gate (and the auxiliary losses) to dlogits [rows][experts]. */
void xm_routes_backward(const xm_routes *routes, xm_pool *pool, const float *dgate, float *dlogits);

#endif
