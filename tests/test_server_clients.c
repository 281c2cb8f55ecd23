/*
 * test_server_clients.c - many clients at once, some of which hang up; afterwards the books must
 * balance. Then the official openai client for Python, where there is one.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
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
    server = server_start((const char *[]){"--engine-max-sequences", "16", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

static atomic_int answered, cancelled, wrong;

/* One request in one of six ways, by number: whole or streamed, read to the end or left. */
static void play(int number)
{
    char request[1024], body[512];
    bool stream = number % 2, leave = number % 3 == 0;
    snprintf(body, sizeof body,
             "{\"prompt\": \"client %d of many\", \"max_tokens\": %d, \"ignore_eos\": true,"
             " \"stream\": %s, \"n\": %d, \"cache_prompt\": %s, \"router\": {\"threshold\": 0.%d}}",
             number % 7, leave ? 400 : 5 + number % 20, stream ? "true" : "false", 1 + number % 3,
             number % 5 ? "true" : "false", 1 + number % 9);
    int length = snprintf(request, sizeof request,
                          "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                          "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                          strlen(body), body);
    int fd = http_connect(server.port);
    if (fd < 0 || !http_send(fd, request, (size_t)length)) {
        wrong++;
    } else if (leave) {
        http_readable(fd, number % 4 * 5);
        cancelled++;
    } else {
        http_answer answer = http_read(fd);
        if (answer.status == 200 && (!stream || strstr(answer.body, "data: [DONE]")))
            answered++;
        else
            wrong++;
        http_free(&answer);
    }
    if (fd >= 0)
        close(fd);
}

static void *client(void *argument)
{
    int number = *(int *)argument;
    for (int round = 0; round < 4; round++)
        play(number * 4 + round);
    return NULL;
}

static double number_in(const cJSON *layer, const char *list, int index)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(layer, list), index)->valuedouble;
}

static void books_balance_after_many_clients(void **state)
{
    (void)state;
    enum { CLIENTS = 64 };
    pthread_t threads[CLIENTS];
    int numbers[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, client, &numbers[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(wrong, 0);
    assert_int_equal(answered + cancelled, CLIENTS * 4);
    assert_true(
        server_metric_becomes(&server, "xmoe_num_requests_running{model_name=\"model\"}", 0));
    assert_true(
        server_metric_becomes(&server, "xmoe_num_requests_waiting{model_name=\"model\"}", 0));
    assert_true(server_metric_becomes(&server, "xmoe_kv_blocks_used{model_name=\"model\"}", 0));
    assert_true(
        server_metric_becomes(&server, "xmoe_http_requests_in_flight{model_name=\"model\"}", 1));

    cJSON *usage = server_get_json(&server, "/v1/experts/usage", 200);
    double tokens = json_number(usage, "tokens");
    assert_true(tokens > 0);
    for (const cJSON *layer = json_at(usage, "layers")->child; layer; layer = layer->next) {
        double counts = 0, activations = 0, bins = 0;
        for (int i = 0; i <= 8; i++) {
            bins += number_in(layer, "active_histogram", i);
            activations += i * number_in(layer, "active_histogram", i);
            counts += i < 8 ? number_in(layer, "counts", i) : 0;
        }
        assert_true(counts == activations);
        assert_true(counts == json_number(layer, "activations"));
        assert_true(bins == json_number(layer, "tokens") && bins == tokens);
    }
    cJSON_Delete(usage);
}

/* $XMOE_TEST_PYTHON, or python3. */
static void openai_client_is_content(void **state)
{
    (void)state;
    char command[512];
    const char *python = getenv("XMOE_TEST_PYTHON");
    if (!python)
        python = "python3";
    snprintf(command, sizeof command, "%s -c 'import openai' 2>/dev/null", python);
    if (system(command) != 0) {
        print_message("SKIPPED: %s has no openai package (XMOE_TEST_PYTHON names another python); "
                      "the official client is not tested\n",
                      python);
        skip();
    }
    snprintf(command, sizeof command, "%s tests/client/openai_client.py http://127.0.0.1:%d model",
             python, server.port);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(books_balance_after_many_clients),
        cmocka_unit_test(openai_client_is_content),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
