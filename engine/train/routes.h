/*
 * routes.h - the router of one MoE layer in training: which rows go to which experts, with the
 * capacity limit of the paper, and the gradient of the router's logits.
 *
 * Auxiliary losses, each of one layer, as means over the rows:
 *   balance   E * sum_e mean(p_e) * mean(1[e is top-1])         of softmax gates
 *   entropy   mean of -sum_e p_e log p_e; keeps choices few     of softmax gates
 *   z         mean of log(sum_e exp z_e)^2, z the logits of the row; keeps logits small
 *             (ST-MoE, Zoph et al. 2022, arXiv 2202.08906)     of softmax gates
 *   sparsity  mean of sum_e g_e / E, g the gates of the row     of gate sigmoid
 *
 * Gate sigmoid is that of DSMoE (arXiv 2502.12455). With s_e = sigmoid(z_e), tau the threshold and
 *     m_e = 1 if s_e > tau or e is the row's best, else 0
 * the gate is g_e = m_e * s_e. The decision m_e has no useful derivative; its gradient passes
 * straight through as if it were s_e:
 *     dm_e/dz_e := s_e (1 - s_e),   so   dg_e/dz_e := (m_e + s_e) s_e (1 - s_e)
 * for all experts, also those with m_e = 0, which thereby learn when to open. In other words, the
 * gradient is that of the gates (m_e + s_e - c_e) * s_e at the point where m_e and c_e = s_e are
 * kept constant. A pass that trains therefore computes every expert for every row, with gate 0
 * where m_e = 0, and knows no capacity limit; the sparsity loss is differentiated the same way.
 *
 * Gate base is that of BASE layers (Lewis et al. 2021): in training each row has the expert that an
 * even assignment by the logits gives it (assign.h), else its best; its gate is sigmoid(z_e). Gate
 * hash has an expert for each token id, with gate 1. Neither has auxiliary losses, nor a capacity
 * limit.
 *
 * After xm_routes_choose each kept (row, expert) pair has a slot. Slots are sorted by expert, then
 * by row, so that an expert's rows are one range; a row lists its slots in order of rank.
 */
#ifndef XM_TRAIN_ROUTES_H
#define XM_TRAIN_ROUTES_H

#include "base/pool.h"
#include "format/router_kind.h"
#include "train/assign.h"

typedef struct {
    xm_gate gate;
    xmoe_router_type type;
    float threshold;
    int32_t top_k;
    float capacity_factor; /* 0: no capacity limit */
    int32_t min_capacity;
    float balance_weight, entropy_weight, z_weight, sparsity_weight; /* 0: off */
    bool training; /* gradients will be asked for */
} xm_route_rule;

typedef struct {
    xm_route_rule rule;
    int32_t rows, experts;
    int32_t capacity;      /* rows per expert */
    size_t slots;          /* capacity of the slot arrays */
    float *probabilities;  /* [rows][experts]; scores of gate sigmoid */
    float *log_sums;       /* [rows]: log(sum_e exp z_e) of softmax gates */
    uint16_t *chosen;      /* [rows][experts]: experts by rank; DROPPED where capacity ran out */
    int32_t *wanted;       /* [rows]: experts that the row chose, dropped ones included */
    int32_t *listed;       /* [rows]: experts in `chosen`; those beyond wanted have gate 0 */
    int32_t *row_begin;    /* [rows + 1]: range of row_slots */
    int32_t *row_slots;    /* [slots] */
    int32_t *expert_begin; /* [experts + 1]: range of slots */
    int32_t *slot_row;     /* [slots] */
    float *slot_gate;      /* [slots] */
    int32_t *order;        /* [experts]: by falling number of rows: tasks in this order */
    xm_assigner assigner;  /* gate base, in training */
    uint64_t *keys;        /* [rows]: scratch for dropping */
    float *top1;           /* [experts]: share of rows whose first choice it is */
    float *mean_p;         /* [experts]: mean probability */
    float balance_loss, entropy, z_loss, sparsity; /* of the last choice, not weighted */
    int64_t dropped;                               /* pairs */
} xm_routes;

/* capacity = max(min_capacity, ceil(rows / experts * factor)), at most rows. */
int32_t xm_route_capacity(const xm_route_rule *rule, int32_t rows, int32_t experts);

xmoe_status xm_routes_create(const xm_route_rule *rule, int32_t rows, int32_t experts,
                             xm_routes *routes, xmoe_error *error);
void xm_routes_free(xm_routes *routes);

/* From logits in routes->probabilities, which become scores. */
void xm_routes_choose(xm_routes *routes, xm_pool *pool);

/* Gate hash: expert_of: [vocabulary], tokens: [rows]. */
void xm_routes_look_up(xm_routes *routes, const float *expert_of, const int32_t *tokens);

/* From the gradient of each slot's gate (and the auxiliary losses) to dlogits [rows][experts]. */
void xm_routes_backward(const xm_routes *routes, xm_pool *pool, const float *dgate, float *dlogits);

#endif
