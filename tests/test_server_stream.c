/*
 * test_server_stream.c - event streams and clients that misbehave: chunks add up to the whole
 * answer, a client that hangs up frees its blocks at once, one that stops reading is cut off alone.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "server_fixture.h"

#include "../server/event.h"

#define RUNNING "xmoe_num_requests_running{model_name=\"model\"}"
#define BLOCKS  "xmoe_kv_blocks_used{model_name=\"model\"}"
#define ABORTED "xmoe_request_success_total{model_name=\"model\",finished_reason=\"abort\"}"
#define CUT(path)                                                                                  \
    "xmoe_http_requests_total{model_name=\"model\",endpoint=\"" path                               \
    "\",method=\"POST\",code=\"499\"}"
#define HANG_UPS CUT("/v1/completions")
#define UNREAD   CUT("/tokenize")

static server_child server;

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server =
        server_start((const char *[]){"--limits-stream-bytes", "100000", "--limits-stall-seconds",
                                      "2", "--stream-ping-seconds", "1", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

/* The n-th `data:` of a stream as JSON; NULL past the end or at [DONE]. The caller deletes. */
static cJSON *event_at(const http_answer *answer, int n)
{
    const char *line = answer->body;
    for (int i = 0; line; i++) {
        line = strstr(line, "data: ");
        if (!line || i == n)
            break;
        line += 6;
    }
    return line ? cJSON_Parse(line + 6) : NULL;
}

static bool is_done(const http_answer *answer)
{
    const char *end = "data: [DONE]\n\n";
    return answer->length > strlen(end) &&
           strcmp(answer->body + answer->length - strlen(end), end) == 0;
}

/* The texts of one choice over all chunks, joined; finish gets its reason. */
static void join_text(const http_answer *answer, bool chat, int choice, char *text, size_t size,
                      char *finish)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0;; i++) {
        cJSON *event = event_at(answer, i);
        if (!event)
            break;
        const cJSON *index = json_at(event, "choices.0.index");
        if (index && index->valueint == choice) {
            const cJSON *piece =
                json_at(event, chat ? "choices.0.delta.content" : "choices.0.text");
            const cJSON *reason = json_at(event, "choices.0.finish_reason");
            if (piece)
                used += (size_t)snprintf(text + used, size - used, "%s", piece->valuestring);
            if (cJSON_IsString(reason))
                snprintf(finish, 16, "%s", reason->valuestring);
        }
        cJSON_Delete(event);
    }
}

/* Token 0 is a NUL byte, which C strings cannot show. */
static void chunks_add_up(void **state)
{
    (void)state;
    const char *fields = "\"prompt\": [\"abc\", \"x\"], \"n\": 2, \"seed\": 21, \"max_tokens\": 20,"
                         " \"ignore_eos\": true, \"stop\": [\"never to be seen\"], \"echo\": true, "
                         "\"logit_bias\": {\"0\": -100}";
    char body[512];
    snprintf(body, sizeof body, "{%s}", fields);
    cJSON *whole = server_post_json(&server, "/v1/completions", body, 200);
    snprintf(body, sizeof body,
             "{%s, \"stream\": true, \"stream_options\": {\"include_usage\": true}}", fields);
    http_answer streamed = server_post(&server, "/v1/completions", body);
    assert_int_equal(streamed.status, 200);
    assert_non_null(strstr(streamed.headers, "text/event-stream"));
    assert_true(is_done(&streamed));
    for (int choice = 0; choice < 4; choice++) {
        char text[1024], finish[16] = "", path[32];
        join_text(&streamed, false, choice, text, sizeof text, finish);
        snprintf(path, sizeof path, "choices.%d.text", choice);
        assert_string_equal(text, json_text(whole, path));
        assert_string_equal(finish, "length");
    }
    int last = 0;
    for (cJSON *event; (event = event_at(&streamed, last)); last++) {
        const cJSON *usage = json_at(event, "usage");
        assert_true(cJSON_IsNull(usage) || cJSON_GetArraySize(json_at(event, "choices")) == 0);
        cJSON_Delete(event);
    }
    cJSON *usage = event_at(&streamed, last - 1), *final = event_at(&streamed, last - 2);
    assert_true(json_number(usage, "usage.completion_tokens") == 80);
    assert_true(json_number(final, "timings.predicted_n") == 80);
    assert_string_equal(json_text(final, "router.type"), "threshold");
    cJSON_Delete(usage);
    cJSON_Delete(final);
    cJSON_Delete(whole);
    http_free(&streamed);
}

static void chat_stream_announces_the_role(void **state)
{
    (void)state;
    const char *fields = "\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"seed\": 2,"
                         " \"max_tokens\": 12, \"logprobs\": true, \"top_logprobs\": 1,"
                         " \"logit_bias\": {\"0\": -100}";
    char body[512], text[1024], finish[16] = "";
    snprintf(body, sizeof body, "{%s}", fields);
    cJSON *whole = server_post_json(&server, "/v1/chat/completions", body, 200);
    snprintf(body, sizeof body,
             "{%s, \"stream\": true, \"return_progress\": true, \"timings_per_token\": true,"
             " \"expert_usage\": true}",
             fields);
    http_answer streamed = server_post(&server, "/v1/chat/completions", body);
    assert_true(is_done(&streamed));
    join_text(&streamed, true, 0, text, sizeof text, finish);
    assert_string_equal(text, json_text(whole, "choices.0.message.content"));
    assert_string_equal(finish, json_text(whole, "choices.0.finish_reason"));
    assert_non_null(strstr(streamed.body, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}"));
    assert_non_null(strstr(streamed.body, "\"prompt_progress\":{\"total\":"));
    assert_non_null(strstr(streamed.body, "\"expert_usage\":{\"object\":\"experts.usage\""));
    assert_non_null(strstr(streamed.body, "\"logprobs\":{\"content\":[{\"token\""));
    int tokens = 0;
    for (const char *at = streamed.body; (at = strstr(at, "\"logprob\":")); at++)
        tokens++;
    assert_int_equal(tokens, 2 * (int)json_number(whole, "usage.completion_tokens"));
    cJSON_Delete(whole);
    http_free(&streamed);
}

/* Sends a POST and returns the socket without reading. */
static int open_request(const char *path, const char *body, int receive_buffer)
{
    char head[256];
    int fd = http_connect(server.port);
    assert_true(fd >= 0);
    if (receive_buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n",
             path, strlen(body));
    assert_true(http_send(fd, head, strlen(head)) && http_send(fd, body, strlen(body)));
    return fd;
}

/* Long enough that it cannot end by itself before the client hangs up: 128 choices of 500 tokens.
 */
#define LONG "\"n\": 128, \"max_tokens\": 500, \"ignore_eos\": true, \"logprobs\": 5, \"seed\": 1"

static void hang_up_ends_a_stream(void **state)
{
    (void)state;
    double before = server_metric(&server, ABORTED);
    int fd = open_request("/v1/completions", "{\"prompt\": \"x\", \"stream\": true, " LONG "}", 0);
    assert_true(http_readable(fd, 20000));
    close(fd);
    assert_true(server_metric_becomes(&server, ABORTED, before + 1));
    assert_true(server_metric_becomes(&server, BLOCKS, 0));
}

static void hang_up_ends_a_waiting_request(void **state)
{
    (void)state;
    double before = server_metric(&server, ABORTED), gone = server_metric(&server, HANG_UPS);
    int fd = open_request("/v1/completions", "{\"prompt\": \"x\", " LONG "}", 0);
    assert_true(server_metric_becomes(&server, RUNNING, 1));
    close(fd);
    assert_true(server_metric_becomes(&server, ABORTED, before + 1));
    assert_true(server_metric_becomes(&server, BLOCKS, 0));
    assert_true(server_metric_becomes(&server, HANG_UPS, (gone < 0 ? 0 : gone) + 1));
}

/* The stream's events would be many megabytes; others are served meanwhile. */
static void slow_reader_is_cut_alone(void **state)
{
    (void)state;
    double before = server_metric(&server, ABORTED), gone = server_metric(&server, HANG_UPS);
    int fd =
        open_request("/v1/completions", "{\"prompt\": \"x\", \"stream\": true, " LONG "}", 4096);
    assert_true(http_readable(fd, 20000));
    cJSON_Delete(server_post_json(&server, "/v1/completions",
                                  "{\"prompt\": \"y\", \"max_tokens\": 4}", 200));
    assert_true(server_metric_becomes(&server, ABORTED, before + 1));
    assert_true(server_metric_becomes(&server, BLOCKS, 0));
    assert_true(server_metric_becomes(&server, HANG_UPS, (gone < 0 ? 0 : gone) + 1));
    close(fd);
}

/* The same for an answer in one piece, of which more is left than the socket holds: some 8 MB. */
static void unread_answer_is_cut(void **state)
{
    (void)state;
    enum { LETTERS = 2000000 };
    static char body[LETTERS + 64];
    int length = sprintf(body, "{\"content\": \"");
    memset(body + length, 'x', LETTERS);
    strcpy(body + length + LETTERS, "\"}");
    double gone = server_metric(&server, UNREAD);
    int fd = open_request("/tokenize", body, 4096);
    assert_true(http_readable(fd, 60000));
    assert_true(server_metric_becomes(&server, UNREAD, (gone < 0 ? 0 : gone) + 1));
    close(fd);
}

/* What the request itself asked for is no sign of a slow reader, much as it is. */
static void routed_experts_cut_nothing(void **state)
{
    (void)state;
    enum { POSITIONS = 500, LAYERS = 2 };
    uint16_t counts[POSITIONS * LAYERS], experts[POSITIONS * LAYERS];
    float weights[POSITIONS * LAYERS];
    for (int i = 0; i < POSITIONS * LAYERS; i++) {
        counts[i] = 1;
        experts[i] = (uint16_t)i;
        weights[i] = (float)i;
    }
    const xmoe_routed_experts routed = {0, POSITIONS, LAYERS, counts, experts, weights};
    xmoe_event event = {.kind = XMOE_EVENT_CHOICE, .text = "end", .text_length = 3};
    xm_event *plain = xm_event_copy(&event, 0, 1);
    event.routed = &routed;
    xm_event *copy = xm_event_copy(&event, 0, 1);
    assert_true(plain && copy);
    assert_int_equal(copy->bytes, plain->bytes);
    assert_memory_equal(copy->event.text, "end", 3);
    assert_memory_equal(copy->event.routed->counts, counts, sizeof counts);
    assert_memory_equal(copy->event.routed->experts, experts, sizeof experts);
    assert_memory_equal(copy->event.routed->weights, weights, sizeof weights);
    free(plain);
    free(copy);
}

/* A stream that has nothing to say is kept alive by comments. */
static void quiet_stream_pings(void **state)
{
    (void)state;
    int fd = http_connect(server.port);
    const char *head = "GET /v1/experts/usage/stream?interval=10000 HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_true(http_send(fd, head, strlen(head)));
    char text[2048];
    size_t used = 0;
    for (int i = 0; i < 100 && used < sizeof text - 1; i++) {
        ssize_t got = recv(fd, text + used, sizeof text - 1 - used, 0);
        assert_true(got > 0);
        used += (size_t)got;
        text[used] = '\0';
        if (strstr(text, ": ping\n\n"))
            break;
    }
    assert_non_null(strstr(text, ": ping\n\n"));
    close(fd);
}

/* Each event is the difference to the one before: together they are what the totals grew by. It
 * says since when it counts, and with ?layer= its summary is of that layer, as everywhere. */
static void usage_stream_adds_up(void **state)
{
    (void)state;
    cJSON_Delete(server_post_json(&server, "/v1/experts/usage/reset", "", 200));
    int fd = http_connect(server.port);
    const char *head =
        "GET /v1/experts/usage/stream?interval=100&layer=1 HTTP/1.0\r\nHost: x\r\n\r\n";
    assert_true(http_send(fd, head, strlen(head)));
    assert_true(http_readable(fd, 20000));
    for (int i = 0; i < 5; i++)
        cJSON_Delete(server_post_json(&server, "/v1/completions",
                                      "{\"prompt\": \"stream of usage\", \"cache_prompt\": false}",
                                      200));
    sleep_milliseconds(1300);
    shutdown(fd, SHUT_WR);
    size_t capacity = 1 << 20, used = 0;
    char *text = calloc(1, capacity);
    for (ssize_t got; (got = recv(fd, text + used, capacity - 1 - used, 0)) > 0;)
        used += (size_t)got;
    close(fd);
    double sum = 0, first = 0, since = 0;
    for (const char *at = text; (at = strstr(at, "\"since\":")); at++) {
        since = atof(at + strlen("\"since\":"));
        first = first > 0 ? first : since;
    }
    assert_true(since > first && first > 1.6e9);
    assert_non_null(strstr(text, "\"summary\":{\"moe_layers\":1,"));
    assert_null(strstr(text, "\"moe_layers\":2"));
    for (const char *at = text; (at = strstr(at, "\"layer\":1,\"experts\":8,\"tokens\":")); at++)
        sum += atof(at + strlen("\"layer\":1,\"experts\":8,\"tokens\":"));
    cJSON *total = server_get_json(&server, "/v1/experts/usage?layer=1", 200);
    assert_true(sum == json_number(total, "layers.0.tokens"));
    assert_true(sum > 0);
    cJSON_Delete(total);
    free(text);
}

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* How many of 16 events of 100 ms come in less than 200 ms after the one before. */
static int events_in_time(void)
{
    static char text[1 << 16];
    int fd = http_connect(server.port), timely = 0;
    const char *head = "GET /v1/experts/usage/stream?interval=100 HTTP/1.0\r\nHost: x\r\n\r\n";
    assert_true(http_send(fd, head, strlen(head)));
    double before = now_seconds();
    for (int events = 0; events < 16;) {
        ssize_t got = recv(fd, text, sizeof text - 1, 0);
        assert_true(got > 0);
        text[got] = '\0';
        if (!strstr(text, "data: "))
            continue;
        double now = now_seconds();
        timely += now - before < 0.2;
        before = now;
        events++;
    }
    close(fd);
    return timely;
}

/* A timer set just before the stream goes to sleep is not forgotten until the next look around. A
 * busy machine may be late, but not each time. */
static void usage_stream_keeps_its_interval(void **state)
{
    (void)state;
    int timely = 0;
    for (int i = 0; i < 5 && timely < 12; i++)
        timely = events_in_time();
    assert_true(timely >= 12);
}

/* More streams than threads by far, all open at once. */
static void many_streams_at_once(void **state)
{
    (void)state;
    enum { STREAMS = 200 };
    static int fds[STREAMS];
    for (int i = 0; i < STREAMS; i++)
        fds[i] = open_request("/v1/completions",
                              "{\"prompt\": \"many\", \"stream\": true, \"max_tokens\": 8,"
                              " \"ignore_eos\": true}",
                              0);
    for (int i = 0; i < STREAMS; i++) {
        http_answer answer = http_read(fds[i]);
        assert_int_equal(answer.status, 200);
        assert_true(is_done(&answer));
        http_free(&answer);
        close(fds[i]);
    }
    assert_true(server_metric_becomes(&server, BLOCKS, 0));
}

/* One connection, one request after the other. */
static void connection_is_kept(void **state)
{
    (void)state;
    int fd = open_request("/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 2}", 0);
    for (int i = 0; i < 3; i++) {
        http_answer answer = http_read(fd);
        assert_int_equal(answer.status, 200);
        http_free(&answer);
        const char *body = i & 1 ? "{\"max_tokens\": 2}" : "{\"stream\": true, \"max_tokens\": 2}";
        char request[512];
        snprintf(request, sizeof request,
                 "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 "Content-Length: %zu\r\n\r\n%s",
                 strlen(body), body);
        assert_true(http_send(fd, request, strlen(request)));
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_add_up),
        cmocka_unit_test(chat_stream_announces_the_role),
        cmocka_unit_test(hang_up_ends_a_stream),
        cmocka_unit_test(hang_up_ends_a_waiting_request),
        cmocka_unit_test(slow_reader_is_cut_alone),
        cmocka_unit_test(unread_answer_is_cut),
        cmocka_unit_test(routed_experts_cut_nothing),
        cmocka_unit_test(quiet_stream_pings),
        cmocka_unit_test(usage_stream_adds_up),
        cmocka_unit_test(usage_stream_keeps_its_interval),
        cmocka_unit_test(many_streams_at_once),
        cmocka_unit_test(connection_is_kept),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
