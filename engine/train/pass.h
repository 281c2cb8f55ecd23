/*
 * pass.h - the whole network over a batch of sequences, forward and backward.
 *
 * A pass owns every activation and all scratch, sized once; running it allocates nothing. Gradients
 * are those of  mean loss + sum over MoE layers of the weighted auxiliary losses (routes.h)  and
 * are added to the array given. One thread at a time may use a pass.
 */
#ifndef XM_TRAIN_PASS_H
#define XM_TRAIN_PASS_H

#include "train/gemm.h"
#include "train/network.h"
#include "train/routes.h"

typedef struct xm_pass xm_pass;

typedef struct {
    double loss;         /* mean nats per counted token, without auxiliary losses */
    int64_t tokens;      /* counted: target >= 0 */
    double balance_loss; /* sum over MoE layers, not weighted */
    double entropy;      /* likewise; 0 unless its weight is set */
    double z_loss;       /* likewise */
    double sparsity;     /* likewise */
    double dropped;      /* share of wanted (row, expert) pairs */
    /* per block: wanted experts, summed over the counted rows; 0 for dense blocks */
    double active[XMOE_MAX_LAYERS];
} xm_pass_result;

/* length: tokens of each sequence, at most the context. capacity_factor 0: no capacity limit, as in
 * serving. training: makes what a backward pass needs. recompute: keeps of every block only its
 * input, and makes the rest again in the backward pass: a third more work in far less memory. */
typedef struct {
    int32_t sequences, length;
    float capacity_factor;
    int32_t min_capacity;
    float balance_weight, entropy_weight, z_weight, sparsity_weight;
    float expert_dropout; /* share of the experts' hidden units that is left out, in [0, 1) */
    bool training, recompute;
    const xm_gemm *gemm; /* of all but the router; NULL: F32 */
} xm_pass_options;

xmoe_status xm_pass_create(const xm_network *network, xm_pool *pool, const xm_pass_options *options,
                           xm_pass **pass, xmoe_error *error);
void xm_pass_free(xm_pass *pass);

/* Which hidden units the next runs leave out: see expert_dropout.h. */
void xm_pass_set_dropout_key(xm_pass *pass, uint64_t key);

/* tokens, targets: [sequences * length]; target -1: does not count. gradients: NULL, or (training)
 * the array to add to. */
void xm_pass_run(xm_pass *pass, const float *parameters, const int32_t *tokens,
                 const int32_t *targets, float *gradients, xm_pass_result *result);

/* After a run: the loss of each row. */
const float *xm_pass_losses(const xm_pass *pass);
/* After a run: what the router of a MoE block decided. */
const xm_routes *xm_pass_routes(const xm_pass *pass, int32_t block);
/* After a run with a loss that is not finite: where the first such value is, as "block 3, FFN";
 * with recompute "block 3". */
void xm_pass_name_nonfinite(const xm_pass *pass, char *place, size_t size);

#endif
