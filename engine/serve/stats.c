/* stats.c - see stats.h. */
#include "serve/stats.h"

#include <string.h>

static const double first_token_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                            .25,  .5,   .75, 1,   2.5, 5,   7.5, 10,
                                            20,   40,   80,  160, 640, 2560};
static const double inter_token_bounds[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                            .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
static const double request_bounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double step_bounds[] = {1,   8,    16,   32,   64,   128,  256,
                                     512, 1024, 2048, 4096, 8192, 16384};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void set_bounds(xmoe_histogram *histogram, const double *bounds, size_t count)
{
    histogram->bucket_count = (int32_t)count;
    memcpy(histogram->bounds, bounds, count * sizeof *bounds);
}

/* 1, 2, 5, 10, ... up to the largest not above limit. */
static void set_1_2_5(xmoe_histogram *histogram, double limit)
{
    static const double steps[] = {1, 2, 5};
    double decade = 1;
    for (int32_t i = 0; i < XMOE_HISTOGRAM_BUCKETS; i++) {
        double bound = steps[i % 3] * decade;
        if (bound > limit)
            return;
        histogram->bounds[histogram->bucket_count++] = bound;
        if (i % 3 == 2)
            decade *= 10;
    }
}

void xm_stats_init(xmoe_engine_stats *stats, int32_t context_length)
{
    *stats = (xmoe_engine_stats){0};
    set_bounds(&stats->time_to_first_token, first_token_bounds, COUNT(first_token_bounds));
    set_bounds(&stats->inter_token, inter_token_bounds, COUNT(inter_token_bounds));
    set_bounds(&stats->end_to_end, request_bounds, COUNT(request_bounds));
    set_bounds(&stats->queue_time, request_bounds, COUNT(request_bounds));
    set_bounds(&stats->prefill_time, request_bounds, COUNT(request_bounds));
    set_bounds(&stats->decode_time, request_bounds, COUNT(request_bounds));
    set_bounds(&stats->step_tokens, step_bounds, COUNT(step_bounds));
    set_1_2_5(&stats->prompt_length, context_length);
    set_1_2_5(&stats->generation_length, context_length);
}

void xm_histogram_observe(xmoe_histogram *histogram, double value)
{
    int32_t bucket = 0;
    while (bucket < histogram->bucket_count && value > histogram->bounds[bucket])
        bucket++;
    histogram->counts[bucket < histogram->bucket_count ? bucket : histogram->bucket_count]++;
    histogram->sum += value;
    histogram->count++;
}
