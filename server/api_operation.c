/*
 * api_operation.c - what operators and other programs ask: health, readiness, properties, slots,
 * the API's description.
 *
 * /props and /slots have llama-server's shapes and are read only. The model's alias is given where
 * llama-server gives a path.
 */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "openapi.h"
#include "router_json.h"
#include "server.h"

static void reply_status(xm_exchange *exchange, const char *status)
{
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_json_open(&json, NULL, '{');
    xm_json_string(&json, "status", status);
    xm_json_close(&json, '}');
    xm_exchange_reply_json(exchange, &answer);
}

void xm_api_health(xm_exchange *exchange)
{
    reply_status(exchange, "ok");
}

void xm_api_ready(xm_exchange *exchange)
{
    int state = exchange->server->state;
    if (state == XM_SERVER_READY) {
        reply_status(exchange, "ready");
        return;
    }
    xm_problem problem = {0};
    bool draining = state == XM_SERVER_DRAINING;
    xm_problem_set(&problem, 503, draining ? "draining" : "loading", NULL, "%s",
                   draining ? "the server is shutting down" : "the model is still being loaded");
    xm_exchange_reply_problem(exchange, &problem);
}

void xm_api_openapi(xm_exchange *exchange)
{
    size_t length = 0;
    const char *text = xm_openapi_text(&length);
    xm_text answer = {0};
    xm_text_add(&answer, text, length);
    xm_exchange_reply_json(exchange, &answer);
}

static void write_sampling(const xmoe_sampling *sampling, xm_json *json)
{
    xm_json_uint(json, "seed", sampling->seed);
    xm_json_float(json, "temperature", sampling->temperature);
    xm_json_int(json, "top_k", sampling->top_k);
    xm_json_float(json, "top_p", sampling->top_p);
    xm_json_float(json, "min_p", sampling->min_p);
    xm_json_float(json, "repeat_penalty", sampling->repetition_penalty);
    xm_json_float(json, "presence_penalty", sampling->presence_penalty);
    xm_json_float(json, "frequency_penalty", sampling->frequency_penalty);
}

void xm_api_props(xm_exchange *exchange)
{
    const xm_server *server = exchange->server;
    const xmoe_model_info *info = xmoe_model_get_info(server->model);
    xmoe_request_params defaults;
    xmoe_request_default_params(&defaults);
    defaults.sampling.temperature = 1;
    xmoe_routing routing;
    xmoe_engine_get_routing(server->engine, &routing);
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_json_open(&json, NULL, '{');
    xm_json_open(&json, "default_generation_settings", '{');
    xm_json_int(&json, "n_ctx", info->context_length);
    xm_json_open(&json, "params", '{');
    write_sampling(&defaults.sampling, &json);
    xm_json_int(&json, "n_predict", 16);
    xm_json_close(&json, '}');
    xm_json_close(&json, '}');
    xm_json_int(&json, "total_slots", exchange->settings->engine_max_sequences);
    xm_json_string(&json, "model_alias", server->model_id);
    xm_json_string(&json, "model_path", server->model_id);
    xm_json_string(&json, "chat_template", info->chat_template ? info->chat_template : "");
    xm_json_open(&json, "chat_template_caps", '{');
    xm_json_close(&json, '}');
    xm_json_open(&json, "modalities", '{');
    xm_json_bool(&json, "vision", false);
    xm_json_bool(&json, "audio", false);
    xm_json_close(&json, '}');
    xm_json_string(&json, "build_info", server->fingerprint);
    xm_json_bool(&json, "is_sleeping", false);
    xm_router_write(server->model, &routing, &json, "router");
    xm_json_close(&json, '}');
    xm_exchange_reply_json(exchange, &answer);
}

static void write_busy_slot(const xmoe_slot *slot, xm_json *json)
{
    xm_json_uint(json, "id_task", slot->request);
    xm_json_bool(json, "is_processing", slot->processing);
    xm_json_open(json, "params", '{');
    write_sampling(&slot->sampling, json);
    xm_json_int(json, "n_predict", slot->max_tokens);
    xm_json_int(json, "n", slot->choices);
    xm_json_close(json, '}');
    xm_json_open(json, "next_token", '{');
    int64_t most = (int64_t)slot->max_tokens * slot->choices;
    xm_json_bool(json, "has_next_token", slot->generated_tokens < most);
    xm_json_bool(json, "has_new_line", false);
    xm_json_int(json, "n_remain", most - slot->generated_tokens);
    xm_json_int(json, "n_decoded", slot->generated_tokens);
    xm_json_close(json, '}');
    xm_json_open(json, "prompt_progress", '{');
    xm_json_int(json, "total", slot->prompt_tokens);
    xm_json_int(json, "cache", slot->cached_tokens);
    xm_json_int(json, "processed", slot->prompt_done);
    xm_json_close(json, '}');
    xm_json_open(json, "router", '{');
    xm_router_write_members(&slot->router, json);
    xm_json_close(json, '}');
}

static void write_slot(int64_t id, int32_t context, const xmoe_slot *slot, xm_json *json)
{
    xm_json_open(json, NULL, '{');
    xm_json_int(json, "id", id);
    xm_json_int(json, "n_ctx", context);
    xm_json_bool(json, "speculative", false);
    if (slot) {
        write_busy_slot(slot, json);
    } else {
        xm_json_int(json, "id_task", -1);
        xm_json_bool(json, "is_processing", false);
    }
    xm_json_close(json, '}');
}

/* What runs and waits, then the idle rest. */
void xm_api_slots(xm_exchange *exchange)
{
    xm_server *server = exchange->server;
    int32_t context = xmoe_model_get_info(server->model)->context_length;
    int32_t total = (int32_t)exchange->settings->engine_max_sequences;
    int32_t capacity = total + (int32_t)exchange->settings->engine_queue_length;
    xmoe_slot *slots = calloc((size_t)capacity, sizeof *slots);
    int32_t used = slots ? xmoe_engine_get_slots(server->engine, slots, capacity) : 0;
    xm_problem problem = {0};
    if (!slots)
        xm_problem_set(&problem, 503, "out_of_memory", NULL, "out of memory");
    const char *fail = NULL;
    if (xm_exchange_query(exchange, "fail_on_no_slot", &fail, &problem) && used >= total && fail &&
        strcmp(fail, "1") == 0)
        xm_problem_set(&problem, 503, "no_slot", NULL, "no slot is free");
    if (problem.status) {
        xm_exchange_reply_problem(exchange, &problem);
    } else {
        xm_text answer = {0};
        xm_json json = {&answer, false};
        xm_json_open(&json, NULL, '[');
        for (int32_t i = 0; i < (used > total ? used : total); i++)
            write_slot(i, context, i < used ? &slots[i] : NULL, &json);
        xm_json_close(&json, ']');
        xm_exchange_reply_json(exchange, &answer);
    }
    free(slots);
}
