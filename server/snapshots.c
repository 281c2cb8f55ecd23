/*
 * snapshots.c - see snapshots.h.
 *
 * The mutex guards the table alone and is held for no file: put and remove change the file first
 * and then the table. So the table says at most less than the disk, and a crash in between loses
 * nothing that was answered.
 */
#include "snapshots.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"

#define SUFFIX ".json"

struct xm_snapshots {
    const xmoe_model *model;
    char directory[PATH_MAX]; /* "": none */

    pthread_mutex_t lock;
    xm_snapshot **items; /* by id, ascending; one reference each */
    size_t count, capacity;
};

xm_snapshot *xm_snapshot_create(xm_usage_document *document)
{
    xm_snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (!snapshot) {
        xm_usage_document_free(document);
        return NULL;
    }
    snapshot->document = *document;
    snapshot->references = 1;
    *document = (xm_usage_document){0};
    return snapshot;
}

static xm_snapshot *hold(xm_snapshot *snapshot)
{
    atomic_fetch_add(&snapshot->references, 1);
    return snapshot;
}

void xm_snapshot_release(xm_snapshot *snapshot)
{
    if (!snapshot || atomic_fetch_sub(&snapshot->references, 1) > 1)
        return;
    xm_usage_document_free(&snapshot->document);
    free(snapshot);
}

/* Index of the id, or of where it belongs. */
static size_t place_of(const xm_snapshots *snapshots, const char *id, bool *found)
{
    size_t low = 0, high = snapshots->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(snapshots->items[middle]->document.id, id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *found = low < snapshots->count && strcmp(snapshots->items[low]->document.id, id) == 0;
    return low;
}

/* Room for one more. */
static bool reserve(xm_snapshots *snapshots)
{
    if (snapshots->count < snapshots->capacity)
        return true;
    size_t capacity = snapshots->capacity ? snapshots->capacity * 2 : 16;
    xm_snapshot **items = realloc(snapshots->items, capacity * sizeof(xm_snapshot *));
    if (!items)
        return false;
    snapshots->items = items;
    snapshots->capacity = capacity;
    return true;
}

/* Takes over one reference; there is room. Returns what was there before, or NULL. */
static xm_snapshot *insert(xm_snapshots *snapshots, xm_snapshot *snapshot)
{
    bool found;
    size_t at = place_of(snapshots, snapshot->document.id, &found);
    xm_snapshot *before = found ? snapshots->items[at] : NULL;
    if (!found) {
        memmove(snapshots->items + at + 1, snapshots->items + at,
                (snapshots->count - at) * sizeof(xm_snapshot *));
        snapshots->count++;
    }
    snapshots->items[at] = snapshot;
    return before;
}

/* The id of a file's name; false if it is none of ours. */
static bool id_of(const char *name, char id[XM_DOCUMENT_ID_LENGTH + 1])
{
    size_t length = strlen(name), suffix = strlen(SUFFIX);
    if (length <= suffix || strcmp(name + length - suffix, SUFFIX) != 0 ||
        length - suffix > XM_DOCUMENT_ID_LENGTH)
        return false;
    snprintf(id, XM_DOCUMENT_ID_LENGTH + 1, "%.*s", (int)(length - suffix), name);
    return xm_usage_document_id_is_valid(id);
}

static bool path_of(const xm_snapshots *snapshots, const char *id, char *path)
{
    int length = snprintf(path, PATH_MAX, "%s/%s" SUFFIX, snapshots->directory, id);
    return length > 0 && length < PATH_MAX;
}

static bool read_one(xm_snapshots *snapshots, const char *id, char *message, size_t size)
{
    char path[PATH_MAX];
    xm_usage_document document = {0};
    if (!path_of(snapshots, id, path)) {
        snprintf(message, size, "the path is too long");
        return false;
    }
    if (!xm_usage_document_load(snapshots->model, path, &document, message, size))
        return false;
    snprintf(document.id, sizeof document.id, "%s", id); /* the file's name counts */
    xm_snapshot *snapshot = xm_snapshot_create(&document);
    if (snapshot && reserve(snapshots)) {
        insert(snapshots, snapshot);
        return true;
    }
    xm_snapshot_release(snapshot);
    snprintf(message, size, "out of memory");
    return false;
}

static bool read_directory(xm_snapshots *snapshots, size_t limit, char *message, size_t size)
{
    const char *path = snapshots->directory;
    DIR *directory = NULL;
    if ((mkdir(path, 0777) != 0 && errno != EEXIST) || !(directory = opendir(path))) {
        snprintf(message, size, "%s: %s", path, strerror(errno));
        return false;
    }
    bool good = true;
    for (const struct dirent *entry; good && (entry = readdir(directory));) {
        char id[XM_DOCUMENT_ID_LENGTH + 1];
        if (!id_of(entry->d_name, id))
            continue;
        good = snapshots->count < limit;
        if (good)
            good = read_one(snapshots, id, message, size);
        else
            snprintf(message, size, "%s holds more than %zu snapshots (setting usage.snapshots)",
                     path, limit);
    }
    closedir(directory);
    return good;
}

xm_snapshots *xm_snapshots_open(const xmoe_model *model, const char *directory, size_t limit,
                                char *message, size_t size)
{
    xm_snapshots *snapshots = calloc(1, sizeof *snapshots);
    if (!snapshots) {
        snprintf(message, size, "out of memory");
        return NULL;
    }
    char fault[PATH_MAX + 128];
    pthread_mutex_init(&snapshots->lock, NULL);
    snapshots->model = model;
    int length = snprintf(snapshots->directory, sizeof snapshots->directory, "%s", directory);
    bool good = (size_t)length < sizeof snapshots->directory;
    if (!good)
        snprintf(fault, sizeof fault, "the path is too long");
    if (good && directory[0])
        good = read_directory(snapshots, limit, fault, sizeof fault);
    if (good)
        return snapshots;
    snprintf(message, size, "setting 'usage.directory': %s", fault);
    xm_snapshots_close(snapshots);
    return NULL;
}

void xm_snapshots_close(xm_snapshots *snapshots)
{
    if (!snapshots)
        return;
    for (size_t i = 0; i < snapshots->count; i++)
        xm_snapshot_release(snapshots->items[i]);
    free(snapshots->items);
    pthread_mutex_destroy(&snapshots->lock);
    free(snapshots);
}

xm_snapshot *xm_snapshots_find(xm_snapshots *snapshots, const char *id)
{
    bool found;
    pthread_mutex_lock(&snapshots->lock);
    size_t at = place_of(snapshots, id, &found);
    xm_snapshot *snapshot = found ? hold(snapshots->items[at]) : NULL;
    pthread_mutex_unlock(&snapshots->lock);
    return snapshot;
}

xm_snapshot **xm_snapshots_list(xm_snapshots *snapshots, size_t *count)
{
    pthread_mutex_lock(&snapshots->lock);
    xm_snapshot **list = malloc((snapshots->count + 1) * sizeof(xm_snapshot *));
    *count = list ? snapshots->count : 0;
    for (size_t i = 0; i < *count; i++)
        list[i] = hold(snapshots->items[i]);
    pthread_mutex_unlock(&snapshots->lock);
    return list;
}

/* Of the disk; the client can do nothing about it. */
static bool fail_file(const char *message, xm_problem *problem)
{
    return xm_problem_set(problem, 500, "snapshot_file", NULL, "%s", message);
}

static bool write_file(const xm_snapshots *snapshots, const xm_snapshot *snapshot,
                       xm_problem *problem)
{
    char path[PATH_MAX], message[384] = "the path is too long";
    return !snapshots->directory[0] ||
           (path_of(snapshots, snapshot->document.id, path) &&
            xm_usage_document_save(snapshots->model, &snapshot->document, path, message,
                                   sizeof message)) ||
           fail_file(message, problem);
}

/* That the table is looked at, left and then changed is safe: nobody else changes it. */
bool xm_snapshots_put(xm_snapshots *snapshots, xm_snapshot *snapshot, size_t limit, bool *replaced,
                      xm_problem *problem)
{
    pthread_mutex_lock(&snapshots->lock);
    place_of(snapshots, snapshot->document.id, replaced);
    bool full = !*replaced && snapshots->count >= limit;
    bool room = *replaced || reserve(snapshots);
    pthread_mutex_unlock(&snapshots->lock);
    if (full)
        return xm_problem_set(
            problem, 400, "snapshot_limit", NULL,
            "at most %zu snapshots are kept (setting usage.snapshots); delete one "
            "first",
            limit);
    if (!room)
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    if (!write_file(snapshots, snapshot, problem))
        return false;
    pthread_mutex_lock(&snapshots->lock);
    xm_snapshot *before = insert(snapshots, hold(snapshot));
    pthread_mutex_unlock(&snapshots->lock);
    xm_snapshot_release(before);
    return true;
}

static bool remove_file(const xm_snapshots *snapshots, const char *id, xm_problem *problem)
{
    char path[PATH_MAX], message[384] = "the path is too long";
    return !snapshots->directory[0] ||
           (path_of(snapshots, id, path) && xm_file_remove(path, message, sizeof message)) ||
           fail_file(message, problem);
}

bool xm_snapshots_remove(xm_snapshots *snapshots, const char *id, xm_problem *problem)
{
    bool found;
    pthread_mutex_lock(&snapshots->lock);
    place_of(snapshots, id, &found);
    pthread_mutex_unlock(&snapshots->lock);
    if (!found)
        return xm_snapshots_unknown(id, NULL, problem);
    if (!remove_file(snapshots, id, problem))
        return false;
    pthread_mutex_lock(&snapshots->lock);
    size_t at = place_of(snapshots, id, &found);
    xm_snapshot *removed = snapshots->items[at];
    snapshots->count--;
    memmove(snapshots->items + at, snapshots->items + at + 1,
            (snapshots->count - at) * sizeof(xm_snapshot *));
    pthread_mutex_unlock(&snapshots->lock);
    xm_snapshot_release(removed);
    return true;
}

bool xm_snapshots_unknown(const char *id, const char *param, xm_problem *problem)
{
    return xm_problem_set(problem, 404, "snapshot_not_found", param,
                          "there is no snapshot '%.80s'; GET /v1/experts/snapshots lists them", id);
}
