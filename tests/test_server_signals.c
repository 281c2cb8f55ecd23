/*
 * test_server_signals.c - SIGTERM drains, a second one ends, SIGHUP reads the settings again.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server_fixture.h"

/* Long enough to still run when the signal comes, short enough to end by itself soon after. */
static const char *const running_body = "{\"prompt\": \"x\", \"stream\": true, \"n\": 32,"
                                        " \"max_tokens\": 400, \"ignore_eos\": true}";
/* Far longer than any drain of these tests. */
static const char *const endless_body = "{\"prompt\": \"x\", \"n\": 128, \"max_tokens\": 500,"
                                        " \"ignore_eos\": true, \"logprobs\": 5}";

static int open_request(const server_child *child, const char *body)
{
    char head[256];
    int fd = http_connect(child->port);
    assert_true(fd >= 0);
    snprintf(head, sizeof head,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n",
             strlen(body));
    assert_true(http_send(fd, head, strlen(head)) && http_send(fd, body, strlen(body)));
    return fd;
}

static void drain_finishes_what_runs(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--limits-stream-bytes", "50000000", NULL});
    int fd = open_request(&server, running_body);
    int quiet = http_connect(server.port);
    const char *head = "GET /v1/experts/usage/stream?interval=10000 HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_true(http_send(quiet, head, strlen(head)));
    assert_true(http_readable(fd, 20000) && http_readable(quiet, 20000));
    kill(server.pid, SIGTERM);
    http_answer whole = http_read(fd);
    assert_int_equal(whole.status, 200);
    assert_non_null(strstr(whole.body, "data: [DONE]"));
    http_answer stream = http_read(quiet);
    assert_int_equal(stream.status, 200);
    http_free(&whole);
    http_free(&stream);
    close(fd);
    close(quiet);
    assert_int_equal(server_stop(&server, 0), 0);
}

static void drain_has_an_end(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--limits-drain-seconds", "0", NULL});
    int fd = open_request(&server, endless_body);
    assert_true(
        server_metric_becomes(&server, "xmoe_num_requests_running{model_name=\"model\"}", 1));
    assert_int_equal(server_stop(&server, SIGINT), 0);
    http_answer cut = http_read(fd);
    assert_true(cut.status != 200);
    http_free(&cut);
    close(fd);
}

/* What comes while it drains is refused, and it does not wait any longer. */
static void second_signal_ends_at_once(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--limits-drain-seconds", "600", NULL});
    int fd = open_request(&server, endless_body);
    assert_true(
        server_metric_becomes(&server, "xmoe_num_requests_running{model_name=\"model\"}", 1));
    kill(server.pid, SIGTERM);
    http_answer ready = server_get(&server, "/ready");
    for (int i = 0; i < 2000 && ready.status == 200; i++) { /* until the signal is seen */
        http_free(&ready);
        sleep_milliseconds(5);
        ready = server_get(&server, "/ready");
    }
    assert_int_equal(ready.status, 503);
    assert_non_null(strstr(ready.body, "\"draining\""));
    http_free(&ready);
    http_answer late = server_post(&server, "/v1/completions", "{\"prompt\": \"late\"}");
    assert_int_equal(late.status, 503);
    assert_non_null(strstr(late.headers, "Retry-After: "));
    assert_non_null(strstr(late.headers, "Connection: close"));
    http_free(&late);
    kill(server.pid, SIGTERM);
    assert_int_equal(server_stop(&server, 0), 1);
    char *log = server_log(&server);
    assert_non_null(strstr(log, "second signal"));
    free(log);
    close(fd);
}

static void hangup_reads_settings_again(void **state)
{
    (void)state;
    char path[128];
    server_write_file("live.json", "{\"limits\": {\"body_bytes\": 1000}}", path, sizeof path);
    server_child server = server_start((const char *[]){"--config", path, NULL});
    char body[600];
    snprintf(body, sizeof body, "{\"max_tokens\": 1, \"user\": \"%0500d\"}", 0);
    cJSON_Delete(server_post_json(&server, "/v1/completions", body, 200));
    server_write_file("live.json",
                      "{\"limits\": {\"body_bytes\": 100}, \"router\": {\"threshold\": 0.125},"
                      " \"http\": {\"port\": 1}}",
                      path, sizeof path);
    kill(server.pid, SIGHUP);
    http_answer answer = {0};
    for (int i = 0; i < 1000 && answer.status != 413; i++) {
        http_free(&answer);
        sleep_milliseconds(5);
        answer = server_post(&server, "/v1/completions", body);
    }
    assert_int_equal(answer.status, 413);
    http_free(&answer);
    cJSON *router = server_get_json(&server, "/v1/router", 200);
    assert_true(json_number(router, "threshold") == 0.125);
    cJSON_Delete(router);

    server_write_file("live.json", "{\"limits\": {\"body_bytes\": -1}}", path, sizeof path);
    kill(server.pid, SIGHUP);
    bool told = false;
    for (int i = 0; i < 2000 && !told; i++) {
        char *log = server_log(&server);
        told = strstr(log, "limits.body_bytes") != NULL;
        free(log);
        sleep_milliseconds(5);
    }
    assert_true(told);
    cJSON_Delete(server_post_json(&server, "/v1/completions", body, 413));
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

/* The queue is bounded: what does not fit is told to come back. */
static void full_queue_is_429(void **state)
{
    (void)state;
    server_child server = server_start(
        (const char *[]){"--engine-max-sequences", "1", "--engine-queue-length", "1", NULL});
    enum { REQUESTS = 40 };
    int fds[REQUESTS], refused = 0;
    for (int i = 0; i < REQUESTS; i++)
        fds[i] = open_request(&server, "{\"prompt\": \"x\", \"max_tokens\": 500,"
                                       " \"ignore_eos\": true}");
    for (int i = 0; i < REQUESTS; i++) {
        http_answer answer = http_read(fds[i]);
        assert_true(answer.status == 200 || answer.status == 429);
        if (answer.status == 429) {
            refused++;
            assert_non_null(strstr(answer.headers, "Retry-After: 1\r\n"));
            assert_non_null(strstr(answer.body, "\"type\":\"rate_limit_error\""));
        }
        http_free(&answer);
        close(fds[i]);
    }
    assert_true(refused > 0 && refused < REQUESTS);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drain_finishes_what_runs),   cmocka_unit_test(drain_has_an_end),
        cmocka_unit_test(second_signal_ends_at_once), cmocka_unit_test(hangup_reads_settings_again),
        cmocka_unit_test(full_queue_is_429),
    };
    return cmocka_run_group_tests(tests, server_make_model, server_remove_model);
}
