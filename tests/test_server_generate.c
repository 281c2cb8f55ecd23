/*
 * test_server_generate.c - /v1/completions and /v1/chat/completions over real sockets: every field
 * that changes the answer, and what the answer says.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server_fixture.h"

static server_child server;

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    server = server_start(NULL);
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, SIGTERM);
    return server_remove_model(state) == 0 && status == 0 ? 0 : -1;
}

static cJSON *complete(const char *body)
{
    return server_post_json(&server, "/v1/completions", body, 200);
}

static cJSON *chat(const char *body)
{
    return server_post_json(&server, "/v1/chat/completions", body, 200);
}

static void completion_has_openai_shape(void **state)
{
    (void)state;
    cJSON *answer = complete("{\"model\": \"model\", \"prompt\": \"Once upon\", \"seed\": 3}");
    assert_string_equal(json_text(answer, "object"), "text_completion");
    assert_memory_equal(json_text(answer, "id"), "cmpl-", 5);
    assert_string_equal(json_text(answer, "model"), "model");
    assert_true(json_number(answer, "created") > 1.6e9);
    assert_int_equal(cJSON_GetArraySize(json_at(answer, "choices")), 1);
    assert_true(cJSON_IsNull(json_at(answer, "choices.0.logprobs")));
    const char *finish = json_text(answer, "choices.0.finish_reason");
    assert_true(strcmp(finish, "length") == 0 || strcmp(finish, "stop") == 0);
    double prompt = json_number(answer, "usage.prompt_tokens");
    double generated = json_number(answer, "usage.completion_tokens");
    assert_true(prompt > 0 && generated >= 1 && generated <= 16);
    assert_true(json_number(answer, "usage.total_tokens") == prompt + generated);
    assert_true(json_number(answer, "usage.prompt_tokens_details.cached_tokens") == 0);
    assert_true(json_number(answer, "timings.predicted_n") == generated);
    assert_true(json_number(answer, "timings.prompt_n") == prompt);
    assert_true(json_number(answer, "timings.mean_active_experts") >= 1);
    assert_true(json_number(answer, "timings.expert_bytes_per_token") > 0);
    assert_string_equal(json_text(answer, "router.type"), "threshold");
    assert_non_null(json_text(answer, "system_fingerprint"));
    cJSON_Delete(answer);
}

static void same_seed_same_text(void **state)
{
    (void)state;
    const char *body =
        "{\"prompt\": \"abc\", \"seed\": 11, \"max_tokens\": 24, \"ignore_eos\": true}";
    cJSON *first = complete(body), *second = complete(body);
    assert_string_equal(json_text(first, "choices.0.text"), json_text(second, "choices.0.text"));
    cJSON *other = complete("{\"prompt\": \"abc\", \"max_tokens\": 24, \"ignore_eos\": true}");
    cJSON *another = complete("{\"prompt\": \"abc\", \"max_tokens\": 24, \"ignore_eos\": true}");
    assert_string_not_equal(json_text(other, "choices.0.text"),
                            json_text(another, "choices.0.text"));
    cJSON_Delete(first);
    cJSON_Delete(second);
    cJSON_Delete(other);
    cJSON_Delete(another);
}

/* Each form of the same prompt gives the same text; a batch gives each its own index. */
static void prompt_forms_agree(void **state)
{
    (void)state;
    cJSON *ids = server_post_json(&server, "/tokenize", "{\"content\": \"hello\"}", 200);
    char *list = cJSON_PrintUnformatted(json_at(ids, "tokens"));
    char bodies[4][256];
    const char *rest = "\"max_tokens\": 6, \"temperature\": 0, \"ignore_eos\": true}";
    snprintf(bodies[0], 256, "{\"prompt\": \"hello\", %s", rest);
    snprintf(bodies[1], 256, "{\"prompt\": [\"hello\"], %s", rest);
    snprintf(bodies[2], 256, "{\"prompt\": %s, %s", list, rest);
    snprintf(bodies[3], 256, "{\"prompt\": [[1, 2], %s], \"n\": 2, %s", list, rest);
    cJSON *answers[4];
    for (int i = 0; i < 4; i++)
        answers[i] = complete(bodies[i]);
    const char *expected = json_text(answers[0], "choices.0.text");
    assert_string_equal(json_text(answers[1], "choices.0.text"), expected);
    assert_string_equal(json_text(answers[2], "choices.0.text"), expected);
    assert_int_equal(cJSON_GetArraySize(json_at(answers[3], "choices")), 4);
    for (int i = 0; i < 4; i++) {
        char path[32];
        snprintf(path, sizeof path, "choices.%d.index", i);
        assert_true(json_number(answers[3], path) == i);
    }
    assert_string_equal(json_text(answers[3], "choices.2.text"), expected);
    assert_string_equal(json_text(answers[3], "choices.3.text"), expected);
    assert_true(json_number(answers[3], "usage.completion_tokens") == 24);
    for (int i = 0; i < 4; i++)
        cJSON_Delete(answers[i]);
    cJSON_Delete(ids);
    free(list);
}

static void echo_and_logprobs(void **state)
{
    (void)state;
    cJSON *answer = complete("{\"prompt\": \"hello\", \"echo\": true, \"logprobs\": 3, \"seed\": 5,"
                             " \"max_tokens\": 4, \"ignore_eos\": true}");
    const cJSON *logprobs = json_at(answer, "choices.0.logprobs");
    int count = cJSON_GetArraySize(json_at(logprobs, "tokens"));
    assert_memory_equal(json_text(answer, "choices.0.text"), "hello", 5);
    assert_true(count == json_number(answer, "usage.total_tokens"));
    assert_int_equal(cJSON_GetArraySize(json_at(logprobs, "token_logprobs")), count);
    assert_int_equal(cJSON_GetArraySize(json_at(logprobs, "top_logprobs")), count);
    assert_int_equal(cJSON_GetArraySize(json_at(logprobs, "text_offset")), count);
    assert_true(cJSON_IsNull(json_at(logprobs, "token_logprobs.0")));
    for (int i = 1; i < count; i++) {
        char path[48];
        snprintf(path, sizeof path, "token_logprobs.%d", i);
        assert_true(json_number(logprobs, path) <= 0);
        snprintf(path, sizeof path, "top_logprobs.%d", i);
        int tops = cJSON_GetArraySize(json_at(logprobs, path));
        assert_true(tops == 3 || tops == 4); /* 4: the chosen one is not among the best */
    }
    assert_true(json_number(logprobs, "text_offset.0") == 0);
    cJSON_Delete(answer);

    answer =
        complete("{\"prompt\": \"hello\", \"echo\": true, \"logprobs\": 0, \"max_tokens\": 0}");
    assert_string_equal(json_text(answer, "choices.0.text"), "hello");
    assert_true(json_number(answer, "usage.completion_tokens") == 0);
    assert_true(cJSON_IsNull(json_at(answer, "choices.0.logprobs.top_logprobs")));
    cJSON_Delete(answer);

    answer = complete("{\"prompt\": [[97, 98], [104, 105]], \"echo\": true, \"max_tokens\": 1}");
    assert_memory_equal(json_text(answer, "choices.0.text"), "ab", 2);
    assert_memory_equal(json_text(answer, "choices.1.text"), "hi", 2);
    cJSON_Delete(answer);
}

/* The text from its character number `offset` on. */
static const char *from_character(const char *text, double offset)
{
    for (; offset > 0 && *text; offset--)
        for (text++; ((unsigned char)*text & 0xc0) == 0x80; text++)
            ;
    return text;
}

/* Tokens that are text stand where their offsets say, also behind bytes that became U+FFFD. */
static void offsets_point_into_the_text(void **state)
{
    (void)state;
    const char *prompts[] = {"\"h\\u00e9 \\ud83d\\ude00 x\"", "[226,130,97,128,255,240,159,98,195]",
                             "\"\""};
    for (int echo = 0; echo < 2; echo++) {
        for (size_t p = 0; p < 3; p++) {
            char body[256];
            snprintf(body, sizeof body,
                     "{\"prompt\": %s, \"echo\": %s, \"logprobs\": 1, \"seed\": 2, \"n\": 2,"
                     " \"max_tokens\": 60, \"temperature\": 2, \"ignore_eos\": true,"
                     " \"logit_bias\": {\"0\": -100}}",
                     prompts[p], echo ? "true" : "false");
            cJSON *answer = complete(body);
            const char *text = json_text(answer, "choices.1.text");
            const cJSON *logprobs = json_at(answer, "choices.1.logprobs");
            const cJSON *offset = json_at(logprobs, "text_offset")->child;
            const cJSON *token = json_at(logprobs, "tokens")->child;
            if (echo && p == 2) { /* the start token is not in the text */
                assert_true(offset->valuedouble == 0 && offset->next->valuedouble == 0);
                token = token->next;
                offset = offset->next;
            }
            for (; token; token = token->next, offset = offset->next) {
                const char *at = from_character(text, offset->valuedouble);
                size_t length = strlen(token->valuestring);
                if (strncmp(token->valuestring, "bytes:", 6) != 0 &&
                    strncmp(at, token->valuestring, length) != 0)
                    fail_msg("%s: '%s' is not at %g", body, token->valuestring,
                             offset->valuedouble);
            }
            cJSON_Delete(answer);
        }
    }
}

/* What is generated and not shown takes no place in the text. */
static void hidden_tokens_take_no_place(void **state)
{
    (void)state;
    cJSON *answer = complete("{\"prompt\": \"a\", \"max_tokens\": 3, \"logprobs\": 0,"
                             " \"ignore_eos\": true, \"logit_bias\": {\"256\": 100}}");
    assert_string_equal(json_text(answer, "choices.0.text"), "");
    const cJSON *offset = json_at(answer, "choices.0.logprobs.text_offset");
    assert_int_equal(cJSON_GetArraySize(offset), 3);
    for (offset = offset->child; offset; offset = offset->next)
        assert_true(offset->valuedouble == 0);
    cJSON_Delete(answer);
}

/* The token of a NUL byte has a name too. */
static void nul_has_a_name(void **state)
{
    (void)state;
    http_answer answer = server_post(&server, "/v1/completions",
                                     "{\"prompt\": \"a\", \"max_tokens\": 1, \"logprobs\": 1,"
                                     " \"logit_bias\": {\"0\": 100}}");
    assert_non_null(strstr(answer.body, "\"tokens\":[\"\\u0000\"]"));
    assert_non_null(strstr(answer.body, "\"\\u0000\":-"));
    http_free(&answer);
}

/* The choices of best_of are those of n, so the best can be found out from all of them. */
static void best_of_takes_the_likeliest(void **state)
{
    (void)state;
    cJSON *all = complete("{\"prompt\": \"abc\", \"n\": 6, \"seed\": 9, \"max_tokens\": 5,"
                          " \"logprobs\": 0, \"ignore_eos\": true}");
    cJSON *best = complete("{\"prompt\": \"abc\", \"n\": 2, \"best_of\": 6, \"seed\": 9,"
                           " \"max_tokens\": 5, \"logprobs\": 0, \"ignore_eos\": true}");
    double sums[6], top = -INFINITY;
    int winner = -1;
    for (int c = 0; c < 6; c++) {
        sums[c] = 0;
        for (int t = 0; t < 5; t++) {
            char path[64];
            snprintf(path, sizeof path, "choices.%d.logprobs.token_logprobs.%d", c, t);
            sums[c] += json_number(all, path);
        }
        if (sums[c] > top) {
            top = sums[c];
            winner = c;
        }
    }
    char path[32];
    snprintf(path, sizeof path, "choices.%d.text", winner);
    assert_int_equal(cJSON_GetArraySize(json_at(best, "choices")), 2);
    assert_string_equal(json_text(best, "choices.0.text"), json_text(all, path));
    assert_true(json_number(best, "choices.1.index") == 1);
    assert_true(json_number(best, "usage.completion_tokens") == 30);
    cJSON_Delete(all);
    cJSON_Delete(best);
}

static void stop_ends_the_text(void **state)
{
    (void)state;
    cJSON *free_run = complete("{\"prompt\": \"q\", \"seed\": 2, \"max_tokens\": 40,"
                               " \"logit_bias\": {\"97\": 100, \"98\": 99}}");
    const char *text = json_text(free_run, "choices.0.text");
    assert_non_null(strstr(text, "ab")); /* the two are about equally likely */
    cJSON *stopped =
        complete("{\"prompt\": \"q\", \"seed\": 2, \"max_tokens\": 40, \"stop\": [\"zz\","
                 " \"ab\"], \"logit_bias\": {\"97\": 100, \"98\": 99}}");
    const char *cut = json_text(stopped, "choices.0.text");
    assert_null(strstr(cut, "ab"));
    assert_memory_equal(cut, text, strlen(cut));
    assert_int_equal(strstr(text, "ab") - text, strlen(cut));
    assert_string_equal(json_text(stopped, "choices.0.finish_reason"), "stop");
    cJSON_Delete(free_run);
    cJSON_Delete(stopped);
}

static void logit_bias_bans(void **state)
{
    (void)state;
    cJSON *answer = complete("{\"prompt\": \"x\", \"temperature\": 0, \"max_tokens\": 8,"
                             " \"logit_bias\": {\"104\": 100}}");
    assert_string_equal(json_text(answer, "choices.0.text"), "hhhhhhhh");
    cJSON_Delete(answer);
}

static void chat_has_openai_shape(void **state)
{
    (void)state;
    cJSON *answer =
        chat("{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"},"
             " {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"Hi\"}]}],"
             " \"max_completion_tokens\": 5, \"seed\": 1, \"n\": 2, \"logprobs\": true,"
             " \"top_logprobs\": 2, \"ignore_eos\": true}");
    assert_string_equal(json_text(answer, "object"), "chat.completion");
    assert_memory_equal(json_text(answer, "id"), "chatcmpl-", 9);
    assert_string_equal(json_text(answer, "choices.0.message.role"), "assistant");
    json_text(answer, "choices.1.message.content");
    assert_string_equal(json_text(answer, "choices.0.finish_reason"), "length");
    const cJSON *content = json_at(answer, "choices.0.logprobs.content");
    assert_int_equal(cJSON_GetArraySize(content), 5);
    assert_true(json_number(content, "0.logprob") <= 0);
    json_text(content, "0.token");
    assert_true(cJSON_GetArraySize(json_at(content, "0.bytes")) > 0);
    assert_int_equal(cJSON_GetArraySize(json_at(content, "4.top_logprobs")), 2);
    assert_true(json_number(content, "4.top_logprobs.0.logprob") >=
                json_number(content, "4.top_logprobs.1.logprob"));
    cJSON_Delete(answer);
}

/* The template is the documented one, and a chat is a completion of it. */
static void chat_is_its_template(void **state)
{
    (void)state;
    const char *messages =
        "{\"messages\": [{\"role\": \"developer\", \"content\": \"A\"}, {\"role\":"
        " \"user\", \"content\": \"B\"}, {\"role\": \"assistant\", \"content\":"
        " \"C\"}, {\"role\": \"tool\", \"content\": \"D\"}]}";
    cJSON *prompt = server_post_json(&server, "/apply-template", messages, 200);
    assert_string_equal(json_text(prompt, "prompt"),
                        "System: A\nUser: B\nAssistant: C\nTool: D\nAssistant:");
    cJSON_Delete(prompt);
    cJSON *said =
        chat("{\"messages\": [{\"role\": \"user\", \"content\": \"B\"}], \"max_tokens\": 6,"
             " \"temperature\": 0, \"logit_bias\": {\"104\": 100}}");
    cJSON *written = complete("{\"prompt\": \"User: B\\nAssistant:\", \"max_tokens\": 6,"
                              " \"temperature\": 0, \"logit_bias\": {\"104\": 100}}");
    assert_string_equal(json_text(said, "choices.0.message.content"), "hhhhhh");
    assert_true(json_number(said, "usage.prompt_tokens") ==
                json_number(written, "usage.prompt_tokens"));
    cJSON_Delete(said);
    cJSON_Delete(written);
}

/* The identities of a request's own usage, for prompt_tokens + completion_tokens - 1 positions. */
static void expert_usage_counts_the_request(void **state)
{
    (void)state;
    cJSON *answer =
        complete("{\"prompt\": \"usage of experts\", \"expert_usage\": true, \"seed\": 4,"
                 " \"max_tokens\": 5, \"cache_prompt\": false, \"ignore_eos\": true}");
    double positions = json_number(answer, "usage.total_tokens") - 1;
    const cJSON *usage = json_at(answer, "expert_usage");
    assert_string_equal(json_text(usage, "object"), "experts.usage");
    assert_int_equal(cJSON_GetArraySize(json_at(usage, "layers")), 2);
    for (const cJSON *layer = json_at(usage, "layers")->child; layer; layer = layer->next) {
        double counts = 0, tokens = 0, activations = 0;
        for (int i = 0; i <= 8; i++) {
            double bin = cJSON_GetArrayItem(json_at(layer, "active_histogram"), i)->valuedouble;
            tokens += bin;
            activations += i * bin;
            if (i < 8)
                counts += cJSON_GetArrayItem(json_at(layer, "counts"), i)->valuedouble;
        }
        assert_true(tokens == positions && json_number(layer, "tokens") == positions);
        assert_true(counts == activations && json_number(layer, "activations") == counts);
    }
    cJSON_Delete(answer);
}

static void router_of_the_request(void **state)
{
    (void)state;
    cJSON *dense = complete("{\"prompt\": \"abcd\", \"max_tokens\": 3, \"ignore_eos\": true,"
                            " \"router\": {\"type\": \"dense\"}}");
    assert_true(json_number(dense, "timings.mean_active_experts") == 8);
    assert_string_equal(json_text(dense, "router.type"), "dense");
    cJSON_Delete(dense);
    cJSON *mixed =
        complete("{\"prompt\": \"abcd\", \"max_tokens\": 3, \"ignore_eos\": true, \"router\":"
                 " {\"top_k\": 2, \"layers\": {\"3\": {\"top_k\": 4}}}}");
    assert_true(json_number(mixed, "timings.mean_active_experts") == 3);
    assert_true(json_number(mixed, "router.top_k") == 2);
    assert_true(json_number(mixed, "router.layers.3.top_k") == 4);
    cJSON_Delete(mixed);
    cJSON *capped = complete("{\"prompt\": \"abcd\", \"max_tokens\": 3, \"ignore_eos\": true,"
                             " \"router\": {\"threshold\": 1, \"max_experts\": 3}}");
    assert_true(json_number(capped, "timings.mean_active_experts") == 3);
    cJSON_Delete(capped);
}

static void routed_experts_per_position(void **state)
{
    (void)state;
    cJSON *answer =
        complete("{\"prompt\": \"wxyz\", \"max_tokens\": 4, \"ignore_eos\": true, \"n\": 2,"
                 " \"routed_experts\": true, \"cache_prompt\": false,"
                 " \"router\": {\"type\": \"top_k\", \"top_k\": 3}}");
    const cJSON *first = json_at(answer, "choices.0.routed_experts");
    const cJSON *second = json_at(answer, "choices.1.routed_experts");
    int prompt = (int)json_number(answer, "usage.prompt_tokens");
    assert_true(json_number(first, "first_position") == 0);
    assert_true(json_number(first, "layers.0") == 1 && json_number(first, "layers.1") == 3);
    assert_int_equal(cJSON_GetArraySize(json_at(first, "experts")), prompt + 3);
    assert_true(json_number(second, "first_position") == prompt);
    assert_int_equal(cJSON_GetArraySize(json_at(second, "experts")), 3);
    for (const cJSON *position = json_at(first, "experts")->child; position;
         position = position->next) {
        assert_int_equal(cJSON_GetArraySize(position), 2);
        assert_int_equal(cJSON_GetArraySize(position->child), 3);
    }
    assert_true(json_number(first, "weights.0.0.0") >= json_number(first, "weights.0.0.1"));
    cJSON_Delete(answer);
}

static void cached_prompt_is_told(void **state)
{
    (void)state;
    char body[512], text[200];
    memset(text, 'c', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    snprintf(body, sizeof body,
             "{\"prompt\": \"%s\", \"max_tokens\": 2, \"temperature\": 0, \"ignore_eos\": true}",
             text);
    cJSON *cold = complete(body), *warm = complete(body);
    assert_true(json_number(cold, "usage.prompt_tokens_details.cached_tokens") == 0);
    double cached = json_number(warm, "usage.prompt_tokens_details.cached_tokens");
    assert_true(cached > 0);
    assert_true(json_number(warm, "timings.cache_n") == cached);
    assert_true(json_number(warm, "timings.prompt_n") + cached ==
                json_number(warm, "usage.prompt_tokens"));
    assert_string_equal(json_text(cold, "choices.0.text"), json_text(warm, "choices.0.text"));
    cJSON_Delete(cold);
    cJSON_Delete(warm);
}

static void empty_prompt_starts_a_text(void **state)
{
    (void)state;
    cJSON *answer = complete("{\"max_tokens\": 2}");
    assert_true(json_number(answer, "usage.prompt_tokens") == 1);
    cJSON_Delete(answer);
    answer = complete("{\"prompt\": \"\", \"max_tokens\": 2, \"seed\": null, \"stop\": null}");
    assert_true(json_number(answer, "usage.prompt_tokens") == 1);
    cJSON_Delete(answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completion_has_openai_shape),
        cmocka_unit_test(same_seed_same_text),
        cmocka_unit_test(prompt_forms_agree),
        cmocka_unit_test(echo_and_logprobs),
        cmocka_unit_test(offsets_point_into_the_text),
        cmocka_unit_test(hidden_tokens_take_no_place),
        cmocka_unit_test(nul_has_a_name),
        cmocka_unit_test(best_of_takes_the_likeliest),
        cmocka_unit_test(stop_ends_the_text),
        cmocka_unit_test(logit_bias_bans),
        cmocka_unit_test(chat_has_openai_shape),
        cmocka_unit_test(chat_is_its_template),
        cmocka_unit_test(expert_usage_counts_the_request),
        cmocka_unit_test(router_of_the_request),
        cmocka_unit_test(routed_experts_per_position),
        cmocka_unit_test(cached_prompt_is_told),
        cmocka_unit_test(empty_prompt_starts_a_text),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
