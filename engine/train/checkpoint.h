/*
 * checkpoint.h - the state of a training run in one file: parameters, both moments, the step. With
 * the seed and the flags it is all that the next step depends on: the data stream is a function of
 * (seed, step). The file appears whole or not at all.
 */
#ifndef XM_TRAIN_CHECKPOINT_H
#define XM_TRAIN_CHECKPOINT_H

#include "train/optimizer.h"

/* What must be equal for a run to go on bit for bit. */
typedef struct {
    xm_network_shape shape;
    uint64_t vocabulary; /* xm_vocabulary_hash */
    uint64_t seed;
    int32_t sequences, groups;
    xm_optimizer_kind optimizer;
    xm_precision precision; /* f32 or bf16 */
} xm_checkpoint_identity;

typedef struct {
    const xm_network *network;
    xm_checkpoint_identity identity;
    uint64_t step; /* steps done */
    float *parameters, *first, *second;
} xm_checkpoint;

/* A checksum of step and arrays. */
uint64_t xm_checkpoint_sum(const xm_checkpoint *checkpoint);
xmoe_status xm_checkpoint_save(const xm_checkpoint *checkpoint, const char *path,
                               xmoe_error *error);
/* Fills step and the arrays; refuses a file of another identity, naming what differs, and one that
 * is damaged. */
xmoe_status xm_checkpoint_load(xm_checkpoint *checkpoint, const char *path, xmoe_error *error);

#endif
