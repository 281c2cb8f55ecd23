/*
 * keeper.c - see keeper.h.
 */
#include "keeper.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "exchange.h"
#include "log.h"
#include "models.h"
#include "usage_document.h"

#define SECOND_NS INT64_C(1000000000)

struct xm_keeper {
    xm_server *server;
    char *path; /* of the usage file; "": none */
    pthread_t thread;
    bool failing; /* the thread's: the last save did not succeed */

    pthread_mutex_t lock;
    pthread_cond_t wake; /* on the monotonic clock */
    xm_keeper_task *first, **last;
    bool stop;
};

/* --- the usage file --- */

static bool add_to_engine(const xm_server *server, const char *path,
                          const xm_usage_document *document, char *message, size_t size)
{
    xmoe_error error = {0};
    const xmoe_usage *const phases[XMOE_PHASES] = {document->phases[XMOE_PHASE_ALL],
                                                   document->phases[XMOE_PHASE_PREFILL],
                                                   document->phases[XMOE_PHASE_DECODE]};
    if (!xm_model_is_ours(server, document->model)) {
        snprintf(message, size, "%s counts for the model '%s', but this is '%s'", path,
                 document->model, server->model_id);
        return false;
    }
    if (xmoe_usage_restore(server->engine, phases, &error) == XMOE_OK)
        return true;
    snprintf(message, size, "%s: %s", path, error.message);
    return false;
}

/* A file that is not there yet is fine. */
static bool restore(const xm_keeper *keeper, char *message, size_t size)
{
    char fault[1024];
    xm_usage_document document = {0};
    const xm_server *server = keeper->server;
    if (!keeper->path[0] || (access(keeper->path, F_OK) != 0 && errno == ENOENT))
        return true;
    bool good =
        xm_usage_document_load(server->model, keeper->path, &document, fault, sizeof fault) &&
        add_to_engine(server, keeper->path, &document, fault, sizeof fault);
    if (good)
        xm_log_line(XM_LOG_INFO, "expert usage goes on from %s: %" PRIu64 " tokens", keeper->path,
                    document.phases[XMOE_PHASE_ALL]->tokens);
    else
        snprintf(message, size, "setting 'usage.file': %s", fault);
    xm_usage_document_free(&document);
    return good;
}

static void save(xm_keeper *keeper)
{
    char message[448];
    xmoe_error error = {0};
    xm_usage_document document = {.id = "usage"};
    xm_server *server = keeper->server;
    bool good =
        xm_usage_document_take(server->engine, server->model_id, &document, &error) == XMOE_OK;
    if (good)
        good =
            xm_usage_document_save(server->model, &document, keeper->path, message, sizeof message);
    else
        snprintf(message, sizeof message, "%s", error.message);
    xm_usage_document_free(&document);
    if (!good && !keeper->failing)
        xm_log_line(XM_LOG_WARNING, "expert usage is not saved (usage.file): %s", message);
    if (good && keeper->failing)
        xm_log_line(XM_LOG_INFO, "expert usage is saved again: %s", keeper->path);
    keeper->failing = !good;
}

/* --- the thread --- */

static int64_t save_interval(const xm_keeper *keeper)
{
    xm_settings *settings = xm_server_settings(keeper->server);
    int64_t seconds = settings->usage_save_seconds;
    xm_settings_release(settings);
    return seconds * SECOND_NS;
}

/* Waits for a task, the end, a kick or that time (monotonic). Takes the first task, if there is
 * one; *stop: the end has come, and no task is left. */
static xm_keeper_task *wait_for_task(xm_keeper *keeper, int64_t until, bool *stop)
{
    struct timespec time = {until / SECOND_NS, until % SECOND_NS};
    pthread_mutex_lock(&keeper->lock);
    if (!keeper->first && !keeper->stop) {
        if (keeper->path[0])
            pthread_cond_timedwait(&keeper->wake, &keeper->lock, &time);
        else
            pthread_cond_wait(&keeper->wake, &keeper->lock);
    }
    xm_keeper_task *task = keeper->first;
    if (task)
        keeper->first = task->next;
    if (!keeper->first)
        keeper->last = &keeper->first;
    *stop = keeper->stop && !task;
    pthread_mutex_unlock(&keeper->lock);
    return task;
}

static void *run(void *argument)
{
    xm_keeper *keeper = argument;
    int64_t saved = xm_now_ns() - save_interval(keeper); /* at once: a fault shows at the start */
    for (bool stop = false; !stop;) {
        int64_t due = saved + save_interval(keeper);
        xm_keeper_task *task = wait_for_task(keeper, due, &stop);
        if (task)
            task->run(task);
        if (keeper->path[0] && (stop || xm_now_ns() >= due)) {
            save(keeper);
            saved = xm_now_ns();
        }
    }
    return NULL;
}

static bool start(xm_keeper *keeper)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&keeper->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&keeper->lock, NULL);
    keeper->last = &keeper->first;
    if (pthread_create(&keeper->thread, NULL, run, keeper) == 0) {
        pthread_setname_np(keeper->thread, "keeper");
        return true;
    }
    pthread_cond_destroy(&keeper->wake);
    pthread_mutex_destroy(&keeper->lock);
    return false;
}

xm_keeper *xm_keeper_create(xm_server *server, char *message, size_t size)
{
    xm_keeper *keeper = calloc(1, sizeof *keeper);
    xm_settings *settings = xm_server_settings(server);
    char *path = strdup(settings->usage_file);
    xm_settings_release(settings);
    if (keeper && path) {
        keeper->server = server;
        keeper->path = path;
        if (restore(keeper, message, size)) {
            if (start(keeper))
                return keeper;
            snprintf(message, size, "cannot start a thread");
        }
    } else {
        snprintf(message, size, "out of memory");
    }
    free(path);
    free(keeper);
    return NULL;
}

void xm_keeper_free(xm_keeper *keeper)
{
    if (!keeper)
        return;
    pthread_mutex_lock(&keeper->lock);
    keeper->stop = true;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
    pthread_join(keeper->thread, NULL);
    pthread_cond_destroy(&keeper->wake);
    pthread_mutex_destroy(&keeper->lock);
    free(keeper->path);
    free(keeper);
}

void xm_keeper_post(xm_keeper *keeper, xm_keeper_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&keeper->lock);
    *keeper->last = task;
    keeper->last = &task->next;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}

void xm_keeper_kick(xm_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}
