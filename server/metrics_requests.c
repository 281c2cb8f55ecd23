/*
 * metrics_requests.c - what the requests asked for and got, as histograms in /metrics. The engine
 * has the rest; these need to know the request as it came over HTTP.
 *
 * One observation per prompt whose generation came to its end, made on the HTTP threads.
 */
#include "metrics.h"

static void set_bounds(xmoe_histogram *histogram, const xmoe_histogram *like)
{
    *histogram = (xmoe_histogram){.bucket_count = like->bucket_count};
    for (int32_t i = 0; i < like->bucket_count; i++)
        histogram->bounds[i] = like->bounds[i];
}

void xm_metrics_requests_init(xm_server *server)
{
    xm_request_figures *figures = &server->figures;
    xmoe_engine_stats stats = {0};
    xmoe_engine_get_stats(server->engine, &stats);
    set_bounds(&figures->params_n,
               &(xmoe_histogram){.bucket_count = 5, .bounds = {1, 2, 5, 10, 20}});
    set_bounds(&figures->params_max_tokens, &stats.generation_length);
    set_bounds(&figures->longest_choice, &stats.generation_length);
    set_bounds(&figures->inference_time, &stats.end_to_end);
}

static void observe(xmoe_histogram *histogram, double value)
{
    int32_t bucket = 0;
    while (bucket < histogram->bucket_count && value > histogram->bounds[bucket])
        bucket++;
    histogram->counts[bucket]++; /* the last is +Inf */
    histogram->sum += value;
    histogram->count++;
}

void xm_metrics_note_request(xm_server *server, int32_t n, int32_t max_tokens, uint64_t longest,
                             double inference_seconds)
{
    xm_request_figures *figures = &server->figures;
    pthread_mutex_lock(&server->figures_lock);
    observe(&figures->params_n, n);
    observe(&figures->params_max_tokens, max_tokens);
    observe(&figures->longest_choice, (double)longest);
    observe(&figures->inference_time, inference_seconds);
    pthread_mutex_unlock(&server->figures_lock);
}

void xm_metrics_requests(xm_metrics *metrics, xm_server *server)
{
    pthread_mutex_lock(&server->figures_lock);
    xm_request_figures figures = server->figures;
    pthread_mutex_unlock(&server->figures_lock);
    xm_metric_histogram(metrics, "request_inference_time_seconds", &figures.inference_time,
                        "From the first step to the end.");
    xm_metric_histogram(metrics, "request_params_n", &figures.params_n,
                        "Choices asked for per request.");
    xm_metric_histogram(metrics, "request_params_max_tokens", &figures.params_max_tokens,
                        "Tokens allowed per choice, at most the context.");
    xm_metric_histogram(metrics, "request_max_num_generation_tokens", &figures.longest_choice,
                        "Tokens of a request's longest choice.");
}
