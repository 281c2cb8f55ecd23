/*
 * bpe_learn.c - see bpe_learn.h.
 *
 * Pieces live one after the other in `bytes` and, once learning starts, as tokens in `symbols`. For
 * every pair there is its count and a list of the pieces that may hold it; a merge visits only
 * those. The heap holds (count, pair) as they were when pushed: counts of old pairs only fall, so
 * an entry that is too high is put back with today's count when it comes to the top.
 */
#include "train/bpe_learn.h"

#include "base/memory.h"
#include "base/random.h"
#include "format/split.h"

#include <string.h>

typedef struct {
    size_t begin; /* into bytes, later symbols */
    uint32_t length;
    uint64_t hash;
    uint64_t count;
} piece;

typedef struct {
    int32_t left, right;
    uint64_t count;
    uint32_t *pieces; /* may hold it; may repeat */
    uint32_t piece_count, piece_capacity;
} pair_entry;

typedef struct {
    uint64_t count;
    uint32_t pair;
} heap_entry;

struct xm_bpe_learner {
    xm_splitter *splitter;
    char *bytes;
    size_t byte_count, byte_capacity;
    piece *pieces;
    size_t piece_count, piece_capacity;
    uint32_t *piece_table; /* open addressing: index + 1 */
    size_t piece_table_size;
    uint16_t *symbols;
    pair_entry *pairs;
    size_t pair_count, pair_capacity;
    uint32_t *pair_table;
    size_t pair_table_size;
    heap_entry *heap;
    size_t heap_count, heap_capacity;
};

/* Makes room for one more element; false without memory. */
static bool reserve(void **array, size_t *capacity, size_t count, size_t size)
{
    if (count <= *capacity)
        return true;
    size_t wanted = *capacity < 64 ? 64 : *capacity;
    while (wanted < count)
        wanted *= 2;
    void *grown = xm_realloc(*array, wanted, size);
    if (grown == NULL)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

static uint64_t hash_bytes(const char *bytes, size_t length)
{
    uint64_t hash = length;
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, length - i < 8 ? length - i : 8);
        hash = xm_random_mix(hash ^ word);
    }
    return hash;
}

/* --- pieces ----------------------------------------------------------------------------------- */

static bool grow_piece_table(xm_bpe_learner *learner)
{
    size_t size = learner->piece_table_size == 0 ? 1024 : 2 * learner->piece_table_size;
    uint32_t *table = xm_calloc(size, sizeof *table);
    if (table == NULL)
        return false;
    for (size_t i = 0; i < learner->piece_count; i++) {
        size_t at = learner->pieces[i].hash & (size - 1);
        while (table[at] != 0)
            at = (at + 1) & (size - 1);
        table[at] = (uint32_t)i + 1;
    }
    xm_free(learner->piece_table);
    learner->piece_table = table;
    learner->piece_table_size = size;
    return true;
}

static xmoe_status add_piece(void *context, const char *text, size_t length)
{
    xm_bpe_learner *learner = context;
    if (2 * (learner->piece_count + 1) > learner->piece_table_size && !grow_piece_table(learner))
        return XMOE_ERROR_MEMORY;
    uint64_t hash = hash_bytes(text, length);
    size_t mask = learner->piece_table_size - 1, at = hash & mask;
    for (; learner->piece_table[at] != 0; at = (at + 1) & mask) {
        piece *p = &learner->pieces[learner->piece_table[at] - 1];
        if (p->hash == hash && p->length == length &&
            memcmp(learner->bytes + p->begin, text, length) == 0) {
            p->count++;
            return XMOE_OK;
        }
    }
    if (!reserve((void **)&learner->bytes, &learner->byte_capacity, learner->byte_count + length,
                 1) ||
        !reserve((void **)&learner->pieces, &learner->piece_capacity, learner->piece_count + 1,
                 sizeof *learner->pieces))
        return XMOE_ERROR_MEMORY;
    memcpy(learner->bytes + learner->byte_count, text, length);
    learner->pieces[learner->piece_count] =
        (piece){.begin = learner->byte_count, .length = (uint32_t)length, .hash = hash, .count = 1};
    learner->byte_count += length;
    learner->piece_table[at] = (uint32_t)++learner->piece_count;
    return XMOE_OK;
}

/* --- pairs ------------------------------------------------------------------------------------ */

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static bool grow_pair_table(xm_bpe_learner *learner)
{
    size_t size = learner->pair_table_size == 0 ? 1024 : 2 * learner->pair_table_size;
    uint32_t *table = xm_calloc(size, sizeof *table);
    if (table == NULL)
        return false;
    for (size_t i = 0; i < learner->pair_count; i++) {
        const pair_entry *pair = &learner->pairs[i];
        size_t at = xm_random_mix(pair_key(pair->left, pair->right)) & (size - 1);
        while (table[at] != 0)
            at = (at + 1) & (size - 1);
        table[at] = (uint32_t)i + 1;
    }
    xm_free(learner->pair_table);
    learner->pair_table = table;
    learner->pair_table_size = size;
    return true;
}

/* The entry of a pair, or NULL and in *at where in the table it would be. */
static pair_entry *find_pair(const xm_bpe_learner *learner, int32_t left, int32_t right, size_t *at)
{
    size_t mask = learner->pair_table_size - 1;
    for (*at = xm_random_mix(pair_key(left, right)) & mask; learner->pair_table[*at] != 0;
         *at = (*at + 1) & mask) {
        pair_entry *pair = &learner->pairs[learner->pair_table[*at] - 1];
        if (pair->left == left && pair->right == right)
            return pair;
    }
    return NULL;
}

/* The entry of a pair, made if new; NULL without memory. */
static pair_entry *make_pair(xm_bpe_learner *learner, int32_t left, int32_t right)
{
    size_t at;
    if (2 * (learner->pair_count + 1) > learner->pair_table_size && !grow_pair_table(learner))
        return NULL;
    pair_entry *found = find_pair(learner, left, right, &at);
    if (found != NULL)
        return found;
    if (!reserve((void **)&learner->pairs, &learner->pair_capacity, learner->pair_count + 1,
                 sizeof *learner->pairs))
        return NULL;
    pair_entry *pair = &learner->pairs[learner->pair_count];
    *pair = (pair_entry){.left = left, .right = right};
    learner->pair_table[at] = (uint32_t)++learner->pair_count;
    return pair;
}

static bool note_piece(pair_entry *pair, uint32_t index)
{
    if (pair->piece_count > 0 && pair->pieces[pair->piece_count - 1] == index)
        return true;
    if (pair->piece_count == pair->piece_capacity) {
        uint32_t wanted = pair->piece_capacity == 0 ? 4 : 2 * pair->piece_capacity;
        uint32_t *grown = xm_realloc(pair->pieces, wanted, sizeof *grown);
        if (grown == NULL)
            return false;
        pair->pieces = grown;
        pair->piece_capacity = wanted;
    }
    pair->pieces[pair->piece_count++] = index;
    return true;
}

/* --- the heap of pairs ------------------------------------------------------------------------ */

static bool before(const xm_bpe_learner *learner, heap_entry a, heap_entry b)
{
    if (a.count != b.count)
        return a.count > b.count;
    const pair_entry *x = &learner->pairs[a.pair], *y = &learner->pairs[b.pair];
    return pair_key(x->left, x->right) < pair_key(y->left, y->right);
}

static bool heap_push(xm_bpe_learner *learner, uint32_t pair)
{
    if (!reserve((void **)&learner->heap, &learner->heap_capacity, learner->heap_count + 1,
                 sizeof *learner->heap))
        return false;
    heap_entry entry = {learner->pairs[pair].count, pair};
    size_t at = learner->heap_count++;
    while (at > 0 && before(learner, entry, learner->heap[(at - 1) / 2])) {
        learner->heap[at] = learner->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    learner->heap[at] = entry;
    return true;
}

static heap_entry heap_pop(xm_bpe_learner *learner)
{
    heap_entry top = learner->heap[0], last = learner->heap[--learner->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= learner->heap_count)
            break;
        if (child + 1 < learner->heap_count &&
            before(learner, learner->heap[child + 1], learner->heap[child]))
            child++;
        if (!before(learner, learner->heap[child], last))
            break;
        learner->heap[at] = learner->heap[child];
        at = child;
    }
    learner->heap[at] = last;
    return top;
}

/* --- merging ---------------------------------------------------------------------------------- */

static bool count_all_pairs(xm_bpe_learner *learner)
{
    for (size_t i = 0; i < learner->piece_count; i++) {
        const piece *p = &learner->pieces[i];
        for (uint32_t j = 0; j + 1 < p->length; j++) {
            pair_entry *pair = make_pair(learner, learner->symbols[p->begin + j],
                                         learner->symbols[p->begin + j + 1]);
            if (pair == NULL || !note_piece(pair, (uint32_t)i))
                return false;
            pair->count += p->count;
        }
    }
    for (size_t i = 0; i < learner->pair_count; i++)
        if (!heap_push(learner, (uint32_t)i))
            return false;
    return true;
}

/* Replaces (left, right) by made within one piece and moves the counts of the pairs around it. */
static bool merge_piece(xm_bpe_learner *learner, uint32_t index, xm_merge merge, uint16_t made)
{
    piece *p = &learner->pieces[index];
    uint16_t *symbols = learner->symbols + p->begin;
    uint32_t first = 0;
    while (first + 1 < p->length &&
           !(symbols[first] == merge.left && symbols[first + 1] == merge.right))
        first++;
    if (first + 1 >= p->length)
        return true;
    size_t at;
    for (uint32_t i = 0; i + 1 < p->length; i++)
        find_pair(learner, symbols[i], symbols[i + 1], &at)->count -= p->count; /* exists */
    uint32_t length = 0;
    for (uint32_t i = 0; i < p->length; i++) {
        bool here = i + 1 < p->length && symbols[i] == merge.left && symbols[i + 1] == merge.right;
        symbols[length++] = here ? made : symbols[i];
        i += here;
    }
    p->length = length;
    for (uint32_t i = 0; i + 1 < length; i++) {
        pair_entry *pair = make_pair(learner, symbols[i], symbols[i + 1]);
        if (pair == NULL)
            return false;
        pair->count += p->count;
        if ((symbols[i] == made || symbols[i + 1] == made) && !note_piece(pair, index))
            return false;
    }
    return true;
}

static bool apply_merge(xm_bpe_learner *learner, uint32_t best, int32_t made)
{
    pair_entry *chosen = &learner->pairs[best];
    xm_merge merge = {chosen->left, chosen->right};
    uint32_t *visit = chosen->pieces, visits = chosen->piece_count;
    size_t first_new = learner->pair_count;
    chosen->pieces = NULL; /* the table of pairs may move while we visit */
    chosen->piece_count = chosen->piece_capacity = 0;
    bool fine = true;
    for (uint32_t i = 0; i < visits && fine; i++)
        fine = merge_piece(learner, visit[i], merge, (uint16_t)made);
    xm_free(visit);
    for (size_t i = first_new; i < learner->pair_count && fine; i++)
        fine = heap_push(learner, (uint32_t)i);
    return fine;
}

static xmoe_status learn(xm_bpe_learner *learner, int32_t size, xm_vocabulary *vocabulary,
                         xmoe_error *error)
{
    int32_t wanted = size - XM_FIRST_MERGE;
    while (vocabulary->merge_count < wanted && learner->heap_count > 0) {
        heap_entry top = heap_pop(learner);
        const pair_entry *pair = &learner->pairs[top.pair];
        if (pair->count < 2)
            continue;
        if (pair->count != top.count) {
            if (!heap_push(learner, top.pair))
                return xm_fail_memory(error, "pairs of a vocabulary", sizeof(heap_entry));
            continue;
        }
        vocabulary->merges[vocabulary->merge_count] = (xm_merge){pair->left, pair->right};
        if (!apply_merge(learner, top.pair, XM_FIRST_MERGE + vocabulary->merge_count))
            return xm_fail_memory(error, "pairs of a vocabulary", sizeof(pair_entry));
        vocabulary->merge_count++;
    }
    return XMOE_OK;
}

/* --- the learner ------------------------------------------------------------------------------ */

xmoe_status xm_bpe_learner_create(xm_bpe_learner **learner_out, xmoe_error *error)
{
    *learner_out = NULL;
    xm_bpe_learner *learner = xm_calloc(1, sizeof *learner);
    if (learner == NULL)
        return xm_fail_memory(error, "vocabulary learner", sizeof *learner);
    xmoe_status status = xm_splitter_create(xm_split_gpt2(), &learner->splitter, error);
    if (status != XMOE_OK) {
        xm_bpe_learner_free(learner);
        return status;
    }
    *learner_out = learner;
    return XMOE_OK;
}

void xm_bpe_learner_free(xm_bpe_learner *learner)
{
    if (learner == NULL)
        return;
    for (size_t i = 0; i < learner->pair_count; i++)
        xm_free(learner->pairs[i].pieces);
    xm_splitter_free(learner->splitter);
    xm_free(learner->bytes);
    xm_free(learner->pieces);
    xm_free(learner->piece_table);
    xm_free(learner->symbols);
    xm_free(learner->pairs);
    xm_free(learner->pair_table);
    xm_free(learner->heap);
    xm_free(learner);
}

xmoe_status xm_bpe_learner_add(xm_bpe_learner *learner, const char *text, size_t length,
                               xmoe_error *error)
{
    xmoe_status status = xm_split(learner->splitter, text, length, add_piece, learner, error);
    if (status == XMOE_ERROR_MEMORY)
        return xm_fail_memory(error, "pieces of text", learner->byte_count + length);
    return status;
}

xmoe_status xm_bpe_learner_finish(xm_bpe_learner *learner, int32_t size, xm_vocabulary *vocabulary,
                                  xmoe_error *error)
{
    *vocabulary = (xm_vocabulary){0};
    if (size < XM_FIRST_MERGE || size > 65535)
        return xm_fail_argument(error, "vocabulary", "vocabulary is %d, must be %d to 65535", size,
                                XM_FIRST_MERGE);
    learner->symbols = xm_calloc(learner->byte_count + 1, sizeof(uint16_t));
    vocabulary->merges = xm_calloc((size_t)(size - XM_FIRST_MERGE) + 1, sizeof(xm_merge));
    xmoe_status status = XMOE_OK;
    if (learner->symbols == NULL || vocabulary->merges == NULL) {
        status = xm_fail_memory(error, "vocabulary", learner->byte_count * sizeof(uint16_t));
    } else {
        for (size_t i = 0; i < learner->byte_count; i++)
            learner->symbols[i] = (uint8_t)learner->bytes[i];
        status = count_all_pairs(learner)
                     ? learn(learner, size, vocabulary, error)
                     : xm_fail_memory(error, "pairs of a vocabulary", learner->byte_count);
    }
    if (status != XMOE_OK)
        xm_vocabulary_free(vocabulary);
    return status;
}
