/*
 * usage_document.h - expert usage by phase as a document: what a snapshot is, in memory, over HTTP
 * and in a file, and what the usage file holds.
 *
 *     {"object": "experts.snapshot", "id", "model", "created": Unix time, "experts": E,
 *      "phases": {"all": USAGE, "prefill": USAGE, "decode": USAGE}}
 *
 * USAGE is the object of GET /v1/experts/usage for all MoE layers since start or reset, without
 * "router". A document that is read is untrusted: memory is allocated by the model's shape, never
 * by the document's numbers, and all that can be checked is checked; unknown members are ignored.
 * Not thread-safe; a document that nobody changes may be read by many.
 */
#ifndef XM_SERVER_USAGE_DOCUMENT_H
#define XM_SERVER_USAGE_DOCUMENT_H

#include "json_read.h"
#include "json_write.h"
#include "xmoe.h"

#define XM_DOCUMENT_ID_LENGTH 64

typedef struct {
    char id[XM_DOCUMENT_ID_LENGTH + 1];
    char model[160];                 /* its id in the API */
    int64_t created;                 /* Unix time */
    xmoe_usage *phases[XMOE_PHASES]; /* by xmoe_phase: all MoE layers of the model; owned */
} xm_usage_document;                 /* start with {0}; the owner calls xm_usage_document_free */

/* [A-Za-z0-9._-]{1,64}, not beginning with a dot: safe as a file's name. */
bool xm_usage_document_id_is_valid(const char *id);

/* The engine's counters of now; the id is the caller's to set, here and below. */
xmoe_status xm_usage_document_take(xmoe_engine *engine, const char *model_id,
                                   xm_usage_document *document, xmoe_error *error);
void xm_usage_document_free(xm_usage_document *document);

void xm_usage_document_write(const xmoe_model *model, const xm_usage_document *document,
                             xm_json *json);
/* Takes a tree that fits the model's shape into *document. False with a problem that names the
 * member at fault. */
bool xm_usage_document_read(const xmoe_model *model, const cJSON *tree, xm_usage_document *document,
                            xm_problem *problem);
/* Most values that a document of this model has, with room for members that are unknown here. */
size_t xm_usage_document_values(const xmoe_model *model);

/* The same with a file; messages name it. Both wait for the disk. */
bool xm_usage_document_save(const xmoe_model *model, const xm_usage_document *document,
                            const char *path, char *message, size_t size);
bool xm_usage_document_load(const xmoe_model *model, const char *path, xm_usage_document *document,
                            char *message, size_t size);

#endif
