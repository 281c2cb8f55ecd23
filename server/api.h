/*
 * api.h - the handlers, one per endpoint. Each runs on an HTTP thread once the request's body is
 * complete, must not block, and leaves the exchange replied, waiting or streaming.
 */
#ifndef XM_SERVER_API_H
#define XM_SERVER_API_H

#include "exchange.h"
#include "json_read.h"

/* api_body.c: the body as an object; NULL with a problem. The caller deletes it; the text is freed.
 */
cJSON *xm_api_body(xm_exchange *exchange, xm_problem *problem);

/* api_body.c: the body's "model", or ours where it names none; false with a problem where there is
 * no such model here. */
bool xm_api_read_model(xm_exchange *exchange, const cJSON *body, const char **model,
                       xm_problem *problem);

/* dashboard.c */
void xm_api_dashboard(xm_exchange *exchange);

/* api_operation.c */
void xm_api_health(xm_exchange *exchange);
void xm_api_ready(xm_exchange *exchange);
void xm_api_openapi(xm_exchange *exchange);
void xm_api_props(xm_exchange *exchange);
void xm_api_slots(xm_exchange *exchange);

/* api_models.c */
void xm_api_models(xm_exchange *exchange);
void xm_api_model(xm_exchange *exchange);

/* api_generate.c */
void xm_api_completions(xm_exchange *exchange);
void xm_api_chat_completions(xm_exchange *exchange);
void xm_api_infill(xm_exchange *exchange);

/* api_embeddings.c */
void xm_api_embeddings(xm_exchange *exchange);
void xm_api_embedding(xm_exchange *exchange);

/* api_tokens.c */
void xm_api_tokenize(xm_exchange *exchange);
void xm_api_detokenize(xm_exchange *exchange);
void xm_api_apply_template(xm_exchange *exchange);

/* api_usage.c */
void xm_api_usage(xm_exchange *exchange);
void xm_api_usage_reset(xm_exchange *exchange);
void xm_api_usage_stream(xm_exchange *exchange);

/* api_snapshots.c */
void xm_api_snapshots(xm_exchange *exchange);
void xm_api_snapshot(xm_exchange *exchange);
void xm_api_snapshot_put(xm_exchange *exchange);
void xm_api_snapshot_delete(xm_exchange *exchange);

/* api_trace.c */
void xm_api_trace(xm_exchange *exchange);

/* api_router.c */
void xm_api_router(xm_exchange *exchange);
void xm_api_router_put(xm_exchange *exchange);

/* metrics.c */
void xm_api_metrics(xm_exchange *exchange);

#endif
