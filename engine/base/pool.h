/*
 * pool.h - the compute threads ("compute-k") and the parallel regions they run.
 *
 * A pool of n threads is n - 1 workers and the thread that opens regions; one thread at a time may
 * open a region. A region is `tasks` calls of one function, handed out in order from a counter, so
 * uneven tasks balance themselves; which thread runs which task is not fixed, so tasks must write
 * disjoint outputs. Workers spin for a short while after a region, then sleep.
 */
#ifndef XM_BASE_POOL_H
#define XM_BASE_POOL_H

#include "base/error.h"

typedef struct xm_pool xm_pool;

/* task in [0, tasks); thread in [0, threads) is the one that runs it (for per-thread scratch). */
typedef void (*xm_task_fn)(void *context, int32_t task, int32_t thread);

/* threads: 0 means all CPUs this process may use. */
xmoe_status xm_pool_create(int32_t threads, xm_pool **pool, xmoe_error *error);
void xm_pool_free(xm_pool *pool);
int32_t xm_pool_threads(const xm_pool *pool);

/* Runs the region and returns when all its tasks are done. pool may be NULL: runs on the caller. */
void xm_pool_run(xm_pool *pool, int32_t tasks, xm_task_fn function, void *context);

/* A region over `total` things, per_task of them to a task: how many tasks that are, and where the
 * things of one end; they begin at task * per_task. */
static inline int32_t xm_task_count(int32_t total, int32_t per_task)
{
    return (total + per_task - 1) / per_task;
}

static inline int32_t xm_task_end(int32_t total, int32_t per_task, int32_t task)
{
    int32_t begin = task * per_task;
    return total - begin < per_task ? total : begin + per_task;
}

/* CPUs that this process may use. */
int32_t xm_cpu_count(void);

#endif
