/*
 * test_server_operation.c - everything but generation: models, tokens, expert usage, routing,
 * health, metrics, slots, and what the HTTP layer says about methods, keys, origins and slowness.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server_fixture.h"

static server_child server, guarded; /* the second with keys, CORS and short limits */

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server = server_start(NULL);
    guarded = server_start((const char *[]){
        "--http-api-keys", "secret,other", "--http-cors-origin", "https://example.org",
        "--limits-body-seconds", "1", "--limits-idle-seconds", "1", "--metrics-expert-tokens",
        "full", "--log-format", "json", "--alias", "org/tiny", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM), guarded_status = server_stop(&guarded, SIGINT);
    return server_remove_model(state) == 0 && status == 0 && guarded_status == 0 ? 0 : -1;
}

static cJSON *get(const char *path)
{
    return server_get_json(&server, path, 200);
}

static void health_and_description(void **state)
{
    (void)state;
    const char *paths[] = {"/health", "/v1/health", "/ready",     "/openapi.json",    "/props",
                           "/slots",  "/v1/models", "/v1/router", "/v1/experts/usage"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        cJSON_Delete(get(paths[i]));
    http_answer head = http_call(server.port, "HEAD", "/health", "", NULL);
    assert_non_null(strstr(head.headers, "200 OK"));
    http_free(&head);
}

static void write_top_k(xm_gguf_writer *writer)
{
    xm_gguf_writer_string(writer, "xmoe.router.type", "top_k");
    xm_gguf_writer_u32(writer, "xmoe.expert_used_count", 2);
}

/* A dial in the settings works as it does in a request: it brings its type. */
static void settings_turn_the_dial(void **state)
{
    (void)state;
    static const struct {
        const char *flags[5], *type, *dial; /* NULL: the type has none */
        double value;
    } cases[] = {
        {{NULL}, "top_k", "top_k", 2},
        {{"--router-threshold", "0.5", NULL}, "threshold", "threshold", 0.5},
        {{"--router-top-k", "3", NULL}, "top_k", "top_k", 3},
        {{"--router-type", "dense", "--router-threshold", "0.5", NULL}, "dense", NULL, 0},
    };
    static const char *const skip[] = {"xmoe.router.type", NULL};
    server_rewrite_model(skip, write_top_k);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        server_child child = server_start(cases[i].flags);
        cJSON *router = server_get_json(&child, "/v1/router", 200);
        assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(router, "type")),
                            cases[i].type);
        if (cases[i].dial)
            assert_true(json_number(router, cases[i].dial) == cases[i].value);
        cJSON_Delete(router);
        assert_int_equal(server_stop(&child, SIGTERM), 0);
    }
}

/* The page's nonce: 32 digits, the same in the policy and over style and script. */
static void read_nonce(const http_answer *page, char nonce[33])
{
    const char *policy = strstr(page->headers, "Content-Security-Policy: default-src 'none';");
    assert_non_null(policy);
    const char *script = strstr(policy, "script-src 'nonce-");
    assert_non_null(script);
    assert_int_equal(sscanf(script, "script-src 'nonce-%32[0-9a-f]'", nonce), 1);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "style-src 'nonce-%s'", nonce);
    assert_non_null(strstr(policy, wanted));
    snprintf(wanted, sizeof wanted, "<style nonce=\"%s\">", nonce);
    assert_non_null(strstr(page->body, wanted));
    snprintf(wanted, sizeof wanted, "<script type=\"module\" nonce=\"%s\">", nonce);
    assert_non_null(strstr(page->body, wanted));
}

/* Without a key, for it is the page that asks for one. */
static void dashboard_is_one_page(void **state)
{
    (void)state;
    char first[33], second[33];
    http_answer page = server_get(&guarded, "/");
    assert_int_equal(page.status, 200);
    assert_non_null(strstr(page.headers, "Content-Type: text/html; charset=utf-8"));
    assert_non_null(strstr(page.headers, "Cache-Control: no-store"));
    assert_non_null(strstr(page.headers, "X-Content-Type-Options: nosniff"));
    assert_non_null(strstr(page.headers, "Referrer-Policy: no-referrer"));
    read_nonce(&page, first);
    assert_null(strstr(page.body, "{{"));
    assert_null(strstr(page.body, " src="));
    assert_null(strstr(page.body, " style="));
    assert_memory_equal(page.body + strlen(page.body) - 8, "</html>\n", 8);
    http_free(&page);
    page = server_get(&guarded, "/");
    read_nonce(&page, second);
    assert_string_not_equal(first, second);
    http_free(&page);
}

static void models_have_their_shape(void **state)
{
    (void)state;
    cJSON *list = get("/v1/models");
    assert_string_equal(json_text(list, "object"), "list");
    assert_string_equal(json_text(list, "data.0.id"), "model");
    assert_string_equal(json_text(list, "data.0.object"), "model");
    assert_string_equal(json_text(list, "data.0.quantization"), "F32");
    assert_true(json_number(list, "data.0.shape.experts") == 8);
    assert_true(json_number(list, "data.0.shape.moe_layers") == 2);
    assert_true(json_number(list, "data.0.max_model_len") == 512);
    assert_string_equal(json_text(list, "data.0.router.type"), "threshold");
    cJSON_Delete(list);
    cJSON *one = get("/v1/models/model");
    assert_string_equal(json_text(one, "id"), "model");
    cJSON_Delete(one);
    cJSON_Delete(server_get_json(&server, "/v1/models/gpt-5", 404));
    http_answer answer = http_call(guarded.port, "GET", "/v1/models/org%2Ftiny",
                                   "Authorization: Bearer other\r\n", NULL);
    assert_int_equal(answer.status, 200);
    http_free(&answer);
}

static void tokens_go_there_and_back(void **state)
{
    (void)state;
    const char *text = "{\"content\": \"na\\u00efve <|endoftext|> \\ud83d\\ude00\"}";
    cJSON *tokens = server_post_json(&server, "/tokenize", text, 200);
    char *body = cJSON_PrintUnformatted(tokens);
    cJSON *back = server_post_json(&server, "/detokenize", body, 200);
    assert_string_equal(json_text(back, "content"), "na\xc3\xafve <|endoftext|> \xf0\x9f\x98\x80");
    int special = cJSON_GetArraySize(json_at(tokens, "tokens"));
    cJSON_Delete(tokens);
    cJSON_Delete(back);
    free(body);
    tokens = server_post_json(&server, "/tokenize",
                              "{\"content\": \"na\\u00efve <|endoftext|> \\ud83d\\ude00\","
                              " \"parse_special\": false, \"add_special\": true,"
                              " \"with_pieces\": true}",
                              200);
    assert_true(cJSON_GetArraySize(json_at(tokens, "tokens")) > special);
    assert_true(cJSON_IsNumber(json_at(tokens, "tokens.1.id")));
    bool bytes = false;
    for (const cJSON *token = json_at(tokens, "tokens")->child; token; token = token->next)
        bytes = bytes || cJSON_IsArray(json_at(token, "piece"));
    assert_true(bytes); /* half of an emoji is no string */
    cJSON_Delete(tokens);
    const char *wrong[] = {"{}", "{\"content\": 1}", "{\"content\": \"\", \"with_pieces\": 1}",
                           "[]"};
    for (size_t i = 0; i < 4; i++)
        cJSON_Delete(server_post_json(&server, "/tokenize", wrong[i], 400));
    const char *worse[] = {"{}", "{\"tokens\": \"x\"}", "{\"tokens\": [-1]}", "{\"tokens\": [300]}",
                           "{\"tokens\": [\"x\"]}"};
    for (size_t i = 0; i < 5; i++)
        cJSON_Delete(server_post_json(&server, "/detokenize", worse[i], 400));
}

static void usage_is_read_and_reset(void **state)
{
    (void)state;
    cJSON_Delete(server_post_json(&server, "/v1/experts/usage/reset", "", 200));
    cJSON *run = server_post_json(&server, "/v1/completions",
                                  "{\"prompt\": \"some usage\", \"cache_prompt\": false,"
                                  " \"max_tokens\": 4, \"ignore_eos\": true}",
                                  200);
    double prompt = json_number(run, "usage.prompt_tokens");
    cJSON_Delete(run);
    cJSON *all = get("/v1/experts/usage"), *prefill = get("/v1/experts/usage?phase=prefill");
    cJSON *decode = get("/v1/experts/usage?phase=decode&layer=3");
    assert_true(json_number(all, "tokens") == prompt + 3);
    assert_true(json_number(prefill, "tokens") == prompt);
    assert_true(json_number(decode, "layers.0.tokens") == 3);
    assert_true(json_number(decode, "layers.0.layer") == 3);
    assert_int_equal(cJSON_GetArraySize(json_at(decode, "layers")), 1);
    assert_true(cJSON_IsNull(json_at(all, "window_seconds")));
    assert_true(json_number(all, "summary.moe_layers") == 2);
    cJSON *window = get("/v1/experts/usage?window=60");
    double seconds = json_number(window, "window_seconds"); /* what history there is */
    assert_true(seconds >= 1 && seconds <= 60);
    assert_true(json_number(window, "tokens") == prompt + 3);
    cJSON *before = server_post_json(&server, "/v1/experts/usage/reset", "", 200);
    cJSON *after = get("/v1/experts/usage");
    assert_true(json_number(before, "tokens") == prompt + 3);
    assert_true(json_number(after, "tokens") == 0);
    cJSON_Delete(all);
    cJSON_Delete(prefill);
    cJSON_Delete(decode);
    cJSON_Delete(window);
    cJSON_Delete(before);
    cJSON_Delete(after);
    const char *wrong[] = {"?layer=0",
                           "?layer=4",
                           "?layer=x",
                           "?layer=-1",
                           "?window=0",
                           "?window=3601",
                           "?window=1e3",
                           "?phase=both",
                           "?phase",
                           "?phase=decode&phase=prefill",
                           "?layer=1&layer=3",
                           "?window=",
                           "/stream?interval=99",
                           "/stream?interval=10001",
                           "/stream?phase=x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char path[96];
        snprintf(path, sizeof path, "/v1/experts/usage%s", wrong[i]);
        cJSON_Delete(server_get_json(&server, path, 400));
    }
}

static http_answer put_router(const char *body)
{
    return http_call(server.port, "PUT", "/v1/router", "Content-Type: application/json\r\n", body);
}

static void router_is_changed(void **state)
{
    (void)state;
    http_answer answer =
        put_router("{\"threshold\": 0.5, \"layers\": {\"3\": {\"max_experts\": 2}}}");
    assert_int_equal(answer.status, 200);
    http_free(&answer);
    cJSON *now = get("/v1/router");
    assert_true(json_number(now, "threshold") == 0.5);
    assert_true(json_number(now, "layers.3.max_experts") == 2);
    cJSON_Delete(now);
    cJSON *run = server_post_json(&server, "/v1/completions", "{\"max_tokens\": 1}", 200);
    assert_true(json_number(run, "router.threshold") == 0.5);
    cJSON_Delete(run);
    const char *wrong[] = {
        "{\"threshold\": 2}",        "{\"type\": \"x\"}",       "[]", "", "{\"top_k\": -1}",
        "{\"layers\": {\"2\": {}}}", "{\"min_experts\": \"1\"}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        answer = put_router(wrong[i]);
        assert_int_equal(answer.status, 400);
        http_free(&answer);
    }
    now = get("/v1/router");
    assert_true(json_number(now, "threshold") == 0.5); /* nothing of the wrong ones took hold */
    cJSON_Delete(now);
    answer = put_router("{\"type\": \"threshold\", \"threshold\": 0.7, \"max_experts\": null}");
    cJSON *tree = cJSON_Parse(answer.body);
    assert_null(json_at(tree, "layers"));
    cJSON_Delete(tree);
    http_free(&answer);
}

static void slots_show_what_runs(void **state)
{
    (void)state;
    cJSON *slots = get("/slots");
    assert_int_equal(cJSON_GetArraySize(slots), 64);
    assert_true(cJSON_IsFalse(json_at(slots, "0.is_processing")));
    assert_true(json_number(slots, "63.n_ctx") == 512);
    cJSON_Delete(slots);
    cJSON_Delete(get("/slots?fail_on_no_slot=1"));
    cJSON *props = get("/props");
    assert_true(json_number(props, "total_slots") == 64);
    assert_true(json_number(props, "default_generation_settings.n_ctx") == 512);
    assert_string_equal(json_text(props, "model_path"), "model");
    cJSON_Delete(props);
}

/* Every series line is "name{labels} number", declared once by HELP and TYPE before it. */
static void metrics_are_well_formed(void **state)
{
    (void)state;
    http_answer answer =
        http_call(guarded.port, "GET", "/metrics", "Authorization: Bearer secret\r\n", NULL);
    assert_int_equal(answer.status, 200);
    const char *names[] = {
        "xmoe_time_to_first_token_seconds_bucket{model_name=\"org/tiny\",le=\"0.001\"}",
        "xmoe_expert_tokens_total{model_name=\"org/tiny\",layer=\"3\",expert=\"7\"}",
        "xmoe_active_experts_bucket{model_name=\"org/tiny\",layer=\"1\",le=\"8\"}",
        "xmoe_kv_blocks{",
        "xmoe_cache_config_info{model_name=\"org/tiny\",cache_dtype=\"f16\","
        "enable_prefix_caching=\"true\",num_cpu_blocks=\"",
        "xmoe_build_info{",
        "xmoe_model_info{",
        "xmoe_num_requests_waiting{",
        "xmoe_prefix_cache_queries_total{",
        "xmoe_request_success_total{model_name=\"org/tiny\",finished_reason=\"stop\"}",
        "process_resident_memory_bytes ",
        "process_open_fds "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strstr(answer.body, names[i]))
            fail_msg("no %s", names[i]);
    char type[128] = "";
    for (char *line = strtok(answer.body, "\n"); line; line = strtok(NULL, "\n")) {
        if (strncmp(line, "# TYPE ", 7) == 0)
            snprintf(type, sizeof type, "%.*s", (int)strcspn(line + 7, " "), line + 7);
        if (line[0] == '#')
            continue;
        assert_memory_equal(line, type, strlen(type));
        char *end = NULL, *space = strrchr(line, ' ');
        assert_non_null(space);
        strtod(space + 1, &end);
        assert_true(end != space + 1 && *end == '\0');
    }
    http_free(&answer);
}

#define SERIES(name, rest) "xmoe_request_" name "{model_name=\"model\"" rest "}"

#define COUNT(name) "xmoe_" name "_count{model_name=\"model\"}"

/* Experts touched, summed over steps and layers, since the counters were reset. */
static double distinct_experts(void)
{
    cJSON *usage = get("/v1/experts/usage");
    double sum = 0;
    for (const cJSON *layer = json_at(usage, "layers")->child; layer; layer = layer->next)
        sum += json_number(layer, "steps") * json_number(layer, "distinct_per_step");
    cJSON_Delete(usage);
    return sum;
}

/* Two prompts are two observations: what was asked for, how long the longest choice became, and how
 * long it took; three choices of seven tokens have six gaps each. */
static void metrics_follow_requests(void **state)
{
    (void)state;
    static const struct {
        const char *series;
        double growth;
    } rows[] = {{SERIES("params_n_sum", ""), 6},
                {SERIES("params_n_count", ""), 2},
                {SERIES("params_n_bucket", ",le=\"2\""), 0},
                {SERIES("params_n_bucket", ",le=\"5\""), 2},
                {SERIES("params_max_tokens_sum", ""), 14},
                {SERIES("params_max_tokens_bucket", ",le=\"5\""), 0},
                {SERIES("params_max_tokens_bucket", ",le=\"10\""), 2},
                {SERIES("max_num_generation_tokens_sum", ""), 14},
                {SERIES("max_num_generation_tokens_count", ""), 2},
                {SERIES("inference_time_seconds_count", ""), 2},
                {SERIES("generation_tokens_count", ""), 2},
                {SERIES("generation_tokens_sum", ""), 42},
                {SERIES("success_total", ",finished_reason=\"length\""), 2},
                {COUNT("time_to_first_token_seconds"), 2},
                {COUNT("inter_token_latency_seconds"), 36},
                {COUNT("time_per_output_token_seconds"), 36},
                {COUNT("e2e_request_latency_seconds"), 2},
                {COUNT("request_queue_time_seconds"), 2},
                {COUNT("request_prefill_time_seconds"), 2},
                {COUNT("request_decode_time_seconds"), 2}};
    static const char *const bytes = "xmoe_expert_bytes_read_total{model_name=\"model\"}";
    enum { ROWS = sizeof rows / sizeof *rows };
    double before[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        before[i] = server_metric(&server, rows[i].series);
    double read = server_metric(&server, bytes), distinct = distinct_experts();
    cJSON_Delete(server_post_json(&server, "/v1/completions",
                                  "{\"prompt\": [\"a\", \"b\"], \"n\": 3, \"max_tokens\": 7,"
                                  " \"ignore_eos\": true}",
                                  200));
    cJSON_Delete(server_post_json(&server, "/v1/completions", "{\"n\": 0}", 400));
    for (size_t i = 0; i < ROWS; i++) {
        double growth = server_metric(&server, rows[i].series) - before[i];
        if (growth != rows[i].growth)
            fail_msg("%s grew by %g", rows[i].series, growth);
    }
    /* An expert of the model: up and down of 32 x 16, their biases, in F32. */
    read = server_metric(&server, bytes) - read;
    distinct = distinct_experts() - distinct;
    assert_true(distinct > 0 && fabs(read - distinct * 4 * (2 * 32 * 16 + 16 + 32)) < 1);
}

/* Limits that are not those of the start, and an engine with other options. */
static void limits_are_kept(void **state)
{
    (void)state;
    server_child child = server_start((const char *[]){
        "--limits-max-tokens", "3", "--limits-prompts", "2", "--limits-choices", "2",
        "--limits-retry-seconds", "7", "--model-context-length", "64", "--engine-kv-type", "f32",
        "--engine-step-tokens", "16", "--engine-prefix-cache", "false", NULL});
    static const struct {
        const char *body, *param; /* NULL: it is answered, with three tokens */
    } rows[] = {{"{\"prompt\": \"x\", \"max_tokens\": 9, \"ignore_eos\": true}", NULL},
                {"{\"prompt\": [\"x\", \"y\", \"z\"]}", "prompt"},
                {"{\"prompt\": \"x\", \"n\": 3}", "n"},
                {"{\"prompt\": \"x\", \"best_of\": 3}", "best_of"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cJSON *answer =
            server_post_json(&child, "/v1/completions", rows[i].body, rows[i].param ? 400 : 200);
        if (rows[i].param)
            assert_string_equal(json_text(answer, "error.param"), rows[i].param);
        else
            assert_true(json_number(answer, "usage.completion_tokens") == 3);
        cJSON_Delete(answer);
    }
    char body[160];
    snprintf(body, sizeof body, "{\"prompt\": \"%080d\"}", 0);
    cJSON_Delete(server_post_json(&child, "/v1/completions", body, 400));
    snprintf(body, sizeof body, "{\"prompt\": \"%040d\", \"max_tokens\": 2}", 0);
    for (int i = 0; i < 2; i++) {
        cJSON *answer = server_post_json(&child, "/v1/completions", body, 200);
        assert_true(json_number(answer, "usage.prompt_tokens_details.cached_tokens") == 0);
        cJSON_Delete(answer);
    }
    assert_int_equal(server_stop(&child, SIGTERM), 0);
}

static void methods_and_paths(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path;
        int status;
        const char *allow;
    } rows[] = {
        {"GET", "/nothing", 404, NULL},
        {"GET", "/v1/completions/", 404, NULL},
        {"GET", "/v1/experts/trace", 404, NULL},
        {"POST", "/v1/experts/trace", 405, "Allow: GET, HEAD, OPTIONS"},
        {"GET", "/v1/experts/snapshots/none", 404, NULL},
        {"POST", "/v1/experts/snapshots/a", 405, "Allow: GET, HEAD, PUT, DELETE, OPTIONS"},
        {"OPTIONS", "/v1/experts/snapshots/a", 204, "Allow: GET, HEAD, PUT, DELETE, OPTIONS"},
        {"DELETE", "/v1/experts/snapshots", 405, "Allow: GET, HEAD, OPTIONS"},
        {"GET", "/v1/completions", 405, "Allow: POST, OPTIONS"},
        {"DELETE", "/v1/chat/completions", 405, "Allow: POST, OPTIONS"},
        {"POST", "/health", 405, "Allow: GET, HEAD, OPTIONS"},
        {"POST", "/v1/router", 405, "Allow: GET, HEAD, PUT, OPTIONS"},
        {"BREW", "/metrics", 405, "Allow: GET, HEAD, OPTIONS"},
        {"OPTIONS", "/v1/router", 204, "Allow: GET, HEAD, PUT, OPTIONS"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        http_answer answer = http_call(server.port, rows[i].method, rows[i].path, "", NULL);
        if (answer.status != rows[i].status)
            fail_msg("%s %s: %d", rows[i].method, rows[i].path, answer.status);
        assert_true(!rows[i].allow || strstr(answer.headers, rows[i].allow));
        assert_true(answer.status == 204 || strstr(answer.body, "{\"error\":{\"message\":"));
        http_free(&answer);
    }
}

static void keys_are_asked_for(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        int status;
    } rows[] = {{"", 401},
                {"Authorization: Bearer wrong\r\n", 401},
                {"Authorization: Bearer \r\n", 401},
                {"Authorization: Basic secret\r\n", 401},
                {"Authorization: Bearer secret,other\r\n", 401},
                {"Authorization: Bearer secret\r\n", 200},
                {"authorization: bearer other\r\n", 200},
                {"X-Api-Key: other\r\n", 200}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        http_answer answer = http_call(guarded.port, "GET", "/v1/models", rows[i].header, NULL);
        if (answer.status != rows[i].status)
            fail_msg("'%s': %d", rows[i].header, answer.status);
        http_free(&answer);
    }
    const char *open[] = {"/health", "/v1/health", "/ready", "/openapi.json"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        cJSON_Delete(server_get_json(&guarded, open[i], 200));
    cJSON *refused = server_post_json(&guarded, "/v1/completions", "{\"prompt\": \"x\"}", 401);
    assert_string_equal(json_text(refused, "error.code"), "invalid_api_key");
    cJSON_Delete(refused);
    char *log = server_log(&guarded);
    assert_null(strstr(log, "secret"));
    free(log);
}

static void origins_are_told(void **state)
{
    (void)state;
    http_answer answer = http_call(guarded.port, "OPTIONS", "/v1/completions",
                                   "Origin: https://example.org\r\n", NULL);
    assert_int_equal(answer.status, 204);
    assert_non_null(strstr(answer.headers, "Access-Control-Allow-Origin: https://example.org"));
    assert_non_null(strstr(answer.headers, "Access-Control-Allow-Methods: POST"));
    assert_non_null(strstr(answer.headers, "Access-Control-Allow-Headers: Authorization"));
    http_free(&answer);
    answer = server_get(&server, "/health");
    assert_null(strstr(answer.headers, "Access-Control"));
    http_free(&answer);
}

/* A client's id comes back and stands in the log; one that could not is replaced. */
static void request_ids(void **state)
{
    (void)state;
    http_answer answer =
        http_call(guarded.port, "GET", "/health", "X-Request-Id: my-id.7\r\n", NULL);
    assert_non_null(strstr(answer.headers, "X-Request-Id: my-id.7\r\n"));
    http_free(&answer);
    answer = http_call(guarded.port, "GET", "/health", "X-Request-Id: bad id \"\r\n", NULL);
    assert_non_null(strstr(answer.headers, "X-Request-Id: req-"));
    http_free(&answer);
    char *log = server_log(&guarded);
    assert_non_null(strstr(log,
                           "\"request_id\":\"my-id.7\",\"method\":\"GET\",\"path\":\"/health\","
                           "\"status\":200,\"bytes\":15,"));
    free(log);
}

static void slow_requests_get_408(void **state)
{
    (void)state;
    const char *parts[] = {
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"prompt\"",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "};
    for (int i = 0; i < 2; i++) {
        int fd = http_connect(guarded.port);
        assert_true(http_send(fd, parts[i], strlen(parts[i])));
        http_answer answer = http_read(fd);
        assert_int_equal(answer.status, 408);
        assert_non_null(strstr(answer.body, "request_timeout"));
        http_free(&answer);
        close(fd);
    }
    int idle = http_connect(guarded.port);
    assert_true(http_readable(idle, 20000)); /* closed without a word */
    char byte;
    assert_int_equal(read(idle, &byte, 1), 0);
    close(idle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(health_and_description),
        cmocka_unit_test(dashboard_is_one_page),
        cmocka_unit_test(models_have_their_shape),
        cmocka_unit_test(tokens_go_there_and_back),
        cmocka_unit_test(usage_is_read_and_reset),
        cmocka_unit_test(router_is_changed),
        cmocka_unit_test(slots_show_what_runs),
        cmocka_unit_test(metrics_are_well_formed),
        cmocka_unit_test(metrics_follow_requests),
        cmocka_unit_test(methods_and_paths),
        cmocka_unit_test(keys_are_asked_for),
        cmocka_unit_test(origins_are_told),
        cmocka_unit_test(request_ids),
        cmocka_unit_test(slow_requests_get_408),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(settings_turn_the_dial),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
