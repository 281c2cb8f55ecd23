/*
 * api_body.c - the JSON object that most requests bring, and the model that it names.
 */
#include "api.h"
#include "models.h"
#include "server.h"

cJSON *xm_api_body(xm_exchange *exchange, xm_problem *problem)
{
    const xm_text *body = &exchange->body;
    cJSON *tree = xm_json_parse(body->data ? body->data : "", body->length, problem);
    xm_text_free(&exchange->body);
    if (tree && !cJSON_IsObject(tree)) {
        cJSON_Delete(tree);
        xm_problem_set(problem, 400, "invalid_json", NULL, "the body must be a JSON object");
        return NULL;
    }
    return tree;
}

bool xm_api_read_model(xm_exchange *exchange, const cJSON *body, const char **model,
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
