/*
 * api_body.c - the JSON object that most requests bring.
 */
#include "api.h"

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
