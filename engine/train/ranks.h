/*
 * ranks.h - the processes that train one model together, and what they say to each other.
 *
 * A step's groups are divided over the ranks in order. Every rank holds all parameters and makes
 * the same update; rank 0 alone writes files. The four calls are collective: every rank makes the
 * same ones in the same order, each from the thread that made the ranks. With one rank none is
 * made, so that `alone` needs none. Two files give xm_ranks_start: ranks_alone.c, in the library,
 * and ranks_mpi.c, which a program links before it to run under mpirun.
 */
#ifndef XM_TRAIN_RANKS_H
#define XM_TRAIN_RANKS_H

#include "base/error.h"

enum { XM_MAX_RANKS = 1024 };

typedef struct {
    int32_t rank, count;
    void *context; /* of the calls */
    /* To the rank after this one, from the one before: count floats. */
    xmoe_status (*send)(void *context, const float *values, size_t count, xmoe_error *error);
    xmoe_status (*receive)(void *context, float *values, size_t count, xmoe_error *error);
    /* From one rank to all. */
    xmoe_status (*broadcast)(void *context, int32_t from, void *bytes, size_t size,
                             xmoe_error *error);
    /* all: [count][size]. Piece `rank` is this rank's; the others are filled in. */
    xmoe_status (*gather)(void *context, void *all, size_t size, xmoe_error *error);
} xm_ranks;

/* Finds the ranks that were started with this process. */
xmoe_status xm_ranks_start(xm_ranks *ranks, xmoe_error *error);
/* Leaves them; after a call that failed, so that the others stop too. */
void xm_ranks_end(xm_ranks *ranks);

/* status and error of what each rank did since the ranks last agreed: OK on all if it is on all;
 * else the same on all, that of the first rank that failed, with its number in the message. */
xmoe_status xm_ranks_agree(const xm_ranks *ranks, xmoe_status status, xmoe_error *error);
/* *flag becomes true on all if it is on any. */
xmoe_status xm_ranks_any(const xm_ranks *ranks, bool *flag, xmoe_error *error);
/* Fails on all if the numbers are not equal on all; what: "the corpus". */
xmoe_status xm_ranks_check_equal(const xm_ranks *ranks, const char *what, uint64_t number,
                                 xmoe_error *error);
/* *value becomes the sum over the ranks, in order. */
xmoe_status xm_ranks_sum(const xm_ranks *ranks, double *value, xmoe_error *error);

#endif
