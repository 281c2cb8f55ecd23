/*
 * dispatch.h - the rows of a step grouped by expert, and the cut of the experts' work into tasks.
 *
 * A pair is one row at one expert. Pairs are sorted by expert, then by row, so an expert's rows are
 * one range and its weights are read once for all of them.
 */
#ifndef XM_MOE_DISPATCH_H
#define XM_MOE_DISPATCH_H

#include "moe/router.h"

typedef struct {
    int32_t *offset; /* [experts + 1]: pairs of expert e are offset[e] .. offset[e + 1] - 1 */
    int32_t *row;    /* [pairs] */
    float *weight;   /* [pairs] */
} xm_dispatch;

/* For at most max_rows rows and so many experts. False without memory (nothing is kept). */
bool xm_dispatch_create(int32_t max_rows, int32_t experts, xm_dispatch *dispatch);
void xm_dispatch_free(xm_dispatch *dispatch);

/* Fills offset, row and weight by a counting sort of the selection. */
void xm_dispatch_group(xm_dispatch *dispatch, const xm_selection *selection);

/* The end (exclusive) of the longest run of experts from `first` whose pairs fit in capacity; at
 * least one expert, whose pairs (at most one per row) must fit. */
int32_t xm_dispatch_wave(const xm_dispatch *dispatch, int32_t first, int32_t experts,
                         int32_t capacity);

/* Panels [first, last) of one expert's matrix, over all its rows. */
typedef struct {
    int32_t expert;
    int32_t first, last;
} xm_expert_task;

/* Most tasks that xm_dispatch_plan makes. */
int32_t xm_dispatch_max_tasks(int32_t experts);
/* Cuts the work of experts [first, last), each a matrix of so many panels, into tasks of about
 * equal cost, some per thread; one token with few experts spreads over all threads just as many
 * rows do. Ranges begin at even panels. Returns how many. */
int32_t xm_dispatch_plan(const xm_dispatch *dispatch, int32_t first, int32_t last, int32_t panels,
                         int32_t threads, xm_expert_task *tasks);

#endif
