/*
 * test_server_bodies.c - bodies that are wrong, each with the answer it must get, against one
 * server that must still be well at the end and must not have kept anything of them.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server_fixture.h"

static server_child server;

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server = server_start((const char *[]){"--limits-body-bytes", "200000", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

typedef struct {
    const char *body;
    const char *param; /* NULL: null in the answer */
} wrong;

#define CHAT "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], "

static const wrong completions[] = {
    {"", NULL},
    {" ", NULL},
    {"nonsense", NULL},
    {"{", NULL},
    {"{\"prompt\": \"x\"", NULL},
    {"{\"prompt\": \"x\"} {}", NULL},
    {"{\"prompt\": \"x\",}", NULL},
    {"{\"prompt\": 'x'}", NULL},
    {"{prompt: \"x\"}", NULL},
    {"\xef\xbb\xbf{\"prompt\": \"x\"}", NULL},
    {"[]", NULL},
    {"null", NULL},
    {"\"prompt\"", NULL},
    {"{\"prompt\": \"\xff\xfe\"}", NULL},
    {"{\"prompt\": \"\xc0\xaf\"}", NULL},
    {"{\"prompt\": \"\xed\xa0\x80\"}", NULL},
    {"{\"prompt\": \"a\\u0000b\"}", NULL},
    {"{\"prompt\": \"\\ud800\"}", NULL},
    {"{\"prompt\": \"\\udc00\\ud800\"}", NULL},
    {"{\"prompt\": \"\\ud800\\u0041\"}", NULL},
    {"{\"prompt\": \"\\u12g4\"}", NULL},
    {"{\"prompt\": \"\\x41\"}", NULL},
    {"{\"prompt\": \"a\nb\"}", NULL},
    {"{\"prompt\": \"x\", \"max_tokens\": 01}", NULL},
    {"{\"prompt\": \"x\", \"max_tokens\": +1}", NULL},
    {"{\"prompt\": \"x\", \"max_tokens\": .5}", NULL},
    {"{\"prompt\": \"x\", \"max_tokens\": 1.}", NULL},
    {"{\"prompt\": \"x\", \"max_tokens\": 0x10}", NULL},
    {"{\"prompt\": \"x\", \"temperature\": NaN}", NULL},
    {"{\"prompt\": \"x\", \"temperature\": Infinity}", NULL},
    {"{\"prompt\": \"x\", \"temperature\": 1e999}", NULL},
    {"{\"prompt\": \"x\", \"prompt\": \"y\"}", "prompt"},
    {"{\"prompt\": \"x\", \"router\": {\"top_k\": 1, \"top_k\": 2}}", "top_k"},
    {"{\"prompt\": 7}", "prompt"},
    {"{\"prompt\": {}}", "prompt"},
    {"{\"prompt\": true}", "prompt"},
    {"{\"prompt\": []}", "prompt"},
    {"{\"prompt\": [[]]}", "prompt"},
    {"{\"prompt\": [\"a\", 1]}", "prompt"},
    {"{\"prompt\": [1, \"a\"]}", "prompt"},
    {"{\"prompt\": [[1], 2]}", "prompt"},
    {"{\"prompt\": [-1]}", "prompt"},
    {"{\"prompt\": [1.5]}", "prompt"},
    {"{\"prompt\": [300]}", "prompt"},
    {"{\"prompt\": [1e300]}", "prompt"},
    {"{\"prompt\": [{}]}", "prompt"},
    {"{\"prompt\": \"x\", \"max_tokens\": -1}", "max_tokens"},
    {"{\"prompt\": \"x\", \"max_tokens\": 1.5}", "max_tokens"},
    {"{\"prompt\": \"x\", \"max_tokens\": \"1\"}", "max_tokens"},
    {"{\"prompt\": \"x\", \"max_tokens\": 1e300}", "max_tokens"},
    {"{\"prompt\": \"x\", \"temperature\": -0.1}", "temperature"},
    {"{\"prompt\": \"x\", \"temperature\": 2.1}", "temperature"},
    {"{\"prompt\": \"x\", \"temperature\": \"hot\"}", "temperature"},
    {"{\"prompt\": \"x\", \"temperature\": []}", "temperature"},
    {"{\"prompt\": \"x\", \"top_p\": 1.1}", "top_p"},
    {"{\"prompt\": \"x\", \"top_p\": -1}", "top_p"},
    {"{\"prompt\": \"x\", \"top_k\": -2}", "top_k"},
    {"{\"prompt\": \"x\", \"top_k\": 1e12}", "top_k"},
    {"{\"prompt\": \"x\", \"min_p\": 2}", "min_p"},
    {"{\"prompt\": \"x\", \"n\": 0}", "n"},
    {"{\"prompt\": \"x\", \"n\": 129}", "n"},
    {"{\"prompt\": [\"x\", \"y\"], \"n\": 100}", "n"},
    {"{\"prompt\": \"x\", \"n\": 3, \"best_of\": 2}", "best_of"},
    {"{\"prompt\": \"x\", \"best_of\": 1000}", "best_of"},
    {"{\"prompt\": \"x\", \"best_of\": 2, \"stream\": true}", "best_of"},
    {"{\"prompt\": \"x\", \"logprobs\": 6}", "logprobs"},
    {"{\"prompt\": \"x\", \"logprobs\": -1}", "logprobs"},
    {"{\"prompt\": \"x\", \"logprobs\": true}", "logprobs"},
    {"{\"prompt\": \"x\", \"echo\": 1}", "echo"},
    {"{\"prompt\": \"x\", \"stream\": \"yes\"}", "stream"},
    {"{\"prompt\": \"x\", \"stream_options\": {\"include_usage\": true}}", "stream_options"},
    {"{\"prompt\": \"x\", \"stream\": true, \"stream_options\": 1}", "stream_options"},
    {"{\"prompt\": \"x\", \"stream\": true, \"stream_options\": {\"include_usage\": 1}}",
     "include_usage"},
    {"{\"prompt\": \"x\", \"stop\": 1}", "stop"},
    {"{\"prompt\": \"x\", \"stop\": \"\"}", "stop"},
    {"{\"prompt\": \"x\", \"stop\": [\"a\", \"\"]}", "stop"},
    {"{\"prompt\": \"x\", \"stop\": [1]}", "stop"},
    {"{\"prompt\": \"x\", \"stop\": [\"a\", \"b\", \"c\", \"d\", \"e\"]}", "stop"},
    {"{\"prompt\": \"x\", \"seed\": 1.5}", "seed"},
    {"{\"prompt\": \"x\", \"seed\": 1e30}", "seed"},
    {"{\"prompt\": \"x\", \"logit_bias\": []}", "logit_bias"},
    {"{\"prompt\": \"x\", \"logit_bias\": {\"x\": 1}}", "logit_bias"},
    {"{\"prompt\": \"x\", \"logit_bias\": {\"300\": 1}}", "logit_bias"},
    {"{\"prompt\": \"x\", \"logit_bias\": {\"-1\": 1}}", "logit_bias"},
    {"{\"prompt\": \"x\", \"logit_bias\": {\"1\": 101}}", "logit_bias"},
    {"{\"prompt\": \"x\", \"logit_bias\": {\"1\": \"1\"}}", "logit_bias"},
    {"{\"prompt\": \"x\", \"presence_penalty\": 3}", "presence_penalty"},
    {"{\"prompt\": \"x\", \"frequency_penalty\": -3}", "frequency_penalty"},
    {"{\"prompt\": \"x\", \"repetition_penalty\": 0}", "repetition_penalty"},
    {"{\"prompt\": \"x\", \"user\": 5}", "user"},
    {"{\"prompt\": \"x\", \"model\": 5}", "model"},
    {"{\"prompt\": \"x\", \"suffix\": \"y\"}", "suffix"},
    {"{\"prompt\": \"x\", \"expert_usage\": 1}", "expert_usage"},
    {"{\"prompt\": \"x\", \"cache_prompt\": \"no\"}", "cache_prompt"},
    {"{\"prompt\": \"x\", \"router\": 1}", "router"},
    {"{\"prompt\": \"x\", \"router\": []}", "router"},
    {"{\"prompt\": \"x\", \"router\": {\"type\": \"best\"}}", "router.type"},
    {"{\"prompt\": \"x\", \"router\": {\"type\": 1}}", "router.type"},
    {"{\"prompt\": \"x\", \"router\": {\"threshold\": 0}}", "router.threshold"},
    {"{\"prompt\": \"x\", \"router\": {\"threshold\": 1.01}}", "router.threshold"},
    {"{\"prompt\": \"x\", \"router\": {\"threshold\": -1e-30}}", "router.threshold"},
    {"{\"prompt\": \"x\", \"router\": {\"top_k\": 0}}", "router.top_k"},
    {"{\"prompt\": \"x\", \"router\": {\"min_experts\": 0}}", "router.min_experts"},
    {"{\"prompt\": \"x\", \"router\": {\"max_experts\": -1}}", "router.max_experts"},
    {"{\"prompt\": \"x\", \"router\": {\"normalize\": 1}}", "router.normalize"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": []}}", "router.layers"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": {\"0\": {}}}}", "router.layers"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": {\"9\": {}}}}", "router.layers"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": {\"x\": {}}}}", "router.layers"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": {\"3\": 1}}}", "router.layers"},
    {"{\"prompt\": \"x\", \"router\": {\"layers\": {\"3\": {\"top_k\": 0}}}}",
     "router.layers.3.top_k"},
};

static const wrong chats[] = {
    {"{}", "messages"},
    {"{\"messages\": null}", "messages"},
    {"{\"messages\": \"hi\"}", "messages"},
    {"{\"messages\": []}", "messages"},
    {"{\"messages\": [1]}", "messages[0]"},
    {"{\"messages\": [{}]}", "messages[0].role"},
    {"{\"messages\": [{\"role\": \"king\", \"content\": \"x\"}]}", "messages[0].role"},
    {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content"},
    {"{\"messages\": [{\"role\": \"user\", \"content\": 1}]}", "messages[0].content"},
    {"{\"messages\": [{\"role\": \"user\", \"content\": [\"x\"]}]}", "messages[0].content"},
    {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
     "messages[0].content"},
    {CHAT "\"top_logprobs\": 2}", "top_logprobs"},
    {CHAT "\"logprobs\": 2}", "logprobs"},
    {CHAT "\"logprobs\": true, \"top_logprobs\": 21}", "top_logprobs"},
    {CHAT "\"max_tokens\": 0}", "max_tokens"},
    {CHAT "\"max_completion_tokens\": 0}", "max_completion_tokens"},
    {CHAT "\"response_format\": {\"type\": \"xml\"}}", "response_format"},
    {CHAT "\"response_format\": \"json_object\"}", "response_format"},
    {CHAT "\"response_format\": {\"type\": \"json_schema\"}}", "response_format"},
    {CHAT "\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": "
          "{\"not\": {}}}}}",
     "response_format"},
    {CHAT "\"json_schema\": {\"type\": \"odd\"}}", "json_schema"},
    {CHAT "\"grammar\": \"root ::= x\"}", "grammar"},
    {CHAT "\"grammar\": 1}", "grammar"},
    {CHAT "\"grammar\": \"root ::= [a]\", \"json_schema\": {}}", "grammar"},
};

static void expect(const char *path, const wrong *row)
{
    cJSON *answer = server_post_json(&server, path, row->body, 400);
    const cJSON *param = json_at(answer, "error.param");
    assert_string_equal(json_text(answer, "error.type"), "invalid_request_error");
    assert_true(strlen(json_text(answer, "error.message")) > 10);
    if (row->param ? !cJSON_IsString(param) || strcmp(param->valuestring, row->param) != 0
                   : !cJSON_IsNull(param))
        fail_msg("%s: param %s", row->body, cJSON_PrintUnformatted(param));
    cJSON_Delete(answer);
}

static void completions_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof completions / sizeof *completions; i++)
        expect("/v1/completions", &completions[i]);
}

static void chats_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof chats / sizeof *chats; i++)
        expect("/v1/chat/completions", &chats[i]);
}

/* head, then count times part, then tail. */
static char *repeat(const char *head, const char *part, size_t count, const char *tail)
{
    size_t length = strlen(part);
    char *text = malloc(strlen(head) + count * length + strlen(tail) + 1);
    assert_non_null(text);
    char *end = stpcpy(text, head);
    for (size_t i = 0; i < count; i++)
        end = stpcpy(end, part);
    stpcpy(end, tail);
    return text;
}

static void bombs_are_refused(void **state)
{
    (void)state;
    const wrong row = {repeat("{\"prompt\": ", "[", 90000, ""), NULL};
    expect("/v1/completions", &row);
    free((char *)row.body);
    const wrong objects = {repeat("", "{\"a\":", 20000, ""), NULL};
    expect("/v1/completions", &objects);
    free((char *)objects.body);
    const wrong digits = {repeat("{\"seed\": 0.", "1", 90000, "}"), NULL};
    expect("/v1/completions", &digits);
    free((char *)digits.body);
    const wrong prompts = {repeat("{\"prompt\": [\"a\"", ",\"a\"", 20000, "]}"), "prompt"};
    expect("/v1/completions", &prompts);
    free((char *)prompts.body);
}

/* Both lengths are in the message. */
static void long_prompt_is_refused(void **state)
{
    (void)state;
    char *body = repeat("{\"prompt\": [7", ",7", 600, "]}");
    cJSON *answer = server_post_json(&server, "/v1/completions", body, 400);
    assert_string_equal(json_text(answer, "error.code"), "context_length_exceeded");
    assert_string_equal(json_text(answer, "error.param"), "prompt");
    assert_non_null(strstr(json_text(answer, "error.message"), "512"));
    assert_non_null(strstr(json_text(answer, "error.message"), "601"));
    cJSON_Delete(answer);
    free(body);
}

/* One prompt of many that is too long: none of them is begun. */
static void long_prompt_among_others(void **state)
{
    (void)state;
    const char *submitted = "xmoe_requests_submitted_total{model_name=\"model\"}";
    double before = server_metric(&server, submitted);
    char *body = repeat("{\"prompt\": [[1], [2], [7", ",7", 600, "]]}");
    cJSON *answer = server_post_json(&server, "/v1/completions", body, 400);
    assert_string_equal(json_text(answer, "error.code"), "context_length_exceeded");
    assert_non_null(strstr(json_text(answer, "error.message"), "512"));
    assert_non_null(strstr(json_text(answer, "error.message"), "601"));
    assert_true(server_metric(&server, submitted) == before);
    cJSON_Delete(answer);
    free(body);
}

static void big_bodies_are_refused(void **state)
{
    (void)state;
    char *body = repeat("{\"prompt\": \"", "0123456789", 30000, "\"}");
    cJSON *answer = server_post_json(&server, "/v1/completions", body, 413);
    assert_string_equal(json_text(answer, "error.type"), "invalid_request_error");
    cJSON_Delete(answer);
    free(body);

    /* The same without a length announced. */
    int fd = http_connect(server.port);
    const char *head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                       "\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_true(http_send(fd, head, strlen(head)));
    char *chunk = repeat("10000\r\n", "0123456789abcdef", 4096, "\r\n");
    for (int i = 0; i < 5; i++)
        assert_true(http_send(fd, chunk, strlen(chunk)));
    assert_true(http_send(fd, "0\r\n\r\n", 5));
    http_answer refused = http_read(fd);
    assert_int_equal(refused.status, 413);
    http_free(&refused);
    free(chunk);
    close(fd);

    /* A length beyond reason is refused before the body. */
    fd = http_connect(server.port);
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
           "Content-Length: 99999999999\r\n\r\n";
    assert_true(http_send(fd, head, strlen(head)));
    refused = http_read(fd);
    assert_int_equal(refused.status, 413);
    http_free(&refused);
    close(fd);
}

static void other_types_are_refused(void **state)
{
    (void)state;
    const char *types[] = {"text/plain", "application/x-www-form-urlencoded", "application/jsonx",
                           "application/json-patch+json"};
    for (size_t i = 0; i < 4; i++) {
        char header[96];
        snprintf(header, sizeof header, "Content-Type: %s\r\n", types[i]);
        http_answer answer =
            http_call(server.port, "POST", "/v1/completions", header, "{\"max_tokens\": 1}");
        assert_int_equal(answer.status, 415);
        http_free(&answer);
    }
    http_answer answer =
        http_call(server.port, "POST", "/v1/completions",
                  "Content-Type: Application/JSON; charset=utf-8\r\n", "{\"max_tokens\": 1}");
    assert_int_equal(answer.status, 200);
    http_free(&answer);
}

static void unknown_model_is_404(void **state)
{
    (void)state;
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"model\": \"gpt-5\", \"prompt\": \"x\"}", 404);
    assert_string_equal(json_text(answer, "error.code"), "model_not_found");
    cJSON_Delete(answer);
    const char *names[] = {"model", "model.gguf", "random", ""};
    for (size_t i = 0; i < 4; i++) {
        char body[96];
        snprintf(body, sizeof body, "{\"model\": \"%s\", \"max_tokens\": 1}", names[i]);
        cJSON_Delete(server_post_json(&server, "/v1/completions", body, 200));
    }
}

static void unknown_fields_are_ignored(void **state)
{
    (void)state;
    cJSON_Delete(server_post_json(&server, "/v1/completions",
                                  "{\"prompt\": \"x\", \"max_tokens\": 1, \"colour\": {\"a\": [1]},"
                                  " \"router\": {\"mood\": 3}, \"top_p\": 0, \"top_k\": -1,"
                                  " \"min_p\": 1, \"seed\": -9223372036854775808}",
                                  200));
}

/* Raw bytes that are no HTTP at all, or not quite. */
static void broken_http_is_survived(void **state)
{
    (void)state;
    const char *requests[] = {
        "\r\n\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n{}",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
        "GET /%00%ff%2e%2e/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\"\\\x01\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        int fd = http_connect(server.port);
        http_send(fd, requests[i], strlen(requests[i]));
        http_readable(fd, 50);
        close(fd);
    }
    char *path = repeat("GET /", "a", 100000, " HTTP/1.1\r\nHost: x\r\n\r\n");
    int fd = http_connect(server.port);
    http_send(fd, path, strlen(path));
    http_answer answer = http_read(fd);
    assert_true(answer.status == 0 || (answer.status >= 400 && answer.status < 500));
    http_free(&answer);
    close(fd);
    free(path);
}

static void nothing_is_left(void **state)
{
    (void)state;
    assert_true(server_alive(&server));
    assert_true(server_metric_becomes(&server, "xmoe_kv_blocks_used{model_name=\"model\"}", 0));
    assert_true(
        server_metric_becomes(&server, "xmoe_num_requests_running{model_name=\"model\"}", 0));
    cJSON_Delete(server_post_json(&server, "/v1/completions", "{\"prompt\": \"still here\"}", 200));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completions_are_refused),
        cmocka_unit_test(chats_are_refused),
        cmocka_unit_test(bombs_are_refused),
        cmocka_unit_test(long_prompt_is_refused),
        cmocka_unit_test(long_prompt_among_others),
        cmocka_unit_test(big_bodies_are_refused),
        cmocka_unit_test(other_types_are_refused),
        cmocka_unit_test(unknown_model_is_404),
        cmocka_unit_test(unknown_fields_are_ignored),
        cmocka_unit_test(broken_http_is_survived),
        cmocka_unit_test(nothing_is_left),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
