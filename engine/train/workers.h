/*
 * workers.h - threads for training's few large tasks, some milliseconds to seconds each.
 *
 * The same idea as base/pool.h with the opposite temper: who has nothing to do sleeps at once, the
 * caller too. Training runs beside other work; a CPU that it leaves idle lets the system move a
 * thread over that has to share its own.
 */
#ifndef XM_TRAIN_WORKERS_H
#define XM_TRAIN_WORKERS_H

#include "base/error.h"
#include "base/pool.h"

typedef struct xm_workers xm_workers;

/* threads: the caller of xm_workers_run is one of them; 0: all CPUs this process may use. */
xmoe_status xm_workers_create(int32_t threads, xm_workers **workers, xmoe_error *error);
void xm_workers_free(xm_workers *workers);
/* The caller's included. */
int32_t xm_workers_threads(const xm_workers *workers);

/* Runs tasks [0, tasks), handed out in order; returns when all are done. Tasks write disjoint
 * outputs. workers may be NULL: runs on the caller. */
void xm_workers_run(xm_workers *workers, int32_t tasks, xm_task_fn function, void *context);

#endif
