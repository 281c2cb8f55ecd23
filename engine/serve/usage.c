/*
 * usage.c - see usage.h.
 *
 * Guarded by mutex: total, buckets and their ring indices, history_from, since, resets, restored.
 * The rest belongs to the scheduler thread. Windows are summed a few buckets per hold of the mutex,
 * so that a long window never delays a step; every bucket is whole at any time, hence so is any
 * sum.
 */
#include "serve/usage.h"

#include "base/memory.h"
#include "serve/usage_view.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Records of one layer: prefill, decode, and what is not the sum of the two. */
enum { PREFILL, DECODE, PHASES };

struct xm_usage {
    int32_t *layers; /* [layer_count] */
    int32_t layer_count;
    int32_t experts;
    size_t record;     /* numbers in a record */
    size_t layer_size; /* numbers of a layer: 2 records, then steps and distinct over both */
    size_t size;       /* numbers of all layers */
    xm_clock clock;

    uint64_t *step;    /* [size] */
    bool used[PHASES]; /* phases that this step has rows of */
    uint8_t *touched;  /* [experts]: bit per phase, of the layer in work */

    pthread_mutex_t mutex;
    uint64_t *total;   /* [size] */
    uint64_t *buckets; /* [bucket_count][size] */
    int64_t *seconds;  /* [bucket_count]: the second of each bucket's work */
    int32_t bucket_count;
    int32_t newest;       /* ring index */
    int32_t filled;       /* buckets in use */
    int64_t history_from; /* first second that the buckets cover whole or from reset on */
    int64_t since;        /* Unix time of start or reset, or of what was restored */
    uint64_t resets;
    uint64_t *restored; /* [size]: part of total */
    bool has_restored;  /* since reset */
    uint64_t identity;
};

static int64_t current_second(const xm_usage *usage)
{
    return xm_clock_now(&usage->clock) / 1000000000;
}

void xm_usage_free(xm_usage *usage)
{
    if (usage == NULL)
        return;
    pthread_mutex_destroy(&usage->mutex);
    xm_free(usage->layers);
    xm_free(usage->step);
    xm_free(usage->touched);
    xm_free(usage->total);
    xm_free(usage->buckets);
    xm_free(usage->seconds);
    xm_free(usage->restored);
    xm_free(usage);
}

/* The memory of the buckets is asked for at once but costs nothing until a bucket is used. */
static int32_t affordable_buckets(const xm_usage_options *options, size_t size)
{
    uint64_t bytes = size * sizeof(uint64_t) + sizeof(int64_t);
    uint64_t count = options->window_bytes / bytes;
    uint64_t seconds = options->window_seconds > 0 ? (uint64_t)options->window_seconds : 0;
    return (int32_t)(count < seconds ? count : seconds);
}

xmoe_status xm_usage_create(const xm_usage_options *options, xm_usage **usage_out,
                            xmoe_error *error)
{
    static _Atomic uint64_t identities; /* given out: an address may come again */
    *usage_out = NULL;
    xm_usage *usage = xm_calloc(1, sizeof *usage);
    if (usage == NULL)
        return xm_fail_memory(error, "expert usage", sizeof *usage);
    pthread_mutex_init(&usage->mutex, NULL);
    usage->identity = atomic_fetch_add(&identities, 1) + 1;
    usage->layer_count = options->layer_count;
    usage->experts = options->experts;
    usage->record = xm_usage_record_size(options->experts);
    usage->layer_size = PHASES * usage->record + 2;
    usage->size = (size_t)options->layer_count * usage->layer_size;
    usage->clock = options->clock;
    usage->bucket_count = affordable_buckets(options, usage->size);
    usage->layers = xm_calloc((size_t)options->layer_count, sizeof(int32_t));
    usage->step = xm_calloc(usage->size, sizeof(uint64_t));
    usage->touched = xm_calloc((size_t)options->experts, 1);
    usage->total = xm_calloc(usage->size, sizeof(uint64_t));
    usage->buckets = xm_calloc((size_t)usage->bucket_count * usage->size, sizeof(uint64_t));
    usage->seconds = xm_calloc((size_t)usage->bucket_count, sizeof(int64_t));
    usage->restored = xm_calloc(usage->size, sizeof(uint64_t));
    if (usage->layers == NULL || usage->step == NULL || usage->touched == NULL ||
        usage->total == NULL || usage->buckets == NULL || usage->seconds == NULL ||
        usage->restored == NULL) {
        xm_usage_free(usage);
        return xm_fail_memory(error, "expert usage", (size_t)options->window_bytes);
    }
    if (options->layer_count > 0)
        memcpy(usage->layers, options->layers, (size_t)options->layer_count * sizeof(int32_t));
    usage->history_from = current_second(usage);
    usage->since = usage->clock.unix_seconds(usage->clock.context);
    *usage_out = usage;
    return XMOE_OK;
}

/* --- counting: scheduler thread --- */

void xm_usage_add_position(uint64_t *record, int32_t experts, int32_t count, const uint16_t *chosen,
                           const float *weights)
{
    uint64_t *counts = record + xm_usage_counts_at(experts);
    uint64_t *sums = record + xm_usage_weights_at(experts);
    record[XM_USAGE_HISTOGRAM + count]++;
    for (int32_t i = 0; i < count; i++) {
        counts[chosen[i]]++;
        float weight = weights[i]; /* at most the model's scale, 1000; or NaN, if it is broken */
        if (weight > 0 && weight < 1024)
            sums[chosen[i]] += (uint64_t)(weight * 0x1p28F + 0.5F);
    }
}

void xm_usage_route(xm_usage *usage, int32_t moe_layer, const xm_selection *selection,
                    const uint8_t *is_decode)
{
    uint64_t *layer = usage->step + (size_t)moe_layer * usage->layer_size;
    uint64_t *both = layer + PHASES * usage->record;
    uint64_t distinct[PHASES] = {0}, distinct_both = 0;
    bool used[PHASES] = {false};
    memset(usage->touched, 0, (size_t)usage->experts);
    for (int32_t row = 0; row < selection->rows; row++) {
        int32_t phase = is_decode[row] ? DECODE : PREFILL;
        size_t at = (size_t)row * (size_t)selection->experts;
        const uint16_t *chosen = selection->expert + at;
        xm_usage_add_position(layer + (size_t)phase * usage->record, usage->experts,
                              selection->count[row], chosen, selection->weight + at);
        used[phase] = true;
        for (int32_t i = 0; i < selection->count[row]; i++) {
            uint8_t *mask = &usage->touched[chosen[i]];
            distinct_both += *mask == 0;
            distinct[phase] += (*mask >> phase & 1) == 0;
            *mask = (uint8_t)(*mask | 1U << phase);
        }
    }
    for (int32_t phase = 0; phase < PHASES; phase++) {
        uint64_t *record = layer + (size_t)phase * usage->record;
        record[XM_USAGE_STEPS] += used[phase];
        record[XM_USAGE_DISTINCT] += distinct[phase];
        usage->used[phase] |= used[phase];
    }
    both[XM_USAGE_STEPS] += 1;
    both[XM_USAGE_DISTINCT] += distinct_both;
}

/* The bucket of this second; NULL where windows are off. */
static uint64_t *bucket_of_now(xm_usage *usage)
{
    if (usage->bucket_count == 0)
        return NULL;
    int64_t second = current_second(usage);
    if (usage->filled == 0 || usage->seconds[usage->newest] != second) {
        usage->newest = (usage->newest + 1) % usage->bucket_count;
        if (usage->filled == usage->bucket_count)
            usage->history_from = usage->seconds[usage->newest] + 1;
        else
            usage->filled++;
        usage->seconds[usage->newest] = second;
        memset(usage->buckets + (size_t)usage->newest * usage->size, 0,
               usage->size * sizeof(uint64_t));
    }
    return usage->buckets + (size_t)usage->newest * usage->size;
}

static void add(uint64_t *to, const uint64_t *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] += from[i];
}

/* Moves numbers [at, at + count) of the step on. */
static void commit_range(xm_usage *usage, uint64_t *bucket, size_t at, size_t count)
{
    add(usage->total + at, usage->step + at, count);
    if (bucket != NULL)
        add(bucket + at, usage->step + at, count);
    memset(usage->step + at, 0, count * sizeof(uint64_t));
}

uint64_t xm_usage_commit(xm_usage *usage)
{
    uint64_t distinct = 0;
    if (!usage->used[PREFILL] && !usage->used[DECODE])
        return 0;
    pthread_mutex_lock(&usage->mutex);
    uint64_t *bucket = bucket_of_now(usage);
    for (int32_t layer = 0; layer < usage->layer_count; layer++) {
        size_t at = (size_t)layer * usage->layer_size;
        size_t both = at + PHASES * usage->record;
        distinct += usage->step[both + XM_USAGE_DISTINCT];
        for (size_t phase = 0; phase < PHASES; phase++)
            if (usage->used[phase])
                commit_range(usage, bucket, at + phase * usage->record, usage->record);
        commit_range(usage, bucket, both, 2);
    }
    pthread_mutex_unlock(&usage->mutex);
    usage->used[PREFILL] = usage->used[DECODE] = false;
    return distinct;
}

/* --- reading: any thread --- */

/* Adds one layer's numbers of a phase to a record. */
static void add_phase(const xm_usage *usage, const uint64_t *layer, xmoe_phase phase,
                      uint64_t *record)
{
    const uint64_t *both = layer + PHASES * usage->record;
    if (phase != XMOE_PHASE_ALL) {
        add(record, layer + (phase == XMOE_PHASE_DECODE ? usage->record : 0), usage->record);
        return;
    }
    size_t at = XM_USAGE_HISTOGRAM, count = usage->record - XM_USAGE_HISTOGRAM;
    add(record + at, layer + at, count);
    add(record + at, layer + usage->record + at, count);
    record[XM_USAGE_STEPS] += both[XM_USAGE_STEPS];
    record[XM_USAGE_DISTINCT] += both[XM_USAGE_DISTINCT];
}

/* Adds numbers[size] to records, those of the view, whose layers begin at MoE layer `first`, or its
 * restored. */
static void add_layers(const xm_usage *usage, const uint64_t *numbers, int32_t first,
                       const xm_usage_view *view, uint64_t *records)
{
    for (int32_t i = 0; i < view->capacity; i++)
        add_phase(usage, numbers + (size_t)(first + i) * usage->layer_size, view->usage.phase,
                  records + (size_t)i * usage->record);
}

/* Sums the buckets of the last `window` seconds, newest first, a few per hold of the mutex. */
static void sum_window(xm_usage *usage, int32_t window, int32_t first, xm_usage_view *view)
{
    enum { PER_HOLD = 8 };
    pthread_mutex_lock(&usage->mutex);
    int64_t now = current_second(usage), from = now - window + 1;
    from = from < usage->history_from ? usage->history_from : from;
    uint64_t resets = usage->resets;
    int64_t below = INT64_MAX; /* seconds from here on are summed */
    int32_t index = usage->newest, left = usage->filled;
    for (int32_t held = 1; left > 0 && usage->seconds[index] >= from; held++, left--) {
        if (usage->seconds[index] < below) {
            below = usage->seconds[index];
            add_layers(usage, usage->buckets + (size_t)index * usage->size, first, view,
                       view->records);
        }
        index = (index + usage->bucket_count - 1) % usage->bucket_count;
        if (held % PER_HOLD != 0)
            continue;
        pthread_mutex_unlock(&usage->mutex);
        pthread_mutex_lock(&usage->mutex);
        if (usage->resets != resets || usage->history_from > from)
            break; /* what is left has gone: the sum covers from `below` on */
    }
    if (usage->resets != resets || usage->history_from > from)
        from = below < now ? below : now;
    view->usage.window_seconds = (int32_t)(now - from + 1);
    view->usage.since = usage->clock.unix_seconds(usage->clock.context) - (now - from);
    view->resets = usage->resets;
    pthread_mutex_unlock(&usage->mutex);
}

/* Index of the layer among the MoE layers, or -1. */
static int32_t find_layer(const xm_usage *usage, int32_t layer)
{
    for (int32_t i = 0; i < usage->layer_count; i++)
        if (usage->layers[i] == layer)
            return i;
    return -1;
}

static xmoe_status check_query(const xm_usage *usage, int32_t layer, xmoe_phase phase,
                               int32_t window, xmoe_error *error)
{
    if (layer != -1 && find_layer(usage, layer) < 0)
        return xm_fail_argument(error, "layer", "layer %d has no experts", layer);
    if (phase != XMOE_PHASE_ALL && phase != XMOE_PHASE_PREFILL && phase != XMOE_PHASE_DECODE)
        return xm_fail_argument(error, "phase", "unknown phase %d", (int)phase);
    if (window < 0 || window > 3600)
        return xm_fail_argument(error, "window_seconds",
                                "window is %d seconds, allowed are 1..3600", window);
    if (window > 0 && usage->bucket_count == 0)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "windows are off: usage_window_seconds or usage_window_bytes is too small");
    return XMOE_OK;
}

/* A view of count MoE layers from `first` on, for copy_total or sum_window to fill. */
static xmoe_status create_view(const xm_usage *usage, int32_t first, int32_t count,
                               xmoe_phase phase, xm_usage_view **view_out, xmoe_error *error)
{
    xm_usage_view *view;
    *view_out = NULL;
    xmoe_status status =
        xm_usage_view_create(usage->layers + first, count, usage->experts, &view, error);
    if (view == NULL)
        return status;
    size_t size = (size_t)count * usage->record;
    view->usage.phase = phase;
    view->counters = usage->identity;
    view->restored = xm_calloc(size, sizeof(uint64_t));
    if (view->restored == NULL) {
        xm_usage_view_free(view);
        return xm_fail_memory(error, "expert usage", size * sizeof(uint64_t));
    }
    *view_out = view;
    return XMOE_OK;
}

/* Total into view; the caller holds the mutex. */
static void copy_total(const xm_usage *usage, int32_t first, xm_usage_view *view)
{
    add_layers(usage, usage->total, first, view, view->records);
    if (usage->has_restored)
        add_layers(usage, usage->restored, first, view, view->restored);
    view->usage.since = usage->since;
    view->resets = usage->resets;
}

xmoe_status xm_usage_snapshot(xm_usage *usage, int32_t layer, xmoe_phase phase,
                              int32_t window_seconds, xmoe_usage **snapshot, xmoe_error *error)
{
    *snapshot = NULL;
    xmoe_status status = check_query(usage, layer, phase, window_seconds, error);
    if (status != XMOE_OK)
        return status;
    int32_t first = layer == -1 ? 0 : find_layer(usage, layer);
    int32_t count = layer == -1 ? usage->layer_count : 1;
    xm_usage_view *view;
    status = create_view(usage, first, count, phase, &view, error);
    if (view == NULL)
        return status;
    if (window_seconds > 0) {
        sum_window(usage, window_seconds, first, view);
    } else {
        pthread_mutex_lock(&usage->mutex);
        copy_total(usage, first, view);
        pthread_mutex_unlock(&usage->mutex);
    }
    xm_usage_view_derive(view);
    *snapshot = &view->usage;
    return XMOE_OK;
}

xmoe_status xm_usage_snapshot_phases(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES],
                                     xmoe_error *error)
{
    xm_usage_view *views[XMOE_PHASES];
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        phases[phase] = NULL;
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        xmoe_status status =
            create_view(usage, 0, usage->layer_count, (xmoe_phase)phase, &views[phase], error);
        if (views[phase] == NULL) {
            while (phase-- > 0)
                xm_usage_view_free(views[phase]);
            return status;
        }
    }
    pthread_mutex_lock(&usage->mutex);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        copy_total(usage, 0, views[phase]);
    pthread_mutex_unlock(&usage->mutex);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        xm_usage_view_derive(views[phase]);
        phases[phase] = &views[phase]->usage;
    }
    return XMOE_OK;
}

/* The phases as numbers[size], in the order of total. */
static void flatten(const xm_usage *usage, const xmoe_usage *const phases[XMOE_PHASES],
                    uint64_t *numbers)
{
    size_t bytes = usage->record * sizeof(uint64_t);
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const uint64_t *records[XMOE_PHASES];
        for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
            records[phase] = xm_usage_view_record((const xm_usage_view *)phases[phase], i);
        uint64_t *layer = numbers + (size_t)i * usage->layer_size;
        memcpy(layer, records[XMOE_PHASE_PREFILL], bytes);
        memcpy(layer + usage->record, records[XMOE_PHASE_DECODE], bytes);
        memcpy(layer + PHASES * usage->record, records[XMOE_PHASE_ALL], 2 * sizeof(uint64_t));
    }
}

/* Whether no sum of total and numbers is out of range; sum[record] is scratch. The caller holds the
 * mutex. */
static bool fits(const xm_usage *usage, const uint64_t *numbers, uint64_t *sum)
{
    for (int32_t i = 0; i < usage->layer_count; i++) {
        size_t at = (size_t)i * usage->layer_size;
        memset(sum, 0, usage->record * sizeof(uint64_t));
        add_phase(usage, usage->total + at, XMOE_PHASE_ALL, sum);
        add_phase(usage, numbers + at, XMOE_PHASE_ALL, sum);
        if (xm_usage_record_fault(sum, usage->experts) != NULL)
            return false;
    }
    return true;
}

xmoe_status xm_usage_restore(xm_usage *usage, const xmoe_usage *const phases[XMOE_PHASES],
                             xmoe_error *error)
{
    xmoe_status status =
        xm_usage_check_phases(phases, usage->layers, usage->layer_count, usage->experts, error);
    if (status != XMOE_OK)
        return status;
    uint64_t *numbers = xm_calloc(usage->size + usage->record, sizeof(uint64_t));
    if (numbers == NULL)
        return xm_fail_memory(error, "expert usage", usage->size * sizeof(uint64_t));
    flatten(usage, phases, numbers);
    pthread_mutex_lock(&usage->mutex);
    bool in_range = fits(usage, numbers, numbers + usage->size);
    if (in_range) {
        add(usage->total, numbers, usage->size);
        add(usage->restored, numbers, usage->size);
        usage->has_restored = true;
        if (phases[XMOE_PHASE_ALL]->since < usage->since)
            usage->since = phases[XMOE_PHASE_ALL]->since;
    }
    pthread_mutex_unlock(&usage->mutex);
    xm_free(numbers);
    return in_range ? XMOE_OK
                    : xm_fail_argument(error, "phases",
                                       "usage is too large to be added to what was counted");
}

xmoe_status xm_usage_reset(xm_usage *usage, xmoe_usage **snapshot, xmoe_error *error)
{
    xm_usage_view *view;
    if (snapshot != NULL)
        *snapshot = NULL;
    xmoe_status status = create_view(usage, 0, usage->layer_count, XMOE_PHASE_ALL, &view, error);
    if (view == NULL)
        return status;
    pthread_mutex_lock(&usage->mutex);
    copy_total(usage, 0, view);
    memset(usage->total, 0, usage->size * sizeof(uint64_t));
    memset(usage->restored, 0, usage->size * sizeof(uint64_t));
    usage->has_restored = false;
    usage->filled = 0;
    usage->history_from = current_second(usage);
    usage->since = usage->clock.unix_seconds(usage->clock.context);
    usage->resets++;
    pthread_mutex_unlock(&usage->mutex);
    xm_usage_view_derive(view);
    if (snapshot != NULL)
        *snapshot = &view->usage;
    else
        xm_usage_view_free(view);
    return XMOE_OK;
}
