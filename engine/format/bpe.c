/*
 * bpe.c - see bpe.h. Two hash tables (bytes to token, pair of tokens to rank) and two ways to merge
 * that give the same tokens: scanning for short pieces, a heap for long ones, so that a piece of n
 * bytes costs n log n and hostile text (a megabyte of one letter) stays cheap. Both hashes have the
 * table's random key.
 */
#include "format/bpe.h"

#include "base/memory.h"
#include "base/random.h"
#include "format/tokenizer.h"
#include "format/utf8.h"
#include "format/word_table.h"

#include <string.h>

enum {
    NO_TOKEN = -1,
    LEFT_OUT = -2,    /* in place of a byte that no token stands for */
    SHORT_PIECE = 48, /* bytes up to which scanning beats the heap */
};
#define NO_RANK UINT32_MAX

typedef struct {
    int32_t left, right;
    uint32_t rank; /* NO_RANK: empty slot */
} pair_slot;

struct xm_bpe {
    xm_word_table words;
    bool *whole;      /* by token: merging its own bytes gives the token, so there is no need to */
    bool takes_whole; /* any token's bytes, as a piece, are the token */
    int32_t byte_tokens[256];
    pair_slot *pair_slots; /* open addressing; a power of two, at most half full */
    size_t pair_mask;
    int32_t *results; /* by rank: the token that a merge makes */
};

/* A part of a long piece, as a doubly linked list in order of the text. */
struct xm_bpe_symbol {
    int32_t token;           /* NO_TOKEN: merged into the one before */
    uint32_t previous, next; /* indices; the list's length: none */
    uint32_t rank;           /* of the merge with the next symbol */
};
typedef struct xm_bpe_symbol symbol;

/* --- tables ----------------------------------------------------------------------------------- */

static pair_slot *find_pair(const xm_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = xm_random_mix(pair ^ bpe->words.key);
    for (size_t i = (size_t)hash & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask) {
        pair_slot *slot = &bpe->pair_slots[i];
        if (slot->rank == NO_RANK || (slot->left == left && slot->right == right))
            return slot;
    }
}

static uint32_t pair_rank(const xm_bpe *bpe, int32_t left, int32_t right)
{
    return find_pair(bpe, left, right)->rank;
}

/* --- merging ---------------------------------------------------------------------------------- */

/* Appends what a piece has become. */
static bool append_part(xm_bpe_workspace *workspace, int32_t token)
{
    return token == LEFT_OUT || xm_token_list_append(&workspace->list, token);
}

static xmoe_status merge_short(const xm_bpe *bpe, const unsigned char *piece, size_t length,
                               xm_bpe_workspace *workspace)
{
    int32_t tokens[SHORT_PIECE];
    uint32_t ranks[SHORT_PIECE]; /* ranks[i]: of tokens i and i + 1 */
    size_t count = length;
    for (size_t i = 0; i < count; i++)
        tokens[i] = bpe->byte_tokens[piece[i]];
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = pair_rank(bpe, tokens[i], tokens[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == NO_RANK)
            break;
        tokens[best] = bpe->results[ranks[best]];
        count--;
        memmove(tokens + best + 1, tokens + best + 2, (count - best - 1) * sizeof *tokens);
        memmove(ranks + best, ranks + best + 1, (count - best) * sizeof *ranks);
        if (best + 1 < count)
            ranks[best] = pair_rank(bpe, tokens[best], tokens[best + 1]);
        if (best > 0)
            ranks[best - 1] = pair_rank(bpe, tokens[best - 1], tokens[best]);
    }
    for (size_t i = 0; i < count; i++)
        if (!append_part(workspace, tokens[i]))
            return XMOE_ERROR_MEMORY;
    return XMOE_OK;
}

/* The heap holds rank << 32 | index, so the smallest is the leftmost pair of lowest rank. */
static void heap_push(uint64_t *heap, size_t *count, uint64_t entry)
{
    size_t i = (*count)++;
    while (i > 0 && heap[(i - 1) / 2] > entry) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = entry;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count)
{
    uint64_t smallest = heap[0];
    uint64_t moved = heap[--*count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < *count && heap[child + 1] < heap[child])
            child++;
        if (child >= *count || heap[child] >= moved)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
    return smallest;
}

/* Room for a piece: n - 1 pairs at first, and each of at most n - 1 merges adds two. */
static bool reserve_symbols(xm_bpe_workspace *workspace, size_t length)
{
    if (length <= workspace->symbol_capacity)
        return true;
    xm_free(workspace->symbols);
    xm_free(workspace->heap);
    workspace->symbols = xm_calloc(length, sizeof *workspace->symbols);
    workspace->heap = xm_calloc(length, 3 * sizeof *workspace->heap);
    bool done = workspace->symbols != NULL && workspace->heap != NULL;
    workspace->symbol_capacity = done ? length : 0;
    return done;
}

/* Ranks the pair that starts at index anew. */
static void rank_pair(const xm_bpe *bpe, symbol *symbols, uint32_t index, uint32_t end,
                      uint64_t *heap, size_t *heap_count)
{
    symbol *left = &symbols[index];
    left->rank = NO_RANK;
    if (left->next != end)
        left->rank = pair_rank(bpe, left->token, symbols[left->next].token);
    if (left->rank != NO_RANK)
        heap_push(heap, heap_count, (uint64_t)left->rank << 32 | index);
}

static xmoe_status merge_long(const xm_bpe *bpe, const unsigned char *piece, size_t length,
                              xm_bpe_workspace *workspace)
{
    if (!reserve_symbols(workspace, length))
        return XMOE_ERROR_MEMORY;
    symbol *symbols = workspace->symbols;
    uint64_t *heap = workspace->heap;
    size_t heap_count = 0;
    uint32_t end = (uint32_t)length;
    for (uint32_t i = 0; i < end; i++)
        symbols[i] = (symbol){bpe->byte_tokens[piece[i]], i > 0 ? i - 1 : end, i + 1, NO_RANK};
    for (uint32_t i = 0; i < end; i++)
        rank_pair(bpe, symbols, i, end, heap, &heap_count);
    while (heap_count > 0) {
        uint64_t entry = heap_pop(heap, &heap_count);
        uint32_t index = (uint32_t)entry, rank = (uint32_t)(entry >> 32);
        symbol *left = &symbols[index];
        if (left->token == NO_TOKEN || left->rank != rank)
            continue; /* a merge has changed this pair since */
        symbol *right = &symbols[left->next];
        left->token = bpe->results[rank];
        right->token = NO_TOKEN;
        left->next = right->next;
        if (left->next != end)
            symbols[left->next].previous = index;
        rank_pair(bpe, symbols, index, end, heap, &heap_count);
        if (left->previous != end)
            rank_pair(bpe, symbols, left->previous, end, heap, &heap_count);
    }
    for (uint32_t i = 0; i < end; i = symbols[i].next)
        if (!append_part(workspace, symbols[i].token))
            return XMOE_ERROR_MEMORY;
    return XMOE_OK;
}

xmoe_status xm_bpe_merge(const xm_bpe *bpe, const char *piece, size_t length,
                         xm_bpe_workspace *workspace)
{
    int32_t token = xm_word_table_find(&bpe->words, piece, length);
    if (token != NO_TOKEN && (bpe->whole[token] || bpe->takes_whole))
        return append_part(workspace, token) ? XMOE_OK : XMOE_ERROR_MEMORY;
    const unsigned char *bytes = (const unsigned char *)piece;
    return length <= SHORT_PIECE ? merge_short(bpe, bytes, length, workspace)
                                 : merge_long(bpe, bytes, length, workspace);
}

void xm_bpe_workspace_free(xm_bpe_workspace *workspace)
{
    xm_free(workspace->symbols);
    xm_free(workspace->heap);
    workspace->symbols = NULL;
    workspace->heap = NULL;
    workspace->symbol_capacity = 0;
}

/* --- creation --------------------------------------------------------------------------------- */

bool xm_bpe_parse_printable(xm_string text, char *out, size_t *length)
{
    const unsigned char *bytes = (const unsigned char *)text.data;
    size_t written = 0;
    for (size_t i = 0; i < text.length;) {
        uint32_t code_point = 0;
        size_t character = xm_utf8_decode(bytes + i, text.length - i, &code_point);
        int32_t byte = character > 0 ? xm_printable_to_byte(code_point) : -1;
        if (byte < 0)
            return false;
        out[written++] = (char)byte;
        i += character;
    }
    *length = written;
    return true;
}

/* A power of two of at least twice as many slots. */
static size_t slots_for(size_t count)
{
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    return slots;
}

static xmoe_status fill_words(xm_bpe *bpe, const xm_string *words, size_t count, xmoe_error *error)
{
    bpe->whole = xm_calloc(count, sizeof *bpe->whole);
    if (bpe->whole == NULL)
        return xm_fail_memory(error, "vocabulary", count);
    xmoe_status status = xm_word_table_fill(&bpe->words, words, count, error);
    for (int byte = 0; status == XMOE_OK && byte < 256; byte++) {
        int32_t token = xm_word_table_find(&bpe->words, &(char){(char)byte}, 1);
        bpe->byte_tokens[byte] = token != NO_TOKEN ? token : LEFT_OUT;
    }
    return status;
}

static xmoe_status fail_merge(xmoe_error *error, size_t rank, const char *problem)
{
    return xm_fail(error, XMOE_ERROR_FORMAT, "tokenizer.ggml.merges: merge %zu %s", rank, problem);
}

/* bytes: room for as many as the merge has. */
static xmoe_status add_merge(xm_bpe *bpe, xm_string merge, size_t rank, char *bytes,
                             xmoe_error *error)
{
    const char *space = memchr(merge.data, ' ', merge.length);
    if (space == NULL)
        return fail_merge(error, rank, "is not two tokens with a space between them");
    size_t left_text = (size_t)(space - merge.data);
    size_t left_length, right_length;
    xm_string right = {space + 1, merge.length - left_text - 1};
    if (!xm_bpe_parse_printable((xm_string){merge.data, left_text}, bytes, &left_length) ||
        !xm_bpe_parse_printable(right, bytes + left_length, &right_length) || left_length == 0 ||
        right_length == 0)
        return fail_merge(error, rank, "is not two tokens with a space between them");
    int32_t left_token = xm_word_table_find(&bpe->words, bytes, left_length);
    int32_t right_token = xm_word_table_find(&bpe->words, bytes + left_length, right_length);
    int32_t result = xm_word_table_find(&bpe->words, bytes, left_length + right_length);
    if (left_token == NO_TOKEN || right_token == NO_TOKEN)
        return fail_merge(error, rank, "has a side that is no token");
    if (result == NO_TOKEN)
        return fail_merge(error, rank, "makes what is no token");
    pair_slot *slot = find_pair(bpe, left_token, right_token);
    if (slot->rank != NO_RANK)
        return fail_merge(error, rank, "occurs twice");
    *slot = (pair_slot){left_token, right_token, (uint32_t)rank};
    bpe->results[rank] = result;
    return XMOE_OK;
}

static xmoe_status fill_merges(xm_bpe *bpe, const xm_string *merges, size_t count,
                               xmoe_error *error)
{
    size_t slots = slots_for(count), longest = 0;
    bpe->pair_slots = xm_calloc(slots, sizeof *bpe->pair_slots);
    bpe->results = xm_calloc(count, sizeof *bpe->results);
    if (bpe->pair_slots == NULL || bpe->results == NULL)
        return xm_fail_memory(error, "merges", slots * sizeof *bpe->pair_slots);
    bpe->pair_mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        bpe->pair_slots[i].rank = NO_RANK;
    for (size_t i = 0; i < count; i++)
        longest = merges[i].length > longest ? merges[i].length : longest;
    char *bytes = xm_calloc(longest, 1);
    if (bytes == NULL)
        return xm_fail_memory(error, "merges", longest);
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < count && status == XMOE_OK; i++)
        status = add_merge(bpe, merges[i], i, bytes, error);
    xm_free(bytes);
    return status;
}

/* Learns which tokens their own bytes merge into. */
static xmoe_status mark_whole_words(xm_bpe *bpe, size_t count, xmoe_error *error)
{
    xm_bpe_workspace workspace = {0};
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < count && status == XMOE_OK; i++) {
        xm_string word = bpe->words.words[i];
        if (word.length == 0)
            continue;
        workspace.list.count = 0;
        status = xm_bpe_merge(bpe, word.data, word.length, &workspace);
        if (status == XMOE_OK)
            bpe->whole[i] = workspace.list.count == 1 && workspace.list.tokens[0] == (int32_t)i;
    }
    if (status != XMOE_OK)
        status = xm_fail_memory(error, "vocabulary", workspace.list.capacity * sizeof(int32_t));
    xm_bpe_workspace_free(&workspace);
    xm_free(workspace.list.tokens);
    return status;
}

xmoe_status xm_bpe_create(const xm_string *words, size_t word_count, const xm_string *merges,
                          size_t merge_count, bool takes_whole, xm_bpe **bpe_out, xmoe_error *error)
{
    *bpe_out = NULL;
    xm_bpe *bpe = xm_calloc(1, sizeof *bpe);
    if (bpe == NULL)
        return xm_fail_memory(error, "vocabulary", sizeof *bpe);
    xmoe_status status = XMOE_OK;
    if (word_count > INT32_MAX || merge_count > INT32_MAX)
        status = xm_fail(error, XMOE_ERROR_UNSUPPORTED, "the vocabulary has more than 2^31 tokens");
    if (status == XMOE_OK)
        status = fill_words(bpe, words, word_count, error);
    if (status == XMOE_OK)
        status = fill_merges(bpe, merges, merge_count, error);
    if (status == XMOE_OK)
        status = mark_whole_words(bpe, word_count, error);
    bpe->takes_whole = takes_whole; /* only now: what merges make had to be seen */
    if (status != XMOE_OK) {
        xm_bpe_free(bpe);
        return status;
    }
    *bpe_out = bpe;
    return XMOE_OK;
}

void xm_bpe_free(xm_bpe *bpe)
{
    if (bpe == NULL)
        return;
    xm_word_table_free(&bpe->words);
    xm_free(bpe->whole);
    xm_free(bpe->pair_slots);
    xm_free(bpe->results);
    xm_free(bpe);
}
