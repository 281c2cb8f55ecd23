/*
 * train_routing.h - the routers of training in double precision, for comparison: from the logits of
 * all rows to the gates of all pairs and the auxiliary losses. Written apart from engine/train, in
 * plain loops over rows and experts.
 */
#ifndef TESTS_TRAIN_ROUTING_H
#define TESTS_TRAIN_ROUTING_H

#include "train/pass.h"

enum {
    SEQUENCES = 2,
    LENGTH = 10,
    ROWS = SEQUENCES * LENGTH,
    WIDTH = 16,
    HEADS = 2,
    HIDDEN = 24, /* dense FFN */
    EXPERTS = 6,
    EXPERT_HIDDEN = 8,
    ROUTER_STATE = 5, /* gate recurrent */
    VOCABULARY = 300,
    MAX_HIDDEN = 24,
    MAX_VIEWS = 4
};

/* Gate sigmoid of one block where it was first computed: decisions and scores. Its gradient is that
 * of gates (m + s - c) * s with m and c held there (train/routes.h). */
typedef struct {
    bool set;
    double m[ROWS][EXPERTS], c[ROWS][EXPERTS];
} anchor;

typedef struct {
    const xm_network *network;
    xm_pass_options options;
    int32_t tokens[ROWS], targets[ROWS];
    anchor *anchors; /* [blocks] */
} batch_problem;

typedef struct {
    double z[ROWS][EXPERTS]; /* logits */
    double p[ROWS][EXPERTS]; /* scores */
    double gate[ROWS][EXPERTS];
    int rank[ROWS][EXPERTS]; /* rank of the expert in the row's order, from 1; 0: not chosen */
    bool kept[ROWS][EXPERTS];
} routing;

/* From r->z to the rest with parameters w, of which the tables of gate hash are read; returns the
 * weighted auxiliary losses of the block. The even assignment of gate base is the trainer's, which
 * has a test of its own. */
double train_route(const batch_problem *problem, const double *w, int block, routing *r);

#endif
