/*
 * test_server_trace.c - the trace of expert choices, as endpoint and as file: it says what answers
 * and counters say, holds whole positions, and stops nobody.
 */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../server/file.h"
#include "server_fixture.h"

#define TRACE  "/v1/experts/trace"
#define HEADER "request,phase,position,layer,rank,expert,weight\n"

static int start(void **state)
{
    return server_make_model(state);
}

static char *get(const server_child *server, const char *path)
{
    http_answer answer = server_get(server, path);
    if (answer.status != 200)
        fail_msg("%s: %d: %s", path, answer.status, answer.body ? answer.body : "");
    free(answer.headers);
    return answer.body ? answer.body : strdup("");
}

static char *read_text(const char *path)
{
    xm_text text = {0};
    char message[512];
    if (!xm_file_read(path, 1 << 28, &text, message, sizeof message))
        fail_msg("%s", message);
    xm_text_puts(&text, "");
    return text.data;
}

/* A row of the CSV; false at the end. */
typedef struct {
    char request[80], phase[16];
    int position, layer, rank, expert;
    double weight;
} trace_row;

static bool next_row(const char **at, trace_row *row)
{
    if (!**at)
        return false;
    if (sscanf(*at, "%79[^,],%15[^,],%d,%d,%d,%d,%lf", row->request, row->phase, &row->position,
               &row->layer, &row->rank, &row->expert, &row->weight) != 7 ||
        !strchr(*at, '\n'))
        fail_msg("no row: %.200s", *at);
    *at = strchr(*at, '\n') + 1;
    return true;
}

static const char *after_header(const char *csv)
{
    assert_memory_equal(csv, HEADER, strlen(HEADER));
    return csv + strlen(HEADER);
}

/* Per phase (prefill, decode), MoE layer (1, 3) and expert: how many rows. */
typedef struct {
    long rows[2][2][8], positions;
} trace_sums;

/* Adds up the rows and checks that positions are whole: layer 1 from rank 1 on, then layer 3. */
static trace_sums add_up(const char *csv)
{
    trace_sums sums = {0};
    trace_row row, last = {.layer = 3};
    for (const char *at = after_header(csv); next_row(&at, &row); last = row) {
        bool same = row.rank > 1;
        if (same || row.layer == 3) {
            assert_string_equal(row.request, last.request);
            assert_string_equal(row.phase, last.phase);
            assert_int_equal(row.position, last.position);
        }
        assert_true(same ? row.rank == last.rank + 1 && row.layer == last.layer
                         : row.layer == (last.layer == 3 ? 1 : 3));
        assert_true(row.expert >= 0 && row.expert < 8 && row.weight >= 0 && row.weight <= 1);
        sums.rows[strcmp(row.phase, "decode") == 0][row.layer == 3][row.expert]++;
        sums.positions += row.layer == 1 && row.rank == 1;
    }
    assert_int_equal(last.layer, 3);
    return sums;
}

/* The counts of a phase of a usage object against the rows. */
static void check_counts(const cJSON *usage, const trace_sums *sums, bool prefill, bool decode)
{
    for (int layer = 0; layer < 2; layer++) {
        const cJSON *counts =
            cJSON_GetObjectItem(cJSON_GetArrayItem(json_at(usage, "layers"), layer), "counts");
        for (int expert = 0; expert < 8; expert++) {
            long rows = (prefill ? sums->rows[0][layer][expert] : 0) +
                        (decode ? sums->rows[1][layer][expert] : 0);
            assert_true(cJSON_GetArrayItem(counts, expert)->valuedouble == (double)rows);
        }
    }
}

static void check_usage(const server_child *server, const trace_sums *sums)
{
    cJSON *all = server_get_json(server, "/v1/experts/usage", 200);
    cJSON *prefill = server_get_json(server, "/v1/experts/usage?phase=prefill", 200);
    cJSON *decode = server_get_json(server, "/v1/experts/usage?phase=decode", 200);
    check_counts(all, sums, true, true);
    check_counts(prefill, sums, true, false);
    check_counts(decode, sums, false, true);
    assert_true(json_number(all, "tokens") == (double)sums->positions);
    cJSON_Delete(all);
    cJSON_Delete(prefill);
    cJSON_Delete(decode);
}

static void off_is_said(void **state)
{
    (void)state;
    server_child server = server_start(NULL);
    cJSON *problem = server_get_json(&server, TRACE, 404);
    assert_string_equal(json_text(problem, "error.code"), "trace_off");
    assert_non_null(strstr(json_text(problem, "error.message"), "trace.bytes"));
    cJSON_Delete(problem);
    assert_true(server_metric(&server, "xmoe_trace_dropped_total{model_name=\"model\"}") == 0);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

/* The rows of a request against routed_experts of its answer, choice by choice. */
static void check_answer(const server_child *server, const cJSON *answer, const char *csv,
                         const char *jsonl)
{
    long rows = 0, csv_rows = 0;
    int layers[] = {1, 3};
    const char *at = jsonl;
    const char *id = json_text(answer, "id");
    for (; *at; at = strchr(at, '\n') + 1) {
        cJSON *line = cJSON_ParseWithOpts(at, NULL, false);
        assert_non_null(line);
        assert_string_equal(json_text(line, "request"), id);
        int choice = (int)json_number(line, "choice"), layer = (int)json_number(line, "layer");
        int position = (int)json_number(line, "position");
        char path[64];
        snprintf(path, sizeof path, "choices.%d.routed_experts", choice);
        const cJSON *routed = json_at(answer, path);
        int first = (int)json_number(routed, "first_position");
        snprintf(path, sizeof path, "experts.%d.%d", position - first, layer == layers[1]);
        assert_true(cJSON_Compare(json_at(routed, path), json_at(line, "experts"), true));
        snprintf(path, sizeof path, "weights.%d.%d", position - first, layer == layers[1]);
        const cJSON *weights = json_at(routed, path), *given = json_at(line, "weights");
        int count = cJSON_GetArraySize(weights);
        assert_int_equal(cJSON_GetArraySize(given), count);
        for (int i = 0; i < count; i++)
            assert_true((float)cJSON_GetArrayItem(weights, i)->valuedouble ==
                        (float)cJSON_GetArrayItem(given, i)->valuedouble);
        rows += count;
        cJSON_Delete(line);
    }
    trace_row row;
    for (at = after_header(csv); next_row(&at, &row); csv_rows++)
        assert_string_equal(row.request, id);
    assert_true(rows > 0 && csv_rows == rows);
    (void)server;
}

static void trace_says_what_answers_say(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--trace-bytes", "1000000", NULL});
    char *empty = get(&server, TRACE), *no_lines = get(&server, TRACE "?format=jsonl");
    assert_string_equal(empty, HEADER);
    assert_string_equal(no_lines, "");
    free(empty);
    free(no_lines);
    const char *bodies[] = {
        "{\"prompt\": \"what an answer says\", \"max_tokens\": 6, \"routed_experts\": true}",
        "{\"prompt\": \"three choices\", \"n\": 3, \"temperature\": 1.5, \"max_tokens\": 5,"
        " \"ignore_eos\": true, \"routed_experts\": true}",
        "{\"prompt\": [\"two prompts\", \"of two\"], \"n\": 2, \"max_tokens\": 5,"
        " \"ignore_eos\": true, \"routed_experts\": true, \"router\": {\"type\": \"dense\"}}"};
    for (size_t i = 0; i < 3; i++) {
        char path[192];
        cJSON *answer = server_post_json(&server, "/v1/completions", bodies[i], 200);
        snprintf(path, sizeof path, TRACE "?request=%s", json_text(answer, "id"));
        char *csv = get(&server, path);
        snprintf(path, sizeof path, TRACE "?format=jsonl&request=%s", json_text(answer, "id"));
        char *jsonl = get(&server, path);
        check_answer(&server, answer, csv, jsonl);
        free(csv);
        free(jsonl);
        cJSON_Delete(answer);
    }
    cJSON *chat = server_post_json(&server, "/v1/chat/completions",
                                   "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}],"
                                   " \"max_tokens\": 3}",
                                   200);
    char path[192];
    snprintf(path, sizeof path, TRACE "?request=%s", json_text(chat, "id"));
    char *csv = get(&server, path), *all = get(&server, TRACE);
    assert_memory_equal(after_header(csv), "chatcmpl-", 9);
    trace_sums sums = add_up(all);
    check_usage(&server, &sums);
    free(csv);
    free(all);
    cJSON_Delete(chat);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

static long count_lines(const char *text)
{
    long lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

static void queries_choose_lines(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--trace-bytes", "1000000", NULL});
    cJSON_Delete(server_post_json(&server, "/v1/completions",
                                  "{\"prompt\": \"newest\", \"max_tokens\": 30,"
                                  " \"ignore_eos\": true}",
                                  200));
    char *all = get(&server, TRACE);
    long rows = count_lines(all) - 1;
    for (long limit = 1; limit < rows + 40; limit += limit < 40 ? 1 : 17) {
        char path[96];
        snprintf(path, sizeof path, TRACE "?limit=%ld", limit);
        char *some = get(&server, path);
        long given = count_lines(some) - 1;
        assert_true(given <= limit);
        assert_true(given == rows || given > limit - 17); /* a position has at most 16 rows */
        size_t tail = strlen(after_header(some));
        assert_string_equal(all + strlen(all) - tail, after_header(some));
        if (given)
            add_up(some);
        free(some);
    }
    char *other = get(&server, TRACE "?request=cmpl-other");
    assert_string_equal(other, HEADER);
    char long_id[300] = TRACE "?request=";
    memset(long_id + strlen(long_id), 'x', 200);
    char *nothing = get(&server, long_id);
    assert_string_equal(nothing, HEADER);
    const char *wrong[] = {
        "?format=xml", "?format",   "?limit=0", "?limit=-1",        "?limit=x",
        "?limit=1e3",  "?request=", "?request", "?limit=1&limit=2", "?format=csv&format=jsonl"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char path[96];
        snprintf(path, sizeof path, TRACE "%s", wrong[i]);
        cJSON_Delete(server_get_json(&server, path, 400));
    }
    http_answer head = http_call(server.port, "HEAD", TRACE, "", NULL);
    assert_int_equal(head.status, 200);
    assert_non_null(strstr(head.headers, "Content-Type: text/csv"));
    free(all);
    free(other);
    free(nothing);
    http_free(&head);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

/* --- under load --- */

static server_child loaded;
static atomic_bool quiet;
static atomic_int wrong_answers;

/* One request in one of several ways; some leave in the middle. */
static void play(int number)
{
    char request[1024], body[512];
    bool stream = number % 2, leave = number % 3 == 0;
    snprintf(body, sizeof body,
             "{\"prompt\": [\"client %d\", \"of many more than one\"], \"max_tokens\": %d,"
             " \"ignore_eos\": true, \"stream\": %s, \"n\": %d, \"router\": {\"threshold\": 0.%d}}",
             number % 7, leave ? 200 : 5 + number % 20, stream ? "true" : "false", 1 + number % 3,
             1 + number % 9);
    int length = snprintf(request, sizeof request,
                          "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                          "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                          strlen(body), body);
    int fd = http_connect(loaded.port);
    if (fd < 0 || !http_send(fd, request, (size_t)length)) {
        wrong_answers++;
    } else if (leave) {
        http_readable(fd, number % 4 * 5);
    } else {
        http_answer answer = http_read(fd);
        wrong_answers += answer.status != 200;
        http_free(&answer);
    }
    if (fd >= 0)
        close(fd);
}

static void *client(void *argument)
{
    int number = *(int *)argument;
    for (int round = 0; round < 3; round++)
        play(number * 3 + round);
    return NULL;
}

/* Dumps in the middle of it all. */
static void *onlooker(void *argument)
{
    (void)argument;
    const char *paths[] = {TRACE, TRACE "?limit=500", TRACE "?format=jsonl", "/v1/experts/usage"};
    for (int i = 0; !quiet; i++) {
        http_answer answer = http_call(loaded.port, "GET", paths[i % 4], "", NULL);
        wrong_answers += answer.status != 200;
        http_free(&answer);
    }
    return NULL;
}

static void run_clients(void)
{
    enum { CLIENTS = 20 };
    pthread_t threads[CLIENTS], looking;
    int numbers[CLIENTS];
    quiet = false;
    assert_int_equal(pthread_create(&looking, NULL, onlooker, NULL), 0);
    for (int i = 0; i < CLIENTS; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, client, &numbers[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL);
    quiet = true;
    pthread_join(looking, NULL);
    assert_int_equal(wrong_answers, 0);
}

/* After clients that came and went: endpoint, file, counters and the file of counters agree. */
static void trace_equals_counters_under_load(void **state)
{
    (void)state;
    char csv_path[128], usage_path[128];
    snprintf(csv_path, sizeof csv_path, "%s/load.csv", server_directory);
    snprintf(usage_path, sizeof usage_path, "%s/load.json", server_directory);
    loaded = server_start((const char *[]){"--trace-bytes", "100000000", "--trace", csv_path,
                                           "--usage-file", usage_path, "--engine-max-sequences",
                                           "16", NULL});
    run_clients();
    static const char *const busy[] = {"xmoe_http_requests_in_flight{model_name=\"model\"}",
                                       "xmoe_num_requests_waiting{model_name=\"model\"}",
                                       "xmoe_num_requests_running{model_name=\"model\"}"};
    for (int i = 0; i < 3;
         i++) /* what clients left behind ends; the question is in flight itself */
        assert_true(server_metric_becomes(&loaded, busy[i], i == 0));
    char *csv = get(&loaded, TRACE);
    trace_sums sums = add_up(csv);
    assert_true(sums.positions > 1000);
    check_usage(&loaded, &sums);
    free(csv);

    /* Some are still at work when the end comes. */
    const char *request = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 51\r\n\r\n"
                          "{\"prompt\":\"x\",\"max_tokens\":500,\"ignore_eos\":true  }";
    int fds[6];
    for (int i = 0; i < 6; i++) {
        fds[i] = http_connect(loaded.port);
        assert_true(http_send(fds[i], request, strlen(request)));
    }
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    assert_int_equal(server_stop(&loaded, SIGTERM), 0);
    for (int i = 3; i < 6; i++)
        close(fds[i]);
    csv = read_text(csv_path);
    char *usage = read_text(usage_path);
    cJSON *document = cJSON_Parse(usage);
    sums = add_up(csv);
    check_counts(json_at(document, "phases.all"), &sums, true, true);
    check_counts(json_at(document, "phases.prefill"), &sums, true, false);
    check_counts(json_at(document, "phases.decode"), &sums, false, true);
    cJSON_Delete(document);
    free(usage);
    free(csv);
}

/* A small ring holds the newest positions, whole. */
static void the_oldest_make_room(void **state)
{
    (void)state;
    server_child server = server_start((const char *[]){"--trace-bytes", "5000", NULL});
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"prompt\": \"room for the new\", \"max_tokens\": 200,"
                                     " \"ignore_eos\": true}",
                                     200);
    char *csv = get(&server, TRACE);
    trace_sums sums = add_up(csv);
    assert_true(sums.positions > 10 && sums.positions < 120);
    trace_row row, last = {0};
    for (const char *at = after_header(csv); next_row(&at, &row);)
        last = row;
    /* the last token passes through no layer */
    assert_int_equal(last.position, (int)json_number(answer, "usage.total_tokens") - 2);
    cJSON_Delete(answer);
    free(csv);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

/* --- the file --- */

static void generate(const server_child *server, int tokens)
{
    char body[128];
    snprintf(body, sizeof body,
             "{\"prompt\": \"on file\", \"max_tokens\": %d, \"ignore_eos\": true}", tokens);
    cJSON_Delete(server_post_json(server, "/v1/completions", body, 200));
}

static void append(const char *path, const char *text)
{
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void the_file_goes_on(void **state)
{
    (void)state;
    static const char *const names[] = {"on.csv", "on.jsonl"};
    for (int i = 0; i < 2; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", server_directory, names[i]);
        server_child server = server_start((const char *[]){"--trace", path, NULL});
        generate(&server, 5);
        cJSON_Delete(server_get_json(&server, TRACE, 404)); /* the endpoint is off */
        assert_int_equal(server_stop(&server, SIGTERM), 0);
        char *first = read_text(path);
        append(path, i ? "{\"request\":\"cmpl-half" : "cmpl-half,deco");
        server = server_start((const char *[]){"--trace", path, NULL});
        generate(&server, 9);
        assert_int_equal(server_stop(&server, SIGTERM), 0);
        char *both = read_text(path);
        assert_memory_equal(both, first, strlen(first));
        assert_true(strlen(both) > strlen(first));
        assert_null(strstr(both, "half"));
        if (i == 0) {
            assert_null(strstr(both + 1, HEADER));
            add_up(both);
        }
        for (const char *at = both; i && *at; at = strchr(at, '\n') + 1) {
            cJSON *line = cJSON_ParseWithOpts(at, NULL, false);
            assert_true(cJSON_IsArray(json_at(line, "weights")));
            cJSON_Delete(line);
        }
        free(first);
        free(both);
    }
}

static void other_files_are_left_alone(void **state)
{
    (void)state;
    static const char *const rows[][2] = {{"notes.csv", "mine\n"},
                                          {"notes.jsonl", HEADER},
                                          {"half.csv", "request,phase"},
                                          {"binary.csv", "GGUF\001\002"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char path[128], *output = NULL;
        snprintf(path, sizeof path, "%s/%s", server_directory, rows[i][0]);
        append(path, rows[i][1]);
        const char *arguments[] = {
            "--model",           server_model, "--port",  "0",  "--threads", "1",
            "--engine-kv-bytes", "8000000",    "--trace", path, NULL};
        assert_int_equal(server_run(arguments, &output), 1);
        assert_non_null(strstr(output, "trace.file"));
        assert_non_null(strstr(output, path));
        char *left = read_text(path);
        assert_string_equal(left, rows[i][1]);
        free(left);
        free(output);
    }
    char *output = NULL;
    const char *arguments[] = {
        "--model", server_model,        "--port",  "0",       "--threads",
        "1",       "--engine-kv-bytes", "8000000", "--trace", "/nonexistent/t.csv",
        NULL};
    assert_int_equal(server_run(arguments, &output), 1);
    assert_non_null(strstr(output, "/nonexistent/t.csv"));
    free(output);
}

/* Reads what the pipe holds; the rest of the text is its caller's. */
static void drain_pipe(int fd, xm_text *text)
{
    char chunk[65536];
    for (ssize_t got; (got = read(fd, chunk, sizeof chunk)) > 0;)
        xm_text_add(text, chunk, (size_t)got);
}

/* A pipe that nobody reads: rows are dropped and counted, one line says so, requests do not notice,
 * and what does come out is whole. */
static void a_slow_file_costs_rows_only(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/pipe", server_directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(fd >= 0);
    server_child server =
        server_start((const char *[]){"--trace-bytes", "3000", "--trace", path, NULL});
    const char *series = "xmoe_trace_dropped_total{model_name=\"model\"}";
    for (int i = 0; i < 1000 && server_metric(&server, series) == 0; i++)
        generate(&server, 100);
    assert_true(server_metric(&server, series) > 0);
    xm_text text = {0};
    bool balanced = false; /* what came out and what was dropped are all there was */
    for (int i = 0; i < 1000 && !balanced; i++) {
        sleep_milliseconds(10);
        drain_pipe(fd, &text);
        double counted =
            server_metric(&server,
                          "xmoe_expert_activations_total{model_name=\"model\",layer=\"1\"}") +
            server_metric(&server,
                          "xmoe_expert_activations_total{model_name=\"model\",layer=\"3\"}");
        balanced = (double)count_lines(text.data) - 1 + server_metric(&server, series) == counted;
    }
    assert_true(balanced);
    add_up(text.data);
    xm_text_free(&text);
    char *log = server_log(&server);
    const char *warning = strstr(log, "does not keep up");
    assert_non_null(warning);
    assert_null(strstr(warning + 1, "does not keep up"));
    free(log);
    generate(&server, 400);
    assert_int_equal(server_stop(&server, SIGTERM), 0); /* with a full pipe too */
    close(fd);
}

static void a_full_disk_costs_rows_only(void **state)
{
    (void)state;
    server_child server =
        server_start((const char *[]){"--trace-bytes", "3000", "--trace", "/dev/full", NULL});
    const char *series = "xmoe_trace_dropped_total{model_name=\"model\"}";
    for (int i = 0; i < 1000 && server_metric(&server, series) == 0; i++)
        generate(&server, 50);
    assert_true(server_metric(&server, series) > 0);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    char *log = server_log(&server);
    assert_non_null(strstr(log, "No space left on device"));
    assert_non_null(strstr(log, "not written at the end"));
    free(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off_is_said),
        cmocka_unit_test(trace_says_what_answers_say),
        cmocka_unit_test(queries_choose_lines),
        cmocka_unit_test(trace_equals_counters_under_load),
        cmocka_unit_test(the_oldest_make_room),
        cmocka_unit_test(the_file_goes_on),
        cmocka_unit_test(other_files_are_left_alone),
        cmocka_unit_test(a_slow_file_costs_rows_only),
        cmocka_unit_test(a_full_disk_costs_rows_only),
    };
    return cmocka_run_group_tests(tests, start, server_remove_model);
}
