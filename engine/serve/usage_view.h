/*
 * usage_view.h - from raw records to the public xmoe_usage with its derived values.
 *
 * A view owns its records, so that two views can be added and subtracted exactly (usage_numbers.c).
 */
#ifndef XM_SERVE_USAGE_VIEW_H
#define XM_SERVE_USAGE_VIEW_H

#include "base/error.h"

/* The public struct is first: xmoe_usage_free and the like get back to the whole from it. */
typedef struct {
    xmoe_usage usage;
    uint64_t counters; /* identity of the counters that this was read from; 0: of none */
    uint64_t resets;   /* of these before this was taken */
    int32_t experts;
    int32_t capacity;   /* layers allocated */
    uint64_t *records;  /* [capacity][record size] */
    uint64_t *restored; /* [capacity][record size]: what of these was restored, not counted; NULL
                           in a view of no counters */
    xmoe_layer_usage *layers;
    double *weights; /* [capacity][experts] */
    int32_t *dead;   /* [capacity][experts] */
} xm_usage_view;

/* An empty view of the given layers, to be filled through xm_usage_view_record; then
 * xm_usage_view_derive makes the public part. */
xmoe_status xm_usage_view_create(const int32_t *layers, int32_t layer_count, int32_t experts,
                                 xm_usage_view **view, xmoe_error *error);
void xm_usage_view_free(xm_usage_view *view);
uint64_t *xm_usage_view_record(const xm_usage_view *view, int32_t index);
void xm_usage_view_derive(xm_usage_view *view);

/* usage_numbers.c */
/* NULL, or what cannot be in a record that xm_usage_route has filled. */
const char *xm_usage_record_fault(const uint64_t *record, int32_t experts);
/* Whether the phases are such as xmoe_usage_get_phases gives for a model of these layers. */
xmoe_status xm_usage_check_phases(const xmoe_usage *const phases[XMOE_PHASES],
                                  const int32_t *layers, int32_t layer_count, int32_t experts,
                                  xmoe_error *error);

#endif
