/*
 * usage_json.h - expert usage as JSON, the same shape wherever it appears.
 */
#ifndef XM_SERVER_USAGE_JSON_H
#define XM_SERVER_USAGE_JSON_H

#include "json_write.h"
#include "xmoe.h"

/* routing may be NULL: then "router" is left out. */
void xm_usage_write(const xmoe_model *model, const char *model_id, const xmoe_usage *usage,
                    const xmoe_routing *routing, xm_json *json, const char *key);

/* "all", "prefill", "decode"; false for another word. */
bool xm_usage_phase_parse(const char *name, xmoe_phase *phase);

#endif
