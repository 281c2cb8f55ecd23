/*
 * api_generate.c - POST /v1/completions, /v1/chat/completions and /infill: from the body to a
 * generation.
 */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "generation.h"
#include "server.h"

static void generate(xm_exchange *exchange, xm_generate_params params)
{
    xm_server *server = exchange->server;
    xm_problem problem = {0};
    const char *model = NULL;
    params.format = server->chat;
    params.grammars = server->grammars;
    cJSON *body = xm_api_body(exchange, &problem);
    bool good = body && xm_api_read_model(exchange, body, &model, &problem);
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
    generate(exchange, (xm_generate_params){0});
}

void xm_api_chat_completions(xm_exchange *exchange)
{
    generate(exchange, (xm_generate_params){.chat = true});
}

void xm_api_infill(xm_exchange *exchange)
{
    generate(exchange, (xm_generate_params){.infill = true});
}
