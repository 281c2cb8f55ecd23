/*
 * snapshots.h - the snapshots of expert usage that the server keeps, by id: in memory, and in
 * usage.directory, where that is set, as files ID.json that the next start reads.
 *
 * A snapshot is immutable and counted, so that it can be read without a lock while another takes
 * its place. Finding and listing may be done by any thread; put and remove wait for the disk and
 * belong to one thread, the keeper.
 */
#ifndef XM_SERVER_SNAPSHOTS_H
#define XM_SERVER_SNAPSHOTS_H

#include <stdatomic.h>

#include "usage_document.h"

typedef struct {
    xm_usage_document document;
    atomic_int references;
} xm_snapshot;

/* Takes over *document, with its memory; NULL without memory, and then *document is freed. */
xm_snapshot *xm_snapshot_create(xm_usage_document *document);
void xm_snapshot_release(xm_snapshot *snapshot); /* NULL is fine */

typedef struct xm_snapshots xm_snapshots;

/* Reads the directory ("": none), which is made if it is not there. A file ID.json that is no
 * snapshot of this model is an error, as are more than limit; other names are left alone. NULL with
 * a message. model must outlive the result. */
xm_snapshots *xm_snapshots_open(const xmoe_model *model, const char *directory, size_t limit,
                                char *message, size_t size);
void xm_snapshots_close(xm_snapshots *snapshots); /* NULL is fine */

/* The snapshot of that id, which the caller releases, or NULL. */
xm_snapshot *xm_snapshots_find(xm_snapshots *snapshots, const char *id);
/* All, by id in ascending order, in an array from malloc; the caller releases each and frees the
 * array. NULL without memory. */
xm_snapshot **xm_snapshots_list(xm_snapshots *snapshots, size_t *count);

/* Keeps a snapshot under its id, in the place of the one before, if there is one (*replaced). The
 * caller keeps its reference. False with a problem where there are limit others, or the file cannot
 * be written; then all stays as it was. */
bool xm_snapshots_put(xm_snapshots *snapshots, xm_snapshot *snapshot, size_t limit, bool *replaced,
                      xm_problem *problem);
/* False with a problem (404: there is none). */
bool xm_snapshots_remove(xm_snapshots *snapshots, const char *id, xm_problem *problem);

/* 404 that names the id. param: the query parameter that named it, or NULL. */
bool xm_snapshots_unknown(const char *id, const char *param, xm_problem *problem);

#endif
