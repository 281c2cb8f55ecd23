/*
 * test_json_schema.c - schemas to grammars: against fixtures that PyPI's jsonschema judged, blanks,
 * what is refused and how it is said, and hostile schemas.
 */
#include "grammar_fixture.h"

#include "../server/json_schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The grammar of a schema, or NULL with the problem. */
static xmoe_grammar *schema_grammar(const char *text, xm_problem *problem)
{
    cJSON *schema = cJSON_Parse(text);
    assert_non_null(schema);
    xm_schema_rules rules = {0};
    xmoe_grammar *grammar = NULL;
    xmoe_error error = {0};
    *problem = (xm_problem){0};
    if (xm_schema_rules_add(&rules, "root", schema, "response_format", problem)) {
        assert_true(xm_schema_rules_end(&rules, problem));
        if (xm_grammar_create(grammar_tokens, rules.text.data, rules.text.length, NULL, &grammar,
                              &error) != XMOE_OK)
            fail_msg("%s\n%s\n%s", text, error.message, rules.text.data);
    } else {
        assert_int_equal(problem->status, 400);
        assert_string_equal(problem->param, "response_format");
    }
    xm_text_free(&rules.text);
    cJSON_Delete(schema);
    return grammar;
}

static void documents_are_accepted_as_jsonschema_judges(void **state)
{
    FILE *file = fopen("tests/fixtures/schema.txt", "r");
    char *line = NULL, *schema = NULL;
    size_t size = 0, counts[2] = {0}, schemas = 0, wrong = 0;
    ssize_t length;
    xmoe_grammar *grammar = NULL;
    xm_problem problem;
    (void)state;
    assert_non_null(file);
    while ((length = getline(&line, &size, file)) > 0) {
        line[--length] = '\0';
        if (line[0] == '=') {
            xmoe_grammar_free(grammar);
            free(schema);
            schema = strdup(line + 2);
            grammar = schema_grammar(schema, &problem);
            if (grammar == NULL)
                fail_msg("%s: %s", schema, problem.message);
            schemas++;
        } else if (line[0] != '#') {
            bool valid = line[0] == '+';
            grammar_answer answer = grammar_match(grammar, line + 2, (size_t)length - 2);
            if ((answer == GRAMMAR_ENDS) != valid) {
                print_error("%s: %s should be %s\n", schema, line + 2, valid ? "valid" : "invalid");
                wrong++;
            }
            counts[valid]++;
        }
    }
    assert_int_equal(wrong, 0);
    assert_true(schemas > 60 && counts[0] > 1000 && counts[1] > 500);
    xmoe_grammar_free(grammar);
    free(schema);
    free(line);
    fclose(file);
}

static void blanks_are_bounded(void **state)
{
    static const char object[] = "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": "
                                 "\"array\"}}, \"required\": [\"a\"]}";
    static const struct {
        const char *text;
        grammar_answer answer;
    } cases[] = {
        {"{\"a\":[]}", GRAMMAR_ENDS},
        {"{ \"a\": [ ] }", GRAMMAR_ENDS},
        {"{\n  \"a\": [\n    1,\n    2\n  ]\n}", GRAMMAR_ENDS},
        {"{\n                    \"a\":[]}", GRAMMAR_ENDS},
        {"{\n                     ", GRAMMAR_DEAD},
        {"{  ", GRAMMAR_DEAD},
        {"{\n\n", GRAMMAR_DEAD},
        {"{\"a\" ", GRAMMAR_DEAD},
        {"{\"a\":[1 ", GRAMMAR_ALIVE},
        {"{\"a\":[1 ,", GRAMMAR_DEAD},
        {" ", GRAMMAR_DEAD},
        {"{\"a\":[]} ", GRAMMAR_DEAD},
    };
    (void)state;
    xm_problem problem;
    xmoe_grammar *grammar = schema_grammar(object, &problem);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(grammar_match(grammar, cases[i].text, strlen(cases[i].text)),
                         cases[i].answer);
    xmoe_grammar_free(grammar);
}

static void what_is_not_supported_is_refused_by_name(void **state)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        {"{\"not\": {}}", "the schema at '#': keyword 'not' is not supported"},
        {"{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"array\", \"items\": {\"if\": "
         "true}}}}",
         "the schema at '#/properties/a/items': keyword 'if' is not supported"},
        {"{\"type\": \"array\", \"uniqueItems\": true}",
         "the schema at '#': keyword 'uniqueItems' is not supported"},
        {"{\"type\": \"integer\", \"multipleOf\": 2}",
         "the schema at '#': keyword 'multipleOf' is not supported"},
        {"{\"type\": \"object\", \"patternProperties\": {}}",
         "the schema at '#': keyword 'patternProperties' is not supported"},
        {"{\"type\": \"string\", \"format\": \"hostname\"}",
         "the schema at '#': 'format' 'hostname' is not supported"},
        {"{\"type\": \"strin\"}", "the schema at '#': there is no type 'strin'"},
        {"{\"type\": 1}", "the schema at '#': 'type' must be a string or a list of strings"},
        {"{\"type\": []}", "the schema at '#': 'type' allows nothing"},
        {"{\"type\": \"string\", \"minimum\": 1}",
         "the schema at '#': 'minimum' does not go with the type"},
        {"{\"minimum\": 1, \"minLength\": 1}",
         "the schema at '#': 'type' is needed beside keywords of several types"},
        {"{\"type\": \"integer\", \"minimum\": 5, \"maximum\": 4}",
         "the schema at '#': no number is within the bounds"},
        {"{\"type\": \"number\", \"minimum\": 0.5}",
         "the schema at '#': 'minimum' is supported as a whole number up to 10^15"},
        {"{\"type\": \"string\", \"minLength\": 3, \"maxLength\": 2}",
         "the schema at '#': 'maxLength' is below 'minLength'"},
        {"{\"type\": \"string\", \"minLength\": -1}",
         "the schema at '#': 'minLength' must be a whole number from 0 to 100000"},
        {"{\"type\": \"string\", \"minLength\": 1, \"pattern\": \"a\"}",
         "the schema at '#': only one of 'pattern', 'format' and a length is supported"},
        {"{\"type\": \"string\", \"pattern\": \"^(?=a)\"}",
         "the schema at '#': 'pattern' near '?=a)': only plain groups are supported"},
        {"{\"type\": \"string\", \"pattern\": \"(a\"}",
         "the schema at '#': 'pattern' near '': a group is not closed"},
        {"{\"type\": \"string\", \"pattern\": \"a)\"}",
         "the schema at '#': 'pattern' near ')': a parenthesis too many"},
        {"{\"type\": \"string\", \"pattern\": \"[a\"}",
         "the schema at '#': 'pattern' near '': a class is not closed"},
        {"{\"type\": \"string\", \"pattern\": \"\\\\bx\"}",
         "the schema at '#': 'pattern' near '\\bx': this escape is not supported"},
        {"{\"type\": \"string\", \"pattern\": \"a^b\"}",
         "the schema at '#': 'pattern' near '^b': anchors are supported only at the beginning and "
         "end "
         "of alternatives"},
        {"{\"type\": \"string\", \"pattern\": \"a{3,2}\"}",
         "the schema at '#': 'pattern' near '{3,2}': a wrong repetition (numbers go up to 10000)"},
        {"{\"type\": \"string\", \"pattern\": \"*\"}",
         "the schema at '#': 'pattern' near '*': there is nothing to repeat"},
        {"{\"$ref\": \"#/nowhere\"}",
         "the schema at '#': '$ref' leads nowhere: '#/nowhere' (only references within the schema, "
         "such as '#/$defs/name', are supported)"},
        {"{\"$ref\": \"#\", \"type\": \"string\"}",
         "the schema at '#': 'type' beside '$ref' is not supported"},
        {"{\"anyOf\": []}", "the schema at '#': 'anyOf' must be a list, not empty"},
        {"{\"anyOf\": [{\"type\": \"null\"}, {\"x\": 1}]}",
         "the schema at '#/anyOf/1': keyword 'x' is not supported"},
        {"{\"enum\": []}", "the schema at '#': 'enum' allows no value"},
        {"{\"type\": \"object\", \"properties\": {\"a\": {}}, \"required\": [\"b\"]}",
         "the schema at '#': 'required' names 'b', which is not among 'properties'"},
        {"{\"allOf\": [{\"minimum\": 1}, {\"minimum\": 2}]}",
         "the schema at '#': 'allOf' has two different 'minimum'"},
        {"{\"allOf\": [{\"$ref\": \"#\"}]}", "the schema at '#': 'allOf' is nested too deeply"},
        {"{\"type\": \"object\", \"properties\": {\"a\": false}}",
         "the schema at '#/properties/a': nothing is valid here"},
        {"[]", "the schema at '#': a schema must be an object"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xm_problem problem;
        xmoe_grammar *grammar = schema_grammar(cases[i].schema, &problem);
        if (grammar != NULL || strcmp(problem.message, cases[i].message) != 0)
            fail_msg("%s: '%s'", cases[i].schema, problem.message);
    }
}

/* Deep, wide and repeating schemas end in a grammar or a refusal, soon. */
static void hostile_schemas_stay_bounded(void **state)
{
    (void)state;
    static char text[400000];
    xm_problem problem;
    char *at = text;
    for (int i = 0; i < 150; i++)
        at += sprintf(at, "{\"type\": \"array\", \"items\": ");
    at += sprintf(at, "{}");
    for (int i = 0; i < 150; i++)
        at += sprintf(at, "}");
    assert_null(schema_grammar(text, &problem));

    at = text + sprintf(text, "{\"$defs\": {");
    for (int i = 0; i < 60; i++)
        at += sprintf(
            at,
            "\"d%d\": {\"allOf\": [{\"$ref\": \"#/$defs/d%d\"}, {\"$ref\": \"#/$defs/d%d\"}]}, ", i,
            i + 1, i + 1);
    sprintf(at, "\"d60\": {\"type\": \"string\"}}, \"$ref\": \"#/$defs/d0\"}");
    assert_null(schema_grammar(text, &problem));

    at = text + sprintf(text, "{\"type\": \"object\", \"properties\": {");
    for (int i = 0; i < 2001; i++)
        at += sprintf(at, "%s\"p%d\": {\"type\": \"string\"}", i ? ", " : "", i);
    sprintf(at, "}}");
    assert_null(schema_grammar(text, &problem));

    at = text +
         sprintf(text, "{\"type\": \"object\", \"additionalProperties\": true, \"properties\": {");
    for (int i = 0; i < 300; i++)
        at +=
            sprintf(at, "%s\"p%d\": {\"type\": \"string\", \"maxLength\": 500}", i ? ", " : "", i);
    sprintf(at, "}}");
    xmoe_grammar *grammar = schema_grammar(text, &problem);
    assert_non_null(grammar);
    static const char good[] = "{\"p7\": \"x\", \"p299\": \"y\", \"p300\": 1}",
                      twice[] = "{\"p7\": \"x\", \"p7\":";
    assert_int_equal(grammar_match(grammar, good, sizeof good - 1), GRAMMAR_ENDS);
    assert_int_equal(grammar_match(grammar, twice, sizeof twice - 1), GRAMMAR_DEAD);
    xmoe_grammar_free(grammar);
}

/* Appends count items, with commas between; format may take the number. Returns the end. */
static char *repeat(char *at, int count, const char *format)
{
    for (int i = 0; i < count; i++) {
        at += sprintf(at, "%s", i ? ", " : "");
        at += sprintf(at, format, i);
    }
    return at;
}

/* A short text can ask for many copies of a long part, or many comparisons with it. */
static void parts_that_are_used_often_are_bounded(void **state)
{
    (void)state;
    enum { ENTRIES = 2000, USES = 4000 };
    static char text[1000000];
    xm_problem problem;
    char *at = text + sprintf(text, "{\"$defs\": {\"a\": {\"enum\": [");
    at = repeat(at, ENTRIES, "\"%0300d\"");
    at += sprintf(at, "]}}, \"anyOf\": [");
    at = repeat(at, USES, "{\"allOf\": [{\"$ref\": \"#/$defs/a\"}]}");
    sprintf(at, "]}");
    assert_null(schema_grammar(text, &problem));
    assert_non_null(strstr(problem.message, "too large a grammar"));

    at = text + sprintf(text, "{\"$defs\": {\"a\": {\"required\": [");
    at = repeat(at, ENTRIES, "\"p%d\"");
    at += sprintf(at, "], \"properties\": {");
    at = repeat(at, ENTRIES, "\"p%d\": {}");
    at += sprintf(at, "}}}, \"allOf\": [");
    at = repeat(at, USES, "{\"$ref\": \"#/$defs/a\"}");
    sprintf(at, "]}");
    assert_null(schema_grammar(text, &problem));
    assert_non_null(strstr(problem.message, "is too large"));

    at = text + sprintf(text, "{\"properties\": {\"a\": {}}, \"type\": [");
    at = repeat(at, USES, "\"object\"");
    sprintf(at, "]}");
    assert_null(schema_grammar(text, &problem));
    assert_non_null(strstr(problem.message, "more than 7 entries"));
}

static void large_numbers_are_integers(void **state)
{
    (void)state;
    xm_problem problem;
    xmoe_grammar *grammar = schema_grammar("{\"type\": \"integer\", \"enum\": [1e300]}", &problem);
    assert_non_null(grammar);
    assert_int_equal(grammar_match(grammar, "1e+300", 6), GRAMMAR_ENDS);
    xmoe_grammar_free(grammar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_are_accepted_as_jsonschema_judges),
        cmocka_unit_test(blanks_are_bounded),
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
        cmocka_unit_test(hostile_schemas_stay_bounded),
        cmocka_unit_test(parts_that_are_used_often_are_bounded),
        cmocka_unit_test(large_numbers_are_integers),
    };
    return cmocka_run_group_tests(tests, grammar_make_vocabulary, grammar_free_vocabulary);
}
