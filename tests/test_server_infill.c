/*
 * test_server_infill.c - /infill over sockets: the prompt that is made of the parts, llama-server's
 * names, and models without the tokens.
 */
#include "server_fixture.h"

#include "xmoe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX = 290, SUFFIX = 291, MIDDLE = 292, REPOSITORY = 293, FILE_TOKEN = 294 };

static server_child server;

static void name_tokens(xm_gguf_writer *writer)
{
    static const struct {
        const char *key;
        uint32_t id;
    } names[] = {{"tokenizer.ggml.fim_pre_token_id", PREFIX},
                 {"tokenizer.ggml.suffix_token_id", SUFFIX},
                 {"tokenizer.ggml.fim_mid_token_id", MIDDLE},
                 {"tokenizer.ggml.fim_rep_token_id", REPOSITORY},
                 {"tokenizer.ggml.fim_sep_token_id", FILE_TOKEN}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        xm_gguf_writer_u32(writer, names[i].key, names[i].id);
}

/* Adds ", " and the tokens of a text to a list. */
static void add_tokens(char *list, size_t size, int marker, const char *text)
{
    char body[256];
    size_t used = strlen(list);
    if (marker >= 0)
        used += (size_t)snprintf(list + used, size - used, "%s%d", used ? "," : "", marker);
    snprintf(body, sizeof body, "{\"content\": \"%s\"}", text);
    cJSON *answer = server_post_json(&server, "/tokenize", body, 200);
    for (const cJSON *token = json_at(answer, "tokens")->child; token; token = token->next)
        used += (size_t)snprintf(list + used, size - used, ",%d", token->valueint);
    cJSON_Delete(answer);
}

/* The answer is that to a completion of the tokens listed. */
static void expect_prompt(const char *infill, const char *tokens)
{
    char body[4096];
    static const char rest[] = "\"temperature\": 0, \"ignore_eos\": true";
    snprintf(body, sizeof body, "{%s, \"n_predict\": 7, %s}", infill, rest);
    cJSON *filled = server_post_json(&server, "/infill", body, 200);
    snprintf(body, sizeof body, "{\"prompt\": [%s], \"max_tokens\": 7, %s}", tokens, rest);
    cJSON *expected = server_post_json(&server, "/v1/completions", body, 200);
    assert_string_equal(json_text(filled, "content"), json_text(expected, "choices.0.text"));
    assert_string_equal(json_text(filled, "choices.0.text"), json_text(filled, "content"));
    assert_true(json_number(filled, "usage.prompt_tokens") ==
                json_number(expected, "usage.prompt_tokens"));
    assert_true(json_number(filled, "usage.completion_tokens") == 7);
    assert_true(cJSON_IsTrue(json_at(filled, "stop")));
    cJSON_Delete(filled);
    cJSON_Delete(expected);
}

static void parts_make_the_prompt(void **state)
{
    (void)state;
    char tokens[2048] = "";
    add_tokens(tokens, sizeof tokens, PREFIX, "int f(");
    add_tokens(tokens, sizeof tokens, SUFFIX, ") { }");
    add_tokens(tokens, sizeof tokens, MIDDLE, "");
    expect_prompt("\"input_prefix\": \"int f(\", \"input_suffix\": \") { }\"", tokens);
    add_tokens(tokens, sizeof tokens, -1, "void");
    expect_prompt("\"input_prefix\": \"int f(\", \"input_suffix\": \") { }\", \"prompt\": \"void\"",
                  tokens);
}

static void other_files_come_first(void **state)
{
    (void)state;
    char tokens[2048] = "";
    add_tokens(tokens, sizeof tokens, REPOSITORY, "project\\n");
    add_tokens(tokens, sizeof tokens, FILE_TOKEN, "a.h\\nint a;");
    add_tokens(tokens, sizeof tokens, FILE_TOKEN, "b.h\\nint b;");
    add_tokens(tokens, sizeof tokens, FILE_TOKEN, "this\\n");
    add_tokens(tokens, sizeof tokens, PREFIX, "x");
    add_tokens(tokens, sizeof tokens, SUFFIX, "y");
    add_tokens(tokens, sizeof tokens, MIDDLE, "");
    expect_prompt("\"input_prefix\": \"x\", \"input_suffix\": \"y\", \"input_extra\": ["
                  "{\"filename\": \"a.h\", \"text\": \"int a;\"},"
                  "{\"filename\": \"b.h\", \"text\": \"int b;\"}]",
                  tokens);
}

static void streams(void **state)
{
    (void)state;
    http_answer answer = server_post(&server, "/infill",
                                     "{\"input_prefix\": \"a\", \"input_suffix\": \"b\", "
                                     "\"n_predict\": 4, \"ignore_eos\": true, \"stream\": true}");
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\"content\":"));
    assert_non_null(strstr(answer.body, "\"stop\":true"));
    assert_non_null(strstr(answer.body, "data: [DONE]"));
    http_free(&answer);
}

static void faults_name_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *body, *param;
    } wrong[] = {
        {"{}", "input_prefix"},
        {"{\"input_prefix\": \"a\"}", "input_suffix"},
        {"{\"input_prefix\": 1, \"input_suffix\": \"b\"}", "input_prefix"},
        {"{\"input_prefix\": \"a\", \"input_suffix\": \"b\", \"prompt\": [1]}", "prompt"},
        {"{\"input_prefix\": \"a\", \"input_suffix\": \"b\", \"n_predict\": -2}", "n_predict"},
        {"{\"input_prefix\": \"a\", \"input_suffix\": \"b\", \"input_extra\": 1}", "input_extra"},
        {"{\"input_prefix\": \"a\", \"input_suffix\": \"b\", \"input_extra\": [{}]}",
         "input_extra"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cJSON *answer = server_post_json(&server, "/infill", wrong[i].body, 400);
        assert_string_equal(json_text(answer, "error.param"), wrong[i].param);
        cJSON_Delete(answer);
    }
}

static void model_without_tokens(void **state)
{
    (void)state;
    cJSON *answer = server_post_json(&server, "/infill",
                                     "{\"input_prefix\": \"a\", \"input_suffix\": \"b\"}", 501);
    assert_string_equal(json_text(answer, "error.type"), "not_supported_error");
    cJSON_Delete(answer);
}

static int start_with_tokens(void **state)
{
    (void)state;
    server_rewrite_model(NULL, name_tokens);
    server = server_start((const char *const[]){NULL});
    return 0;
}

static int start_without(void **state)
{
    (void)state;
    server = server_start((const char *const[]){NULL});
    return 0;
}

static int stop(void **state)
{
    (void)state;
    return server_stop(&server, 15);
}

int main(void)
{
    const struct CMUnitTest plain[] = {cmocka_unit_test(model_without_tokens)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_make_the_prompt),
        cmocka_unit_test(other_files_come_first),
        cmocka_unit_test(streams),
        cmocka_unit_test(faults_name_the_field),
    };
    if (server_make_model(NULL) != 0)
        return 1;
    int failed = cmocka_run_group_tests(plain, start_without, stop);
    failed += cmocka_run_group_tests(tests, start_with_tokens, stop);
    return server_remove_model(NULL) != 0 || failed != 0;
}
