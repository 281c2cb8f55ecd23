/*
 * test_server_http.c - what may differ between HTTP programs and must not: where a body ends, which
 * host is meant, forms of the URL, HEAD, compressed bodies, preflights. Raw requests over sockets.
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
    server = server_start((const char *[]){"--http-cors-origin", "*", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

/* Everything that comes back until the server closes; the caller frees. */
static char *read_to_end(int fd)
{
    size_t capacity = 1 << 16, length = 0;
    char *text = calloc(1, capacity);
    assert_non_null(text);
    for (ssize_t got; (got = read(fd, text + length, capacity - length - 1)) > 0;)
        length += (size_t)got;
    return text;
}

#define TOKENIZE "POST /tokenize HTTP/1.1\r\nHost: x\r\n"
#define CHUNKED  "Transfer-Encoding: chunked\r\n"

/* Requests of which proxies disagree where they end: refused, and nothing after them is read. */
static void doubtful_bodies_close_the_connection(void **state)
{
    (void)state;
    static const char *const requests[] = {
        TOKENIZE CHUNKED "Content-Length: 5\r\n\r\n0\r\n\r\n",
        TOKENIZE "Content-Length: 0\r\nContent-Length: 2\r\n\r\n{}",
        TOKENIZE "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        TOKENIZE "Transfer-Encoding: gzip\r\n\r\n",
        TOKENIZE "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        TOKENIZE CHUNKED CHUNKED "\r\n0\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        char text[512];
        snprintf(text, sizeof text, "%sGET /health HTTP/1.1\r\nHost: x\r\n\r\n", requests[i]);
        int fd = http_connect(server.port);
        assert_true(http_send(fd, text, strlen(text)));
        char *answer = read_to_end(fd);
        if (strncmp(answer, "HTTP/1.1 400 ", 13) != 0 || strstr(answer + 1, "HTTP/1.1 ") ||
            !strstr(answer, "{\"error\":{"))
            fail_msg("%s -> %s", requests[i], answer);
        free(answer);
        close(fd);
    }
}

/* Who speaks no HTTP is counted as refused, not as a client that went away. */
static void broken_requests_are_counted(void **state)
{
    (void)state;
    const char *series = "xmoe_http_requests_total{model_name=\"model\",endpoint=\"other\","
                         "method=\"\",code=\"400\"}";
    const char *requests[] = {"GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
                              "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"};
    for (size_t i = 0; i < 2; i++) {
        double before = server_metric(&server, series);
        int fd = http_connect(server.port);
        assert_true(http_send(fd, requests[i], strlen(requests[i])));
        char *answer = read_to_end(fd);
        assert_memory_equal(answer, "HTTP/1.1 400 ", 13);
        free(answer);
        close(fd);
        assert_true(server_metric_becomes(&server, series, (before < 0 ? 0 : before) + 1));
    }
}

static void requests_follow_each_other(void **state)
{
    (void)state;
    const char *requests = "HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" TOKENIZE CHUNKED
                           "\r\n3\r\n{\"c\r\nd\r\nontent\": \"a\"}\r\n0\r\n\r\n" TOKENIZE
                           "Content-Length: 16\r\nExpect: 100-continue\r\n\r\n{\"content\": \"b\"}"
                           "GET http://example.org:80/ready?x=http://y HTTP/1.1\r\nHost: x\r\n\r\n"
                           "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    int fd = http_connect(server.port);
    assert_true(http_send(fd, requests, strlen(requests)));
    char *answers = read_to_end(fd), *at = answers;
    const char *expected[] = {"HTTP/1.1 200 ",          "HTTP/1.1 200 ", "{\"tokens\":[97]}",
                              "HTTP/1.1 100 ",          "HTTP/1.1 200 ", "{\"tokens\":[98]}",
                              "{\"status\":\"ready\"}", "HTTP/1.1 404 "};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        char *found = strstr(at, expected[i]);
        if (!found)
            fail_msg("no %s in %s", expected[i], at);
        at = found + strlen(expected[i]);
    }
    free(answers);
    close(fd);
}

/* Only headers, and no chunk that a client would take for the next answer. */
static void head_of_a_stream_has_no_body(void **state)
{
    (void)state;
    const char *request = "HEAD /v1/experts/usage/stream HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = http_connect(server.port);
    assert_true(http_send(fd, request, strlen(request)));
    char *answer = read_to_end(fd);
    assert_memory_equal(answer + 8, " 200 ", 5);
    assert_non_null(strstr(answer, "Content-Type: text/event-stream"));
    const char *end = strstr(answer, "\r\n\r\n");
    assert_non_null(end);
    assert_string_equal(end, "\r\n\r\n");
    free(answer);
    close(fd);
}

static void no_bytes_behind_a_nul(void **state)
{
    (void)state;
    const char *paths[] = {"/health%00x", "/v1/models/model%00x", "/v1/experts/usage?window=5%00x"};
    for (size_t i = 0; i < 3; i++) {
        cJSON *answer = server_get_json(&server, paths[i], 400);
        assert_string_equal(json_text(answer, "error.code"), "invalid_url");
        cJSON_Delete(answer);
    }
}

static void compressed_bodies_are_415(void **state)
{
    (void)state;
    http_answer answer =
        http_call(server.port, "POST", "/tokenize", "Content-Encoding: gzip\r\n", "\x1f\x8b\x08");
    assert_int_equal(answer.status, 415);
    assert_non_null(strstr(answer.headers, "Accept-Encoding: identity"));
    http_free(&answer);
    answer = http_call(server.port, "POST", "/tokenize", "Content-Encoding: identity\r\n",
                       "{\"content\": \"a\"}");
    assert_int_equal(answer.status, 200);
    http_free(&answer);
}

/* Clients in browsers send headers of their own, the official ones too. */
static void preflights_allow_any_header(void **state)
{
    (void)state;
    http_answer answer =
        http_call(server.port, "OPTIONS", "/v1/completions",
                  "Origin: https://example.org\r\nAccess-Control-Request-Method: POST\r\n"
                  "Access-Control-Request-Headers: authorization,x-stainless-os\r\n",
                  NULL);
    assert_int_equal(answer.status, 204);
    assert_non_null(strstr(answer.headers, "Access-Control-Allow-Origin: *\r\n"));
    assert_non_null(strstr(answer.headers, "Access-Control-Allow-Headers: Authorization, "));
    assert_non_null(strstr(answer.headers, ", *\r\n"));
    assert_non_null(strstr(answer.headers, "Expose-Headers: X-Request-Id, Retry-After\r\n"));
    http_free(&answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(doubtful_bodies_close_the_connection),
        cmocka_unit_test(broken_requests_are_counted),
        cmocka_unit_test(requests_follow_each_other),
        cmocka_unit_test(head_of_a_stream_has_no_body),
        cmocka_unit_test(no_bytes_behind_a_nul),
        cmocka_unit_test(compressed_bodies_are_415),
        cmocka_unit_test(preflights_allow_any_header),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
