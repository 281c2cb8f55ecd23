/*
 * run.h - the loop around a trainer: log, validation, checkpoints, until the last step or a stop.
 */
#ifndef XM_TRAIN_RUN_H
#define XM_TRAIN_RUN_H

#include "train/trainer.h"

/* What the loop tells its caller after steps and after validations. */
typedef struct {
    const xm_step_report *step;
    uint64_t last_step;
    double tokens_per_second, seconds_left;
    /* Operations per second: three forward passes' worth per token (one forward, two backward),
     * each with the experts that were computed; and their share of what BLAS reaches on a large
     * square product on the same threads. */
    double flops, peak_share;
    double mean_active;       /* experts per token and MoE layer, of this step */
    const double *valid_bits; /* bits per byte of each domain; NULL: not validated now */
    bool saved;               /* a checkpoint was written now */
} xm_run_report;

typedef struct {
    const char *log_path;                                 /* CSV, gone on with; NULL: none */
    const char *checkpoint_path;                          /* NULL: none */
    uint64_t log_every, validate_every, checkpoint_every; /* steps; 0: never */
    int32_t validation_windows;                           /* per domain; 0: all */
    /* Called every log_every steps; may be NULL. */
    void (*on_report)(void *context, const xm_run_report *report);
    /* True: write a checkpoint and return XMOE_OK. May be NULL. */
    bool (*should_stop)(void *context);
    void *context;
} xm_run_plan;

/* Steps until last_step is done. Collective over the trainer's ranks; only rank 0 writes the log
 * and reports, and any rank may ask to stop. */
xmoe_status xm_run(xm_trainer *trainer, const xm_corpus *corpus, const xm_run_plan *plan,
                   uint64_t last_step, xmoe_error *error);

#endif
