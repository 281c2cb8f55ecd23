/*
 * token_tree.h - the tokens of a model as a grammar sees them: a tree of their bytes.
 *
 * Nodes lie in the order of a walk that visits a node before its children and these in order of
 * byte; tokens that begin alike share nodes, so what holds for the beginning is found once for all.
 * In the tree are the tokens that stand for text. Special tokens and those that end a text are kept
 * beside it.
 *
 * Immutable once made; any thread. It holds on to the tokenizer.
 */
#ifndef XM_GRAMMAR_TOKEN_TREE_H
#define XM_GRAMMAR_TOKEN_TREE_H

#include "format/tokenizer.h"

typedef struct {
    uint8_t byte;
    int32_t depth; /* bytes from the root to here, this one included: 1 or more */
    int32_t end;   /* index behind the last node below this one */
    int32_t token; /* whose bytes end here, or -1; further ones follow in `same` */
} xm_token_tree_node;

typedef struct {
    const xm_tokenizer *tokenizer;
    int32_t size; /* tokens */
    xm_token_tree_node *nodes;
    int32_t node_count, depth; /* of the deepest node */
    int32_t *same;             /* [size]: the next token of the same bytes, or -1 */
    int32_t *specials;         /* not in the tree, nor ends; in order of their bytes */
    int32_t special_count;
    int32_t *ends; /* end-of-text tokens */
    int32_t end_count;
} xm_token_tree;

xmoe_status xm_token_tree_create(const xm_tokenizer *tokenizer, xm_token_tree **tokens,
                                 xmoe_error *error);
void xm_token_tree_free(xm_token_tree *tokens);

/* The token of exactly these bytes, special ones first; -1 if there is none. */
int32_t xm_token_tree_find(const xm_token_tree *tokens, const char *bytes, size_t length);

/* 64-bit words of a set of tokens: token t is bit t % 64 of word t / 64. */
static inline size_t xm_token_words(int32_t size)
{
    return ((size_t)size + 63) / 64;
}

#endif
