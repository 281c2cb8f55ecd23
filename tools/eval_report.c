/*
 * eval_report.c - see eval_report.h. Derived figures are computed here, from the sums of a row.
 */
#include "eval_report.h"

#include "cli.h"
#include "usage_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double loss(const eval_row *row)
{
    return row->nats / (double)row->tokens;
}

static double bits_per_byte(const eval_row *row)
{
    return row->nats / log(2) / (double)row->bytes;
}

static double speed(const eval_row *row)
{
    return row->seconds > 0 ? (double)row->positions / row->seconds : 0;
}

/* Multiplications and additions of a token's experts, over all MoE layers. */
static double expert_flops(const eval_row *row, const xmoe_model_info *info)
{
    double experts = 0;
    for (int32_t i = 0; i < row->usage->layer_count; i++) {
        experts += row->usage->layers[i].mean_active;
    }
    return experts * 2.0 * (double)info->expert_multiply_adds;
}

void eval_row_set_routing(eval_row *row, const xmoe_model *model, const xmoe_routing *routing)
{
    const xmoe_router *router = &routing->layers[0];
    for (int32_t i = 0; i < routing->layer_count; i++) {
        if (xmoe_model_layer_is_moe(model, i)) {
            router = &routing->layers[i];
            break;
        }
    }
    row->threshold = (double)NAN;
    switch (router->type) {
    case XMOE_ROUTER_THRESHOLD:
        row->threshold = (double)router->threshold;
        snprintf(row->routing, sizeof row->routing, "threshold %.6g", row->threshold);
        break;
    case XMOE_ROUTER_TOP_K:
        snprintf(row->routing, sizeof row->routing, "top_k %d", router->top_k);
        break;
    case XMOE_ROUTER_DENSE:
        snprintf(row->routing, sizeof row->routing, "dense");
        break;
    case XMOE_ROUTER_SIGMOID:
        row->threshold = (double)router->threshold;
        snprintf(row->routing, sizeof row->routing, "sigmoid %.6g", row->threshold);
        break;
    }
}

bool eval_report_add(eval_report *report, const eval_row *row)
{
    if (report->count == report->capacity) {
        int32_t capacity = report->capacity == 0 ? 16 : 2 * report->capacity;
        eval_row *rows = realloc(report->rows, (size_t)capacity * sizeof *rows);
        if (rows == NULL) {
            xmoe_usage_free(row->usage);
            cli_fail("out of memory");
            return false;
        }
        report->rows = rows;
        report->capacity = capacity;
    }
    report->rows[report->count++] = *row;
    return true;
}

void eval_report_free(eval_report *report)
{
    for (int32_t i = 0; i < report->count; i++) {
        xmoe_usage_free(report->rows[i].usage);
    }
    free(report->rows);
    *report = (eval_report){0};
}

/* --- table -------------------------------------------------------------------------------------
 */

static void print_table(const eval_report *report, const xmoe_model_info *info)
{
    printf("%-16s %9s %10s %8s %7s %8s %9s %7s %12s %8s  %s\n", "routing", "tokens", "bytes",
           "loss", "+-", "bits/B", "ppl", "active", "experts/tok", "pos/s", "file");
    for (int32_t i = 0; i < report->count; i++) {
        const eval_row *row = &report->rows[i];
        char bytes[32], deviation[32] = "-";
        cli_format_bytes(bytes, usage_expert_bytes(row->usage, info));
        if (isfinite(row->loss_error)) {
            snprintf(deviation, sizeof deviation, "%.4f", row->loss_error);
        }
        printf("%-16s %9llu %10llu %8.4f %7s %8.4f %9.3f %7.3f %12s %8.0f  %s\n", row->routing,
               (unsigned long long)row->tokens, (unsigned long long)row->bytes, loss(row),
               deviation, bits_per_byte(row), exp(loss(row)), row->usage->mean_active, bytes,
               speed(row), row->file);
    }
}

static void print_usage(const eval_report *report)
{
    for (int32_t i = 0; i < report->count; i++) {
        const eval_row *row = &report->rows[i];
        printf("\n%s, %s:\n", row->routing, row->file);
        usage_print(stdout, row->usage);
    }
}

/* --- CSV ---------------------------------------------------------------------------------------
 */

static void print_csv_number(double value)
{
    if (isfinite(value)) {
        printf("%.9g", value);
    }
    putchar(',');
}

void eval_print_csv_text(FILE *stream, const char *text)
{
    putc('"', stream);
    for (; *text != '\0'; text++) {
        if (*text == '"') {
            putc('"', stream);
        }
        putc(*text, stream);
    }
    putc('"', stream);
}

static void print_csv(const eval_report *report, const xmoe_model_info *info)
{
    printf("routing,threshold,documents,tokens,bytes,nats,loss,loss_error,bits_per_byte,"
           "bits_per_byte_error,perplexity,mean_active,expert_bytes_per_token,"
           "expert_flops_per_token,positions,seconds,positions_per_second,file\n");
    for (int32_t i = 0; i < report->count; i++) {
        const eval_row *row = &report->rows[i];
        printf("%s,", row->routing);
        print_csv_number(row->threshold);
        printf("%llu,%llu,%llu,", (unsigned long long)row->documents,
               (unsigned long long)row->tokens, (unsigned long long)row->bytes);
        print_csv_number(row->nats);
        print_csv_number(loss(row));
        print_csv_number(row->loss_error);
        print_csv_number(bits_per_byte(row));
        print_csv_number(row->bits_per_byte_error);
        print_csv_number(exp(loss(row)));
        print_csv_number(row->usage->mean_active);
        print_csv_number(usage_expert_bytes(row->usage, info));
        print_csv_number(expert_flops(row, info));
        printf("%llu,", (unsigned long long)row->positions);
        print_csv_number(row->seconds);
        print_csv_number(speed(row));
        eval_print_csv_text(stdout, row->file);
        putchar('\n');
    }
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static void write_row(json_writer *json, const eval_row *row, const xmoe_model_info *info,
                      bool usage)
{
    json_open_object(json, NULL);
    json_string(json, "file", row->file);
    json_string(json, "routing", row->routing);
    json_number(json, "threshold", row->threshold);
    json_unsigned(json, "documents", row->documents);
    json_unsigned(json, "tokens", row->tokens);
    json_unsigned(json, "bytes", row->bytes);
    json_number(json, "nats", row->nats);
    json_number(json, "loss", loss(row));
    json_number(json, "loss_error", row->loss_error);
    json_number(json, "bits_per_byte", bits_per_byte(row));
    json_number(json, "bits_per_byte_error", row->bits_per_byte_error);
    json_number(json, "perplexity", exp(loss(row)));
    json_number(json, "mean_active", row->usage->mean_active);
    json_number(json, "expert_bytes_per_token", usage_expert_bytes(row->usage, info));
    json_number(json, "expert_flops_per_token", expert_flops(row, info));
    json_unsigned(json, "positions", row->positions);
    json_number(json, "seconds", row->seconds);
    json_number(json, "positions_per_second", speed(row));
    if (usage) {
        usage_write_json(json, "expert_usage", info->name, row->usage);
    }
    json_close_object(json);
}

static void write_json(const eval_report *report, const xmoe_model_info *info,
                       const eval_style *style)
{
    json_writer json = {.out = stdout};
    json_open_object(&json, NULL);
    json_string(&json, "model", info->name);
    json_integer(&json, "window", style->window);
    json_integer(&json, "stride", style->stride);
    json_open_array(&json, "results");
    for (int32_t i = 0; i < report->count; i++) {
        write_row(&json, &report->rows[i], info, style->usage);
    }
    json_close_array(&json);
    json_close_object(&json);
}

void eval_report_print(const eval_report *report, const xmoe_model_info *info,
                       const eval_style *style)
{
    if (style->json) {
        write_json(report, info, style);
    } else if (style->csv) {
        print_csv(report, info);
    } else {
        print_table(report, info);
        if (style->usage) {
            print_usage(report);
        }
    }
}
