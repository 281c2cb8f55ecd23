/*
 * api_models.c - GET /v1/models and /v1/models/{id}.
 *
 * OpenAI's fields first; "meta" as llama-server has it; then the model's shape, quantisation and
 * routing as trained.
 */
#include <string.h>

#include "api.h"
#include "models.h"
#include "router_json.h"

bool xm_model_is_ours(const xm_server *server, const char *name)
{
    return strcmp(name, server->model_id) == 0 || strcmp(name, server->model_file) == 0 ||
           strcmp(name, xmoe_model_get_info(server->model)->name) == 0;
}

static void write_shape(const xmoe_model_info *info, xm_json *json)
{
    xm_json_open(json, "shape", '{');
    xm_json_int(json, "context_length", info->context_length);
    xm_json_int(json, "embedding_length", info->embedding_length);
    xm_json_int(json, "layers", info->layer_count);
    xm_json_int(json, "moe_layers", info->moe_layer_count);
    xm_json_int(json, "heads", info->head_count);
    xm_json_int(json, "kv_heads", info->kv_head_count);
    xm_json_int(json, "head_length", info->head_length);
    xm_json_int(json, "feed_forward_length", info->feed_forward_length);
    xm_json_int(json, "experts", info->expert_count);
    xm_json_int(json, "expert_feed_forward_length", info->expert_feed_forward_length);
    xm_json_int(json, "vocabulary", info->vocabulary_size);
    xm_json_uint(json, "parameters", info->parameter_count);
    xm_json_uint(json, "weight_bytes", info->weight_bytes);
    xm_json_uint(json, "expert_bytes", info->expert_bytes);
    xm_json_uint(json, "shared_bytes", info->shared_bytes);
    xm_json_close(json, '}');
}

static void write_meta(const xmoe_model_info *info, xm_json *json)
{
    xm_json_open(json, "meta", '{');
    xm_json_int(json, "n_vocab", info->vocabulary_size);
    xm_json_int(json, "n_ctx_train", info->context_length);
    xm_json_int(json, "n_embd", info->embedding_length);
    xm_json_uint(json, "n_params", info->parameter_count);
    xm_json_uint(json, "size", info->weight_bytes);
    xm_json_close(json, '}');
}

static void write_model(const xm_server *server, xm_json *json)
{
    const xmoe_model_info *info = xmoe_model_get_info(server->model);
    xmoe_routing routing;
    xmoe_model_default_routing(server->model, &routing);
    xm_json_open(json, NULL, '{');
    xm_json_string(json, "id", server->model_id);
    xm_json_string(json, "object", "model");
    xm_json_int(json, "created", server->model_loaded);
    xm_json_string(json, "owned_by", "xmoe");
    xm_json_int(json, "max_model_len", info->context_length);
    xm_json_string(json, "name", info->name);
    xm_json_string(json, "architecture", info->architecture);
    xm_json_string(json, "license", info->license);
    xm_json_string(json, "description", info->description);
    xm_json_string(json, "quantization", info->quantization);
    write_meta(info, json);
    write_shape(info, json);
    xm_router_write(server->model, &routing, json, "router");
    xm_json_close(json, '}');
}

void xm_api_models(xm_exchange *exchange)
{
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_json_open(&json, NULL, '{');
    xm_json_string(&json, "object", "list");
    xm_json_open(&json, "data", '[');
    write_model(exchange->server, &json);
    xm_json_close(&json, ']');
    xm_json_close(&json, '}');
    xm_exchange_reply_json(exchange, &answer);
}

void xm_api_model(xm_exchange *exchange)
{
    if (!xm_model_is_ours(exchange->server, exchange->argument)) {
        xm_problem problem = {0};
        xm_problem_set(&problem, 404, "model_not_found", "model",
                       "there is no model '%.100s' here; try '%s'", exchange->argument,
                       exchange->server->model_id);
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    xm_text answer = {0};
    xm_json json = {&answer, false};
    write_model(exchange->server, &json);
    xm_exchange_reply_json(exchange, &answer);
}
