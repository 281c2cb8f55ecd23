/*
 * muon.h - Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the update of a matrix is
 * its momentum with all singular values made about equal, so that directions which the gradient
 * seldom has move as far as those it always has. For matrices that map rows to rows
 * (xm_parameter.map_rows), each expert's by itself; the rest of the network stays with AdamW.
 *
 *     m = beta m + g;   u = g + beta m                                   (Nesterov)
 *     w = (1 - rate decay) w - rate 0.2 sqrt(max(rows, columns)) orthogonal(u)
 *
 * The factor gives updates the size that AdamW's have (Liu et al. 2025, arXiv 2502.16982, section
 * 2.2), so that both go by one learning rate and one weight decay.
 */
#ifndef XM_TRAIN_MUON_H
#define XM_TRAIN_MUON_H

#include "train/gemm.h"
#include "train/network.h"
#include "train/workers.h"

typedef struct {
    size_t offset; /* into the parameter array */
    int32_t rows, columns;
} xm_muon_matrix;

typedef struct {
    xm_muon_matrix *matrices;
    int32_t count;
    float *scratch; /* [threads][scratch_floats] */
    size_t scratch_floats;
    xm_workers *workers;
    const xm_gemm *gemm;
    char *gemm_scratch; /* [threads][gemm->scratch_bytes] */
} xm_muon;

typedef struct {
    float beta;           /* momentum */
    float rate, decay;    /* decay: already times the rate */
    float gradient_scale; /* of clipping */
} xm_muon_step;

/* gemm: what orthogonalises; BF16 is exact enough for it. */
xmoe_status xm_muon_create(const xm_network *network, xm_workers *workers, const xm_gemm *gemm,
                           xm_muon *muon, xmoe_error *error);
void xm_muon_free(xm_muon *muon);

/* Updates the matrices; arrays have the network's layout, momentum is read and written. A task is
 * one matrix, on one thread: the same bits at any number of threads. */
void xm_muon_update(const xm_muon *muon, const xm_muon_step *step, const float *gradients,
                    float *momentum, float *parameters);

/* Floats of scratch for a matrix of this size. */
size_t xm_orthogonalise_scratch(int32_t rows, int32_t columns);
/* x [rows][columns], with singular value decomposition U S V^T, becomes about U V^T: what was not
 * far below the largest singular value ends between 0.7 and 1.2. Zero stays zero. */
void xm_orthogonalise(const xm_gemm *gemm, void *gemm_scratch, float *x, int32_t rows,
                      int32_t columns, float *scratch);

#endif
