/*
 * test_server_grammar.c - response_format, json_schema and grammar over sockets: answers of a model
 * with random weights have the form that was asked for, streamed or not; what is wrong is a 400.
 */
#include "server_fixture.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static server_child server;

static int start(void **state)
{
    static const char *const flags[] = {NULL};
    if (server_make_model(state) != 0)
        return -1;
    server = server_start(flags);
    return 0;
}

static int stop(void **state)
{
    return server_stop(&server, SIGTERM) == 0 ? server_remove_model(state) : -1;
}

#define SCHEMA                                                                                     \
    "{\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\", \"maxLength\": 4}, " \
    "\"age\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 150}, \"tag\": {\"enum\": "     \
    "[\"a\", \"b\"]}}, \"required\": [\"name\", \"age\", \"tag\"]}"

/* The text is a document of SCHEMA. */
static void check_document(const char *text)
{
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithOpts(text, &end, true);
    if (tree == NULL)
        fail_msg("'%s'", text);
    assert_int_equal(cJSON_GetArraySize(tree), 3);
    assert_non_null(json_text(tree, "name"));
    assert_true(json_number(tree, "age") >= 0 && json_number(tree, "age") <= 150);
    assert_non_null(strchr("ab", json_text(tree, "tag")[0]));
    cJSON_Delete(tree);
}

static void chats_answer_in_the_schema(void **state)
{
    (void)state;
    static const char *const forms[] = {
        "\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"person\", "
        "\"strict\": true, \"schema\": " SCHEMA "}}",
        "\"response_format\": {\"type\": \"json_object\", \"schema\": " SCHEMA "}",
        "\"json_schema\": " SCHEMA};
    for (int form = 0; form < 3; form++)
        for (int seed = 0; seed < 5; seed++) {
            char body[1000];
            snprintf(
                body, sizeof body,
                "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 400, "
                "\"temperature\": 1.5, \"seed\": %d, \"n\": 2, %s}",
                seed, forms[form]);
            cJSON *answer = server_post_json(&server, "/v1/chat/completions", body, 200);
            for (int i = 0; i < 2; i++) {
                char path[64];
                snprintf(path, sizeof path, "choices.%d.finish_reason", i);
                assert_string_equal(json_text(answer, path), "stop");
                snprintf(path, sizeof path, "choices.%d.message.content", i);
                check_document(json_text(answer, path));
            }
            cJSON_Delete(answer);
        }
}

static void an_answer_cut_short_says_length(void **state)
{
    (void)state;
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"prompt\": \"x\", \"max_tokens\": 3, \"seed\": 1, "
                                     "\"json_schema\": " SCHEMA "}",
                                     200);
    assert_string_equal(json_text(answer, "choices.0.finish_reason"), "length");
    assert_int_equal(json_text(answer, "choices.0.text")[0], '{');
    cJSON_Delete(answer);
}

static void a_grammar_is_kept_to_also_in_a_stream(void **state)
{
    (void)state;
    cJSON *whole = server_post_json(&server, "/v1/completions",
                                    "{\"prompt\": [\"x\", \"y\"], \"max_tokens\": 50, \"seed\": 7, "
                                    "\"best_of\": 2, \"grammar\": \"root ::= [x-z]{5} \\\"!\\\"\"}",
                                    200);
    for (int i = 0; i < 2; i++) {
        char path[32], letters[8] = "";
        int length = 0;
        snprintf(path, sizeof path, "choices.%d.text", i);
        assert_int_equal(sscanf(json_text(whole, path), "%5[xyz]!%n", letters, &length), 1);
        assert_int_equal(length, 6);
    }
    cJSON_Delete(whole);
    http_answer stream = server_post(&server, "/v1/completions",
                                     "{\"prompt\": \"x\", \"max_tokens\": 50, \"stream\": true, "
                                     "\"ignore_eos\": true, \"grammar\": \"root ::= \\\"q\\\"\"}");
    assert_int_equal(stream.status, 200);
    assert_non_null(strstr(stream.body, "\"text\":\"q\""));
    assert_non_null(strstr(stream.body, "\"finish_reason\":\"stop\""));
    http_free(&stream);
}

static void what_is_wrong_is_named(void **state)
{
    static const struct {
        const char *member, *param, *message;
    } cases[] = {
        {"\"grammar\": \"root ::= x\"", "grammar",
         "'grammar': line 1, column 10: there is no rule 'x'"},
        {"\"grammar\": \"root ::= root\"", "grammar",
         "'grammar': line 1, column 1: rule 'root' can never end"},
        {"\"grammar\": 5", "grammar", "'grammar' must be a string"},
        {"\"json_schema\": {\"contains\": 1}", "json_schema",
         "the schema at '#': keyword 'contains' is not supported"},
        {"\"json_schema\": {\"$ref\": \"#\"}", "json_schema", NULL},
        {"\"json_schema\": true, \"grammar\": \"root ::= [a]\"", "grammar", NULL},
        {"\"response_format\": {\"type\": \"json_object\"}, \"grammar\": \"root ::= [a]\"",
         "grammar", NULL},
        {"\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"x\"}}",
         "response_format", "'response_format.json_schema.schema' is missing"},
        {"\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": "
         "{\"type\": "
         "\"array\", \"items\": {\"format\": \"iri\"}}}}",
         "response_format", "the schema at '#/items': 'format' 'iri' is not supported"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[600];
        snprintf(body, sizeof body, "{\"prompt\": \"x\", \"max_tokens\": 4, %s}", cases[i].member);
        cJSON *answer = server_post_json(&server, "/v1/completions", body, 400);
        assert_string_equal(json_text(answer, "error.param"), cases[i].param);
        if (cases[i].message != NULL)
            assert_string_equal(json_text(answer, "error.message"), cases[i].message);
        cJSON_Delete(answer);
    }
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"prompt\": \"x\", \"max_tokens\": 4, \"response_format\": "
                                     "{\"type\": \"text\"}, \"grammar\": \"\"}",
                                     200);
    cJSON_Delete(answer);
}

/* More grammars than are kept, and each again. */
static void many_grammars_take_turns(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 40; i++) {
            char body[200], expected[16];
            snprintf(body, sizeof body,
                     "{\"prompt\": \"x\", \"max_tokens\": 9, \"grammar\": \"root ::= \\\"%d\\\"\"}",
                     i);
            snprintf(expected, sizeof expected, "%d", i);
            cJSON *answer = server_post_json(&server, "/v1/completions", body, 200);
            assert_string_equal(json_text(answer, "choices.0.text"), expected);
            cJSON_Delete(answer);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chats_answer_in_the_schema),
        cmocka_unit_test(an_answer_cut_short_says_length),
        cmocka_unit_test(a_grammar_is_kept_to_also_in_a_stream),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(many_grammars_take_turns),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
