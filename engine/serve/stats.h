/*
 * stats.h - histograms of xmoe_engine_stats: bounds and counting. Names, units and bounds follow
 * vLLM's metrics, so that dashboards made for them fit.
 */
#ifndef XM_SERVE_STATS_H
#define XM_SERVE_STATS_H

#include "xmoe.h"

/* Zeroes *stats and sets the bounds; length histograms reach up to context_length. */
void xm_stats_init(xmoe_engine_stats *stats, int32_t context_length);
void xm_histogram_observe(xmoe_histogram *histogram, double value);

#endif
