/*
 * test_engine_grammar.c - the engine under grammars, over a tiny random model: whatever the weights
 * say, outputs are of the grammar; the same in company, on two threads and after preemption; ends,
 * triggers, refusals, and references.
 */
#include "engine_fixture.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../server/json_schema.h"

static xmoe_grammar *compile(const char *text, const char *trigger)
{
    xmoe_grammar *grammar;
    xmoe_error error;
    if (xmoe_grammar_create(engine_model, text, strlen(text), trigger, &grammar, &error) != XMOE_OK)
        fail_msg("%s: %s", text, error.message);
    return grammar;
}

static xmoe_grammar *compile_schema(const cJSON *schema)
{
    xm_schema_rules rules = {0};
    xm_problem problem = {0};
    if (!xm_schema_rules_add(&rules, "root", schema, "schema", &problem) ||
        !xm_schema_rules_end(&rules, &problem))
        fail_msg("%s", problem.message);
    xmoe_grammar *grammar = compile(rules.text.data, NULL);
    xm_text_free(&rules.text);
    return grammar;
}

/* A call that samples freely: the weights are random, so is the text. */
static call *grammar_call(int32_t n, xmoe_grammar *grammar)
{
    call *c = call_new(n);
    c->params.prompt_length = 1 + (size_t)n % 9;
    c->params.max_tokens = 100;
    c->params.sampling.temperature = n % 5 == 0 ? 0 : 1.5F;
    c->params.sampling.top_p = 1;
    c->params.sampling.top_k = 0;
    c->params.sampling.frequency_penalty = n % 5 == 0 ? 1 : 0; /* greedy ones must not go round */
    c->params.ignore_eos = false;
    c->params.grammar = grammar;
    return c;
}

/* --- what comes out --------------------------------------------------------------------------- */

static const char *const schemas[] = {
    "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": "
    "\"boolean\"}}, \"required\": [\"a\"]}",
    "{\"type\": \"array\", \"items\": {\"enum\": [\"x\", null, 12, {\"k\": [1]}]}, \"maxItems\": "
    "4}",
    "{\"type\": \"object\", \"properties\": {\"d\": {\"type\": \"string\", \"format\": "
    "\"date-time\"}, "
    "\"s\": {\"type\": \"string\", \"maxLength\": 5}}, \"required\": [\"d\", \"s\"]}",
    "{\"type\": \"integer\", \"minimum\": -17, \"maximum\": 4711}",
    "{\"anyOf\": [{\"type\": \"null\"}, {\"type\": \"number\"}, {\"type\": \"string\", "
    "\"pattern\": "
    "\"^[a-z\\\"\\\\u00e9]{1,6}$\"}]}",
    "{\"type\": \"object\", \"additionalProperties\": {\"type\": \"boolean\"}, \"maxProperties\": "
    "2}",
};
enum { SCHEMAS = sizeof schemas / sizeof *schemas };

static void outputs_are_json_whatever_the_weights_say(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    int32_t whole = 0;
    for (int32_t s = 0; s < SCHEMAS; s++) {
        cJSON *schema = cJSON_Parse(schemas[s]);
        xmoe_grammar *grammar = compile_schema(schema);
        enum { CALLS = 24 };
        call *calls[CALLS];
        for (int32_t i = 0; i < CALLS; i++) {
            calls[i] = grammar_call(i + 1, grammar);
            call_submit(engine, calls[i]);
        }
        for (int32_t i = 0; i < CALLS; i++) {
            const told_choice *told = &calls[i]->choices[0];
            char text[sizeof told->text + 1] = {0};
            const char *end = NULL;
            call_wait(calls[i]);
            memcpy(text, told->text, told->text_length);
            cJSON *tree = cJSON_ParseWithOpts(text, &end, true);
            if (told->finish == XMOE_FINISH_STOP) {
                if (tree == NULL)
                    fail_msg("%s: '%s'", schemas[s], text);
                whole++;
            } else {
                assert_int_equal(told->finish, XMOE_FINISH_LENGTH);
            }
            cJSON_Delete(tree);
            free(calls[i]);
        }
        xmoe_grammar_free(grammar);
        cJSON_Delete(schema);
    }
    assert_true(whole > SCHEMAS * 12); /* the others ran into max_tokens, in long keys for one */
    xmoe_engine_free(engine);
}

/* --- the same in any company ------------------------------------------------------------------ */

static const char lists[] =
    "root ::= \"[\" item (\", \" item)* \"]\"\n"
    "item ::= [a-z]{1,3} | [0-9]+ \".\" | \"(\" item \")\" | [\\u0080-\\uFFFF]";

static void run_all(const xmoe_engine_options *options, call **calls, int32_t count,
                    uint64_t *preemptions)
{
    xmoe_grammar *grammar = compile(lists, NULL), *late = compile(lists, ": ");
    xmoe_engine *engine = engine_create(options);
    for (int32_t i = 0; i < count; i++) {
        calls[i] = grammar_call(i, i % 4 == 3 ? NULL : i % 4 == 2 ? late : grammar);
        calls[i]->params.max_tokens = 70;
        calls[i]->params.choices = 1 + i % 3;
        call_submit(engine, calls[i]);
    }
    xmoe_grammar_free(grammar); /* the requests have theirs */
    xmoe_grammar_free(late);
    for (int32_t i = 0; i < count; i++)
        call_wait(calls[i]);
    *preemptions = engine_stats(engine).preemptions;
    xmoe_engine_free(engine);
}

static void grammars_give_the_same_in_company_and_after_preemption(void **state)
{
    (void)state;
    enum { CALLS = 20 };
    call *alone[CALLS], *crowded[CALLS];
    uint64_t preemptions;
    xmoe_engine_options options = engine_small_options();
    options.max_sequences = 3; /* one request's choices */
    run_all(&options, alone, CALLS, &preemptions);
    options.max_sequences = 40;
    options.threads = 2;
    options.kv_bytes = 1; /* as little as there can be */
    run_all(&options, crowded, CALLS, &preemptions);
    assert_true(preemptions > 0);
    for (int32_t i = 0; i < CALLS; i++) {
        for (int32_t k = 0; k < alone[i]->params.choices; k++)
            call_assert_same_choice(&alone[i]->choices[k], &crowded[i]->choices[k]);
        free(alone[i]);
        free(crowded[i]);
    }
}

/* --- ends ------------------------------------------------------------------------------------- */

static call *run_one(const char *text, const char *trigger, bool ignore_eos, int32_t max_tokens)
{
    xmoe_engine *engine = engine_create_small();
    xmoe_grammar *grammar = compile(text, trigger);
    call *c = grammar_call(3, grammar);
    c->params.ignore_eos = ignore_eos;
    c->params.max_tokens = max_tokens;
    call_run(engine, c);
    xmoe_grammar_free(grammar);
    xmoe_engine_free(engine);
    return c;
}

static void a_choice_ends_where_its_grammar_must(void **state)
{
    (void)state;
    for (int32_t ignore = 0; ignore < 2; ignore++) {
        call *c = run_one("root ::= \"yes\"", NULL, ignore, 50);
        assert_int_equal(c->choices[0].finish, XMOE_FINISH_STOP);
        assert_int_equal(c->choices[0].text_length, 3);
        assert_memory_equal(c->choices[0].text, "yes", 3);
        assert_true(c->choices[0].tokens[c->choices[0].count - 1] != 256); /* end of text */
        free(c);
    }
    call *c = run_one("root ::= \"\"", NULL, true, 50); /* no token at all */
    assert_int_equal(c->choices[0].finish, XMOE_FINISH_STOP);
    assert_int_equal(c->choices[0].count, 0);
    free(c);
    c = run_one("root ::= \"\"", NULL, false, 50);
    assert_int_equal(c->choices[0].finish, XMOE_FINISH_STOP);
    assert_int_equal(c->choices[0].tokens[0], 256);
    free(c);
    c = run_one("root ::= [ab]*", NULL, true, 30); /* it may end, but something can follow */
    assert_int_equal(c->choices[0].finish, XMOE_FINISH_LENGTH);
    assert_int_equal(c->choices[0].count, 30);
    free(c);
}

/* A grammar may name what ends a text: then that is a part of it, also with ignore_eos. */
static void a_grammar_may_name_the_end(void **state)
{
    (void)state;
    for (int32_t ignore = 0; ignore < 2; ignore++) {
        call *c = run_one("root ::= \"yes\" <|endoftext|>", NULL, ignore, 50);
        assert_int_equal(c->choices[0].finish, XMOE_FINISH_STOP);
        assert_memory_equal(c->choices[0].text, "yes", 4);
        assert_in_range(c->choices[0].count, 2, 4);
        assert_int_equal(c->choices[0].tokens[c->choices[0].count - 1], 256);
        free(c);
    }
    call *c = run_one("root ::= \"a\"", "<|endoftext|>", true, 90); /* before its trigger */
    assert_true(c->finish == XMOE_FINISH_STOP || c->finish == XMOE_FINISH_LENGTH);
    free(c);
}

static void a_triggered_grammar_holds_behind_its_trigger(void **state)
{
    (void)state;
    int32_t seen = 0;
    xmoe_engine *engine = engine_create_small();
    xmoe_grammar *grammar = compile("root ::= \"<\" [0-9]{2} \">\"", "e");
    for (int32_t n = 1; n < 40; n++) {
        call *c = grammar_call(n, grammar);
        call_run(engine, c);
        const told_choice *told = &c->choices[0];
        char text[sizeof told->text + 1] = {0};
        memcpy(text, told->text, told->text_length);
        const char *at = strchr(text, 'e');
        if (at != NULL && told->finish == XMOE_FINISH_STOP) {
            int number = 0, length = 0;
            assert_int_equal(sscanf(at + 1, "<%2d>%n", &number, &length), 1);
            assert_int_equal(length, 4);
            assert_int_equal(strlen(at), 5);
            seen++;
        }
        free(c);
    }
    assert_true(seen > 3);
    xmoe_grammar_free(grammar);
    xmoe_engine_free(engine);
}

/* Log-probabilities are those of the model, not of what the grammar leaves. */
static void log_probabilities_stay_the_models_own(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    xmoe_grammar *grammar = compile("root ::= \"q\" [\\x00-\\U0010FFFF]*", NULL);
    call *plain = grammar_call(2, NULL), *c = grammar_call(2, grammar);
    call_run(engine, plain);
    call_run(engine, c);
    assert_int_equal(c->choices[0].tokens[0], 'q');
    assert_memory_equal(c->choices[0].top[0], plain->choices[0].top[0],
                        sizeof plain->choices[0].top[0]);
    assert_true(c->choices[0].logprobs[0] < -1);
    free(plain);
    free(c);
    xmoe_grammar_free(grammar);
    xmoe_engine_free(engine);
}

static void what_cannot_be_is_an_error_that_says_so(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    xmoe_grammar *grammar = compile("root ::= \"a\"", NULL);
    xmoe_logit_bias ban = {'a', -100};
    call *c = grammar_call(1, grammar);
    c->params.sampling.logit_bias = &ban;
    c->params.sampling.logit_bias_count = 1;
    call_run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_ERROR);
    free(c);
    c = grammar_call(2, grammar); /* the engine goes on */
    call_run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_STOP);
    free(c);

    xmoe_model *ours = engine_model;
    xmoe_error error;
    assert_int_equal(engine_write_and_load(2), 0); /* another model, of the same vocabulary */
    xmoe_grammar *other = compile("root ::= \"a\"", NULL);
    c = grammar_call(1, other);
    assert_int_equal(xmoe_request_submit(engine, &c->params, &c->id, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "grammar");
    free(c);
    xmoe_grammar_free(other);
    xmoe_model_free(engine_model);
    engine_model = ours;
    xmoe_grammar_free(grammar);
    xmoe_engine_free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_are_json_whatever_the_weights_say),
        cmocka_unit_test(grammars_give_the_same_in_company_and_after_preemption),
        cmocka_unit_test(a_choice_ends_where_its_grammar_must),
        cmocka_unit_test(a_grammar_may_name_the_end),
        cmocka_unit_test(a_triggered_grammar_holds_behind_its_trigger),
        cmocka_unit_test(log_probabilities_stay_the_models_own),
        cmocka_unit_test(what_cannot_be_is_an_error_that_says_so),
    };
    return cmocka_run_group_tests(tests, engine_load_model, engine_free_model);
}
