/*
 * api_snapshots.c - /v1/experts/snapshots: the counters of a moment kept under a name, to look at
 * later or to compare with (?compare= of api_usage.c).
 *
 * What changes the snapshots is a task for the keeper, because it may have to wait for a disk. The
 * task holds a reference of its exchange until it has run; once `done` is set, the HTTP thread
 * answers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "keeper.h"
#include "log.h"
#include "server.h"
#include "snapshots.h"

/* An entry of the list. */
static void write_entry(const xm_usage_document *document, xm_json *json)
{
    const xmoe_usage *all = document->phases[XMOE_PHASE_ALL];
    xm_json_open(json, NULL, '{');
    xm_json_string(json, "id", document->id);
    xm_json_string(json, "object", "experts.snapshot");
    xm_json_string(json, "model", document->model);
    xm_json_int(json, "created", document->created);
    xm_json_int(json, "since", all->since);
    xm_json_uint(json, "tokens", all->tokens);
    xm_json_close(json, '}');
}

void xm_api_snapshots(xm_exchange *exchange)
{
    size_t count = 0;
    xm_snapshot **list = xm_snapshots_list(exchange->server->snapshots, &count);
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_json_open(&json, NULL, '{');
    xm_json_string(&json, "object", "list");
    xm_json_open(&json, "data", '[');
    for (size_t i = 0; i < count; i++) {
        write_entry(&list[i]->document, &json);
        xm_snapshot_release(list[i]);
    }
    xm_json_close(&json, ']');
    xm_json_close(&json, '}');
    answer.failed = answer.failed || !list;
    free(list);
    xm_exchange_reply_json(exchange, &answer);
}

void xm_api_snapshot(xm_exchange *exchange)
{
    xm_snapshot *snapshot = xm_snapshots_find(exchange->server->snapshots, exchange->argument);
    if (!snapshot) {
        xm_problem problem = {0};
        xm_snapshots_unknown(exchange->argument, NULL, &problem);
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_usage_document_write(exchange->server->model, &snapshot->document, &json);
    xm_snapshot_release(snapshot);
    xm_exchange_reply_json(exchange, &answer);
}

/* --- changes --- */

typedef struct {
    xm_keeper_task task; /* first: the keeper knows no more of it */
    xm_exchange *exchange;
    xm_snapshot *snapshot; /* of PUT; NULL: the one that the path names is removed */
    bool replaced;
    xm_problem problem;
    atomic_bool done; /* the two above are known */
} change;

/* The keeper's thread. */
static void run_change(xm_keeper_task *task)
{
    change *work = (change *)task;
    xm_exchange *exchange = work->exchange;
    xm_snapshots *snapshots = exchange->server->snapshots;
    bool good = work->snapshot ? xm_snapshots_put(snapshots, work->snapshot,
                                                  (size_t)exchange->settings->usage_snapshots,
                                                  &work->replaced, &work->problem)
                               : xm_snapshots_remove(snapshots, exchange->argument, &work->problem);
    if (good)
        xm_log_line(XM_LOG_INFO, "%s %s the snapshot %s", exchange->id,
                    !work->snapshot  ? "removed"
                    : work->replaced ? "replaced"
                                     : "made",
                    exchange->argument);
    work->done = true;
    xm_exchange_wake(exchange);
    xm_exchange_release(exchange);
}

static void finish_change(xm_exchange *exchange)
{
    change *work = exchange->context;
    xm_text answer = {0};
    if (!work->done)
        return; /* woken for another reason */
    if (work->problem.status) {
        xm_exchange_reply_problem(exchange, &work->problem);
    } else if (work->snapshot) {
        xm_json json = {&answer, false};
        write_entry(&work->snapshot->document, &json);
        xm_exchange_reply(exchange, work->replaced ? 200 : 201, "application/json", &answer);
    } else {
        xm_exchange_reply(exchange, 204, NULL, &answer);
    }
}

static void release_change(void *context)
{
    change *work = context;
    xm_snapshot_release(work->snapshot);
    free(work);
}

static const xm_exchange_kind change_kind = {.finish = finish_change, .release = release_change};

/* Takes over the snapshot, which may be NULL. */
static void begin_change(xm_exchange *exchange, xm_snapshot *snapshot)
{
    change *work = calloc(1, sizeof *work);
    if (!work) {
        xm_problem problem = {0};
        xm_problem_set(&problem, 503, "out_of_memory", NULL, "out of memory");
        xm_snapshot_release(snapshot);
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    *work = (change){.task = {.run = run_change}, .exchange = exchange, .snapshot = snapshot};
    xm_exchange_wait(exchange, &change_kind, work);
    xm_exchange_hold(exchange); /* the task's */
    xm_keeper_post(exchange->server->keeper, &work->task);
}

/* The body as a document; *empty: it is {}. */
static bool read_document(xm_exchange *exchange, xm_usage_document *document, bool *empty,
                          xm_problem *problem)
{
    const xmoe_model *model = exchange->server->model;
    cJSON *tree = xm_json_parse_named("the body", xm_usage_document_values(model),
                                      exchange->body.data, exchange->body.length, problem);
    xm_text_free(&exchange->body);
    *empty = cJSON_IsObject(tree) && !tree->child;
    bool good = tree && (*empty || xm_usage_document_read(model, tree, document, problem));
    cJSON_Delete(tree);
    return good;
}

/* The body's snapshot, or where it has none the counters of now. */
static bool make_document(xm_exchange *exchange, xm_usage_document *document, xm_problem *problem)
{
    const xm_server *server = exchange->server;
    bool empty = exchange->body.length == 0;
    xmoe_error error = {0};
    if (!empty && !read_document(exchange, document, &empty, problem))
        return false;
    if (empty &&
        xm_usage_document_take(server->engine, server->model_id, document, &error) != XMOE_OK)
        return xm_problem_engine(problem, &error, NULL);
    snprintf(document->id, sizeof document->id, "%s", exchange->argument);
    return true;
}

void xm_api_snapshot_put(xm_exchange *exchange)
{
    xm_problem problem = {0};
    xm_usage_document document = {0};
    xm_snapshot *snapshot = NULL;
    bool good = xm_usage_document_id_is_valid(exchange->argument);
    if (!good)
        xm_problem_field(&problem, "id",
                         "the id of a snapshot has 1 to %d of the characters A-Z a-z 0-9 . _ - and "
                         "does not begin with a dot",
                         XM_DOCUMENT_ID_LENGTH);
    good = good && make_document(exchange, &document, &problem);
    if (good && !(snapshot = xm_snapshot_create(&document)))
        good = xm_problem_set(&problem, 503, "out_of_memory", NULL, "out of memory");
    if (good)
        begin_change(exchange, snapshot);
    else
        xm_exchange_reply_problem(exchange, &problem);
}

void xm_api_snapshot_delete(xm_exchange *exchange)
{
    begin_change(exchange, NULL);
}
