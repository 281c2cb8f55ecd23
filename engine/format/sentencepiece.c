/*
 * sentencepiece.c - see sentencepiece.h. The text, spaces written as U+2581, is a linked list of
 * symbols; pairs that make a token wait in a heap. A pair that has changed since it was put there
 * is known by its length. n characters cost n log n.
 */
#include "format/sentencepiece.h"

#include "base/memory.h"
#include "format/utf8.h"
#include "format/word_table.h"

#include <string.h>

static const char space_mark[] = "\xe2\x96\x81"; /* U+2581 */
enum { MARK_BYTES = 3 };

struct xm_sentencepiece {
    xm_word_table table;
    const float *scores;
    int32_t byte_tokens[256];
    int32_t unknown;
};

typedef struct {
    uint32_t start, length;  /* in the text; length 0: merged into the one before */
    uint32_t previous, next; /* indices; the list's count: none */
} symbol;

typedef struct {
    float score;
    uint32_t left;   /* index of the first symbol */
    uint32_t length; /* of both together */
} pair;

/* A text being encoded. */
typedef struct {
    const xm_sentencepiece *model;
    const char *text;
    symbol *symbols;
    uint32_t count;
    pair *heap;
    size_t heap_count;
} encoding;

/* --- heap: the best pair first ---------------------------------------------------------------- */

static bool is_better(pair a, pair b)
{
    return a.score > b.score || (!(a.score < b.score) && a.left < b.left);
}

static void heap_push(encoding *job, pair entry)
{
    size_t i = job->heap_count++;
    for (; i > 0 && is_better(entry, job->heap[(i - 1) / 2]); i = (i - 1) / 2)
        job->heap[i] = job->heap[(i - 1) / 2];
    job->heap[i] = entry;
}

static pair heap_pop(encoding *job)
{
    pair best = job->heap[0], moved = job->heap[--job->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < job->heap_count && is_better(job->heap[child + 1], job->heap[child]))
            child++;
        if (child >= job->heap_count || !is_better(job->heap[child], moved))
            break;
        job->heap[i] = job->heap[child];
        i = child;
    }
    job->heap[i] = moved;
    return best;
}

/* --- merging ---------------------------------------------------------------------------------- */

/* Puts the pair that begins at `left` into the heap, if it makes a token. */
static void consider(encoding *job, uint32_t left)
{
    const symbol *first = &job->symbols[left];
    if (left == job->count || first->next == job->count)
        return;
    uint32_t length = first->length + job->symbols[first->next].length;
    if (length > job->model->table.longest)
        return;
    int32_t token = xm_word_table_find(&job->model->table, job->text + first->start, length);
    if (token >= 0)
        heap_push(job, (pair){job->model->scores[token], left, length});
}

static void merge_all(encoding *job)
{
    for (uint32_t i = 0; i < job->count; i++)
        consider(job, i);
    while (job->heap_count > 0) {
        pair best = heap_pop(job);
        symbol *left = &job->symbols[best.left];
        if (left->length == 0 || left->next == job->count)
            continue;
        symbol *right = &job->symbols[left->next];
        if (left->length + right->length != best.length)
            continue; /* a merge has changed this pair since */
        left->length = best.length;
        right->length = 0;
        left->next = right->next;
        if (left->next != job->count)
            job->symbols[left->next].previous = best.left;
        consider(job, best.left);
        if (left->previous != job->count)
            consider(job, left->previous);
    }
}

/* The text's characters as symbols. */
static void cut(encoding *job, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)job->text;
    for (size_t at = 0; at < length;) {
        size_t size = xm_utf8_length(bytes + at, length - at);
        if (size == 0)
            size = 1;
        job->symbols[job->count++] = (symbol){.start = (uint32_t)at, .length = (uint32_t)size};
        at += size;
    }
    for (uint32_t i = 0; i < job->count; i++) {
        job->symbols[i].previous = i > 0 ? i - 1 : job->count;
        job->symbols[i].next = i + 1;
    }
}

static bool append_symbol(const encoding *job, const symbol *part, xm_token_list *tokens)
{
    const xm_sentencepiece *model = job->model;
    int32_t token = xm_word_table_find(&model->table, job->text + part->start, part->length);
    if (token >= 0)
        return xm_token_list_append(tokens, token);
    for (uint32_t i = 0; i < part->length; i++) {
        token = model->byte_tokens[(unsigned char)job->text[part->start + i]];
        if (token < 0)
            token = model->unknown;
        if (token >= 0 && !xm_token_list_append(tokens, token))
            return false;
    }
    return true;
}

/* The text with spaces as U+2581 and, if asked for, one before it; NULL without memory. */
static char *mark_spaces(const char *text, size_t length, bool space, size_t *marked_length)
{
    char *marked = xm_calloc(length + 1, MARK_BYTES);
    size_t used = 0;
    if (marked == NULL)
        return NULL;
    if (space) {
        memcpy(marked, space_mark, MARK_BYTES);
        used = MARK_BYTES;
    }
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ') {
            memcpy(marked + used, space_mark, MARK_BYTES);
            used += MARK_BYTES;
        } else {
            marked[used++] = text[i];
        }
    }
    *marked_length = used;
    return marked;
}

xmoe_status xm_sentencepiece_encode(const xm_sentencepiece *sentencepiece, const char *text,
                                    size_t length, bool space, xm_token_list *tokens)
{
    size_t marked_length = 0;
    char *marked = mark_spaces(text, length, space, &marked_length);
    encoding job = {.model = sentencepiece, .text = marked};
    xmoe_status status = XMOE_ERROR_MEMORY;
    job.symbols = xm_calloc(marked_length, sizeof *job.symbols);
    /* n - 1 pairs at first, and each of at most n - 1 merges adds two. */
    job.heap = xm_calloc(marked_length, 3 * sizeof *job.heap);
    if (marked != NULL && job.symbols != NULL && job.heap != NULL) {
        status = XMOE_OK;
        cut(&job, marked_length);
        merge_all(&job);
    }
    for (uint32_t i = 0; status == XMOE_OK && i < job.count; i = job.symbols[i].next)
        if (!append_symbol(&job, &job.symbols[i], tokens))
            status = XMOE_ERROR_MEMORY;
    xm_free(marked);
    xm_free(job.symbols);
    xm_free(job.heap);
    return status;
}

/* --- creation --------------------------------------------------------------------------------- */

xmoe_status xm_sentencepiece_create(const xm_string *words, const float *scores, size_t count,
                                    const int32_t byte_tokens[256], int32_t unknown,
                                    xm_sentencepiece **sentencepiece_out, xmoe_error *error)
{
    *sentencepiece_out = NULL;
    xm_sentencepiece *sentencepiece = xm_calloc(1, sizeof *sentencepiece);
    if (sentencepiece == NULL)
        return xm_fail_memory(error, "vocabulary", sizeof *sentencepiece);
    sentencepiece->scores = scores;
    sentencepiece->unknown = unknown;
    memcpy(sentencepiece->byte_tokens, byte_tokens, sizeof sentencepiece->byte_tokens);
    xmoe_status status = xm_word_table_fill(&sentencepiece->table, words, count, error);
    if (status != XMOE_OK) {
        xm_sentencepiece_free(sentencepiece);
        return status;
    }
    *sentencepiece_out = sentencepiece;
    return XMOE_OK;
}

void xm_sentencepiece_free(xm_sentencepiece *sentencepiece)
{
    if (sentencepiece == NULL)
        return;
    xm_word_table_free(&sentencepiece->table);
    xm_free(sentencepiece);
}
