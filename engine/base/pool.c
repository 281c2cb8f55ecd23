/*
 * pool.c - see pool.h.
 *
 * Shared between the opener and the workers:
 *   - region fields (function, context, tasks): written by the opener before `generation` is raised
 *     (release), read by workers after they saw the new generation (acquire);
 *   - `next`: the task counter; tagged with the generation in its high half, so that a worker that
 *     comes late to a region that is over can never take a task of the one after it;
 *   - `finished`: tasks done; the opener waits until it equals tasks;
 *   - `mutex`, `wake`: guard `sleepers` and going to sleep only.
 */
#include "base/pool.h"

#include "base/memory.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

enum { SPINS = 4000 }; /* pauses before a worker sleeps: some tens of microseconds */

typedef struct {
    xm_pool *pool;
    int32_t index;
    pthread_t thread;
} worker;

struct xm_pool {
    int32_t threads;
    int32_t started;
    worker *workers;

    xm_task_fn function;
    void *context;
    int32_t tasks;
    _Alignas(64) _Atomic uint32_t generation;
    _Alignas(64) _Atomic uint64_t next; /* generation << 32 | task */
    _Alignas(64) _Atomic int32_t finished;

    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Atomic int32_t sleepers;
    _Atomic bool stopping;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int32_t xm_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
}

/* Takes tasks of region `generation` until none is left. The region's fields are read only after a
 * task was taken: holding one keeps the region open, so they cannot change under our feet. */
static void take_tasks(xm_pool *pool, uint32_t generation, int32_t thread)
{
    uint64_t seen = atomic_load_explicit(&pool->next, memory_order_acquire);
    for (;;) {
        if ((uint32_t)(seen >> 32) != generation)
            return;
        uint32_t left = (uint32_t)seen; /* tasks not yet taken */
        if (left == 0)
            return;
        if (!atomic_compare_exchange_weak_explicit(&pool->next, &seen, seen - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        pool->function(pool->context, pool->tasks - (int32_t)left, thread);
        atomic_fetch_add_explicit(&pool->finished, 1, memory_order_release);
        seen = atomic_load_explicit(&pool->next, memory_order_acquire);
    }
}

/* Waits for a generation other than seen; false when the pool stops. */
static bool wait_for_region(xm_pool *pool, uint32_t seen)
{
    for (int32_t spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return !atomic_load(&pool->stopping);
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen && !atomic_load(&pool->stopping))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
    return !atomic_load(&pool->stopping);
}

static void *worker_main(void *context)
{
    worker *self = context;
    xm_pool *pool = self->pool;
    uint32_t seen = 0;
    while (wait_for_region(pool, seen)) {
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire);
        take_tasks(pool, seen, self->index);
    }
    return NULL;
}

static void wake_workers(xm_pool *pool)
{
    if (atomic_load(&pool->sleepers) == 0)
        return;
    /* After this no worker is between its look at the generation and its sleep. Woken ones need the
     * mutex, so it is free again before they are. */
    pthread_mutex_lock(&pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
}

xmoe_status xm_pool_create(int32_t threads, xm_pool **pool_out, xmoe_error *error)
{
    *pool_out = NULL;
    if (threads <= 0)
        threads = xm_cpu_count();
    xm_pool *pool = xm_calloc_aligned(1, sizeof *pool);
    worker *workers = xm_calloc((size_t)threads, sizeof *workers);
    if (pool == NULL || workers == NULL) {
        xm_free(pool);
        xm_free(workers);
        return xm_fail_memory(error, "thread pool", sizeof *pool);
    }
    pool->threads = threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int32_t i = 1; i < threads; i++) {
        workers[i] = (worker){.pool = pool, .index = i};
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) {
            xm_pool_free(pool);
            return xm_fail(error, XMOE_ERROR_INTERNAL, "cannot start compute thread %d", i);
        }
        char name[24];
        snprintf(name, sizeof name, "compute-%d", i);
        name[15] = '\0'; /* the kernel's limit */
        pthread_setname_np(workers[i].thread, name);
        pool->started = i;
    }
    *pool_out = pool;
    return XMOE_OK;
}

void xm_pool_free(xm_pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stopping, true);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int32_t i = 1; i <= pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    xm_free(pool->workers);
    xm_free(pool);
}

int32_t xm_pool_threads(const xm_pool *pool)
{
    return pool == NULL ? 1 : pool->threads;
}

void xm_pool_run(xm_pool *pool, int32_t tasks, xm_task_fn function, void *context)
{
    if (pool == NULL || pool->threads == 1 || tasks <= 1) {
        for (int32_t task = 0; task < tasks; task++)
            function(context, task, 0);
        return;
    }
    pool->function = function;
    pool->context = context;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    uint32_t generation = atomic_load_explicit(&pool->generation, memory_order_relaxed) + 1;
    atomic_store_explicit(&pool->next, (uint64_t)generation << 32 | (uint32_t)tasks,
                          memory_order_release);
    atomic_store(&pool->generation, generation);
    wake_workers(pool);
    take_tasks(pool, generation, 0);
    for (int32_t spin = 0; atomic_load_explicit(&pool->finished, memory_order_acquire) != tasks;
         spin++) {
        if (spin < SPINS)
            relax();
        else
            sched_yield(); /* a worker lost its CPU in mid-task: let it have ours */
    }
}
