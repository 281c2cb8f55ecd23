/*
 * metrics.c - GET /metrics in Prometheus' text format.
 *
 * Names, units and buckets are vLLM's with our prefix, so that its dashboards need only a new
 * prefix. Figures of the engine, the expert usage, HTTP and the process; all are read once per
 * scrape, nothing is computed in between.
 */
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "metrics.h"
#include "route.h"
#include "server.h"
#include "trace_writer.h"

/* A label's value: backslash, quote and newline escaped. */
static void add_label(xm_text *out, const char *name, const char *value)
{
    xm_text_format(out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\n')
            xm_text_puts(out, "\\n");
        else if (*value == '"' || *value == '\\')
            xm_text_format(out, "\\%c", *value);
        else
            xm_text_add(out, value, 1);
    }
    xm_text_puts(out, "\"");
}

void xm_metric_head(xm_metrics *metrics, const char *name, const char *type, const char *help)
{
    xm_text_format(metrics->out, "# HELP xmoe_%s %s\n# TYPE xmoe_%s %s\n", name, help, name, type);
}

void xm_metric_value(xm_metrics *metrics, const char *name, const char *labels, double value)
{
    xm_text_format(metrics->out, "xmoe_%s{%s%s%s} %.17g\n", name, metrics->model,
                   labels[0] ? "," : "", labels, value);
}

void xm_metric(xm_metrics *metrics, const char *name, const char *type, double value,
               const char *help)
{
    xm_metric_head(metrics, name, type, help);
    xm_metric_value(metrics, name, "", value);
}

void xm_metric_histogram(xm_metrics *metrics, const char *name, const xmoe_histogram *histogram,
                         const char *help)
{
    char full[96], labels[64];
    uint64_t below = 0;
    xm_metric_head(metrics, name, "histogram", help);
    snprintf(full, sizeof full, "%s_bucket", name);
    for (int32_t i = 0; i < histogram->bucket_count; i++) {
        below += histogram->counts[i];
        snprintf(labels, sizeof labels, "le=\"%.15g\"", histogram->bounds[i]);
        xm_metric_value(metrics, full, labels, (double)below);
    }
    xm_metric_value(metrics, full, "le=\"+Inf\"", (double)histogram->count);
    snprintf(full, sizeof full, "%s_sum", name);
    xm_metric_value(metrics, full, "", histogram->sum);
    snprintf(full, sizeof full, "%s_count", name);
    xm_metric_value(metrics, full, "", (double)histogram->count);
}

static void add_finished(xm_metrics *metrics, const xmoe_engine_stats *stats)
{
    const struct {
        const char *labels;
        uint64_t count;
    } rows[] = {{"finished_reason=\"stop\"", stats->requests_stop},
                {"finished_reason=\"length\"", stats->requests_length},
                {"finished_reason=\"abort\"", stats->requests_cancelled},
                {"finished_reason=\"deadline\"", stats->requests_deadline},
                {"finished_reason=\"error\"", stats->requests_error}};
    xm_metric_head(metrics, "request_success_total", "counter", "Requests ended, by how.");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        xm_metric_value(metrics, "request_success_total", rows[i].labels, (double)rows[i].count);
}

static void add_load(xm_metrics *metrics, const xmoe_engine_stats *stats)
{
    double total = stats->kv_blocks_total;
    xm_metric(metrics, "num_requests_running", "gauge", stats->requests_running,
              "Requests in the running batch.");
    xm_metric(metrics, "num_requests_waiting", "gauge", stats->requests_waiting,
              "Requests in the queue.");
    xm_metric(metrics, "num_sequences_running", "gauge", stats->sequences_running,
              "Sequences in the running batch.");
    xm_metric(metrics, "kv_cache_usage_perc", "gauge",
              total > 0 ? stats->kv_blocks_used / total : 0,
              "Part of the KV cache that running sequences use (0 to 1).");
    xm_metric(metrics, "kv_blocks", "gauge", total, "Blocks of the KV cache.");
    xm_metric(metrics, "kv_blocks_used", "gauge", stats->kv_blocks_used,
              "KV blocks that running sequences use.");
    xm_metric(metrics, "kv_blocks_cached", "gauge", stats->kv_blocks_cached,
              "KV blocks held only by the prefix cache.");
}

static void add_counters(xm_metrics *metrics, const xmoe_engine_stats *stats)
{
    xm_metric(metrics, "requests_submitted_total", "counter", (double)stats->requests_submitted,
              "Requests admitted to the queue.");
    xm_metric(metrics, "prompt_tokens_total", "counter", (double)stats->prompt_tokens,
              "Prompt tokens processed.");
    xm_metric(metrics, "generation_tokens_total", "counter", (double)stats->generation_tokens,
              "Tokens generated.");
    xm_metric(metrics, "prefix_cache_queries_total", "counter", (double)stats->prefix_queries,
              "Prompt tokens looked up in the prefix cache.");
    xm_metric(metrics, "prefix_cache_hits_total", "counter", (double)stats->prefix_hits,
              "Prompt tokens found in the prefix cache.");
    xm_metric(metrics, "num_preemptions_total", "counter", (double)stats->preemptions,
              "Sequences put back to the queue for lack of KV blocks.");
    xm_metric(metrics, "steps_total", "counter", (double)stats->steps, "Steps of the model.");
    xm_metric(metrics, "expert_bytes_read_total", "counter", (double)stats->expert_bytes_read,
              "Bytes of expert weights read: distinct experts touched per step.");
    xm_metric(metrics, "prompt_seconds_total", "counter", stats->prompt_seconds,
              "Time spent on prompts, summed over requests.");
    xm_metric(metrics, "decode_seconds_total", "counter", stats->decode_seconds,
              "Time spent on decoding, summed over requests.");
    add_finished(metrics, stats);
}

static void add_histograms(xm_metrics *metrics, const xmoe_engine_stats *stats)
{
    xm_metric_histogram(metrics, "time_to_first_token_seconds", &stats->time_to_first_token,
                        "From submission to the first token.");
    xm_metric_histogram(metrics, "time_per_output_token_seconds", &stats->inter_token,
                        "Between two tokens of a choice.");
    xm_metric_histogram(metrics, "inter_token_latency_seconds", &stats->inter_token,
                        "The same under its newer name.");
    xm_metric_histogram(metrics, "e2e_request_latency_seconds", &stats->end_to_end,
                        "From submission to the end.");
    xm_metric_histogram(metrics, "request_queue_time_seconds", &stats->queue_time,
                        "From submission to the first step.");
    xm_metric_histogram(metrics, "request_prefill_time_seconds", &stats->prefill_time,
                        "From the first step to the first token.");
    xm_metric_histogram(metrics, "request_decode_time_seconds", &stats->decode_time,
                        "From the first token to the end.");
    xm_metric_histogram(metrics, "request_prompt_tokens", &stats->prompt_length,
                        "Prompt tokens per request.");
    xm_metric_histogram(metrics, "request_generation_tokens", &stats->generation_length,
                        "Tokens generated per request.");
    xm_metric_histogram(metrics, "iteration_tokens_total", &stats->step_tokens, "Tokens per step.");
}

static void add_model_info(xm_metrics *metrics, const xm_server *server)
{
    const xmoe_model_info *info = xmoe_model_get_info(server->model);
    xm_text labels = {0};
    add_label(&labels, "architecture", info->architecture);
    xm_text_puts(&labels, ",");
    add_label(&labels, "quantization", info->quantization);
    xm_text_puts(&labels, ",");
    add_label(&labels, "isa", info->isa);
    xm_text_format(&labels, ",layers=\"%d\",moe_layers=\"%d\",experts=\"%d\",context=\"%d\"",
                   info->layer_count, info->moe_layer_count, info->expert_count,
                   info->context_length);
    xm_metric_head(metrics, "model_info", "gauge", "What is served; always 1.");
    if (!labels.failed)
        xm_metric_value(metrics, "model_info", labels.data, 1);
    xm_text_free(&labels);
    xm_metric(metrics, "model_parameters", "gauge", (double)info->parameter_count,
              "Parameters of the model.");
    xm_metric(metrics, "model_weight_bytes", "gauge", (double)info->weight_bytes,
              "Bytes of the model's weights.");
    xm_metric(metrics, "model_expert_bytes", "gauge", (double)info->expert_bytes,
              "Bytes of one expert of one layer.");
}

static void add_cache_config(xm_metrics *metrics, const xm_settings *settings,
                             const xmoe_engine_stats *stats)
{
    char labels[160];
    snprintf(labels, sizeof labels,
             "cache_dtype=\"%s\",enable_prefix_caching=\"%s\",num_cpu_blocks=\"%d\"",
             settings->engine_kv_type, settings->engine_prefix_cache ? "true" : "false",
             stats->kv_blocks_total);
    xm_metric_head(metrics, "cache_config_info", "gauge", "How the KV cache is set; always 1.");
    xm_metric_value(metrics, "cache_config_info", labels, 1);
}

static void add_http(xm_metrics *metrics, xm_server *server)
{
    char labels[160];
    xm_metric(metrics, "http_requests_in_flight", "gauge", server->exchanges,
              "HTTP requests without a complete answer.");
    xm_metric_head(metrics, "http_requests_total", "counter",
                   "HTTP requests answered, by endpoint and code; 499: the client went away.");
    for (size_t route = 0; route <= xm_route_count; route++) {
        bool known = route < xm_route_count;
        for (size_t code = 0; code < XM_CODE_LIMIT; code++) {
            uint64_t count = server->answers[route][code];
            if (count == 0)
                continue;
            snprintf(labels, sizeof labels, "endpoint=\"%s\",method=\"%s\",code=\"%d\"",
                     known ? xm_route_table[route].path : "other",
                     known ? xm_route_table[route].method : "", xm_counted_codes[code]);
            xm_metric_value(metrics, "http_requests_total", labels, (double)count);
        }
    }
}

void xm_api_metrics(xm_exchange *exchange)
{
    xm_server *server = exchange->server;
    xm_text answer = {0}, model = {0};
    add_label(&model, "model_name", server->loaded ? server->model_id : "");
    if (model.failed)
        xm_text_puts(&model, "");
    xm_metrics metrics = {&answer, model.data ? model.data : ""};
    xm_metric_head(&metrics, "build_info", "gauge", "Version of the server; always 1.");
    xm_metric_value(&metrics, "build_info", "version=\"" XM_VERSION_TEXT "\"", 1);
    if (server->loaded) {
        xmoe_engine_stats stats = {0};
        xmoe_engine_get_stats(server->engine, &stats);
        add_model_info(&metrics, server);
        add_cache_config(&metrics, exchange->settings, &stats);
        add_load(&metrics, &stats);
        add_counters(&metrics, &stats);
        add_histograms(&metrics, &stats);
        xm_metrics_requests(&metrics, server);
        xm_metric(&metrics, "trace_dropped_total", "counter",
                  server->trace_writer ? (double)xm_trace_writer_dropped(server->trace_writer) : 0,
                  "Rows of the trace that its file was too slow for.");
        xm_metrics_experts(&metrics, server, exchange->settings->metrics_expert_tokens);
    }
    add_http(&metrics, server);
    xm_metrics_process(&metrics, server);
    xm_text_free(&model);
    xm_exchange_reply(exchange, 200, "text/plain; version=0.0.4; charset=utf-8", &answer);
}
