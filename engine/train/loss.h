/*
 * loss.h - output matrix and cross-entropy, forward and backward in one go.
 *
 * Logits exist only for LOSS_ROWS rows at a time: with a vocabulary of 8192 all rows of a step
 * would be larger than everything else together.
 */
#ifndef XM_TRAIN_LOSS_H
#define XM_TRAIN_LOSS_H

#include "train/gemm.h"

enum { XM_LOSS_ROWS = 1024 };

typedef struct {
    const float *h;         /* [rows][width] */
    const float *weight;    /* [vocabulary][width] */
    const int32_t *targets; /* [rows]; -1: the row does not count */
    int32_t rows, width, vocabulary;
    float *losses;  /* [rows]: nats; 0 where the target is -1 */
    float *logits;  /* scratch: [XM_LOSS_ROWS][vocabulary] */
    float *dh;      /* [rows][width] of the mean loss; NULL: no gradients */
    float *dweight; /* accumulated */
} xm_loss_job;

/* Returns the number of rows that count. */
int32_t xm_loss_run(const xm_compute *compute, const xm_loss_job *job);

#endif
