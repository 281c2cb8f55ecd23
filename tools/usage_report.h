/*
 * usage_report.h - expert usage as a table and as JSON (the field names of the HTTP API).
 */
#ifndef XMOE_TOOLS_USAGE_REPORT_H
#define XMOE_TOOLS_USAGE_REPORT_H

#include "json.h"

#include "xmoe.h"

/* One line per MoE layer. */
void usage_print(FILE *out, const xmoe_usage *usage);
void usage_write_json(json_writer *json, const char *name, const xmoe_usage *usage);

/* Weight bytes of the experts that a token takes, over all MoE layers: what decoding it alone
 * reads. */
double usage_expert_bytes(const xmoe_usage *usage, const xmoe_model_info *info);

#endif
