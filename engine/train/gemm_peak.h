/*
 * gemm_peak.h - the most that matrix products reach on this machine: the yardstick that training's
 * speed is reported against.
 */
#ifndef XM_TRAIN_GEMM_PEAK_H
#define XM_TRAIN_GEMM_PEAK_H

#include "train/gemm.h"
#include "train/workers.h"

/* Operations per second (a multiply-add is two) of square products of 1024, one on each of the
 * threads at once; the best of some rounds, about a quarter of a second. */
xmoe_status xm_gemm_peak(xm_workers *workers, const xm_gemm *gemm, double *flops,
                         xmoe_error *error);

#endif
