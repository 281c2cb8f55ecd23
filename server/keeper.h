/*
 * keeper.h - the thread that does the file work of expert usage, so that no HTTP thread and no step
 * of the engine waits for a disk: the usage file (setting usage.file), and what requests change in
 * the snapshots.
 *
 * The usage file is read when the keeper is made, written every usage.save_seconds and when it is
 * freed. Whoever frees it does so when the engine's last request has ended: then nothing counted is
 * lost. A process that is killed loses at most what was counted in the last usage.save_seconds. A
 * save that fails is logged, once until one succeeds, and changes nothing else.
 */
#ifndef XM_SERVER_KEEPER_H
#define XM_SERVER_KEEPER_H

#include "server.h"

typedef struct xm_keeper xm_keeper;

/* Work for the thread; embedded in what it works on, and owned by its poster until run is called.
 */
typedef struct xm_keeper_task xm_keeper_task;
struct xm_keeper_task {
    xm_keeper_task *next;
    void (*run)(xm_keeper_task *task); /* on the keeper's thread; may free the task */
};

/* Adds what the usage file holds to the engine's counters and starts the thread. NULL with a
 * message: a file that is broken or of another model is not touched. */
xm_keeper *xm_keeper_create(xm_server *server, char *message, size_t size);
/* Runs the tasks that wait, saves a last time, ends the thread. NULL is fine. */
void xm_keeper_free(xm_keeper *keeper);

/* Any thread; tasks run one after the other, in the order in which they were posted. */
void xm_keeper_post(xm_keeper *keeper, xm_keeper_task *task);
/* The settings have changed. */
void xm_keeper_kick(xm_keeper *keeper);

#endif
