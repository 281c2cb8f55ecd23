/*
 * machine_share.h - how many of its threads a training run should use just now.
 *
 * A region of the pool ends when its slowest thread does. On a machine that is busy with work of
 * higher priority, a thread that shares its CPU holds up all others, and one thread alone is faster
 * than several. Results do not depend on the number of threads, so it can change between steps:
 * down to one when the threads got too little CPU, up to all when CPUs were idle.
 */
#ifndef XM_TRAIN_MACHINE_SHARE_H
#define XM_TRAIN_MACHINE_SHARE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int32_t threads;            /* of the pool */
    bool alone;                 /* use one thread */
    double wall, process, idle; /* seconds, at the begin of the interval */
} xm_machine_share;

xm_machine_share xm_machine_share_start(int32_t threads);
/* Judges the interval since the last call; true: use one thread for the next. Where the machine
 * does not tell what is idle it is always false. */
bool xm_machine_share_judge(xm_machine_share *share);

#endif
