/*
 * bench_report.h - the figures of xmoe-bench and their three forms: table, CSV, JSON.
 */
#ifndef XMOE_TOOLS_BENCH_REPORT_H
#define XMOE_TOOLS_BENCH_REPORT_H

#include "bench_load.h"

enum { BENCH_MAX_REPEATS = 100, BENCH_MAX_VARIANTS = 96 };

typedef enum {
    BENCH_BANDWIDTH, /* bytes per second */
    BENCH_PEAK,      /* multiply-adds per second */
    BENCH_DECODE,    /* tokens per second */
    BENCH_PREFILL,   /* tokens per second */
    BENCH_OVERHEAD   /* steps per second of a model with next to no weights */
} bench_kind;

/* One thing that is measured, several times, taking turns with the others. */
typedef struct {
    bench_kind kind;
    const char *label; /* of decoding variants: what is special in their routing */
    int32_t sequences; /* decode */
    int32_t prompt_tokens;
    int32_t generate;
    xmoe_routing routing;
    double samples[BENCH_MAX_REPEATS];
    int32_t sample_count;
    load_result last; /* of the last repeat: what does not depend on time */
} bench_variant;

typedef struct {
    bench_variant variants[BENCH_MAX_VARIANTS];
    int32_t count;
    const xmoe_model_info *info;
    int32_t threads;
    const char *peak_name;
} bench_results;

void bench_print(const bench_results *results);
void bench_print_csv(const bench_results *results);
void bench_write_json(const bench_results *results);

#endif
