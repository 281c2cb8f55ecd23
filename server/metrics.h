/*
 * metrics.h - what the parts of /metrics share.
 */
#ifndef XM_SERVER_METRICS_H
#define XM_SERVER_METRICS_H

#include "server.h"

#define XM_STRINGIFY_(x) #x
#define XM_STRINGIFY(x)  XM_STRINGIFY_(x)
#define XM_VERSION_TEXT                                                                            \
    XM_STRINGIFY(XMOE_VERSION_MAJOR)                                                               \
    "." XM_STRINGIFY(XMOE_VERSION_MINOR) "." XM_STRINGIFY(XMOE_VERSION_PATCH)

typedef struct {
    xm_text *out;
    const char *model; /* the label that every series has: model_name="..." */
} xm_metrics;

/* Names come without the prefix xmoe_, labels without braces. */
void xm_metric_head(xm_metrics *metrics, const char *name, const char *type, const char *help);
void xm_metric_value(xm_metrics *metrics, const char *name, const char *labels, double value);
void xm_metric(xm_metrics *metrics, const char *name, const char *type, double value,
               const char *help);

void xm_metric_histogram(xm_metrics *metrics, const char *name, const xmoe_histogram *histogram,
                         const char *help);

/* metrics_requests.c. Init once there is an engine; a request is noted when it has ended. */
void xm_metrics_requests_init(xm_server *server);
void xm_metrics_note_request(xm_server *server, int32_t n, int32_t max_tokens, uint64_t longest,
                             double inference_seconds);
void xm_metrics_requests(xm_metrics *metrics, xm_server *server);

/* metrics_experts.c; detail: "off", "layer" or "full". */
void xm_metrics_experts(xm_metrics *metrics, xm_server *server, const char *detail);
/* metrics_process.c */
void xm_metrics_process(xm_metrics *metrics, const xm_server *server);

#endif
