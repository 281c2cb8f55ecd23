/*
 * test_server_snapshots.c - snapshots of expert usage over HTTP: kept, checked, compared with.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server_fixture.h"

#define SNAPSHOTS "/v1/experts/snapshots"

static server_child server;

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server = server_start((const char *[]){"--usage-snapshots", "3", NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

/* The answer as JSON, which the caller deletes; fails the test on another status. */
static cJSON *call(const char *method, const char *path, const char *body, int status)
{
    http_answer answer =
        http_call(server.port, method, path, "Content-Type: application/json\r\n", body);
    if (answer.status != status)
        fail_msg("%s %s: status %d instead of %d: %s", method, path, answer.status, status,
                 answer.body ? answer.body : "");
    cJSON *tree = answer.body ? cJSON_Parse(answer.body) : NULL;
    http_free(&answer);
    return tree;
}

static void work(const char *prompt, int tokens)
{
    char body[256];
    snprintf(body, sizeof body,
             "{\"prompt\": \"%s\", \"max_tokens\": %d, \"ignore_eos\": true, \"cache_prompt\": "
             "false}",
             prompt, tokens);
    cJSON_Delete(server_post_json(&server, "/v1/completions", body, 200));
}

static void reset(void)
{
    cJSON_Delete(server_post_json(&server, "/v1/experts/usage/reset", "", 200));
}

static void forget(const char *id)
{
    char path[128];
    snprintf(path, sizeof path, SNAPSHOTS "/%s", id);
    cJSON_Delete(call("DELETE", path, NULL, 204));
}

static void snapshots_come_and_go(void **state)
{
    (void)state;
    work("a first workload", 5);
    cJSON *made = call("PUT", SNAPSHOTS "/night-1.a", NULL, 201);
    cJSON *usage = server_get_json(&server, "/v1/experts/usage", 200);
    assert_string_equal(json_text(made, "id"), "night-1.a");
    assert_string_equal(json_text(made, "object"), "experts.snapshot");
    assert_string_equal(json_text(made, "model"), "model");
    assert_true(json_number(made, "tokens") == json_number(usage, "tokens"));
    assert_true(json_number(made, "since") == json_number(usage, "since"));
    work("more", 3);
    cJSON *again = call("PUT", SNAPSHOTS "/night-1.a", "{}", 200);
    assert_true(json_number(again, "tokens") > json_number(made, "tokens"));
    cJSON_Delete(call("PUT", SNAPSHOTS "/A", NULL, 201));
    cJSON *list = call("GET", SNAPSHOTS, NULL, 200);
    assert_int_equal(cJSON_GetArraySize(json_at(list, "data")), 2);
    assert_string_equal(json_text(list, "data.0.id"), "A");
    assert_true(cJSON_Compare(json_at(list, "data.1"), again, true));
    cJSON *document = call("GET", SNAPSHOTS "/night-1.a", NULL, 200);
    assert_true(json_number(document, "experts") == 8);
    assert_true(json_number(document, "phases.all.tokens") ==
                json_number(document, "phases.prefill.tokens") +
                    json_number(document, "phases.decode.tokens"));
    assert_true(json_number(document, "phases.decode.layers.1.steps") > 0);
    assert_true(json_number(document, "phases.all.layers.0.distinct") > 0);
    forget("A");
    forget("night-1.a");
    cJSON_Delete(call("DELETE", SNAPSHOTS "/A", NULL, 404));
    cJSON_Delete(call("GET", SNAPSHOTS "/A", NULL, 404));
    cJSON_Delete(list);
    cJSON_Delete(document);
    cJSON_Delete(made);
    cJSON_Delete(again);
    cJSON_Delete(usage);
}

static void ids_and_numbers_are_limited(void **state)
{
    (void)state;
    char longest[128] = SNAPSHOTS "/", too_long[128] = SNAPSHOTS "/";
    memset(longest + strlen(longest), 'x', 64);
    memset(too_long + strlen(too_long), 'x', 65);
    const char *wrong[] = {SNAPSHOTS "/",      SNAPSHOTS "/.",       SNAPSHOTS "/.hidden",
                           SNAPSHOTS "/a%2Fb", SNAPSHOTS "/a/b",     SNAPSHOTS "/..%2Fa",
                           SNAPSHOTS "/a%20b", SNAPSHOTS "/%C3%A4b", too_long};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cJSON *problem = call("PUT", wrong[i], NULL, 400);
        assert_string_equal(json_text(problem, "error.param"), "id");
        cJSON_Delete(problem);
        cJSON_Delete(call("GET", wrong[i], NULL, 404));
        cJSON_Delete(call("DELETE", wrong[i], NULL, 404));
    }
    cJSON_Delete(call("PUT", longest, NULL, 201));
    cJSON_Delete(call("PUT", SNAPSHOTS "/2", NULL, 201));
    cJSON_Delete(call("PUT", SNAPSHOTS "/3", NULL, 201));
    cJSON *full = call("PUT", SNAPSHOTS "/4", NULL, 400);
    assert_string_equal(json_text(full, "error.code"), "snapshot_limit");
    assert_non_null(strstr(json_text(full, "error.message"), "usage.snapshots"));
    cJSON_Delete(full);
    cJSON_Delete(call("PUT", SNAPSHOTS "/3", NULL, 200));
    cJSON_Delete(call("DELETE", longest, NULL, 204));
    cJSON_Delete(call("PUT", SNAPSHOTS "/4", NULL, 201));
    forget("2");
    forget("3");
    forget("4");
}

/* What GET gives, PUT takes, to the last bit. */
static void documents_go_there_and_back(void **state)
{
    (void)state;
    work("there and back again", 9);
    cJSON_Delete(call("PUT", SNAPSHOTS "/there", NULL, 201));
    cJSON *first = call("GET", SNAPSHOTS "/there", NULL, 200);
    cJSON_AddStringToObject(first, "comment", "unknown members are ignored");
    char *text = cJSON_PrintUnformatted(first);
    cJSON_Delete(call("PUT", SNAPSHOTS "/back", text, 201));
    cJSON *second = call("GET", SNAPSHOTS "/back", NULL, 200);
    assert_string_equal(json_text(second, "id"), "back");
    cJSON_DeleteItemFromObject(first, "comment");
    cJSON_DeleteItemFromObject(first, "id");
    cJSON_DeleteItemFromObject(second, "id");
    char *one = cJSON_PrintUnformatted(first), *other = cJSON_PrintUnformatted(second);
    assert_string_equal(one, other);
    free(text);
    free(one);
    free(other);
    cJSON_Delete(first);
    cJSON_Delete(second);
    forget("there");
    forget("back");
}

/* Puts the JSON value in the place of what stands at the path; NULL removes it. */
static void change(cJSON *tree, const char *path, const char *value)
{
    const char *dot = strrchr(path, '.'), *name = dot ? dot + 1 : path;
    char above[128] = "";
    if (dot)
        snprintf(above, sizeof above, "%.*s", (int)(dot - path), path);
    cJSON *parent = (cJSON *)json_at(tree, above);
    assert_non_null(parent);
    cJSON *item = value ? cJSON_Parse(value) : NULL;
    assert_true(item || !value);
    if (cJSON_IsArray(parent) && item)
        cJSON_ReplaceItemInArray(parent, atoi(name), item);
    else if (cJSON_IsArray(parent))
        cJSON_DeleteItemFromArray(parent, atoi(name));
    else if (item)
        cJSON_ReplaceItemInObjectCaseSensitive(parent, name, item);
    else
        cJSON_DeleteItemFromObjectCaseSensitive(parent, name);
}

static const struct {
    const char *path, *value, *word; /* the word is in the message */
} faults[] = {
    {"object", "\"experts.usage\"", "'object'"},
    {"object", NULL, "'object'"},
    {"model", "7", "'model'"},
    {"created", "-1", "'created'"},
    {"created", "\"now\"", "'created'"},
    {"created", "1.5", "'created'"},
    {"experts", "9", "9 experts"},
    {"experts", NULL, "'experts'"},
    {"phases", "[]", "'phases'"},
    {"phases.prefill", NULL, "'phases.prefill'"},
    {"phases.decode", "3", "'phases.decode'"},
    {"phases.decode.phase", "\"prefill\"", "'phases.decode.phase'"},
    {"phases.all.window_seconds", "60", "'phases.all.window_seconds'"},
    {"phases.all.since", NULL, "'phases.all.since'"},
    {"phases.all.layers", "[]", "2 MoE layers"},
    {"phases.all.layers.1", NULL, "2 MoE layers"},
    {"phases.all.layers.1", "[]", "'phases.all.layers[1]'"},
    {"phases.all.layers.1.layer", "1", "layer 3"},
    {"phases.all.layers.0.layer", "4294967297", "'phases.all.layers[0].layer'"},
    {"phases.all.layers.0.experts", "7", "8 experts"},
    {"phases.all.layers.0.counts", "{}", "'phases.all.layers[0].counts'"},
    {"phases.all.layers.0.counts.7", NULL, "array of 8 numbers"},
    {"phases.all.layers.0.counts.3", "-1", "'phases.all.layers[0].counts[3]'"},
    {"phases.all.layers.0.counts.3", "0.5", "counts[3]"},
    {"phases.all.layers.0.counts.3", "null", "counts[3]"},
    {"phases.all.layers.0.counts.3", "1e16", "counts[3]"},
    {"phases.all.layers.0.counts.3", "1000000", "layer 1"},
    {"phases.all.layers.0.active_histogram.0", "1", "'phases.all"},
    {"phases.all.layers.0.active_histogram.9", NULL, ""},
    {"phases.all.layers.0.active_histogram", "[1]", "array of 9 numbers"},
    {"phases.all.layers.0.weights.2", "-0.5", "layer 1"},
    {"phases.all.layers.0.weights.2", "1e300", "layer 1"},
    {"phases.all.layers.0.weights.2", "\"1\"", "weights[2]"},
    {"phases.all.layers.0.steps", NULL, "'phases.all.layers[0].steps'"},
    {"phases.all.layers.0.steps", "0", "layer 1"},
    {"phases.all.layers.0.distinct", "1e15", "layer 1"},
    {"phases.all.layers.0.tokens", "1", "'phases.all.layers[0]'"},
    {"phases.all.layers.0.activations", NULL, "activations"},
};

static void broken_documents_are_refused(void **state)
{
    (void)state;
    reset();
    work("something to count", 6);
    cJSON_Delete(call("PUT", SNAPSHOTS "/good", NULL, 201));
    cJSON *good = call("GET", SNAPSHOTS "/good", NULL, 200);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        cJSON *bad = cJSON_Duplicate(good, true);
        change(bad, faults[i].path, faults[i].value);
        bool same = cJSON_Compare(bad, good, true);
        char *text = cJSON_PrintUnformatted(bad);
        cJSON *problem = call("PUT", SNAPSHOTS "/bad", text, same ? 201 : 400);
        if (!same && !strstr(json_text(problem, "error.message"), faults[i].word))
            fail_msg("%s: %s", faults[i].path, json_text(problem, "error.message"));
        if (same)
            forget("bad");
        cJSON_Delete(problem);
        cJSON_Delete(bad);
        free(text);
    }
    /* A decode phase in the place of the sum: each phase holds, the three together do not. */
    cJSON *bad = cJSON_Duplicate(good, true);
    cJSON *decode = cJSON_Duplicate(json_at(good, "phases.decode"), true);
    cJSON_ReplaceItemInObject(decode, "phase", cJSON_CreateString("all"));
    cJSON_ReplaceItemInObject((cJSON *)json_at(bad, "phases"), "all", decode);
    char *text = cJSON_PrintUnformatted(bad);
    cJSON *problem = call("PUT", SNAPSHOTS "/bad", text, 400);
    assert_non_null(strstr(json_text(problem, "error.message"), "sum of prefill and decode"));
    cJSON_Delete(problem);
    cJSON_Delete(bad);
    free(text);
    const char *bodies[] = {"[]", "null", "\"\"", "{\"a\": 1}", "{", "x", "{} {}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
        cJSON_Delete(call("PUT", SNAPSHOTS "/bad", bodies[i], 400));
    cJSON_Delete(call("GET", SNAPSHOTS "/bad", NULL, 404));
    cJSON_Delete(good);
    forget("good");
}

/* Bytes lost and bytes changed: an error or a document, never an end. */
static void damaged_bytes_do_no_harm(void **state)
{
    (void)state;
    cJSON_Delete(call("PUT", SNAPSHOTS "/good", NULL, 201));
    cJSON *good = call("GET", SNAPSHOTS "/good", NULL, 200);
    char *text = cJSON_PrintUnformatted(good);
    size_t length = strlen(text);
    uint64_t random = 1;
    for (int round = 0; round < 200; round++) {
        char *damaged = strdup(text);
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t at = (size_t)(random >> 33) % length;
        if (round % 2)
            damaged[at] = '\0'; /* the rest is missing */
        else
            damaged[at] = "0919-{}[],:\"x"[(random >> 20) % 13];
        http_answer answer = http_call(server.port, "PUT", SNAPSHOTS "/damaged",
                                       "Content-Type: application/json\r\n", damaged);
        if (answer.status != 200 && answer.status != 201 && answer.status != 400)
            fail_msg("status %d for %s", answer.status, damaged);
        assert_true(round % 2 == 0 || at == 0 || answer.status == 400);
        http_free(&answer);
        free(damaged);
    }
    assert_true(server_alive(&server));
    http_answer answer = http_call(server.port, "DELETE", SNAPSHOTS "/damaged", "", NULL);
    http_free(&answer);
    free(text);
    cJSON_Delete(good);
    forget("good");
}

/* The definition, from counts: H(M) - (H(P) + H(Q)) / 2 in bits. */
static double divergence_of(const cJSON *now, const cJSON *then, double *change)
{
    double p_sum = json_number(now, "activations"), q_sum = json_number(then, "activations");
    double bits = 0;
    for (int i = 0; i < 8; i++) {
        double p = cJSON_GetArrayItem(json_at(now, "counts"), i)->valuedouble / p_sum;
        double q = cJSON_GetArrayItem(json_at(then, "counts"), i)->valuedouble / q_sum;
        double m = (p + q) / 2;
        bits += (p > 0 ? p * log2(p) / 2 : 0) + (q > 0 ? q * log2(q) / 2 : 0);
        bits -= m > 0 ? m * log2(m) : 0;
        change[i] = p - q;
    }
    return bits;
}

/* Every layer of the usage against the same phase of the snapshot. */
static void check_comparison(const cJSON *usage, const cJSON *phase)
{
    double sum = 0;
    int layers = cJSON_GetArraySize(json_at(usage, "layers"));
    for (int i = 0; i < layers; i++) {
        double change[8];
        const cJSON *now = cJSON_GetArrayItem(json_at(usage, "layers"), i), *then = NULL;
        cJSON_ArrayForEach(then, json_at(phase, "layers")) if (json_number(then, "layer") ==
                                                               json_number(now, "layer")) break;
        double wanted = divergence_of(now, then, change);
        double given = json_number(now, "divergence");
        assert_true(fabs(given - wanted) < 1e-12 && given >= 0 && given <= 1);
        for (int e = 0; e < 8; e++)
            assert_true(fabs(cJSON_GetArrayItem(json_at(now, "share_change"), e)->valuedouble -
                             change[e]) < 1e-12);
        sum += given;
    }
    assert_true(fabs(json_number(usage, "compare.divergence") - sum / layers) < 1e-12);
    assert_true(json_number(usage, "compare.tokens") == json_number(phase, "tokens"));
    assert_string_equal(json_text(usage, "compare.snapshot"), "then");
}

static void comparison_follows_its_definition(void **state)
{
    (void)state;
    reset();
    work("aaaaaaaaaaaaaaaa", 20);
    cJSON_Delete(call("PUT", SNAPSHOTS "/then", NULL, 201));
    cJSON *then = call("GET", SNAPSHOTS "/then", NULL, 200);
    cJSON *same = server_get_json(&server, "/v1/experts/usage?compare=then", 200);
    assert_true(json_number(same, "compare.divergence") == 0);
    reset();
    cJSON *empty = server_get_json(&server, "/v1/experts/usage?compare=then", 200);
    assert_true(cJSON_IsNull(json_at(empty, "compare.divergence")));
    assert_true(cJSON_IsNull(json_at(empty, "layers.0.divergence")));
    assert_true(cJSON_IsNull(json_at(empty, "layers.0.share_change")));
    work("0123456789 zyxwvut", 30);
    const struct {
        const char *query, *phase;
    } rows[] = {{"", "phases.all"},
                {"&phase=prefill", "phases.prefill"},
                {"&phase=decode", "phases.decode"},
                {"&phase=decode&layer=3", "phases.decode"},
                {"&window=600", "phases.all"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char path[96];
        snprintf(path, sizeof path, "/v1/experts/usage?compare=then%s", rows[i].query);
        cJSON *usage = server_get_json(&server, path, 200);
        check_comparison(usage, json_at(then, rows[i].phase));
        cJSON_Delete(usage);
    }
    cJSON *unknown = server_get_json(&server, "/v1/experts/usage?compare=none", 404);
    assert_string_equal(json_text(unknown, "error.param"), "compare");
    cJSON_Delete(unknown);
    cJSON_Delete(server_get_json(&server, "/v1/experts/usage?compare=then&compare=then", 400));
    cJSON_Delete(server_get_json(&server, "/v1/experts/usage?compare", 404));
    cJSON_Delete(then);
    cJSON_Delete(same);
    cJSON_Delete(empty);
    forget("then");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshots_come_and_go),
        cmocka_unit_test(ids_and_numbers_are_limited),
        cmocka_unit_test(documents_go_there_and_back),
        cmocka_unit_test(broken_documents_are_refused),
        cmocka_unit_test(damaged_bytes_do_no_harm),
        cmocka_unit_test(comparison_follows_its_definition),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
