/*
 * assign.h - an even assignment of rows to experts by their scores, as BASE layers train with
 * (Lewis et al. 2021, section 3.2): every expert takes at most ceil(rows / experts) rows, and the
 * sum of the scores is the largest such, within rows * step (see assign.c).
 */
#ifndef XM_TRAIN_ASSIGN_H
#define XM_TRAIN_ASSIGN_H

#include "base/error.h"

typedef struct {
    int32_t rows, experts;
    int32_t capacity; /* ceil(rows / experts) */
    double *price;    /* [experts] */
    int32_t *held;    /* [experts]: rows that it holds */
    int32_t *holder;  /* [experts][capacity]: a heap of rows, lowest bid first */
    double *bid;      /* [rows]: what the row holds its place with */
    int32_t *waiting; /* [rows]: rows without an expert, a ring */
} xm_assigner;

xmoe_status xm_assigner_create(int32_t rows, int32_t experts, xm_assigner *assigner,
                               xmoe_error *error);
void xm_assigner_free(xm_assigner *assigner);

/* scores: [rows][experts]; expert_of[row * stride] becomes the row's expert. Depends on nothing but
 * the scores. Scores that are not finite give an even assignment without regard to them. */
void xm_assign(xm_assigner *assigner, const float *scores, uint16_t *expert_of, size_t stride);

/* The step of the bids for these scores: a hundredth of their range; 0 if it is not finite. */
double xm_assign_step(const float *scores, size_t count);

#endif
