/*
 * api_generate.c - POST /v1/completions and /v1/chat/completions: from the body to a generation.
 */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "generation.h"
#include "models.h"
#include "server.h"

static bool read_model(xm_exchange *exchange, const cJSON *body, const char **model,
                       xm_problem *problem)
{
    *model = exchange->server->model_id;
    if (!xm_json_read_string(body, "model", model, problem))
        return false;
    if (!(*model)[0])
        *model = exchange->server->model_id;
    if (!xm_model_is_ours(exchange->server, *model))
        return xm_problem_set(problem, 404, "model_not_found", "model",
                              "there is no model '%.100s' here; try '%s'", *model,
                              exchange->server->model_id);
    return true;
}

static void generate(xm_exchange *exchange, bool chat)
{
    xm_server *server = exchange->server;
    xm_problem problem = {0};
    const char *model = NULL;
    xm_generate_params params = {
        .chat = chat, .format = server->chat, .grammars = server->grammars};
    cJSON *body = xm_api_body(exchange, &problem);
    bool good = body && read_model(exchange, body, &model, &problem);
    if (good) {
        xmoe_engine_get_routing(server->engine, &params.routing);
        good = xm_generate_params_read(server->model, exchange->settings, body, &params, &problem);
    }
    if (good) {
        xm_generation_start(exchange, &params, model);
    } else {
        xm_generate_params_free(&params);
        xm_exchange_reply_problem(exchange, &problem);
    }
    cJSON_Delete(body);
}

void xm_api_completions(xm_exchange *exchange)
{
    generate(exchange, false);
}

void xm_api_chat_completions(xm_exchange *exchange)
{
    generate(exchange, true);
}
