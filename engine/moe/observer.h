/*
 * observer.h - a look at what matrices are multiplied with, for those who measure it
 * (model/importance_meter.h); others pass NULL and pay nothing.
 */
#ifndef XM_MOE_OBSERVER_H
#define XM_MOE_OBSERVER_H

#include "kernels/kernels.h"

/* Called on the scheduler's thread, between parallel regions, for every matrix and the rows of `in`
 * (its F32 form) that were or will be multiplied with it. */
typedef struct {
    void (*on_inputs)(void *context, const xm_matrix *matrix, const xm_activations *in,
                      const int32_t *rows, int32_t count);
    void *context;
} xm_input_observer;

static inline void xm_observe(const xm_input_observer *observer, const xm_matrix *matrix,
                              const xm_activations *in, const int32_t *rows, int32_t count)
{
    if (observer != NULL && count > 0)
        observer->on_inputs(observer->context, matrix, in, rows, count);
}

#endif
