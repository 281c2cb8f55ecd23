/*
 * workers.c - see workers.h. All fields below the mutex are guarded by it.
 */
#include "train/workers.h"

#include "base/memory.h"

#include <pthread.h>

typedef struct {
    xm_workers *workers;
    int32_t index;
    pthread_t thread;
} worker;

struct xm_workers {
    int32_t started; /* threads besides the caller */
    worker *list;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    xm_task_fn function;
    void *context;
    int32_t tasks, next, finished;
    bool stopping;
};

/* Runs tasks while there are any; called and left with the mutex held. */
static void run_tasks(xm_workers *workers, int32_t thread)
{
    while (workers->next < workers->tasks) {
        int32_t task = workers->next++;
        xm_task_fn function = workers->function;
        void *context = workers->context;
        pthread_mutex_unlock(&workers->mutex);
        function(context, task, thread);
        pthread_mutex_lock(&workers->mutex);
        if (++workers->finished == workers->tasks)
            pthread_cond_signal(&workers->done);
    }
}

static void *worker_main(void *context)
{
    worker *self = context;
    xm_workers *workers = self->workers;
    pthread_mutex_lock(&workers->mutex);
    while (!workers->stopping) {
        run_tasks(workers, self->index);
        if (!workers->stopping)
            pthread_cond_wait(&workers->work, &workers->mutex);
    }
    pthread_mutex_unlock(&workers->mutex);
    return NULL;
}

xmoe_status xm_workers_create(int32_t threads, xm_workers **workers_out, xmoe_error *error)
{
    *workers_out = NULL;
    if (threads <= 0)
        threads = xm_cpu_count();
    xm_workers *workers = xm_calloc(1, sizeof *workers);
    worker *list = xm_calloc((size_t)threads, sizeof *list);
    if (workers == NULL || list == NULL) {
        xm_free(workers);
        xm_free(list);
        return xm_fail_memory(error, "training threads", sizeof *workers);
    }
    workers->list = list;
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->work, NULL);
    pthread_cond_init(&workers->done, NULL);
    for (int32_t i = 1; i < threads; i++) {
        list[i] = (worker){.workers = workers, .index = i};
        if (pthread_create(&list[i].thread, NULL, worker_main, &list[i]) != 0) {
            xm_workers_free(workers);
            return xm_fail(error, XMOE_ERROR_INTERNAL, "cannot start training thread %d", i);
        }
        pthread_setname_np(list[i].thread, "train");
        workers->started = i;
    }
    *workers_out = workers;
    return XMOE_OK;
}

void xm_workers_free(xm_workers *workers)
{
    if (workers == NULL)
        return;
    pthread_mutex_lock(&workers->mutex);
    workers->stopping = true;
    pthread_cond_broadcast(&workers->work);
    pthread_mutex_unlock(&workers->mutex);
    for (int32_t i = 1; i <= workers->started; i++)
        pthread_join(workers->list[i].thread, NULL);
    pthread_mutex_destroy(&workers->mutex);
    pthread_cond_destroy(&workers->work);
    pthread_cond_destroy(&workers->done);
    xm_free(workers->list);
    xm_free(workers);
}

int32_t xm_workers_threads(const xm_workers *workers)
{
    return workers->started + 1;
}

void xm_workers_run(xm_workers *workers, int32_t tasks, xm_task_fn function, void *context)
{
    if (workers == NULL || workers->started == 0 || tasks <= 1) {
        for (int32_t task = 0; task < tasks; task++)
            function(context, task, 0);
        return;
    }
    pthread_mutex_lock(&workers->mutex);
    workers->function = function;
    workers->context = context;
    workers->next = workers->finished = 0;
    workers->tasks = tasks;
    pthread_cond_broadcast(&workers->work);
    run_tasks(workers, 0);
    while (workers->finished < workers->tasks)
        pthread_cond_wait(&workers->done, &workers->mutex);
    workers->tasks = workers->next = 0;
    pthread_mutex_unlock(&workers->mutex);
}
