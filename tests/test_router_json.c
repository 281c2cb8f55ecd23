/*
 * test_router_json.c - routing between JSON and xmoe_routing on a model trained with sigmoid, where
 * a threshold means another thing; the server's tests have the other types, over sockets.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "../server/router_json.h"

static char path[64];
static xmoe_model *model;

static int load(void **state)
{
    (void)state;
    const xmoe_random_model shape = {
        .context_length = 16,
        .embedding_length = 32,
        .layer_count = 2,
        .head_count = 2,
        .feed_forward_length = 32,
        .expert_count = 4,
        .expert_feed_forward_length = 32,
        .vocabulary_size = 300,
        .moe_every = 1,
        .router = {.type = XMOE_ROUTER_SIGMOID, .threshold = 0.5f, .min_experts = 1},
        .router_spread = 1.0f,
        .tied_output = true,
        .type = "F32"};
    snprintf(path, sizeof path, "/tmp/xmoe-router-json-%d.gguf", (int)getpid());
    return xmoe_random_model_write(path, &shape, NULL, NULL, NULL) != XMOE_OK ||
           xmoe_model_load(path, NULL, &model, NULL) != XMOE_OK;
}

static int unload(void **state)
{
    (void)state;
    xmoe_model_free(model);
    return unlink(path);
}

static bool apply(const char *text, xmoe_routing *routing, xm_problem *problem)
{
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    *problem = (xm_problem){0};
    xmoe_model_default_routing(model, routing);
    bool good = xm_router_apply(model, json, "router.", routing, problem);
    cJSON_Delete(json);
    return good;
}

static void a_threshold_is_the_models_own(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        xmoe_router_type type;
        float threshold;
    } cases[] = {
        {"{}", XMOE_ROUTER_SIGMOID, 0.5f},
        {"{\"threshold\": 0.25}", XMOE_ROUTER_SIGMOID, 0.25f},
        {"{\"type\": \"sigmoid\", \"threshold\": 0.75}", XMOE_ROUTER_SIGMOID, 0.75f},
        {"{\"type\": \"threshold\", \"threshold\": 0.75}", XMOE_ROUTER_THRESHOLD, 0.75f},
        {"{\"top_k\": 2}", XMOE_ROUTER_TOP_K, 0.5f},
        {"{\"type\": \"dense\"}", XMOE_ROUTER_DENSE, 0.5f},
        {"{\"top_k\": 2, \"threshold\": 0.25}", XMOE_ROUTER_SIGMOID, 0.25f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xmoe_routing routing;
        xm_problem problem;
        if (!apply(cases[i].text, &routing, &problem))
            fail_msg("%s: %s", cases[i].text, problem.message);
        for (int32_t layer = 0; layer < 2; layer++) {
            assert_int_equal(routing.layers[layer].type, cases[i].type);
            assert_true(routing.layers[layer].threshold == cases[i].threshold);
        }
    }
}

static void it_is_written_as_it_is_read(void **state)
{
    (void)state;
    xmoe_routing routing;
    xm_problem problem;
    xm_text text = {0};
    xm_json json = {&text, false};
    assert_true(apply("{\"threshold\": 0.25, \"layers\": {\"1\": {\"threshold\": 0.5}}}", &routing,
                      &problem));
    xm_router_write(model, &routing, &json, NULL);
    cJSON *back = cJSON_ParseWithLength(text.data, text.length);
    assert_non_null(back);
    const cJSON *other = cJSON_GetObjectItem(cJSON_GetObjectItem(back, "layers"), "1");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(back, "type")), "sigmoid");
    assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(back, "threshold")) == 0.25);
    assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(other, "threshold")) == 0.5);
    cJSON_Delete(back);
    xm_text_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_threshold_is_the_models_own),
        cmocka_unit_test(it_is_written_as_it_is_read),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
