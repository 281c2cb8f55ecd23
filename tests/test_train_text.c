/*
 * test_train_text.c - from text to training batches: learning a vocabulary against a naive learner
 * written here, its file, token files with their cache, and the stream of windows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "format/split.h"
#include "train/bpe_learn.h"
#include "train/token_file.h"
#include "train/token_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char directory[] = "/tmp/xmoe-test-text-XXXXXX";

static void path_of(char path[256], const char *name)
{
    snprintf(path, 256, "%s/%s", directory, name);
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* --- learning a vocabulary -------------------------------------------------------------------- */

/* The text as lists of tokens, one per piece, piece after piece with -1 between. */
typedef struct {
    int32_t *symbols;
    size_t count;
} naive_text;

static xmoe_status append_piece(void *context, const char *piece, size_t length)
{
    naive_text *text = context;
    for (size_t i = 0; i < length; i++)
        text->symbols[text->count++] = (uint8_t)piece[i];
    text->symbols[text->count++] = -1;
    return XMOE_OK;
}

/* Counts every pair of the whole text anew; false if none occurs twice. */
static bool naive_best(const naive_text *text, uint32_t *counts, int32_t size, xm_merge *best)
{
    uint32_t most = 1;
    memset(counts, 0, (size_t)size * (size_t)size * sizeof *counts);
    for (size_t i = 0; i + 1 < text->count; i++)
        if (text->symbols[i] >= 0 && text->symbols[i + 1] >= 0)
            counts[text->symbols[i] * size + text->symbols[i + 1]]++;
    for (int32_t left = 0; left < size; left++)
        for (int32_t right = 0; right < size; right++)
            if (counts[left * size + right] > most) {
                most = counts[left * size + right];
                *best = (xm_merge){left, right};
            }
    return most > 1;
}

static void naive_apply(naive_text *text, xm_merge merge, int32_t made)
{
    size_t count = 0;
    for (size_t i = 0; i < text->count; i++) {
        bool here = i + 1 < text->count && text->symbols[i] == merge.left &&
                    text->symbols[i + 1] == merge.right;
        text->symbols[count++] = here ? made : text->symbols[i];
        i += here;
    }
    text->count = count;
}

static void check_against_naive(const char *text, size_t length, int32_t size)
{
    xm_bpe_learner *learner = NULL;
    xm_vocabulary vocabulary;
    assert_int_equal(xm_bpe_learner_create(&learner, NULL), XMOE_OK);
    assert_int_equal(xm_bpe_learner_add(learner, text, length, NULL), XMOE_OK);
    assert_int_equal(xm_bpe_learner_finish(learner, size, &vocabulary, NULL), XMOE_OK);
    xm_bpe_learner_free(learner);

    xm_splitter *splitter = NULL;
    naive_text naive = {.symbols = calloc(2 * length + 1, sizeof(int32_t))};
    uint32_t *counts = calloc((size_t)size * (size_t)size, sizeof *counts);
    assert_int_equal(xm_splitter_create(xm_split_gpt2(), &splitter, NULL), XMOE_OK);
    assert_int_equal(xm_split(splitter, text, length, append_piece, &naive, NULL), XMOE_OK);
    xm_splitter_free(splitter);
    int32_t merges = 0;
    xm_merge best = {0};
    for (; merges < size - XM_FIRST_MERGE && naive_best(&naive, counts, size, &best); merges++) {
        assert_true(merges < vocabulary.merge_count);
        if (vocabulary.merges[merges].left != best.left ||
            vocabulary.merges[merges].right != best.right)
            fail_msg("merge %d is (%d, %d), naively (%d, %d)", merges,
                     vocabulary.merges[merges].left, vocabulary.merges[merges].right, best.left,
                     best.right);
        naive_apply(&naive, best, XM_FIRST_MERGE + merges);
    }
    assert_int_equal(merges, vocabulary.merge_count);
    free(naive.symbols);
    free(counts);
    xm_vocabulary_free(&vocabulary);
}

static const char story[] =
    "The hare and the tortoise ran a race. The hare, being the faster, lay down and slept; the "
    "tortoise went on and on, and won the race. \"Slow and steady,\" said the tortoise, \"wins.\"\n"
    "Les lièvres dorment, les tortues arrivent; là où l'été s'achève, l'hiver commence.\n"
    "aaaaaaaaa aaaa aaaaaaa aaa aa   aaaaa\n12 123 1234 1212 if (a[i] == b[i]) { a[i]++; }\n";

static void test_learning_is_naive_learning(void **state)
{
    (void)state;
    check_against_naive(story, sizeof story - 1, 420);
    check_against_naive(story, sizeof story - 1, 300);
    check_against_naive("xyxyxyx xyx", 11, 400); /* runs out of pairs */
    check_against_naive("", 0, 400);
    char random[2000]; /* three letters: long overlaps, many ties */
    for (size_t i = 0; i < sizeof random; i++)
        random[i] = "ab "[xm_random_bits(4, 4, i) % 3];
    check_against_naive(random, sizeof random, 340);
}

/* Wherever memory runs out, learning fails in good order. */
static void test_learning_without_memory(void **state)
{
    (void)state;
    xmoe_status status = XMOE_ERROR_MEMORY;
    for (int allowed = 0; status != XMOE_OK; allowed++) {
        xm_bpe_learner *learner = NULL;
        xm_vocabulary vocabulary = {0};
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status = xm_bpe_learner_create(&learner, &error);
        if (status == XMOE_OK)
            status = xm_bpe_learner_add(learner, story, sizeof story - 1, &error);
        if (status == XMOE_OK)
            status = xm_bpe_learner_finish(learner, 420, &vocabulary, &error);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        xm_bpe_learner_free(learner);
        xm_vocabulary_free(&vocabulary);
        assert_true(allowed < 10000);
    }
}

static void make_vocabulary(xm_vocabulary *vocabulary)
{
    xm_bpe_learner *learner = NULL;
    assert_int_equal(xm_bpe_learner_create(&learner, NULL), XMOE_OK);
    assert_int_equal(xm_bpe_learner_add(learner, story, sizeof story - 1, NULL), XMOE_OK);
    assert_int_equal(xm_bpe_learner_finish(learner, 350, vocabulary, NULL), XMOE_OK);
    xm_bpe_learner_free(learner);
}

static void test_vocabulary_file(void **state)
{
    (void)state;
    char path[256];
    path_of(path, "vocabulary.txt");
    xm_vocabulary made, read;
    make_vocabulary(&made);
    assert_int_equal(xm_vocabulary_save(&made, path, NULL), XMOE_OK);
    assert_int_equal(xm_vocabulary_load(path, &read, NULL), XMOE_OK);
    assert_int_equal(read.merge_count, made.merge_count);
    assert_memory_equal(read.merges, made.merges, (size_t)made.merge_count * sizeof(xm_merge));
    assert_true(xm_vocabulary_hash(&read) == xm_vocabulary_hash(&made));
    read.merges[0].left ^= 1;
    assert_true(xm_vocabulary_hash(&read) != xm_vocabulary_hash(&made));
    xm_vocabulary_free(&read);
    xm_vocabulary_free(&made);
}

static void test_broken_vocabulary_files(void **state)
{
    (void)state;
    const struct {
        const char *text, *message;
    } files[] = {{"", "does not begin"},
                 {"xmoe-vocabulary 1 100\n", "does not begin"},
                 {"xmoe-vocabulary 1 99999999\n", "does not begin"},
                 {"xmoe-vocabulary 1 259\n1 2\n", "ends after 1 of 2"},
                 {"xmoe-vocabulary 1 259\n1 2\n3 x\n", "ends after 1 of 2"},
                 {"xmoe-vocabulary 1 259\n1 2\n3 258\n", "does not exist yet"},
                 {"xmoe-vocabulary 1 258\n1 256\n", "does not exist yet"},
                 {"xmoe-vocabulary 1 258\n-1 2\n", "does not exist yet"}};
    char path[256];
    path_of(path, "broken.txt");
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        xm_vocabulary vocabulary;
        xmoe_error error;
        write_file(path, files[i].text);
        assert_int_equal(xm_vocabulary_load(path, &vocabulary, &error), XMOE_ERROR_FORMAT);
        if (strstr(error.message, files[i].message) == NULL)
            fail_msg("file %zu: %s", i, error.message);
        assert_null(vocabulary.merges);
    }
}

/* --- token files ------------------------------------------------------------------------------ */

static const char documents[] = "One day\nit rained.\n<|endoftext|>\nthe <|endoftext|> of it\n"
                                "<|endoftext|>\nrest";

static void test_documents(void **state)
{
    (void)state;
    xm_vocabulary vocabulary;
    xm_tokenizer *tokenizer = NULL;
    xm_token_file file;
    make_vocabulary(&vocabulary);
    assert_int_equal(xm_vocabulary_tokenizer(&vocabulary, &tokenizer, NULL), XMOE_OK);
    assert_int_equal(
        xm_token_file_encode(documents, sizeof documents - 1, tokenizer, NULL, &file, NULL),
        XMOE_OK);
    /* Token by token the text comes back; only separator lines are end-of-text tokens. */
    static const char *const expected[] = {"", "One day\nit rained.\n", "the <|endoftext|> of it\n",
                                           "rest"};
    char text[256];
    size_t length = 0, document = 0;
    for (size_t i = 0; i < file.count; i++) {
        if (file.tokens[i] == XM_END_OF_TEXT) {
            text[length] = '\0';
            assert_string_equal(text, expected[document++]);
            length = 0;
            continue;
        }
        size_t bytes = 0;
        const char *data = xm_tokenizer_bytes(tokenizer, file.tokens[i], &bytes);
        memcpy(text + length, data, bytes);
        length += bytes;
    }
    assert_int_equal(document, 4);
    assert_int_equal(length, 0);
    assert_int_equal(file.text_bytes, strlen(expected[1]) + strlen(expected[2]) + 4);
    xm_token_file_free(&file);
    xm_tokenizer_free(tokenizer);
    xm_vocabulary_free(&vocabulary);
}

static void test_cache(void **state)
{
    (void)state;
    char text_path[256], cache_path[256];
    path_of(text_path, "text.txt");
    path_of(cache_path, "text.tokens");
    xm_vocabulary vocabulary;
    xm_tokenizer *tokenizer = NULL;
    xm_token_file made, cached, changed;
    make_vocabulary(&vocabulary);
    assert_int_equal(xm_vocabulary_tokenizer(&vocabulary, &tokenizer, NULL), XMOE_OK);
    write_file(text_path, documents);
    assert_int_equal(
        xm_token_file_open(text_path, cache_path, &vocabulary, tokenizer, NULL, &made, NULL),
        XMOE_OK);
    assert_int_equal(
        xm_token_file_open(text_path, cache_path, &vocabulary, tokenizer, NULL, &cached, NULL),
        XMOE_OK);
    assert_int_equal(cached.count, made.count);
    assert_int_equal(cached.text_bytes, made.text_bytes);
    assert_memory_equal(cached.tokens, made.tokens, made.count * sizeof *made.tokens);
    write_file(text_path, "something else"); /* another length: the cache is not used */
    assert_int_equal(
        xm_token_file_open(text_path, cache_path, &vocabulary, tokenizer, NULL, &changed, NULL),
        XMOE_OK);
    assert_int_equal(changed.text_bytes, 14);
    assert_int_equal(truncate(cache_path, 20), 0); /* a damaged cache neither */
    xm_token_file_free(&changed);
    assert_int_equal(
        xm_token_file_open(text_path, cache_path, &vocabulary, tokenizer, NULL, &changed, NULL),
        XMOE_OK);
    assert_int_equal(changed.text_bytes, 14);
    xm_token_file_free(&made);
    xm_token_file_free(&cached);
    xm_token_file_free(&changed);
    xm_tokenizer_free(tokenizer);
    xm_vocabulary_free(&vocabulary);
}

static void test_parts_do_not_show(void **state)
{
    (void)state;
    /* 3 MB of documents are several parts; 1 and 3 threads must agree with one another. */
    enum { REPEATS = 24000 };
    size_t length = REPEATS * (sizeof documents - 5);
    char *text = malloc(length);
    assert_non_null(text);
    for (size_t i = 0; i < REPEATS; i++)
        memcpy(text + i * (sizeof documents - 5), documents, sizeof documents - 5);
    xm_vocabulary vocabulary;
    xm_tokenizer *tokenizer = NULL;
    xm_token_file files[2];
    make_vocabulary(&vocabulary);
    assert_int_equal(xm_vocabulary_tokenizer(&vocabulary, &tokenizer, NULL), XMOE_OK);
    for (int i = 0; i < 2; i++) {
        xm_pool *pool = NULL;
        assert_int_equal(xm_pool_create(1 + 2 * i, &pool, NULL), XMOE_OK);
        assert_int_equal(xm_token_file_encode(text, length, tokenizer, pool, &files[i], NULL),
                         XMOE_OK);
        xm_pool_free(pool);
    }
    assert_int_equal(files[0].count, files[1].count);
    assert_memory_equal(files[0].tokens, files[1].tokens, files[0].count * sizeof(uint16_t));
    assert_int_equal((files[0].count - 1) % REPEATS, 0);
    xm_token_file_free(&files[0]);
    xm_token_file_free(&files[1]);
    xm_tokenizer_free(tokenizer);
    xm_vocabulary_free(&vocabulary);
    free(text);
}

/* --- the stream ------------------------------------------------------------------------------- */

static void test_stream(void **state)
{
    (void)state;
    enum { COUNT = 1000, LENGTH = 7, SEQUENCES = 8, STEPS = 500 };
    static uint16_t low[COUNT], high[COUNT];
    for (int i = 0; i < COUNT; i++) {
        low[i] = (uint16_t)i;
        high[i] = (uint16_t)(COUNT + i);
    }
    const xm_stream_domain domains[] = {{low, COUNT, 3}, {low, COUNT, 0}, {high, COUNT, 1}};
    const xm_token_stream stream = {domains, 3, 5, SEQUENCES, LENGTH};
    static int starts[COUNT];
    memset(starts, 0, sizeof starts);
    for (uint64_t step = 0; step < STEPS; step++) {
        int of_high = 0;
        for (int32_t sequence = 0; sequence < SEQUENCES; sequence++) {
            int32_t tokens[LENGTH], targets[LENGTH], again[LENGTH], again_targets[LENGTH];
            xm_token_stream_window(&stream, step, sequence, tokens, targets);
            xm_token_stream_window(&stream, step, sequence, again, again_targets);
            assert_memory_equal(tokens, again, sizeof tokens);
            for (int i = 0; i < LENGTH; i++)
                assert_int_equal(targets[i], tokens[0] + i + 1);
            assert_true(targets[LENGTH - 1] < (tokens[0] < COUNT ? COUNT : 2 * COUNT));
            int32_t domain = xm_token_stream_domain(&stream, step, sequence);
            assert_int_equal(domain, tokens[0] < COUNT ? 0 : 2);
            of_high += domain == 2;
            starts[tokens[0] % COUNT]++;
        }
        assert_int_equal(of_high, SEQUENCES / 4); /* weights 3 to 1, in every step */
    }
    int seen = 0;
    for (int i = 0; i < COUNT; i++)
        seen += starts[i] > 0;
    assert_true(seen > 900); /* 4000 draws of 993 places: e^-4 of them are missed */
    assert_int_equal(starts[COUNT - 1], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learning_is_naive_learning),
        cmocka_unit_test(test_learning_without_memory),
        cmocka_unit_test(test_vocabulary_file),
        cmocka_unit_test(test_broken_vocabulary_files),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_parts_do_not_show),
        cmocka_unit_test(test_stream),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
