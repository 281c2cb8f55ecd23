/*
 * trainer.h - a training run: everything that one step needs, made once.
 *
 * The sequences of a step are split into groups of equal size, each a pass of its own on one
 * thread; the step's gradient is the mean of theirs. Capacity and balance of the experts are a
 * group's. The ranks of a run, if there are several, share the groups out evenly. Results depend on
 * the number of groups, not on the number of threads or ranks; a run that is saved and loaded goes
 * on bit for bit, be it on as many ranks or not.
 *
 * With several ranks all functions but free and the getters are collective (see ranks.h): every
 * rank calls them in the same order, and all get the same status and, in a step, the same report.
 */
#ifndef XM_TRAIN_TRAINER_H
#define XM_TRAIN_TRAINER_H

#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/model_file.h"
#include "train/optimizer.h"

typedef struct {
    xm_network_shape shape; /* vocabulary is taken from the corpus */
    int32_t sequences;      /* of a step */
    int32_t groups;         /* divides sequences; a multiple of the ranks */
    int32_t threads;        /* 0: all CPUs */
    xm_optimizer_rule rule;
    float capacity_factor; /* 0: none */
    int32_t min_capacity;
    float balance_weight, entropy_weight, z_weight, sparsity_weight;
    float expert_dropout; /* see pass.h */
    bool recompute;       /* activations are made again in the backward pass: less memory */
    xm_precision precision;
    uint64_t seed;
    const char *init;      /* GGUF file to start from, see xm_model_file_grow; NULL: random */
    const xm_ranks *ranks; /* NULL: alone */
} xm_trainer_options;

typedef struct {
    uint64_t step; /* steps done, this one included */
    double rate, norm;
    xm_pass_result result;
} xm_step_report;

typedef struct xm_trainer xm_trainer;

/* The corpus and what options points to must live longer than the trainer. */
xmoe_status xm_trainer_create(const xm_trainer_options *options, const xm_corpus *corpus,
                              xm_trainer **trainer, xmoe_error *error);
void xm_trainer_free(xm_trainer *trainer);

const xm_network *xm_trainer_network(const xm_trainer *trainer);
const float *xm_trainer_parameters(const xm_trainer *trainer);
uint64_t xm_trainer_steps_done(const xm_trainer *trainer);
const xm_ranks *xm_trainer_ranks(const xm_trainer *trainer);

/* One step. INTERNAL with step and place if loss or gradient is not finite; parameters are then
 * still those of the step before. */
xmoe_status xm_trainer_step(xm_trainer *trainer, xm_step_report *report, xmoe_error *error);

/* What it multiplies with. */
const xm_gemm *xm_trainer_gemm(const xm_trainer *trainer);

/* What that gives at most on the threads of all ranks, operations per second. */
xmoe_status xm_trainer_gemm_peak(const xm_trainer *trainer, double *flops, xmoe_error *error);

/* The validation text of each domain, as serving would see it; evaluations: one per domain. */
xmoe_status xm_trainer_validate(xm_trainer *trainer, int32_t max_windows,
                                xm_evaluation *evaluations, xmoe_error *error);

/* Rank 0 writes, after all have found that they hold the same; every rank reads. */
xmoe_status xm_trainer_save(const xm_trainer *trainer, const char *path, xmoe_error *error);
xmoe_status xm_trainer_load(xm_trainer *trainer, const char *path, xmoe_error *error);

#endif
