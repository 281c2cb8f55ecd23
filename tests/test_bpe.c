/*
 * test_bpe.c - merging against a naive merger written here, with merges that training would never
 * give, in pieces short (merged by scanning) and long (with a heap); and words chosen to be slow.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "format/bpe.h"
#include "format/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_MERGES = 80, WORD_BYTES = 24, LONGEST = 200 };

typedef struct {
    char bytes[WORD_BYTES];
    size_t length;
} word;

typedef struct {
    word words[256 + MAX_MERGES];
    int32_t left[MAX_MERGES], right[MAX_MERGES]; /* by rank; rank r makes token 256 + r */
    int32_t merge_count;
} small_bpe;

/* A letter or one of the merges made so far. */
static int32_t draw_side(uint64_t seed, uint64_t draw, int32_t count)
{
    uint64_t bits = xm_random_bits(seed, 1, draw), merges = (uint64_t)(count - 256);
    if (merges == 0 || bits % 3 == 0)
        return 'a' + (int32_t)((bits >> 8) % 3);
    return 256 + (int32_t)((bits >> 8) % merges);
}

static bool is_known(const small_bpe *bpe, int32_t count, const word *made)
{
    for (int32_t i = 0; i < count; i++)
        if (bpe->words[i].length == made->length &&
            memcmp(bpe->words[i].bytes, made->bytes, made->length) == 0)
            return true;
    return false;
}

/* Merges of random pairs, in no sensible order: what training would never give. */
static void make_random_bpe(uint64_t seed, small_bpe *bpe)
{
    memset(bpe, 0, sizeof *bpe);
    for (int i = 0; i < 256; i++)
        bpe->words[i] = (word){.bytes = {(char)i}, .length = 1};
    int32_t count = 256;
    for (uint64_t draw = 0; draw < 800 && count < 256 + MAX_MERGES; draw += 2) {
        int32_t left = draw_side(seed, draw, count), right = draw_side(seed, draw + 1, count);
        const word *a = &bpe->words[left], *b = &bpe->words[right];
        word *made = &bpe->words[count];
        if (a->length + b->length > sizeof a->bytes)
            continue;
        memcpy(made->bytes, a->bytes, a->length);
        memcpy(made->bytes + a->length, b->bytes, b->length);
        made->length = a->length + b->length;
        if (is_known(bpe, count, made))
            continue;
        bpe->left[count - 256] = left;
        bpe->right[count - 256] = right;
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

/* text: room for the merges in the printable alphabet. */
static xm_bpe *table_of(const small_bpe *small, xm_string *words, char *text)
{
    xm_string merges[MAX_MERGES];
    for (int32_t i = 0; i < 256 + small->merge_count; i++)
        words[i] = (xm_string){small->words[i].bytes, small->words[i].length};
    for (int32_t i = 0; i < small->merge_count; i++) {
        size_t length = print_word(&small->words[small->left[i]], text);
        text[length++] = ' ';
        length += print_word(&small->words[small->right[i]], text + length);
        merges[i] = (xm_string){text, length};
        text += length;
    }
    xm_bpe *bpe;
    xmoe_error error = {0};
    if (xm_bpe_create(words, 256 + (size_t)small->merge_count, merges, (size_t)small->merge_count,
                      false, &bpe, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return bpe;
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

static void compare(const small_bpe *small, const xm_bpe *bpe, uint64_t seed, size_t length)
{
    char piece[LONGEST] = {0};
    int32_t expected[LONGEST];
    for (size_t i = 0; i < length; i++)
        piece[i] = (char)('a' + xm_random_bits(seed, length, i) % 3);
    xm_bpe_workspace workspace = {0};
    assert_int_equal(xm_bpe_merge(bpe, piece, length, &workspace), XMOE_OK);
    assert_int_equal(workspace.list.count, merge_naively(small, piece, length, expected));
    assert_memory_equal(workspace.list.tokens, expected, workspace.list.count * sizeof *expected);
    xm_bpe_workspace_free(&workspace);
    xm_free(workspace.list.tokens);
}

static void test_agrees_with_naive_merging(void **state)
{
    (void)state;
    small_bpe *small = calloc(1, sizeof *small);
    xm_string *words = calloc(256 + MAX_MERGES, sizeof *words);
    char *text = calloc(MAX_MERGES, 2 * WORD_BYTES + 1);
    for (uint64_t seed = 0; seed < 8; seed++) {
        make_random_bpe(seed, small);
        assert_true(small->merge_count > 20);
        xm_bpe *bpe = table_of(small, words, text);
        for (size_t length = 1; length <= LONGEST; length += length < 60 ? 1 : 13)
            compare(small, bpe, seed, length);
        xm_bpe_free(bpe);
    }
    free(text);
    free(words);
    free(small);
}

/* --- chosen words ----------------------------------------------------------------------------- */

enum { CHOSEN = 12000, CHOSEN_BYTES = 8 };

/* The inverse of x ^ x >> shift. */
static uint64_t undo_shift(uint64_t x, int shift)
{
    uint64_t y = x;
    for (int done = shift; done < 64; done += shift)
        y = x ^ y >> shift;
    return y;
}

/* The inverse of multiplying with an odd number, by Newton's iteration. */
static uint64_t undo_factor(uint64_t x, uint64_t factor)
{
    uint64_t inverse = factor;
    for (int i = 0; i < 6; i++)
        inverse *= 2 - factor * inverse;
    return x * inverse;
}

/* The inverse of xm_random_mix. */
static uint64_t unmix(uint64_t x)
{
    x = undo_factor(undo_shift(x, 31), UINT64_C(0x94D049BB133111EB));
    x = undo_factor(undo_shift(x, 27), UINT64_C(0xBF58476D1CE4E5B9));
    return undo_shift(x, 30) - UINT64_C(0x9E3779B97F4A7C15);
}

/* CPU time of making tables of all bytes and these words of 8 bytes. */
static clock_t time_tables(const uint64_t *chosen)
{
    static xm_string words[256 + CHOSEN];
    static char bytes[256];
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        words[i] = (xm_string){&bytes[i], 1};
    }
    for (size_t i = 0; i < CHOSEN; i++)
        words[256 + i] = (xm_string){(const char *)&chosen[i], CHOSEN_BYTES};
    xm_bpe *bpe;
    clock_t start = clock();
    assert_int_equal(xm_bpe_create(words, 256 + CHOSEN, NULL, 0, false, &bpe, NULL), XMOE_OK);
    clock_t time = clock() - start;
    xm_bpe_free(bpe);
    return time;
}

/* Words whose hashes would agree in their low bits if the hash had no key, against random ones:
 * without a key these cost a thousand times as much. */
static void test_no_choice_of_words_is_slow(void **state)
{
    (void)state;
    static uint64_t hostile[CHOSEN], harmless[CHOSEN];
    assert_int_equal(unmix(xm_random_mix(12345)), 12345);
    for (uint64_t i = 0; i < CHOSEN; i++) {
        hostile[i] = CHOSEN_BYTES ^ unmix(unmix(i << 24));
        harmless[i] = xm_random_bits(1, 2, i);
    }
    clock_t usual = time_tables(harmless);
    assert_true(time_tables(hostile) < 20 * usual + CLOCKS_PER_SEC / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_with_naive_merging),
        cmocka_unit_test(test_no_choice_of_words_is_slow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
