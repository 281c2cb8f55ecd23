/*
 * usage.h - which experts worked: exact counters, fed only by the selections that drive the
 * computation.
 *
 * Three layers of state, each summing to the next:
 *   step     this step's counts; scheduler thread only, filled by xm_usage_route
 *   total    since start or reset; under the mutex
 *   buckets  one per second with work, in a ring of bounded memory; under the mutex
 * xm_usage_commit moves the step into total and bucket, whole, under the mutex: so every identity
 * of xmoe.h holds in any snapshot. Phases: a position that belongs to the prompt is prefill, a
 * generated one decode; positions computed again after preemption are counted again here (they did
 * pass through the experts), but not in a request's own usage. What xm_usage_restore adds goes into
 * total alone, and is also kept apart, so that a difference over it tells what was counted.
 *
 * Counters of one layer and phase are one flat array of uint64_t, a "record", so that adding,
 * subtracting and copying are loops over numbers. Routing weights are summed in fixed point
 * (2^-28), which makes sums independent of their order.
 */
#ifndef XM_SERVE_USAGE_H
#define XM_SERVE_USAGE_H

#include "base/clock.h"
#include "base/error.h"
#include "moe/router.h"

/* Fields of a record for E experts. */
enum { XM_USAGE_STEPS, XM_USAGE_DISTINCT, XM_USAGE_HISTOGRAM };
/* histogram[E + 1] at XM_USAGE_HISTOGRAM, then counts[E], then weights[E] */
static inline size_t xm_usage_counts_at(int32_t experts)
{
    return XM_USAGE_HISTOGRAM + (size_t)experts + 1;
}
static inline size_t xm_usage_weights_at(int32_t experts)
{
    return xm_usage_counts_at(experts) + (size_t)experts;
}
static inline size_t xm_usage_record_size(int32_t experts)
{
    return xm_usage_weights_at(experts) + (size_t)experts;
}

/* One position's choice in one layer goes into a record. */
void xm_usage_add_position(uint64_t *record, int32_t experts, int32_t count, const uint16_t *chosen,
                           const float *weights);

typedef struct {
    const int32_t *layers; /* [layer_count]: numbers of the MoE layers; copied */
    int32_t layer_count;
    int32_t experts;
    int32_t window_seconds;
    uint64_t window_bytes;
    xm_clock clock;
} xm_usage_options;

typedef struct xm_usage xm_usage;

xmoe_status xm_usage_create(const xm_usage_options *options, xm_usage **usage, xmoe_error *error);
void xm_usage_free(xm_usage *usage);

/* Scheduler thread: the rows of one layer of this step; is_decode[rows]. */
void xm_usage_route(xm_usage *usage, int32_t moe_layer, const xm_selection *selection,
                    const uint8_t *is_decode);
/* Scheduler thread, at the end of a step: makes it visible. Returns the number of (layer, expert)
 * pairs that the step touched. */
uint64_t xm_usage_commit(xm_usage *usage);

/* Any thread; see the functions of xmoe.h. */
xmoe_status xm_usage_snapshot(xm_usage *usage, int32_t layer, xmoe_phase phase,
                              int32_t window_seconds, xmoe_usage **snapshot, xmoe_error *error);
/* All layers and phases since start or reset, of one moment. */
xmoe_status xm_usage_snapshot_phases(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES],
                                     xmoe_error *error);
xmoe_status xm_usage_restore(xm_usage *usage, const xmoe_usage *const phases[XMOE_PHASES],
                             xmoe_error *error);
xmoe_status xm_usage_reset(xm_usage *usage, xmoe_usage **snapshot, xmoe_error *error);

#endif
