/*
 * gate_hash.h - hash layers (Roller et al. 2021): the expert of a token is fixed by its id. The
 * table of a MoE block is a tensor that is not trained: [vocabulary] expert numbers as floats.
 */
#ifndef XM_TRAIN_GATE_HASH_H
#define XM_TRAIN_GATE_HASH_H

#include "train/network.h"

/* A pseudo-random table; a pure function of its arguments. */
void xm_hash_scatter(uint64_t seed, uint64_t block, int32_t experts, size_t vocabulary,
                     float *experts_of);

/* Tables for all MoE blocks in which experts get about equally many tokens of a text where token i
 * occurs counts[i] times (section 3.1, "balanced assignment"): tokens, frequent ones first, go one
 * by one to the expert that has least. The order is blurred by the seed, so that the blocks differ:
 * tokens that share an expert in one block do not in the next. */
xmoe_status xm_hash_balance(const xm_network *network, uint64_t seed, const uint64_t *counts,
                            float *parameters, xmoe_error *error);

/* FORMAT, naming tensor and token, unless all are whole numbers from 0 to experts - 1. */
xmoe_status xm_hash_check(const xm_parameter *parameter, const float *experts_of, int32_t experts,
                          xmoe_error *error);

#endif
