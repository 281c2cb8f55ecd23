/*
 * router.h - from router logits to the experts of each token: XMoE's threshold (Yang et al. 2024,
 * section 3.2), top-k, and the rules that families of models were trained with.
 *
 * Pure functions of one row: what a row gets never depends on its neighbours.
 */
#ifndef XM_MOE_ROUTER_H
#define XM_MOE_ROUTER_H

#include "kernels/kernels.h"

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

typedef enum {
    XM_SCORE_SOFTMAX, /* over all experts */
    XM_SCORE_SIGMOID, /* of each expert's own logit (DeepSeek-V3, DSMoE) */
    /* SparseMixer as Phi-3.5-MoE uses it (Liu et al. 2023): experts rank by logit; the score of one
     * is the softmax over those that do not rank before it and whose logit is within 2 % of its own
     * (see sparse_mixer in router.c). */
    XM_SCORE_SPARSE_MIXER
} xm_score;

/* How the logits of a layer become choices, as its model was trained; a request's router then says
 * how many experts are taken. */
typedef struct {
    xm_score score;
    int32_t trained_top_k;       /* k of a model trained with top-k; 0: trained otherwise */
    const float *selection_bias; /* [experts]: added to scores for ranking only; or NULL */
    int32_t groups, groups_used; /* experts lie in `groups` equal groups, and only those of the best
                                    groups_used may be chosen; 0: no groups */
    bool group_by_top_two;       /* a group is worth its two best ranking scores, else its best */
    float weight_scale;          /* weights are multiplied by it, last */
    float normalize_epsilon;     /* added to the sum that weights are divided by */
    int32_t views;               /* logits of each expert, mixed into one (views.h) before all else;
                                    0 or 1: there is only one */
    float view_temperature;      /* of the mix */
} xm_gate_rules;

/* Turns logits into scores in place. */
void xm_score_experts(const xm_kernels *kernels, const xm_gate_rules *rules, float *logits,
                      int32_t experts);

/* Chooses the experts of one row from its scores[experts]. They rank by score (and bias), ties to
 * the lower index, NaN last. With p the scores: rank r is taken while p_1 + ... + p_{r-1} <
 * threshold (summed in F32 in order of rank), or while r <= top_k, or while p_r > threshold (type
 * sigmoid; rank 1 always), or all; then floor and cap.
 *
 * Of a model trained with top-k, a threshold looks at the first k ranks only (max_experts, if that
 * is more), with p divided by their sum: threshold 1 is the model as trained. Sigmoids of a model
 * that was not are divided by the sum over all experts.
 *
 * Weights are the scores of those chosen, divided by their sum where router->normalize, times
 * weight_scale. Returns how many; at least 1. */
int32_t xm_route(const xmoe_router *router, const xm_gate_rules *rules, const float *scores,
                 int32_t experts, uint16_t *chosen, float *weights);

#endif
