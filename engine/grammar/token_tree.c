/* token_tree.c - see token_tree.h. */
#include "grammar/token_tree.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    xm_string bytes;
    int32_t token;
} entry;

static int compare_bytes(xm_string a, xm_string b)
{
    size_t shorter = a.length < b.length ? a.length : b.length;
    int order = shorter > 0 ? memcmp(a.data, b.data, shorter) : 0;
    if (order != 0)
        return order;
    return a.length < b.length ? -1 : a.length > b.length;
}

static int compare_entries(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = compare_bytes(x->bytes, y->bytes);
    return order != 0 ? order : x->token < y->token ? -1 : x->token > y->token;
}

static xm_string bytes_of(const xm_tokenizer *tokenizer, int32_t token)
{
    xm_string bytes = {0};
    bytes.data = xm_tokenizer_bytes(tokenizer, token, &bytes.length);
    return bytes;
}

static size_t common(xm_string a, xm_string b)
{
    size_t n = 0;
    while (n < a.length && n < b.length && a.data[n] == b.data[n])
        n++;
    return n;
}

static size_t count_nodes(const entry *entries, size_t count)
{
    size_t nodes = 0;
    for (size_t i = 0; i < count; i++)
        nodes +=
            entries[i].bytes.length - (i > 0 ? common(entries[i - 1].bytes, entries[i].bytes) : 0);
    return nodes;
}

/* entries in order of their bytes; path: [depth + 1] */
static void build(xm_token_tree *v, const entry *entries, size_t count, int32_t *path)
{
    size_t open = 0; /* nodes on the path: path[1..open] */
    for (size_t i = 0; i < count; i++) {
        xm_string bytes = entries[i].bytes;
        size_t shared = i > 0 ? common(entries[i - 1].bytes, bytes) : 0;
        while (open > shared)
            v->nodes[path[open--]].end = v->node_count;
        while (open < bytes.length) {
            path[++open] = v->node_count;
            v->nodes[v->node_count++] =
                (xm_token_tree_node){(uint8_t)bytes.data[open - 1], (int32_t)open, 0, -1};
        }
        xm_token_tree_node *node = &v->nodes[path[open]];
        v->same[entries[i].token] = node->token;
        node->token = entries[i].token;
    }
    while (open > 0)
        v->nodes[path[open--]].end = v->node_count;
}

/* Deals the tokens out; returns how many entries for the tree. */
static size_t sort_tokens(xm_token_tree *v, entry *entries, entry *specials)
{
    size_t count = 0;
    for (int32_t t = 0; t < v->size; t++) {
        entry e = {bytes_of(v->tokenizer, t), t};
        v->same[t] = -1;
        if (xm_tokenizer_is_end(v->tokenizer, t))
            v->ends[v->end_count++] = t;
        else if (xm_tokenizer_is_special(v->tokenizer, t))
            specials[v->special_count++] = e;
        else if (e.bytes.length > 0 && xm_tokenizer_is_text(v->tokenizer, t))
            entries[count++] = e;
        if ((size_t)v->depth < e.bytes.length)
            v->depth = (int32_t)e.bytes.length;
    }
    qsort(entries, count, sizeof *entries, compare_entries);
    qsort(specials, (size_t)v->special_count, sizeof *specials, compare_entries);
    for (int32_t i = 0; i < v->special_count; i++)
        v->specials[i] = specials[i].token;
    return count;
}

xmoe_status xm_token_tree_create(const xm_tokenizer *tokenizer, xm_token_tree **tokens,
                                 xmoe_error *error)
{
    *tokens = NULL;
    xmoe_status status = XMOE_OK;
    size_t size = (size_t)xm_tokenizer_size(tokenizer), nodes = 0, count = 0;
    int32_t *path = NULL;
    entry *entries = xm_calloc(size, sizeof *entries), *specials = xm_calloc(size, sizeof *entries);
    xm_token_tree *v = xm_calloc(1, sizeof *v);
    if (entries == NULL || specials == NULL || v == NULL)
        goto no_memory;
    v->tokenizer = tokenizer;
    v->size = (int32_t)size;
    v->same = xm_calloc(size, sizeof *v->same);
    v->specials = xm_calloc(size, sizeof *v->specials);
    v->ends = xm_calloc(size, sizeof *v->ends);
    if (v->same == NULL || v->specials == NULL || v->ends == NULL)
        goto no_memory;
    count = sort_tokens(v, entries, specials);
    nodes = count_nodes(entries, count);
    if (nodes > INT32_MAX) {
        status = xm_fail(error, XMOE_ERROR_UNSUPPORTED, "the vocabulary has more than 2^31 bytes");
        goto done;
    }
    v->nodes = xm_calloc(nodes, sizeof *v->nodes);
    path = xm_calloc((size_t)v->depth + 1, sizeof *path);
    if (v->nodes == NULL || path == NULL)
        goto no_memory;
    build(v, entries, count, path);
    *tokens = v;
    goto done;

no_memory:
    status = xm_fail_memory(error, "tree of tokens", size * sizeof *entries);
done:
    if (status != XMOE_OK)
        xm_token_tree_free(v);
    xm_free(entries);
    xm_free(specials);
    xm_free(path);
    return status;
}

void xm_token_tree_free(xm_token_tree *v)
{
    if (v == NULL)
        return;
    xm_free(v->nodes);
    xm_free(v->same);
    xm_free(v->specials);
    xm_free(v->ends);
    xm_free(v);
}

static int32_t find_special(const xm_token_tree *v, xm_string bytes)
{
    int32_t low = 0, high = v->special_count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        int order = compare_bytes(bytes, bytes_of(v->tokenizer, v->specials[middle]));
        if (order == 0)
            return v->specials[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

int32_t xm_token_tree_find(const xm_token_tree *v, const char *bytes, size_t length)
{
    int32_t found = find_special(v, (xm_string){bytes, length});
    for (int32_t i = 0; found < 0 && i < v->end_count; i++)
        if (compare_bytes((xm_string){bytes, length}, bytes_of(v->tokenizer, v->ends[i])) == 0)
            found = v->ends[i];
    int32_t at = 0, end = v->node_count;
    for (size_t i = 0; found < 0 && i < length; i++) {
        while (at < end && v->nodes[at].byte != (uint8_t)bytes[i])
            at = v->nodes[at].end;
        if (at == end)
            return -1;
        if (i + 1 == length)
            return v->nodes[at].token;
        end = v->nodes[at].end;
        at++;
    }
    return found;
}
