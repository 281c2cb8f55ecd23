/*
 * usage_report.h - expert usage as a table and as JSON: the object of GET /v1/experts/usage, but
 * for its router.
 */
#ifndef XMOE_TOOLS_USAGE_REPORT_H
#define XMOE_TOOLS_USAGE_REPORT_H

#include "json.h"

#include "xmoe.h"

/* "all", "prefill", "decode". */
const char *usage_phase_name(xmoe_phase phase);
/* Parses such a name; false if it is none. */
bool usage_phase_parse(const char *name, xmoe_phase *phase);

/* The part of the layer's activations that the expert has; 0 where there are none. */
double usage_share(const xmoe_layer_usage *layer, int32_t expert);

/* One line per MoE layer. */
void usage_print(FILE *out, const xmoe_usage *usage);
void usage_write_json(json_writer *json, const char *name, const char *model,
                      const xmoe_usage *usage);

/* Weight bytes of the experts that a token takes, over all MoE layers: what decoding it alone
 * reads. */
double usage_expert_bytes(const xmoe_usage *usage, const xmoe_model_info *info);

#endif
