/*
 * run_log.h - log.csv of a training run: one line per report.
 *
 * A run that resumes goes on in the same file. What it holds of steps after the checkpoint, because
 * the run before was killed, is cut off, so that every step stands there once.
 */
#ifndef XM_TRAIN_RUN_LOG_H
#define XM_TRAIN_RUN_LOG_H

#include "train/trainer.h"

#include <stdio.h>

typedef struct {
    const xm_step_report *step;
    double loss; /* mean since the line before */
    double tokens_per_second;
    double flops, peak_share;              /* per second; of the GEMM peak */
    const double *valid_bits, *valid_nats; /* per domain; NULL: not validated now */
} xm_run_line;

/* Refuses a file with other columns. */
xmoe_status xm_run_log_open(const char *path, const xm_trainer *trainer, const xm_corpus *corpus,
                            FILE **log, xmoe_error *error);
void xm_run_log_write(FILE *log, const xm_trainer *trainer, const xm_corpus *corpus,
                      const xm_run_line *line);

#endif
