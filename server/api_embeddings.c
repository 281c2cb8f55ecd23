/*
 * api_embeddings.c - POST /v1/embeddings (OpenAI's) and /embedding (llama-server's): from the body
 * to requests of the engine, one per text, that give their embeddings at their end. What they have
 * in common with generations (queue, deadline, cancellation, usage) is generation.c's.
 */
#include <string.h>

#include "api.h"
#include "generation.h"
#include "server.h"

/* Names of poolings as llama.cpp has them. */
static bool read_pooling(const xmoe_model *model, const cJSON *body, xmoe_request_params *engine,
                         xm_problem *problem)
{
    const char *name = NULL;
    engine->pooling = xmoe_model_get_info(model)->pooling;
    if (!xm_json_read_string(body, "pooling", &name, problem))
        return false;
    if (!name)
        return true;
    if (strcmp(name, "mean") == 0)
        engine->pooling = XMOE_POOLING_MEAN;
    else if (strcmp(name, "cls") == 0)
        engine->pooling = XMOE_POOLING_FIRST;
    else if (strcmp(name, "last") == 0)
        engine->pooling = XMOE_POOLING_LAST;
    else
        return xm_problem_field(problem, "pooling", "'pooling' must be mean, last or cls");
    return true;
}

/* OpenAI's members. */
static bool read_format(const xmoe_model *model, const cJSON *body, xm_generate_params *params,
                        xm_problem *problem)
{
    int32_t most = xmoe_model_get_info(model)->embedding_length;
    const char *format = "float", *user = NULL;
    params->normalize = true;
    if (!xm_json_read_string(body, "encoding_format", &format, problem) ||
        !xm_json_read_string(body, "user", &user, problem) ||
        !xm_json_read_int32(body, "dimensions", 1, most, &params->dimensions, problem))
        return false;
    if (strcmp(format, "float") != 0 && strcmp(format, "base64") != 0)
        return xm_problem_field(problem, "encoding_format",
                                "'encoding_format' must be float or base64");
    if (strcmp(format, "base64") == 0)
        params->embedding = XM_EMBEDDING_BASE64;
    return true;
}

/* llama-server's: -1 as they are, 2 of Euclidean length 1. */
static bool read_normalization(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    int32_t norm = 2;
    if (!xm_json_read_int32(body, "embd_normalize", -1, 2, &norm, problem))
        return false;
    if (norm != -1 && norm != 2)
        return xm_problem_field(problem, "embd_normalize",
                                "'embd_normalize' must be 2 (of length 1) or -1 (as it is)");
    params->normalize = norm == 2;
    return true;
}

static bool read_params(xm_exchange *exchange, const cJSON *body, xm_generate_params *params,
                        xm_problem *problem)
{
    const xmoe_model *model = exchange->server->model;
    xmoe_request_params *engine = &params->engine;
    bool lists = params->embedding == XM_EMBEDDING_LISTS;
    const char *field = lists && xm_json_member(body, "content") ? "content" : "input";
    xmoe_request_default_params(engine);
    engine->max_tokens = 0;
    engine->deadline_seconds = (double)exchange->settings->limits_request_seconds;
    params->n = 1;
    params->dimensions = xmoe_model_get_info(model)->embedding_length;
    if (!read_pooling(model, body, engine, problem) ||
        !(lists ? read_normalization(body, params, problem)
                : read_format(model, body, params, problem)) ||
        !xm_json_read_bool(body, "expert_usage", &engine->expert_usage, problem) ||
        !xm_routing_read(model, body, params, problem) ||
        !xm_prompts_read_from(model, exchange->settings, body, field, params, problem))
        return false;
    for (size_t i = 0; i < params->prompt_count; i++)
        if (params->prompts[i].empty)
            return xm_problem_field(problem, field, "'%s' must not be empty", field);
    return true;
}

static void embed(xm_exchange *exchange, xm_embedding_format format)
{
    xm_problem problem = {0};
    const char *model = NULL;
    xm_generate_params params = {.embedding = format};
    cJSON *body = xm_api_body(exchange, &problem);
    bool good = body && xm_api_read_model(exchange, body, &model, &problem);
    if (good) {
        xmoe_engine_get_routing(exchange->server->engine, &params.routing);
        good = read_params(exchange, body, &params, &problem);
    }
    if (good) {
        xm_generation_start(exchange, &params, model);
    } else {
        xm_generate_params_free(&params);
        xm_exchange_reply_problem(exchange, &problem);
    }
    cJSON_Delete(body);
}

void xm_api_embeddings(xm_exchange *exchange)
{
    embed(exchange, XM_EMBEDDING_FLOAT);
}

void xm_api_embedding(xm_exchange *exchange)
{
    embed(exchange, XM_EMBEDDING_LISTS);
}
