/*
 * usage_json.h - expert usage as JSON, the same shape wherever it appears.
 */
#ifndef XM_SERVER_USAGE_JSON_H
#define XM_SERVER_USAGE_JSON_H

#include "json_write.h"
#include "xmoe.h"

/* Usage beside that of a snapshot: adds "compare", and to each layer "divergence" and
 * "share_change". */
typedef struct {
    const char *snapshot;    /* its id */
    int64_t created;         /* Unix time */
    const xmoe_usage *usage; /* of the same phase, all MoE layers */
} xm_usage_comparison;

/* routing and compare may be NULL: then "router" and the comparison are left out. */
void xm_usage_write(const xmoe_model *model, const char *model_id, const xmoe_usage *usage,
                    const xmoe_routing *routing, const xm_usage_comparison *compare, xm_json *json,
                    const char *key);

/* "all", "prefill", "decode". */
const char *xm_usage_phase_name(xmoe_phase phase);
/* False for another word. */
bool xm_usage_phase_parse(const char *name, xmoe_phase *phase);

#endif
