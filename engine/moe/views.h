/*
 * views.h - the multi-view gate of XMoE (Yang et al. 2024): a router that has V logits for every
 * expert, one of each view, and mixes them into one. With T the temperature,
 *
 *     a_{v,e} = exp(z_{v,e} / T) / sum_v' exp(z_{v',e} / T);   logit_e = sum_v a_{v,e} z_{v,e}
 *
 * A high T makes logit_e the mean of the views, a low one their maximum. Serving and training both
 * mix with this function. A pure function of one row; any thread.
 */
#ifndef XM_MOE_VIEWS_H
#define XM_MOE_VIEWS_H

#include <stddef.h>
#include <stdint.h>

/* z: [views][experts] of one row; logits: [experts], not in z. In F32, sums in order of the views;
 * the exponential is taken in double and rounded, so that it is the same with every C library. An
 * expert whose views are not all finite, or farther apart than F32 reaches, gets NaN. */
void xm_mix_views(const float *z, int32_t views, int32_t experts, float temperature, float *logits);

/* The same of one expert, whose views are `stride` apart. shares, where not NULL, gets the a_v, as
 * far apart. */
float xm_mix_expert(const float *z, int32_t views, size_t stride, float temperature, float *shares);

#endif
