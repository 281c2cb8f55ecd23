/*
 * gate.h - the first half of a MoE layer's router in training: from its rows h to the logits of the
 * experts, and back. What logits become, and which experts are chosen, is routes.h.
 */
#ifndef XM_TRAIN_GATE_H
#define XM_TRAIN_GATE_H

#include "train/gate_recurrent.h"
#include "train/routes.h"

/* Parameters of one layer; which of them there are depends on the gate. */
typedef struct {
    int32_t width;                 /* d; gate recurrent: r */
    int32_t views;                 /* V, at least 1 */
    float view_temperature;        /* where V is above 1 */
    const float *weight;           /* [V][E][width] */
    const float *expert_of;        /* gate hash: [vocabulary] */
    const xm_recurrent *recurrent; /* gate recurrent: makes what the logits are of; else NULL */
} xm_train_gate;

typedef struct {
    float *weight; /* accumulated */
} xm_train_gate_gradients;

/* Products of the rows with the weight before their views are mixed (views.h), and the gradients of
 * these, which are scratch: [rows][V][E]. NULL where V is 1. */
typedef struct {
    float *logits, *gradients;
} xm_train_views;

/* Routes the rows h [rows][d] with these token ids. */
void xm_train_gate_forward(xm_pool *pool, const xm_train_gate *gate, const float *h,
                           const int32_t *tokens, const xm_train_views *views, xm_routes *routes);
/* dgate: of each slot; dlogits: scratch [rows][E]. dh += ... */
void xm_train_gate_backward(xm_pool *pool, const xm_train_gate *gate,
                            xm_train_gate_gradients *gradients, const float *h,
                            const xm_train_views *views, const xm_routes *routes,
                            const float *dgate, float *dlogits, float *dh);

#endif
