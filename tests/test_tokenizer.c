/*
 * test_tokenizer.c - the tokenizer against Hugging Face's (fixtures/make_tokenizer.py says how the
 * expected tokens were made), against a naive merger written here, and on input it must survive:
 * broken vocabularies, bytes that are not UTF-8, a megabyte without a space, failing allocations.
 * Runs in the root of the source tree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "format/split.h"
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
    return xm_tokenizer_create(v->tokens, v->types, v->token_count, v->merges, v->merge_count,
                               v->bos, v->eos, tokenizer, error);
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
    if (xm_tokenizer_encode(tokenizer, text, length, special, tokens, &count, &error) != XMOE_OK)
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

/* --- against a naive merger ------------------------------------------------------------------- */

typedef struct {
    char bytes[24];
    size_t length;
} word;

typedef struct {
    word words[512];
    int32_t left[512], right[512]; /* by rank; the result of rank r is token 256 + r */
    int32_t merge_count;
} small_bpe;

/* Merges of random pairs, in no sensible order: what training would never give. */
static void make_random_bpe(uint64_t seed, small_bpe *bpe)
{
    memset(bpe, 0, sizeof *bpe);
    for (int i = 0; i < 256; i++)
        bpe->words[i] = (word){.bytes = {(char)i}, .length = 1};
    int32_t count = 256;
    for (uint64_t draw = 0; draw < 400 && count < 330; draw++) {
        int32_t side[2];
        for (uint64_t s = 0; s < 2; s++) {
            uint64_t bits = xm_random_bits(seed, 1, 2 * draw + s);
            bool letter = count == 256 || bits % 3 == 0;
            side[s] = letter ? 'a' + (int32_t)(bits >> 8) % 3
                             : 256 + (int32_t)((bits >> 8) % (uint64_t)(count - 256));
            if (side[s] < 0)
                side[s] = 'a';
        }
        word *a = &bpe->words[side[0]], *b = &bpe->words[side[1]], *made = &bpe->words[count];
        if (a->length + b->length > sizeof a->bytes)
            continue;
        memcpy(made->bytes, a->bytes, a->length);
        memcpy(made->bytes + a->length, b->bytes, b->length);
        made->length = a->length + b->length;
        bool known = false;
        for (int32_t i = 0; i < count; i++)
            known = known || (bpe->words[i].length == made->length &&
                              memcmp(bpe->words[i].bytes, made->bytes, made->length) == 0);
        if (known)
            continue;
        bpe->left[count - 256] = side[0];
        bpe->right[count - 256] = side[1];
        count++;
    }
    bpe->merge_count = count - 256;
}

static size_t print_word(const word *w, char *out)
{
    size_t length = 0;
    for (size_t i = 0; i < w->length; i++) {
        uint32_t code_point = xm_byte_to_printable((uint8_t)w->bytes[i]);
        if (code_point >= 0x80) {
            out[length++] = (char)(0xC0 | code_point >> 6);
            out[length++] = (char)(0x80 | (code_point & 0x3F));
        } else {
            out[length++] = (char)code_point;
        }
    }
    return length;
}

static xm_tokenizer *tokenizer_of(const small_bpe *bpe)
{
    vocabulary *v = calloc(1, sizeof *v);
    char *at = v->text = calloc(MAX_TOKENS * 3, 64);
    v->token_count = 256 + (size_t)bpe->merge_count;
    v->merge_count = (size_t)bpe->merge_count;
    v->bos = v->eos = -1;
    for (size_t i = 0; i < v->token_count; i++) {
        v->tokens[i] = (xm_string){at, print_word(&bpe->words[i], at)};
        v->types[i] = 1;
        at += v->tokens[i].length;
    }
    for (size_t i = 0; i < v->merge_count; i++) {
        size_t length = print_word(&bpe->words[bpe->left[i]], at);
        at[length++] = ' ';
        length += print_word(&bpe->words[bpe->right[i]], at + length);
        v->merges[i] = (xm_string){at, length};
        at += length;
    }
    xm_tokenizer *tokenizer;
    xmoe_error error = {0};
    if (create(v, &tokenizer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    free_vocabulary(v);
    return tokenizer;
}

/* One merge at a time: lowest rank, then leftmost. */
static size_t merge_naively(const small_bpe *bpe, const char *piece, size_t length, int32_t *tokens)
{
    size_t count = length;
    for (size_t i = 0; i < length; i++)
        tokens[i] = (unsigned char)piece[i];
    for (;;) {
        int32_t best_rank = bpe->merge_count;
        size_t best = 0;
        for (size_t i = 0; i + 1 < count; i++)
            for (int32_t rank = 0; rank < best_rank; rank++)
                if (bpe->left[rank] == tokens[i] && bpe->right[rank] == tokens[i + 1]) {
                    best_rank = rank;
                    best = i;
                }
        if (best_rank == bpe->merge_count)
            return count;
        tokens[best] = 256 + best_rank;
        memmove(tokens + best + 1, tokens + best + 2, (count - best - 2) * sizeof *tokens);
        count--;
    }
}

/* Pieces of 1 to 200 letters: short ones are merged by scanning, long ones with a heap. */
static void test_agrees_with_naive_merging(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        small_bpe *bpe = calloc(1, sizeof *bpe);
        make_random_bpe(seed, bpe);
        assert_true(bpe->merge_count > 20);
        xm_tokenizer *tokenizer = tokenizer_of(bpe);
        for (uint64_t round = 0; round < 60; round++) {
            char piece[200];
            int32_t expected[200], *tokens;
            size_t length = 1 + round * 199 / 59;
            for (size_t i = 0; i < length; i++)
                piece[i] = (char)('a' + xm_random_bits(seed, 2 + round, i) % 3);
            size_t count = encode(tokenizer, piece, length, false, &tokens);
            assert_int_equal(count, merge_naively(bpe, piece, length, expected));
            assert_memory_equal(tokens, expected, count * sizeof *tokens);
            free(tokens);
        }
        xm_tokenizer_free(tokenizer);
        free(bpe);
    }
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

/* Bytes that are not UTF-8 are cut as U+FFFD is: its class is that of '!'. */
static xmoe_status note_piece(void *context, const char *piece, size_t length)
{
    (void)piece;
    size_t **next = context;
    *(*next)++ = length;
    return XMOE_OK;
}

static void test_split_of_invalid_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t lengths[6];
    } cases[] = {
        {"ab\xFF\xFE!cd", {2, 3, 2}},      {"x \xFFy", {1, 2, 1}},
        {"\xE2\x82 \xE2\x82\xAC", {2, 4}}, {"a\xC3", {1, 1}},
        {"1\xED\xA0\x80z", {1, 3, 1}},     {"  \x80'll", {1, 3, 2}},
        {"\xF4\x90\x80\x80 a", {4, 2}},
    };
    xm_splitter *splitter;
    assert_int_equal(xm_splitter_create(&splitter, NULL), XMOE_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t lengths[32] = {0}, *next = lengths;
        assert_int_equal(
            xm_split(splitter, cases[i].text, strlen(cases[i].text), note_piece, &next, NULL),
            XMOE_OK);
        assert_memory_equal(lengths, cases[i].lengths, sizeof cases[i].lengths);
    }
    xm_splitter_free(splitter);
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

static void test_printable_alphabet(void **state)
{
    (void)state;
    bool taken[324] = {false};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t code_point = xm_byte_to_printable((uint8_t)byte);
        assert_in_range(code_point, 33, 323);
        assert_false(taken[code_point]);
        taken[code_point] = true;
        assert_int_equal(xm_printable_to_byte(code_point), byte);
    }
    assert_int_equal(xm_byte_to_printable(' '), 0x120);
    assert_int_equal(xm_byte_to_printable('\n'), 0x10A);
    for (uint32_t code_point = 0; code_point < 70000; code_point++)
        if (code_point > 323 || !taken[code_point])
            assert_int_equal(xm_printable_to_byte(code_point), -1);
}

/* --- text out --------------------------------------------------------------------------------- */

#define R "\xEF\xBF\xBD"

static const struct {
    const char *bytes, *text;
} streams[] = {
    {"plain", "plain"},
    {"h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80!", "h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80!"},
    {"\xF0\x9F\x98\x80\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80\xF0\x9F\x98\x80"},
    {"\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80", "\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80"},
    {"\xE2\x82", R},
    {"\xF0\x9F\x98", R},
    {"\xC3", R},
    {"\xFF", R},
    {"\xC3\xC3\xA9", R "\xC3\xA9"},
    {"\xE2\x82"
     "A",
     R "A"},
    /* Tables 3-8 to 3-11 of the Unicode standard. */
    {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
     "A",
     R R R R R R R R "A"},
    {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
     "A",
     R R R R R R R R "A"},
    {"\xF4\x91\x92\x93\xFF"
     "A\x80\xBF"
     "B",
     R R R R R "A" R R "B"},
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
     "A",
     R R R R "A"},
};

/* However the bytes are cut, the same text comes out, and only whole characters on the way. */
static void test_stream(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof streams / sizeof *streams; s++) {
        size_t length = strlen(streams[s].bytes);
        for (unsigned int cuts = 0; cuts < 1u << (length - 1); cuts += length < 12 ? 1 : 5) {
            xm_utf8_stream stream = {0};
            xm_buffer out = {0};
            for (size_t start = 0, i = 1; i <= length; i++) {
                if (i < length && (cuts >> (i - 1) & 1) == 0)
                    continue;
                xm_utf8_stream_push(&stream, streams[s].bytes + start, i - start, &out);
                assert_memory_equal(out.data != NULL ? out.data : "", streams[s].text, out.length);
                start = i;
            }
            xm_utf8_stream_end(&stream, &out);
            xm_utf8_stream_end(&stream, &out); /* nothing more */
            assert_string_equal(out.data, streams[s].text);
            xm_buffer_free(&out);
        }
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
    v->types[0] = 3; /* '!' is a byte */
    expect_refusal(v, "no token stands for the byte 0x21");
    v = load_vocabulary();
    v->tokens[v->token_count - 1] = v->tokens[v->token_count - 2];
    expect_refusal(v, "special tokens");
    v = load_vocabulary();
    v->eos = (int32_t)v->token_count;
    expect_refusal(v, "tokenizer.ggml.eos_token_id is 2500, but there are 2500 tokens");
    v = load_vocabulary();
    v->bos = -2;
    expect_refusal(v, "tokenizer.ggml.bos_token_id is -2");
    v = load_vocabulary();
    v->token_count = 0;
    v->bos = v->eos = -1;
    expect_refusal(v, "no token stands for the byte 0x00");
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
        {{"llama", "gpt-2", true, true, true, n, false}, "tokenizer.ggml.model is 'llama'"},
        {{"gpt2", "llama-bpe", true, true, true, n, false}, "tokenizer.ggml.pre is 'llama-bpe'"},
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
        status = xm_tokenizer_encode(*state, text, strlen(text), true, &tokens, &count, &error);
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
        cmocka_unit_test(test_agrees_with_naive_merging),
        cmocka_unit_test(test_long_texts),
        cmocka_unit_test(test_no_text),
        cmocka_unit_test(test_split_of_invalid_bytes),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_bytes_of_tokens),
        cmocka_unit_test(test_printable_alphabet),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_broken_vocabularies),
        cmocka_unit_test(test_broken_merges),
        cmocka_unit_test(test_from_gguf),
        cmocka_unit_test(test_creation_without_memory),
        cmocka_unit_test(test_encoding_without_memory),
    };
    return cmocka_run_group_tests(tests, make_fixture, free_fixture);
}
