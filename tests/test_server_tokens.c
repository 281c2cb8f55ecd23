/*
 * test_server_tokens.c - tokens over sockets: special tokens give text only where it is asked for,
 * and a SentencePiece model's texts come back from /detokenize as they went into /tokenize.
 */
#include "server_fixture.h"

#include "xmoe.h"

#include <stdio.h>
#include <string.h>

enum { VOCABULARY = 300, CONTROL = 299, BYTES = 3, LETTERS = 259 };

static server_child server;

/* <unk>, <s>, </s>, the bytes, then pieces: a space, letters, two words, and a control token. */
static void write_sentencepiece(xm_gguf_writer *writer)
{
    static char memory[VOCABULARY][16];
    xm_string tokens[VOCABULARY];
    int32_t types[VOCABULARY];
    float scores[VOCABULARY];
    for (int i = 0; i < VOCABULARY; i++) {
        char *text = memory[i];
        types[i] = i == 0 ? 2 : i < BYTES || i == CONTROL ? 3 : i < LETTERS ? 6 : 1;
        scores[i] = -(float)i;
        if (i < BYTES)
            snprintf(text, 16, "%s", i == 0 ? "<unk>" : i == 1 ? "<s>" : "</s>");
        else if (i < LETTERS)
            snprintf(text, 16, "<0x%02X>", (unsigned)(i - BYTES));
        else if (i == LETTERS)
            snprintf(text, 16, "\xe2\x96\x81"); /* the block that stands for a space */
        else if (i <= LETTERS + 26)
            snprintf(text, 16, "%c", 'a' + i - LETTERS - 1);
        else if (i == CONTROL)
            snprintf(text, 16, "<control>");
        else
            snprintf(text, 16, "\xe2\x96\x81%c", 'a' + i - LETTERS - 27);
        tokens[i] = (xm_string){text, strlen(text)};
    }
    xm_gguf_writer_string(writer, "tokenizer.ggml.model", "llama");
    xm_gguf_writer_strings(writer, "tokenizer.ggml.tokens", tokens, VOCABULARY);
    xm_gguf_writer_i32s(writer, "tokenizer.ggml.token_type", types, VOCABULARY);
    xm_gguf_writer_f32s(writer, "tokenizer.ggml.scores", scores, VOCABULARY);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.bos_token_id", 1);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", 2);
}

static void expect_round_trip(const char *content, bool add_special, const char *expected)
{
    char body[512];
    snprintf(body, sizeof body, "{\"content\": \"%s\", \"add_special\": %s}", content,
             add_special ? "true" : "false");
    cJSON *split = server_post_json(&server, "/tokenize", body, 200);
    char *list = cJSON_PrintUnformatted(json_at(split, "tokens"));
    snprintf(body, sizeof body, "{\"tokens\": %s}", list);
    cJSON *joined = server_post_json(&server, "/detokenize", body, 200);
    assert_string_equal(json_text(joined, "content"), expected);
    cJSON_free(list);
    cJSON_Delete(split);
    cJSON_Delete(joined);
}

static void texts_come_back(void **state)
{
    (void)state;
    expect_round_trip("a b", false, "a b");
    expect_round_trip(" a b", false, " a b");
    expect_round_trip("", false, "");
    expect_round_trip("a b", true, "<s>a b");
    /* A space that encoding did not add stays. */
    cJSON *joined = server_post_json(&server, "/detokenize", "{\"tokens\": [260, 259, 261]}", 200);
    assert_string_equal(json_text(joined, "content"), "a b");
    cJSON_Delete(joined);
}

/* Generation continues a text: its first space is the model's own. */
static void generated_spaces_stay(void **state)
{
    (void)state;
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"prompt\": \"a\", \"max_tokens\": 2, \"temperature\": 0, "
                                     "\"logit_bias\": {\"286\": 100}}",
                                     200);
    assert_string_equal(json_text(answer, "choices.0.text"), " a a");
    cJSON_Delete(answer);
}

/* Neither <s> nor the space that encoding adds is in the text. */
static void offsets_leave_out_what_was_added(void **state)
{
    (void)state;
    static const double expected[] = {0, 0, 1, 3};
    cJSON *answer = server_post_json(&server, "/v1/completions",
                                     "{\"prompt\": \"a b\", \"max_tokens\": 1, \"echo\": true,"
                                     " \"logprobs\": 0, \"logit_bias\": {\"286\": 100}}",
                                     200);
    assert_string_equal(json_text(answer, "choices.0.text"), "a b a");
    const cJSON *offset = json_at(answer, "choices.0.logprobs.text_offset");
    assert_int_equal(cJSON_GetArraySize(offset), 4);
    offset = offset->child;
    for (int i = 0; i < 4; i++, offset = offset->next)
        assert_true(offset->valuedouble == expected[i]);
    cJSON_Delete(answer);
}

static void special_tokens_are_silent(void **state)
{
    (void)state;
    static const struct {
        const char *field, *text;
    } cases[] = {{"", ""},
                 {", \"skip_special_tokens\": true", ""},
                 {", \"skip_special_tokens\": false", "<control><control>"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[256];
        snprintf(body, sizeof body,
                 "{\"prompt\": \"a\", \"max_tokens\": 2, \"temperature\": 0, "
                 "\"logit_bias\": {\"299\": 100}%s}",
                 cases[i].field);
        cJSON *answer = server_post_json(&server, "/v1/completions", body, 200);
        assert_string_equal(json_text(answer, "choices.0.text"), cases[i].text);
        assert_true(json_number(answer, "usage.completion_tokens") == 2);
        cJSON_Delete(answer);
    }
    cJSON *wrong = server_post_json(&server, "/v1/completions",
                                    "{\"prompt\": \"a\", \"skip_special_tokens\": 1}", 400);
    assert_string_equal(json_text(wrong, "error.param"), "skip_special_tokens");
    cJSON_Delete(wrong);
}

static int start(void **state)
{
    int failed = server_make_model(state);
    if (failed)
        return failed;
    static const char *const skip[] = {
        "tokenizer.ggml.model",        "tokenizer.ggml.tokens",       "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",   "tokenizer.ggml.merges",       "tokenizer.ggml.pre",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", NULL};
    server_rewrite_model(skip, write_sentencepiece);
    server = server_start((const char *const[]){NULL});
    return 0;
}

static int stop(void **state)
{
    int status = server_stop(&server, 15);
    return server_remove_model(state) || status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_come_back),
        cmocka_unit_test(generated_spaces_stay),
        cmocka_unit_test(offsets_leave_out_what_was_added),
        cmocka_unit_test(special_tokens_are_silent),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
