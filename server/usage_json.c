/*
 * usage_json.c - see usage_json.h.
 */
#include "usage_json.h"

#include <math.h>
#include <string.h>

#include "router_json.h"

static const char *const phase_names[XMOE_PHASES] = {"all", "prefill", "decode"};

const char *xm_usage_phase_name(xmoe_phase phase)
{
    return phase_names[phase];
}

bool xm_usage_phase_parse(const char *name, xmoe_phase *phase)
{
    for (int i = 0; i < XMOE_PHASES; i++) {
        if (strcmp(name, phase_names[i]) == 0) {
            *phase = (xmoe_phase)i;
            return true;
        }
    }
    return false;
}

static void write_counts(xm_json *json, const char *key, const uint64_t *counts, int32_t length)
{
    xm_json_open(json, key, '[');
    for (int32_t i = 0; i < length; i++)
        xm_json_uint(json, NULL, counts[i]);
    xm_json_close(json, ']');
}

static const xmoe_layer_usage *find_layer(const xmoe_usage *usage, int32_t layer)
{
    for (int32_t i = 0; i < usage->layer_count; i++)
        if (usage->layers[i].layer == layer)
            return &usage->layers[i];
    return NULL;
}

/* NaN where the snapshot lacks the layer, or one of the two counted nothing in it. */
static double divergence(const xmoe_layer_usage *layer, const xm_usage_comparison *compare)
{
    const xmoe_layer_usage *then = find_layer(compare->usage, layer->layer);
    return then ? xmoe_usage_divergence(layer, then) : NAN;
}

static void write_change(const xmoe_layer_usage *layer, const xm_usage_comparison *compare,
                         xm_json *json)
{
    double bits = divergence(layer, compare);
    xm_json_double(json, "divergence", bits);
    if (isnan(bits)) {
        xm_json_null(json, "share_change");
        return;
    }
    const xmoe_layer_usage *then = find_layer(compare->usage, layer->layer);
    xm_json_open(json, "share_change", '[');
    for (int32_t i = 0; i < layer->experts; i++)
        xm_json_double(json, NULL,
                       (double)layer->counts[i] / (double)layer->activations -
                           (double)then->counts[i] / (double)then->activations);
    xm_json_close(json, ']');
}

static void write_comparison(const xmoe_usage *usage, const xm_usage_comparison *compare,
                             xm_json *json)
{
    double sum = 0;
    int32_t known = 0;
    for (int32_t i = 0; i < usage->layer_count; i++) {
        double bits = divergence(&usage->layers[i], compare);
        sum += isnan(bits) ? 0 : bits;
        known += !isnan(bits);
    }
    xm_json_open(json, "compare", '{');
    xm_json_string(json, "snapshot", compare->snapshot);
    xm_json_int(json, "created", compare->created);
    xm_json_uint(json, "tokens", compare->usage->tokens);
    xm_json_double(json, "divergence", known ? sum / known : NAN);
    xm_json_close(json, '}');
}

static void write_layer(const xmoe_layer_usage *layer, const xm_usage_comparison *compare,
                        xm_json *json)
{
    xm_json_open(json, NULL, '{');
    xm_json_int(json, "layer", layer->layer);
    xm_json_int(json, "experts", layer->experts);
    xm_json_uint(json, "tokens", layer->tokens);
    xm_json_uint(json, "activations", layer->activations);
    xm_json_double(json, "mean_active", layer->mean_active);
    xm_json_int(json, "max_active", layer->max_active);
    write_counts(json, "active_histogram", layer->active_histogram, layer->experts + 1);
    write_counts(json, "counts", layer->counts, layer->experts);
    xm_json_open(json, "weights", '[');
    for (int32_t i = 0; i < layer->experts; i++)
        xm_json_double(json, NULL, layer->weights[i]);
    xm_json_close(json, ']');
    xm_json_double(json, "entropy", layer->entropy);
    xm_json_double(json, "load_balance", layer->load_balance);
    xm_json_double(json, "cv", layer->cv);
    xm_json_uint(json, "steps", layer->steps);
    xm_json_uint(json, "distinct", layer->distinct);
    xm_json_double(json, "distinct_per_step", layer->distinct_per_step);
    xm_json_open(json, "dead", '[');
    for (int32_t i = 0; i < layer->dead_count; i++)
        xm_json_int(json, NULL, layer->dead[i]);
    xm_json_close(json, ']');
    if (compare)
        write_change(layer, compare, json);
    xm_json_close(json, '}');
}

static void write_summary(const xmoe_usage *usage, xm_json *json)
{
    xm_json_open(json, "summary", '{');
    xm_json_int(json, "moe_layers", usage->layer_count);
    xm_json_double(json, "mean_active", usage->mean_active);
    xm_json_double(json, "active_fraction", usage->active_fraction);
    xm_json_int(json, "dead_experts", usage->dead_experts);
    xm_json_double(json, "load_balance", usage->load_balance);
    xm_json_close(json, '}');
}

void xm_usage_write(const xmoe_model *model, const char *model_id, const xmoe_usage *usage,
                    const xmoe_routing *routing, const xm_usage_comparison *compare, xm_json *json,
                    const char *key)
{
    xm_json_open(json, key, '{');
    xm_json_string(json, "object", "experts.usage");
    xm_json_string(json, "model", model_id);
    xm_json_string(json, "phase", phase_names[usage->phase]);
    if (usage->window_seconds)
        xm_json_int(json, "window_seconds", usage->window_seconds);
    else
        xm_json_null(json, "window_seconds");
    xm_json_int(json, "since", usage->since);
    xm_json_uint(json, "tokens", usage->tokens);
    if (routing)
        xm_router_write(model, routing, json, "router");
    write_summary(usage, json);
    if (compare)
        write_comparison(usage, compare, json);
    xm_json_open(json, "layers", '[');
    for (int32_t i = 0; i < usage->layer_count; i++)
        write_layer(&usage->layers[i], compare, json);
    xm_json_close(json, ']');
    xm_json_close(json, '}');
}
