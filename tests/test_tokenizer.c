/*
 * test_tokenizer.c - the tokenizer against Hugging Face's (fixtures/make_tokenizer.py says how the
 * expected tokens were made), and on input it must survive: broken vocabularies, bytes that are not
 * UTF-8, a megabyte without a space, failing allocations.
 * Runs in the root of the source tree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "format/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIXTURES "tests/fixtures/tokenizer/"

enum { MAX_TOKENS = 4096, SPECIAL_COUNT = 2 };

/* A vocabulary in memory, as a file would give it. */
typedef struct {
    char *text, *merge_text; /* what the strings point into */
    xm_string tokens[MAX_TOKENS], merges[MAX_TOKENS];
    int32_t types[MAX_TOKENS];
    size_t token_count, merge_count;
    int32_t bos, eos;
} vocabulary;

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s: run this test in the root of the source tree", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    rewind(file);
    char *text = calloc((size_t)size + 1, 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, file), (size_t)size);
    fclose(file);
    return text;
}

static size_t read_lines(char *text, xm_string *lines)
{
    size_t count = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        assert_true(count < MAX_TOKENS);
        lines[count++] = (xm_string){line, (size_t)(end - line)};
    }
    return count;
}

static vocabulary *load_vocabulary(void)
{
    vocabulary *v = calloc(1, sizeof *v);
    assert_non_null(v);
    v->text = read_file(FIXTURES "vocabulary.txt");
    v->merge_text = read_file(FIXTURES "merges.txt");
    v->token_count = read_lines(v->text, v->tokens);
    v->merge_count = read_lines(v->merge_text, v->merges);
    for (size_t i = 0; i < v->token_count; i++)
        v->types[i] = i < v->token_count - SPECIAL_COUNT ? 1 : 3;
    v->bos = v->eos = (int32_t)(v->token_count - SPECIAL_COUNT);
    return v;
}

static void free_vocabulary(vocabulary *v)
{
    free(v->text);
    free(v->merge_text);
    free(v);
}

static xmoe_status create(const vocabulary *v, xm_tokenizer **tokenizer, xmoe_error *error)
{
    const xm_tokenizer_source source = {.split = xm_split_gpt2(),
                                        .tokens = v->tokens,
                                        .types = v->types,
                                        .token_count = v->token_count,
                                        .merges = v->merges,
                                        .merge_count = v->merge_count,
                                        .bos = v->bos,
                                        .eos = v->eos};
    return xm_tokenizer_create(&source, tokenizer, error);
}

static int make_fixture(void **state)
{
    vocabulary *v = load_vocabulary();
    xmoe_error error = {0};
    xm_tokenizer *tokenizer;
    if (create(v, &tokenizer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    free_vocabulary(v);
    *state = tokenizer;
    return 0;
}

static int free_fixture(void **state)
{
    xm_tokenizer_free(*state);
    return 0;
}

/* Encodes and checks that the tokens' bytes are the text again. *tokens is the caller's. */
static size_t encode(const xm_tokenizer *tokenizer, const char *text, size_t length, bool special,
                     int32_t **tokens)
{
    size_t count;
    xmoe_error error = {0};
    if (xm_tokenizer_encode(tokenizer, text, length, false, special, tokens, &count, &error) !=
        XMOE_OK)
        fail_msg("%s", error.message);
    assert_non_null(*tokens);
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *token = xm_tokenizer_bytes(tokenizer, (*tokens)[i], &bytes);
        assert_true(bytes > 0 && at + bytes <= length);
        assert_memory_equal(text + at, token, bytes);
        at += bytes;
    }
    assert_int_equal(at, length);
    return count;
}

/* --- against Hugging Face --------------------------------------------------------------------- */

static size_t parse_hex(const char *hex, size_t digits, char *out)
{
    for (size_t i = 0; i < digits; i += 2) {
        unsigned int byte;
        assert_int_equal(sscanf(hex + i, "%2x", &byte), 1);
        out[i / 2] = (char)byte;
    }
    return digits / 2;
}

static void check_case(const xm_tokenizer *tokenizer, const char *line, size_t number)
{
    char mode = line[0], text[4096];
    const char *hex = line + 2, *ids = strchr(hex, ' ');
    assert_non_null(ids);
    size_t length = parse_hex(hex, (size_t)(ids - hex), text);
    int32_t *tokens;
    size_t count = encode(tokenizer, text, length, mode == 's', &tokens), expected = 0;
    for (const char *at = ids + 1; *at != '\n';) {
        char *end;
        long id = strtol(at, &end, 10);
        if (expected >= count || tokens[expected] != id)
            fail_msg("cases.txt:%zu: token %zu differs from %ld", number, expected, id);
        expected++;
        at = *end == ',' ? end + 1 : end;
    }
    if (count != expected)
        fail_msg("cases.txt:%zu: %zu tokens, expected %zu", number, count, expected);
    free(tokens);
}

static void test_agrees_with_hugging_face(void **state)
{
    char *cases = read_file(FIXTURES "cases.txt");
    size_t number = 0;
    for (const char *line = cases; *line != '\0'; line = strchr(line, '\n') + 1)
        check_case(*state, line, ++number);
    assert_true(number >= 2000);
    free(cases);
}

/* --- long and odd texts ----------------------------------------------------------------------- */

static void test_long_texts(void **state)
{
    static const char *const units[] = {"a",        " ",
                                        "\n",       "ab1",
                                        "\xFF",     "'s",
                                        "\xC3\xA9", "\xE4\xBD\xA0",
                                        "\xC2\xA0", " the",
                                        "=",        "\xCC\x81",
                                        "1",        "\xE2\x82 \xFF",
                                        "x \n\xFFy"};
    size_t length = 1 << 20;
    char *text = calloc(length, 1);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        for (size_t i = 0; i < length; i++)
            text[i] = units[u][i % strlen(units[u])];
        int32_t *tokens;
        size_t count = encode(*state, text, length, u % 2 == 0, &tokens);
        assert_true(count > 0 && count <= length);
        free(tokens);
    }
    free(text);
}

static void test_no_text(void **state)
{
    int32_t *tokens;
    assert_int_equal(encode(*state, "", 0, true, &tokens), 0);
    free(tokens);
    assert_int_equal(encode(*state, NULL, 0, false, &tokens), 0);
    free(tokens);
}

/* --- special tokens --------------------------------------------------------------------------- */

static void test_special_tokens(void **state)
{
    const xm_tokenizer *tokenizer = *state;
    const char text[] = "<|end|>a<|endoftext|>";
    int32_t end_of_text = xm_tokenizer_eos(tokenizer), end = end_of_text + 1, *tokens;
    assert_int_equal(xm_tokenizer_size(tokenizer), end + 1);
    assert_int_equal(xm_tokenizer_bos(tokenizer), end_of_text);
    assert_int_equal(encode(tokenizer, text, strlen(text), true, &tokens), 3);
    assert_int_equal(tokens[0], end);
    assert_int_equal(tokens[2], end_of_text);
    free(tokens);
    size_t count = encode(tokenizer, text, strlen(text), false, &tokens);
    for (size_t i = 0; i < count; i++)
        assert_false(xm_tokenizer_is_special(tokenizer, tokens[i]));
    free(tokens);
    assert_true(xm_tokenizer_is_special(tokenizer, end));
    for (int32_t id = -2; id < end_of_text; id++)
        assert_false(xm_tokenizer_is_special(tokenizer, id));
    assert_false(xm_tokenizer_is_special(tokenizer, end + 1));
}

/* Where any byte of what spells a special token is marked, it is text; what lies between marks is
 * split as without them. */
static void test_marked_bytes_stay_text(void **state)
{
    const xm_tokenizer *tokenizer = *state;
    const char text[] = "<|end|>a<|end|>";
    const size_t length = sizeof text - 1, second = 8;
    int32_t end = xm_tokenizer_eos(tokenizer) + 1;
    for (size_t marked = 0; marked <= length; marked++) {
        char marks[sizeof text] = {0};
        int32_t *tokens;
        size_t count = 0, ends = 0, bytes = 0, size;
        if (marked < length)
            marks[marked] = 1;
        assert_int_equal(
            xm_tokenizer_encode_marked(tokenizer, text, marks, length, &tokens, &count, NULL),
            XMOE_OK);
        for (size_t i = 0; i < count; i++) {
            ends += tokens[i] == end;
            (void)xm_tokenizer_bytes(tokenizer, tokens[i], &size);
            bytes += size;
        }
        assert_int_equal(bytes, length);
        assert_int_equal(ends,
                         marked < second - 1 || (marked >= second && marked < length) ? 1 : 2);
        assert_int_equal(tokens[0] == end, marked >= second - 1);
        free(tokens);
    }
}

static void test_bytes_of_tokens(void **state)
{
    size_t length;
    const char *bytes = xm_tokenizer_bytes(*state, xm_tokenizer_eos(*state), &length);
    assert_int_equal(length, strlen("<|endoftext|>"));
    assert_memory_equal(bytes, "<|endoftext|>", length);
    static const int32_t unknown[] = {-1, INT32_MIN, INT32_MAX, 2500};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_non_null(xm_tokenizer_bytes(*state, unknown[i], &length));
        assert_int_equal(length, 0);
    }
}

/* --- broken vocabularies ---------------------------------------------------------------------- */

static void expect_refusal(vocabulary *v, const char *message)
{
    xm_tokenizer *tokenizer;
    xmoe_error error = {0};
    xmoe_status status = create(v, &tokenizer, &error);
    assert_null(tokenizer);
    assert_int_equal(status, XMOE_ERROR_FORMAT);
    assert_int_equal(error.status, status);
    if (strstr(error.message, message) == NULL)
        fail_msg("'%s' does not say '%s'", error.message, message);
    free_vocabulary(v);
}

static xm_string string_of(const char *text)
{
    return (xm_string){text, strlen(text)};
}

static void test_broken_vocabularies(void **state)
{
    (void)state;
    vocabulary *v = load_vocabulary();
    v->tokens[1000] = v->tokens[999];
    expect_refusal(v, "tokens 999 and 1000 are the same");
    v = load_vocabulary();
    v->tokens[1000] = string_of("a b");
    expect_refusal(v, "token 1000 is not in GPT-2's byte alphabet");
    v = load_vocabulary();
    v->tokens[1000] = string_of("\xC4");
    expect_refusal(v, "token 1000 is not in GPT-2's byte alphabet");
    v = load_vocabulary();
    v->tokens[1000].length = 0;
    expect_refusal(v, "token 1000 is empty");
    v = load_vocabulary();
    v->types[7] = 9;
    expect_refusal(v, "type of token 7 is 9");
    v = load_vocabulary();
    v->tokens[v->token_count - 1] = v->tokens[v->token_count - 2];
    expect_refusal(v, "special tokens");
    static char letters[5001];
    memset(letters, 'a', sizeof letters - 1);
    v = load_vocabulary();
    v->tokens[v->token_count - 1] = string_of(letters);
    expect_refusal(v, "special token 2499 has 5000 bytes, at most 4096");
    v = load_vocabulary();
    v->eos = (int32_t)v->token_count;
    expect_refusal(v, "tokenizer.ggml.eos_token_id is 2500, but there are 2500 tokens");
    v = load_vocabulary();
    v->bos = -2;
    expect_refusal(v, "tokenizer.ggml.bos_token_id is -2");
    v = load_vocabulary();
    v->token_count = 0;
    v->bos = v->eos = -1;
    expect_refusal(v, "has a side that is no token");
}

/* Some vocabularies have no token for bytes that no text holds: they are left out. */
static void test_bytes_without_token(void **state)
{
    (void)state;
    vocabulary *v = load_vocabulary();
    xm_tokenizer *tokenizer;
    int32_t *tokens;
    size_t count;
    for (size_t i = 0; i < v->token_count; i++)
        if (v->tokens[i].length == 2 && memcmp(v->tokens[i].data, "\xc4\x84", 2) == 0)
            v->types[i] = 5; /* U+0104 stands for the byte 4 */
    assert_int_equal(create(v, &tokenizer, NULL), XMOE_OK);
    assert_int_equal(
        xm_tokenizer_encode(tokenizer, "a\x04\x04 b", 5, false, false, &tokens, &count, NULL),
        XMOE_OK);
    size_t length;
    assert_int_equal(count, 2);
    assert_memory_equal(xm_tokenizer_bytes(tokenizer, tokens[0], &length), "a", 1);
    assert_memory_equal(xm_tokenizer_bytes(tokenizer, tokens[1], &length), " b", 2);
    free(tokens);
    xm_tokenizer_free(tokenizer);
    free_vocabulary(v);
}

static void test_broken_merges(void **state)
{
    (void)state;
    static const struct {
        const char *merge, *message;
    } cases[] = {
        {"ab", "merge 5 is not two tokens"},
        {"", "merge 5 is not two tokens"},
        {" a", "merge 5 is not two tokens"},
        {"a ", "merge 5 is not two tokens"},
        {"a b c", "merge 5 is not two tokens"},
        {"a \xC4", "merge 5 is not two tokens"},
        {"qqq a", "merge 5 has a side that is no token"},
        {"q q", "merge 5 makes what is no token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vocabulary *v = load_vocabulary();
        v->merges[5] = string_of(cases[i].merge);
        expect_refusal(v, cases[i].message);
    }
    vocabulary *v = load_vocabulary();
    v->merges[5] = v->merges[2];
    expect_refusal(v, "merge 5 occurs twice");
}

/* --- from a file ------------------------------------------------------------------------------ */

typedef struct {
    const char *model, *pre;
    bool tokens, types, merges;
    size_t type_count; /* fewer than tokens */
    bool ids_as_strings;
} file_parts;

static void write_file(const char *path, const vocabulary *v, file_parts parts)
{
    xm_gguf_writer *writer;
    assert_int_equal(xm_gguf_writer_create(path, &writer, NULL), XMOE_OK);
    if (parts.model != NULL)
        xm_gguf_writer_string(writer, "tokenizer.ggml.model", parts.model);
    if (parts.pre != NULL)
        xm_gguf_writer_string(writer, "tokenizer.ggml.pre", parts.pre);
    if (parts.tokens)
        xm_gguf_writer_strings(writer, "tokenizer.ggml.tokens", v->tokens, v->token_count);
    if (parts.types)
        xm_gguf_writer_i32s(writer, "tokenizer.ggml.token_type", v->types, parts.type_count);
    if (parts.merges)
        xm_gguf_writer_strings(writer, "tokenizer.ggml.merges", v->merges, v->merge_count);
    if (parts.ids_as_strings)
        xm_gguf_writer_string(writer, "tokenizer.ggml.eos_token_id", "2498");
    else
        xm_gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    xm_gguf_writer_begin(writer);
    xmoe_error error = {0};
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void test_from_gguf(void **state)
{
    (void)state;
    vocabulary *v = load_vocabulary();
    size_t n = v->token_count;
    const struct {
        file_parts parts;
        const char *message; /* NULL: it is fine */
    } cases[] = {
        {{"gpt2", "gpt-2", true, true, true, n, false}, NULL},
        {{"gpt2", NULL, true, true, true, n, false}, NULL},
        {{NULL, "gpt-2", true, true, true, n, false}, "'tokenizer.ggml.model' is missing"},
        {{"bert", "gpt-2", true, true, true, n, false}, "tokenizer.ggml.model is 'bert'"},
        {{"gpt2", "no-such", true, true, true, n, false}, "tokenizer.ggml.pre is 'no-such'"},
        {{"gpt2", "gpt-2", false, true, true, n, false}, "'tokenizer.ggml.tokens' is missing"},
        {{"gpt2", "gpt-2", true, false, true, n, false}, "'tokenizer.ggml.token_type' is missing"},
        {{"gpt2", "gpt-2", true, true, false, n, false}, "'tokenizer.ggml.merges' is missing"},
        {{"gpt2", "gpt-2", true, true, true, n - 1, false}, "2499 entries for 2500 tokens"},
        {{"gpt2", "gpt-2", true, true, true, n, true}, "is of type string, expected u32"},
    };
    char path[] = "/tmp/xmoe-test-tokenizer-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(path, v, cases[i].parts);
        xm_gguf *file;
        xm_tokenizer *tokenizer;
        xmoe_error error = {0};
        assert_int_equal(xm_gguf_open(path, &file, &error), XMOE_OK);
        xmoe_status status = xm_tokenizer_from_gguf(file, &tokenizer, &error);
        if (cases[i].message == NULL) {
            assert_int_equal(status, XMOE_OK);
            assert_int_equal(xm_tokenizer_bos(tokenizer), -1);
            assert_int_equal(xm_tokenizer_eos(tokenizer), v->eos);
        } else {
            assert_int_not_equal(status, XMOE_OK);
            assert_null(tokenizer);
            if (strstr(error.message, cases[i].message) == NULL)
                fail_msg("'%s' does not say '%s'", error.message, cases[i].message);
        }
        xm_tokenizer_free(tokenizer);
        xm_gguf_close(file);
    }
    unlink(path);
    free_vocabulary(v);
}

/* --- failing allocations ---------------------------------------------------------------------- */

static void test_creation_without_memory(void **state)
{
    (void)state;
    vocabulary *v = load_vocabulary();
    xmoe_status status = XMOE_ERROR_MEMORY;
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        xm_tokenizer *tokenizer;
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status = create(v, &tokenizer, &error);
        xm_memory_fail_after(-1);
        if (status != XMOE_OK) {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_int_equal(error.status, XMOE_ERROR_MEMORY);
            assert_null(tokenizer);
        }
        xm_tokenizer_free(tokenizer);
    }
    assert_true(allowed > 10);
    free_vocabulary(v);
}

static void test_encoding_without_memory(void **state)
{
    static const char text[] =
        "It's <|end|> a text\xFF with a long piece: "
        "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmno";
    xmoe_status status = XMOE_ERROR_MEMORY;
    int64_t allowed = 0;
    for (; status != XMOE_OK; allowed++) {
        int32_t *tokens;
        size_t count;
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status =
            xm_tokenizer_encode(*state, text, strlen(text), false, true, &tokens, &count, &error);
        xm_memory_fail_after(-1);
        if (status != XMOE_OK) {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_null(tokens);
        }
        free(tokens);
    }
    assert_true(allowed > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_with_hugging_face),
        cmocka_unit_test(test_long_texts),
        cmocka_unit_test(test_no_text),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_marked_bytes_stay_text),
        cmocka_unit_test(test_bytes_of_tokens),
        cmocka_unit_test(test_broken_vocabularies),
        cmocka_unit_test(test_bytes_without_token),
        cmocka_unit_test(test_broken_merges),
        cmocka_unit_test(test_from_gguf),
        cmocka_unit_test(test_creation_without_memory),
        cmocka_unit_test(test_encoding_without_memory),
    };
    return cmocka_run_group_tests(tests, make_fixture, free_fixture);
}
