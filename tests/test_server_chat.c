/*
 * test_server_chat.c - chats over real sockets with a model that brings a template: what the prompt
 * is, what a message cannot do, tools and what becomes of their calls, templates that fail.
 */
#include "server_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static server_child server;

/* Hermes' form with one special token, which is the only one that the tiny model has. */
static const char template[] =
    "{%- for m in messages %}{{ '<|endoftext|>' + m.role + '\\n' }}"
    "{%- if m.content == 'raise' %}{{ raise_exception('No such thing: ' + m.content) }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name "
    "}}\", "
    "\"arguments\": {{ c.function.arguments|tojson }}}\n</tool_call>{% endfor %}{{ '\\n' }}"
    "{%- endfor %}{% if tools %}{{ tools|tojson }}{% endif %}"
    "{%- if shout is defined %}{{ shout|upper }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|endoftext|>assistant\\n' }}{% endif %}";

static int start(void **state)
{
    (void)state;
    if (server_make_chat_model(template) != 0)
        return -1;
    server = server_start((const char *const[]){NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, 15);
    return status ? status : server_remove_model(state);
}

static cJSON *chat(const char *body, int status)
{
    return server_post_json(&server, "/v1/chat/completions", body, status);
}

static void prompt_is_the_templates(void **state)
{
    (void)state;
    cJSON *answer = server_post_json(
        &server, "/apply-template",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"A\"}, {\"role\": \"user\","
        " \"content\": [{\"type\": \"text\", \"text\": \"B\"}, {\"type\": \"text\", \"text\":"
        " \"C\"}]}, {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"1\","
        " \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"x\\\":"
        " 1}\"}}]}, {\"role\": \"tool\", \"content\": \"D\"}],"
        " \"chat_template_kwargs\": {\"shout\": \"hey\"}}",
        200);
    assert_string_equal(json_text(answer, "prompt"),
                        "<|endoftext|>system\nA\n<|endoftext|>user\nBC\n<|endoftext|>assistant\n"
                        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>\n"
                        "<|endoftext|>tool\nD\nHEY<|endoftext|>assistant\n");
    cJSON_Delete(answer);
}

static double prompt_tokens(const char *content)
{
    char body[300];
    snprintf(body, sizeof body,
             "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], \"max_tokens\": 1}",
             content);
    cJSON *answer = chat(body, 200);
    double tokens = json_number(answer, "usage.prompt_tokens");
    cJSON_Delete(answer);
    return tokens;
}

/* <|endoftext|> is one token where the template writes it, and text where a message does. */
static void messages_write_no_special_tokens(void **state)
{
    (void)state;
    cJSON *plain = server_post_json(
        &server, "/tokenize", "{\"content\": \"<|endoftext|>\", \"parse_special\": false}", 200);
    cJSON *special =
        server_post_json(&server, "/tokenize", "{\"content\": \"<|endoftext|>\"}", 200);
    int text = cJSON_GetArraySize(json_at(plain, "tokens"));
    assert_int_equal(cJSON_GetArraySize(json_at(special, "tokens")), 1);
    assert_true(text > 3);
    assert_true(prompt_tokens("<|endoftext|>") >= prompt_tokens("") + text - 1);
    /* Nor does a message complete one that the template began. */
    assert_true(prompt_tokens("|endoftext|>") > prompt_tokens("") + 3);
    cJSON_Delete(plain);
    cJSON_Delete(special);
}

static void wrong_chats_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *body, *param, *message;
    } cases[] = {
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"raise\"}]}", "messages",
         "No such thing: raise"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"chat_template_kwargs\":"
         " {\"tools\": 1}}",
         "chat_template_kwargs", "must not hold 'tools'"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": 5}", "tools",
         "must be an array"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"type\":"
         " \"function\", \"function\": {\"name\": \"a b\"}}]}",
         "tools", "tools[0].function.name"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tool_choice\":"
         " \"required\"}",
         "tool_choice", "needs 'tools'"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"type\":"
         " \"function\", \"function\": {\"name\": \"f\"}}], \"tool_choice\": {\"type\":"
         " \"function\", \"function\": {\"name\": \"g\"}}}",
         "tool_choice", "no tool 'g'"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"type\":"
         " \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\","
         " \"nosuch\": 1}}}]}",
         "tools", "nosuch"},
        {"{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\":"
         " \"f\", \"arguments\": \"[\"}}]}]}",
         "messages[0].tool_calls[0]", "JSON object"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"type\":"
         " \"function\", \"function\": {\"name\": \"f\"}}], \"response_format\": {\"type\":"
         " \"json_object\"}}",
         "response_format", "beside 'tools'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *answer = chat(cases[i].body, 400);
        assert_string_equal(json_text(answer, "error.param"), cases[i].param);
        if (!strstr(json_text(answer, "error.message"), cases[i].message))
            fail_msg("%s", json_text(answer, "error.message"));
        cJSON_Delete(answer);
    }
}

#define TOOLS                                                                                      \
    "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"set_light\", \"parameters\":" \
    " {\"type\": \"object\", \"properties\": {\"room\": {\"enum\": [\"hall\", \"attic\"]},"        \
    " \"level\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 99}}, \"required\":"         \
    " [\"room\", \"level\"], \"additionalProperties\": false}}}, {\"type\": \"function\","         \
    " \"function\": {\"name\": \"off\", \"parameters\": {\"type\": \"object\", \"properties\":"    \
    " {}, \"additionalProperties\": false}}}]"

static void check_call(const cJSON *call)
{
    assert_string_equal(json_text(call, "type"), "function");
    assert_memory_equal(json_text(call, "id"), "call_", 5);
    const char *name = json_text(call, "function.name");
    cJSON *arguments = cJSON_Parse(json_text(call, "function.arguments"));
    assert_true(cJSON_IsObject(arguments));
    if (strcmp(name, "set_light") == 0) {
        const char *room = json_text(arguments, "room");
        double level = json_number(arguments, "level");
        assert_true(strcmp(room, "hall") == 0 || strcmp(room, "attic") == 0);
        assert_true(level >= 0 && level <= 99 && level == (int)level);
    } else {
        assert_string_equal(name, "off");
        assert_null(arguments->child);
    }
    cJSON_Delete(arguments);
}

/* Whatever the random weights would say, an answer that must be a call is a valid one. */
static void forced_calls_are_valid(void **state)
{
    (void)state;
    bool seen_light = false, seen_off = false;
    for (int seed = 0; seed < 12; seed++) {
        char body[1200];
        snprintf(body, sizeof body,
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"Light!\"}], \"seed\": %d,"
                 " \"tool_choice\": \"required\", \"parallel_tool_calls\": false, " TOOLS "}",
                 seed);
        cJSON *answer = chat(body, 200);
        assert_string_equal(json_text(answer, "choices.0.finish_reason"), "tool_calls");
        assert_true(cJSON_IsNull(json_at(answer, "choices.0.message.content")));
        const cJSON *calls = json_at(answer, "choices.0.message.tool_calls");
        assert_int_equal(cJSON_GetArraySize(calls), 1);
        check_call(calls->child);
        bool light = strcmp(json_text(calls, "0.function.name"), "set_light") == 0;
        seen_light = seen_light || light;
        seen_off = seen_off || !light;
        cJSON_Delete(answer);
    }
    assert_true(seen_light && seen_off);
}

static void the_named_function_is_called(void **state)
{
    (void)state;
    cJSON *answer =
        chat("{\"messages\": [{\"role\": \"user\", \"content\": \"Light!\"}], \"seed\": 3,"
             " \"parallel_tool_calls\": false,"
             " \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\":"
             " \"off\"}}, " TOOLS "}",
             200);
    assert_string_equal(json_text(answer, "choices.0.message.tool_calls.0.function.name"), "off");
    check_call(json_at(answer, "choices.0.message.tool_calls.0"));
    cJSON_Delete(answer);
}

static void streams_bring_calls_as_deltas(void **state)
{
    (void)state;
    http_answer answer = server_post(
        &server, "/v1/chat/completions",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Light!\"}], \"seed\": 5,"
        " \"stream\": true, \"parallel_tool_calls\": false, \"tool_choice\": \"required\", " TOOLS
        "}");
    assert_int_equal(answer.status, 200);
    int calls = 0, finishes = 0;
    for (char *line = answer.body; (line = strstr(line, "data: {"));) {
        line += 6;
        cJSON *chunk = cJSON_ParseWithOpts(line, NULL, false);
        const cJSON *delta = json_at(chunk, "choices.0.delta.tool_calls.0");
        const cJSON *finish = json_at(chunk, "choices.0.finish_reason");
        if (delta) {
            calls++;
            assert_true(json_number(delta, "index") == 0);
            check_call(delta);
        }
        if (cJSON_IsString(finish)) {
            finishes++;
            assert_string_equal(finish->valuestring, "tool_calls");
        }
        const cJSON *content = json_at(chunk, "choices.0.delta.content");
        assert_true(!content || !content->valuestring[0]);
        cJSON_Delete(chunk);
    }
    assert_int_equal(calls, 1);
    assert_int_equal(finishes, 1);
    http_free(&answer);
}

/* With "none" the tools are not even shown. */
static void tools_may_be_kept_away(void **state)
{
    (void)state;
    cJSON *with = server_post_json(&server, "/apply-template",
                                   "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}],"
                                   " \"tool_choice\": \"none\", " TOOLS "}",
                                   200);
    assert_null(strstr(json_text(with, "prompt"), "set_light"));
    cJSON_Delete(with);
}

/* --- templates that fail, and models without
 * -------------------------------------------------------- */

/* As DeepSeek's first templates do. */
static void arguments_are_text_where_the_template_adds_them(void **state)
{
    (void)state;
    assert_int_equal(
        server_make_chat_model(
            "{% if tools %}{% endif %}{% for m in messages %}{% for tool in m.tool_calls %}"
            "{{ 'x' + tool['function']['arguments'] + 'y' }}"
            "{% endfor %}{% endfor %}"),
        0);
    server_child child = server_start((const char *const[]){NULL});
    cJSON *answer = server_post_json(
        &child, "/apply-template",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\","
        " \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}},"
        " {\"function\": {\"name\": \"f\", \"arguments\": {\"b\": 2}}},"
        " {\"function\": {\"name\": \"f\", \"arguments\": \"\"}}]}]}",
        200);
    assert_string_equal(json_text(answer, "prompt"), "x{\"a\": 1}yx{\"b\":2}yx{}y");
    cJSON_Delete(answer);
    assert_int_equal(server_stop(&child, 15), 0);
    assert_int_equal(server_remove_model(state), 0);
}

static void broken_template_takes_chats_only(void **state)
{
    (void)state;
    assert_int_equal(server_make_chat_model("{{ messages | nosuch }}"), 0);
    server_child child = server_start((const char *const[]){NULL});
    cJSON *refused =
        server_post_json(&child, "/v1/chat/completions",
                         "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", 501);
    assert_non_null(strstr(json_text(refused, "error.message"), "'nosuch'"));
    cJSON_Delete(refused);
    cJSON_Delete(
        server_post_json(&child, "/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 2}", 200));
    char *log = server_log(&child);
    assert_non_null(strstr(log, "chat template cannot be used"));
    free(log);
    assert_int_equal(server_stop(&child, 15), 0);
    server_remove_model(state);
}

/* The tiny model's context has room for few bytes. */
static void models_without_template_get_tools_too(void **state)
{
    (void)state;
    static const char body[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"seed\": 1,"
        " \"tool_choice\": \"required\", \"parallel_tool_calls\": false, \"tools\":"
        " [{\"type\": \"function\", \"function\": {\"name\": \"off\", \"parameters\":"
        " {\"type\": \"object\", \"additionalProperties\": false}}}]}";
    assert_int_equal(server_make_model(state), 0);
    server_child child = server_start((const char *const[]){NULL});
    cJSON *prompt = server_post_json(&child, "/apply-template", body, 200);
    assert_non_null(strstr(json_text(prompt, "prompt"), "{\"name\":\"off\""));
    cJSON_Delete(prompt);
    cJSON *answer = server_post_json(&child, "/v1/chat/completions", body, 200);
    check_call(json_at(answer, "choices.0.message.tool_calls.0"));
    cJSON_Delete(answer);
    assert_int_equal(server_stop(&child, 15), 0);
    server_remove_model(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_is_the_templates),
        cmocka_unit_test(messages_write_no_special_tokens),
        cmocka_unit_test(wrong_chats_are_named),
        cmocka_unit_test(forced_calls_are_valid),
        cmocka_unit_test(the_named_function_is_called),
        cmocka_unit_test(streams_bring_calls_as_deltas),
        cmocka_unit_test(tools_may_be_kept_away),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test(arguments_are_text_where_the_template_adds_them),
        cmocka_unit_test(broken_template_takes_chats_only),
        cmocka_unit_test(models_without_template_get_tools_too),
    };
    int failed = cmocka_run_group_tests(tests, start, stop);
    return failed + cmocka_run_group_tests(others, NULL, NULL);
}
