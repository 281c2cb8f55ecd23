/*
 * test_tool_reply.c - answers taken apart: every form of tool calls, thoughts, and what only looks
 * like either; whole and byte by byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../server/tool_reply.h"

typedef struct {
    const char *sign; /* of the form, as a template has it */
    bool calls, thinks, begins_thinking;
    const char *answer;
    const char *content, *thoughts;
    const char *said; /* name arguments;name arguments; */
} reading;

#define HERMES  "<tool_call>"
#define LLAMA   "<|start_header_id|>"
#define HARMONY "<|channel|>"
#define DS      "<｜tool▁calls▁begin｜>"

static const reading readings[] = {
    {HERMES, true, false, false, "Just text <b>.", "Just text <b>.", "", ""},
    {HERMES, true, false, false,
     "See:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, \"</b>\"]}}\n</tool_call>",
     "See:", "", "f {\"x\": [1, \"</b>\"]};"},
    {HERMES, true, false, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \"g\","
     " \"arguments\": \"{}\"}</tool_call>\n",
     "", "", "f {};g {};"},
    {HERMES, true, false, false, "<tool_call>{\"name\": \"f\"", "<tool_call>{\"name\": \"f\"", "",
     ""},
    {HERMES, true, false, false, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", "", "",
     "f {};"}, /* the end tag is missing, but the call is whole */
    {HERMES, true, false, false, "<tool_call>no JSON</tool_call> on",
     "<tool_call>no JSON</tool_call> on", "", ""},
    {HERMES, false, false, false, "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
     "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", "", ""},
    {HERMES, true, false, false, "a < b, <tool, <tool_cal", "a < b, <tool, <tool_cal", "", ""},
    {HERMES, true, true, false,
     "<think>\nHm, <tool_call>?\n</think>\n\nSo.<tool_call>{\"name\": \"f\", \"arguments\":"
     " {}}</tool_call>",
     "So.", "Hm, <tool_call>?\n", "f {};"},
    {HERMES, true, true, true, "Hm.</think>Yes", "Yes", "Hm.", ""},
    {HERMES, false, true, true, "Hm, but no end", "", "Hm, but no end", ""},
    {HERMES, false, true, false, "Text, then <think>x</think>", "Text, then <think>x</think>", "",
     ""},
    {"<function=", true, false, false,
     "<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=b>\ntwo\nlines\n"
     "</parameter>\n</function>\n</tool_call>",
     "", "", "f {\"a\":5,\"b\":\"two\\nlines\"};"},
    {"<function=", true, false, false,
     "<tool_call><function=f><parameter=zip>02</parameter><parameter=a>[1]</parameter></function>"
     "</tool_call>",
     "", "", "f {\"zip\":\"02\",\"a\":[1]};"}, /* the schema says which is a string */
    {"<function=", true, false, false,
     "<tool_call>\n<function=f>\n<parameter=a>\nuse <parameter=b>1\n</parameter>\n</function>\n"
     "</tool_call>",
     "", "", "f {\"a\":\"use <parameter=b>1\"};"},
    {"[TOOL_CALLS]", true, false, false,
     "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\", \"arguments\":"
     " {}, \"id\": \"abcdefghi\"}]",
     "", "", "f {\"x\": 1};g {};"},
    {"<|tool_call|>", true, false, false,
     "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"x\": 1}}]", "", "", "f {\"x\": 1};"},
    {HERMES, true, false, false,
     "<tool_call>{\"arguments\": {\"n\": 1234567890123456789, \"s\": \"}\\\"\"}, \"name\": \"f\"}"
     "</tool_call>",
     "", "", "f {\"n\": 1234567890123456789, \"s\": \"}\\\"\"};"}, /* as it was written */
    {HERMES, true, false, false,
     "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 01}}</tool_call>", "", "",
     "f {\"n\":1};"}, /* unless it is no JSON */
    {LLAMA, true, false, false, "{\"name\": \"f\", \"parameters\": {\"x\": 1}}", "", "",
     "f {\"x\": 1};"},
    {LLAMA, true, false, false,
     "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
     "", "", "f {};g {};"},
    {LLAMA, true, false, false, "{\"no\": \"call\"}", "{\"no\": \"call\"}", "", ""},
    {LLAMA, true, false, false, " {x", " {x", "", ""},
    {DS, true, true, true,
     "Hm.</think>" DS "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜>"
     "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "", "Hm.", "f {\"x\": 1};g {};"},
    {DS, true, false, false,
     "Ok." DS "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```"
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "Ok.", "", "f {\"x\": 1}\n;"},
    {HARMONY, true, false, false,
     "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>"
     "Hello <b>",
     "Hello <b>", "Think.", ""},
    {HARMONY, true, false, false,
     "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary"
     " to=functions.f <|constrain|>json<|message|>{\"x\": 1}",
     "", "Call.", "f {\"x\": 1};"},
    {HARMONY, true, false, false,
     "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>commentary"
     " to=functions.g<|message|>{}<|call|>",
     "First.", "", "g {};"},
    {HARMONY, true, false, false, "No header", "No header", "", ""},
};

static void read_in_steps(const reading *r, size_t step)
{
    xm_reply_style style = {xm_tool_form_of(r->sign), NULL, r->thinks, r->begins_thinking};
    if (r->calls)
        style.tools =
            cJSON_Parse("[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\":"
                        " {\"properties\": {\"zip\": {\"type\": \"string\"}}}}}]");
    xm_reply reply = {0};
    xm_text content = {0}, said = {0};
    size_t length = strlen(r->answer);
    for (size_t at = 0; at < length; at += step)
        xm_reply_feed(&reply, &style, r->answer + at, length - at < step ? length - at : step,
                      &content);
    xm_reply_finish(&reply, &style, &content);
    for (size_t i = 0; i < reply.calls.count; i++)
        xm_text_format(&said, "%s %s;", reply.calls.items[i].name, reply.calls.items[i].arguments);
    const char *texts[] = {content.data, reply.thoughts.data, said.data};
    const char *expected[] = {r->content, r->thoughts, r->said};
    for (int i = 0; i < 3; i++)
        if (strcmp(texts[i] ? texts[i] : "", expected[i]) != 0)
            fail_msg("%s\n in steps of %zu gives\n '%s' for '%s'", r->answer, step,
                     texts[i] ? texts[i] : "", expected[i]);
    cJSON_Delete(style.tools);
    xm_text_free(&content);
    xm_text_free(&said);
    xm_reply_free(&reply);
}

static void answers_are_taken_apart(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof readings / sizeof *readings; i++)
        for (size_t step = 1; step < 400; step = step * 2 + 1)
            read_in_steps(&readings[i], step);
}

/* Text is given out as soon as it cannot be a marker's beginning. */
static void text_is_not_held_back(void **state)
{
    (void)state;
    xm_reply_style style = {xm_tool_form_of(HERMES), cJSON_CreateArray(), true, false};
    xm_reply reply = {0};
    xm_text content = {0};
    xm_reply_feed(&reply, &style, "Hello <to", 9, &content);
    assert_string_equal(content.data, "Hello ");
    xm_reply_feed(&reply, &style, "p>", 2, &content);
    assert_string_equal(content.data, "Hello <top>");
    xm_text_free(&content);
    xm_reply_free(&reply);
    cJSON_Delete(style.tools);
}

static void ids_are_as_the_form_wants_them(void **state)
{
    (void)state;
    xm_tool_calls calls = {0};
    assert_true(xm_tool_calls_add(xm_tool_form_of("[TOOL_CALLS]"), &calls, "f", "{}"));
    assert_true(xm_tool_calls_add(xm_tool_form_of(NULL), &calls, "f", "{}"));
    assert_int_equal(strlen(calls.items[0].id), 9);
    assert_int_equal(strlen(calls.items[1].id), 29);
    xm_tool_calls_free(&calls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_taken_apart),
        cmocka_unit_test(text_is_not_held_back),
        cmocka_unit_test(ids_are_as_the_form_wants_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
