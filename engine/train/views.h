/*
 * views.h - the multi-view gate in training: moe/views.h over the rows of a pass, its gradient, and
 * how its temperature falls.
 */
#ifndef XM_TRAIN_VIEWS_H
#define XM_TRAIN_VIEWS_H

#include "base/pool.h"

/* What a trained model is served with. */
#define XM_VIEW_TEMPERATURE 0.1f

/* Of step `step`, counted from 0, in a run of total_steps: from 20.1 by a cosine to 0.1 over the
 * first tenth of the run, then 0.1 (Yang et al. 2024). */
float xm_view_temperature(uint64_t step, int64_t total_steps);

typedef struct {
    int32_t rows, views, experts;
    float temperature;
} xm_view_shape;

/* z: [rows][views][experts]; logits: [rows][experts]. */
void xm_views_forward(xm_pool *pool, const xm_view_shape *shape, const float *z, float *logits);
/* From the gradient of the logits to that of the views, which is overwritten:
 *     d logit_e / d z_{v,e} = a_{v,e} (1 + (z_{v,e} - logit_e) / T) */
void xm_views_backward(xm_pool *pool, const xm_view_shape *shape, const float *z,
                       const float *dlogits, float *dz);

#endif
