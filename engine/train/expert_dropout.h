/*
 * expert_dropout.h - dropout inside experts only (Switch Transformer, Fedus et al. 2021, section
 * 2.4): in training each hidden unit of an expert is left out of a row's product with the down
 * matrix with probability `rate`, and those that stay are divided by 1 - rate. Experts see few rows
 * each and overfit sooner than what every row passes; the rest of the network has no dropout.
 *
 * Which units are left out is a function of (key, block, row, expert, unit) and of nothing else:
 * the backward pass, a recomputed block, another number of threads or ranks, and a resumed run all
 * see the same ones. The caller gives each step and each group of sequences a key of its own.
 */
#ifndef XM_TRAIN_EXPERT_DROPOUT_H
#define XM_TRAIN_EXPERT_DROPOUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    float rate; /* [0, 1), in steps of 2^-16; 0: off */
    uint64_t key;
    int32_t block;
} xm_expert_dropout;

/* The hidden units of one (row, expert) pair: values[i] becomes 0 or values[i] / (1 - rate). */
void xm_expert_dropout_apply(const xm_expert_dropout *dropout, int32_t row, int32_t expert,
                             float *values, size_t hidden);

#endif
