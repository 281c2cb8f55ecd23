/*
 * usage_view.h - from raw records to the public xmoe_usage with its derived values.
 *
 * A view owns its records, so that two views can be subtracted exactly (xmoe_usage_difference).
 */
#ifndef XM_SERVE_USAGE_VIEW_H
#define XM_SERVE_USAGE_VIEW_H

#include "base/error.h"

/* The public struct is first: xmoe_usage_free and _difference get back to the whole from it. */
typedef struct {
    xmoe_usage usage;
    uint64_t resets; /* of the counters before this was taken */
    int32_t experts;
    int32_t capacity;  /* layers allocated */
    uint64_t *records; /* [capacity][record size] */
    xmoe_layer_usage *layers;
    double *weights; /* [capacity][experts] */
    int32_t *dead;   /* [capacity][experts] */
} xm_usage_view;

/* An empty view of the given layers, to be filled through xm_usage_view_record; then
 * xm_usage_view_derive makes the public part. */
xmoe_status xm_usage_view_create(const int32_t *layers, int32_t layer_count, int32_t experts,
                                 xm_usage_view **view, xmoe_error *error);
void xm_usage_view_free(xm_usage_view *view);
uint64_t *xm_usage_view_record(xm_usage_view *view, int32_t index);
void xm_usage_view_derive(xm_usage_view *view);

#endif
