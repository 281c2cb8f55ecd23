/*
 * thread_ranks.h - the ranks of a training run as threads of this process, so that what ranks do
 * together can be tested without MPI.
 */
#ifndef XMOE_TESTS_THREAD_RANKS_H
#define XMOE_TESTS_THREAD_RANKS_H

#include "train/ranks.h"

/* Runs function(context, ranks) once per rank, all at once; returns when all have returned. They
 * must not use cmocka's assertions. */
void thread_ranks_run(int32_t count, void (*function)(void *context, const xm_ranks *ranks),
                      void *context);

#endif
