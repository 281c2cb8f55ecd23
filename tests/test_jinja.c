/*
 * test_jinja.c - templates against what Hugging Face's own code makes of them, byte for byte
 * (fixtures: tests/fixtures/make_chat.py), limits, and whose bytes are whose.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../server/jinja.h"

#define CHAT "tests/fixtures/chat/"

static char *read_file(const char *name)
{
    char path[160];
    snprintf(path, sizeof path, CHAT "%s", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    char *text = calloc(1, size + 1);
    assert_int_equal(fread(text, 1, size, file), size);
    fclose(file);
    return text;
}

static cJSON *read_json(const char *name)
{
    char *text = read_file(name);
    cJSON *tree = cJSON_Parse(text);
    assert_non_null(tree);
    free(text);
    return tree;
}

static void add_members(const cJSON *object, bool input, xm_jinja_variable *variables,
                        size_t *count)
{
    for (const cJSON *item = object->child; item; item = item->next)
        variables[(*count)++] = (xm_jinja_variable){item->string, item, input};
}

enum { NOW = 1754397000 }; /* as in make_chat.py */

/* Renders and compares: output, or the message that was raised, or "" for any other error. */
static bool agrees(const char *source, const xm_jinja_variable *variables, size_t count,
                   const cJSON *expected, const char *what)
{
    const cJSON *output = cJSON_GetObjectItem(expected, "output");
    const char *message = cJSON_GetStringValue(cJSON_GetObjectItem(expected, "error"));
    xm_jinja_error error;
    xm_jinja_output got = {0};
    xm_jinja *jinja = xm_jinja_parse(source, strlen(source), &error);
    bool good = jinja && xm_jinja_render(jinja, variables, count, NOW, &got, &error);
    bool same = good ? cJSON_IsString(output) && strcmp(got.text.data, output->valuestring) == 0
                     : message && (message[0] ? error.failure == XM_JINJA_RAISED &&
                                                    strcmp(error.message, message) == 0
                                              : error.failure != XM_JINJA_RAISED);
    if (!same)
        print_error("%s\n  source: %.300s\n  got:      %s\n  expected: %s\n", what, source,
                    good ? got.text.data : error.message,
                    cJSON_IsString(output) ? output->valuestring : message);
    xm_jinja_output_free(&got);
    xm_jinja_free(jinja);
    return same;
}

static void conversations_are_hugging_faces(void **state)
{
    (void)state;
    cJSON *tree = read_json("cases.json");
    const cJSON *tokens = cJSON_GetObjectItem(tree, "tokens"), *test = NULL;
    cJSON *yes = cJSON_CreateTrue(), *identity = cJSON_CreateString("You are a model.");
    int wrong = 0, count_all = 0;
    setenv("TZ", "UTC", 1);
    cJSON_ArrayForEach(test, cJSON_GetObjectItem(tree, "cases"))
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(test, "name"));
        const char *file = cJSON_GetStringValue(cJSON_GetObjectItem(test, "template"));
        char *source = read_file(file), what[200];
        xm_jinja_variable variables[24] = {{"tools", NULL, false},
                                           {"documents", NULL, false},
                                           {"add_generation_prompt", yes, false}};
        size_t count = 3;
        if (strncmp(file, "openai", 6) == 0)
            variables[count++] = (xm_jinja_variable){"model_identity", identity, false};
        add_members(tokens, false, variables, &count);
        add_members(
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItem(tree, "conversations"), name),
            true, variables, &count);
        snprintf(what, sizeof what, "%s: %s", file, name);
        wrong += !agrees(source, variables, count, test, what);
        count_all++;
        free(source);
    }
    assert_true(count_all > 200);
    assert_int_equal(wrong, 0);
    cJSON_Delete(yes);
    cJSON_Delete(identity);
    cJSON_Delete(tree);
}

static void language_is_jinja2s(void **state)
{
    (void)state;
    cJSON *tree = read_json("language.json");
    const cJSON *test = NULL;
    int wrong = 0;
    xm_jinja_variable variables[24];
    size_t count = 0;
    add_members(cJSON_GetObjectItem(tree, "variables"), true, variables, &count);
    cJSON_ArrayForEach(test, cJSON_GetObjectItem(tree, "snippets")) wrong +=
        !agrees(cJSON_GetStringValue(cJSON_GetObjectItem(test, "source")), variables, count, test,
                "snippet");
    assert_int_equal(wrong, 0);
    cJSON_Delete(tree);
}

/* The same text, with [ ] around what is marked as input. */
static char *marked(const char *source, const char *json)
{
    xm_jinja_error error = {0};
    cJSON *value = cJSON_Parse(json);
    xm_jinja_variable variables[] = {{"v", value, true}, {"plain", value, false}};
    xm_jinja *jinja = xm_jinja_parse(source, strlen(source), &error);
    xm_jinja_output output = {0};
    if (!jinja || !xm_jinja_render(jinja, variables, 2, 0, &output, &error))
        fail_msg("%s: %s", source, error.message);
    xm_text text = {0};
    assert_int_equal(output.text.length, output.input.length);
    for (size_t i = 0; i <= output.text.length; i++) {
        bool before = i > 0 && output.input.data[i - 1];
        bool here = i < output.text.length && output.input.data[i];
        if (before != here)
            xm_text_puts(&text, here ? "[" : "]");
        if (i < output.text.length)
            xm_text_add(&text, output.text.data + i, 1);
    }
    xm_jinja_output_free(&output);
    xm_jinja_free(jinja);
    cJSON_Delete(value);
    return text.data ? text.data : strdup("");
}

static void input_stays_input(void **state)
{
    (void)state;
    static const struct {
        const char *source, *expected;
    } cases[] = {
        {"a{{ v.s }}b", "a[ x<y> ]b"},
        {"a{{ plain.s }}b", "a x<y> b"},
        {"{{ 'a' ~ v.s|trim ~ 'b' }}", "a[x<y>]b"},
        {"{{ 'a' + v.s.strip() + 'b' }}", "a[x<y>]b"},
        {"{{ v.s[1:3] }}-{{ v.s.split('<')[1] }}", "[x<]-[y> ]"},
        {"{{ v.s.replace('x', 'aa') }}", "[ ]aa[<y> ]"},
        {"{{ 'axb'|replace('x', v.s) }}", "a[ x<y> ]b"},
        {"{{ v.s|upper }}", "[ X<Y> ]"},
        {"{{ v.l|join(', ') }}", "[p], [q]"},
        {"{{ v.l }}", "['[p]', '[q]']"},
        {"{{ v.l|tojson }}", "[\"[p]\", \"[q]\"]"},
        {"{{ v.d|tojson }}", "{\"[k]\": \"[w]\"}"},
        {"{% for k, x in v.d.items() %}{{ k }}={{ x }}{% endfor %}", "[k]=[w]"},
        {"{{ '%s!' % v.s }}{{ '<{}>'.format(v.l[0]) }}", "[ x<y> ]!<[p]>"},
        {"{{ v.l[0]|indent(2, true) }}", "  [p]"},
        {"{% set ns = namespace(t='') %}{% for x in v.l %}{% set ns.t = ns.t + x + ';' %}"
         "{% endfor %}{{ ns.t }}",
         "[p];[q];"},
        {"{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(v.l[1]) }}", "<[q]>"},
        {"{% set b %}a{{ v.l[0] }}{% endset %}{{ b ~ b|reverse }}", "a[pp]a"},
        {"{{ v.l|map('upper')|list|last }}{{ v.l|sort|first|title }}", "[QP]"},
        {"{{ 'x' if v.l[0] == 'p' else 'y' }}", "x"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *got = marked(cases[i].source,
                           "{\"s\": \" x<y> \", \"l\": [\"p\", \"q\"], \"d\": {\"k\": \"w\"}}");
        /* Lists print brackets of their own: those are not marks, but they look the same. */
        assert_string_equal(got, strncmp(cases[i].expected, "['", 2) == 0    ? "['[p]', '[q]']"
                                 : strncmp(cases[i].expected, "[\"", 2) == 0 ? "[\"[p]\", \"[q]\"]"
                                                                             : cases[i].expected);
        free(got);
    }
}

static void expect_limit(const char *source)
{
    xm_jinja_error error = {0};
    xm_jinja_output output = {0};
    xm_jinja *jinja = xm_jinja_parse(source, strlen(source), &error);
    if (jinja)
        assert_false(xm_jinja_render(jinja, NULL, 0, 0, &output, &error));
    if (error.failure != XM_JINJA_LIMIT)
        fail_msg("%.60s: %s", source, error.message);
    xm_jinja_output_free(&output);
    xm_jinja_free(jinja);
}

/* head, then open and close so many times each, then tail. */
static char *nested(const char *head, const char *open, const char *close, const char *tail)
{
    xm_text text = {0};
    xm_text_puts(&text, head);
    for (int i = 0; i < 5000; i++)
        xm_text_puts(&text, open);
    for (int i = 0; i < 5000; i++)
        xm_text_puts(&text, close);
    xm_text_puts(&text, tail);
    return text.data;
}

static void hostile_templates_end(void **state)
{
    (void)state;
    static const char *const pieces[][4] = {{"{{ ", "(", ")", "}}"},
                                            {"{{ ", "[", "]", "}}"},
                                            {"{{ ", "not ", "", "1 }}"},
                                            {"{{ ", "- ", "", "1 }}"},
                                            {"{{ 1", "", " + 1", "}}"},
                                            {"{{ 1", "", " or 1", "}}"},
                                            {"{{ 1", "", "|int", "}}"},
                                            {"{{ a", "", ".a", "}}"},
                                            {"{{ 1 if 1", "", " else 1 if 1", "}}"},
                                            {"{% if 1 %}", "", "{% elif 1 %}", "{% endif %}"},
                                            {"", "{% if 1 %}", "{% endif %}", ""}};
    expect_limit("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}"
                 "{% endfor %}");
    expect_limit("{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
                 "{% set ns.s = ns.s ~ ns.s %}{% endfor %}");
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    expect_limit("{{ 'xxxxxxxxxxxxxxxx' * 999999999 }}");
    expect_limit("{{ [1] * 999999999 }}");
    expect_limit("{{ range(100001) }}");
    expect_limit("{% set l = [] %}{% set x = l.append(l) %}{{ l }}");
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *source = nested(pieces[i][0], pieces[i][1], pieces[i][2], pieces[i][3]);
        expect_limit(source);
        free(source);
    }
}

static void errors_name_line_and_construct(void **state)
{
    (void)state;
    static const struct {
        const char *source, *message;
        int line;
    } cases[] = {
        {"a\n{{ x|nosuch }}", "the filter 'nosuch' is not known here", 2},
        {"a\n\n{% include 'x' %}", "the statement 'include' is not known here", 3},
        {"{% if true %}\n\n{{ y.z }}{% endif %}", "'y' is undefined", 3},
        {"{% for x in [] %}\n", "the block that begins here has no 'endfor'", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xm_jinja_error error = {0};
        xm_jinja_output output = {0};
        xm_jinja *jinja = xm_jinja_parse(cases[i].source, strlen(cases[i].source), &error);
        if (jinja)
            xm_jinja_render(jinja, NULL, 0, 0, &output, &error);
        assert_string_equal(error.message, cases[i].message);
        assert_int_equal(error.line, cases[i].line);
        xm_jinja_output_free(&output);
        xm_jinja_free(jinja);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversations_are_hugging_faces),
        cmocka_unit_test(language_is_jinja2s),
        cmocka_unit_test(input_stays_input),
        cmocka_unit_test(hostile_templates_end),
        cmocka_unit_test(errors_name_line_and_construct),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
