/*
 * usage_numbers.c - arithmetic over usages: made of numbers from elsewhere, added, subtracted,
 * compared. Any thread; the usages read are not changed, the one returned is the caller's.
 *
 * Integers stay below 2^53, so that they survive a file that has only doubles, and weights below
 * 2^35, which is 2^63 in fixed point: so no sum of two wraps around.
 */
#include "serve/usage_view.h"

#include "moe/router.h"
#include "serve/usage.h"

#include <math.h>

static const uint64_t integer_limit = UINT64_C(1) << 53;
static const uint64_t weight_limit = UINT64_C(1) << 63; /* in fixed point */

/* --- what must hold of a record --- */

typedef struct {
    uint64_t tokens, activations, touched; /* touched: experts with tokens */
} record_sums;

/* NULL, and the sums, if no number is out of range. */
static const char *sum_record(const uint64_t *record, int32_t experts, record_sums *sums)
{
    const uint64_t *counts = record + xm_usage_counts_at(experts);
    const uint64_t *weights = record + xm_usage_weights_at(experts);
    *sums = (record_sums){0};
    for (size_t i = 0; i < xm_usage_weights_at(experts); i++)
        if (record[i] >= integer_limit)
            return "a count is 2^53 or more";
    for (int32_t e = 0; e < experts; e++) {
        if (weights[e] >= weight_limit)
            return "a weight is 2^35 or more";
        if (counts[e] == 0 && weights[e] > 0)
            return "an expert without tokens has a weight";
        sums->activations += counts[e];
        sums->touched += counts[e] > 0;
    }
    for (int32_t i = 0; i <= experts; i++)
        sums->tokens += record[XM_USAGE_HISTOGRAM + i];
    if (sums->tokens >= integer_limit || sums->activations >= integer_limit)
        return "the sum of its counts is 2^53 or more";
    return NULL;
}

const char *xm_usage_record_fault(const uint64_t *record, int32_t experts)
{
    record_sums sums;
    const char *fault = sum_record(record, experts, &sums);
    if (fault != NULL)
        return fault;
    uint64_t left = sums.activations; /* that the histogram has yet to explain */
    for (int32_t i = 1; i <= experts; i++) {
        uint64_t tokens = record[XM_USAGE_HISTOGRAM + i];
        if (tokens > left / (uint64_t)i)
            return "active_histogram has more activations than counts";
        left -= tokens * (uint64_t)i;
    }
    if (left > 0)
        return "active_histogram has fewer activations than counts";
    for (int32_t e = 0; e < experts; e++)
        if (record[xm_usage_counts_at(experts) + (size_t)e] > sums.tokens)
            return "an expert has more tokens than the layer";
    uint64_t steps = record[XM_USAGE_STEPS], distinct = record[XM_USAGE_DISTINCT];
    if (steps > sums.tokens || (steps == 0 && sums.tokens > 0))
        return "steps must be 1 to the number of tokens, or 0 without tokens";
    if (distinct < sums.touched || distinct > sums.activations ||
        distinct > steps * (uint64_t)experts)
        return "distinct does not fit counts and steps";
    return NULL;
}

/* --- from elsewhere --- */

/* The layer's number and sizes, and that its arrays are there. */
static xmoe_status check_shape(const xmoe_layer_usage *layers, int32_t index, xmoe_error *error)
{
    const xmoe_layer_usage *layer = &layers[index];
    if (layer->layer < 0 || layer->layer >= XMOE_MAX_LAYERS)
        return xm_fail(error, XMOE_ERROR_FORMAT, "layer %d: layers are 0 to %d", layer->layer,
                       XMOE_MAX_LAYERS - 1);
    if (index > 0 && layer->layer <= layers[index - 1].layer)
        return xm_fail(error, XMOE_ERROR_FORMAT, "layer %d: comes after layer %d, must ascend",
                       layer->layer, layers[index - 1].layer);
    if (layer->experts < 1 || layer->experts > XM_MAX_EXPERTS)
        return xm_fail(error, XMOE_ERROR_FORMAT, "layer %d: has %d experts, must be 1 to %d",
                       layer->layer, layer->experts, XM_MAX_EXPERTS);
    if (layer->experts != layers[0].experts)
        return xm_fail(error, XMOE_ERROR_FORMAT, "layer %d: has %d experts, layer %d has %d",
                       layer->layer, layer->experts, layers[0].layer, layers[0].experts);
    if (layer->active_histogram == NULL || layer->counts == NULL || layer->weights == NULL)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "layer %d: active_histogram, counts or weights are missing", layer->layer);
    return XMOE_OK;
}

/* NULL or what is wrong. */
static const char *fill_record(uint64_t *record, const xmoe_layer_usage *layer)
{
    int32_t experts = layer->experts;
    record[XM_USAGE_STEPS] = layer->steps;
    record[XM_USAGE_DISTINCT] = layer->distinct;
    for (int32_t i = 0; i <= experts; i++)
        record[XM_USAGE_HISTOGRAM + i] = layer->active_histogram[i];
    for (int32_t e = 0; e < experts; e++) {
        double weight = layer->weights[e];
        if (!(weight >= 0 && weight < 0x1p35))
            return "a weight is not a number from 0 to below 2^35";
        record[xm_usage_counts_at(experts) + (size_t)e] = layer->counts[e];
        record[xm_usage_weights_at(experts) + (size_t)e] = (uint64_t)round(weight * 0x1p28);
    }
    return xm_usage_record_fault(record, experts);
}

static xmoe_status check_head(xmoe_phase phase, const xmoe_layer_usage *layers, int32_t layer_count,
                              xmoe_error *error)
{
    if (phase != XMOE_PHASE_ALL && phase != XMOE_PHASE_PREFILL && phase != XMOE_PHASE_DECODE)
        return xm_fail_argument(error, "phase", "unknown phase %d", (int)phase);
    if (layer_count < 0 || layer_count > XMOE_MAX_LAYERS)
        return xm_fail_argument(error, "layers", "usage has %d layers, must be 0 to %d",
                                layer_count, XMOE_MAX_LAYERS);
    if (layer_count > 0 && layers == NULL)
        return xm_fail_argument(error, "layers", "usage has no layers");
    return XMOE_OK;
}

xmoe_status xmoe_usage_create(xmoe_phase phase, int64_t since, const xmoe_layer_usage *layers,
                              int32_t layer_count, xmoe_usage **usage, xmoe_error *error)
{
    *usage = NULL;
    int32_t numbers[XMOE_MAX_LAYERS];
    xmoe_status status = check_head(phase, layers, layer_count, error);
    if (status == XMOE_OK && since < 0)
        status = xm_fail(error, XMOE_ERROR_FORMAT, "since is negative");
    for (int32_t i = 0; i < layer_count && status == XMOE_OK; i++) {
        numbers[i] = layers[i].layer;
        status = check_shape(layers, i, error);
    }
    if (status != XMOE_OK)
        return status;
    xm_usage_view *view;
    status = xm_usage_view_create(numbers, layer_count, layer_count > 0 ? layers[0].experts : 0,
                                  &view, error);
    if (view == NULL)
        return status;
    for (int32_t i = 0; i < layer_count; i++) {
        const char *fault = fill_record(xm_usage_view_record(view, i), &layers[i]);
        if (fault != NULL) {
            xm_usage_view_free(view);
            return xm_fail(error, XMOE_ERROR_FORMAT, "layer %d: %s", numbers[i], fault);
        }
    }
    view->usage.phase = phase;
    view->usage.since = since;
    xm_usage_view_derive(view);
    *usage = &view->usage;
    return XMOE_OK;
}

/* --- two of a kind --- */

/* NULL if the two can be added or subtracted, else the reason why not. */
static const char *mismatch(const xm_usage_view *a, const xm_usage_view *b)
{
    if (a->usage.phase != b->usage.phase)
        return "they are of different phases";
    if (a->usage.window_seconds != 0 || b->usage.window_seconds != 0)
        return "one is of a window";
    if (a->capacity != b->capacity || a->experts != b->experts)
        return "they are of different models or layers";
    for (int32_t i = 0; i < a->capacity; i++)
        if (a->layers[i].layer != b->layers[i].layer)
            return "they are of different layers";
    return NULL;
}

/* An empty view of the same phase and layers. */
static xmoe_status create_like(const xm_usage_view *like, xm_usage_view **view, xmoe_error *error)
{
    int32_t layers[XMOE_MAX_LAYERS];
    for (int32_t i = 0; i < like->capacity; i++)
        layers[i] = like->layers[i].layer;
    xmoe_status status = xm_usage_view_create(layers, like->capacity, like->experts, view, error);
    if (status == XMOE_OK)
        (*view)->usage.phase = like->usage.phase;
    return status;
}

static size_t numbers_in(const xm_usage_view *view)
{
    return (size_t)view->capacity * xm_usage_record_size(view->experts);
}

xmoe_status xmoe_usage_merge(const xmoe_usage *a_usage, const xmoe_usage *b_usage,
                             xmoe_usage **usage, xmoe_error *error)
{
    *usage = NULL;
    const xm_usage_view *a = (const xm_usage_view *)a_usage, *b = (const xm_usage_view *)b_usage;
    const char *reason = mismatch(a, b);
    if (reason != NULL)
        return xm_fail_argument(error, "b", "usages cannot be merged: %s", reason);
    xm_usage_view *view;
    xmoe_status status = create_like(a, &view, error);
    if (view == NULL)
        return status;
    for (size_t i = 0; i < numbers_in(a); i++)
        view->records[i] = a->records[i] + b->records[i];
    for (int32_t i = 0; i < view->capacity; i++) {
        const char *fault = xm_usage_record_fault(xm_usage_view_record(view, i), view->experts);
        if (fault != NULL) {
            xm_usage_view_free(view);
            return xm_fail_argument(error, "b", "usages cannot be merged: layer %d: %s",
                                    a->layers[i].layer, fault);
        }
    }
    view->usage.since = a_usage->since < b_usage->since ? a_usage->since : b_usage->since;
    xm_usage_view_derive(view);
    *usage = &view->usage;
    return XMOE_OK;
}

xmoe_status xmoe_usage_difference(const xmoe_usage *later_usage, const xmoe_usage *earlier_usage,
                                  xmoe_usage **usage, xmoe_error *error)
{
    *usage = NULL;
    const xm_usage_view *later = (const xm_usage_view *)later_usage;
    const xm_usage_view *earlier = (const xm_usage_view *)earlier_usage;
    const char *reason = mismatch(later, earlier);
    if (reason != NULL)
        return xm_fail_argument(error, "earlier", "usage cannot be subtracted: %s", reason);
    /* Of the same counters, what they were given by xmoe_usage_restore was not counted. */
    bool same = later->counters != 0 && later->counters == earlier->counters;
    bool reset_between = same && later->resets != earlier->resets;
    xm_usage_view *view;
    xmoe_status status = create_like(later, &view, error);
    if (view == NULL)
        return status;
    for (size_t i = 0; i < numbers_in(later); i++) {
        uint64_t now = later->records[i] - (same ? later->restored[i] : 0);
        uint64_t then = earlier->records[i] - (same ? earlier->restored[i] : 0);
        if (reset_between)
            then = 0;
        if (now < then) {
            xm_usage_view_free(view);
            return xm_fail_argument(error, "earlier", "the earlier usage has more than the later");
        }
        view->records[i] = now - then;
    }
    view->usage.since = later->usage.since;
    xm_usage_view_derive(view);
    *usage = &view->usage;
    return XMOE_OK;
}

/* --- three phases of one moment --- */

/* The sums of prefill and decode are those of all. Weights that came as doubles are rounded to 53
 * bits each, so that for large ones the last bits differ. */
static bool phases_add_up(const uint64_t *all, const uint64_t *prefill, const uint64_t *decode,
                          int32_t experts)
{
    for (size_t i = XM_USAGE_HISTOGRAM; i < xm_usage_record_size(experts); i++) {
        uint64_t sum = prefill[i] + decode[i];
        uint64_t apart = sum > all[i] ? sum - all[i] : all[i] - sum;
        if (apart > (i < xm_usage_weights_at(experts) ? 0 : all[i] >> 51))
            return false;
    }
    /* A step with rows of both phases, or an expert with tokens of both, counts once in all. */
    for (size_t i = XM_USAGE_STEPS; i <= XM_USAGE_DISTINCT; i++) {
        uint64_t most = prefill[i] > decode[i] ? prefill[i] : decode[i];
        if (all[i] < most || all[i] > prefill[i] + decode[i])
            return false;
    }
    return true;
}

xmoe_status xm_usage_check_phases(const xmoe_usage *const phases[XMOE_PHASES],
                                  const int32_t *layers, int32_t layer_count, int32_t experts,
                                  xmoe_error *error)
{
    const xm_usage_view *views[XMOE_PHASES];
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        const xm_usage_view *view = views[phase] = (const xm_usage_view *)phases[phase];
        if (view == NULL || (int32_t)view->usage.phase != phase || view->usage.window_seconds != 0)
            return xm_fail_argument(error, "phases",
                                    "usage must be of phases all, prefill and decode, in this "
                                    "order and without window");
        if (view->capacity != layer_count)
            return xm_fail_argument(error, "phases", "usage is of %d layers, the model has %d",
                                    view->capacity, layer_count);
        if (layer_count > 0 && view->experts != experts)
            return xm_fail_argument(error, "phases", "usage is of %d experts, the model has %d",
                                    view->experts, experts);
        for (int32_t i = 0; i < layer_count; i++)
            if (view->layers[i].layer != layers[i])
                return xm_fail_argument(error, "phases", "layer %d of the usage has no experts",
                                        view->layers[i].layer);
    }
    for (int32_t i = 0; i < layer_count; i++)
        if (!phases_add_up(xm_usage_view_record(views[XMOE_PHASE_ALL], i),
                           xm_usage_view_record(views[XMOE_PHASE_PREFILL], i),
                           xm_usage_view_record(views[XMOE_PHASE_DECODE], i), experts))
            return xm_fail_argument(
                error, "phases", "layer %d: all is not the sum of prefill and decode", layers[i]);
    return XMOE_OK;
}

/* --- how much two differ --- */

/* With p and q the shares of an expert in the two, and m their mean: the sum over experts of
 * p/2 log2(p/m) + q/2 log2(q/m). Every operation is symmetric, hence so is the result. */
double xmoe_usage_divergence(const xmoe_layer_usage *a, const xmoe_layer_usage *b)
{
    if (a->activations == 0 || b->activations == 0 || a->experts != b->experts)
        return NAN;
    double sum = 0;
    for (int32_t e = 0; e < a->experts; e++) {
        double p = (double)a->counts[e] / (double)a->activations;
        double q = (double)b->counts[e] / (double)b->activations;
        double mean = (p + q) / 2;
        double of_p = p > 0 ? p * log2(p / mean) : 0;
        double of_q = q > 0 ? q * log2(q / mean) : 0;
        sum += (of_p + of_q) / 2;
    }
    return sum < 0 ? 0 : sum > 1 ? 1 : sum;
}
