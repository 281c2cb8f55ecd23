/*
 * optimizer.h - AdamW (Loshchilov and Hutter 2019) over all parameters, or over those that are no
 * matrices for Muon (muon.h); clipping by the global norm, and the learning rate's course: linear
 * warm-up, the peak as long as it shall be held, then a cosine. A run that holds the peak can be
 * taken further from its checkpoint before the fall (Hu et al. 2024, MiniCPM, section 4).
 */
#ifndef XM_TRAIN_OPTIMIZER_H
#define XM_TRAIN_OPTIMIZER_H

#include "train/muon.h"
#include "train/ranks.h"
#include "train/workers.h"

typedef enum { XM_OPTIMIZER_ADAMW, XM_OPTIMIZER_MUON } xm_optimizer_kind;

typedef struct {
    xm_optimizer_kind kind;
    double peak_rate, final_rate;
    int64_t warmup_steps, total_steps;
    int64_t decay_steps;               /* length of the fall at the end; 0: all after the warm-up */
    double beta1, beta2, weight_decay; /* decay on matrices only */
    double momentum;                   /* Muon's */
    double clip;                       /* largest gradient norm; 0: no clipping */
} xm_optimizer_rule;

/* Steps are counted from 0; after total_steps the rate stays final. */
double xm_learning_rate(const xm_optimizer_rule *rule, int64_t step);

typedef struct {
    const xm_network *network;
    xm_workers *workers;
    const xm_ranks *ranks;
    float *first, *second; /* moments, [network->total]; Muon's momentum is in the first */
    xm_muon muon;          /* without matrices: AdamW has all */
    float *received;       /* sums on their way from the rank before; NULL on the first */
    double *partial;       /* one sum of squares per task */
    int32_t tasks;
} xm_optimizer;

xmoe_status xm_optimizer_create(const xm_network *network, xm_optimizer_kind kind,
                                const xm_gemm *gemm, xm_workers *workers, const xm_ranks *ranks,
                                xm_optimizer *optimizer, xmoe_error *error);
void xm_optimizer_free(xm_optimizer *optimizer);

/* Makes gradients[0] the mean of the gradients of all groups, and *norm its norm. groups: of this
 * rank; all ranks have as many. The sum runs over the groups in order, whoever holds them, so the
 * mean is the same to the bit at any number of ranks. */
xmoe_status xm_gradient_mean(xm_optimizer *optimizer, float *const *gradients, int32_t groups,
                             double *norm, xmoe_error *error);
/* One update; norm is that of gradients. */
void xm_optimizer_step(xm_optimizer *optimizer, const xm_optimizer_rule *rule, int64_t step,
                       double norm, const float *gradients, float *parameters);

#endif
