/*
 * test_server_embeddings.c - /v1/embeddings and /embedding over sockets: forms of input and output,
 * what is refused, and that usage counts what was computed.
 */
#include "server_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1024 };

static server_child server;

static cJSON *embed(const char *body)
{
    return server_post_json(&server, "/v1/embeddings", body, 200);
}

/* Numbers of an array; how many. */
static int read_numbers(const cJSON *array, float *values)
{
    int count = 0;
    assert_true(cJSON_IsArray(array));
    for (const cJSON *item = array->child; item; item = item->next, count++) {
        assert_true(count < MOST && cJSON_IsNumber(item));
        values[count] = (float)item->valuedouble;
    }
    return count;
}

static void assert_length_1(const float *values, int count)
{
    double squares = 0;
    for (int i = 0; i < count; i++)
        squares += (double)values[i] * (double)values[i];
    assert_true(fabs(squares - 1) < 1e-5);
}

/* The float at an index of base64 text, by the alphabet's order. */
static float base64_float(const char *text, int index)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char bytes[4];
    float value;
    for (int i = 0; i < 4; i++) {
        int bit = (index * 4 + i) * 8, digit = bit / 6;
        unsigned pair = (unsigned)(strchr(digits, text[digit]) - digits) << 6;
        pair |= text[digit + 1] == '=' ? 0 : (unsigned)(strchr(digits, text[digit + 1]) - digits);
        bytes[i] = (unsigned char)(pair >> (4 - bit % 6));
    }
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void forms_of_input_agree(void **state)
{
    (void)state;
    cJSON *ids = server_post_json(&server, "/tokenize", "{\"content\": \"some words\"}", 200);
    char *list = cJSON_PrintUnformatted(json_at(ids, "tokens"));
    char body[512];
    float one[MOST], other[MOST];
    cJSON *first = embed("{\"input\": \"some words\"}");
    int count = read_numbers(json_at(first, "data.0.embedding"), one);
    assert_true(count > 1);
    assert_length_1(one, count);
    assert_string_equal(json_text(first, "object"), "list");
    assert_string_equal(json_text(first, "data.0.object"), "embedding");
    assert_true(json_number(first, "usage.prompt_tokens") ==
                cJSON_GetArraySize(json_at(ids, "tokens")));
    assert_true(json_number(first, "usage.total_tokens") ==
                json_number(first, "usage.prompt_tokens"));
    snprintf(body, sizeof body, "{\"input\": [[1, 2, 3], %s]}", list);
    cJSON *batch = embed(body);
    snprintf(body, sizeof body, "{\"input\": %s, \"encoding_format\": \"float\"}", list);
    cJSON *tokens = embed(body);
    cJSON *strings = embed("{\"input\": [\"x\", \"some words\"]}");
    const cJSON *same[] = {json_at(batch, "data.1.embedding"), json_at(tokens, "data.0.embedding"),
                           json_at(strings, "data.1.embedding")};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(read_numbers(same[i], other), count);
        assert_memory_equal(one, other, (size_t)count * sizeof *one);
    }
    assert_true(json_number(batch, "data.1.index") == 1);
    read_numbers(json_at(strings, "data.0.embedding"), other);
    assert_memory_not_equal(one, other, (size_t)count * sizeof *one);
    free(list);
    cJSON_Delete(ids);
    cJSON_Delete(first);
    cJSON_Delete(batch);
    cJSON_Delete(tokens);
    cJSON_Delete(strings);
}

static void forms_of_output_agree(void **state)
{
    (void)state;
    float numbers[MOST], fewer[MOST], raw[MOST];
    cJSON *plain = embed("{\"input\": \"abc def\"}");
    cJSON *base64 = embed("{\"input\": \"abc def\", \"encoding_format\": \"base64\"}");
    cJSON *cut = embed("{\"input\": \"abc def\", \"dimensions\": 5}");
    cJSON *list = server_post_json(&server, "/embedding",
                                   "{\"content\": \"abc def\", \"embd_normalize\": -1}", 200);
    int count = read_numbers(json_at(plain, "data.0.embedding"), numbers);
    const char *text = json_text(base64, "data.0.embedding");
    assert_int_equal(strlen(text), (4 * count + 2) / 3 * 4);
    for (int i = 0; i < count; i++)
        assert_true(base64_float(text, i) == numbers[i]);
    assert_int_equal(read_numbers(json_at(cut, "data.0.embedding"), fewer), 5);
    assert_length_1(fewer, 5);
    assert_int_equal(read_numbers(json_at(list, "0.embedding.0"), raw), count);
    double squares = 0;
    for (int i = 0; i < count; i++)
        squares += (double)raw[i] * (double)raw[i];
    for (int i = 0; i < count; i++)
        assert_true(fabs((double)raw[i] / sqrt(squares) - (double)numbers[i]) < 1e-6);
    for (int i = 0; i < 5; i++)
        assert_true(fabs((double)fewer[i] / (double)fewer[0] -
                         (double)numbers[i] / (double)numbers[0]) < 1e-4);
    cJSON_Delete(plain);
    cJSON_Delete(base64);
    cJSON_Delete(cut);
    cJSON_Delete(list);
}

/* Poolings and routings change the vector; repeated, each is what it was. */
static void options_matter(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"input\": \"a few words more\"}",
        "{\"input\": \"a few words more\", \"pooling\": \"last\"}",
        "{\"input\": \"a few words more\", \"pooling\": \"cls\"}",
        "{\"input\": \"a few words more\", \"router\": {\"type\": \"top_k\", \"top_k\": 1}}"};
    float vectors[4][MOST] = {{0}}, again[MOST];
    for (int i = 0; i < 4; i++)
        for (int repeat = 0; repeat < 2; repeat++) {
            cJSON *answer = embed(bodies[i]);
            int count =
                read_numbers(json_at(answer, "data.0.embedding"), repeat ? again : vectors[i]);
            if (repeat)
                assert_memory_equal(vectors[i], again, (size_t)count * sizeof *again);
            for (int j = 0; j < i; j++)
                assert_memory_not_equal(vectors[i], vectors[j], (size_t)count * sizeof *again);
            cJSON_Delete(answer);
        }
}

/* Every position counts once, as in generation. */
static void usage_is_counted(void **state)
{
    (void)state;
    cJSON *before = server_get_json(&server, "/v1/experts/usage?layer=1", 200);
    cJSON *answer = embed("{\"input\": [[1, 2, 3, 4], [5, 6]], \"expert_usage\": true}");
    cJSON *after = server_get_json(&server, "/v1/experts/usage?layer=1", 200);
    assert_true(json_number(answer, "usage.prompt_tokens") == 6);
    assert_true(json_number(answer, "expert_usage.0.layers.0.tokens") == 4);
    assert_true(json_number(answer, "expert_usage.1.layers.0.tokens") == 2);
    assert_true(json_number(answer, "timings.predicted_n") == 0);
    assert_true(json_number(after, "layers.0.tokens") - json_number(before, "layers.0.tokens") ==
                6);
    cJSON_Delete(before);
    cJSON_Delete(answer);
    cJSON_Delete(after);
}

static void faults_name_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *body, *param;
    } wrong[] = {
        {"{}", "input"},
        {"{\"input\": null}", "input"},
        {"{\"input\": \"\"}", "input"},
        {"{\"input\": [\"a\", \"\"]}", "input"},
        {"{\"input\": []}", "input"},
        {"{\"input\": [[]]}", "input"},
        {"{\"input\": 3}", "input"},
        {"{\"input\": [1, \"a\"]}", "input"},
        {"{\"input\": [99999]}", "input"},
        {"{\"input\": \"a\", \"encoding_format\": \"int8\"}", "encoding_format"},
        {"{\"input\": \"a\", \"dimensions\": 0}", "dimensions"},
        {"{\"input\": \"a\", \"dimensions\": 100000}", "dimensions"},
        {"{\"input\": \"a\", \"pooling\": \"max\"}", "pooling"},
        {"{\"input\": \"a\", \"router\": {\"threshold\": 2}}", "router.threshold"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cJSON *answer = server_post_json(&server, "/v1/embeddings", wrong[i].body, 400);
        assert_string_equal(json_text(answer, "error.param"), wrong[i].param);
        cJSON_Delete(answer);
    }
    cJSON *answer =
        server_post_json(&server, "/embedding", "{\"content\": \"a\", \"embd_normalize\": 1}", 400);
    assert_string_equal(json_text(answer, "error.param"), "embd_normalize");
    cJSON_Delete(answer);
    cJSON_Delete(server_post_json(&server, "/v1/embeddings",
                                  "{\"input\": \"a\", \"model\": \"none\"}", 404));
}

/* A text of the whole context is taken, in pieces; one token more is refused. */
static void context_is_the_limit(void **state)
{
    (void)state;
    char body[4096];
    for (int tokens = 512; tokens <= 513; tokens++) {
        size_t used = (size_t)snprintf(body, sizeof body, "{\"input\": [");
        for (int i = 0; i < tokens; i++)
            used +=
                (size_t)snprintf(body + used, sizeof body - used, "%s%d", i ? "," : "", i % 250);
        snprintf(body + used, sizeof body - used, "]}");
        cJSON *answer =
            server_post_json(&server, "/v1/embeddings", body, tokens == 512 ? 200 : 400);
        if (tokens == 512)
            assert_true(json_number(answer, "usage.prompt_tokens") == 512);
        else
            assert_string_equal(json_text(answer, "error.code"), "context_length_exceeded");
        cJSON_Delete(answer);
    }
}

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server = server_start((const char *const[]){NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, 15);
    return server_remove_model(state) != 0 || status != 0 ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_of_input_agree),  cmocka_unit_test(forms_of_output_agree),
        cmocka_unit_test(options_matter),        cmocka_unit_test(usage_is_counted),
        cmocka_unit_test(faults_name_the_field), cmocka_unit_test(context_is_the_limit),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
