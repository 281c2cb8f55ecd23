/*
 * test_server_json.c - the server's own JSON and text routines, without a server: what the checker
 * accepts and refuses, that writing and reading agree, and that a copied event is whole.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "../server/event.h"
#include "../server/json_check.h"
#include "../server/json_read.h"
#include "../server/json_write.h"

static bool accepted(const char *text)
{
    size_t where = 0;
    return xm_json_check(text, strlen(text), XM_JSON_VALUES, &where) == NULL;
}

static void checker_knows_the_grammar(void **state)
{
    (void)state;
    static const char *const good[] = {
        "0",
        "-0",
        "1.5e+3",
        "1E-2",
        "\"\"",
        "true",
        " [ ] ",
        "{ }",
        "[1, [2, [3]]]",
        "{\"a\": {\"b\": null}}",
        "\"\\u00e9\\ud83d\\ude00\\n\\/\"",
        "\"\xc3\xa9\xf0\x9f\x98\x80\xed\x9f\xbf\xee\x80\x80\"",
    };
    static const char *const bad[] = {
        "",
        " ",
        "-",
        "00",
        "1e",
        "1.e1",
        "+1",
        "tru",
        "truex",
        "nul",
        "[1 2]",
        "[,]",
        "[1,]",
        "{\"a\"}",
        "{\"a\":}",
        "{1: 2}",
        "\"\t\"",
        "\"",
        "\"\\\"",
        "\"\\u12\"",
        "\"\\ud800x\"",
        "[",
        "}",
        "1 2",
        "'a'",
        "\"\xc3\"",
        "\"\xe0\x80\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xf8\x88\x80\x80\x80\"",
        "1e400",
        "-1e400",
        "/* */ 1",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!accepted(good[i]))
            fail_msg("refused: %s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (accepted(bad[i]))
            fail_msg("accepted: %s", bad[i]);
    size_t where = 0;
    assert_non_null(xm_json_check("[1]\0", 4, XM_JSON_VALUES, &where));
    assert_int_equal(where, 3);
}

/* Every prefix of a good text is bad, and none is read past its end. */
static void checker_stops_at_the_end(void **state)
{
    (void)state;
    const char *text = "{\"a\": [1.5e3, true, \"\\ud83d\\ude00\xc3\xa9\"], \"b\": {\"c\": null}}";
    size_t length = strlen(text), where = 0;
    for (size_t cut = 0; cut < length; cut++) {
        char *copy = malloc(cut + 1); /* the sanitizer watches its end */
        assert_non_null(copy);
        memcpy(copy, text, cut);
        char *exact = realloc(copy, cut ? cut : 1);
        assert_non_null(xm_json_check(exact, cut, XM_JSON_VALUES, &where));
        free(exact);
    }
    assert_null(xm_json_check(text, length, XM_JSON_VALUES, &where));
}

static void depth_is_bounded(void **state)
{
    (void)state;
    char text[2 * XM_JSON_DEPTH + 8];
    for (int depth = XM_JSON_DEPTH; depth <= XM_JSON_DEPTH + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        assert_int_equal(accepted(text), depth == XM_JSON_DEPTH);
    }
}

static void numbers_survive(void **state)
{
    (void)state;
    static const double doubles[] = {0, 1, -1, 0.1, 1.0 / 3, DBL_MIN, DBL_MAX, 1e21, 123456789.125};
    static const float floats[] = {0, 0.9f, 1.0f / 3, FLT_MIN, FLT_MAX, 16777217.0f, 1e-30f};
    for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++) {
        xm_text text = {0};
        xm_json json = {&text, false};
        xm_json_double(&json, NULL, doubles[i]);
        assert_true(strtod(text.data, NULL) == doubles[i]);
        xm_text_free(&text);
    }
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        xm_text text = {0};
        xm_json json = {&text, false};
        xm_json_float(&json, NULL, floats[i]);
        assert_true(strtof(text.data, NULL) == floats[i]);
        assert_true(text.length <= 15);
        xm_text_free(&text);
    }
    xm_text text = {0};
    xm_json json = {&text, false};
    xm_json_open(&json, NULL, '[');
    xm_json_double(&json, NULL, NAN);
    xm_json_float(&json, NULL, INFINITY);
    xm_json_uint(&json, NULL, UINT64_MAX);
    xm_json_int(&json, NULL, INT64_MIN);
    xm_json_close(&json, ']');
    assert_string_equal(text.data, "[null,null,18446744073709551615,-9223372036854775808]");
    xm_text_free(&text);
}

/* All bytes, also where they are no text. */
static void strings_survive(void **state)
{
    (void)state;
    char bytes[256];
    for (int i = 0; i < 256; i++)
        bytes[i] = (char)i;
    xm_text text = {0}, expected = {0};
    xm_json json = {&text, false};
    xm_json_open(&json, NULL, '{');
    xm_json_bytes(&json, "a\"b", bytes + 1, 255);
    xm_json_string(&json, "none", NULL);
    xm_json_close(&json, '}');
    assert_true(accepted(text.data));
    xm_problem problem = {0};
    cJSON *tree = xm_json_parse(text.data, text.length, &problem);
    assert_non_null(tree);
    xm_text_add_utf8(&expected, bytes + 1, 255);
    const cJSON *member = xm_json_member(tree, "a\"b");
    assert_string_equal(member->valuestring, expected.data);
    assert_true(xm_text_is_utf8(expected.data, expected.length));
    assert_null(xm_json_member(tree, "none"));
    cJSON_Delete(tree);
    xm_text_free(&text);
    xm_text_free(&expected);
}

/* One U+FFFD for as much of a character as is there, one for each byte that never fits. */
static void broken_text_is_replaced(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        int characters; /* U+FFFD and those of the text */
        const char *text;
    } rows[] = {{"a\xe2\x82\xac", 2, "a\xe2\x82\xac"},
                {"\xe2\x82z", 2, "\xef\xbf\xbdz"},
                {"\xf0\x9f\x98", 1, "\xef\xbf\xbd"},
                {"\x80\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xc0\xaf", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xe0\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xf4\x90", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xe2\xe2\x82\xac", 2, "\xef\xbf\xbd\xe2\x82\xac"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        xm_text text = {0};
        xm_utf8_place place = {0};
        int begun = 0;
        xm_text_add_utf8(&text, rows[i].bytes, strlen(rows[i].bytes));
        assert_string_equal(text.data, rows[i].text);
        for (const char *byte = rows[i].bytes; *byte; byte++)
            begun += xm_utf8_begins(&place, (unsigned char)*byte);
        assert_int_equal(begun, rows[i].characters);
        xm_text_free(&text);
    }
}

static void whole_numbers_are_whole(void **state)
{
    (void)state;
    xm_problem problem = {0};
    const char *text = "[1, 1.5, 1e18, 9223372036854775807, -9223372036854775808, 3e0]";
    cJSON *tree = xm_json_parse(text, strlen(text), &problem);
    assert_non_null(tree);
    static const bool whole[] = {true, false, true, false, true, true};
    int64_t number = 0;
    for (int i = 0; i < 6; i++) /* 2^63 - 1 is 2^63 as a double, which does not fit */
        assert_int_equal(xm_json_whole(cJSON_GetArrayItem(tree, i), INT64_MIN, INT64_MAX, &number),
                         whole[i]);
    assert_int_equal(number, 3);
    cJSON_Delete(tree);
}

static void event_copies_are_whole(void **state)
{
    (void)state;
    uint64_t counts[] = {3, 0}, histogram[] = {0, 3, 0};
    double weights[] = {1.5, 0};
    int32_t dead[] = {1};
    xmoe_layer_usage layer = {.layer = 1,
                              .experts = 2,
                              .tokens = 3,
                              .activations = 3,
                              .active_histogram = histogram,
                              .counts = counts,
                              .weights = weights,
                              .dead = dead,
                              .dead_count = 1};
    xmoe_usage usage = {.tokens = 3, .layer_count = 1, .layers = &layer};
    uint16_t cells[] = {2, XMOE_ROUTED_UNKNOWN, 1}, experts[] = {1, 0, 1};
    float shares[] = {0.5f, 0.25f, 0.75f};
    xmoe_routed_experts routed = {.position_count = 3,
                                  .moe_layers = 1,
                                  .counts = cells,
                                  .experts = experts,
                                  .weights = shares};
    float logprobs[] = {NAN, -1, -2};
    xmoe_token_logprob top[] = {{1, -0.1f}, {2, -0.2f}, {3, -0.3f},
                                {4, -0.4f}, {5, -0.5f}, {6, -0.6f}};
    xmoe_request_summary summary = {.prompt_tokens = 3};
    xmoe_error error = {.message = "no luck"};
    char text[] = "text";
    xmoe_event event = {.kind = XMOE_EVENT_PROMPT,
                        .text = text,
                        .text_length = 4,
                        .prompt_logprobs = logprobs,
                        .prompt_top = top,
                        .top_count = 2,
                        .routed = &routed,
                        .usage = &usage,
                        .summary = &summary,
                        .error = &error};
    xm_event *copy = xm_event_copy(&event, 5, 3);
    assert_non_null(copy);
    memset(counts, 0xff, sizeof counts); /* nothing of the original may be needed */
    memset(cells, 0, sizeof cells);
    memset(top, 0, sizeof top);
    memset(text, 0, sizeof text);
    layer = (xmoe_layer_usage){0};
    routed = (xmoe_routed_experts){0};
    error = (xmoe_error){0};
    assert_int_equal(copy->prompt, 5);
    assert_memory_equal(copy->event.text, "text", 4);
    assert_true(copy->event.prompt_logprobs[2] == -2);
    assert_int_equal(copy->event.prompt_top[5].token, 6);
    assert_int_equal(copy->event.routed->counts[1], XMOE_ROUTED_UNKNOWN);
    assert_true(copy->event.routed->weights[2] == 0.75f);
    assert_int_equal(copy->event.usage->layers[0].counts[0], 3);
    assert_int_equal(copy->event.usage->layers[0].active_histogram[1], 3);
    assert_int_equal(copy->event.usage->layers[0].dead[0], 1);
    assert_int_equal(copy->event.summary->prompt_tokens, 3);
    assert_string_equal(copy->event.error->message, "no luck");

    xm_event_queue queue = {0};
    xm_event_push(&queue, copy);
    assert_int_equal(queue.bytes, copy->bytes);
    xm_event_push(&queue, xm_event_copy(&event, 6, 3));
    assert_ptr_equal(xm_event_pop(&queue), copy);
    free(copy);
    xm_event_clear(&queue);
    assert_null(queue.first);
    assert_int_equal(queue.bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checker_knows_the_grammar), cmocka_unit_test(checker_stops_at_the_end),
        cmocka_unit_test(depth_is_bounded),          cmocka_unit_test(numbers_survive),
        cmocka_unit_test(strings_survive),           cmocka_unit_test(broken_text_is_replaced),
        cmocka_unit_test(whole_numbers_are_whole),   cmocka_unit_test(event_copies_are_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
