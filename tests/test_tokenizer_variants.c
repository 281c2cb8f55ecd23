/*
 * test_tokenizer_variants.c - the splits of other families and SentencePiece against Hugging Face's
 * tokenizers (fixtures/make_tokenizer_variants.py says how the expected hashes were made); texts
 * that would cost more than linear time if a split or merge were careless; SentencePiece
 * vocabularies that are not whole. Runs in the root of the source tree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "format/tokenizer.h"
#include "format/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURES "tests/fixtures/tokenizer/"

enum { MAX_LINES = 8192, BYTES = 259 /* first SentencePiece token that is no byte */ };

typedef struct {
    char *text;
    xm_string lines[MAX_LINES];
    size_t count;
} file_lines;

typedef struct {
    file_lines vocabulary, merges, cases, variants, pieces;
    xm_string texts[MAX_LINES]; /* decoded, in the fixtures' own memory */
    size_t text_count;
} fixtures;

static file_lines read_lines(const char *path)
{
    file_lines result = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s: run this test in the root of the source tree", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    rewind(file);
    result.text = calloc((size_t)size + 1, 1);
    assert_non_null(result.text);
    assert_int_equal(fread(result.text, 1, (size_t)size, file), (size_t)size);
    fclose(file);
    for (char *line = result.text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        assert_true(result.count < MAX_LINES);
        result.lines[result.count++] = (xm_string){line, (size_t)(end - line)};
    }
    return result;
}

/* Decodes hex in place. */
static xm_string from_hex(xm_string hex)
{
    char *out = (char *)(uintptr_t)hex.data; /* of read_lines, which is ours */
    for (size_t i = 0; i < hex.length / 2; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex.data + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    return (xm_string){out, hex.length / 2};
}

static bool is_utf8(xm_string text)
{
    for (size_t i = 0; i < text.length;) {
        size_t length = xm_utf8_length((const unsigned char *)text.data + i, text.length - i);
        if (length == 0)
            return false;
        i += length;
    }
    return true;
}

static void add_text(fixtures *f, xm_string hex)
{
    xm_string text = from_hex(hex);
    assert_true(f->text_count < MAX_LINES);
    if (is_utf8(text))
        f->texts[f->text_count++] = text;
}

static int make_fixtures(void **state)
{
    fixtures *f = calloc(1, sizeof *f);
    if (f == NULL)
        return -1;
    f->vocabulary = read_lines(FIXTURES "vocabulary.txt");
    f->merges = read_lines(FIXTURES "merges.txt");
    f->cases = read_lines(FIXTURES "cases.txt");
    f->variants = read_lines(FIXTURES "variants.txt");
    f->pieces = read_lines(FIXTURES "sentencepiece.txt");
    for (size_t i = 0; i < f->cases.count; i++) {
        xm_string line = f->cases.lines[i];
        const char *space = memchr(line.data + 2, ' ', line.length - 2);
        if (line.data[0] == 'p')
            add_text(f, (xm_string){line.data + 2, (size_t)(space - line.data - 2)});
    }
    for (size_t i = 0; i < f->variants.count; i++)
        if (f->variants.lines[i].data[0] == 't')
            add_text(f,
                     (xm_string){f->variants.lines[i].data + 2, f->variants.lines[i].length - 2});
    for (size_t i = 0; i < f->pieces.count; i++)
        f->pieces.lines[i] = from_hex(f->pieces.lines[i]);
    *state = f;
    return 0;
}

static int free_fixtures(void **state)
{
    fixtures *f = *state;
    free(f->vocabulary.text);
    free(f->merges.text);
    free(f->cases.text);
    free(f->variants.text);
    free(f->pieces.text);
    free(f);
    return 0;
}

/* --- tokenizers ------------------------------------------------------------------------------- */

static xm_tokenizer *create(const xm_tokenizer_source *source)
{
    xm_tokenizer *tokenizer;
    xmoe_error error = {0};
    if (xm_tokenizer_create(source, &tokenizer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return tokenizer;
}

/* Without the special tokens, which the vocabulary has last. */
static xm_tokenizer *byte_level(const fixtures *f, xm_string name)
{
    int32_t types[MAX_LINES];
    const size_t specials = 2;
    for (size_t i = 0; i < f->vocabulary.count; i++)
        types[i] = i + specials < f->vocabulary.count ? 1 : 5;
    const xm_tokenizer_source source = {.split = xm_split_rule_of(name),
                                        .tokens = f->vocabulary.lines,
                                        .types = types,
                                        .token_count = f->vocabulary.count,
                                        .merges = f->merges.lines,
                                        .merge_count = f->merges.count,
                                        .bos = -1,
                                        .eos = -1};
    if (source.split == NULL)
        fail_msg("no split is named %.*s", (int)name.length, name.data);
    return create(&source);
}

static void sentencepiece_types(const fixtures *f, int32_t *types, float *scores)
{
    for (size_t i = 0; i < f->pieces.count; i++) {
        types[i] = i == 0 ? 2 : i < 3 ? 3 : i < BYTES ? 6 : 1;
        scores[i] = -(float)i;
    }
}

static xm_tokenizer *sentencepiece(const fixtures *f)
{
    int32_t types[MAX_LINES];
    float scores[MAX_LINES];
    sentencepiece_types(f, types, scores);
    return create(&(xm_tokenizer_source){.tokens = f->pieces.lines,
                                         .types = types,
                                         .scores = scores,
                                         .token_count = f->pieces.count,
                                         .add_space = true,
                                         .bos = 1,
                                         .eos = 2,
                                         .add_bos = true});
}

static int32_t *encode(const xm_tokenizer *tokenizer, const char *text, size_t length, bool add,
                       size_t *count)
{
    int32_t *tokens;
    xmoe_error error = {0};
    if (xm_tokenizer_encode(tokenizer, text, length, add, false, &tokens, count, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return tokens;
}

/* --- agreement -------------------------------------------------------------------------------- */

static uint32_t hash_of(const int32_t *tokens, size_t count)
{
    uint32_t hash = 0x811c9dc5;
    for (size_t i = 0; i < count; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d,", tokens[i]);
        for (const char *c = text; *c != '\0'; c++)
            hash = (hash ^ (unsigned char)*c) * 0x01000193u;
    }
    return hash;
}

static void print_text(const xm_tokenizer *tokenizer, xm_string text)
{
    size_t count;
    int32_t *tokens = encode(tokenizer, text.data, text.length, false, &count);
    fprintf(stderr, "  text ");
    for (size_t i = 0; i < text.length; i++)
        fprintf(stderr, "%02x", (unsigned char)text.data[i]);
    fprintf(stderr, " '%.*s' is cut:", (int)text.length, text.data);
    for (size_t i = 0; i < count; i++) {
        size_t length;
        const char *bytes = xm_tokenizer_bytes(tokenizer, tokens[i], &length);
        fprintf(stderr, " [%.*s]", (int)length, bytes);
    }
    fprintf(stderr, "\n");
    free(tokens);
}

/* line: "v NAME HASH HASH ..." */
static void check_variant(const fixtures *f, xm_string line)
{
    const char *name = line.data + 2;
    size_t name_length = strcspn(name, " "), wrong = 0;
    bool pieces = strncmp(name, "sentencepiece", name_length) == 0;
    xm_tokenizer *tokenizer =
        pieces ? sentencepiece(f) : byte_level(f, (xm_string){name, name_length});
    const char *hash = name + name_length + 1;
    assert_int_equal((size_t)(line.data + line.length - hash), 9 * f->text_count - 1);
    for (size_t i = 0; i < f->text_count; i++, hash += 9) {
        size_t count;
        int32_t *tokens = encode(tokenizer, f->texts[i].data, f->texts[i].length, false, &count);
        if (hash_of(tokens, count) != strtoul(hash, NULL, 16) && ++wrong <= 12)
            print_text(tokenizer, f->texts[i]);
        free(tokens);
    }
    xm_tokenizer_free(tokenizer);
    if (wrong > 0)
        fail_msg("%.*s: %zu of %zu texts differ", (int)name_length, name, wrong, f->text_count);
}

static void agrees_with_hugging_face(void **state)
{
    const fixtures *f = *state;
    size_t variants = 0;
    assert_true(f->text_count > 2000);
    for (size_t i = 0; i < f->variants.count; i++)
        if (f->variants.lines[i].data[0] == 'v') {
            check_variant(f, f->variants.lines[i]);
            variants++;
        }
    assert_true(variants >= 10);
}

/* Whatever the tokens, together they are the text; SentencePiece adds a space before it. */
static void tokens_are_the_text(void **state)
{
    const fixtures *f = *state;
    xm_tokenizer *tokenizer = sentencepiece(f);
    assert_true(xm_tokenizer_adds_space(tokenizer));
    for (size_t i = 0; i < f->text_count; i++) {
        xm_string text = f->texts[i];
        size_t count, at = 0;
        int32_t *tokens = encode(tokenizer, text.data, text.length, false, &count);
        char *joined = calloc(text.length + 64, 1);
        assert_non_null(joined);
        for (size_t t = 0; t < count; t++) {
            size_t length;
            const char *bytes = xm_tokenizer_bytes(tokenizer, tokens[t], &length);
            assert_true(at + length <= text.length + 1);
            memcpy(joined + at, bytes, length);
            at += length;
        }
        /* U+2581 in a text cannot be told from a space: none of these has it. */
        assert_int_equal(at, text.length > 0 ? text.length + 1 : 0);
        if (text.length > 0)
            assert_memory_equal(joined + 1, text.data, text.length);
        free(joined);
        free(tokens);
    }
    xm_tokenizer_free(tokenizer);
}

/* --- hostile texts ---------------------------------------------------------------------------- */

/* A megabyte of each takes well under a second; a quadratic split would take minutes. */
static void long_texts_take_linear_time(void **state)
{
    static const char *const units[] = {" ",  "a",  "A",    "1",    "\n",           " \n",
                                        "!",  "é",  "\x01", "\xff", "\u0301",       "aA",
                                        " x", "龥", "'",    "a1!",  "\xe2\x96\x81", "\t "};
    enum { LENGTH = 1 << 20 };
    const fixtures *f = *state;
    char *text = malloc(LENGTH);
    assert_non_null(text);
    for (size_t v = 0; v < f->variants.count; v++) {
        if (f->variants.lines[v].data[0] != 'v')
            continue;
        const char *name = f->variants.lines[v].data + 2;
        size_t name_length = strcspn(name, " ");
        xm_tokenizer *tokenizer = strncmp(name, "sentencepiece", name_length) == 0
                                      ? sentencepiece(f)
                                      : byte_level(f, (xm_string){name, name_length});
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t unit = strlen(units[u]), count;
            for (size_t i = 0; i < LENGTH; i++)
                text[i] = units[u][i % unit];
            size_t length = LENGTH / 16 / unit * unit;
            free(encode(tokenizer, text, u % 6 == 0 ? LENGTH : length, false, &count));
        }
        xm_tokenizer_free(tokenizer);
    }
    free(text);
}

/* --- SentencePiece ---------------------------------------------------------------------------- */

static void begins_where_the_model_wants_it(void **state)
{
    const fixtures *f = *state;
    xm_tokenizer *tokenizer = sentencepiece(f);
    size_t with, without;
    int32_t *plain = encode(tokenizer, "the word", 8, false, &without);
    int32_t *added = encode(tokenizer, "the word", 8, true, &with);
    assert_int_equal(with, without + 1);
    assert_int_equal(added[0], 1);
    assert_memory_equal(added + 1, plain, without * sizeof *plain);
    assert_true(xm_tokenizer_is_end(tokenizer, 2)); /* </s> */
    assert_false(xm_tokenizer_is_end(tokenizer, 1));
    free(plain);
    free(added);
    xm_tokenizer_free(tokenizer);
}

static void bad_bytes_are_byte_tokens(void **state)
{
    const fixtures *f = *state;
    xm_tokenizer *tokenizer = sentencepiece(f);
    size_t count, length;
    int32_t *tokens = encode(tokenizer, "\xff\xc3", 2, false, &count);
    assert_int_equal(count, 3); /* the space before it, and two bytes */
    for (size_t i = 1; i < 3; i++) {
        const char *bytes = xm_tokenizer_bytes(tokenizer, tokens[i], &length);
        assert_int_equal(length, 1);
        assert_int_equal(bytes[0], "\xff\xc3"[i - 1]);
    }
    free(tokens);
    xm_tokenizer_free(tokenizer);
}

static void wrong_vocabularies_are_refused(void **state)
{
    const fixtures *f = *state;
    int32_t types[MAX_LINES];
    float scores[MAX_LINES];
    xm_tokenizer_source source = {.tokens = f->pieces.lines,
                                  .types = types,
                                  .scores = scores,
                                  .token_count = f->pieces.count,
                                  .bos = -1,
                                  .eos = -1};
    xm_tokenizer *tokenizer;
    xmoe_error error;

    sentencepiece_types(f, types, scores);
    types[BYTES] = 6;
    assert_int_equal(xm_tokenizer_create(&source, &tokenizer, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "token 259 is a byte, but not named"));
    sentencepiece_types(f, types, scores);
    scores[300] = (float)NAN;
    assert_int_equal(xm_tokenizer_create(&source, &tokenizer, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "score of token 300"));
    sentencepiece_types(f, types, scores);
    for (int64_t failures = 0;; failures++) {
        xm_memory_fail_after(failures);
        xmoe_status status = xm_tokenizer_create(&source, &tokenizer, &error);
        xm_memory_fail_after(-1);
        if (status == XMOE_OK)
            break;
        assert_int_equal(status, XMOE_ERROR_MEMORY);
        assert_null(tokenizer);
    }
    xm_tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_hugging_face),
        cmocka_unit_test(tokens_are_the_text),
        cmocka_unit_test(long_texts_take_linear_time),
        cmocka_unit_test(begins_where_the_model_wants_it),
        cmocka_unit_test(bad_bytes_are_byte_tokens),
        cmocka_unit_test(wrong_vocabularies_are_refused),
    };
    return cmocka_run_group_tests(tests, make_fixtures, free_fixtures);
}
