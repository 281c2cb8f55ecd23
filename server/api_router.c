/*
 * api_router.c - GET and PUT /v1/router: the routing of requests that bring none.
 *
 * PUT changes what it names and leaves the rest; requests already admitted keep theirs. Two PUTs
 * at once are applied one after the other.
 */
#include "api.h"
#include "log.h"
#include "router_json.h"
#include "server.h"

static void reply_routing(xm_exchange *exchange, const xmoe_routing *routing)
{
    xm_text answer = {0};
    xm_json json = {&answer, false};
    xm_router_write(exchange->server->model, routing, &json, NULL);
    xm_exchange_reply_json(exchange, &answer);
}

void xm_api_router(xm_exchange *exchange)
{
    xmoe_routing routing;
    xmoe_engine_get_routing(exchange->server->engine, &routing);
    reply_routing(exchange, &routing);
}

void xm_api_router_put(xm_exchange *exchange)
{
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    const xm_server *server = exchange->server;
    xm_problem problem = {0};
    xmoe_error error = {0};
    xmoe_routing routing;
    cJSON *body = xm_api_body(exchange, &problem);

    pthread_mutex_lock(&one_at_a_time);
    bool good = body != NULL;
    if (good) {
        xmoe_engine_get_routing(server->engine, &routing);
        good = xm_router_apply(server->model, body, "", &routing, &problem);
    }
    if (good && xmoe_engine_set_routing(server->engine, &routing, &error) != XMOE_OK)
        good = xm_problem_engine(&problem, &error, NULL);
    pthread_mutex_unlock(&one_at_a_time);

    if (good) {
        xm_log_line(XM_LOG_INFO, "%s changed the default routing", exchange->id);
        reply_routing(exchange, &routing);
    } else {
        xm_exchange_reply_problem(exchange, &problem);
    }
    cJSON_Delete(body);
}
