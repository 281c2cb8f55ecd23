/*
 * eval_report.h - the figures of xmoe-eval and their three forms: table, CSV, JSON.
 */
#ifndef XMOE_TOOLS_EVAL_REPORT_H
#define XMOE_TOOLS_EVAL_REPORT_H

#include "xmoe.h"

#include <stdio.h>

/* One file (or all) at one routing. */
typedef struct {
    char routing[48];   /* "threshold 0.9" */
    double threshold;   /* NaN where the router is not of that type */
    const char *file;   /* "all": the sum */
    uint64_t documents; /* counted, as are tokens and bytes */
    uint64_t tokens, bytes;
    uint64_t positions; /* computed: windows overlap */
    double nats;
    double loss_error, bits_per_byte_error; /* standard errors over documents; NaN: unknown */
    double seconds;
    xmoe_usage *usage; /* owned by the report once added */
} eval_row;

typedef struct {
    eval_row *rows;
    int32_t count, capacity;
} eval_report; /* start with {0} */

typedef struct {
    bool csv, json;
    bool usage; /* expert usage per layer too */
    int32_t window, stride;
} eval_style;

/* Names the routing by its first MoE layer. */
void eval_row_set_routing(eval_row *row, const xmoe_model *model, const xmoe_routing *routing);

/* Takes row->usage over, also on failure; false after a message. */
bool eval_report_add(eval_report *report, const eval_row *row);
void eval_report_print(const eval_report *report, const xmoe_model_info *info,
                       const eval_style *style);
/* In double quotes. */
void eval_print_csv_text(FILE *stream, const char *text);
void eval_report_free(eval_report *report);

#endif
