/*
 * usage_report.c - see usage_report.h.
 */
#include "usage_report.h"

#include <string.h>

enum { SHOWN_EXPERTS = 4 };

static const char *const phase_names[XMOE_PHASES] = {"all", "prefill", "decode"};

const char *usage_phase_name(xmoe_phase phase)
{
    return phase_names[phase];
}

bool usage_phase_parse(const char *name, xmoe_phase *phase)
{
    for (int32_t i = 0; i < XMOE_PHASES; i++) {
        if (strcmp(name, phase_names[i]) == 0) {
            *phase = (xmoe_phase)i;
            return true;
        }
    }
    return false;
}

double usage_share(const xmoe_layer_usage *layer, int32_t expert)
{
    return layer->activations > 0 ? (double)layer->counts[expert] / (double)layer->activations : 0;
}

/* The most used experts as "12:31% 3:20%": share of the layer's activations. */
static void format_top(const xmoe_layer_usage *layer, char *buffer, size_t size)
{
    int32_t shown[SHOWN_EXPERTS];
    int32_t count = 0;
    size_t used = 0;
    buffer[0] = '\0';
    while (count < SHOWN_EXPERTS && count < layer->experts) {
        int32_t best = -1;
        for (int32_t e = 0; e < layer->experts; e++) {
            bool taken = false;
            for (int32_t i = 0; i < count; i++) {
                taken = taken || shown[i] == e;
            }
            if (!taken && (best < 0 || layer->counts[e] > layer->counts[best])) {
                best = e;
            }
        }
        if (layer->counts[best] == 0) {
            break;
        }
        shown[count++] = best;
        int written = snprintf(buffer + used, size - used, "%s%d:%.0f%%", count > 1 ? " " : "",
                               best, 100 * usage_share(layer, best));
        used += (size_t)written < size - used ? (size_t)written : size - used - 1;
    }
}

void usage_print(FILE *out, const xmoe_usage *usage)
{
    fprintf(out, "%5s %8s %9s %7s %5s %9s %8s %8s %5s  %s\n", "layer", "experts", "tokens",
            "active", "max", "distinct", "entropy", "balance", "dead", "most used");
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *layer = &usage->layers[i];
        char top[96];
        format_top(layer, top, sizeof top);
        fprintf(out, "%5d %8d %9llu %7.2f %5d %9.1f %8.3f %8.3f %5d  %s\n", layer->layer,
                layer->experts, (unsigned long long)layer->tokens, layer->mean_active,
                layer->max_active, layer->distinct_per_step, layer->entropy, layer->load_balance,
                layer->dead_count, top);
    }
    fprintf(out, "%5s %8s %9llu %7.2f %5s %9s %8s %8.3f %5d\n", "all", "",
            (unsigned long long)usage->tokens, usage->mean_active, "", "", "", usage->load_balance,
            usage->dead_experts);
}

static void write_counts(json_writer *json, const char *name, const uint64_t *values, int32_t count)
{
    json_open_row(json, name);
    for (int32_t i = 0; i < count; i++) {
        json_unsigned(json, NULL, values[i]);
    }
    json_close_array(json);
}

static void write_layer(json_writer *json, const xmoe_layer_usage *layer)
{
    json_open_object(json, NULL);
    json_integer(json, "layer", layer->layer);
    json_integer(json, "experts", layer->experts);
    json_unsigned(json, "tokens", layer->tokens);
    json_unsigned(json, "activations", layer->activations);
    json_number(json, "mean_active", layer->mean_active);
    json_integer(json, "max_active", layer->max_active);
    write_counts(json, "active_histogram", layer->active_histogram, layer->experts + 1);
    write_counts(json, "counts", layer->counts, layer->experts);
    json_open_row(json, "weights");
    for (int32_t e = 0; e < layer->experts; e++) {
        json_exact(json, NULL, layer->weights[e]);
    }
    json_close_array(json);
    json_number(json, "entropy", layer->entropy);
    json_number(json, "load_balance", layer->load_balance);
    json_number(json, "cv", layer->cv);
    json_unsigned(json, "steps", layer->steps);
    json_unsigned(json, "distinct", layer->distinct);
    json_number(json, "distinct_per_step", layer->distinct_per_step);
    json_open_row(json, "dead");
    for (int32_t i = 0; i < layer->dead_count; i++) {
        json_integer(json, NULL, layer->dead[i]);
    }
    json_close_array(json);
    json_close_object(json);
}

void usage_write_json(json_writer *json, const char *name, const char *model,
                      const xmoe_usage *usage)
{
    json_open_object(json, name);
    json_string(json, "object", "experts.usage");
    json_string(json, "model", model);
    json_string(json, "phase", usage_phase_name(usage->phase));
    if (usage->window_seconds > 0) {
        json_integer(json, "window_seconds", usage->window_seconds);
    } else {
        json_null(json, "window_seconds");
    }
    json_integer(json, "since", usage->since);
    json_unsigned(json, "tokens", usage->tokens);
    json_open_object(json, "summary");
    json_integer(json, "moe_layers", usage->layer_count);
    json_number(json, "mean_active", usage->mean_active);
    json_number(json, "active_fraction", usage->active_fraction);
    json_integer(json, "dead_experts", usage->dead_experts);
    json_number(json, "load_balance", usage->load_balance);
    json_close_object(json);
    json_open_array(json, "layers");
    for (int32_t i = 0; i < usage->layer_count; i++) {
        write_layer(json, &usage->layers[i]);
    }
    json_close_array(json);
    json_close_object(json);
}

double usage_expert_bytes(const xmoe_usage *usage, const xmoe_model_info *info)
{
    double experts = 0;
    for (int32_t i = 0; i < usage->layer_count; i++) {
        experts += usage->layers[i].mean_active;
    }
    return experts * (double)info->expert_bytes;
}
