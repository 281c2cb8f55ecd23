/*
 * metrics_experts.c - expert usage in /metrics: how many experts a token took, and which; what
 * alerts need per layer, from the counters since start or reset (of a usage file too).
 *
 * One series per layer and expert is a lot (48 layers of 128 experts make 6144), so that is a
 * setting; the histogram per layer is always there, and its sum is the layer's activations. A reset
 * of the counters is to Prometheus what a restart is: a counter that begins again at zero.
 */
#include <stdio.h>
#include <string.h>

#include "metrics.h"

/* Bounds of the histogram; those below the number of experts are used. */
static const int32_t bounds[] = {1,  2,  3,  4,  6,   8,   12,  16,  24,
                                 32, 48, 64, 96, 128, 192, 256, 384, 512};

static void add_active(xm_metrics *metrics, const xmoe_layer_usage *layer)
{
    char labels[64];
    uint64_t below = 0;
    int32_t next = 0;
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds && bounds[i] <= layer->experts; i++) {
        for (; next <= bounds[i]; next++)
            below += layer->active_histogram[next];
        snprintf(labels, sizeof labels, "layer=\"%d\",le=\"%d\"", layer->layer, bounds[i]);
        xm_metric_value(metrics, "active_experts_bucket", labels, (double)below);
    }
    snprintf(labels, sizeof labels, "layer=\"%d\",le=\"+Inf\"", layer->layer);
    xm_metric_value(metrics, "active_experts_bucket", labels, (double)layer->tokens);
    snprintf(labels, sizeof labels, "layer=\"%d\"", layer->layer);
    xm_metric_value(metrics, "active_experts_sum", labels, (double)layer->activations);
    xm_metric_value(metrics, "active_experts_count", labels, (double)layer->tokens);
}

static void add_tokens(xm_metrics *metrics, const xmoe_layer_usage *layer, bool full)
{
    char labels[64];
    if (!full) {
        snprintf(labels, sizeof labels, "layer=\"%d\"", layer->layer);
        xm_metric_value(metrics, "expert_tokens_total", labels, (double)layer->activations);
        return;
    }
    for (int32_t expert = 0; expert < layer->experts; expert++) {
        snprintf(labels, sizeof labels, "layer=\"%d\",expert=\"%d\"", layer->layer, expert);
        xm_metric_value(metrics, "expert_tokens_total", labels, (double)layer->counts[expert]);
    }
}

static double count_experts(const xmoe_layer_usage *layer)
{
    return layer->experts;
}

static double count_dead(const xmoe_layer_usage *layer)
{
    return layer->dead_count;
}

static double mean_active(const xmoe_layer_usage *layer)
{
    return layer->mean_active;
}

static double load_balance(const xmoe_layer_usage *layer)
{
    return layer->load_balance;
}

static double variation(const xmoe_layer_usage *layer)
{
    return layer->cv;
}

static double entropy(const xmoe_layer_usage *layer)
{
    return layer->entropy;
}

static double distinct_per_step(const xmoe_layer_usage *layer)
{
    return layer->distinct_per_step;
}

static double activations(const xmoe_layer_usage *layer)
{
    return (double)layer->activations;
}

static double tokens(const xmoe_layer_usage *layer)
{
    return (double)layer->tokens;
}

/* One figure per layer. */
static const struct {
    const char *name, *type, *help;
    double (*value)(const xmoe_layer_usage *layer);
} figures[] = {
    {"experts", "gauge", "Experts that the layer has.", count_experts},
    {"dead_experts", "gauge", "Of them, those that served no token since start or reset.",
     count_dead},
    {"mean_active_experts", "gauge", "Mean experts per token since start or reset.", mean_active},
    {"expert_load_balance", "gauge", "Jain's index of the tokens per expert: 1 = even.",
     load_balance},
    {"expert_cv", "gauge", "Standard deviation of the tokens per expert, divided by their mean.",
     variation},
    {"expert_entropy", "gauge",
     "Entropy of the tokens per expert, divided by the logarithm of their number: 1 = even.",
     entropy},
    {"distinct_experts_per_step", "gauge", "Mean experts that a step touches.", distinct_per_step},
    {"expert_activations_total", "counter", "Pairs of a token and an expert that served it.",
     activations},
    {"routed_tokens_total", "counter", "Tokens that passed through the layer.", tokens},
};

static void add_figures(xm_metrics *metrics, const xmoe_usage *usage)
{
    char labels[64];
    for (size_t f = 0; f < sizeof figures / sizeof *figures; f++) {
        xm_metric_head(metrics, figures[f].name, figures[f].type, figures[f].help);
        for (int32_t i = 0; i < usage->layer_count; i++) {
            const xmoe_layer_usage *layer = &usage->layers[i];
            snprintf(labels, sizeof labels, "layer=\"%d\"", layer->layer);
            xm_metric_value(metrics, figures[f].name, labels, figures[f].value(layer));
        }
    }
}

void xm_metrics_experts(xm_metrics *metrics, xm_server *server, const char *detail)
{
    xmoe_usage *usage = NULL;
    if (xmoe_usage_get(server->engine, -1, XMOE_PHASE_ALL, 0, &usage, NULL) != XMOE_OK)
        return; /* no memory for it: the rest of the page still counts */
    xm_metric_head(metrics, "active_experts", "histogram", "Experts chosen per token and layer.");
    for (int32_t i = 0; i < usage->layer_count; i++)
        add_active(metrics, &usage->layers[i]);
    if (strcmp(detail, "off") != 0) {
        xm_metric_head(metrics, "expert_tokens_total", "counter",
                       "Tokens that experts served, by layer and perhaps expert.");
        for (int32_t i = 0; i < usage->layer_count; i++)
            add_tokens(metrics, &usage->layers[i], strcmp(detail, "full") == 0);
    }
    add_figures(metrics, usage);
    xmoe_usage_free(usage);
}
