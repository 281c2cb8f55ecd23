/* usage_view.c - see usage_view.h. Any thread; a view belongs to who made it. */
#include "serve/usage_view.h"

#include "base/memory.h"
#include "serve/usage.h"

#include <math.h>
#include <string.h>

xmoe_status xm_usage_view_create(const int32_t *layers, int32_t layer_count, int32_t experts,
                                 xm_usage_view **view_out, xmoe_error *error)
{
    *view_out = NULL;
    size_t n = (size_t)layer_count, e = (size_t)experts;
    xm_usage_view *view = xm_calloc(1, sizeof *view);
    if (view == NULL)
        return xm_fail_memory(error, "expert usage", sizeof *view);
    view->experts = experts;
    view->capacity = layer_count;
    view->records = xm_calloc(n * xm_usage_record_size(experts), sizeof(uint64_t));
    view->layers = xm_calloc(n, sizeof *view->layers);
    view->weights = xm_calloc(n * e, sizeof(double));
    view->dead = xm_calloc(n * e, sizeof(int32_t));
    if (view->records == NULL || view->layers == NULL || view->weights == NULL ||
        view->dead == NULL) {
        xm_usage_view_free(view);
        return xm_fail_memory(error, "expert usage", n * e * 40);
    }
    for (int32_t i = 0; i < layer_count; i++)
        view->layers[i].layer = layers[i];
    *view_out = view;
    return XMOE_OK;
}

void xm_usage_view_free(xm_usage_view *view)
{
    if (view == NULL)
        return;
    xm_free(view->records);
    xm_free(view->restored);
    xm_free(view->layers);
    xm_free(view->weights);
    xm_free(view->dead);
    xm_free(view);
}

uint64_t *xm_usage_view_record(const xm_usage_view *view, int32_t index)
{
    return view->records + (size_t)index * xm_usage_record_size(view->experts);
}

/* Entropy, Jain's index, coefficient of variation and the dead of counts[experts]. */
static void derive_balance(xmoe_layer_usage *layer, int32_t *dead)
{
    double total = (double)layer->activations, squares = 0, entropy = 0;
    for (int32_t e = 0; e < layer->experts; e++) {
        double count = (double)layer->counts[e];
        if (layer->counts[e] == 0) {
            dead[layer->dead_count++] = e;
            continue;
        }
        squares += count * count;
        entropy -= count / total * log(count / total);
    }
    layer->dead = dead;
    if (layer->activations == 0)
        return;
    double experts = layer->experts, mean = total / experts;
    double variance = squares / experts - mean * mean;
    layer->entropy = layer->experts > 1 ? entropy / log(experts) : 1;
    layer->load_balance = total * total / (experts * squares);
    layer->cv = variance > 0 ? sqrt(variance) / mean : 0;
}

static void derive_layer(xm_usage_view *view, int32_t index)
{
    const uint64_t *record = xm_usage_view_record(view, index);
    xmoe_layer_usage *layer = &view->layers[index];
    int32_t experts = view->experts;
    *layer = (xmoe_layer_usage){.layer = layer->layer,
                                .experts = experts,
                                .active_histogram = record + XM_USAGE_HISTOGRAM,
                                .counts = record + xm_usage_counts_at(experts)};
    double *weights = view->weights + (size_t)index * (size_t)experts;
    for (int32_t e = 0; e < experts; e++) {
        layer->activations += layer->counts[e];
        weights[e] = (double)record[xm_usage_weights_at(experts) + (size_t)e] * 0x1p-28;
    }
    layer->weights = weights;
    for (int32_t i = 0; i <= experts; i++) {
        layer->tokens += layer->active_histogram[i];
        if (layer->active_histogram[i] > 0)
            layer->max_active = i;
    }
    if (layer->tokens > 0)
        layer->mean_active = (double)layer->activations / (double)layer->tokens;
    layer->steps = record[XM_USAGE_STEPS];
    layer->distinct = record[XM_USAGE_DISTINCT];
    if (layer->steps > 0)
        layer->distinct_per_step = (double)layer->distinct / (double)layer->steps;
    derive_balance(layer, view->dead + (size_t)index * (size_t)experts);
}

void xm_usage_view_derive(xm_usage_view *view)
{
    xmoe_usage *usage = &view->usage;
    usage->layer_count = view->capacity;
    usage->layers = view->layers;
    usage->mean_active = usage->active_fraction = usage->load_balance = 0;
    usage->dead_experts = 0;
    for (int32_t i = 0; i < view->capacity; i++) {
        derive_layer(view, i);
        const xmoe_layer_usage *layer = &view->layers[i];
        usage->mean_active += layer->mean_active / view->capacity;
        usage->active_fraction += layer->mean_active / layer->experts / view->capacity;
        usage->load_balance += layer->load_balance / view->capacity;
        usage->dead_experts += layer->dead_count;
    }
    usage->tokens = view->capacity > 0 ? view->layers[0].tokens : 0;
}

void xmoe_usage_free(xmoe_usage *usage)
{
    xm_usage_view_free((xm_usage_view *)usage);
}
