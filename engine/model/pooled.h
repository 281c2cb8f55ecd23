/*
 * pooled.h - the embedding of a sequence while its positions come in: a sum or a choice of their
 * final hidden states (what the output matrix would get).
 *
 * Positions are taken in order, each once: one that is computed again after preemption gives the
 * same state and is passed over. Sums are F64 and in order of position, so the result does not
 * depend on how the prompt was cut into steps.
 */
#ifndef XM_MODEL_POOLED_H
#define XM_MODEL_POOLED_H

#include "xmoe.h"

typedef struct {
    xmoe_pooling pooling; /* not XMOE_POOLING_NONE */
    int32_t positions;    /* taken so far */
    double *sum;          /* [d] */
} xm_pooled;

/* The state of a position, [d]. */
static inline void xm_pooled_take(xm_pooled *pooled, int32_t position, const float *state, size_t d)
{
    if (position != pooled->positions)
        return;
    pooled->positions++;
    if (pooled->pooling == XMOE_POOLING_FIRST && position > 0)
        return;
    for (size_t i = 0; i < d; i++)
        pooled->sum[i] =
            (double)state[i] + (pooled->pooling == XMOE_POOLING_MEAN ? pooled->sum[i] : 0.0);
}

#endif
